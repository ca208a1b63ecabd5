"""Breaks whole inputs, by a seeded random: bytes anywhere, values of JSON, headers of safetensors and of GGUF."""

import json
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

DEEP: list = []
for _ in range(150):
    DEEP = [DEEP]
BACK = "\\"
NASTY: tuple = (
    None, True, False, -1, 0, 1, 2, 3, 64, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400,
    -(2**63), 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"),
    "", " ", "a" * 3000, "\0", "a\0b", "\ud800", "\udc80", "ü", "😀", "../../x", "../../outside", "/etc/passwd", "..",
    ".", "a/b", f"C:{BACK}x", "\x1b[31mred", "two\nlines", "`<script>alert(1)</script>`", "a|b", "---",
    "F32", "F16", "BF16", "F64", "I64", "BOOL", "U8", "F8_E4M3", "C64", "model.safetensors", "lm_head.weight",
    "model.embed_tokens.weight", "model.layers.999999999.mlp.up_proj.weight", "x.qweight", "LlamaForCausalLM", "<s>",
    "BPE", [], {}, [[]], [0], [1, 2], [-1], [2**63, 2], [0, 2**62], [1] * 70, ["a"], {"a": 1}, [None],
    {"content": None}, {"": ""}, {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]},
    {"rope_type": "yarn", "factor": 2}, {"quant_method": "\x1b[2J"}, list(range(500)), DEEP,
)  # fmt: skip
NUMBERS = [0, 1, 2, 7, 8, 31, 32, 63, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63,
           2**64 - 1]  # fmt: skip
YAML = (
    "&a [*a, *a]", "{<<: {a: b}}", "!!int ''", "!!bool x", "!!timestamp x", "!!binary '*'", "1" * 5000, "2001-99-99",
    "!!python/object/apply:os.system ['id']", ".inf", "~", "[" * 200, "{a: {b: {c: d}}}", "- - - a", "'", '"\\x',
    "? !!null", "\t", "\0", "1:99:99", "0b", "0x", "%YAML 9.9", "*missing", "<<: 3", "!!set {a}", "!!omap [a]",
    "[1, 2, 3]", "../../../etc/passwd",
)  # fmt: skip


def mutate(path: str, raw: bytes, rng: Random) -> bytes:
    """One file, broken in a way that its kind suggests, or anyhow."""
    ways: list[Callable[[bytes, Random], bytes]] = [break_bytes]
    if path.endswith(".safetensors"):
        ways += [break_header] * 5
    elif path.endswith(".journal") or path.startswith("statistics/"):
        ways += [break_journal] * 8
    elif path.endswith(".json"):
        ways += [break_json] * 5
    elif path.endswith((".gguf", ".dat")):
        ways += [break_numbers] * 4
    elif path.endswith((".yml", ".md")):
        ways += [break_yaml] * 4
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        raw = rng.choice(ways)(raw, rng)
    return raw


def break_bytes(raw: bytes, rng: Random) -> bytes:
    """Bits and pieces of any file."""
    data, place = bytearray(raw), _place(raw, rng)
    size = rng.choice((1, 2, 8, 100))
    way = rng.randrange(7)
    if way == 0:
        del data[place:]
    elif way == 1:
        del data[place : place + size]
    elif way == 2:
        data[place:place] = rng.randbytes(size)
    elif way == 3:
        data[place:place] = data[place : place + size]
    elif way == 4:
        data += rng.choice((b"\0", b"\0" * 32, bytes(data[:100])))
    elif data:
        for _ in range(size):
            data[_place(raw, rng) % len(data)] ^= 1 << rng.randrange(8)
    return bytes(data)


def break_numbers(raw: bytes, rng: Random) -> bytes:
    """A length, count or type of a binary header."""
    data, width = bytearray(raw), rng.choice((4, 8))
    place = _place(raw, rng)
    number = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randrange(100)
    data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
    return bytes(data)


def _place(raw: bytes, rng: Random) -> int:
    """More often near the beginning, where headers are."""
    return int(len(raw) * rng.random() ** rng.choice((1, 3, 8)))


def break_json(raw: bytes, rng: Random) -> bytes:
    """A value of a JSON text, or a key."""
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return break_bytes(raw, rng)
    text = json.dumps(_changed(parsed, rng), ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.1 and '": ' in text:  # a key that stands twice
        text = text.replace("{", text[: text.index(":") + 1] + " 1, ", 1)
    return text.encode("utf-8", "surrogatepass")


def break_header(raw: bytes, rng: Random) -> bytes:
    """A safetensors header whose length is told as it is, mostly."""
    length = int.from_bytes(raw[:8], "little")
    header = break_json(raw[8 : 8 + length], rng)
    told = rng.choice(NUMBERS) if rng.random() < 0.05 else len(header)
    return struct.pack("<Q", told) + header + raw[8 + length :]


def break_journal(raw: bytes, rng: Random) -> bytes:
    """A line of a journal: dropped, doubled, moved, or changed with a CRC that fits, mostly."""
    lines = raw.splitlines()
    if not lines:
        return break_bytes(raw, rng)
    number, way = rng.randrange(len(lines)), rng.randrange(8)
    line = lines[number]
    if way == 0:
        del lines[number]
    elif way == 1:
        lines.insert(rng.randrange(len(lines)), line)
    elif way == 2:
        lines.append(lines.pop(number))
    else:
        text = break_json(line[9:], rng)
        lines[number] = b"%08x %s" % (zlib.crc32(text), text) if rng.random() < 0.95 else line[:9] + text
    return b"\n".join(lines) + b"\n"


def _changed(parsed: object, rng: Random) -> object:
    """The tree with one branch replaced, dropped, doubled or renamed."""
    if not isinstance(parsed, dict | list) or not parsed or rng.random() < 0.05:
        return rng.choice(NASTY)
    where = rng.choice(list(parsed)) if isinstance(parsed, dict) else rng.randrange(len(parsed))
    value, way = parsed[where], rng.randrange(8)
    if isinstance(value, dict | list) and value and way < 6:
        parsed[where] = _changed(value, rng)
    elif way < 5:
        parsed[where] = rng.choice(NASTY)
    elif way == 5:
        parsed[where] = value + rng.choice((-1, 1, 8)) if type(value) is int else rng.choice(NASTY)
    elif way == 6:
        del parsed[where]
    elif isinstance(parsed, dict):
        parsed[rng.choice([text for text in NASTY if isinstance(text, str)])] = parsed.pop(where)
    else:
        parsed.append(value)
    return parsed


def break_yaml(raw: bytes, rng: Random) -> bytes:
    """A line of YAML."""
    lines = raw.decode("utf-8", "surrogateescape").split("\n")
    number = rng.randrange(len(lines))
    key, colon, _ = lines[number].partition(":")
    value = rng.choice(YAML) if rng.random() < 0.7 else json.dumps(rng.choice(NASTY))
    way = rng.randrange(4)
    if way == 0:
        del lines[number]
    elif way == 1:
        lines.insert(number, lines[number])
    else:
        lines[number] = f"{key}: {value}" if colon else value
    return "\n".join(lines).encode("utf-8", "surrogateescape")


# --- what is no content of a file ------------------------------------------------------------------------------------


def break_place(path: Path, outside: Path, rng: Random) -> None:
    """Put something else in a file's place: nothing, a folder, a pipe, a link, a hole."""
    raw = path.read_bytes()
    path.unlink()
    way = rng.randrange(10)
    if way == 0:
        path.mkdir()
    elif way == 1:
        os.mkfifo(path)
    elif way == 2:
        path.symlink_to(outside)
    elif way == 3:
        path.symlink_to(path.name)
    elif way == 4:
        path.symlink_to(path.parent)
    elif way == 5:
        path.symlink_to("/dev/zero")
    elif way == 6 and len(str(path)) < 100:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif way == 8:
        path.symlink_to(outside.with_name("made"))  # writing would make it
    elif way == 7:
        path.write_bytes(raw)
        os.truncate(path, 2**40)
