"""The Python client for online endpoints, against the real management API."""

from pathlib import Path

import farebox
import pytest
from farebox.entities import (
    CodeConfiguration,
    Environment,
    KubernetesOnlineDeployment,
    KubernetesOnlineEndpoint,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
    ProbeSettings,
)
from farebox.errors import FareboxAPIError, FareboxConfigError
from farebox.online_resources import EndpointAuthKeys, EndpointAuthToken
from farebox.polling import OperationFailed, OperationTimeout
from farebox.scripts import ScriptError
from farebox.serverless_entities import MarketplaceSubscription, ServerlessEndpoint

from tests.api.online_platform import OnlinePlatform, open_online


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnlinePlatform:
    made = open_online(tmp_path)
    monkeypatch.setattr("farebox.polling.time", made.patient())
    monkeypatch.chdir(made.folder)
    return made


def _blue(name: str = "blue") -> ManagedOnlineDeployment:
    return ManagedOnlineDeployment(
        name=name,
        endpoint_name="shop",
        model=Model(path="model/weights.bin"),
        code_configuration=CodeConfiguration(code="src", scoring_script="score.py"),
        environment=Environment(conda_file="conda.yml"),
        instance_count=1,
        request_settings=OnlineRequestSettings(request_timeout_ms=3000),
        liveness_probe=ProbeSettings(initial_delay=1),
    )


def test_a_program_written_for_azure(online: OnlinePlatform) -> None:
    with farebox.MLClient(client=online.client()) as ml:
        endpoint = ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="shop")).result()
        assert endpoint.scoring_uri == "http://farebox.test:8080/endpoints/shop/score"
        poller = ml.online_deployments.begin_create_or_update(_blue())
        assert (poller.done(), poller.status(), poller.phase) == (
            False,
            "InProgress",
            "waiting for the runtime",
        )
        blue = poller.result()
        assert (poller.status(), blue.provisioning_state, blue.kind) == ("Succeeded", "Succeeded", "script")
        endpoint.traffic = {"blue": 100}
        assert ml.begin_create_or_update(endpoint).result().traffic == {"blue": 100}
        ml.begin_create_or_update(_blue("green")).result()
        endpoint = ml.online_endpoints.get("shop")
        assert endpoint.traffic == {"blue": 100, "green": 0}
        endpoint.mirror_traffic = {"green": 10}
        assert ml.begin_create_or_update(endpoint).result().mirror_traffic == {"blue": 0, "green": 10}
        endpoint.traffic, endpoint.mirror_traffic = {"blue": 0, "green": 100}, {"green": 0}
        assert ml.begin_create_or_update(endpoint).result().traffic == {"blue": 0, "green": 100}
        said = ml.online_endpoints.invoke("shop", deployment_name="blue", request_file="request.json")
        assert said == '{"data": [1]}'
        assert ml.online_endpoints.invoke("shop", input_data=[1, 2]) == "[1, 2]"
        assert "5 lines" in ml.online_deployments.get_logs("blue", "shop", 5)
        assert [each.name for each in ml.online_deployments.list("shop")] == ["blue", "green"]
        assert ml.online_deployments.begin_delete("blue", "shop").result() is None
        assert ml.online_endpoints.begin_delete("shop").result() is None
        assert ml.online_endpoints.list() == []


def test_azures_arguments_are_taken_but_a_url_has_a_name(online: OnlinePlatform) -> None:
    assert farebox.MLClient(object(), "sub", "group", "workspace", client=online.client()).models.list() == []
    with pytest.raises(FareboxConfigError, match="url="):
        farebox.MLClient("http://127.0.0.1:8080")
    nothing = farebox.MLClient(client=online.client())
    with pytest.raises(
        FareboxConfigError, match="expected an endpoint, deployment or subscription, got Model"
    ):
        nothing.begin_create_or_update(Model(name="m"))  # type: ignore[arg-type]


def test_keys_and_tokens(online: OnlinePlatform) -> None:
    endpoints = online.client().online_endpoints
    endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="shop")).result()
    keys = endpoints.get_keys("shop")
    assert isinstance(keys, EndpointAuthKeys)
    renewed = endpoints.begin_regenerate_keys("shop", key_type="secondary").result()
    assert renewed.primary_key == keys.primary_key and renewed.secondary_key != keys.secondary_key
    with pytest.raises(FareboxAPIError, match="'primary' or 'secondary'"):
        endpoints.begin_regenerate_keys("shop", key_type="third")
    endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="shop", auth_mode="aml_token")).result()
    token = endpoints.get_keys("shop")
    assert isinstance(token, EndpointAuthToken) and token.access_token.startswith("fbx_ep_")
    with pytest.raises(FareboxAPIError, match="needs an identity provider"):
        endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="shop", auth_mode="aad_token"))
    assert isinstance(endpoints.get_keys("shop"), EndpointAuthToken), "nothing was changed"


def test_a_failure_is_an_exception_with_its_code(online: OnlinePlatform) -> None:
    client = online.client()
    client.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="shop")).result()
    online.failure = ("UserScriptImportError", "No module named 'sklearn'")
    with pytest.raises(OperationFailed, match="No module named") as failed:
        client.online_deployments.begin_create_or_update(_blue()).result()
    assert failed.value.code == "UserScriptImportError"
    found = client.online_deployments.get("blue", "shop")
    assert found.failure == {"code": "UserScriptImportError", "message": "No module named 'sklearn'"}


def test_waiting_has_an_end(online: OnlinePlatform) -> None:
    client = online.client()
    client.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="shop")).result()
    with pytest.raises(OperationTimeout, match="waiting for the runtime"):
        client.online_deployments.begin_create_or_update(_blue()).result(timeout=0)


def test_what_the_client_refuses_itself(online: OnlinePlatform) -> None:
    client = online.client()
    online.write("src/score.py", "def init(): pass\n")
    with pytest.raises(ScriptError, match=r"no function run\(\)"):
        client.online_deployments.begin_create_or_update(_blue())
    nameless = ManagedOnlineDeployment(name="blue")
    with pytest.raises(FareboxConfigError, match="endpoint_name"):
        client.online_deployments.begin_create_or_update(nameless)
    with pytest.raises(FareboxConfigError, match="name"):
        client.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint())
    shop = ManagedOnlineEndpoint(name="shop", traffic={"blue": 100})
    with pytest.raises(FareboxConfigError, match="no traffic rules"):
        client.online_endpoints.begin_create_or_update(shop, local=True)
    with pytest.raises(FareboxConfigError, match="not both"):
        client.online_endpoints.invoke("shop", request_file="request.json", input_data={})


def test_kubernetes_is_accepted_and_said_to_run_here(online: OnlinePlatform) -> None:
    client = online.client()
    made = client.online_endpoints.begin_create_or_update(
        KubernetesOnlineEndpoint(name="shop", compute="azureml:k8s")
    ).result()
    assert isinstance(made, KubernetesOnlineEndpoint) and made.notes
    deployment = KubernetesOnlineDeployment(
        name="blue",
        endpoint_name="shop",
        code_configuration=CodeConfiguration(code="src", scoring_script="score.py"),
    )
    blue = client.online_deployments.begin_create_or_update(deployment).result()
    assert isinstance(blue, KubernetesOnlineDeployment)
    assert any("processes on this machine" in text for text in blue.notes or [])


def test_models_and_environments_are_registered(online: OnlinePlatform) -> None:
    ml = farebox.MLClient(client=online.client())
    model = ml.models.create_or_update(Model(name="churn", path="model", type="custom_model"))
    assert (model.version, model.id) == ("1", "azureml:churn:1")
    environment = ml.create_or_update(Environment(name="sk", conda_file="conda.yml"))
    assert ml.environments.get("sk", label="latest") == environment
    ml.begin_create_or_update(ManagedOnlineEndpoint(name="shop")).result()
    blue = _blue()
    blue.model, blue.environment = model, environment  # type: ignore[assignment]
    assert ml.begin_create_or_update(blue).result().model == "azureml:churn:1"
    assert [each.name for each in ml.models.list()] == ["churn"]


def test_serverless_endpoints_with_azures_verbs(online: OnlinePlatform) -> None:
    """Terms accepted, an endpoint made, changed, its keys renewed, deleted."""
    offer = {"offer": "large-offer", "terms_url": "https://acme.example/terms"}
    model = {
        "id": "acme/large", "task": "chat", "context_length": 8192, "publisher": "Acme", "marketplace": offer,
        "engine": {"kind": "external", "url": "http://127.0.0.1:9"}, "prices": {"input": "1", "output": "2"},
    }  # fmt: skip
    assert online.console.client.post("/api/models", json=model).status_code == 201
    with farebox.MLClient(client=online.client()) as ml:
        wanted = ServerlessEndpoint(name="mine", model_id="azureml://registries/acme/models/acme/large")
        with pytest.raises(FareboxAPIError, match="subscri"):
            ml.begin_create_or_update(wanted)
        terms = MarketplaceSubscription(name="large", model_id="acme/large")
        accepted = ml.begin_create_or_update(terms).result()
        assert (accepted.model_id, accepted.offer) == ("acme/large", "large-offer")
        assert [each.name for each in ml.marketplace_subscriptions.list()] == ["large"]
        made = ml.serverless_endpoints.begin_create_or_update(wanted).result()
        assert (made.model_id, made.provisioning_state, made.tags) == ("acme/large", "Online", {})
        assert made.scoring_uri is not None and made.scoring_uri.endswith(
            "/endpoints/mine/v1/chat/completions"
        )
        wanted.tags, wanted.content_safety = {"team": "search"}, "disabled"
        changed = ml.begin_create_or_update(wanted)
        assert (changed.done(), changed.status(), changed.result().tags) == (
            True,
            "Succeeded",
            {"team": "search"},
        )
        assert ml.serverless_endpoints.get("mine").content_safety == "disabled"
        wanted.tags = {}
        assert ml.begin_create_or_update(wanted).result().tags == {}
        keys = ml.serverless_endpoints.get_keys("mine")
        renewed = ml.serverless_endpoints.begin_regenerate_keys("mine", key_type="Secondary").result()
        assert renewed.primary_key == keys.primary_key and renewed.secondary_key != keys.secondary_key
        with pytest.raises(FareboxConfigError, match="cannot be changed"):
            ml.begin_create_or_update(ServerlessEndpoint(name="mine", model_id="acme/other"))
        with pytest.raises(FareboxConfigError, match="leave its version out"):
            ml.begin_create_or_update(
                ServerlessEndpoint(name="x", model_id="azureml://registries/a/models/b/versions/1")
            )
        with pytest.raises(FareboxConfigError, match="model_id: the field is missing"):
            ml.begin_create_or_update(ServerlessEndpoint(name="x"))
        assert [each.name for each in ml.serverless_endpoints.list()] == ["mine"]
        assert ml.serverless_endpoints.begin_delete("mine").result() is None
        assert ml.marketplace_subscriptions.begin_delete("large").result() is None
        assert ml.serverless_endpoints.list() == [] and ml.marketplace_subscriptions.list() == []
