"""OpenAI's usage and costs API, with its official client as the judge of shapes, through the gateway's port."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.close import close_and_post
from catalog import price_book
from core.clock import ManualClock
from functions.console.buckets import USAGE_WIDTHS, page_of_buckets
from metering.rollups import DAY_MS
from tests import platform as platforms
from tests.api.console_platform import ConsolePlatform, open_platform
from tests.mock_engine import MockEngine

MODEL = "acme/mock-chat"
PATH = "/v1/organization"
EMBEDDER = """\
id: acme/embedder
task: embedding
engine: {kind: external, url: "http://127.0.0.1:9100"}
prices: {input: "0.01"}
"""


# --- the official client through a whole platform -------------------------------------------------------------------


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[platforms.Platform]:
    with MockEngine() as engine, platforms.running(tmp_path_factory.mktemp("home")) as platform:
        with platform.client() as client:
            client.models.add(platforms.external_model(engine.url))
            client.organizations.create("acme")
            client.projects.create("web", organization="acme")
            client.serverless_endpoints.create("my-chat", model=MODEL, project="web")
        yield platform


def test_the_official_client_reads_usage_and_costs(platform: platforms.Platform) -> None:
    with platform.client() as client:
        made = client.keys.create(project="web", name="laptop")
    today = int(time.time()) // 86_400 * 86_400
    with openai.OpenAI(
        base_url=platform.url + "/v1", api_key=made["key"], admin_api_key=platform.admin_key, max_retries=0
    ) as ai:
        prompt = [{"role": "user", "content": "one two three"}]
        used = [ai.chat.completions.create(model=MODEL, messages=prompt).usage for _ in range(2)]  # type: ignore[arg-type]
        usage = ai.admin.organization.usage
        page = usage.completions(
            start_time=today - 86_400, group_by=["model", "api_key_id"], api_key_ids=[made["id"]]
        )
        first = usage.completions(start_time=today - 86_400, limit=1)
        assert first.has_more and first.next_page
        assert usage.completions(start_time=today - 86_400, page=first.next_page).data[0].start_time == today
        (result,) = page.data[-1].results
        assert result.object == "organization.usage.completions.result"
        assert (result.model, result.api_key_id, result.project_id) == (MODEL, made["id"], None)
        assert result.num_model_requests == 2
        assert result.input_tokens == sum(one.prompt_tokens for one in used if one)
        assert result.output_tokens == sum(one.completion_tokens for one in used if one)
        for other in (
            "images",
            "moderations",
            "vector_stores",
            "audio_speeches",
            "code_interpreter_sessions",
        ):
            empty = getattr(usage, other)(start_time=today)
            assert [bucket.results for bucket in empty.data] == [[]]
        assert usage.embeddings(start_time=today).data[0].results == []
        costs = usage.costs(start_time=today, group_by=["line_item", "project_id"])
        assert costs.data[0].object == "bucket"
        with pytest.raises(openai.BadRequestError) as refused:
            usage.costs(start_time=today, limit=181)
        assert (refused.value.param, refused.value.code) == ("limit", "bad_request")
        with pytest.raises(openai.AuthenticationError):
            ai.with_options(admin_api_key="sk-nobody").admin.organization.usage.costs(start_time=today)


def test_a_refusal_of_the_gateway_itself_has_openais_shape(platform: platforms.Platform) -> None:
    answer = httpx.get(f"{platform.url}{PATH}/%2e%2e/costs", headers={"authorization": "Bearer x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_path"


# --- figures, on a console with a clock that is moved by hand ------------------------------------------------------


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    return open_platform(tmp_path)


class Books:
    """Two projects with calls on two days."""

    def __init__(self, console: ConsolePlatform) -> None:
        self.console = console
        console.project()
        console.post("/api/projects", name="mobile", organization="acme")
        console.add_model()
        console.add_model(EMBEDDER)
        new = console.post
        self.chat = new("/api/serverless-endpoints", name="chat", model=MODEL, project="web")
        self.embed = new("/api/serverless-endpoints", name="embed", model="acme/embedder", project="mobile")
        self.web_key = new("/api/keys", project="web", name="a")
        self.mobile_key = new("/api/keys", project="mobile", name="b")
        self.day_ms = console.clock.now_ms() // DAY_MS * DAY_MS + DAY_MS
        clock = console.clock
        assert isinstance(clock, ManualClock)
        for day in (0, 1):
            clock.advance(self.day_ms + day * DAY_MS + 3_600_000 - clock.now_ms())
            console.call(self.chat, self.web_key["id"], input=100, cached_input=20, output=7)
            console.call(self.embed, self.mobile_key["id"], input=1000)
        self.start = self.day_ms // 1000

    def get(self, path: str, key: str = "", **query: Any) -> dict[str, Any]:
        answer = self.ask(path, key, **query)
        assert answer.status_code == 200, answer.text
        return dict(json.loads(answer.text, parse_float=Decimal))

    def ask(self, path: str, key: str = "", **query: Any) -> Any:
        headers = self.console.as_key(key) if key else {}
        query = {"start_time": self.start, **query}
        return self.console.client.get(f"{PATH}/{path}", params=query, headers=headers)


@pytest.fixture
def books(console: ConsolePlatform) -> Books:
    return Books(console)


def test_buckets_hold_what_was_used_in_them(books: Books) -> None:
    page = books.get("usage/completions")
    assert [bucket["start_time"] - books.start for bucket in page["data"]] == [0, 86_400]
    for bucket in page["data"]:
        assert bucket["object"] == "bucket" and bucket["end_time"] - bucket["start_time"] == 86_400
        (result,) = bucket["results"]
        assert (result["input_tokens"], result["input_cached_tokens"], result["output_tokens"]) == (
            100,
            20,
            7,
        )
        assert result["num_model_requests"] == 1
        assert result["model"] is result["project_id"] is result["batch"] is result["user_id"] is None
    assert (page["object"], page["has_more"], page["next_page"]) == ("page", False, None)
    (embedded, _) = books.get("usage/embeddings")["data"]
    assert embedded["results"][0]["input_tokens"] == 1000


def test_hours_and_minutes_and_spans_that_cut_a_bucket(books: Books) -> None:
    hours = books.get("usage/completions", bucket_width="1h", end_time=books.start + 7200)["data"]
    assert [len(bucket["results"]) for bucket in hours] == [0, 1]
    minutes = books.get("usage/completions", bucket_width="1m", start_time=books.start + 3600, limit=2)
    assert [len(bucket["results"]) for bucket in minutes["data"]] == [1, 0]
    assert minutes["has_more"]
    for start, seen in ((3600, 1), (3660, 0)):
        cut = books.get("usage/completions", start_time=books.start + start, end_time=books.start + 86_400)
        (bucket,) = cut["data"]
        assert bucket["start_time"] == books.start + start
        assert len(bucket["results"]) == seen


def test_paging_gives_each_bucket_once(books: Books) -> None:
    whole = books.get("usage/completions", bucket_width="1h", limit=168)["data"]
    pages, page = [], None
    while True:
        found = books.get("usage/completions", bucket_width="1h", limit=7, **({"page": page} if page else {}))
        pages += found["data"]
        page = found["next_page"]
        if not found["has_more"]:
            break
    assert pages == whole


def test_filters_and_groups(books: Books) -> None:
    grouped = books.get(
        "usage/completions", group_by=["project_id", "model", "batch", "service_tier", "user_id"]
    )
    (result,) = grouped["data"][0]["results"]
    assert (result["project_id"], result["model"]) == (books.chat["project_id"], MODEL)
    assert (result["batch"], result["service_tier"], result["user_id"]) == (False, "default", None)
    for query, seen in (
        ({"api_key_ids": books.web_key["id"]}, 1),
        ({"api_key_ids[]": [books.web_key["id"], "key_x"]}, 1),
        ({"api_key_ids": "key_x"}, 0),
        ({"project_ids": books.embed["project_id"]}, 0),
        ({"models": MODEL}, 1),
        ({"models": "acme/embedder"}, 0),
        ({"user_ids": "user_1"}, 0),
        ({"batch": "true"}, 0),
        ({"batch": "false"}, 1),
    ):
        assert len(books.get("usage/completions", **query)["data"][0]["results"]) == seen, query


def test_costs_are_the_ledgers_to_the_last_digit(books: Books) -> None:
    assert not books.get("costs")["data"][0]["results"], "not before their minutes are closed"
    close_and_post(books.console.db, price_book, books.console.clock.now_ms() + 600_000, 60_000)
    page = books.get("costs", group_by=["line_item"])
    items = {r["line_item"]: r for r in page["data"][0]["results"]}
    assert items[f"{MODEL}, input"]["amount"] == {"value": Decimal("0.000012"), "currency": "usd"}
    assert items[f"{MODEL}, cached_input"]["amount"]["value"] == Decimal("0.0000015")
    assert items[f"{MODEL}, output"]["amount"]["value"] == Decimal("0.0000042")
    assert (items[f"{MODEL}, output"]["quantity"], items[f"{MODEL}, output"]["quantity_unit"]) == (
        7,
        "tokens",
    )
    (total,) = books.get("costs", project_ids=books.embed["project_id"])["data"][0]["results"]
    assert total["object"] == "organization.costs.result"
    assert total["amount"]["value"] == Decimal("0.00001")
    assert (total["line_item"], total["quantity"], total["project_id"]) == (None, None, None)
    by_key = books.get("costs", group_by=["api_key_id"])["data"][0]["results"]
    assert {r["api_key_id"] for r in by_key} == {books.web_key["id"], books.mobile_key["id"]}
    for query in ({}, {"group_by": ["api_key_id", "project_id"]}, {"group_by": "line_item"}):
        results = [r for bucket in books.get("costs", **query)["data"] for r in bucket["results"]]
        assert sum(r["amount"]["value"] for r in results) == 2 * Decimal("0.0000277"), query
    (only,) = books.get("costs", line_items=f"{MODEL}, output")["data"][0]["results"]
    assert only["amount"]["value"] == Decimal("0.0000042")


def test_a_project_sees_its_own(books: Books) -> None:
    key = books.web_key["key"]
    assert books.get("usage/completions", key)["data"][0]["results"]
    assert not books.get("usage/embeddings", key)["data"][0]["results"]
    other = books.embed["project_id"]
    assert not books.get("usage/embeddings", key, project_ids=other)["data"][0]["results"]
    answer = books.console.client.get(
        f"{PATH}/costs?start_time={books.start}",
        headers={**books.console.as_key(key), "openai-project": other},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


def test_an_operator_names_the_organization_when_there_are_several(books: Books) -> None:
    books.console.post("/api/organizations", name="other")
    refused = books.ask("costs")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "organization"
    assert books.get("usage/completions", organization="acme")["data"][0]["results"]
    answer = books.console.client.get(
        f"{PATH}/usage/completions?start_time={books.start}", headers={"openai-organization": "other"}
    )
    assert answer.json()["data"][0]["results"] == []


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [
        ("usage/completions", {"start_time": "soon"}, "start_time"),
        ("usage/completions", {"start_time": 99_999_999_999}, "start_time"),
        ("usage/completions", {"end_time": 1}, "end_time"),
        ("usage/completions", {"limit": 32}, "limit"),
        ("usage/completions", {"limit": 0}, "limit"),
        ("usage/completions", {"bucket_width": "1w"}, "bucket_width"),
        ("usage/completions", {"group_by": "colour"}, "group_by.0"),
        ("usage/embeddings", {"group_by": "batch"}, "group_by"),
        ("usage/embeddings", {"batch": "true"}, "batch"),
        ("usage/completions", {"page": "AAAA"}, "page"),
        ("usage/completions", {"page": "é"}, "page"),
        ("usage/completions", {"strat_time": 1}, "strat_time"),
        ("usage/tea", {}, "kind"),
        ("costs", {"bucket_width": "1h"}, "bucket_width"),
        ("costs", {"limit": 181}, "limit"),
    ],
)
def test_bad_input_is_named_in_openais_error(
    books: Books, path: str, query: dict[str, Any], param: str
) -> None:
    answer = books.ask(path, **query)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@given(
    st.sampled_from(sorted(USAGE_WIDTHS)),
    st.integers(0, 2 * 10**9),
    st.integers(1, 10**6),
    st.integers(1, 31),
)
def test_pages_tile_the_span(width: str, start: int, length: int, limit: int) -> None:
    page: str | None = None
    seen: list[tuple[int, int]] = []
    for _ in range(2000):
        pages = page_of_buckets(USAGE_WIDTHS[width], start, start + length, limit, page, 10**13)
        seen += pages.buckets
        page = pages.next_page
        if not page:
            break
    if not page:
        assert seen[0][0] == start * 1000 // 60_000 * 60_000
        assert seen[-1][1] == -(-(start + length) * 1000 // 60_000) * 60_000
    for (_, end), (begin, _) in pairwise(seen):
        assert end == begin and end % USAGE_WIDTHS[width].ms == 0


def test_the_examples_of_the_page_run(platform: platforms.Platform) -> None:
    with platform.client() as client:
        key = client.keys.create(project="web", name="docs")["key"]
    with openai.OpenAI(base_url=platform.url + "/v1", api_key=key, max_retries=0) as ai:
        ai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    page = (platforms.ROOT / "docs" / "usage.md").read_text()
    shell = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    python = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert (len(shell), len(python)) == (2, 1)
    environ = platform.environ | {
        "FAREBOX_URL": platform.url,
        "FAREBOX_HOME": str(platform.home),
        "ADMIN_KEY": platform.admin_key,
        "PATH": f"{platforms.FAREBOX.parent}:{os.environ['PATH']}",
    }
    for command in (["bash", "-euc", "\n".join(shell)], [sys.executable, "-c", python[0]]):
        run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100)
        assert run.returncode == 0, run.stdout + run.stderr
        assert MODEL in run.stdout
