"""Every setting, read once by `functions/wiring.py`: environment variables `FAREBOX_*`, then defaults.

Each field's comment is its documentation; `docs/settings.md` lists them and a test keeps the two alike.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from core.errors import Invalid

_UNIX_SOCKET_PATH_MAX = 100  # the kernel allows 107 bytes; some leave less


@dataclass(frozen=True, slots=True)
class Settings:
    """Immutable configuration of one installation; times in seconds, sizes in bytes, as the names say."""

    home: Path  # everything Farebox keeps: database, journal, keys, logs, engines, models
    host: str = "127.0.0.1"  # address the gateway listens on
    port: int = 8080  # port the gateway listens on
    database_url: str = ""  # empty: SQLite in the home
    redis_url: str = ""  # empty: limits are counted in the gateway; redis://… or unix://…: shared by several
    engines_dir: str = ""  # empty: engines/ in the home; may be shared by several homes
    models_dir: str = ""  # empty: models/ in the home; may be shared by several homes
    log_level: str = "INFO"
    huge_pages: int = 1  # 1: a gateway that grew puts its memory into huge pages; 0: Linux's own rules
    max_body_bytes: int = 10 * 1024 * 1024  # largest request body
    max_concurrent_requests: int = 4096  # calls in flight in one gateway; more are answered 503
    max_parallel_per_replica: int = (
        256  # calls one model server takes at once, where its model does not say; 0: any
    )
    max_waiting_per_deployment: int = (
        512  # callers that may wait for one deployment: to start, or for a place
    )
    max_waiting_per_organization: int = 256  # of these, callers of one organization; more are answered 429
    wait_for_start_s: int = 600  # a streaming caller waits at most this long for a start or a place
    hold_plain_call_s: int = 120  # a non-streaming caller waits at most this long, then 503 with Retry-After
    sse_comment_every_s: int = 10  # `: waiting` comments to a streaming caller meanwhile
    upstream_connect_timeout_s: int = 10
    upstream_first_byte_timeout_s: int = 600
    upstream_between_bytes_timeout_s: int = 300
    upstream_total_timeout_s: int = 3600  # from sending a call to the end of its answer
    scale_to_zero_after_s: int = 300  # a server without calls for this long is stopped
    start_timeout_s: int = 900  # a server that is not healthy by then has failed
    online_instances_max: int = 0  # quota of instances of online deployments together; 0: what fits
    online_model_max_bytes: int = 50 * 1024 * 1024 * 1024  # largest model that a deployment copies
    online_bandwidth_bytes_per_s: int = 0  # of one online endpoint, both ways; more waits; 0: any
    online_bandwidth_exceptions: str = ""  # other rates by endpoint: NAME=BYTES,NAME=BYTES
    collected_max_bytes: int = (
        10 * 1024 * 1024 * 1024
    )  # of payloads kept by data collectors; beyond, none is kept
    customer_key_file: str = ""  # the customer's key, which what is stored is encrypted under; empty: none
    opened_dir: str = (
        ""  # where code and models are while instances run from them, under such a key; empty: in memory
    )
    journal_max_bytes: int = 1024 * 1024 * 1024  # usage not yet on the ledger; calls are refused beyond
    minute_lateness_s: int = 60  # a usage minute closes this long after its end
    two_person_prices: int = 0  # 1: a changed price waits until a second admin key approves it
    webhook_allow_private: int = 0  # 1: customers' webhooks may be inside this network, and plain http
    invoice_automatic: int = 1  # 1: a month that has closed is invoiced; 0: it gets drafts, for a person
    invoice_prefix: str = "FB"  # of the numbers of invoices and credit notes
    invoice_issuer: str = "Farebox"  # who bills: name on invoices
    invoice_issuer_address: str = ""  # lines separated by \n
    invoice_issuer_email: str = ""
    invoice_issuer_tax_id: str = ""
    invoice_font: str = ""  # a TrueType or OpenType file for characters that the PDF's own font lacks
    allowed_networks: str = ""  # who may connect at all, e.g. 10.0.0.0/8,192.0.2.7; empty: everybody
    management_networks: str = ""  # of these, who may call the management API; empty: all of them
    # What counts as private for endpoints with public_network_access: disabled.
    private_networks: str = "127.0.0.0/8,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"
    oidc_issuer: str = (
        ""  # OpenID Connect provider whose tokens open endpoints (aad_token); https://…; empty: none
    )
    oidc_audience: str = ""  # `aud` of tokens for calls to endpoints
    oidc_control_audience: str = ""  # `aud` of tokens for the management API; empty: it takes keys only
    oidc_roles_claim: str = "roles"  # where roles are in a token; dots between levels: realm_access.roles
    oidc_score_role: str = "farebox.score"  # may call every such endpoint; with .NAME behind it: that one
    oidc_admin_role: str = "farebox.admin"  # may manage
    stripe_api_key: str = field(default="", repr=False)  # secret; empty: no payment provider
    stripe_webhook_secret: str = field(
        default="", repr=False
    )  # secret; empty: webhooks of Stripe are refused
    stripe_api_base: str = ""  # empty: Stripe's own address; for tests
    content_safety_url: str = (
        ""  # a moderation service (OpenAI's POST /moderations); empty: nothing is checked
    )
    content_safety_model: str = ""  # the `model` it is asked with; empty: none
    content_safety_key_env: str = ""  # name of the environment variable with its API key
    content_safety_timeout_s: int = 10  # one check takes at most this long
    content_safety_fail_open: int = 0  # 1: what could not be checked passes; 0: it is answered 503
    drain_grace_s: int = 30  # SIGTERM: streams in flight get this long
    restart_pause_s: int = 5  # at most, before a gateway that ends again and again is started once more

    @property
    def sql_url(self) -> str:
        """SQLAlchemy URL of the database in use."""
        return self.database_url or f"sqlite:///{self.home / 'farebox.db'}"

    @property
    def engines_path(self) -> Path:
        return Path(self.engines_dir) if self.engines_dir else self.home / "engines"

    @property
    def models_path(self) -> Path:
        return Path(self.models_dir) if self.models_dir else self.home / "models"

    @property
    def journal_path(self) -> Path:
        return self.home / "journal"

    @property
    def collected_path(self) -> Path:
        """Where data collectors write."""
        return self.home / "collected" / "modelDataCollector"

    @property
    def logs_path(self) -> Path:
        return self.home / "logs"

    @property
    def admin_key_path(self) -> Path:
        return self.home / "admin.key"

    @property
    def secret_path(self) -> Path:
        return self.home / "secret.key"

    @property
    def keyring_path(self) -> Path:
        """The keys that what is stored is encrypted with, under the customer's key."""
        return self.home / "keyring.json"

    @property
    def opened_path(self) -> Path:
        """Where decrypted code and models are."""
        return Path(self.opened_dir) if self.opened_dir else Path("/dev/shm") / self._nickname

    @property
    def _nickname(self) -> str:
        """Of the home, for places outside it that all users share."""
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:16]
        return f"farebox-{os.getuid()}-{digest}"

    @property
    def control_socket(self) -> Path:
        """Where the control process listens for the gateway (a Unix socket, so nobody else on the network can)."""
        path = self.home / "run" / "control.sock"
        if len(str(path)) <= _UNIX_SOCKET_PATH_MAX:
            return path
        return Path(tempfile.gettempdir()) / self._nickname / "control.sock"


def default_home(environ: Mapping[str, str]) -> Path:
    """`FAREBOX_HOME`, else `~/.farebox`."""
    return Path(environ.get("FAREBOX_HOME") or Path.home() / ".farebox").expanduser().absolute()


def load_settings(environ: Mapping[str, str], **overrides: object) -> Settings:
    """Settings from `FAREBOX_<FIELD>` variables; `overrides` (command-line options) win. Invalid names the variable."""
    values: dict[str, object] = {"home": default_home(environ)}
    for each in fields(Settings):
        variable = f"FAREBOX_{each.name.upper()}"
        text = environ.get(variable)
        if each.name != "home" and text is not None:
            values[each.name] = _convert(variable, text, each.type)
    values |= {name: value for name, value in overrides.items() if value is not None}
    return Settings(**values)  # type: ignore[arg-type]  # names and types were checked just above


def settings_environment(settings: Settings) -> dict[str, str]:
    """The variables that make `load_settings` in a child process give these same settings, but for secrets."""
    return {
        f"FAREBOX_{each.name.upper()}": str(getattr(settings, each.name)) if each.repr else ""
        for each in fields(Settings)
    }


def _convert(variable: str, text: str, kind: object) -> object:
    if kind in (int, "int"):
        if not text.isascii() or not text.isdigit():
            raise Invalid(
                f"{variable}: expected a whole number of zero or more, got {text!r}", param=variable
            )
        return int(text)
    return text
