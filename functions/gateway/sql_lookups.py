"""The gateway's questions to the database, as plain callables: run in threads, read only."""

from access.model import Principal
from access.store import key_status, principal_by_hash
from core.changes import Change, last_seq, read_changes
from core.clock import Clock
from core.database import Database
from functions.gateway.lookups import KeyAnswer, RouteName
from serving import routes
from serving.model import Route


class SqlLookups:
    """What `GatewayDependencies` asks for, over one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def find_principal(self, key_hash: str) -> KeyAnswer:
        """Who holds the key, or why nobody does."""
        now_ms = self._clock.now_ms()
        with self._database.read() as connection:
            principal: Principal | None = principal_by_hash(connection, key_hash, now_ms)
            return principal if principal is not None else key_status(connection, key_hash, now_ms)

    def resolve_route(self, name: RouteName) -> Route | None:
        """Where a name leads for this caller."""
        with self._database.read() as connection:
            return routes.resolve(
                connection,
                name.model or None,
                project_id=name.project_id or None,
                endpoint_id=name.endpoint_id or None,
                endpoint_name=name.endpoint_name or None,
            )

    def list_routes(self, name: RouteName) -> list[Route]:
        """What this caller may call."""
        with self._database.read() as connection:
            return routes.list_routes(
                connection, project_id=name.project_id or None, endpoint_id=name.endpoint_id or None
            )

    def poll_changes(self, after_seq: int) -> list[Change]:
        """The change feed after `after_seq`."""
        with self._database.read() as connection:
            return read_changes(connection, after_seq)

    def last_seq(self) -> int:
        """The newest sequence number of the change feed."""
        with self._database.read() as connection:
            return last_seq(connection)
