"""Rules of online endpoints: each refusal, and what it says to change."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Conflict, FareboxError, Invalid
from serving.online import rules
from serving.online.model import OnlineDeployment, Operation
from serving.online.rules import Capacity, OutOfQuota
from serving.online.spec import (
    DeploymentSpec,
    EndpointSpec,
    ResourceAmounts,
    Resources,
    ScaleSettings,
    needs_new_processes,
    needs_scaling,
)

ENDPOINT = EndpointSpec("my-endpoint")
BLUE = DeploymentSpec("blue", "script", code_path="/code", scoring_script="score.py")
MACHINE = Capacity(cpu_milli=2000, memory_bytes=4 * 1024**3, gpus=0)
NAMES = ["blue", "green"]


def _deployment(spec: DeploymentSpec) -> OnlineDeployment:
    return OnlineDeployment(
        "dep_1", "ep_1", "org", "proj", spec.name, spec, "Succeeded", "", "", 1, spec.instance_count, 0, 0
    )


@pytest.mark.parametrize(
    ("traffic", "mirror", "param", "says"),
    [
        ({"blue": 60, "green": 30}, {}, "traffic", "sum to 90; they must sum to 100"),
        ({"blue": 60, "green": 60}, {}, "traffic", "sum to 120"),
        ({"blue": 101}, {}, "traffic.blue", "expected 0 to 100 percent, got 101"),
        ({"blue": -1}, {}, "traffic.blue", "expected 0 to 100"),
        ({"blue": 99.5}, {}, "traffic.blue", "a whole number of percent, got 99.5"),
        ({"blue": True}, {}, "traffic.blue", "a whole number"),
        ({"blue": "100"}, {}, "traffic.blue", "got '100'"),
        ({"bleu": 100}, {}, "traffic.bleu", "did you mean 'blue'"),
        ({"blue": 100}, {"green": 51}, "mirror_traffic.green", "expected 0 to 50 percent, got 51"),
        ({}, {"blue": 10, "green": 10}, "mirror_traffic", "copies go to one deployment only"),
        ({"blue": 100}, {"blue": 10}, "mirror_traffic.blue", "live traffic or copies, not both"),
        ({}, {"gone": 10}, "mirror_traffic.gone", "create it first"),
    ],
)
def test_bad_traffic_names_the_share(
    traffic: dict[str, object], mirror: dict[str, object], param: str, says: str
) -> None:
    with pytest.raises(Invalid) as refused:
        rules.check_traffic(traffic, mirror, NAMES)
    assert refused.value.param == param
    assert says in refused.value.message


def test_zeros_are_not_kept_and_clear_what_was_there() -> None:
    assert rules.check_traffic({"blue": 100, "green": 0}, {"green": 0}, NAMES) == ({"blue": 100}, {})
    assert rules.check_traffic({"blue": 0}, {}, NAMES) == ({}, {})
    assert rules.check_traffic({"deleted-before": 0}, {}, NAMES) == ({}, {})
    assert rules.check_traffic({"blue": 100}, {"green": 50}, NAMES) == ({"blue": 100}, {"green": 50})


def test_kubernetes_does_not_mirror() -> None:
    with pytest.raises(Invalid, match="Kubernetes do not mirror"):
        rules.check_traffic({"blue": 100}, {"green": 10}, NAMES, target="kubernetes")


@given(st.dictionaries(st.sampled_from([*NAMES, "red"]), st.integers(-5, 120)))
def test_accepted_traffic_sums_to_0_or_100(traffic: dict[str, object]) -> None:
    try:
        live, _ = rules.check_traffic(traffic, {}, NAMES)
    except Invalid:
        return
    assert sum(live.values()) in (0, 100) and 0 not in live.values() and set(live) <= set(NAMES)


def test_a_deployment_with_traffic_is_not_deleted() -> None:
    for traffic, mirror, says in (
        ({"blue": 10}, {}, "10 % of the live"),
        ({}, {"blue": 5}, "5 % of the traffic as"),
    ):
        with pytest.raises(Conflict, match=says):
            rules.check_may_delete("blue", traffic, mirror)
    rules.check_may_delete("blue", {"green": 100}, {})


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("BLUE", Conflict, "a deployment 'blue'"),
        ("b", Invalid, "3 to 32"),
        ("blue_2", Invalid, "character '_'"),
        (None, Invalid, "expected a text"),
    ],
)
def test_deployment_names(name: object, error: type[FareboxError], says: str) -> None:
    with pytest.raises(error, match=says):
        rules.check_deployment_name(name, ENDPOINT, ["blue"])
    assert rules.check_deployment_name("green", ENDPOINT, ["blue"]) == "green"


def test_kubernetes_names_are_counted_together() -> None:
    endpoint = EndpointSpec("x" * 32, target="kubernetes")
    with pytest.raises(Invalid, match="63 characters together"):
        rules.check_deployment_name("y" * 31, endpoint, [])


def test_a_second_change_waits() -> None:
    rules.check_idle([], 0)
    running = Operation("op_1", "deployment.create", "dep_1", "ep_1", "Running", "building", 1000, None)
    with pytest.raises(Conflict) as refused:
        rules.check_idle([running], 5000)
    assert refused.value.code == "operation_in_progress"
    assert "the creation of a deployment: building, since 4 s" in refused.value.message
    assert refused.value.extra == {"operation": "op_1"}


def test_what_may_not_change() -> None:
    with pytest.raises(Invalid, match="egress_public_network_access: cannot be changed"):
        rules.check_deployment_change(BLUE, replace(BLUE, egress_public_network_access="disabled"))
    with pytest.raises(Invalid, match=r"^type: cannot be changed"):
        rules.check_endpoint_change(ENDPOINT, replace(ENDPOINT, target="kubernetes"))
    rules.check_deployment_change(BLUE, replace(BLUE, instance_count=3))
    rules.check_endpoint_change(ENDPOINT, replace(ENDPOINT, auth_mode="aml_token"))


def test_eleven_instances_need_a_quota_of_fourteen() -> None:
    quota = replace(MACHINE, cpu_milli=64_000, memory_bytes=64 * 1024**3, instances=12)
    with pytest.raises(OutOfQuota, match="11 instances need a quota of 14") as refused:
        rules.check_room(replace(BLUE, instance_count=11), [], quota)
    assert refused.value.param == "instance_count"
    rules.check_room(replace(BLUE, instance_count=10), [], quota)


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        (ResourceAmounts(cpu_milli=1500), "need 1500 thousandths of a core; the machine has 2000"),
        (ResourceAmounts(memory_bytes=3 * 1024**3), "need 3072 MiB of memory; the machine has 4096"),
        (ResourceAmounts(gpus=1), "need 1 GPUs; the machine has 0"),
    ],
)
def test_the_machine_is_the_quota(requests: ResourceAmounts, says: str) -> None:
    wanted = replace(BLUE, resources=Resources(requests))
    beside = _deployment(replace(BLUE, resources=Resources(ResourceAmounts(1000, 2 * 1024**3))))
    with pytest.raises(OutOfQuota, match=says) as refused:
        rules.check_room(wanted, [beside], MACHINE)
    assert refused.value.param == "resources.requests"


def test_counts() -> None:
    for refuse in (
        lambda: rules.check_endpoint_count(100),
        lambda: rules.check_deployment_count(20, 20),
        lambda: rules.check_deployment_count(0, 500),
        lambda: rules.check_room(replace(BLUE, instance_count=51), [], MACHINE),
    ):
        with pytest.raises(OutOfQuota, match="at most"):
            refuse()
    rules.check_endpoint_count(99)
    rules.check_deployment_count(19, 499)


def test_a_scaled_deployment_counts_with_its_most() -> None:
    spec = replace(BLUE, scale=ScaleSettings("target_utilization", 1, 21))
    assert rules.wanted_instances(spec) == 21
    with pytest.raises(OutOfQuota):
        rules.check_room(spec, [], MACHINE)  # 21 of a tenth of a core do not fit into two


def test_a_spec_survives_json_and_an_older_reader() -> None:
    spec = replace(
        BLUE, command=("serve", "--port", "{port}"), environment={"image": "x"}, tags={"a": "b"}, notes=("n",)
    )
    assert DeploymentSpec.from_json(spec.to_json()) == spec
    assert DeploymentSpec.from_json(spec.to_json() | {"of_a_later_version": 1}) == spec
    assert EndpointSpec.from_json(ENDPOINT.to_json()) == ENDPOINT


def test_which_changes_need_new_processes() -> None:
    assert needs_new_processes(BLUE, replace(BLUE, code_digest="other"))
    assert needs_new_processes(BLUE, replace(BLUE, environment_variables={"A": "1"}))
    assert not needs_new_processes(
        BLUE, replace(BLUE, tags={"a": "b"}, instance_count=2, code_path="/copy/2")
    )
    assert needs_scaling(BLUE, replace(BLUE, instance_count=2))
