"""Modules compiled at set-up, found before their sources when they were built from exactly these.

What was built lies in a folder named by a fingerprint of the sources, the Python and the compiler. Change a source and
the folder is another one: nothing stale is ever run, the source is. `FAREBOX_COMPILED=0` turns it off.
"""

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
GROUP = "farebox_compiled"  # the shared library that the modules' own files lead to
SETTING = "FAREBOX_COMPILED"
_SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
_SHARED = f"{GROUP}__mypyc"


def source_of(module: str) -> Path:
    """A module's source."""
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def folder_of(modules: Sequence[str]) -> Path:
    """Where what is built from these modules' sources as they are now lies, or would lie."""
    digest = hashlib.sha256(f"{_SUFFIX} {sys.version} {_compiler_version()}".encode())
    for module in sorted(modules):
        digest.update(module.encode())
        digest.update(source_of(module).read_bytes())
    return home() / digest.hexdigest()[:24]


def home() -> Path:
    """Where all that is built lies: in the environment that it was built for."""
    return Path(sys.prefix) / "lib" / "farebox-compiled"


def file_of(folder: Path, module: str) -> Path:
    """A module's own file in the folder."""
    return folder.joinpath(*module.split(".")).with_name(module.rpartition(".")[2] + _SUFFIX)


def use(modules: Sequence[str]) -> bool:
    """From now on import these modules compiled; False: they are not built, or not wanted. Call it first of all."""
    if os.environ.get(SETTING, "1") == "0":
        return False
    try:
        folder = folder_of(modules)
    except OSError:  # without sources there is nothing that could be stale, but nothing to tell it by either
        return False
    if not (folder / "complete").exists():
        return False
    files = {module: file_of(folder, module) for module in modules}
    files[_SHARED] = file_of(folder, _SHARED)
    sys.meta_path.insert(0, _Finder(files))
    return True


class _Finder:
    """Of `sys.meta_path`."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As importlib asks."""
        file = self._files.get(name)
        return None if file is None else importlib.util.spec_from_file_location(name, file)


def _compiler_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mypy")
    except PackageNotFoundError:
        return ""
