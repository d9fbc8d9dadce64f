"""Organizations, projects and keys in SQL."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from access import store
from access.admin import ensure_admin_key
from access.files import SecretFileError
from access.keys import hash_key, make_key
from access.model import Organization, Project
from access.principal import Principal
from access.sealer import SealBrokenError, Sealer
from core.changes import last_seq, read_changes
from core.database import Database
from core.errors import Conflict, Invalid, NotFound, RateLimited

NOW = 1_760_000_000_000
SEALER = Sealer(b"s" * 32)


def make_project(db: Database, org: str = "acme", name: str = "web") -> Project:
    with db.begin() as connection:
        organization = store.create_organization(connection, org, NOW)
        return store.create_project(connection, organization, name, NOW)


def test_an_organization_has_one_name_and_is_found_by_it_or_its_id(db: Database) -> None:
    with db.begin() as connection:
        acme = store.create_organization(connection, "  Acme ", NOW)
        assert acme == Organization(acme.id, "Acme", NOW)
        with pytest.raises(Conflict) as caught:
            store.create_organization(connection, "Acme", NOW)
        assert caught.value.param == "name"
        # The failed insert did not spoil the transaction.
        store.create_organization(connection, "Beta", NOW + 1)
    with db.read() as connection:
        assert (
            store.find_organization(connection, "Acme")
            == store.find_organization(connection, acme.id)
            == acme
        )
        with pytest.raises(NotFound, match="'Nobody'"):
            store.find_organization(connection, "Nobody")
        assert [o.name for o in store.list_organizations(connection)] == ["Acme", "Beta"]
        assert [o.name for o in store.list_organizations(connection, after=acme.id)] == ["Beta"]
        assert [o.name for o in store.list_organizations(connection, limit=1)] == ["Acme"]


def test_project_names_are_unique_in_an_organization_only(db: Database) -> None:
    web = make_project(db, "acme", "web")
    other = make_project(db, "beta", "web")
    with db.begin() as connection:
        with pytest.raises(Conflict, match="'acme' has a project named 'web' already"):
            store.create_project(connection, store.find_organization(connection, "acme"), "web", NOW)
        assert store.find_project(connection, web.id) == store.find_project(connection, "acme/web") == web
        assert store.find_project(connection, "beta/web") == other
        with pytest.raises(Invalid, match=r"acme/web, beta/web") as caught:
            store.find_project(connection, "web")
        assert caught.value.param == "project"
        with pytest.raises(NotFound):
            store.find_project(connection, "acme/none")
        assert store.list_projects(connection, org_id=web.org_id) == [web]
        assert store.list_projects(connection) == sorted([web, other], key=lambda p: p.id)
        assert store.get_project(connection, web.id) == web
        assert store.get_project(connection, "none") is None


def test_the_project_meant_when_none_is_named(db: Database) -> None:
    with db.begin() as connection:
        made = store.sole_project(connection, NOW)
        assert (made.org_name, made.name) == ("default", "default")
        assert store.sole_project(connection, NOW) == made
    make_project(db)
    with db.begin() as connection, pytest.raises(Invalid, match="acme/web, default/default"):
        store.sole_project(connection, NOW)


def test_a_project_key_opens_until_it_expires_or_is_revoked(db: Database) -> None:
    project = make_project(db)
    with db.begin() as connection:
        key, text = store.create_key(connection, project, "ci", NOW, expires_ms=NOW + 1000)
        assert text.startswith("fbx_sk_")
        assert text not in repr(key)
        held = Principal("project", key.id, project.org_id, project.id, "", NOW + 1000)
        assert store.principal_by_hash(connection, hash_key(text), NOW) == held
        assert store.key_status(connection, hash_key(text), NOW + 999) == "ok"
        assert store.key_status(connection, hash_key(text), NOW + 1000) == "expired"
        assert store.principal_by_hash(connection, hash_key(text), NOW + 1000) is None
        assert store.revoke_key(connection, key.id, NOW + 5).revoked_ms == NOW + 5
        assert store.revoke_key(connection, key.id, NOW + 9).revoked_ms == NOW + 5
        assert store.key_status(connection, hash_key(text), NOW) == "revoked"
        assert store.principal_by_hash(connection, hash_key(text), NOW) is None
        assert store.key_status(connection, hash_key("else"), NOW) == "unknown"
        with pytest.raises(NotFound):
            store.revoke_key(connection, "key_none", NOW)
        with pytest.raises(Invalid, match="future"):
            store.create_key(connection, project, "late", NOW, expires_ms=NOW)
    with db.read() as connection:
        assert [k.status(NOW) for k in store.list_keys(connection, project_id=project.id)] == ["revoked"]
        assert store.list_keys(connection, project_id="other") == []


def test_a_key_is_nowhere_in_the_database(db: Database) -> None:
    project = make_project(db)
    with db.begin() as connection:
        _, text = store.create_key(connection, project, "ci", NOW)
        endpoint = store.issue_endpoint_keys(connection, "ep_1", project.org_id, project.id, NOW, SEALER)
        rows = connection.exec_driver_sql("SELECT * FROM api_keys").all()
    assert len(rows) == 3
    for secret in (text, *endpoint.values()):
        assert secret not in str(rows)


def test_making_and_closing_keys_is_told_to_readers_that_cache_them(db: Database) -> None:
    project = make_project(db)
    with db.begin() as connection:
        key, _ = store.create_key(connection, project, "ci", NOW)
        store.revoke_key(connection, key.id, NOW)
        told = [(c.kind, c.ref) for c in read_changes(connection, 0)]
    assert told.count(("key", key.id)) == 2
    assert ("project", project.id) in told
    assert ("organization", project.org_id) in told


def test_endpoint_keys_are_shown_again_and_renewed_one_by_one(db: Database) -> None:
    project = make_project(db)
    with db.begin() as connection:
        made = store.issue_endpoint_keys(connection, "ep_1", project.org_id, project.id, NOW, SEALER)
        assert list(made) == ["primaryKey", "secondaryKey"]
        assert store.endpoint_keys(connection, "ep_1", SEALER) == made
        held = store.principal_by_hash(connection, hash_key(made["primaryKey"]), NOW)
        assert held is not None
        assert (held.kind, held.endpoint_id, held.project_id) == ("endpoint", "ep_1", project.id)
        renewed = store.regenerate_endpoint_key(connection, "ep_1", "primary", NOW + 1, SEALER)
        assert renewed["secondaryKey"] == made["secondaryKey"]
        assert renewed["primaryKey"] != made["primaryKey"]
        assert store.key_status(connection, hash_key(made["primaryKey"]), NOW + 1) == "revoked"
        assert store.key_status(connection, hash_key(renewed["primaryKey"]), NOW + 1) == "ok"
        with pytest.raises(SealBrokenError):
            store.endpoint_keys(connection, "ep_1", Sealer(b"t" * 32))
        store.revoke_endpoint_keys(connection, "ep_1", NOW + 2)
        for text in (*renewed.values(), *made.values()):
            assert store.key_status(connection, hash_key(text), NOW + 2) == "revoked"
        with pytest.raises(NotFound):
            store.endpoint_keys(connection, "ep_1", SEALER)
        with pytest.raises(NotFound):
            store.regenerate_endpoint_key(connection, "ep_1", "primary", NOW, SEALER)


def test_an_endpoints_token_opens_it_for_its_time_and_no_longer(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_TOKENS", 2)

    def issue(at_ms: int) -> str:
        with db.begin() as connection:
            return store.issue_endpoint_token(connection, "ep_1", "org", "proj", at_ms, 1000)

    def opens(text: str, at_ms: int) -> bool:
        with db.read() as connection:
            found = store.principal_by_hash(connection, hash_key(text), at_ms)
        return found is not None and (found.kind, found.endpoint_id) == ("endpoint", "ep_1")

    first, second = issue(NOW), issue(NOW + 500)
    assert opens(first, NOW + 999) and not opens(first, NOW + 1000) and opens(second, NOW + 1000)
    with pytest.raises(RateLimited, match="2 tokens"):
        issue(NOW + 600)
    third = issue(NOW + 1000)  # the first has expired, and made room
    with db.begin() as connection:
        with pytest.raises(NotFound):
            store.endpoint_keys(connection, "ep_1", SEALER)  # a token is none of the two keys
        before = last_seq(connection)
        store.revoke_endpoint_keys(connection, "ep_1", NOW + 1001)
        assert len(read_changes(connection, before)) == 2  # not of the one that had expired
    assert not opens(second, NOW + 1001) and not opens(third, NOW + 1001)


def status_of(db: Database, path: Path) -> str:
    with db.read() as connection:
        return store.key_status(connection, hash_key(path.read_text().strip()), NOW)


def test_the_admin_key_is_made_once_and_renewed_when_its_file_is_gone(db: Database, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    with db.begin() as connection:
        assert ensure_admin_key(connection, path, NOW)
    first = path.read_text().strip()
    assert path.read_text() == first + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with db.begin() as connection:
        assert not ensure_admin_key(connection, path, NOW)
        assert store.principal_by_hash(connection, hash_key(first), NOW) is not None
    assert status_of(db, path) == "ok"
    path.unlink()
    with db.begin() as connection:
        assert ensure_admin_key(connection, path, NOW)
    assert status_of(db, path) == "ok"
    with db.read() as connection:
        assert store.key_status(connection, hash_key(first), NOW) == "revoked"
    path.write_text(first)
    with db.begin() as connection, pytest.raises(SecretFileError, match="has been revoked"):
        ensure_admin_key(connection, path, NOW)


def test_an_edited_admin_key_is_refused_with_the_way_out(db: Database, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    with db.begin() as connection:
        ensure_admin_key(connection, path, NOW)
    for text in ("", "hello", make_key("project").text, path.read_text()[:-5]):
        path.write_text(text)
        with db.begin() as connection, pytest.raises(SecretFileError, match="delete the file"):
            ensure_admin_key(connection, path, NOW)
    path.write_text(make_key("admin").text)
    with db.begin() as connection, pytest.raises(SecretFileError, match="does not know"):
        ensure_admin_key(connection, path, NOW)


def test_a_first_start_cut_short_after_the_file_was_written_is_finished(db: Database, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"

    class CutShortError(Exception):
        pass

    def cut_short() -> None:
        with db.begin() as connection:
            ensure_admin_key(connection, path, NOW)
            raise CutShortError

    with pytest.raises(CutShortError):
        cut_short()
    text = path.read_text()
    assert status_of(db, path) == "unknown"
    with db.begin() as connection:
        assert ensure_admin_key(connection, path, NOW)
    assert path.read_text() == text
    assert status_of(db, path) == "ok"


def test_of_several_who_take_a_name_at_the_same_time_one_gets_it(db: Database) -> None:
    def create(_: int) -> bool:
        try:
            with db.begin() as connection:
                store.create_organization(connection, "acme", NOW)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(create, range(8))) == 1
