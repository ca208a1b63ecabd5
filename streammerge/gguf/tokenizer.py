"""A byte-level BPE tokenizer in GGUF: ``tokenizer.*`` from tokenizer.json, tokenizer_config.json and config.json.

What is written, and in which order, follows llama.cpp's converter (``gpt2`` vocabularies).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from streammerge.errors import FormatError
from streammerge.formats.gguf import KeyValue, Value, key_value
from streammerge.formats.inputs import kind_of, read_json, read_text
from streammerge.gguf.pretokenizer import Recognition, check_pre_tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's token types
_SPACE_MARK = "\u2581"  # how sentencepiece writes a space
# Added tokens that steer the model even where the tokenizer does not mark them as special.
_SPECIAL_TEXTS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_SHAPES = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Gemma's tokenizer.json has 33 MB and two million values.
_MAX_BYTES, _MAX_VALUES = 64 << 20, 4_000_000
_SMOLLM_VOCABULARY = 49152  # small Granite and SmolLM models, which must not begin with a BOS token


def tokenizer_key_values(
    folder: Path, config: Mapping[str, Any], vocabulary: int, pre_tokenizer: str | None = None
) -> list[KeyValue]:
    """Everything about the tokenizer of the model in ``folder``, for ``vocabulary`` rows of the embedding.

    ``pre_tokenizer`` names llama.cpp's pre-tokenizer where it is not recognized. Raises FormatError, RecipeError.
    """
    try:
        return _key_values(folder, config, vocabulary, pre_tokenizer)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise FormatError(
            f"{folder / 'tokenizer.json'}: it, or tokenizer_config.json beside it, is not what the tokenizers library "
            f"writes: {type(error).__name__}: {error!s:.100}"
        ) from error


def _key_values(folder: Path, config: Mapping[str, Any], vocabulary: int, pre_tokenizer: str | None) -> list[KeyValue]:
    if pre_tokenizer is not None:
        check_pre_tokenizer(pre_tokenizer)
    path = folder / "tokenizer.json"
    if kind_of(path) == "nothing":
        raise FormatError(f"{path}: is missing; a GGUF file holds its tokenizer, copy it there")
    with ExitStack() as stack:
        recognition = stack.enter_context(Recognition(path)) if pre_tokenizer is None else None
        return _collect(folder, config, vocabulary, recognition, str(pre_tokenizer))


def _collect(
    folder: Path, config: Mapping[str, Any], vocabulary: int, recognition: Recognition | None, pre_tokenizer: str
) -> list[KeyValue]:
    tokenizer = _read(folder / "tokenizer.json")
    settings = _read_optional(folder / "tokenizer_config.json")
    _check_kind(folder, tokenizer)
    tokens, types = _tokens(folder, tokenizer, _all_settings(folder, settings), vocabulary)
    specials = _Specials(tokenizer, settings, config)
    pairs: list[tuple[str, str, Value]] = []
    if settings is not None and settings.get("add_prefix_space") is not None:
        pairs.append(("tokenizer.ggml.add_space_prefix", "bool", bool(settings["add_prefix_space"])))
    pairs += [
        ("tokenizer.ggml.model", "str", "gpt2"),
        (
            "tokenizer.ggml.pre",
            "str",
            recognition.name(specials.bos) if recognition else pre_tokenizer,
        ),
        ("tokenizer.ggml.tokens", "[str]", tokens),
        ("tokenizer.ggml.token_type", "[i32]", types),
        ("tokenizer.ggml.merges", "[str]", _merges(folder, tokenizer)),
        *specials.key_values(),
        *_chat_templates(folder, settings),
        *_normalizer(tokenizer.get("normalizer")),
    ]
    if vocabulary == _SMOLLM_VOCABULARY:
        pairs.append(("tokenizer.ggml.add_bos_token", "bool", False))
    last = {key: (key, kind, value) for key, kind, value in pairs}  # set again, a key keeps its place
    return [key_value(*pair) for pair in last.values() if pair[2] not in ("", [])]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, _MAX_BYTES, _MAX_VALUES)


def _read_optional(path: Path) -> dict[str, Any] | None:
    return None if kind_of(path) == "nothing" else _read(path)


def _check_kind(folder: Path, tokenizer: Mapping[str, Any]) -> None:
    """Only byte-level BPE; sentencepiece models are other vocabularies in GGUF."""
    model = tokenizer.get("model") or {}
    kind = model.get("type")
    if kind != "BPE" or model.get("byte_fallback") or kind_of(folder / "tokenizer.model") != "nothing":
        found = "a sentencepiece model" if kind == "BPE" else f"of type {kind!s:.80}"
        raise FormatError(
            f"{folder / 'tokenizer.json'}: the tokenizer is {found}; only byte-level BPE is built in. "
            "Give a GGUF file of the base, which has the tokenizer, with --gguf-template FILE"
        )


# --- the vocabulary --------------------------------------------------------------------------------------------------


def _tokens(
    folder: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], vocabulary: int
) -> tuple[list[str], list[int]]:
    """Text and type of every id; rows of the embedding that no token uses are padding."""
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    types = [_UNUSED] * vocabulary
    for text, number in tokenizer["model"]["vocab"].items():
        _check_id(folder, text, number, vocabulary)
        tokens[number], types[number] = text, _NORMAL
    for text, (number, special) in _added_tokens(tokenizer, settings).items():
        _check_id(folder, text, number, vocabulary)
        control = special or _looks_special(text)
        tokens[number] = text if control else text.replace(_SPACE_MARK, " ")
        types[number] = _CONTROL if control else _USER_DEFINED
    return tokens, types


def _added_tokens(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """Tokens beside the vocabulary: text to id and whether it is special, as transformers sees them.

    tokenizer.json has them; tokenizer_config.json may know better which are special, and may add some, which get
    the id that the vocabulary gives their text, or else the next one.
    """
    vocab = tokenizer["model"]["vocab"]
    listed = tokenizer.get("added_tokens", [])
    added: dict[str, tuple[int, bool]] = {
        token["content"]: (token["id"], bool(token.get("special"))) for token in listed
    }

    following = len(vocab.keys() | added.keys())

    def put(text: str | None, special: bool | None) -> None:
        nonlocal following
        if text is not None:
            number, was = added.get(text) or (vocab.get(text, following), True)
            following += text not in added and text not in vocab
            added[text] = (number, was if special is None else special)

    decoder = settings.get("added_tokens_decoder") or {}
    for number in sorted(decoder, key=int):
        put(_text_of(decoder[number]), bool(decoder[number].get("special")))
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    named = extra.values() if isinstance(extra, dict) else ()
    for entry in (*(settings.get(f"{kind}_token") for kind in _NAMED), *named):
        put(_text_of(entry), True)
    for entry in () if isinstance(extra, dict) else extra:
        put(_text_of(entry), None)
    return added


def _text_of(entry: object) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) and text else None


def _all_settings(folder: Path, settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """tokenizer_config.json; in older folders special_tokens_map.json has the last word on which tokens are special."""
    if settings is not None and "added_tokens_decoder" in settings:
        return settings
    return {**(settings or {}), **(_read_optional(folder / "special_tokens_map.json") or {})}


def _check_id(folder: Path, text: str, number: object, vocabulary: int) -> None:
    if type(number) is not int or not 0 <= number < vocabulary:
        raise FormatError(
            f"{folder / 'tokenizer.json'}: token {text!r:.80} has the id {number!r:.80}, but vocab_size in config.json "
            f"is {vocabulary}; the tokenizer belongs to another model, or the embedding was not resized"
        )


def _looks_special(text: str) -> bool:
    shaped = any(text.startswith(begin) and text.endswith(end) for begin, end in _SPECIAL_SHAPES)
    return text in _SPECIAL_TEXTS or shaped


def _merges(folder: Path, tokenizer: Mapping[str, Any]) -> list[str]:
    """'left right', a space inside a part written as the byte-level alphabet does."""
    merges = tokenizer["model"].get("merges") or []
    if not merges and kind_of(folder / "merges.txt") != "nothing":
        lines = read_text(folder / "merges.txt").splitlines()
        return [line for line in lines[lines[:1] == ["#version: 0.2"] :] if len(line.split()) == 2]
    space = chr(ord(" ") + 256)
    return [pair if isinstance(pair, str) else " ".join(part.replace(" ", space) for part in pair) for pair in merges]


# --- special tokens --------------------------------------------------------------------------------------------------

_ID_KEYS = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask",
    "eot": "eot", "eom": "eom",
}  # fmt: skip  # the misspelling is GGUF's
_FLAGS = ("bos", "eos", "sep")


@dataclass
class _Specials:
    """Which ids mean what, and which are added to every text. The post-processor has the first word on adding."""

    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any] | None
    config: Mapping[str, Any]
    kinds: list[str] = field(default_factory=lambda: list(_NAMED))
    texts: dict[str, Any] = field(default_factory=dict)  # kind to text, or an object that holds it
    added: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.settings or {}
        self.texts = {kind: settings.get(f"{kind}_token") for kind in self.kinds}
        self.texts["bos"] = self.texts["bos"] or self.texts["cls"]
        self.texts["eos"] = self.texts["eos"] or self.texts["sep"]
        for step in self._steps():
            self._follow(step)
        for kind in self.kinds if self.settings is not None else ():
            flag = settings.get(f"add_{kind}_token")
            if isinstance(flag, bool):
                self.added.setdefault(kind, flag)

    def key_values(self) -> Iterator[tuple[str, str, Value]]:
        """Ids, then what is added."""
        for kind, number in self._ids().items():
            if kind in _ID_KEYS:
                yield f"tokenizer.ggml.{_ID_KEYS[kind]}_token_id", "u32", number
        for kind, flag in self.added.items():
            if kind in _FLAGS:
                yield f"tokenizer.ggml.add_{kind}_token", "bool", flag

    @property
    def bos(self) -> int | None:
        """The id of the token that begins a text."""
        return self._ids().get("bos")

    def _ids(self) -> dict[str, int]:
        """By text among the added tokens; what is not found there by number from config.json."""
        known: dict[str, Any] = {}
        for token in self.tokenizer.get("added_tokens", []):
            known.setdefault(token.get("content"), token.get("id"))
        found: dict[str, Any] = {}
        for kind in self.kinds if self.settings is not None else ():
            text = self.texts.get(kind)
            text = text.get("content") if isinstance(text, dict) else text
            found.setdefault(kind, known.get(text) if isinstance(text, str) else None)
        ids = {kind: number for kind, number in found.items() if isinstance(number, int) and number >= 0}
        for kind in self.kinds:
            number = self.config.get(f"{kind}_token_id")
            if isinstance(number, int) and number >= 0:
                ids.setdefault(kind, number)
        return ids

    def _steps(self) -> Sequence[Mapping[str, Any]]:
        post = self.tokenizer.get("post_processor")
        if not post:
            return ()
        steps: Sequence[Mapping[str, Any]] = post.get("processors", [post])
        return steps

    def _follow(self, step: Mapping[str, Any]) -> None:
        kind = step.get("type")
        if kind == "ByteLevel":
            self.added.setdefault("bos", False)
            self.added.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            self.added.update(bos=True, eos=True, sep=True)
            for name, other in (("cls", "bos"), ("sep", "eos")):
                if not self.texts[name]:
                    self.texts[name] = step.get(name, [self.texts[other]])[0]
        elif kind == "TemplateProcessing":
            single = step.get("single", [])
            first, last = (_special(single[0]), _special(single[-1])) if len(single) > 1 else (None, None)
            if first:
                self._first(first)
            if last:
                self._last(last)
            if step.get("pair"):
                self._between(step["pair"], first, last)

    def _first(self, first: str) -> None:
        """The template begins with this token: it is BOS or CLS, if these are not others already."""
        if first not in (self.texts["bos"], self.texts["cls"]):
            for name in ("bos", "cls") if self.settings is not None else ("bos",):
                self.texts[name] = self.texts[name] or first
        self.added["bos"] = first in (self.texts["bos"], self.texts["cls"])

    def _last(self, last: str) -> None:
        """The template ends with this token: it is EOS, and what was said to be EOS ends a turn or a message."""
        if last != self.texts["eos"] and self.settings is not None:
            free = next((name for name in ("eot", "eom") if name not in self.kinds), None)
            if free is not None:
                self.kinds.append(free)
                self.texts[free] = self.texts["eos"]
        self.texts["eos"] = last
        self.added["eos"] = True

    def _between(self, pair: Sequence[Mapping[str, Any]], first: str | None, last: str | None) -> None:
        """Whether a template for two texts puts a separator between them: A, one or two special tokens, B."""
        begin = 1 if first and _special(pair[0]) == first else 0
        end = -1 if last and _special(pair[-1]) == last else None
        inner = pair[begin:end]
        if not inner or (_sequence(inner[0]), _sequence(inner[-1])) != ("A", "B") or len(inner) < 3:
            return
        middle = inner[1:-1]
        separators = (self.texts["sep"], self.texts["eos"])
        found = _special(middle[0])
        separate = bool(found) and found in separators and not last
        if len(middle) == 2:
            second = _special(middle[1])
            separate = separate or (bool(second) and second in separators)
        self.added["sep"] = separate
        if separate and not self.texts["sep"]:
            self.texts["sep"] = self.texts["eos"]


def _special(item: Mapping[str, Any]) -> str | None:
    found = item.get("SpecialToken", {}).get("id")
    return found if isinstance(found, str) else None


def _sequence(item: Mapping[str, Any]) -> object:
    return item.get("Sequence", {}).get("id")


# --- the rest --------------------------------------------------------------------------------------------------------


def _chat_templates(folder: Path, settings: Mapping[str, Any] | None) -> list[tuple[str, str, Value]]:
    """The template, or several by name; those of tokenizer_config.json before those in files of their own."""
    if settings is None:
        return []
    found = settings["chat_template"] if "chat_template" in settings else _template_files(folder)
    if isinstance(found, str):
        return [("tokenizer.chat_template", "str", found)]
    if not isinstance(found, list):
        return []
    named = {_plain(entry.get("name", "")): entry.get("template") for entry in found}
    named = {name: template for name, template in named.items() if name and template is not None}
    default = named.pop("default", None)
    pairs: list[tuple[str, str, Value]] = [(f"tokenizer.chat_template.{n}", "str", t) for n, t in named.items()]
    if named:
        pairs.append(("tokenizer.chat_templates", "[str]", list(named)))
    return [*pairs, ("tokenizer.chat_template", "str", default)] if default is not None else pairs


def _plain(name: str) -> str:
    return "".join(letter if letter in ascii_letters + digits else "_" for letter in name)


def _template_files(folder: Path) -> object:
    main = folder / "chat_template.jinja"
    if kind_of(main) == "nothing":
        found = _read_optional(folder / "chat_template.json")
        return None if found is None else found.get("chat_template")
    text = read_text(main)
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if not others:
        return text
    named = [{"name": path.stem, "template": read_text(path)} for path in others]
    return [{"name": "default", "template": text}, *named]


def _normalizer(normalizer: Mapping[str, Any] | None) -> list[tuple[str, str, Value]]:
    """Whether text is lower-cased and stripped of accents, as far as the normalizer says so."""
    said: dict[str, bool] = {}

    def look(step: Mapping[str, Any]) -> None:
        kind = step.get("type")
        if kind == "Lowercase":
            said["lowercase"] = True
        elif kind == "StripAccents":
            said["strip_accents"] = True
        elif kind == "BertNormalizer":
            said.update({name: step[name] for name in ("lowercase", "strip_accents") if name in step})
        for inner in step.get("normalizers", ()) if kind == "Sequence" else ():
            look(inner)

    look(normalizer or {})
    order = ("lowercase", "strip_accents")
    return [(f"tokenizer.ggml.normalizer.{name}", "bool", said[name]) for name in order if said.get(name) is not None]
