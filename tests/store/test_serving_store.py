"""Endpoints, routes and replicas in both databases."""

import threading
from dataclasses import replace

import pytest

from catalog.model import Engine, ModelSpec, Prices
from catalog.store import put_model
from core.changes import read_changes
from core.clock import MINUTE_MS, minute_floor
from core.database import Database
from core.errors import Conflict, NotFound
from serving import store
from serving.endpoints import (
    create_serverless,
    delete_endpoint,
    get_endpoint,
    reinstate_endpoint,
    suspend_endpoint,
)
from serving.model import Endpoint, LiveStatus, Replica
from serving.routes import list_routes, resolve
from serving.tables import endpoints
from serving.view import view_deployment, view_deployments

NOW = 1_760_000_000_000
CHAT = ModelSpec(id="acme/chat", task="chat", prices=Prices(input=1), context_length=4096)
ATTACHED = ModelSpec(
    id="acme/attached",
    task="embedding",
    prices=Prices(input=1),
    engine=Engine(kind="external", url="http://127.0.0.1:9", model="theirs", api_key_env="THEIR_KEY"),
)


@pytest.fixture
def filled(db: Database) -> Database:
    with db.begin() as connection:
        put_model(connection, CHAT, NOW)
        put_model(connection, ATTACHED, NOW)
    return db


def _create(
    db: Database, name: str, model: str = CHAT.id, project: str = "proj_1", at: int = NOW
) -> Endpoint:
    with db.begin() as connection:
        return create_serverless(
            connection, name=name, model_id=model, org_id=f"org_of_{project}", project_id=project, now_ms=at
        )


def _replica(deployment_id: str, number: int, **changes: object) -> Replica:
    values = {"state": "ready", "phase": "", "started_ms": NOW + number, "port": 4000 + number} | changes
    return Replica(f"rep_{number:03d}", deployment_id, **values)  # type: ignore[arg-type]


def _put(db: Database, replica: Replica) -> list[str]:
    with db.begin() as connection:
        return store.insert_replica(connection, replica, NOW)


def test_endpoints_on_one_model_share_a_pool(filled: Database) -> None:
    first, second = _create(filled, "one"), _create(filled, "two", project="proj_2", at=NOW + 1)
    other = _create(filled, "other", ATTACHED.id)
    assert first.state == "Online"
    assert first.deployment_id == second.deployment_id != other.deployment_id
    with filled.read() as connection:
        assert store.find_endpoint(connection, endpoint_id=first.id) == first
        assert len(store.list_deployments(connection)) == 2
        kinds = {(change.kind, change.ref) for change in read_changes(connection, 0)}
    assert {("endpoint", first.id), ("deployment", first.deployment_id)} <= kinds


def test_names_are_unique_among_the_living_in_any_case(filled: Database) -> None:
    first = _create(filled, "Chat")
    with pytest.raises(Conflict) as refused:
        _create(filled, "chat", project="proj_2")
    assert refused.value.param == "name"
    assert "Chat" not in refused.value.message, "another organization's name as it writes it"
    with filled.begin() as connection:
        delete_endpoint(connection, first, NOW + 5)
    again = _create(filled, "chat")
    assert again.id != first.id
    assert again.deployment_id == first.deployment_id, "the pool is kept"


def test_of_two_that_create_the_same_name_at_once_one_wins(filled: Database) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def create() -> None:
        barrier.wait()
        try:
            _create(filled, "chat")
            outcomes.append("made")
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 3 + ["made"]
    with filled.read() as connection:
        assert len(store.list_deployments(connection)) == 1


def test_unknown_model_and_endpoint_get_a_suggestion(filled: Database) -> None:
    with pytest.raises(NotFound) as refused:
        _create(filled, "chat", "acme/chatt")
    assert refused.value.param == "model"
    assert "did you mean 'acme/chat'" in refused.value.message
    _create(filled, "my-chat")
    with filled.read() as connection:
        assert get_endpoint(connection, "my-chat", project_id="proj_1").name == "my-chat"
        with pytest.raises(NotFound) as missing:
            get_endpoint(connection, "my-chad")
        assert "did you mean 'my-chat'" in missing.value.message
        with pytest.raises(NotFound) as foreign:
            get_endpoint(connection, "my-chat", project_id="proj_2")
        assert "did you mean" not in foreign.value.message, "nothing of other projects is shown"


def test_lists_page_and_lives_remember_the_dead(filled: Database) -> None:
    made = [_create(filled, f"ep-{n}", at=NOW + n) for n in range(5)]
    with filled.begin() as connection:
        delete_endpoint(connection, made[1], NOW + 90_000)
        first = store.list_endpoints(connection, project_id="proj_1", limit=2)
        rest = store.list_endpoints(connection, project_id="proj_1", after=first[-1].id)
        lives = store.endpoint_lives(connection)
        late = store.endpoint_lives(connection, alive_after_ms=NOW + 90_001)
        assert store.model_in_use(connection, CHAT.id) == ["ep-0", "ep-2", "ep-3", "ep-4"]
        assert store.endpoint_names(connection, [made[1].id]) == {made[1].id: "ep-1"}
    assert [e.name for e in first + rest] == ["ep-0", "ep-2", "ep-3", "ep-4"]
    assert len(lives) == 5
    assert len(late) == 4
    dead = next(life for life in lives if life.endpoint_id == made[1].id)
    assert (dead.created_ms, dead.deleted_ms, dead.name) == (NOW + 1, NOW + 90_000, "ep-1")


def test_routes_within_a_project(filled: Database) -> None:
    older, newer = _create(filled, "older"), _create(filled, "newer", at=NOW + 1)
    _create(filled, "foreign", project="proj_2")
    with filled.read() as connection:
        by_name = resolve(connection, "newer", project_id="proj_1")
        by_model = resolve(connection, CHAT.id, project_id="proj_1")
        assert resolve(connection, "foreign", project_id="proj_1") is None
        assert resolve(connection, "", project_id="proj_1") is None
        assert resolve(connection, "acme/none", project_id="proj_1") is None
        exact = resolve(connection, f"newer/{newer.deployment_id}", project_id="proj_1")
        for wrong in (
            f"foreign/{older.deployment_id}",
            "newer/",
            "newer/dep_none",
            f"none/{newer.deployment_id}",
        ):
            assert resolve(connection, wrong, project_id="proj_1") is None, wrong
        routes = list_routes(connection, project_id="proj_1")
    assert by_name is not None
    assert by_name.endpoint_id == newer.id
    assert exact == by_name
    assert by_model is not None
    assert by_model.endpoint_id == older.id, "the oldest on the model"
    assert (by_model.served_model, by_model.external, by_model.urls) == (CHAT.id, False, ())
    assert by_model.continuous_usage
    assert [route.endpoint_name for route in routes] == ["older", "newer"]


def test_routes_of_one_endpoint(filled: Database) -> None:
    mine = _create(filled, "mine", ATTACHED.id)
    _create(filled, "other")
    with filled.read() as connection:
        for name in (None, "", "mine", f"mine/{mine.deployment_id}", ATTACHED.id, "theirs"):
            route = resolve(connection, name, endpoint_id=mine.id)
            assert route is not None, name
            assert route.endpoint_id == mine.id
        assert resolve(connection, "other", endpoint_id=mine.id) is None, "another model is not swapped in"
        assert resolve(connection, f"other/{mine.deployment_id}", endpoint_id=mine.id) is None
        assert resolve(connection, None, endpoint_name="mine", project_id="proj_1") is not None
        assert resolve(connection, None, endpoint_name="mine", project_id="proj_2") is None
        assert resolve(connection, None, endpoint_name="other", endpoint_id=mine.id) is None
        [listed] = list_routes(connection, endpoint_id=mine.id)
    assert listed.external
    assert (listed.served_model, listed.urls) == ("theirs", ("http://127.0.0.1:9",))
    assert (listed.upstream_key_env, listed.continuous_usage) == ("THEIR_KEY", False)


def test_several_attached_servers_and_their_places(filled: Database) -> None:
    engine = replace(ATTACHED.engine, url="", urls=("http://a", "http://b"), max_parallel=7)
    with filled.begin() as connection:
        put_model(connection, replace(ATTACHED, engine=engine), NOW + 1)
    made = _create(filled, "mine", model=ATTACHED.id)
    with filled.read() as connection:
        route = resolve(connection, None, endpoint_id=made.id)
    assert route is not None
    assert (route.urls, route.max_parallel) == (("http://a", "http://b"), 7)


@pytest.mark.parametrize("state", ["Deleting", "Creating"])
def test_no_route_to_what_is_not_online(filled: Database, state: str) -> None:
    made = _create(filled, "chat")
    second = _create(filled, "second", at=NOW + 1)
    with filled.begin() as connection:
        connection.execute(endpoints.update().where(endpoints.c.id == made.id).values(state=state))
        assert resolve(connection, "chat", project_id="proj_1") is None
        assert resolve(connection, None, endpoint_id=made.id) is None
        by_model = resolve(connection, CHAT.id, project_id="proj_1")
        assert len(list_routes(connection, project_id="proj_1")) == 1
        delete_endpoint(connection, second, NOW + 9)
        assert resolve(connection, "second", project_id="proj_1") is None
    assert by_model is not None
    assert by_model.endpoint_id == second.id, "the oldest one that answers"


def test_a_suspended_endpoint_is_known_but_not_chosen(filled: Database) -> None:
    made = _create(filled, "chat")
    second = _create(filled, "second", at=NOW + 1)
    with filled.begin() as connection:
        changed = suspend_endpoint(connection, made, NOW + 2)
        assert suspend_endpoint(connection, changed, NOW + 3) == changed
        named = resolve(connection, "chat", project_id="proj_1")
        assert named is not None and named.suspended
        by_model = resolve(connection, CHAT.id, project_id="proj_1")
        assert by_model is not None and by_model.endpoint_id == second.id
        assert [each.endpoint_id for each in list_routes(connection, project_id="proj_1")] == [second.id]
        lives = [life.endpoint_id for life in store.endpoint_lives(connection)]
        assert made.id in lives, "URL and keys stay, and so does the fee"
        reinstate_endpoint(connection, changed, NOW + 4)
        named = resolve(connection, "chat", project_id="proj_1")
        assert named is not None and not named.suspended
        delete_endpoint(connection, second, NOW + 9)
        with pytest.raises(Conflict, match="Deleted"):
            suspend_endpoint(connection, replace(second, state="Deleted"), NOW + 10)


def test_only_ready_replicas_are_routed_to(filled: Database) -> None:
    made = _create(filled, "chat")
    for number, state in enumerate(("starting", "ready", "stopping", "stopped", "failed")):
        _put(filled, _replica(made.deployment_id, number, state=state))
    with filled.read() as connection:
        route = resolve(connection, "chat", project_id="proj_1")
        assert [r.id for r in store.live_replicas(connection)] == ["rep_000", "rep_001", "rep_002"]
        assert store.known_replica_ids(connection, {"rep_001", "rep_x"}) == {"rep_001"}
    assert route is not None
    assert route.urls == ("http://127.0.0.1:4001",)


def test_a_saved_replica_reaches_readers_and_the_change_feed(filled: Database) -> None:
    made = _create(filled, "chat")
    replica = _replica(made.deployment_id, 1, state="starting", spawned_ms=NOW + 2, ready_ms=NOW + 502, pid=7)
    _put(filled, replica)
    with filled.begin() as connection:
        before = read_changes(connection, 0)[-1].seq
        store.save_replica(connection, replica, NOW)
        [change] = read_changes(connection, before)
        assert (change.kind, change.ref) == ("deployment", made.deployment_id)
        assert store.list_replicas(connection, made.deployment_id) == [replica]
        assert store.measured_starts(connection, made.deployment_id) == [500]


def test_a_route_knows_its_prices_across_a_change(filled: Database) -> None:
    _create(filled, "chat")
    before = CHAT.prices.by_sku()
    dearer = replace(CHAT, prices=replace(CHAT.prices, output=(CHAT.prices.output or 0) + 7))
    with filled.begin() as connection:
        put_model(connection, dearer, NOW)
    with filled.read() as connection:
        route = resolve(connection, "chat", project_id="proj_1")
    assert route is not None
    change_ms = minute_floor(NOW) + MINUTE_MS
    assert route.unit_prices(NOW) == route.unit_prices(change_ms - 1) == before
    assert route.unit_prices(change_ms) == dearer.prices.by_sku()


def test_old_runs_are_forgotten_but_never_living_ones(filled: Database) -> None:
    made = _create(filled, "chat")
    _put(filled, _replica(made.deployment_id, 0))
    forgotten: list[str] = []
    for number in range(1, store.KEPT_REPLICAS + 4):
        forgotten += _put(filled, _replica(made.deployment_id, number, state="failed"))
    assert forgotten == ["rep_001", "rep_002", "rep_003"]
    with filled.read() as connection:
        assert "rep_000" in {r.id for r in store.live_replicas(connection)}


def test_views(filled: Database) -> None:
    made, attached = _create(filled, "chat"), _create(filled, "attached", ATTACHED.id, at=NOW + 1)
    with filled.read() as connection:
        assert view_deployment(connection, made.deployment_id, {}).state == "stopped"
        with pytest.raises(NotFound):
            view_deployment(connection, "dep_none", {})
    _put(filled, _replica(made.deployment_id, 1, state="failed", reason="no room", stopped_ms=NOW + 4))
    _put(filled, _replica(made.deployment_id, 2))
    idle = LiveStatus(made.deployment_id, "idle", 0, NOW, NOW + 9, None)
    with filled.read() as connection:
        own, other = view_deployments(connection, {made.deployment_id: idle})
        alone = view_deployment(connection, made.deployment_id, {})
    assert (own.state, own.last_failure, own.last_failure_ms) == ("idle", "no room", NOW + 4)
    assert [r.id for r in own.replicas] == ["rep_002", "rep_001"]
    assert alone.state == "ready", "without a runtime the table speaks"
    assert (other.id, other.state, other.external) == (attached.deployment_id, "ready", True)


def test_unused_deployments(filled: Database) -> None:
    made, other = _create(filled, "chat"), _create(filled, "other", ATTACHED.id)
    with filled.begin() as connection:
        delete_endpoint(connection, made, NOW)
        ids = [made.deployment_id, other.deployment_id]
        assert store.unused_deployments(connection, ids) == {made.deployment_id}
