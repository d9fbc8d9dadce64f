"""An empty database, migrated, is the declared tables; on both databases."""

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from core.database import Database, open_database
from migrations.migrate import SchemaTooNew, current_revision, head_revision, migrate
from migrations.tables import metadata


def _differences(db: Database) -> list[object]:
    with db.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [d for d in compare_metadata(context, metadata) if "alembic_version" not in str(d)]


def test_sqlite_migrated_equals_declared(tmp_path: Path) -> None:
    db = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    migrate(db)
    assert _differences(db) == []
    migrate(db)  # again: nothing to do
    db.close()


@pytest.mark.postgres
def test_postgres_migrated_equals_declared(postgres_url: Callable[[str], str]) -> None:
    admin = open_database(postgres_url("postgres"))
    with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE migrated"))
    admin.close()
    db = open_database(postgres_url("migrated"))
    migrate(db)
    assert _differences(db) == []
    with db.read() as connection:
        assert current_revision(connection) == head_revision()
        assert set(metadata.tables) <= set(inspect(connection).get_table_names())
    db.close()


def test_rows_from_before_the_batch_tier_have_no_batch_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    with monkeypatch.context() as patched:
        upgrade = command.upgrade
        patched.setattr(command, "upgrade", lambda config, _to: upgrade(config, "0011"))
        migrate(db)
    names = "org_id, start_ms, project_id, key_id, endpoint_id, model_id, input, cached_input, output, audio_second"
    with db.begin() as connection:
        assert current_revision(connection) == "0011"
        connection.execute(
            text(
                f"INSERT INTO usage_days ({names}, reasoning, requests, errors, endpoint_minute) "
                "VALUES ('o', 0, 'p', 'k', 'e', 'm', 7, 1, 2, 0, 0, 3, 0, 0)"
            )
        )
    migrate(db)
    with db.read() as connection:
        row = connection.execute(text("SELECT * FROM usage_days")).one()
    assert (row.input, row.requests) == (7, 3)
    assert (row.batch_input, row.batch_cached_input, row.batch_output, row.batch_requests) == (0, 0, 0, 0)
    db.close()


def test_a_database_from_the_future_is_refused(tmp_path: Path) -> None:
    db = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    migrate(db)
    with db.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooNew, match="9999"):
        migrate(db)
    db.close()


def test_a_failed_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_database(f"sqlite:///{tmp_path / 'a.db'}")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("cut short")

    monkeypatch.setattr("alembic.command.upgrade", broken)
    with pytest.raises(RuntimeError):
        migrate(db)
    monkeypatch.undo()
    with db.read() as connection:
        assert inspect(connection).get_table_names() == []
    migrate(db)
    assert _differences(db) == []
    db.close()
