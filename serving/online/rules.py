"""Rules of online endpoints, as pure functions: names, traffic, limits, what may not change, one change at a time.

Source: Azure Machine Learning's documentation, by the numbers of our reference (R2.x, R4.x). Each refusal says what
to change.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.errors import Conflict, FareboxError, Invalid
from serving.endpoints import check_name
from serving.online.model import OnlineDeployment, Operation
from serving.online.spec import DeploymentSpec, EndpointSpec, ResourceAmounts
from wire.suggestions import unknown_name

WHOLE = 100
MAX_MIRROR = 50
MAX_ENDPOINTS = 100
MAX_DEPLOYMENTS = 500
MAX_DEPLOYMENTS_PER_ENDPOINT = 20
MAX_INSTANCES = 50  # of one deployment
MAX_KUBERNETES_NAMES = (6, 62)  # endpoint's and deployment's name together
_SPARE_TENTHS = 12  # a quota of instances is asked for 1.2 times as many


class OutOfQuota(FareboxError):
    """The machine, or a limit of this installation, has no room for it."""

    status, code = 409, "OutOfQuota"


# --- names ----------------------------------------------------------------------------------------


def check_deployment_name(name: object, endpoint: EndpointSpec, others: Iterable[str]) -> str:
    """`name` when a new deployment of the endpoint may have it."""
    checked = check_name(name)
    for other in others:
        if other.lower() == checked.lower():
            raise Conflict(
                f"name: the endpoint has a deployment {other!r}; update it, or choose another name",
                code="name_in_use",
                param="name",
            )
    low, high = MAX_KUBERNETES_NAMES
    together = len(endpoint.name) + len(checked)
    if endpoint.target == "kubernetes" and not low <= together <= high:
        raise Invalid(
            f"name: the names of endpoint and deployment have {together} characters together; Kubernetes takes "
            f"{low} to {high}",
            param="name",
        )
    return checked


# --- traffic --------------------------------------------------------------------------------------


def check_traffic(
    traffic: Mapping[str, object],
    mirror: Mapping[str, object],
    deployments: Iterable[str],
    target: str = "managed",
) -> tuple[dict[str, int], dict[str, int]]:
    """Live and mirrored shares as they are kept: without the zeros. Invalid names the field at fault.

    Live shares are whole percents that sum to 0 or 100; one deployment at most gets copies, of at most half of the
    calls, and no live traffic; every name is one of `deployments`.
    """
    names = sorted(deployments)
    live = _shares(traffic, names, "traffic", WHOLE)
    copies = _shares(mirror, names, "mirror_traffic", MAX_MIRROR)
    total = sum(live.values())
    if total not in (0, WHOLE):
        raise Invalid(
            f"traffic: the shares sum to {total}; they must sum to 100, or to 0 for no traffic at all",
            param="traffic",
        )
    if len(copies) > 1:
        raise Invalid(
            f"mirror_traffic: copies go to one deployment only, got {', '.join(copies)}; set the others to 0",
            param="mirror_traffic",
        )
    for name in copies:
        if target == "kubernetes":
            raise Invalid(
                "mirror_traffic: endpoints on Kubernetes do not mirror traffic", param="mirror_traffic"
            )
        if name in live:
            raise Invalid(
                f"mirror_traffic.{name}: {name!r} has {live[name]} % of the live traffic; a deployment gets live "
                "traffic or copies, not both",
                param=f"mirror_traffic.{name}",
            )
    return live, copies


def _shares(given: Mapping[str, object], names: Sequence[str], field: str, most: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, share in given.items():
        param = f"{field}.{name[:60]}"
        if isinstance(share, bool) or not isinstance(share, int):
            raise Invalid(f"{param}: expected a whole number of percent, got {share!r:.60}", param=param)
        if not 0 <= share <= most:
            raise Invalid(f"{param}: expected 0 to {most} percent, got {share}", param=param)
        if name not in names:
            if share == 0:
                continue  # what is not there has no traffic anyway
            said = unknown_name(name, names, "deployment") if names else "the endpoint has no deployment yet"
            raise Invalid(f"{param}: {said}; create it first", param=param)
        if share:
            found[name] = share
    return found


def check_may_delete(name: str, traffic: Mapping[str, int], mirror: Mapping[str, int]) -> None:
    """Conflict while calls, or copies of calls, go to the deployment."""
    for field, shares in (("traffic", traffic), ("mirror-traffic", mirror)):
        if shares.get(name):
            kind = "of the live traffic" if field == "traffic" else "of the traffic as copies"
            raise Conflict(
                f"{name!r} gets {shares[name]} % {kind}; give it to others first, e.g. "
                f'farebox online-endpoint update --{field} "{name}=0{" other=100" if field == "traffic" else ""}"',
                code="deployment_has_traffic",
                param="name",
            )


_NOUNS = {"create": "creation", "update": "update", "delete": "deletion"}

# --- one change at a time -------------------------------------------------------------------------


def check_idle(running: Sequence[Operation], now_ms: int) -> None:
    """Conflict while an operation on the endpoint or on one of its deployments is under way (R2.7)."""
    if not running:
        return
    first = running[0]
    kind, _, verb = first.kind.partition(".")
    doing = f": {first.phase}" if first.phase else ""
    raise Conflict(
        f"operation in progress: the {_NOUNS[verb]} of a{'n' if kind == 'endpoint' else ''} {kind}{doing}, since "
        f"{max(0, now_ms - first.started_ms) // 1000} s; wait for it (operation {first.id}), or delete the "
        "deployment that it is about",
        code="operation_in_progress",
        retry_after_s=5,
        extra={"operation": first.id},
    )


# --- what may not change --------------------------------------------------------------------------


def check_endpoint_change(old: EndpointSpec, new: EndpointSpec) -> None:
    """Invalid for a field that stays as it was created."""
    _check_same(old, new, ("name", "target", "compute"))


def check_deployment_change(old: DeploymentSpec, new: DeploymentSpec) -> None:
    """Invalid for a field that stays as it was created."""
    _check_same(old, new, ("name", "target", "egress_public_network_access"))


def _check_same(old: object, new: object, names: Sequence[str]) -> None:
    for name in names:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            field = "type" if name == "target" else name
            raise Invalid(
                f"{field}: cannot be changed after creation; it is {before!r}, got {after!r}; delete and create "
                "anew instead",
                param=field,
            )


# --- limits ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is. 0 GPUs: none; `instances` 0: no limit on their number."""

    cpu_milli: int
    memory_bytes: int
    gpus: int
    instances: int = 0


_FIELDS = ("cpu_milli", "memory_bytes", "gpus")
# What an instance is counted with that says nothing of its needs: enough to bound how many there can be.
ASSUMED = ResourceAmounts(cpu_milli=100, memory_bytes=128 * 1024 * 1024, gpus=0)


def check_endpoint_count(existing: int) -> None:
    """OutOfQuota when no further endpoint of any kind may be made."""
    if existing >= MAX_ENDPOINTS:
        raise OutOfQuota(
            f"there are {existing} endpoints; at most {MAX_ENDPOINTS} may exist; delete one first"
        )


def check_deployment_count(on_endpoint: int, in_all: int) -> None:
    """OutOfQuota when the endpoint, or the installation, may have no further deployment."""
    if on_endpoint >= MAX_DEPLOYMENTS_PER_ENDPOINT:
        raise OutOfQuota(
            f"the endpoint has {on_endpoint} deployments; at most {MAX_DEPLOYMENTS_PER_ENDPOINT} fit; delete one first"
        )
    if in_all >= MAX_DEPLOYMENTS:
        raise OutOfQuota(
            f"there are {in_all} deployments; at most {MAX_DEPLOYMENTS} may exist; delete one first"
        )


def wanted_instances(spec: DeploymentSpec) -> int:
    """How many instances there may be at most."""
    return spec.instance_count if spec.scale.kind == "default" else spec.scale.most


def check_room(spec: DeploymentSpec, others: Iterable[OnlineDeployment], capacity: Capacity) -> None:
    """OutOfQuota when the deployment does not fit beside `others`, saying what is short and by how much.

    Those of low priority hold nothing: they yield. One of them has to fit into the machine, and then waits for room.
    """
    count = wanted_instances(spec)
    if count > MAX_INSTANCES:
        raise OutOfQuota(
            f"instance_count: {count} instances wanted; a deployment has at most {MAX_INSTANCES}",
            param="instance_count",
        )
    specs = [] if spec.low_priority else [other.spec for other in others if not other.spec.low_priority]
    _check_instance_quota(count, [wanted_instances(each) for each in specs], capacity.instances)
    for field, unit, scale in (
        ("cpu_milli", "thousandths of a core", 1),
        ("memory_bytes", "MiB of memory", 1024 * 1024),
        ("gpus", "GPUs", 1),
    ):
        taken = sum(wanted_instances(each) * _amount(each, field) for each in specs)
        needed, there = count * _amount(spec, field), getattr(capacity, field)
        if needed > there - taken:
            param = "resources.requests" if _said(spec, field) else "instance_count"
            raise OutOfQuota(
                f"{param}: {count} instances need {needed // scale} {unit}; the machine has {there // scale}, of "
                f"which other deployments hold {taken // scale}; ask for less, or delete one",
                param=param,
            )


def yielding(specs: Mapping[str, DeploymentSpec], capacity: Capacity) -> dict[str, int]:
    """How many instances each deployment of low priority may have now, by the keys of `specs`, which are in order of age:
    what dedicated ones leave, the oldest first."""
    dedicated = [each for each in specs.values() if not each.low_priority]
    left = {field: getattr(capacity, field) for field in _FIELDS}
    for each in dedicated:
        for field in _FIELDS:
            left[field] -= wanted_instances(each) * _amount(each, field)
    quota = capacity.instances - sum(quota_of(wanted_instances(each)) for each in dedicated)
    allowed = {}
    for name, each in specs.items():
        if not each.low_priority:
            continue
        needs = {field: _amount(each, field) for field in _FIELDS}
        count = min([wanted_instances(each), *(left[f] // need for f, need in needs.items() if need)])
        while capacity.instances and count > 0 and quota_of(count) > quota:
            count -= 1
        allowed[name] = max(0, count)
        quota -= quota_of(allowed[name])
        for field, need in needs.items():
            left[field] -= allowed[name] * need
    return allowed


def _check_instance_quota(count: int, others: Sequence[int], quota: int) -> None:
    if not quota:
        return
    needed, taken = quota_of(count), sum(quota_of(each) for each in others)
    if needed > quota - taken:
        raise OutOfQuota(
            f"instance_count: {count} instances need a quota of {needed} (a fifth is kept for updates); the quota is "
            f"{quota}, of which {taken} are in use",
            param="instance_count",
        )


def quota_of(instances: int) -> int:
    """What a number of instances takes from a quota: a fifth more, rounded up (R2.4)."""
    return -(-instances * _SPARE_TENTHS // 10)


def _said(spec: DeploymentSpec, field: str) -> int:
    found: int = getattr(spec.resources.requests, field)
    return found


def _amount(spec: DeploymentSpec, field: str) -> int:
    assumed: int = getattr(ASSUMED, field)
    return _said(spec, field) or assumed
