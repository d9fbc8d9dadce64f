"""Online endpoints, their deployments and operations in both databases."""

from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError

from catalog.model import ModelSpec, Prices
from catalog.store import put_model
from core.changes import last_seq, read_changes
from core.database import Database
from core.errors import Conflict, NotFound
from serving import store as serving_store
from serving.endpoints import create_serverless, get_endpoint
from serving.model import Endpoint
from serving.online import store
from serving.online.model import OnlineDeployment, OnlineEndpoint, Operation
from serving.online.spec import DeploymentSpec, EndpointSpec
from serving.routes import resolve

NOW = 1_760_000_000_000
CHAT = ModelSpec(id="acme/chat", task="chat", prices=Prices(input=1), context_length=4096)
SPEC = DeploymentSpec("blue", "script", code_path="/code", scoring_script="score.py", instance_count=2)


@pytest.fixture
def filled(db: Database) -> Database:
    with db.begin() as connection:
        put_model(connection, CHAT, NOW)
        row = Endpoint("ep_1", "online", "shop", "org", "proj", "", "", "Online", {}, NOW)
        serving_store.insert_endpoint(connection, row)
        spec = EndpointSpec("shop", traffic={"blue": 100})
        store.insert_online_endpoint(connection, OnlineEndpoint("ep_1", spec, "Succeeded", NOW))
    return db


def _deploy(db: Database, name: str = "blue", model_id: str = "", **detail: object) -> OnlineDeployment:
    made = OnlineDeployment(
        f"dep_{name}",
        "ep_1",
        "org",
        "proj",
        name,
        replace(SPEC, name=name),
        "Creating",
        "",
        "",
        1,
        2,
        NOW,
        NOW,
    )
    operation = Operation(
        f"op_{name}", "deployment.create", made.id, "ep_1", "Running", "", NOW, None, None, dict(detail)
    )
    with db.begin() as connection:
        store.insert_online_deployment(connection, made, model_id)
        store.insert_operation(connection, operation)
    return made


def _finish(
    db: Database, deployment: OnlineDeployment, failure: tuple[str, str] | None, generation: int = 1
) -> bool:
    with db.begin() as connection:
        return store.finish_provisioning(connection, deployment.id, generation, failure, NOW + 9)


def test_what_is_written_is_read(filled: Database) -> None:
    made = _deploy(filled)
    with filled.read() as connection:
        assert store.find_online_deployment(connection, deployment_id="dep_blue") == made
        assert store.find_online_deployment(connection, endpoint_id="ep_1", name="blue") == made
        assert store.list_online_deployments(connection, "ep_1", states=["Creating"]) == [made]
        assert store.list_online_deployments(connection, states=["Failed"]) == []
        endpoint = store.find_online_endpoint(connection, "ep_1")
        assert endpoint is not None and endpoint.spec == EndpointSpec("shop", traffic={"blue": 100})
        assert store.deployment_counts(connection) == (1, 2)
        assert store.count_endpoints(connection) == 1


def test_two_living_deployments_never_share_a_name(filled: Database) -> None:
    _deploy(filled)
    with pytest.raises(IntegrityError), filled.begin() as connection:
        store.insert_online_deployment(
            connection,
            OnlineDeployment(
                "dep_2", "ep_1", "org", "proj", "Blue", SPEC, "Creating", "", "", 1, 1, NOW, NOW
            ),
            "",
        )


def test_success_ends_the_operation_and_gives_the_traffic_that_was_asked_for(filled: Database) -> None:
    _finish(filled, _deploy(filled), None)
    green = _deploy(filled, "green", all_traffic=True)
    with filled.begin() as connection:
        store.set_phase(connection, green.id, "starting")
        (operation,) = store.running_operations(connection, endpoint_id="ep_1")
        assert operation.phase == "starting"
        before = last_seq(connection)
    assert _finish(filled, green, None)
    with filled.read() as connection:
        ended = store.find_operation(connection, "op_green")
        assert ended is not None and (ended.state, ended.ended_ms, ended.error) == (
            "Succeeded",
            NOW + 9,
            None,
        )
        found = store.find_online_deployment(connection, deployment_id=green.id)
        assert found is not None and found.provisioning_state == "Succeeded"
        endpoint = store.find_online_endpoint(connection, "ep_1")
        assert endpoint is not None and endpoint.spec.traffic == {"green": 100}
        told = {(change.kind, change.ref) for change in read_changes(connection, before)}
        assert told == {("deployment", green.id), ("endpoint", "ep_1")}


def test_failure_is_kept_and_moves_no_traffic(filled: Database) -> None:
    green = _deploy(filled, "green", all_traffic=True)
    assert _finish(filled, green, ("UserScriptInitFailed", "x" * 9000))
    with filled.read() as connection:
        found = store.find_online_deployment(connection, deployment_id=green.id)
        assert found is not None
        assert (found.provisioning_state, found.failure_code) == ("Failed", "UserScriptInitFailed")
        assert len(found.failure_message) == store.MAX_TEXT
        endpoint = store.find_online_endpoint(connection, "ep_1")
        assert endpoint is not None and endpoint.spec.traffic == {"blue": 100}
        ended = store.find_operation(connection, "op_green")
        assert ended is not None and ended.error is not None
        assert (ended.state, ended.error["code"]) == ("Failed", "UserScriptInitFailed")


def test_the_end_of_an_older_generation_or_of_nothing_is_ignored(filled: Database) -> None:
    made = _deploy(filled)
    assert not _finish(filled, made, None, generation=0)
    assert _finish(filled, made, None)
    assert not _finish(filled, made, ("InternalServerError", "too late"))
    assert not _finish(filled, replace(made, id="dep_none"), None)


def test_deletion_frees_the_name_and_cancels_what_is_under_way(filled: Database) -> None:
    made = _deploy(filled)
    with filled.begin() as connection:
        assert serving_store.deployment_in_use(connection, made.id)
        store.mark_online_deployment_deleted(connection, made, NOW + 5)
        assert not serving_store.deployment_in_use(connection, made.id)
        assert serving_store.unused_deployments(connection, [made.id]) == {made.id}
        ended = store.find_operation(connection, "op_blue")
        assert ended is not None and ended.error is not None and ended.error["code"] == "OperationCanceled"
        assert store.list_online_deployments(connection) == []
        store.insert_online_deployment(connection, replace(made, id="dep_again"), "")
    assert not _finish(filled, made, None)


def test_deleting_the_endpoint_takes_its_deployments_along(filled: Database) -> None:
    made = _deploy(filled)
    with filled.begin() as connection:
        store.mark_online_endpoint_deleted(connection, "ep_1", NOW + 5)
    with filled.read() as connection:
        assert serving_store.find_endpoint(connection, endpoint_id="ep_1") is None
        assert serving_store.unused_deployments(connection, [made.id]) == {made.id}
        endpoint = store.find_online_endpoint(connection, "ep_1")
        assert (
            endpoint is not None and endpoint.provisioning_state == "Deleting" and not endpoint.spec.traffic
        )


def test_ended_operations_are_forgotten_oldest_first(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "KEPT_OPERATIONS", 3)
    with filled.begin() as connection:
        running = Operation("op_running", "endpoint.update", "ep_1", "ep_1", "Running", "", NOW)
        store.insert_operation(connection, running)
        for at in range(6):
            done = Operation(f"op_{at}", "endpoint.update", "ep_1", "ep_1", "Succeeded", "", NOW, NOW + at)
            store.insert_operation(connection, done)
        kept = [store.find_operation(connection, f"op_{at}") is not None for at in range(6)]
        assert kept == [False, False, False, True, True, True]
        assert store.find_operation(connection, "op_running") == running


def test_serverless_views_and_fees_leave_online_endpoints_out(filled: Database) -> None:
    with filled.begin() as connection:
        create_serverless(
            connection, name="chat", model_id=CHAT.id, org_id="org", project_id="proj", now_ms=NOW
        )
        assert [life.name for life in serving_store.endpoint_lives(connection)] == ["chat"]
        assert [e.name for e in serving_store.list_endpoints(connection, kind="online")] == ["shop"]
        with pytest.raises(NotFound, match="'shop' is of kind online"):
            get_endpoint(connection, "shop")
        assert get_endpoint(connection, "shop", kind="online").id == "ep_1"
        with pytest.raises(Conflict, match="an endpoint named 'shop' exists"):
            create_serverless(
                connection, name="Shop", model_id=CHAT.id, org_id="org", project_id="proj", now_ms=NOW
            )
        found = resolve(connection, None, endpoint_id="ep_1")
        assert found is not None and found.split is not None and not found.split.routes


def test_a_catalog_model_that_is_deployed_online_is_in_use(filled: Database) -> None:
    made = _deploy(filled, model_id=CHAT.id)
    with filled.begin() as connection:
        assert serving_store.model_in_use(connection, CHAT.id) == ["shop/blue"]
        assert serving_store.find_pool(connection, CHAT.id) is None
        store.mark_online_deployment_deleted(connection, made, NOW + 1)
        assert serving_store.model_in_use(connection, CHAT.id) == []


def test_autoscale_writes_its_number_once(filled: Database) -> None:
    made = _deploy(filled)
    with filled.begin() as connection:
        store.set_instance_count(connection, made.id, 5, NOW + 1)
        before = last_seq(connection)
        store.set_instance_count(connection, made.id, 5, NOW + 2)
        assert last_seq(connection) == before
        found = store.find_online_deployment(connection, deployment_id=made.id)
        assert found is not None and (found.instance_count, found.spec.instance_count) == (5, 2)
