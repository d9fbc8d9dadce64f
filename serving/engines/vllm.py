"""How a vLLM server is started: its command line and its environment. Pure; written for vLLM 0.32."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

Accelerator = Literal["cuda", "cpu"]

SHUTDOWN_SECONDS = 20  # that vLLM lets calls in flight finish after SIGTERM; its own default is to abort them
_INHERITED = (
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
)
_PROXIES = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HF_ENDPOINT",
)  # fmt: skip


def serve_command(
    python: Path | str,
    model_path: Path | str,
    served_model_name: str,
    host: str,
    port: int,
    args: Sequence[str] = (),
    accelerator: Accelerator = "cpu",
) -> list[str]:
    """The command of one server.

    `model_path` is a local directory, or a repository name to be fetched from the model hub. `args` are the
    catalog entry's own engine arguments; they come last, so they win, except that no argument can move the
    server off `host` and `port`.

    Raises ValueError for a host that other machines can reach (the server has no keys: only the gateway may
    call it) and for an argument that the platform sets itself.
    """
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError(f"host: expected a loopback address, got {host!r}")
    for argument in args:
        name = argument.split("=", 1)[0].replace("_", "-")
        if name in _OURS:
            raise ValueError(f"engine argument {name}: the platform sets it itself")
    # Not the `vllm` script: in the CPU build it looks for package metadata by the name `vllm`, and fails.
    command = [str(python), "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model_path), "--served-model-name", served_model_name]
    command += ["--host", host, "--port", str(port)]
    command += [
        "--enable-prompt-tokens-details"
    ]  # without it cached tokens are not reported, and not billed as such
    command += ["--disable-uvicorn-access-log", "--no-enable-log-requests"]
    command += ["--shutdown-timeout", str(SHUTDOWN_SECONDS)]
    if accelerator == "cpu":
        # Eager: torch.compile would cost a minute at each first start, for little on a CPU.
        command += ["--dtype", "bfloat16", "--enforce-eager", "--distributed-executor-backend", "uni"]
    return command + list(args)


_OURS = frozenset(
    {"--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--enable-log-requests",
     "--enable-log-outputs", "--no-enable-prompt-tokens-details", "--no-disable-uvicorn-access-log",
     "--root-path"}
)  # fmt: skip


def serve_env(
    kind: str,
    home: Path | str,
    *,
    model_path: Path | str | None = None,
    kv_cache_gib: int = 1,
    cores: int | None = None,
    hub_token: str | None = None,
    parent: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The whole environment of one server of engine `kind`; nothing else is inherited, so no secret of the
    platform's can leak into it.

    `home` is the platform's home, below which all caches lie. With a `model_path` that is a local directory
    the server is told to stay off the network. `kv_cache_gib` is the memory for keys and values on a CPU, in
    GiB. `cores` is the number of processors (default: those this process may use). `hub_token` is the model
    hub's, for gated models. `parent` stands for this process's environment in tests.
    """
    parent = os.environ if parent is None else parent
    caches = Path(home) / "cache"
    env = {name: parent[name] for name in _INHERITED if name in parent}
    env |= {
        "PATH": parent.get("PATH", os.defpath), "HOME": str(caches), "PYTHONUNBUFFERED": "1",
        "VLLM_CACHE_ROOT": str(caches / "vllm"), "HF_HOME": str(caches / "huggingface"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"), "TRITON_CACHE_DIR": str(caches / "triton"),
        "VLLM_CONFIG_ROOT": str(caches / "vllm-config"),
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_HOST_IP": "127.0.0.1",  # its processes talk to each other here, not on a public address
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    if model_path is not None and Path(model_path).is_dir():
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    else:
        env |= {name: parent[name] for name in _PROXIES if name in parent}
        env |= {"HF_TOKEN": hub_token} if hub_token else {}
    return env | (_cpu_env(kv_cache_gib, cores) if kind == "vllm-cpu" else {})


def _cpu_env(kv_cache_gib: int, cores: int | None) -> dict[str, str]:
    usable = cores if cores is not None else len(os.sched_getaffinity(0))
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        # vLLM would pin each server to fixed cores: two servers on one machine would share the first ones and
        # leave the others idle. One core is left to the server's own HTTP side and to the gateway.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, usable - 1)),
        # Lets `--distributed-executor-backend uni` stand: one process fewer, so 10 s less to start and 0.7 GB
        # less. The threads are set above, which is all that vLLM wants the other process for.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
