"""When instances of online deployments were there: what is paid by the minute.

An instance costs each minute at whose beginning its process was there. So a restart within a minute costs nothing more,
and a minute that the platform did not see is nobody's.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, or_, select

from core.clock import MINUTE_MS
from serving.online.store import read_spec
from serving.online.tables import online_deployments
from serving.tables import endpoints, replicas

LOW_PRIORITY = ".low_priority"  # behind an instance type: it has a price of its own


@dataclass(frozen=True, slots=True)
class InstanceLife:
    """From the first full minute `from_ms` on until before `until_ms` (None: it is still there)."""

    id: str
    endpoint_id: str
    endpoint_name: str
    org_id: str
    project_id: str
    instance_type: str
    from_ms: int
    until_ms: int | None


def instance_lives(connection: Connection, *, since_ms: int, ended_after_ms: int) -> list[InstanceLife]:
    """Instances of scripts, MLflow models and servers of one's own whose process began at or after `since_ms`.

    `since_ms` is when this platform started: what an earlier one left behind ended with it, nobody knows when.
    Catalog models are paid by the token, so their instances are not among them.
    """
    query = (
        select(
            replicas.c.id,
            replicas.c.spawned_ms,
            replicas.c.stopped_ms,
            online_deployments.c.endpoint_id,
            online_deployments.c.org_id,
            online_deployments.c.project_id,
            online_deployments.c.spec,
            endpoints.c.name,
        )
        .join(online_deployments, online_deployments.c.id == replicas.c.deployment_id)
        .join(endpoints, endpoints.c.id == online_deployments.c.endpoint_id)
        .where(replicas.c.spawned_ms >= since_ms)
        .where(or_(replicas.c.stopped_ms.is_(None), replicas.c.stopped_ms >= ended_after_ms))
        .order_by(replicas.c.id)
    )
    found = []
    for row in connection.execute(query):
        spec = read_spec(row.spec)
        from_ms = -(-row.spawned_ms // MINUTE_MS) * MINUTE_MS
        if spec.kind == "catalog" or (row.stopped_ms is not None and row.stopped_ms <= from_ms):
            continue
        found.append(
            InstanceLife(
                row.id,
                row.endpoint_id,
                row.name,
                row.org_id,
                row.project_id,
                spec.instance_type + (LOW_PRIORITY if spec.low_priority else ""),
                from_ms,
                row.stopped_ms,
            )
        )
    return found
