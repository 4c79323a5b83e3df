"""What is asked of a file beside its latency: sizes of batch, fresh processes, long runs, energy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgedl import measure
from edgedl.core import Bench, TargetError, TensorSpec
from edgedl.probes import loads, sensors
from edgedl.probes.loads import Asked
from edgedl.remote import answers
from edgedl.remote.answers import Answers
from edgedl.report import answered
from tests.test_measure import Clock

PACE = Bench(min_seconds=0.1, rounds=5)


class File:
    """Takes 1 ms, and 0.5 ms a sample, divided by its threads; notes what it is given."""

    graphs: Mapping[str, Any] = {}
    outputs: Mapping[str, Any] = {}
    runtime = "fake"

    def __init__(self, clock: Clock, threads: int = 1, free: bool = True, most: int = 100) -> None:
        self.clock, self.threads, self.most, self.slow = clock, threads, most, 1.0
        self.inputs = {"x": TensorSpec((1, 3), free=(0,) if free else ())}
        self.closed = False

    def run(self, batch):
        size = len(batch["x"])
        if size > self.most:
            raise TargetError(f"batches of {size} are too large")
        self.clock.now_ns += round((1 + 0.5 * size / self.threads) * self.slow * 1e6)
        return {}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    for module in (measure, loads):
        stand_in = SimpleNamespace(
            perf_counter=found.perf_counter, perf_counter_ns=found.perf_counter_ns, sleep=found_sleep(found)
        )
        monkeypatch.setattr(module, "time", stand_in)
    return found


def found_sleep(clock: Clock):
    def sleep(seconds: float) -> None:
        clock.now_ns += round(seconds * 1e9)

    return sleep


BATCH = {"x": np.arange(3, dtype=np.float32)[None]}


def test_throughput_is_that_of_every_size_and_number_of_threads(clock):
    opened: list[File] = []

    def open_with(threads: int) -> File:
        opened.append(File(clock, threads))
        return opened[-1]

    found = loads.throughput(open_with, BATCH, (1, 4, 4), (1, 2), PACE)
    rates = {(row["threads"], row["batch_size"]): row["per_second"] for row in found["rows"]}
    assert rates == pytest.approx({(1, 1): 1000 / 1.5, (1, 4): 4000 / 3, (2, 1): 1000 / 1.25, (2, 4): 4000 / 2})
    assert (found["any_batch"], found["refused"]) == (True, None)
    assert all(session.closed for session in opened)
    Answers.model_validate({"throughput": found})


def test_a_file_of_one_size_says_so_and_has_that_one(clock):
    found = loads.throughput(lambda threads: File(clock, threads, free=False), BATCH, (1, 2, 8), (1,), PACE)
    assert [row["batch_size"] for row in found["rows"]] == [1]
    assert found["refused"] == "the file takes batches of 1 alone, so not 2, 8: max_batch makes others"


def test_a_size_beyond_what_a_file_was_built_for_has_a_reason(clock):
    found = loads.throughput(lambda threads: File(clock, threads, most=4), BATCH, (4, 8), (1,), PACE)
    good, bad = found["rows"]
    assert good["per_second"] > 0
    assert (bad["per_second"], bad["reason"]) == (None, "batches of 8 are too large")
    Answers.model_validate({"throughput": found})


def test_samples_are_repeated_until_a_batch_is_full():
    found = loads.resized({"x": np.arange(6).reshape(2, 3)}, 5, own=2)["x"]
    np.testing.assert_array_equal(found, np.arange(6).reshape(2, 3)[[0, 1, 0, 1, 0]])


@pytest.mark.parametrize("slower", [1.0, 1.3])
def test_a_machine_that_slows_down_in_a_long_run_is_told(clock, slower, monkeypatch):
    file = File(clock)
    run = file.run

    def heating(batch):
        file.slow = slower if clock.perf_counter() > 30 else 1.0
        return run(batch)

    monkeypatch.setattr(file, "run", heating)
    monkeypatch.setattr(sensors, "temperature_c", lambda: 40 + clock.perf_counter())
    found = loads.sustained(file, BATCH, 60)
    assert found["throttled"] == (slower > 1)
    assert found["slowdown"] == pytest.approx(slower)
    assert (found["first_ms"], found["last_ms"]) == (pytest.approx(1.5), pytest.approx(1.5 * slower))
    assert found["compared_seconds"] == 15
    assert len(found["course"]) == loads.NUM_PARTS
    assert 60 <= found["seconds"] < 60.1
    (line,) = answered.lines({"sustained": found})
    assert ("it slows down" in line) == (slower > 1)
    assert "temperature 41 to 100 °C" in line
    Answers.model_validate({"sustained": found})


def test_a_very_long_run_compares_its_first_minute_with_its_last(clock):
    assert loads.sustained(File(clock), BATCH, 600)["compared_seconds"] == 60


def test_energy_is_that_of_one_run_and_what_is_above_the_idle_machine(clock):
    class Rail:
        name, least_seconds = "a rail", 1.0

        @contextmanager
        def drawing(self):
            found, start = sensors.Drawn(), clock.perf_counter()
            watts = 2 if start == 0 else 5
            yield found
            found.rails_w, found.temperature_c = {"a rail": watts}, {"cpu": 60.4}
            found.joules = watts * (clock.perf_counter() - start)

    found = loads.energy(File(clock), BATCH, 3.0, Rail())
    assert found["energy_mj"] == pytest.approx(5 * 1.5)
    assert found["above_idle_mj"] == pytest.approx(3 * 1.5)
    assert (found["watts"], found["idle_watts"], found["runs"]) == (pytest.approx(5), pytest.approx(2), 2000)
    assert (found["rails_w"], found["temperature_c"]) == ({"a rail": 5}, {"cpu": 60.4})
    row = answers.of_row(Answers.model_validate({"energy": found}))
    assert row["energy_mj"] == found["energy_mj"]
    assert loads.energy(File(clock), BATCH, 0.1, Rail())["seconds"] == pytest.approx(1.0, abs=0.01)


def test_without_a_rail_there_is_a_reason_and_no_energy(clock):
    found = loads.energy(File(clock), BATCH, 3.0, "no rail: none here")
    assert (found["energy_mj"], found["reason"], clock.now_ns) == (None, "no rail: none here", 0)
    assert list(answered.lines({"energy": found})) == ["energy: no rail: none here"]
    Answers.model_validate({"energy": found})


def script(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


def test_cold_starts_are_timed_from_the_start_of_the_process():
    said = json.dumps({"init_ms": 7.0, "import_ms": 3.0})
    start = time.perf_counter()
    found = loads.cold_starts(script(f"import time; time.sleep(0.05); print('{said}'); "), 2)
    assert 50 <= found["first_answer_ms"]["min"] <= found["first_answer_ms"]["median"]
    assert found["first_answer_ms"]["max"] <= (time.perf_counter() - start) * 1000
    assert (found["starts"], found["init_ms"]["median"], found["import_ms"]["max"]) == (2, 7.0, 3.0)
    Answers.model_validate({"cold_start": found})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise SystemExit(3)", "ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
        ("print('no json')", "ended with status 0"),
        ('print(\'{"message": "the file is cut"}\')', "the file is cut"),
    ],
)
def test_a_process_without_an_answer_has_a_reason(text, reason):
    found = loads.cold_starts(script(text), 3)
    assert (found["starts"], found["first_answer_ms"]) == (0, None)
    assert reason in found["reason"]
    Answers.model_validate({"cold_start": found})


def test_nothing_is_done_that_is_not_asked(clock):
    assert loads.answer(loads.NOTHING, lambda threads: pytest.fail("opened"), BATCH, 1, PACE) == {}
    found = loads.answer(Asked(energy=True), lambda threads: File(clock, threads), BATCH, 1, PACE)
    assert list(found) == ["energy"]


def test_earlier_answers_are_kept_for_the_same_file_alone():
    def row(sha256: str, **said: Any) -> dict[str, Any]:
        return {"variant": "float", "target": "tflite", "sha256": sha256, "device": "d", **answers.of_row(None), **said}

    before = [row("a", energy={"watts": 1}, sustained={"seconds": 60})]
    (same,) = answers.with_earlier([row("a", energy={"watts": 2})], before)
    assert (same["energy"], same["sustained"]) == ({"watts": 2}, {"seconds": 60})
    (other,) = answers.with_earlier([row("b")], before)
    assert other["sustained"] is None
