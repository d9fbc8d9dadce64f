"""Settings that only the gateway reads, checked before one is started: it would end again and again."""

from urllib.parse import urlsplit

from core.errors import Invalid
from core.settings import Settings
from functions.gateway.bandwidth import parse_exceptions
from functions.gateway.networks import Reach


def check_settings(settings: Settings) -> None:
    """Invalid names the variable and what was expected."""
    Reach(settings)
    parse_exceptions(settings.online_bandwidth_exceptions)
    url = settings.content_safety_url
    try:
        good = not url or (urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname))
    except ValueError:
        good = False
    if not good:
        raise Invalid(
            f"FAREBOX_CONTENT_SAFETY_URL: expected an http or https address, got {url[:200]!r}",
            param="FAREBOX_CONTENT_SAFETY_URL",
        )
