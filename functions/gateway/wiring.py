"""Turns settings into the gateway's dependencies: the second of the two files that name adapters.

It is apart from `functions/wiring.py` so that the gateway process never imports what only the others need.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from access.admission.book import PolicyBook
from access.admission.memory import MemoryAdmission
from access.admission.model import ScopePolicy
from access.admission.port import Admission
from access.admission.store import read_balances, read_policies, read_policy
from access.admission.values import Balance
from access.principal import Principal
from access.store import key_status, principal_by_hash
from core.changes import Change, last_seq, read_changes
from core.clock import SystemClock
from core.database import Database, open_database
from core.errors import Conflict, NotFound, Unauthenticated
from core.settings import Settings
from functions.gateway.control import ControlClient
from functions.gateway.dependencies import GatewayDependencies
from functions.gateway.limiter import Limiting
from functions.gateway.lookups import KeyAnswer, RouteName
from functions.gateway.sharing import share_principal, share_route
from functions.identity import TokenAccess, token_access
from metering.journal import Journal
from metering.store import recorded_sequences
from serving.online.store import find_online_endpoint
from serving.route import Route
from serving.routes import list_routes, resolve
from serving.store import find_endpoint

GATEWAY_NAME = "gateway-1"
_JOURNAL_PATIENCE_S = 10
_READERS = 4


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[GatewayDependencies]:
    """Open journal and database; close both at the end, the journal after everything in it is durable."""
    clock = SystemClock()
    db = open_database(settings.sql_url, pool_size=_READERS)
    journal = await _open_journal(settings, clock)
    journal.attach()
    reads = _Reads(db, clock)
    tokens = token_access(settings, clock)
    try:
        yield GatewayDependencies(
            settings=settings,
            clock=clock,
            journal=journal,
            control=ControlClient(settings.control_socket),
            find_principal=reads.find_principal,
            resolve_route=reads.resolve_route,
            list_routes=reads.list_routes,
            poll_changes=reads.poll_changes,
            last_seq=reads.last_seq,
            find_bearer=None if tokens is None else _Bearers(db, tokens).find,
            limiting=_limiting(settings, reads, journal),
        )
    finally:
        await journal.close()
        db.close()


def _limiting(settings: Settings, reads: "_Reads", journal: Journal) -> Limiting:
    book = PolicyBook()
    admission: Admission
    if settings.redis_url:
        from access.admission.redis_admission import RedisAdmission, connect

        admission = RedisAdmission(book, GATEWAY_NAME, connect(settings.redis_url))
    else:
        admission = MemoryAdmission(book, GATEWAY_NAME)
    return Limiting(
        admission,
        book,
        GATEWAY_NAME,
        partial(getattr, journal, "last_sequence"),
        reads,
        waits=bool(settings.redis_url),
    )


async def _open_journal(settings: Settings, clock: SystemClock) -> Journal:
    """A gateway that was just told to end may hold the journal a little longer."""
    for _ in range(_JOURNAL_PATIENCE_S * 10):
        try:
            return Journal.open(settings.journal_path, GATEWAY_NAME, clock, settings.journal_max_bytes)
        except Conflict:
            await asyncio.sleep(0.1)
    return Journal.open(settings.journal_path, GATEWAY_NAME, clock, settings.journal_max_bytes)


class _Reads:
    """The gateway's SQL: reads only, one short snapshot each, called in threads."""

    def __init__(self, db: Database, clock: SystemClock) -> None:
        self._db, self._clock = db, clock

    def find_principal(self, key_hash: str) -> KeyAnswer:
        now_ms = self._clock.now_ms()
        with self._db.read() as connection:
            principal = principal_by_hash(connection, key_hash, now_ms)
            return share_principal(principal) if principal else key_status(connection, key_hash, now_ms)

    def resolve_route(self, name: RouteName) -> Route | None:
        with self._db.read() as connection:
            route = resolve(
                connection,
                name.model,
                project_id=name.project_id or None,
                endpoint_id=name.endpoint_id or None,
                endpoint_name=name.endpoint_name or None,
            )
        return None if route is None else share_route(route)

    def list_routes(self, name: RouteName) -> list[Route]:
        with self._db.read() as connection:
            return list_routes(
                connection, project_id=name.project_id or None, endpoint_id=name.endpoint_id or None
            )

    def poll_changes(self, after_seq: int) -> list[Change]:
        with self._db.read() as connection:
            return read_changes(connection, after_seq)

    def read_policies(self) -> list[ScopePolicy]:
        with self._db.read() as connection:
            return read_policies(connection)

    def read_policy(self, scope_id: str) -> ScopePolicy:
        with self._db.read() as connection:
            return read_policy(connection, scope_id)

    def read_balances(self, after: int) -> tuple[list[Balance], int]:
        with self._db.read() as connection:
            # Every gateway's: with a shared store, whoever brings a balance confirms the others' calls too.
            return read_balances(connection, recorded_sequences(connection), after)

    def last_seq(self) -> int:
        with self._db.read() as connection:
            return last_seq(connection)


class _Bearers:
    """Whoever sends an identity provider's token to an endpoint that takes such tokens; called in threads."""

    def __init__(self, db: Database, tokens: TokenAccess) -> None:
        self._db, self._tokens = db, tokens

    def find(self, token: str, endpoint_name: str) -> Principal:
        # The token first: who has none that is good learns nothing of which endpoints there are.
        identity = self._tokens.identity_for_calls(token)
        self._tokens.check_may_call(identity, endpoint_name)
        with self._db.read() as connection:
            endpoint = find_endpoint(connection, name=endpoint_name, kind="online")
            online = None if endpoint is None else find_online_endpoint(connection, endpoint.id)
        if endpoint is None or online is None:
            raise NotFound(
                f"There is no endpoint `{endpoint_name}` that takes tokens.", code="model_not_found"
            )
        if online.spec.auth_mode != "aad_token":
            raise Unauthenticated(
                f"The endpoint `{endpoint_name}` takes no tokens of an identity provider (its auth_mode is "
                f"{online.spec.auth_mode}).",
                code="other_auth_mode",
            )
        until_ms = self._tokens.remembered_until(identity)
        return Principal(
            "endpoint", identity.subject, endpoint.org_id, endpoint.project_id, endpoint.id, until_ms
        )
