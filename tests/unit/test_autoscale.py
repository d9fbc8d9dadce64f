"""Rules, schedules and bounds that decide how many instances there are."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from core.errors import Invalid
from serving.online import gpus
from serving.online.autoscale import SAMPLE_EVERY_MS, Autoscaler, bounds
from serving.online.calls import Calls
from serving.online.gauge import Gauge
from serving.online.scale_document import rule_document, scale_settings, schedule_document
from serving.online.spec import DeploymentSpec, ResourceAmounts, ScaleSettings
from tests.mock_engine import wait_until

CPU, CALLS = "CpuUtilizationPercentage", "ConcurrentRequestsPerInstance"
OUT = {"condition": f"{CPU} > 70 avg 5m", "scale": "out 2"}
IN = {"condition": f"{CPU} < 30 avg 5m", "scale": "in 1"}
MINUTE = 60_000


def settings(*rules: dict[str, Any], **more: Any) -> ScaleSettings:
    return scale_settings(
        {"type": "rules", "min_instances": 1, "max_instances": 5, "rules": list(rules) or [OUT, IN], **more}
    )


class Load:
    """Time goes by under a load, and the autoscaler is asked at each measurement."""

    def __init__(self, scale: ScaleSettings, current: int = 1) -> None:
        self.scale, self.current, self.at, self.asked = scale, current, 0, Autoscaler()

    def go_on(self, minutes: float, **values: float) -> int:
        """`values` are those of one instance if there was one: more instances share them."""
        for _ in range(int(minutes * MINUTE / SAMPLE_EVERY_MS)):
            self.at += SAMPLE_EVERY_MS
            self.asked.sample({name: value / self.current for name, value in values.items()}, self.at)
            self.current = self.asked.wanted(self.scale, self.current, bounds(self.scale, 0), self.at)
        return self.current


def test_a_rule_that_is_met_over_its_window_scales_out() -> None:
    load = Load(settings())
    assert load.go_on(3, **{CPU: 95}) == 1, "not measured for long enough"
    assert load.go_on(2, **{CPU: 95}) == 3
    assert load.go_on(30, **{CPU: 95}) == 3, "31 % each is neither too much nor too little"


def test_it_goes_to_the_most_and_no_further_and_rests_in_between() -> None:
    load = Load(settings())
    load.go_on(5, **{CPU: 900})
    assert load.current == 3
    assert load.go_on(3.5, **{CPU: 900}) == 3, "the rule's cooldown"
    assert load.go_on(20, **{CPU: 900}) == 5


def test_all_rules_that_scale_in_must_be_met() -> None:
    calls_in = {"condition": f"{CALLS} < 1 avg 5m", "scale": "in 1"}
    load = Load(settings(OUT, IN, calls_in), current=3)
    assert load.go_on(30, **{CPU: 6, CALLS: 9}) == 3
    assert load.go_on(30, **{CPU: 6, CALLS: 0}) == 1


def test_it_does_not_scale_in_what_it_would_scale_out_again() -> None:
    eager = {"condition": f"{CPU} < 60 avg 5m", "scale": "in 1"}
    load = Load(settings(OUT, eager), current=2)
    assert load.go_on(30, **{CPU: 100}) == 2, "50 % on two would be 100 % on one"
    assert load.go_on(30, **{CPU: 60}) == 1


def test_a_rule_can_name_the_number() -> None:
    load = Load(settings({"condition": f"{CALLS} >= 4 max 1m", "scale": "to 4"}))
    assert load.go_on(2, **{CALLS: 3}) == 1
    assert load.go_on(2, **{CALLS: 4}) == 4


def test_what_is_not_measured_changes_nothing() -> None:
    load = Load(settings(), current=3)
    assert load.go_on(30, **{CALLS: 0}) == 3


def test_bounds_hold_without_any_measurement() -> None:
    asked = Autoscaler()
    assert asked.wanted(settings(min_instances=2), 1, (2, 5), 0) == 2
    assert asked.wanted(settings(), 9, (1, 5), 0) == 5


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-11-26T07:59:59+01:00", (1, 5)),
        ("2026-11-26T08:00:00+01:00", (3, 10)),
        ("2026-11-26T19:59:59+01:00", (3, 10)),
        ("2026-11-26T20:00:00+01:00", (1, 5)),
        ("2026-11-28T12:00:00+01:00", (1, 5)),  # a Saturday
        ("2026-07-02T06:30:00+00:00", (3, 10)),  # summer time: half past eight there
        ("2026-12-03T06:30:00+00:00", (1, 5)),  # winter: half past seven
    ],
)
def test_a_schedule_follows_the_clock_of_its_place(at: str, expected: tuple[int, int]) -> None:
    week = {
        "days": ["mon", "Tuesday", "wed", "thu", "fri"],
        "start": "08:00",
        "end": "20:00",
        "timezone": "Europe/Berlin",
        "min_instances": 3,
        "max_instances": 10,
    }
    scale = settings(OUT, schedules=[week])
    now_ms = int(datetime.fromisoformat(at).astimezone(UTC).timestamp() * 1000)
    assert bounds(scale, now_ms) == expected
    assert scale.most == 10, "what must fit"


def test_a_file_and_back() -> None:
    night = {
        "start": "00:00",
        "end": "24:00",
        "min_instances": 1,
        "max_instances": 1,
        "days": ["sun"],
        "name": "x",
    }
    scale = settings(
        OUT | {"cooldown": "PT1M"}, {"condition": f"{CPU}<=0.5 min 1h", "scale": "to 1"}, schedules=[night]
    )
    documents = [rule_document(each) for each in scale.rules]
    assert documents[0] == OUT | {"cooldown": 60}
    again = settings(*documents, schedules=[schedule_document(each) for each in scale.schedules])
    assert again == scale
    assert DeploymentSpec.from_json(DeploymentSpec("b", "script", scale=scale).to_json()).scale == scale


@pytest.mark.parametrize(
    ("document", "param", "says"),
    [
        ({"rules": [OUT | {"condition": "cpu high"}]}, "rules[0].condition", "expected e.g."),
        ({"rules": [OUT | {"condition": "Heat > 70 avg 5m"}]}, "rules[0].condition", "no metric 'Heat'"),
        ({"rules": [OUT | {"condition": f"{CPU} > 70 avg 2h"}]}, "rules[0].condition", "1m to 60m"),
        ({"rules": [OUT, OUT | {"scale": "up 1"}]}, "rules[1].scale", '"out N"'),
        ({"rules": [OUT | {"scale": "out 51"}]}, "rules[0].scale", "1 to 50"),
        ({"rules": [OUT | {"cooldown": "soon"}]}, "rules[0].cooldown", "seconds"),
        ({"rules": []}, "rules", "rules or schedules"),
        ({"max_instances": 1, "min_instances": 2}, "max_instances", "below"),
        ({"default_instances": 9}, "default_instances", "1 to 5"),
        ({"type": "default"}, "rules", "needs type: rules"),
        ({"type": "target_utilization"}, "rules", "needs type: rules"),
    ],
)
def test_what_is_wrong_is_named(document: dict[str, Any], param: str, says: str) -> None:
    given = {"type": "rules", "min_instances": 1, "max_instances": 5, "rules": [OUT]} | document
    with pytest.raises(Invalid) as refused:
        scale_settings(given)
    assert refused.value.param == f"scale_settings.{param}" and says in refused.value.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"start": 480}, "start"),
        ({"start": "8:00"}, "start"),
        ({"end": "24:01"}, "end"),
        ({"end": "08:00"}, "end"),
        ({"days": ["someday"]}, "days"),
        ({"days": []}, "days"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": "../etc/passwd"}, "timezone"),
        ({"max_instances": 1}, "max_instances"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_named(change: dict[str, Any], param: str) -> None:
    good = {"start": "08:00", "end": "20:00", "min_instances": 2, "max_instances": 3}
    with pytest.raises(Invalid) as refused:
        settings(OUT, schedules=[good, good | change])
    assert refused.value.param == f"scale_settings.schedules[1].{param}"


def _used_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def _burn(process: subprocess.Popen[bytes], to_s: float) -> None:
    """Wait for so much CPU time, however long that takes on a busy machine."""
    wait_until(lambda: _used_s(process) >= to_s)


def test_the_gauge_tells_a_busy_process_from_an_idle_one() -> None:
    busy = "import time\nbytearray(50_000_000)\nheld = bytearray(60_000_000)\nwhile True: pass"
    idle = "import time\ntime.sleep(60)"
    found = {}
    for name, program in (("busy", busy), ("idle", idle)):
        process = subprocess.Popen([sys.executable, "-c", program])
        try:
            gauge = Gauge(Path("/"))
            asked = ResourceAmounts(cpu_milli=1000, memory_bytes=600_000_000)
            used_s, began = _used_s(process), time.monotonic()
            assert gauge.measure([process.pid], asked) == {}, "the first turn has nothing to compare with"
            time.sleep(1.5)
            if name == "busy":
                _burn(process, used_s + 0.5)
            found[name] = gauge.measure([process.pid], asked)
            share = (_used_s(process) - used_s) / (time.monotonic() - began)
            assert found[name][CPU] == pytest.approx(share * 100, rel=0.2, abs=3)
        finally:
            process.kill()
            process.wait()
    assert found["busy"][CPU] > found["idle"][CPU]
    memory = "CpuMemoryUtilizationPercentage"
    assert found["busy"][memory] > found["idle"][memory] > 0
    assert Gauge(Path("/")).measure([], ResourceAmounts()) == {}


def test_a_process_that_was_not_seen_before_does_not_bring_its_past() -> None:
    busy = "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", busy])
    try:
        _burn(process, 1.0)
        gauge, asked = Gauge(Path("/")), ResourceAmounts(cpu_milli=1000)
        gauge.measure([], asked)
        time.sleep(0.6)
        assert gauge.measure([process.pid], asked)[CPU] < 20
    finally:
        process.kill()
        process.wait()


class Driver:
    """NVML as NVIDIA's binding has it, with two GPUs; process 7 runs on the second."""

    class NVMLError(Exception):
        pass

    def __init__(self, pid: int) -> None:
        self.pid, self.energy, self.broken = pid, 1_000_000, False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  NVML's names, here and below
        if self.broken:
            raise self.NVMLError("the driver was unloaded")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        others = SimpleNamespace(pid=1, usedGpuMemory=4_000)
        return [others, SimpleNamespace(pid=self.pid, usedGpuMemory=2_000)] if handle else [others]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=90 if handle else 10)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=8_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return self.energy


def test_gpus_count_for_who_runs_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(os.getpid())
    monkeypatch.setattr(gpus, "_nvml", lambda: driver)
    monkeypatch.setattr("serving.online.gauge._SHORTEST_S", 0.0)
    gauge = Gauge(Path("/"))
    gauge.measure([os.getpid()], ResourceAmounts())
    found = gauge.measure([os.getpid()], ResourceAmounts())
    assert (found["GpuUtilizationPercentage"], found["GpuMemoryUtilizationPercentage"]) == (90, 25)
    assert 0 < found["DiskUtilization"] < 100
    assert gauge.energy_j == 0, "what was used before is not its own"
    driver.energy += 5_500
    gauge.measure([os.getpid()], ResourceAmounts())
    assert gauge.energy_j == 5.5
    driver.energy = 10  # the driver was loaded anew
    gauge.measure([os.getpid()], ResourceAmounts())
    assert gauge.energy_j == 5.5
    driver.pid = 0
    assert "GpuUtilizationPercentage" not in gauge.measure([os.getpid()], ResourceAmounts())
    driver.broken = True
    assert "GpuUtilizationPercentage" not in gauge.measure([os.getpid()], ResourceAmounts())


def test_a_gpu_that_tells_no_energy_still_tells_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(7)

    def unsupported(handle: int) -> int:
        raise driver.NVMLError("Not Supported")

    driver.nvmlDeviceGetTotalEnergyConsumption = unsupported  # type: ignore[method-assign]
    monkeypatch.setattr(gpus, "_nvml", lambda: driver)
    assert gpus.gpu_use({7}) == gpus.GpuUse(90, 25, {})
    assert gpus.gpu_use({8}) is None and gpus.gpu_use(set()) is None


def test_calls_become_a_rate_and_percentiles() -> None:
    calls = Calls(1_000)
    assert calls.take(11_000) == {"RequestsPerMinute": 0.0}
    calls.add(3, [5, 1])
    calls.add(200, list(range(1, 101)))
    assert calls.take(21_000) == {
        "RequestsPerMinute": 203 * 6, "RequestLatency": pytest.approx(5056 / 102), "RequestLatency_P50": 49,
        "RequestLatency_P90": 90, "RequestLatency_P95": 95, "RequestLatency_P99": 99,
    }  # fmt: skip
    assert calls.take(31_000) == {"RequestsPerMinute": 0.0}
    assert calls.take(31_000) == {}


def test_a_rate_of_the_whole_is_not_shared_by_fewer_instances() -> None:
    """120 calls a minute are no more on two instances than on three, so they do not keep the third."""
    scale = settings(
        {"condition": "RequestsPerMinute > 150 avg 1m", "scale": "out 1"},
        {"condition": "RequestsPerMinute < 130 avg 1m", "scale": "in 1"},
    )
    scaler = Autoscaler()
    for at in range(0, 70_000, 10_000):
        scaler.sample({"RequestsPerMinute": 120.0}, at)
    assert scaler.wanted(scale, 3, (1, 5), 60_000) == 2
