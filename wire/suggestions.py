"""One wording for a name that is not known: say what was probably meant, else what there is."""

import difflib
from collections.abc import Iterable

_SHOWN = 12


def suggest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` is probably a slip of, or ""."""
    # Bounded input: difflib is quadratic.
    close = difflib.get_close_matches(name[:80].lower(), list(known), n=1, cutoff=0.6)
    return close[0] if close else ""


def unknown_name(name: str, known: Iterable[str], noun: str = "field") -> str:
    """`unknown field 'pirces', did you mean 'prices'?`, or the list of what is known."""
    names = list(known)
    close = suggest(name, names)
    shown = name if len(name) <= 80 else name[:79] + "…"
    if close:
        return f"unknown {noun} {shown!r}, did you mean {close!r}?"
    if not names:
        return f"unknown {noun} {shown!r}, none is expected here"
    more = ", …" if len(names) > _SHOWN else ""
    return f"unknown {noun} {shown!r}; expected one of: {', '.join(names[:_SHOWN])}{more}"
