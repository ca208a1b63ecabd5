"""Which of llama.cpp's pre-tokenizers a tokenizer.json has: by the hash of the ids that it gives a known text.

The ``tokenizers`` library does the encoding, in a process of its own (``known_text.py``) that ends: a large vocabulary
takes some 200 MB there, more than most merges.
"""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from streammerge.errors import FormatError, RecipeError
from streammerge.gguf.known_text import MISSING, known_pre_tokenizers

_SECONDS = 60  # for an encoding that takes one or two: patterns of a tokenizer may be made to take for ever


def check_pre_tokenizer(name: str) -> None:
    """Raise RecipeError if llama.cpp knows no pre-tokenizer of this name."""
    known = set(known_pre_tokenizers()[1].values())
    if name not in known | {"default"}:
        raise RecipeError(f"--pre-tokenizer {name!r} is not known; known are default, {', '.join(sorted(known))}")


class Recognition:
    """A tokenizer.json whose pre-tokenizer is being recognized: the encoding begins at once, in its process, which ends
    with the ``with`` block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        command = [sys.executable, "-P", "-m", "streammerge.gguf.known_text", str(path)]
        self._child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
        )

    def __enter__(self) -> "Recognition":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._child:
            self._child.kill()

    def name(self, bos: int | None = None) -> str:
        """llama.cpp's name for it. Raises FormatError, RecipeError.

        A finetune may have changed which special tokens are added, of which a pre-tokenizer knows nothing: the ids are
        tried as they are, without special tokens, and with ``bos`` before them.
        """
        _, known = known_pre_tokenizers()
        as_is, plain = self._ids()
        found = [hash_ids(ids) for ids in (as_is, plain, *([[bos, *plain]] if bos is not None else []))]
        name = next((known[digest] for digest in found if digest in known), None)
        if name is None:
            names = ", ".join(sorted(set(known.values())))
            raise RecipeError(
                f"{self._path}: its pre-tokenizer is not known (hash {found[0]}); name that of the model it was made "
                f"from with --pre-tokenizer: {names}"
            )
        return name

    def _ids(self) -> tuple[list[int], list[int]]:
        """The ids of the text with the special tokens that are added by default, and without."""
        try:
            output, errors = self._child.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise FormatError(
                f"{self._path}: encoding a text with it takes longer than {_SECONDS} s; name its pre-tokenizer with "
                "--pre-tokenizer"
            ) from error
        if self._child.returncode == MISSING:
            raise RecipeError(
                "recognizing the pre-tokenizer takes the tokenizers library: pip install 'streammerge[gguf]'; "
                "or name it, such as --pre-tokenizer llama-bpe"
            )
        if self._child.returncode != 0:
            reason = (errors.strip() or f"it ended with {self._child.returncode}").splitlines()[-1]
            raise FormatError(f"{self._path}: the tokenizers library cannot use it: {reason:.300}")
        as_is, plain = json.loads(output)
        return as_is, plain


def hash_ids(ids: list[int]) -> str:
    """llama.cpp's hash of token ids."""
    return sha256(str(ids).encode()).hexdigest()
