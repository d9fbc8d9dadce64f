"""The bench's arithmetic and its page: what needs no engine, no proxy and no time."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import report, sink, toolchain
from bench.figures import Check, Samples, Spread, checks, spread
from bench.load import parse_load
from bench.populate import Population
from bench.report import BEGIN, END, Report, markdown, replace_block, tables
from bench.targets import Target

ROOT = Path(__file__).resolve().parents[2]
LINE = {
    "requests": 100,
    "all_requests": 130,
    "errors": 0,
    "rps": 20.0,
    "p50_ms": 1.5,
    "p99_ms": 3.0,
    "cpu_ms_req": 0.25,
    "load_cpu": 0.25,
    "up_cpu": 0.5,
    "core0": 0.8,
    "core1": 0.9,
    "gw_cpu": 0.5,
}


def test_a_line_of_the_load_generator() -> None:
    found = parse_load(json.dumps(LINE))
    assert (found.requests, found.all_requests, found.errors) == (100, 130, 0)
    assert found.cpu_us_request == 250
    assert found.chunks == 0 and found.ttft_p99_ms == 0, "a run without streams has none"
    assert found.load_side == 0.75


def test_what_strangers_took_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, core in (("LOAD_CORE", 0), ("PROXY_CORE", 1), ("REST_CORE", 0)):
        monkeypatch.setattr(f"bench.load.{name}", core)
    assert parse_load(json.dumps(LINE)).others == pytest.approx(0.4), "of the measured core"
    quiet = LINE | {"core0": 1.0, "core1": 0.52, "aux_cpu": 0.7}
    assert parse_load(json.dumps(quiet)).others == pytest.approx(0.05), "the control process is no stranger"
    direct = {key: value for key, value in LINE.items() if key != "gw_cpu"}
    assert parse_load(json.dumps(direct)).others == pytest.approx(0.05), "the measured core is idle then"


def test_a_line_of_a_streaming_run() -> None:
    streamed = {
        "chunks": 640,
        "chunks_s": 128.0,
        "ttft_p50_ms": 10.5,
        "ttft_p99_ms": 12.0,
        "cpu_us_chunk": 20.0,
    }
    found = parse_load(json.dumps(LINE | streamed | {"last_error": "EOF"}))
    assert (found.chunks, found.cpu_us_chunk, found.ttft_p50_ms, found.last_error) == (640, 20.0, 10.5, "EOF")


def test_what_is_no_line_is_shown() -> None:
    with pytest.raises(toolchain.BenchError, match="panic: out of memory"):
        parse_load("panic: out of memory")


def test_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def _samples(**by_target: dict[str, list[float]]) -> Samples:
    return Samples({name.replace("_", "-"): values for name, values in by_target.items()})


def test_ratios_are_taken_within_a_round() -> None:
    # Everything was twice as slow in the second round; the ratio did not change.
    samples = _samples(farebox={"cpu": [30.0, 60.0]}, envoy={"cpu": [20.0, 40.0]})
    assert samples.ratio("farebox", "cpu", "envoy") == Spread(1.5, 1.5, 1.5)
    assert samples.difference("farebox", "cpu", "envoy") == Spread(15.0, 10.0, 20.0)
    assert samples.ratio("farebox", "cpu", "nginx") is None
    assert samples.ratio("farebox", "chunk", "envoy") is None


def test_a_ratio_to_nothing_is_left_out() -> None:
    assert _samples(farebox={"cpu": [1.0]}, envoy={"cpu": [0.0]}).ratio("farebox", "cpu", "envoy") is None


def test_what_was_not_measured_has_no_figure() -> None:
    samples = Samples()
    samples.add("litellm", {"rps": 100.0})
    samples.add("litellm", {"rps": 110.0, "p50": 5.0})
    assert samples.spread("litellm", "rps") == Spread(105.0, 100.0, 110.0)
    assert samples.spread("litellm", "stream_kb") is None
    assert samples.spread("nginx", "rps") is None


def test_targets_are_judged_on_the_median() -> None:
    samples = _samples(
        farebox={"cpu": [40.0, 60.0, 200.0], "stream_kb": [41.0]},
        envoy={"cpu": [40.0, 40.0, 40.0]},
        memory_journal={"cpu": [30.0, 45.0, 150.0]},
        many_keys={"cpu": [44.0, 66.0, 230.0]},
    )
    found = {check.what: check for check in checks(samples)}
    assert len(found) == 4, "what was not measured is not judged"
    assert found["CPU per plain request ÷ Envoy"].met and found["CPU per plain request ÷ Envoy"].aim == 1.0
    assert not found["memory per slow stream"].met
    assert found["durable metering's share of CPU per request"].measured == Spread(25.0, 25.0, 25.0)
    assert found["CPU per request, many keys and endpoints ÷ one"].measured.median == pytest.approx(1.1)


def test_our_own_gateways_are_compared_at_one_rate_too() -> None:
    samples = _samples(
        farebox={"cpu": [100.0], "same_cpu": [120.0, 110.0]},
        memory_journal={"cpu": [70.0], "same_cpu": [132.0, 99.0]},
        many_keys={"cpu": [125.0], "same_cpu": [126.0, 110.0]},
    )
    found = {check.what: check for check in checks(samples)}
    of_both = "as many requests a second of both"
    assert not found["CPU per request, many keys and endpoints ÷ one"].met
    assert found[f"many keys and endpoints ÷ one, {of_both}"].measured == Spread(1.025, 1.0, 1.05)
    assert not found["durable metering's share of CPU per request"].met
    share = found[f"durable metering's share, {of_both}"].measured
    assert (share.median, share.low, share.high) == pytest.approx((0.0, -10.0, 10.0))


def test_exactly_the_target_is_met() -> None:
    assert Check("x", Spread(1.5, 1.0, 2.0), "×", 1.5).met
    assert not Check("x", Spread(1.51, 1.0, 2.0), "×", 1.5).met


def _report() -> Report:
    samples = _samples(
        direct={"rps": [50_000.0]},
        farebox={"rps": [10_000.0, 12_000.0, 11_000.0], "cpu": [60.0, 62.0, 61.0]},
        envoy={"rps": [20_000.0], "cpu": [40.0, 40.0, 40.0]},
        memory_journal={"rps": [13_000.0], "cpu": [50.0]},
    )
    return Report(
        machine="2 × Test CPU",
        load_before=0.1,
        settings="Medians of 3 rounds of 5 s (range in brackets)",
        samples=samples,
        versions={"envoy": "Envoy 1.40.0"},
        metered=1234,
        served=1234,
        footprint={"idle, processes": Spread(2.0, 2.0, 2.0)},
        when="2026-11-23 12:00 UTC",
    )


def test_the_page_names_machine_versions_and_count() -> None:
    text = markdown(_report())
    assert "2 × Test CPU" in text and "2026-11-23 12:00 UTC" in text and "Envoy 1.40.0" in text
    assert "1,234 = 1,234" in text
    assert "| plain, 32 connections: requests/s | 50,000 | 11,000 (10,000–12,000) | 20,000 |  |" in text
    assert "1.52 (1.50–1.55) ×" in text, "the ratio stands beside the figure"
    assert "NOT met" in text


def test_tables_have_as_many_cells_as_columns() -> None:
    for title, head, rows in tables(_report()):
        assert all(len(row) == len(head) for row in rows), title
    assert [title for title, _, _ in tables(_report())] == [
        "Figures",
        "Our gateway under other conditions",
        "Targets",
        "When nothing happens",
    ]


def test_tables_without_anything_are_left_out() -> None:
    empty = Report(machine="m", load_before=0.0, settings="s")
    assert tables(empty) == []
    json.dumps(empty.as_json())


def test_json_has_every_round() -> None:
    found = json.loads(json.dumps(_report().as_json()))
    assert found["figures"]["farebox"]["rps"] == {
        "median": 11_000.0,
        "low": 10_000.0,
        "high": 12_000.0,
        "rounds": [10_000.0, 12_000.0, 11_000.0],
    }
    assert found["checks"][0]["met"] is False


def test_only_the_block_between_the_comments_is_replaced() -> None:
    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    once = replace_block(page, "new")
    assert once == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert replace_block(once, "new") == once


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_block_is_not_touched(page: str) -> None:
    with pytest.raises(toolchain.BenchError, match="two comments"):
        replace_block(page, "new")


def test_the_page_has_its_block() -> None:
    replace_block((ROOT / "docs" / "performance.md").read_text(), "new")


def test_the_engine_is_asked_for_its_pace_by_name() -> None:
    target = Target("envoy", "127.0.0.1:1")
    assert (target.model(""), target.model("10ms")) == ("mock", "mock@10ms")


def test_every_key_of_a_population_has_its_endpoint_in_its_project() -> None:
    with pytest.raises(AssertionError):
        Population(keys=1000, endpoints=150)
    with pytest.raises(AssertionError):
        Population(keys=1500, endpoints=1000)
    Population(keys=100_000, endpoints=10_000)


def test_the_cache_is_in_the_home_that_was_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAREBOX_HOME", str(tmp_path))
    assert toolchain.cache_folder() == tmp_path / "bench"
    monkeypatch.delenv("FAREBOX_HOME")
    assert toolchain.cache_folder().name == "farebox-bench"


def test_a_virtualenv_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        (tmp_path / "tool").mkdir(exist_ok=True)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr("bench.toolchain.subprocess.run", run)
    for _ in range(2):
        assert toolchain.virtualenv(tmp_path, "tool", ("a==1",)) == tmp_path / "tool"
    assert len(commands) == 2 and commands[1][-1] == "a==1"
    toolchain.virtualenv(tmp_path, "tool", ("a==2",))
    assert len(commands) == 4, "other requirements, another environment"


def test_numbers_show_their_range_only_where_there_is_one() -> None:
    assert report._number(Spread(1234.5, 1234.5, 1234.5), 1) == "1,234.5"
    assert report._number(Spread(2.0, 1.0, 3.0), 2) == "2.00 (1.00–3.00)"
    assert report._number(None, 2) == ""


def test_the_sinks_bench_takes_in_and_closes_what_it_wrote(tmp_path: Path) -> None:
    found = sink.measure("sqlite", sink.Plan(3000, chunk=1000, events_per_s=10), tmp_path)
    assert (found.first.first, found.first.last) == (1, 1000)
    assert (found.last.first, found.last.last) == (2001, 3000)
    assert found.closed_minutes > 100, "five minutes of a thousand keys"
    assert found.last.sink_per_s > found.last.all_per_s > 0
    assert list(tmp_path.iterdir()) == [], "everything is deleted"


def test_the_sinks_bench_refuses_what_it_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert sink.main(["--events", "1_000_000_000_000"]) == 1
    assert "--folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sink.main(["--databases", "oracle"])
