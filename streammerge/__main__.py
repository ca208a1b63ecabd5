"""``python -m streammerge``."""

from .cli import main

main()
