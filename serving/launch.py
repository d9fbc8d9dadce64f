"""How a deployment's server is started: values that a launcher makes and the runtime carries out."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from catalog.model import ModelSpec

_IDENTIFYING_ENV = ("VLLM_", "CUDA_", "HF_", "TRANSFORMERS_")


def _nothing_to_prepare(_report: Callable[[str], None]) -> None:
    return None


def _always_fits(_reserved_bytes: int) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Launch:
    """One server's command. The callables run in a thread and may take their time."""

    argv: tuple[str, ...]
    env: Mapping[str, str]  # the whole environment
    cwd: Path | None = None
    health_path: str = "/health"
    fine_tunes: frozenset[tuple[str, str]] = frozenset()  # id and folder of each adapter that it loads
    low_priority: bool = False  # others' processes get the CPU first
    needed_bytes: int = 0  # of the memory it will take, so that two starts at once do not both count on it
    prepare: Callable[[Callable[[str], None]], None] = _nothing_to_prepare
    """Make what must exist before the start, e.g. build a model; tells its phase to the callable given."""
    refusal: Callable[[int], str] = _always_fits
    """Why this machine cannot hold the server now, else ""; given the bytes that other starts reserved."""

    @property
    def spec_hash(self) -> str:
        """Equal for equal commands: tells whether a server found running is still the one wanted."""
        chosen = {k: v for k, v in self.env.items() if k.startswith(_IDENTIFYING_ENV)}
        text = json.dumps([self.argv, str(self.cwd or ""), sorted(chosen.items())])
        return hashlib.sha256(text.encode()).hexdigest()


class Launcher(Protocol):
    """Turns a catalog entry into a command.

    Raises FareboxError with a message for people when it cannot be started at all: no engine, say.
    Must be quick and without side effects: it is also asked what a server found running should have been.
    """

    def __call__(self, spec: ModelSpec, port: int, fine_tunes: Sequence[ModelSpec] = ()) -> Launch: ...
