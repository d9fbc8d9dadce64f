"""The data collector: which payloads are kept, where, in which lines, and that no call feels it."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.gateway.collector import MAX_INLINE_BYTES, MAX_QUEUED_BYTES, Collector, Payload
from serving.online.collecting import Collecting
from tests.api.gateway.test_gateway_scoring import deployment, score, serve
from tests.gateway_fixture import ENDPOINT, PROJECT_KEY, RunningGateway
from tests.mock_engine import MockEngine, wait_until
from tests.mock_scorer import MockScorer

BOTH = Collecting(True, True)


@pytest.fixture
def blue() -> Iterator[MockScorer]:
    with MockScorer("blue") as scorer:
        yield scorer


def lines(folder: Path, collection: str = "*") -> list[dict[str, Any]]:
    files = folder.rglob(f"{collection}/**/*.jsonl")
    return [json.loads(line) for file in sorted(files) for line in file.read_text().splitlines()]


def kept(gateway: RunningGateway, count: int) -> list[dict[str, Any]]:
    folder = gateway.settings.collected_path
    wait_until(lambda: len(lines(folder)) >= count)
    return lines(folder)


def test_requests_and_answers_are_kept_as_cloudevents(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue", collecting=BOTH), traffic="blue=100")
    answer = score(gateway, b'{"data": [1, 2]}', x_client_request_id="mine")
    request, response = sorted(kept(gateway, 2), key=lambda each: each["type"])
    for each in (request, response):
        assert each["specversion"] == "1.0" and each["time"].endswith("Z")
        assert each["source"] == f"/endpoints/{ENDPOINT}/deployments/blue"
        assert each["xrequestid"] == answer.headers["x-request-id"]
        assert each["correlationid"] == "mine"
        assert each["datacontenttype"] == "application/json"
    assert (request["type"], response["type"]) == (
        "ai.farebox.inference.request",
        "ai.farebox.inference.response",
    )
    assert (request["data"], response["data"]) == ({"data": [1, 2]}, {"from": "blue"})
    assert request["contentrange"] == "bytes 0-15/16"
    assert request["id"] != response["id"]
    hour = time.strftime("%Y/%m/%d/%H", time.gmtime())
    folder = gateway.settings.collected_path
    [file] = folder.rglob("request/**/*.jsonl")
    assert str(file.relative_to(folder)) == f"{ENDPOINT}/blue/request/{hour}/gateway.jsonl"
    assert file.stat().st_mode & 0o077 == 0, "nobody else reads it"
    assert PROJECT_KEY not in file.read_text()
    page = httpx.get(gateway.url + "/metrics").text
    assert f'farebox_gateway_collected_total{{endpoint="{ENDPOINT}",deployment="blue"}} 2' in page


def test_an_answer_of_the_model_that_failed_is_kept_too(gateway: RunningGateway, blue: MockScorer) -> None:
    blue.status = 500
    serve(gateway, deployment(blue, "blue", collecting=Collecting(False, True)), traffic="blue=100")
    assert score(gateway).status_code == 424
    [only] = kept(gateway, 1)
    assert only["type"].endswith(".response")


def test_without_a_data_collector_nothing_is_written(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    assert score(gateway).status_code == 200
    serve(gateway, deployment(blue, "blue", collecting=Collecting(True, True, 0.0)), traffic="blue=100")
    assert score(gateway).status_code == 200
    time.sleep(0.2)
    assert not gateway.settings.collected_path.exists()


def test_a_full_folder_costs_no_call(tmp_path: Path, engine: MockEngine, blue: MockScorer) -> None:
    with RunningGateway(tmp_path, engine.url, collected_max_bytes=100) as gateway:
        serve(gateway, deployment(blue, "blue", collecting=BOTH), traffic="blue=100")
        for _ in range(3):
            assert score(gateway, b'{"data": "%s"}' % (b"x" * 200)).status_code == 200
        text = f'farebox_gateway_collected_left_out_total{{endpoint="{ENDPOINT}",deployment="blue"}}'
        wait_until(lambda: text in httpx.get(gateway.url + "/metrics").text)
        assert not lines(gateway.settings.collected_path, "request")


def payload(body: bytes, kind: str = "application/json", **changes: Any) -> Payload:
    values: dict[str, Any] = {
        "endpoint": "shop",
        "deployment": "blue",
        "collection": "request",
        "rolling": "hour",
        "at_ms": 1_760_000_000_000,
        "request_id": "req_1",
        "client_request_id": "",
        "content_type": kind,
        "body": body,
    }
    return Payload(**(values | changes))


def test_what_is_no_json_or_too_large_is_a_file_of_its_own(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "c", "gateway-1", 10**9)
    large = b'"%s"' % (b"x" * MAX_INLINE_BYTES)
    for body, kind in (
        (b"\x89PNG\x00", "image/png"),
        (b"{broken", "application/json"),
        (large, "application/json"),
    ):
        collector.offer(payload(body, kind))
    collector.close()
    found = lines(tmp_path / "c")
    assert [each["datainblob"] for each in found] == ["true"] * 3
    assert [(tmp_path / "c" / each["data"]).read_bytes() for each in found] == [
        b"\x89PNG\x00",
        b"{broken",
        large,
    ]
    assert found[0]["correlationid"] == "req_1"


@pytest.mark.parametrize(
    ("rolling", "folder"),
    [("minute", "2025/10/09/08/53"), ("day", "2025/10/09"), ("month", "2025/10"), ("year", "2025")],
)
def test_how_long_a_file_goes_on(tmp_path: Path, rolling: str, folder: str) -> None:
    collector = Collector(tmp_path, "gateway-1", 10**9)
    collector.offer(payload(b"1", rolling=rolling))
    collector.close()
    assert (tmp_path / "shop/blue/request" / folder / "gateway-1.jsonl").exists()


def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector(tmp_path, "gateway-1", 10**9)
    monkeypatch.setattr(Collector, "_write", lambda *_: time.sleep(0.3))
    body = bytes(MAX_QUEUED_BYTES // 4)
    for _ in range(8):
        collector.offer(payload(body, "image/png"))
    assert collector.left_out[("shop", "blue")] >= 3
    collector.close()
    collector.offer(payload(b"1"))
    assert sum(collector.left_out.values()) + sum(collector.kept.values()) == 9


def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector(tmp_path, "gateway-1", 10**9)
    whole = os.write
    monkeypatch.setattr(os, "write", lambda file, data: whole(file, data[:40]))
    collector.offer(payload(b"1"))
    wait_until(lambda: bool(collector.left_out))
    monkeypatch.undo()
    collector.offer(payload(b"2"))
    collector.close()
    assert [each["data"] for each in lines(tmp_path)] == [2]
    assert (collector.left_out, collector.kept) == ({("shop", "blue"): 1}, {("shop", "blue"): 1})
