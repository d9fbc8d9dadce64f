"""What is measured: each is started on its core before the same mock engine, and stopped at the end."""

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import machine, toolchain
from bench.toolchain import BenchError
from serving.processes import free_port

KEY = "sk-bench-0001"
PLAIN, PACED, SLOW = "", "10ms", "1s"
_START_TIMEOUT_S = 90


@dataclass
class Target:
    """Something that answers chat calls. `pid`: the process whose CPU and memory count, 0 for the engine itself."""

    name: str
    address: str
    pid: int = 0
    version: str = ""
    key: str = KEY

    def model(self, delay: str) -> str:
        """The name under which the engine is asked for a chunk per `delay`."""
        return f"mock@{delay}" if delay else "mock"

    def settle(self, served: int) -> None:
        """Called after every run with the calls that the engine served in it."""


@contextlib.contextmanager
def envoy(folder: Path, engine: str, cache: Path) -> Iterator[Target]:
    """Envoy as a plain HTTP proxy with one worker: no filters but the router, no access log, no timeouts."""
    program, port = toolchain.envoy_program(cache), free_port()
    config = folder / "envoy.yaml"
    config.write_text(_ENVOY.format(port=port, engine_port=engine.rpartition(":")[2]))
    quiet = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
    version = machine.first_line_of(str(program), "--version").rpartition("version: ")[2].split("/")
    shown = f"Envoy {version[1] if len(version) > 1 else version[0]}"
    with _process([str(program), "--config-path", str(config), *quiet], port, folder) as pid:
        yield Target("envoy", f"127.0.0.1:{port}", pid, shown)


@contextlib.contextmanager
def nginx(folder: Path, engine: str, program: Path) -> Iterator[Target]:
    """nginx as a plain HTTP proxy with one worker, unbuffered so that it streams."""
    port, config = free_port(), folder / "nginx.conf"
    config.write_text(_NGINX.format(port=port, engine=engine, folder=folder))
    shown = machine.first_line_of(str(program), "-v").rpartition("version: ")[2]
    with _process([str(program), "-c", str(config), "-p", str(folder)], port, folder) as pid:
        yield Target("nginx", f"127.0.0.1:{port}", pid, shown)


@contextlib.contextmanager
def litellm(folder: Path, engine: str, program: Path) -> Iterator[Target]:
    """LiteLLM's proxy with one worker, a master key, no database: so no keys of its own and no spend rows."""
    port, config = free_port(), folder / "litellm.yaml"
    models = "".join(
        _LITELLM_MODEL.format(name=name, engine=engine) for name in ("mock", "mock@10ms", "mock@1s")
    )
    config.write_text(f"model_list:\n{models}general_settings: {{master_key: {KEY}}}\n")
    options = ("--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1")
    python = program.with_name("python")
    asked = "import importlib.metadata as m; print(m.version('litellm'))"
    shown = f"LiteLLM {machine.first_line_of(str(python), '-c', asked)}"
    with _process([str(program), *options], port, folder, path="/health/liveliness") as pid:
        yield Target("litellm", f"127.0.0.1:{port}", pid, shown)


@contextlib.contextmanager
def _process(command: Sequence[str], port: int, folder: Path, path: str = "/v1/models") -> Iterator[int]:
    # Without bytecode a program that imports lazily would compile its sources again and again.
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with open(folder / f"{Path(command[0]).name}.log", "ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environ, preexec_fn=machine.on_core(machine.PROXY_CORE)
        )
    try:
        _await_answer(process, f"http://127.0.0.1:{port}{path}", Path(log.name))
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.1)
    raise BenchError(f"{log.stem} did not start:\n{log.read_text(errors='replace')[-2000:]}")


_ENVOY = """\
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          generate_request_id: false
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route: {{cluster: engine, timeout: 0s, idle_timeout: 0s}}
  clusters:
  - name: engine
    type: STATIC
    circuit_breakers:
      thresholds:
      - {{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}}
    load_assignment:
      cluster_name: engine
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{address: 127.0.0.1, port_value: {engine_port}}}}}
"""

_NGINX = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  keepalive_requests 100000000;
  upstream engine {{ server {engine}; keepalive 1024; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""

_LITELLM_MODEL = """\
- model_name: "{name}"
  litellm_params: {{model: "openai/{name}", api_base: "http://{engine}/v1", api_key: none}}
"""
