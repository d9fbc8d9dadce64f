"""Failures as one screen: what happened, which field, what to do next, which request."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from farebox.cli.framework import (
    EXIT_AUTHENTICATION,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    State,
    note,
)
from farebox.cli.output import clean
from farebox.errors import FareboxAPIError, FareboxConfigError, FareboxConnectionError, FareboxError

_MESSAGE_MAX_CHARS = 2000
_DETAILS_MAX = 5

# Fields of the API that are options here under another name.
_OPTIONS = {
    "organization": "--org",
    "start": "--from",
    "end": "--to",
    "group_by": "--by",
    "expires_in_s": "--expires-in",
}


class AdvisedError(FareboxError):
    """A refusal together with what this command knows to do about it."""

    def __init__(self, cause: FareboxAPIError, next_step: str) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.next_step = next_step


def report(error: FareboxError, state: State) -> int:
    """Tells people on stderr; returns the exit code."""
    if isinstance(error, AdvisedError):
        return _refused(error.cause, state, error.next_step)
    if isinstance(error, FareboxAPIError):
        return _refused(error, state, "")
    if isinstance(error, FareboxConnectionError):
        _write(error.message, [("Next", _how_to_reach(error))])
        return EXIT_UNREACHABLE
    _write(error.message, [])
    return EXIT_USAGE if isinstance(error, FareboxConfigError) else EXIT_REFUSED


def report_bug(error: Exception) -> int:
    """A failure nobody expected: one line, the traceback only on request."""
    if os.environ.get("FAREBOX_DEBUG"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    _write(
        f"unexpected {type(error).__name__}: {error}",
        [("Next", "run it again with FAREBOX_DEBUG=1 for the details, and please report it")],
    )
    return EXIT_REFUSED


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """Up to three existing names that look like what was meant."""
    from difflib import get_close_matches

    known = list(names)
    folded = {each.lower(): each for each in known}
    # Model ids are publisher/name: people forget the publisher.
    tails = {each.lower().rpartition("/")[2]: each for each in known}
    if name.lower() in folded:
        return [folded[name.lower()]]
    if name.lower() in tails:
        return [tails[name.lower()]]
    found = [folded[each] for each in get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    return found or [tails[each] for each in get_close_matches(name.lower(), tails, n=3, cutoff=0.6)]


@contextmanager
def suggesting(
    name: str | None, names: Callable[[], Iterable[str]], otherwise: str, *, param: str = ""
) -> Iterator[None]:
    """While inside: a refusal of `name` as unknown comes with close names, or else with the command
    `otherwise` that lists them.

    `param` is the field that would hold the name; without it the name is in the path.
    """
    try:
        yield
    except FareboxAPIError as error:
        about_name = error.param == param if param else error.status == 404
        if error.status not in (400, 404, 422) or not about_name or error.code == "unexpected_answer":
            raise
        if not name or "did you mean" in error.message.lower():
            raise
        try:
            close = close_names(name, names())
        except FareboxError:
            close = []
        raise AdvisedError(
            error, f"did you mean {' or '.join(close)}?" if close else f"`{otherwise}` shows what there is"
        ) from error


def _refused(error: FareboxAPIError, state: State, next_step: str) -> int:
    option = _OPTIONS.get(error.param or "")
    lines = [("Field", f"{error.param} ({option})" if option else error.param or "")]
    lines += [("File", str(error.extra.get("where") or ""))]
    lines += [("Detail", text) for text in _details(error)]
    lines += [("Next", next_step or _next_step(error, state)), ("Request id", error.request_id or "")]
    _write(error.message, lines)
    return EXIT_AUTHENTICATION if error.status in (401, 403) else EXIT_REFUSED


def _next_step(error: FareboxAPIError, state: State) -> str:
    source = state.key_source
    if error.status == 401 and state.client.connection.api_key is None:
        return f"no key was sent ({source}); set FAREBOX_API_KEY or give --api-key"
    if error.status in (401, 403):
        return f"the key in use: {source}; management needs the admin key (FAREBOX_HOME/admin.key)"
    if error.code == "unexpected_answer":
        return f"check FAREBOX_URL or --url (now {state.client.connection.url})"
    if error.retry_after_s is not None:
        return f"try again in {error.retry_after_s:g} s"
    if error.status >= 500:
        return "look for the request id in the server's log"
    return ""


def _details(error: FareboxAPIError) -> list[str]:
    """Further members of the problem document that people can use."""
    texts = []
    if isinstance(error.extra.get("line"), int) and "line" not in error.message:
        texts.append(f"line {error.extra['line']}")
    errors = error.extra.get("errors")
    for each in errors[:_DETAILS_MAX] if isinstance(errors, list) else []:
        if isinstance(each, dict):
            field = each.get("param") or each.get("field") or ""
            message = each.get("message") or each.get("detail") or each.get("msg") or ""
            if str(message) not in error.message:
                texts.append(f"{field}: {message}" if field else str(message))
        else:
            texts.append(str(each))
    return texts


def _how_to_reach(error: FareboxConnectionError) -> str:
    from farebox.config import is_loopback

    if not error.refused:
        return "check the server's state with `farebox status`, then try again"
    if is_loopback(error.url):
        return "start the server with `farebox up`, or set FAREBOX_URL if it is elsewhere"
    return "check FAREBOX_URL or --url, and that the server is running there"


def _write(message: str, lines: Iterable[tuple[str, str]]) -> None:
    if len(message) > _MESSAGE_MAX_CHARS:
        message = message[:_MESSAGE_MAX_CHARS] + " …"
    note(f"Error: {clean(message, keep=chr(10))}")
    for title, text in lines:
        if text:
            note(f"  {title}: {clean(text)}")
