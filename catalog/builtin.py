"""The model files that come with Farebox, read into the catalog at start; cheap when none of them changed."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from catalog import store
from catalog.load import parse_model_yaml
from core.errors import Invalid

MODELS_DIRECTORY = Path(__file__).parent / "models"
_READ_WITH = b"1\n"  # raise it when the same file is to be read into another spec


@dataclass(frozen=True, slots=True)
class BuiltinFile:
    """One file of the catalog that comes with Farebox."""

    name: str
    digest: str
    data: bytes


def builtin_files(directory: Path = MODELS_DIRECTORY) -> list[BuiltinFile]:
    """The files in order of name."""
    found = []
    for path in sorted(directory.glob("*.yaml")):
        data = path.read_bytes()
        found.append(BuiltinFile(path.name, hashlib.sha256(_READ_WITH + data).hexdigest(), data))
    return found


def sync_builtin(connection: Connection, files: Iterable[BuiltinFile], now_ms: int) -> int:
    """Bring the catalog up to `files`; returns how many were read.

    What an operator added, changed or removed under the same id stays as the operator left it. A file that is
    gone changes nothing: endpoints may still use its model.
    """
    known = store.builtin_digests(connection)
    changed = [file for file in files if known.get(file.name) != file.digest]
    for file in changed:
        try:
            spec = parse_model_yaml(file.data, fast=True)
        except Invalid as error:
            raise Invalid(f"{file.name}: {error.message}", param=error.param, extra=error.extra) from error
        if store.builtin_may_write(connection, spec.id):
            store.put_model(connection, spec, now_ms, "builtin")
        store.put_builtin_digest(connection, file.name, file.digest)
    return len(changed)
