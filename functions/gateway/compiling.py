"""Compiling the gateway's hot modules with mypyc: `python -m functions.gateway.compiling`, which set-up does.

Exit status 0: built, or built before; 3: not possible here (no C compiler, no mypyc): the sources are run as they are.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from core import compiled

# What a warm call runs through. Without dataclasses with slots and msgspec's structs, which mypyc cannot compile, and
# without what tests put something else in the place of.
MODULES = (
    "access.admission.book",
    "access.admission.memory",
    "access.admission.purse",
    "access.admission.scope",
    "access.admission.values",
    "access.principal",
    "core.clock",
    "core.ids",
    "core.money",
    "functions.gateway.activity",
    "functions.gateway.balancing",
    "functions.gateway.deadlines",
    "functions.gateway.estimate",
    "functions.gateway.fair_queue",
    "functions.gateway.fast_call",
    "functions.gateway.fast_lane",
    "functions.gateway.figures",
    "functions.gateway.gateway",
    "functions.gateway.hot",
    "functions.gateway.limiter",
    "functions.gateway.lookups",
    "functions.gateway.metrics",
    "functions.gateway.places",
    "functions.gateway.pool",
    "functions.gateway.reading",
    "functions.gateway.record",
    "functions.gateway.dialect_record",
    "functions.gateway.scoring_record",
    "functions.gateway.retrying",
    "functions.gateway.traffic",
    "functions.gateway.upstream",
    "functions.gateway.upstream_protocol",
    "functions.gateway.fast_protocol",
    "metering.frames",
    "metering.journal",
    "serving.route",
    "wire.cloudevents",
    "wire.openai",
    "wire.openai_stream",
    "wire.requests",
    "wire.sse",
)
NOT_POSSIBLE = 3
_KEPT = 2  # what was built before, for a switch back


def main() -> int:
    """Build unless it is built already."""
    folder = compiled.folder_of(MODULES)
    if (folder / "complete").exists():
        return 0
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")) or not _has_mypyc():
        print("the gateway runs uncompiled: a C compiler and mypyc are needed for more")  # noqa: T201
        return NOT_POSSIBLE
    print("Compiling the gateway's hot modules (about a minute)")  # noqa: T201
    compiled.home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=compiled.home(), prefix="building-") as building:
        if not _build(Path(building)):
            return NOT_POSSIBLE
        (Path(building) / "complete").touch()
        try:
            os.rename(building, folder)
        except OSError:  # somebody else was faster
            return 0 if (folder / "complete").exists() else NOT_POSSIBLE
        os.mkdir(building)  # for the context manager to remove
    _forget_old(folder)
    return 0


def _has_mypyc() -> bool:
    try:
        import mypyc.build  # noqa: F401
    except ImportError:
        return False
    return True


def _build(folder: Path) -> bool:
    """Compile into the folder, in a process of its own: setuptools looks at the command line and the working folder."""
    command = [sys.executable, "-c", _BUILD, str(folder), *MODULES]
    flags = f"{os.environ.get('CFLAGS', '')} -g0"  # to describe it for debuggers takes a quarter of the time
    environment = {**os.environ, "PYTHONPATH": str(compiled.ROOT), "CFLAGS": flags}
    done = subprocess.run(
        command, cwd=compiled.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"the gateway runs uncompiled: {done.stdout[-2000:]}{done.stderr[-2000:]}")  # noqa: T201
    return done.returncode == 0


_BUILD = """
import sys
from pathlib import Path
from mypyc.build import mypycify
from setuptools import Distribution
from core import compiled

folder, modules = Path(sys.argv[1]), sys.argv[2:]
paths = [str(compiled.source_of(module).relative_to(compiled.ROOT)) for module in modules]
work = folder / "work"
extensions = mypycify(
    ["--config-file", "pyproject.toml", "--cache-dir", str(work / "mypy"), *paths],
    opt_level="3", group_name=compiled.GROUP, target_dir=str(work / "c"), strip_asserts=False,
)
distribution = Distribution({"ext_modules": extensions, "name": compiled.GROUP})
command = distribution.get_command_obj("build_ext")
command.build_lib, command.build_temp = str(folder), str(work / "o")
distribution.run_command("build_ext")
import shutil
shutil.rmtree(work)
"""


def _forget_old(newest: Path) -> None:
    others = [
        each for each in compiled.home().iterdir() if each != newest and not each.name.startswith("building-")
    ]
    others.sort(key=lambda each: each.stat().st_mtime, reverse=True)
    for old in others[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
