"""Model folders that are either complete or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """Yield a sibling folder to fill; it takes the name `folder` at the end and is removed after an error.

    Raises FileExistsError where `folder` already holds something: nothing is ever overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; remove it or choose another name")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def copy_others(source: Path, folder: Path) -> None:
    """Copy every file of the folder `source` that is not a .safetensors file."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
