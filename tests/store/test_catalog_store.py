"""Models and price versions in SQL."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from catalog import price_book, store
from catalog.builtin import builtin_files, sync_builtin
from catalog.load import parse_model_yaml
from catalog.model import ModelSpec, Prices
from core.changes import read_changes
from core.clock import MINUTE_MS
from core.database import Database
from core.errors import Invalid, NotFound

NOW = 1_760_000_000_000 + 12_345
NEXT_MINUTE = NOW - NOW % MINUTE_MS + MINUTE_MS
SPEC = ModelSpec("acme/chat", "chat", Prices(100, 50, 400, None, 7), context_length=10)


def priced(cost: int) -> ModelSpec:
    return replace(SPEC, prices=replace(SPEC.prices, input=cost))


def test_a_model_is_added_changed_or_left_as_it_is(db: Database) -> None:
    with db.begin() as connection:
        added = store.put_model(connection, SPEC, NOW)
        assert (added.outcome, added.model.spec, added.model.origin) == ("added", SPEC, "operator")
        assert added.new_price is not None
        assert added.new_price.starts_ms == 0
        same = store.put_model(connection, SPEC, NOW + 1)
        assert (same.outcome, same.new_price, same.model.updated_ms) == ("unchanged", None, NOW)
        changed = store.put_model(connection, replace(SPEC, name="Chat"), NOW + 2)
        assert (changed.outcome, changed.new_price, changed.model.spec.name) == ("changed", None, "Chat")
        assert [(c.kind, c.ref) for c in read_changes(connection, 0)] == [("model", SPEC.id)] * 2


def test_another_price_starts_with_the_next_full_minute_and_the_old_one_stays(db: Database) -> None:
    with db.begin() as connection:
        store.put_model(connection, SPEC, NOW)
        new = store.put_model(connection, priced(200), NOW).new_price
        assert new is not None
        assert new.starts_ms == NEXT_MINUTE
        assert price_book.price_at(connection, SPEC.id, 0).unit_prices["input"] == 100
        assert price_book.price_at(connection, SPEC.id, NEXT_MINUTE - 1).unit_prices["input"] == 100
        assert price_book.price_at(connection, SPEC.id, NEXT_MINUTE) == new
        assert price_book.price_at(connection, SPEC.id, NEXT_MINUTE + 10**12) == new
        assert price_book.version(connection, new.id) == new
        assert [v.starts_ms for v in price_book.price_versions(connection, SPEC.id)] == [0, NEXT_MINUTE]
        assert store.put_model(connection, priced(200), NOW).new_price is None


def test_a_version_is_replaced_only_before_it_begins(db: Database) -> None:
    with db.begin() as connection:
        first = store.put_model(connection, SPEC, NOW).new_price
        pending = store.put_model(connection, priced(200), NOW).new_price
        other = store.put_model(connection, priced(300), NOW + 1).new_price
        assert pending
        assert other
        assert pending.id != other.id
        assert price_book.price_versions(connection, SPEC.id) == [first, other]
        # Back to what holds now: the version that never began is gone.
        assert store.put_model(connection, SPEC, NOW + 2).new_price is None
        assert price_book.price_versions(connection, SPEC.id) == [first]
        store.put_model(connection, priced(300), NOW + 3)
        begun = price_book.price_versions(connection, SPEC.id)
        store.put_model(connection, priced(400), NEXT_MINUTE)
        versions = price_book.price_versions(connection, SPEC.id)
        assert versions[:2] == begun
        assert versions[2].starts_ms == NEXT_MINUTE + MINUTE_MS


def test_a_clock_set_back_rewrites_no_price(db: Database) -> None:
    with db.begin() as connection:
        store.put_model(connection, SPEC, NOW)
        store.put_model(connection, priced(200), NOW + 60 * MINUTE_MS)
        before = price_book.price_versions(connection, SPEC.id)
        store.put_model(connection, priced(300), NOW)
        versions = price_book.price_versions(connection, SPEC.id)
        assert versions[:2] == before
        assert versions[2].starts_ms == before[1].starts_ms + MINUTE_MS


def test_a_removed_model_is_gone_but_its_prices_stay(db: Database) -> None:
    with db.begin() as connection:
        store.put_model(connection, SPEC, NOW)
        store.remove_model(connection, SPEC.id, NOW)
        assert store.find_model(connection, SPEC.id) is None
        assert store.list_models(connection) == []
        assert price_book.price_at(connection, SPEC.id, NOW).unit_prices == SPEC.prices.by_sku()
        kept = store.find_model(connection, SPEC.id, include_removed=True)
        assert kept is not None
        assert kept.spec == SPEC
        with pytest.raises(NotFound):
            store.remove_model(connection, SPEC.id, NOW)
        again = store.put_model(connection, SPEC, NOW)
        assert (again.outcome, again.new_price) == ("added", None)


def test_an_unknown_model_is_answered_with_a_close_one(db: Database) -> None:
    with db.begin() as connection:
        store.put_model(connection, replace(SPEC, id="Qwen/Qwen3-0.6B"), NOW)
        for slip in ("qwen/qwen3-0.6b", "Qwen/Qwen3-06B", "qwen3-0.6b"):
            with pytest.raises(NotFound, match=r"did you mean 'Qwen/Qwen3-0\.6B'") as caught:
                store.get_model(connection, slip)
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        with pytest.raises(NotFound, match="model list"):
            store.get_model(connection, "zzz")
        with pytest.raises(NotFound):
            price_book.price_at(connection, "zzz", NOW)


def test_lists_are_paged_and_by_task(db: Database) -> None:
    with db.begin() as connection:
        for name in "cab":
            store.put_model(connection, replace(SPEC, id=name), NOW)
        store.put_model(connection, replace(SPEC, id="d", task="rerank"), NOW)
        assert [m.spec.id for m in store.list_models(connection)] == ["a", "b", "c", "d"]
        assert [m.spec.id for m in store.list_models(connection, task="chat", limit=2)] == ["a", "b"]
        assert [m.spec.id for m in store.list_models(connection, task="chat", after="b")] == ["c"]


def test_the_builtin_files_are_read_once(db: Database) -> None:
    files = builtin_files()
    assert len(files) > 20
    with db.begin() as connection:
        assert sync_builtin(connection, files, NOW) == len(files)
        assert sync_builtin(connection, files, NOW) == 0
        models = store.list_models(connection)
        assert len(models) == len(files)
        assert {m.origin for m in models} == {"builtin"}
        assert [m.spec for m in models] == sorted(
            (parse_model_yaml(f.data) for f in files), key=lambda s: s.id
        )


def write(directory: Path, price: str) -> None:
    text = f'id: acme/b\ntask: rerank\nsource: {{repository: acme/b}}\nprices: {{input: "{price}"}}\n'
    (directory / "acme-b.yaml").write_text(text)


def test_a_changed_file_is_read_unless_an_operator_changed_the_model(db: Database, tmp_path: Path) -> None:
    write(tmp_path, "1")
    with db.begin() as connection:
        sync_builtin(connection, builtin_files(tmp_path), NOW)
        write(tmp_path, "2")
        assert sync_builtin(connection, builtin_files(tmp_path), NOW) == 1
        assert price_book.price_at(connection, "acme/b", NEXT_MINUTE).unit_prices["input"] == 2_000_000
        mine = store.get_model(connection, "acme/b").spec
        mine = replace(mine, prices=Prices(input=5, cached_input=5))
        store.put_model(connection, mine, NOW)
        write(tmp_path, "3")
        assert sync_builtin(connection, builtin_files(tmp_path), NOW) == 1
        kept = store.get_model(connection, "acme/b")
        assert (kept.spec, kept.origin) == (mine, "operator")
        store.remove_model(connection, "acme/b", NOW)
        write(tmp_path, "4")
        sync_builtin(connection, builtin_files(tmp_path), NOW)
        assert store.find_model(connection, "acme/b") is None


def test_a_builtin_file_that_was_damaged_is_named(db: Database, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("id: a\ntusk: chat\n")
    with pytest.raises(Invalid, match=r"bad\.yaml: tusk \(line 2\)"), db.begin() as connection:
        sync_builtin(connection, builtin_files(tmp_path), NOW)


def test_prices_changed_at_the_same_time_leave_one_version_per_start(db: Database) -> None:
    with db.begin() as connection:
        store.put_model(connection, SPEC, NOW)

    def change(cost: int) -> None:
        with db.begin() as connection:
            store.put_model(connection, priced(cost), NOW)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(200, 212)))
    with db.read() as connection:
        versions = price_book.price_versions(connection, SPEC.id)
        spec = store.get_model(connection, SPEC.id).spec
    assert [version.starts_ms for version in versions] == [0, NEXT_MINUTE]
    assert versions[1].unit_prices == spec.prices.by_sku()
