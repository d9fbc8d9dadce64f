"""Turns a catalog entry into vLLM's command on this machine: engine, model, memory."""

import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog import sample
from catalog.model import ModelSpec
from core.errors import Unavailable
from core.settings import Settings
from serving.engines import install, memory, vllm
from serving.engines.pip_run import EngineInstallError
from serving.fine_tunes import RANKS, adapters_of, usable
from serving.launch import Launch

_GIB = 1024**3
_HOST = "127.0.0.1"
_LENGTH_ARGUMENT = "--max-model-len"
_GENERATING = ("chat", "completion")
_MAX_LORAS = 8
_MAX_CPU_CACHE_GIB = 4  # for keys and values; vLLM then fits the context into it


@dataclass(frozen=True, slots=True)
class _Need:
    """What one server takes; zeros where the catalog does not say enough to tell."""

    model_id: str
    kind: str
    needed_bytes: int
    gpus: int


class VllmLauncher:
    """The runtime's launcher on a real machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, spec: ModelSpec, port: int, fine_tunes: Sequence[ModelSpec] = ()) -> Launch:
        """The command of one server. Unavailable when the engine is missing; Invalid arguments are said too."""
        kind = _machine_kind() if spec.engine.kind == "vllm" else spec.engine.kind
        try:
            python = install.python_of(kind, self._settings.engines_path)
        except EngineInstallError as error:
            raise Unavailable(str(error), code="engine_not_installed") from error
        model = self._model(spec)
        cache_gib = _cache_gib(spec)
        ranks = usable(fine_tunes, warn=True)
        try:
            argv = vllm.serve_command(
                python,
                model,
                spec.id,
                _HOST,
                port,
                (*_lora_arguments(spec, ranks), *_arguments(spec)),
                "cuda" if kind == "vllm" else "cpu",
            )
        except ValueError as error:
            raise Unavailable(f"{spec.id} cannot be started: {error}") from error
        env = vllm.serve_env(
            kind,
            self._settings.home,
            model_path=model,
            kv_cache_gib=cache_gib,
            hub_token=os.environ.get("HF_TOKEN"),
        )
        need = _need(spec, kind, cache_gib)
        return Launch(
            argv=tuple(argv),
            env=env,
            fine_tunes=adapters_of(ranks),
            needed_bytes=need.needed_bytes,
            prepare=functools.partial(self._prepare, spec, python),
            refusal=functools.partial(_refusal, need),
        )

    def _model(self, spec: ModelSpec) -> Path | str:
        source = spec.source
        if source is not None and source.builtin:
            return sample.sample_model_dir(self._settings.models_path)
        if source is None or not source.repository:
            raise Unavailable(
                f"the catalog does not say where the weights of {spec.id} are (source.repository)"
            )
        return source.repository

    def _prepare(self, spec: ModelSpec, python: Path, report: Callable[[str], None]) -> None:
        """Build the sample model unless it is built."""
        if spec.source is None or not spec.source.builtin or sample.is_built(self._settings.models_path):
            return

        def progress(step: str, done: int, total: int) -> None:
            report(f"building the sample model: {step} {done}/{total}")

        progress("tokenizer", 0, 1)
        try:
            sample.build(python, self._settings.models_path, progress)
        except sample.SampleBuildError as error:
            raise Unavailable(str(error), code="model_not_built") from error


def _lora_arguments(spec: ModelSpec, ranks: Mapping[ModelSpec, int]) -> list[str]:
    """https://docs.vllm.ai/en/latest/features/lora.html. ValueError: the base's own arguments would replace them."""
    if not ranks:
        return []
    if any(each.split("=", 1)[0].replace("_", "-") == "--lora-modules" for each in spec.engine.args):
        raise ValueError(
            "engine.args: --lora-modules would replace the fine-tunes that the catalog has of it; make each a model with "
            "adapter: {base, path}"
        )
    modules = [
        json.dumps({"name": each.id, "path": each.adapter.path, "base_model_name": spec.id})
        for each in ranks
        if each.adapter is not None
    ]
    largest = next(rank for rank in RANKS if rank >= max(ranks.values()))
    batched = min(len(ranks), _MAX_LORAS)  # different ones in one batch; each takes memory
    return [
        "--enable-lora", "--max-lora-rank", str(largest), "--max-loras", str(batched),
        "--max-cpu-loras", str(max(batched, len(ranks))), "--lora-modules", *modules,
    ]  # fmt: skip


@functools.cache
def _machine_kind() -> str:
    # A GPU does not come or go while we run, and asking takes a process.
    return install.detect_kind()


def _arguments(spec: ModelSpec) -> tuple[str, ...]:
    arguments: list[str] = []
    if spec.source is not None and spec.source.repository and spec.source.revision not in ("", "main"):
        arguments += ["--revision", spec.source.revision]
    stated = any(
        argument.split("=")[0].replace("_", "-") == _LENGTH_ARGUMENT for argument in spec.engine.args
    )
    if spec.task in _GENERATING and not stated:
        # As long as fits: else a long context that nobody uses keeps a model from starting at all.
        arguments += [_LENGTH_ARGUMENT, "auto"]
    return (*arguments, *spec.engine.args)


def _cache_gib(spec: ModelSpec) -> int:
    """Memory for keys and values on a CPU: room for one call of full length, within reason."""
    if not spec.parameters or spec.task not in _GENERATING:
        return 1
    one_call = spec.context_length * memory.kv_bytes_per_token(spec.parameters)
    return min(max(1, math.ceil(one_call / _GIB)), _MAX_CPU_CACHE_GIB)


def _need(spec: ModelSpec, kind: str, cache_gib: int) -> _Need:
    gpus = max(1, spec.requirements.gpu_count) if kind == "vllm" else 0
    try:
        if kind == "vllm" and spec.requirements.gpu_memory_gib:
            needed = round(spec.requirements.gpu_memory_gib * _GIB) * gpus
        elif spec.parameters:
            cache = cache_gib * _GIB if kind == "vllm-cpu" else None
            precision = spec.precision or "bfloat16"
            needed = memory.needed_bytes(spec.parameters, precision, kind, spec.context_length, cache)
        else:
            needed = 0
    except ValueError:  # a precision that only the engine knows: it will tell
        needed = 0
    return _Need(spec.id, kind, needed, gpus)


def _refusal(need: _Need, reserved_bytes: int) -> str:
    found = 0
    try:
        if need.kind == "vllm":
            free = sorted(memory.gpu_free_bytes(), reverse=True)
            found, available = len(free), sum(free[: need.gpus])
        else:
            available = memory.available_bytes()
    except (OSError, ValueError):  # a system that does not tell: the engine will
        return ""
    available = max(0, available - reserved_bytes)
    why = memory.explain_refusal(
        need.model_id, need.kind, need.needed_bytes, available, gpus_wanted=need.gpus, gpus_found=found
    )
    return why or ""
