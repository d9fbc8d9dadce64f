"""Which worker process runs which test, in which order, and which tests run while no other does.

xdist's own groups are a suffix of a test's id, which pytest 9.2 takes no notice of (pytest-xdist issue 1386). So the
workers, who know the tests, write down their groups, and a scheduler of ours reads them.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from serving import processes

_ORDER = {"engine": 0, "": 2, "timing": 3}  # all else 1: the longest at the very front
_PORTS_PER_WORKER = 1_000


def group_of(item: pytest.Item) -> str:
    """What must stay on one worker: the tests of a real engine, those of one PostgreSQL, or those of a module with
    things made once for it. "" for a test that may run anywhere."""
    for shared in ("timing", "engine", "postgres"):
        if item.get_closest_marker(shared):
            return shared
    fixtures = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    once = any(fixture.scope == "module" for definitions in fixtures for fixture in definitions)
    return item.path.stem if once else ""


class Scheduler(LoadScopeScheduling):
    """Gives each worker the next group, or the next single test."""

    def __init__(self, config: pytest.Config, log: Any, groups: Path) -> None:
        super().__init__(config, log)
        self._path, self._groups = groups, dict[str, str]()

    def schedule(self) -> None:
        self._groups = json.loads(self._path.read_text())  # written before the collections were reported
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(nodeid) or nodeid


class Workers:
    """The plugin, in the controller and in each worker."""

    def __init__(self, config: pytest.Config) -> None:
        self._input: dict[str, Any] | None = getattr(config, "workerinput", None)
        self._folder = Path(
            self._input["folder"] if self._input else tempfile.mkdtemp(prefix="farebox-tests-")
        )
        if self._input:
            # Ports that are chosen first and bound later: for each worker from a range of its own.
            number = int(self._input["workerid"].removeprefix("gw")) % 10
            first = processes.PORTS.start + number * _PORTS_PER_WORKER
            processes.PORTS = range(first, first + _PORTS_PER_WORKER)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["folder"] = str(self._folder)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Scheduler:
        return Scheduler(config, log, self._folder / "groups.json")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: _ORDER.get(group_of(item), 1))

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self._input:
            work = self._folder / f"groups.{os.getpid()}"
            work.write_text(json.dumps({item.nodeid: group_of(item) for item in session.items}))
            work.replace(self._folder / "groups.json")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """A test that measures time runs alone; what it waits for that does not count as its own time."""
        alone = item.get_closest_marker("timing") is not None
        with (self._folder / "turn").open("w") as turn, (self._folder / "running").open("w") as running:
            fcntl.flock(turn, fcntl.LOCK_EX)  # whoever waits to be alone lets nobody else begin
            fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            fcntl.flock(turn, fcntl.LOCK_UN)
            return (yield)

    def pytest_unconfigure(self) -> None:
        if not self._input:
            shutil.rmtree(self._folder, ignore_errors=True)
