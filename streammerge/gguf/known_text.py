"""``python -m streammerge.gguf.known_text FILE``: the ids that a tokenizer.json gives the text llama.cpp knows it by.

The process that ``pretokenizer.py`` starts. It imports nothing but the library, for it is waited for.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

MISSING = 3  # exit code without the library
_MEMORY = 4 << 30  # address space


@cache
def known_pre_tokenizers() -> tuple[str, Mapping[str, str]]:
    """A text full of odd cases, and the pre-tokenizer for the hash of its ids (llama.cpp, ``conversion/base.py``)."""
    table = json.loads(Path(__file__).with_name("pretokenizers.json").read_text(encoding="utf-8"))
    return table["test_string"], table["hash_to_pre"]


def main(path: str) -> int:
    """Print the ids as JSON, with the special tokens that are added by default and without. Returns the exit code."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return MISSING
    text, _ = known_pre_tokenizers()
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        tokenizer = Tokenizer.from_file(path)
        ids = [tokenizer.encode(text).ids, tokenizer.encode(text, add_special_tokens=False).ids]
    except BaseException as error:  # the library raises nothing narrower, and panics
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    print(json.dumps(ids))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
