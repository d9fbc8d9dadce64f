"""At the start: what an earlier life of the platform left running is adopted, or ended with all it began."""

import asyncio
from dataclasses import dataclass, replace

from catalog.store import find_model
from core.errors import FareboxError
from core.log import get_logger
from serving import processes, store
from serving.fine_tunes import fine_tunes_of
from serving.health import check_health
from serving.launch import Launch
from serving.model import Replica, ReplicaState
from serving.processes import Server
from serving.run import Surroundings

_log = get_logger(__name__)
_HEALTH_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Adopted:
    """A server that lives, and is what would be started today."""

    replica: Replica
    server: Server
    launch: Launch


async def recover(around: Surroundings) -> list[Adopted]:
    """Look at every run that has not ended as far as the table knows, and at every marked process."""
    live = await asyncio.to_thread(_read_live, around)
    judged = await asyncio.gather(*(_judge(around, replica) for replica in live))
    adopted: dict[str, Adopted] = {}
    for verdict in judged:
        if verdict is not None:
            adopted.setdefault(verdict.replica.deployment_id, verdict)
    kept = {each.replica.id for each in adopted.values()}
    leftovers = [replica for replica in live if replica.id not in kept]
    await asyncio.gather(*(_end(around, replica) for replica in leftovers))
    await _end_unrecorded(around, kept)
    for each in adopted.values():
        extra = {"deployment": each.replica.deployment_id, "pid": each.server.pid}
        _log.info("a model server of an earlier run was adopted", extra=extra)
    return list(adopted.values())


def _read_live(around: Surroundings) -> list[Replica]:
    with around.db.read() as connection:
        return store.live_replicas(connection)


async def _judge(around: Surroundings, replica: Replica) -> Adopted | None:
    if replica.state == "stopping" or replica.pid is None or replica.port is None or not replica.process_mark:
        return None
    server = Server(replica.id, replica.pid, replica.process_mark)
    launch = await asyncio.to_thread(_wanted, around, replica)
    if launch is None or launch.spec_hash != replica.spec_hash or server.ended():
        return None
    if replica.state == "starting":
        return Adopted(replica, server, launch)  # it is waited for as before
    health = await check_health(replica.port, launch.health_path, _HEALTH_TIMEOUT_S)
    return Adopted(replica, server, launch) if health == "well" else None


def _wanted(around: Surroundings, replica: Replica) -> Launch | None:
    """The command that would serve the deployment today; None when nothing should."""
    assert replica.port is not None, "begun"
    with around.db.read() as connection:
        deployment = store.find_deployment(connection, replica.deployment_id)
        model = find_model(connection, deployment.model_id) if deployment else None
        fine_tunes = fine_tunes_of(connection, deployment) if deployment else []
        used = store.deployment_in_use(connection, replica.deployment_id)
    if deployment is None or deployment.kind != "pool":
        return None  # an online deployment's instances are started anew
    if model is None or model.spec.external or not used:
        return None
    try:
        return around.launcher(model.spec, replica.port, fine_tunes)
    except FareboxError:
        return None


async def _end(around: Surroundings, replica: Replica) -> None:
    """End what is left of a run that is not adopted, and record how it came out."""
    reason = "ended at the next start of the platform, which was killed"
    state: ReplicaState = "stopped"
    if replica.pid is not None:
        server = Server(replica.id, replica.pid, replica.process_mark)
        if server.ended():
            state = "failed"
            reason = "died while the platform was not running"
        await asyncio.to_thread(processes.end, server, around.timing.stop_grace / 1000)
    ended = replace(replica, state=state, reason=reason, phase="", stopped_ms=around.clock.now_ms())
    await around.recorder.save(ended)


async def _end_unrecorded(around: Surroundings, kept: set[str]) -> None:
    """End processes of this installation's runs that the table knows no process of.

    The platform was killed between beginning a server and recording its pid, or a helper outlived its server.
    """

    def find() -> set[str]:
        marked = set(processes.marked_processes()) - kept
        with around.db.read() as connection:
            return store.known_replica_ids(connection, marked) if marked else set()

    for replica_id in await asyncio.to_thread(find):
        _log.warning("processes of an ended model server were found", extra={"replica": replica_id})
        await asyncio.to_thread(processes.end_marked, replica_id, around.timing.stop_grace / 1000)
