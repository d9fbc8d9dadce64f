"""Virtual environments of scoring scripts: built once, whole or not at all, never removed under a process."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from serving import environments
from serving.environments import EnvironmentBuildFailed, VirtualEnvironments


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VirtualEnvironments:
    """Without the scorer's own packages: nothing is downloaded."""
    monkeypatch.setattr(environments, "SCORER_NEEDS", ())
    return VirtualEnvironments(Settings(home=tmp_path))


def asked(*lines: str) -> dict[str, Any]:
    return {"requirements": list(lines)}


def quiet(_: str) -> None:
    pass


def stand_in(built: VirtualEnvironments, *lines: str) -> Path:
    """One that is complete, without the time it takes to make."""
    python = built.python(asked(*lines), None)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (python.parents[1] / "complete").touch()
    return python


def test_it_is_built_once_by_whoever_is_first(built: VirtualEnvironments) -> None:
    said: list[str] = []
    builders = [threading.Thread(target=built.build, args=(asked(), None, said.append)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert said.count("making the environment") == 1
    assert "waiting for the same environment to be built" in said
    python = built.python(asked(), None)
    assert subprocess.run([python, "-c", "import sys; assert sys.prefix != sys.base_prefix"]).returncode == 0
    built.build(asked(), None, said.append)
    assert said.count("making the environment") == 1


def test_what_a_killed_build_left_is_built_anew(built: VirtualEnvironments) -> None:
    folder = built.python(asked(), None).parents[1]
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "half").touch()
    built.build(asked(), None, quiet)
    assert (folder / "complete").exists() and not (folder / "bin" / "half").exists()


def test_a_build_that_is_called_off_leaves_no_process_and_no_environment(built: VirtualEnvironments) -> None:
    class CalledOff(Exception):
        pass

    def report(doing: str) -> None:
        if doing.startswith("installing"):
            raise CalledOff

    with pytest.raises(CalledOff):
        built.build(asked(), None, report)
    folder = built.python(asked(), None).parents[1]
    assert not (folder / "complete").exists()
    assert not [line for line in environments._in_use() if line.startswith(str(folder))]


def test_what_pip_says_is_the_reason(built: VirtualEnvironments) -> None:
    with pytest.raises(EnvironmentBuildFailed, match="no-such-package-of-anybody") as failed:
        built.build(asked("no-such-package-of-anybody==1"), None, quiet)
    log = built.python(asked("no-such-package-of-anybody==1"), None).parents[1].with_suffix(".log")
    assert str(log) in str(failed.value) and "no-such-package-of-anybody" in log.read_text()


def test_the_oldest_go_but_none_that_something_runs_in(
    built: VirtualEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "KEPT", 2)
    pythons = [stand_in(built, name) for name in ("oldest", "older", "newest")]
    for age, python in enumerate(reversed(pythons)):
        os.utime(python.parents[1] / "complete", (time.time() - 100 * age, time.time() - 100 * age))
    running = subprocess.Popen([pythons[0], "-c", "import time; time.sleep(60)"])
    try:
        built.build(asked("newest"), None, quiet)
        assert [python.exists() for python in pythons] == [True, True, True], "one runs, two are kept"
        stand_in(built, "another")
        built.build(asked("another"), None, quiet)
        assert [python.exists() for python in pythons] == [True, False, True]
    finally:
        running.kill()
        running.wait()
    built.build(asked("another"), None, quiet)
    assert [python.exists() for python in pythons] == [False, False, True]


@pytest.mark.parametrize(
    ("python", "note"),
    [("3.7", "cannot run the scorer"), ("2.7", "cannot"), ("3.99", "is not on this machine")],
)
def test_a_python_that_cannot_be_had_is_said(
    built: VirtualEnvironments, monkeypatch: pytest.MonkeyPatch, python: str, note: str
) -> None:
    used: list[str] = []

    def run(command: list[str], *_: object) -> None:
        used.append(command[0])
        if "venv" in command:
            Path(command[-1]).mkdir()

    monkeypatch.setattr(environments, "_run", run)
    document = {"conda_file": {"dependencies": [f"python={python}"]}}
    built.build(document, None, quiet)
    log = built.python(document, None).parents[1].with_suffix(".log").read_text()
    assert f"note: Python {python} {note}" in log and f"{used[0]} is used instead" in log
