"""What tests of the local runtime share: a database with one endpoint, a launcher of fake servers, quick timing."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

import access.tables
import catalog.tables
import core.changes
import serving.online.tables
import serving.tables
from catalog.model import Engine, ModelSpec, Prices
from catalog.store import put_model
from core.clock import Clock, SystemClock
from core.database import Database, metadata, open_database
from core.settings import Settings
from serving import processes, store
from serving.endpoints import create_serverless
from serving.fine_tunes import adapters_of
from serving.launch import Launch
from serving.local_runtime import LocalRuntime
from serving.model import Endpoint, Replica
from serving.run import Timing

TABLES = (access.tables, catalog.tables, core.changes, serving.tables, serving.online.tables)
ROOT = Path(__file__).resolve().parents[1]
QUICK = Timing(
    start_timeout=10_000, scale_to_zero_after=60_000, idle_after=500, poll=30, tick=30, health_every=100,
    health_timeout=500, unwell_for=300, silent_for=600, notice=150, stop_grace=1_000, drain_grace=500,
    backoff_first=100, backoff_cap=2_000, refusal_backoff=200, steady_after=1_000, usual_start=500,
)  # fmt: skip


def model(model_id: str = "acme/mock", **engine: object) -> ModelSpec:
    return ModelSpec(
        id=model_id, task="chat", prices=Prices(input=1, output=2), context_length=4096,
        engine=Engine(**engine),  # type: ignore[arg-type]
    )  # fmt: skip


@dataclass
class FakeLauncher:
    """Commands of `tests/fake_server.py`; `options` may be changed between starts."""

    options: list[str] = field(default_factory=list)
    by_model: dict[str, list[str]] = field(default_factory=dict)
    change: Callable[[Launch], Launch] = lambda launch: launch
    asked: int = 0

    def __call__(self, spec: ModelSpec, port: int, fine_tunes: Sequence[ModelSpec] = ()) -> Launch:
        self.asked += 1
        options = self.by_model.get(spec.id, self.options)
        argv = (sys.executable, "-m", "tests.fake_server", "--port", str(port), *options)
        return self.change(Launch(argv, dict(os.environ), ROOT, fine_tunes=adapters_of(fine_tunes)))


@dataclass
class World:
    """A home, its database, and the runtimes made on it, one after another."""

    home: Path
    db: Database
    clock: Clock
    launcher: FakeLauncher
    timing: Timing = QUICK
    runtimes: list[LocalRuntime] = field(default_factory=list)

    def endpoint(self, name: str = "chat", spec: ModelSpec | None = None) -> Endpoint:
        spec = spec or model()
        now_ms = self.clock.now_ms()
        with self.db.begin() as connection:
            put_model(connection, spec, now_ms)
            return create_serverless(
                connection, name=name, model_id=spec.id, org_id="org_1", project_id="proj_1", now_ms=now_ms
            )

    def runtime(self, **timing: int) -> LocalRuntime:
        made = LocalRuntime(
            Settings(home=self.home), self.db, self.clock, launcher=self.launcher,
            timing=replace(self.timing, **timing),
        )  # fmt: skip
        self.runtimes.append(made)
        return made

    def replicas(self, deployment_id: str) -> list[Replica]:
        with self.db.read() as connection:
            return store.list_replicas(connection, deployment_id)

    def processes(self) -> dict[str, set[int]]:
        """Living processes of this home's runs."""
        found = processes.marked_processes()
        with self.db.read() as connection:
            known = store.known_replica_ids(connection, found)
        return {replica_id: pids for replica_id, pids in found.items() if replica_id in known}


def open_world(home: Path) -> World:
    """A world on `home`; its database is made if it is not there."""
    home.mkdir(parents=True, exist_ok=True)
    db = open_database(f"sqlite:///{home / 'farebox.db'}")
    with db.begin() as connection:
        metadata.create_all(connection, list(metadata.tables.values()))
    return World(home, db, SystemClock(), FakeLauncher())


async def until(true: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    return processes.process_mark(pid) != ""


def end_everything(world: World) -> None:
    """After a test: nothing of it may live on, whatever it was about."""
    for pids in world.processes().values():
        for pid in pids:
            try:
                psutil.Process(pid).kill()
            except psutil.Error:
                continue
    world.db.close()
