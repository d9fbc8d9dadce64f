"""Where the server is and which key to show it: arguments, then the environment, then the local admin key."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from farebox.errors import FareboxConfigError

DEFAULT_URL = "http://127.0.0.1:8080"
_KEY_MAX_CHARS = 512


@dataclass(frozen=True, slots=True)
class Connection:
    """A server and a key; `key_source` tells people where the key came from, or why there is none."""

    url: str
    api_key: str | None = field(repr=False)
    key_source: str

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.url)


def resolve(
    url: str | None = None, api_key: str | None = None, environ: Mapping[str, str] | None = None
) -> Connection:
    """The connection to use. The admin key's file is only read for a server on this very machine."""
    environ = os.environ if environ is None else environ
    url_source = "the URL" if url else "FAREBOX_URL"
    address = _checked_url(url or environ.get("FAREBOX_URL") or DEFAULT_URL, url_source)
    if api_key:
        return Connection(address, _checked_key(api_key, "the API key"), "given with the call")
    if environ.get("FAREBOX_API_KEY", "").strip():
        return Connection(
            address, _checked_key(environ["FAREBOX_API_KEY"], "FAREBOX_API_KEY"), "FAREBOX_API_KEY"
        )
    if not is_loopback(address):
        return Connection(address, None, "FAREBOX_API_KEY is not set")
    return _with_admin_key(address, environ)


def is_loopback(url: str) -> bool:
    """Whether the address is this machine."""
    host = (urlsplit(url).hostname or "").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def home(environ: Mapping[str, str]) -> Path:
    """The platform's folder on this machine: FAREBOX_HOME, else ~/.farebox."""
    return Path(environ.get("FAREBOX_HOME") or "~/.farebox").expanduser().absolute()


def _with_admin_key(url: str, environ: Mapping[str, str]) -> Connection:
    path = home(environ) / "admin.key"
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(_KEY_MAX_CHARS + 2).strip()
    except FileNotFoundError:
        return Connection(url, None, f"FAREBOX_API_KEY is not set and there is no {path}")
    except UnicodeDecodeError:
        return Connection(url, None, f"FAREBOX_API_KEY is not set and {path} is not a key file")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Connection(url, None, f"FAREBOX_API_KEY is not set and {path} cannot be read ({reason})")
    if not text:
        return Connection(url, None, f"FAREBOX_API_KEY is not set and {path} is empty")
    return Connection(url, _checked_key(text, str(path)), str(path))


def _checked_url(text: str, source: str) -> str:
    text = text.strip()
    example = f"expected something like {DEFAULT_URL}"
    if "://" not in text:
        raise FareboxConfigError(f"{source}: {text!r} has no scheme; write http://{text} or https://{text}")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # raises for a port that is no number or too large
    except ValueError as error:
        raise FareboxConfigError(f"{source}: {text!r} is not an address ({error}); {example}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FareboxConfigError(f"{source}: {text!r} is not an http(s) address; {example}")
    if parts.username is not None or parts.password is not None:
        raise FareboxConfigError(f"{source}: no user name or password in the address; use FAREBOX_API_KEY")
    if parts.query or parts.fragment:
        raise FareboxConfigError(f"{source}: no '?' or '#' in the address; {example}")
    if any(c.isspace() or ord(c) < 32 for c in text):
        raise FareboxConfigError(f"{source}: no blanks in the address; {example}")
    return text.rstrip("/")


def _checked_key(text: str, source: str) -> str:
    # The key goes into a header: anything else than plain printable ASCII can only be a copying mistake.
    text = text.strip()
    if not text or len(text) > _KEY_MAX_CHARS or not text.isascii() or not text.isprintable() or " " in text:
        raise FareboxConfigError(f"{source}: not a key; expected one line such as fbx_sk_… without blanks")
    return text
