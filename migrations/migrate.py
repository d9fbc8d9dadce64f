"""Bring a database to the schema of this code, forward only."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from core.database import Database
from core.errors import FareboxError

_FOLDER = Path(__file__).parent


class SchemaTooNew(FareboxError):
    """The database was migrated by a newer Farebox than this one."""

    code = "schema_too_new"


def head_revision() -> str:
    """The newest revision: file names begin with a four-digit number, which is the revision's id."""
    return max(_known_revisions())


def head_revision_or_none() -> str | None:
    """As `head_revision`; None when there is no revision yet."""
    return max(_known_revisions(), default=None)


def _known_revisions() -> set[str]:
    return {path.name[:4] for path in (_FOLDER / "versions").glob("[0-9][0-9][0-9][0-9]_*.py")}


def current_revision(connection: Connection) -> str | None:
    """The database's revision, None when it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def migrate(db: Database) -> None:
    """Run the missing revisions in one transaction. Raises SchemaTooNew for a database from the future.

    Alembic is imported only when there is something to do: a warm start should not pay for it.
    """
    with db.read() as connection:
        revision = current_revision(connection)
    if revision == head_revision():
        return
    if revision is not None and revision not in _known_revisions():
        raise SchemaTooNew(
            f"the database is at revision {revision}, which this version of Farebox does not know; "
            "start the version that made it, or a newer one"
        )
    with db.begin() as connection:
        _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
