"""`farebox up`, before anything is imported: see `embedded.py` for what it does."""

from collections.abc import Sequence

from core.garbage import not_now


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    with not_now():
        from functions.embedded import main as run
    return run(argv)
