"""`GET /metrics`: what was counted, and how things stand at this moment, in Prometheus' text format."""

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Response

from core.version import VERSION
from functions.gateway.comparison_page import comparison_families
from functions.gateway.control import OnlineFigures
from functions.gateway.exposition import CONTENT_TYPE, Family, Kind, Sample, render
from functions.gateway.gateway import Gateway
from functions.gateway.metrics import MAX_MODELS

_LINES_AT_ONCE = 200  # then the calls have their turn
_PROCESS = Path("/proc/self")


def add_metrics(app: FastAPI, gateway: Gateway) -> None:
    """Serve the page. Without a key: nothing on it is a secret, and a proxy in front can close it."""
    started_s = time.time()

    @app.get(
        "/metrics",
        tags=["service"],
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"description": "Text format 0.0.4", "content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        lines: list[str] = []
        online = _online(await gateway.control.online_figures())
        for families in (gateway.metrics.families(), _state(gateway), online, _process(started_s)):
            for line in render(families):
                lines.append(line)
                if not len(lines) % _LINES_AT_ONCE:
                    await asyncio.sleep(0)
        return Response("".join(lines), headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})


# Of online deployments' instances: name, kind, meaning, field of `OnlineFigures`.
_USE: Final[tuple[tuple[str, Kind, str, str], ...]] = (
    ("cpu_utilization_percent", "gauge", "CPU that an instance uses", "cpu_percent"),
    ("memory_utilization_percent", "gauge", "Memory that an instance uses", "memory_percent"),
    ("disk_utilization_percent", "gauge", "Use of the instances' disk", "disk_percent"),
    ("gpu_utilization_percent", "gauge", "How busy the instances' GPUs are", "gpu_percent"),
    (
        "gpu_memory_utilization_percent",
        "gauge",
        "Memory of their GPUs that instances have",
        "gpu_memory_percent",
    ),
    ("gpu_energy_joules_total", "counter", "Energy of the instances' GPUs", "gpu_energy_j"),
)


def _online(figures: Sequence[OnlineFigures]) -> Iterable[Family]:
    labels = [(("endpoint", each.endpoint), ("deployment", each.deployment)) for each in figures]
    for name, kind, text, field in _USE:
        values = [getattr(each, field) for each in figures]
        samples = [("", of, value) for of, value in zip(labels, values, strict=True) if value is not None]
        yield Family(f"farebox_online_{name}", kind, text, samples)
    yield Family(
        "farebox_online_instances",
        "gauge",
        "Instances of online deployments",
        [
            ("", (*of, ("state", state)), count)
            for of, each in zip(labels, figures, strict=True)
            for state, count in sorted(each.instances.items())
        ],
    )


def _collected(gateway: Gateway) -> Iterable[Family]:
    for name, text, figures in (
        ("collected", "Payloads that data collectors kept", gateway.collector.kept),
        ("collected_left_out", "Payloads that could not be kept", gateway.collector.left_out),
    ):
        samples: list[Sample] = [
            ("", (("endpoint", endpoint), ("deployment", deployment)), count)
            for (endpoint, deployment), count in list(figures.items())
        ]
        yield Family(f"farebox_gateway_{name}_total", "counter", text, samples)


def _state(gateway: Gateway) -> Iterable[Family]:
    yield _gauge("in_flight", "Calls being served", gateway.in_flight)
    yield _gauge("free_calls_in_flight", "Calls that cost nothing being served", gateway.free_calls)
    yield _gauge("connections", "Connections of callers", gateway.connections)
    made: list[Sample] = [("", (), gateway.connections_made)]
    yield Family("farebox_gateway_connections_total", "counter", "Connections that callers made", made)
    yield Family(
        "farebox_gateway_waiting",
        "gauge",
        "Callers who wait for a deployment: to start, or for a place",
        [("", (("deployment", name),), count) for name, count in gateway.places.waiting().items()],
    )
    yield from _servers(gateway)
    yield from comparison_families(gateway.mirrors.comparisons())
    yield from gateway.traffic.families()
    yield from _collected(gateway)
    yield _gauge("held_pico_dollars", "Money reserved under budgets", gateway.limits.held_pico())
    events, size = gateway.journal.depth()
    yield _gauge("journal_events", "Usage events that wait to be durable", events)
    yield _gauge("journal_bytes", "Bytes of the journal on disk", size)
    yield _gauge(
        "journal_bytes_limit", "With more of them no call is taken", gateway.settings.journal_max_bytes
    )
    busy, idle = gateway.upstream.pool.sizes()
    yield Family(
        "farebox_gateway_upstream_connections",
        "gauge",
        "Connections to model servers",
        [("", (("state", "busy"),), busy), ("", (("state", "idle"),), idle)],
    )
    yield _gauge("draining", "1 while no new calls are taken", int(gateway.draining))
    yield Family(
        "farebox_gateway_info", "gauge", "Always 1; tells the version", [("", (("version", VERSION),), 1)]
    )


def _servers(gateway: Gateway) -> Iterable[Family]:
    """Of deployments that were called, as many as models have series."""
    known = gateway.places.servers()[:MAX_MODELS]
    counts = [(name, servers.counts()) for name, servers in known]
    yield Family(
        "farebox_gateway_replicas",
        "gauge",
        "Model servers that calls are sent to, and ejected ones",
        [
            ("", (("deployment", name), ("state", state)), count)
            for name, pair in counts
            for state, count in zip(("open", "ejected"), pair, strict=True)
        ],
    )
    yield Family(
        "farebox_gateway_ejections_total",
        "counter",
        "Times that a model server was left alone for failing",
        [("", (("deployment", name),), servers.ejected_total) for name, servers in known],
    )
    yield Family(
        "farebox_gateway_places_taken",
        "gauge",
        "Calls that hold a place on a model server",
        [("", (("deployment", name),), servers.in_flight) for name, servers in known],
    )


def _gauge(name: str, text: str, value: int) -> Family:
    return Family(f"farebox_gateway_{name}", "gauge", text, [("", (), value)])


def _process(started_s: float) -> Iterable[Family]:
    """The usual figures under their usual names; what the system does not tell is left out."""
    times = os.times()
    yield _of_process("cpu_seconds_total", "counter", "CPU time", [times.user + times.system])
    yield _of_process("start_time_seconds", "gauge", "Start, in seconds since 1970", [started_s])
    yield _of_process("resident_memory_bytes", "gauge", "Memory in use", _resident())
    yield _of_process("open_fds", "gauge", "Open files and connections", _open_files())


def _of_process(name: str, kind: str, text: str, values: Iterable[float]) -> Family:
    samples: list[Sample] = [("", (), value) for value in values]
    return Family(f"process_{name}", "counter" if kind == "counter" else "gauge", text, samples)


def _resident() -> list[int]:
    try:
        return [int((_PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")]
    except (OSError, ValueError):
        return []


def _open_files() -> list[int]:
    try:
        return [len(os.listdir(_PROCESS / "fd"))]
    except OSError:
        return []
