"""What the gateway adds to a call: the same closed loop straight to a scripted model server and through the platform.

The load generator and the model server are Python and share the machine with the gateway, so only differences and
the gateway's own CPU time mean something here, not the rates.
"""

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests import platform as platforms
from tests.mock_engine import MockEngine

CONCURRENCY = 16
BODY = {"model": "my-chat", "messages": [{"role": "user", "content": "word " * 200}], "max_tokens": 4}


def measure_calls(folder: Path, seconds: int) -> dict[str, Any]:
    """Median latencies in milliseconds, one caller; gateway CPU per call in microseconds, `CONCURRENCY` callers."""
    with MockEngine() as engine, platforms.running(folder / "calls") as platform:
        with platform.client() as client:
            client.models.add(platforms.external_model(engine.url))
            client.organizations.create("bench")
            client.projects.create("bench", organization="bench")
            client.serverless_endpoints.create("my-chat", model="acme/mock-chat")
            key = client.keys.create(project="bench", name="bench")["key"]
        gateway = next(p for p in platform.children() if "functions.gateway.main" in " ".join(p.cmdline()))
        direct = asyncio.run(_load(engine.url, "", 1, seconds))
        through = asyncio.run(_load(platform.url, key, 1, seconds))
        before = _cpu_us(gateway)
        loaded = asyncio.run(_load(platform.url, key, CONCURRENCY, seconds))
        cpu_us = (_cpu_us(gateway) - before) / len(loaded)
    return {
        "plain_call_direct_ms_p50": round(statistics.median(direct), 3),
        "plain_call_through_gateway_ms_p50": round(statistics.median(through), 3),
        "gateway_cpu_us_per_plain_call": round(cpu_us),
        "calls_measured": len(loaded),
    }


def _cpu_us(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system) * 1e6


async def _load(base: str, key: str, callers: int, seconds: int) -> list[float]:
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = json.dumps(BODY).encode()

    async def call_until_the_end(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < end:
            began = time.perf_counter()
            async with session.post(f"{base}/v1/chat/completions", data=body, headers=headers) as answer:
                await answer.read()
                assert answer.status == 200, answer.status
            latencies.append((time.perf_counter() - began) * 1000)

    connector = aiohttp.TCPConnector(limit=callers)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(call_until_the_end(session) for _ in range(callers)))
    return latencies[len(latencies) // 20 :]  # without the first calls, which warm caches and connections
