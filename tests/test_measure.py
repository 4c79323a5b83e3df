"""Scores over whole splits, latencies in turn, warm-up, and files opened in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgedl import measure, plugins
from edgedl.core import Bench, ModelFileError, TargetError, TensorSpec
from edgedl.targets.onnxruntime import OnnxRuntime
from tests.toys import Noise

measures_memory = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak memory to be had")

MS = 1_000_000  # ns
BATCH = {"x": np.zeros(1)}


class Clock:
    """Time that passes only while a session runs; stands in for the module `time`."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9


class Fake:
    """A session that takes the time it is told: `ms(n)` for its n-th run. It notes its name at every run."""

    runtime = "fake"
    outputs: Mapping[str, TensorSpec] = {}

    def __init__(self, clock: Clock, ms: Callable[[int], float], name: str = "A", log: list | None = None) -> None:
        self.clock, self.ms, self.name, self.log = clock, ms, name, [] if log is None else log
        self.inputs = {"x": TensorSpec((1,))}
        self.runs = 0

    def run(self, batch):
        self.clock.now_ns += round(self.ms(self.runs) * MS)
        self.runs += 1
        self.log.append(self.name)
        return {}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


class PerSample:
    """A file of fixed batch size: each sample's output is a sum over the sample; it refuses any other batch."""

    runtime = "numpy"

    def __init__(self, task: Noise, batch_size: int) -> None:
        self.inputs = task.input_specs(batch_size)
        self.outputs = {"y": TensorSpec((batch_size, 1))}

    def run(self, batch):
        assert {name: values.shape for name, values in batch.items()} == {
            name: spec.shape for name, spec in self.inputs.items()
        }
        return {"y": sum(values.reshape(len(values), -1).sum(axis=1, keepdims=True) for values in batch.values())}


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 2))
def test_a_score_does_not_depend_on_the_batch_size(num_samples, batch_size, num_inputs):
    task = Noise(shape=(2, 3), num_samples=num_samples, num_inputs=num_inputs)
    found = measure.evaluate(PerSample(task, batch_size), task, "test")
    whole = task.arrays("test")
    expected = PerSample(task, num_samples).run(whole)
    np.testing.assert_array_equal(found.outputs["y"], expected["y"])
    assert found.score == task.score(expected, whole)
    assert found.samples == num_samples
    assert found.decisions is None


def test_a_classifier_is_scored_with_its_decisions():
    from edgedl.tasks.digits import Digits

    class Oracle:
        inputs: Mapping[str, TensorSpec] = Digits().input_specs(7)
        answers = np.eye(10, dtype=np.float32)[Digits().arrays("test")["label"]]
        position = 0

        def run(self, batch):
            answers = self.answers[self.position : self.position + 7]
            self.position += 7
            return {"logits": np.concatenate([answers, np.zeros((7 - len(answers), 10), np.float32)])}

    found = measure.evaluate(Oracle(), Digits(), "test")
    assert (found.score, found.samples) == (1.0, 360)
    np.testing.assert_array_equal(found.decisions, Digits().arrays("test")["label"])


def test_a_sample_is_of_the_test_split_and_fills_the_batch():
    task = Noise(shape=(2, 3), num_samples=3, num_inputs=2)
    found = measure.sample(task, PerSample(task, 5))
    for name, values in task.arrays("test").items():
        assert found[name].flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(found[name], values[[0, 1, 2, 2, 2]])


DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]


@given(st.dictionaries(st.text(), st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES))))
def test_random_inputs_have_the_shapes_and_dtypes_asked_for(inputs):
    specs = {name: TensorSpec(tuple(shape), dtype) for name, (shape, dtype) in inputs.items()}
    found, again = measure.random_inputs(specs), measure.random_inputs(specs)
    assert list(found) == list(specs)
    for name, spec in specs.items():
        assert (found[name].shape, found[name].dtype) == (spec.shape, np.dtype(spec.dtype))
        assert np.isfinite(found[name]).all()
        np.testing.assert_array_equal(found[name], again[name])
        if not spec.dtype.startswith("float"):
            assert not found[name].any()  # an index into a table of any size


def test_sessions_are_measured_in_turn_and_every_other_round_backwards(clock):
    log: list[str] = []
    runs = {name: (Fake(clock, lambda _: 1.0, name, log), BATCH) for name in "ABC"}
    blocks = measure.interleave(runs, Bench(min_seconds=0, rounds=10))
    block_runs = 1 + measure.MIN_RUNS // 10  # the first is thrown away
    measured = log[-3 * 10 * block_runs :]
    in_blocks = [set(measured[start : start + block_runs]) for start in range(0, len(measured), block_runs)]
    assert all(len(names) == 1 for names in in_blocks)
    order = "".join(*zip(*in_blocks, strict=True))
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"ABC"}
    assert rounds[1::2] == [names[::-1] for names in rounds[::2]]
    assert len(set(rounds)) > 2  # by chance
    warming_up = log[: -3 * 10 * block_runs]
    assert list(dict.fromkeys(warming_up)) == ["A", "B", "C"]
    assert warming_up == sorted(warming_up)
    assert {name: [len(block) for block in found] for name, found in blocks.items()} == dict.fromkeys("ABC", [10] * 10)


@given(st.integers(1, 60), st.floats(0, 3), st.floats(0.5, 100))
def test_every_file_is_run_often_and_long_enough(rounds, min_seconds, ms):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "time", clock)
        bench = Bench(min_seconds=min_seconds, rounds=rounds)
        blocks = measure.interleave({"A": (Fake(clock, lambda _: ms), BATCH)}, bench)["A"]
    assert len(blocks) == rounds
    assert sum(map(len, blocks)) >= measure.MIN_RUNS
    assert sum(block.sum() for block in blocks) >= min_seconds * 1000 * (1 - 1e-6)
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_a_sample_is_the_time_of_one_run_in_ms_and_the_cold_one_is_none(clock):
    def ms(run: int) -> float:
        return 50.0 if run < 3 or (run - 3) % 26 == 0 else 2.0

    session = Fake(clock, ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "warm_up", lambda session, batch: [session.run(batch) for _ in range(3)] and 2.0)
        blocks = measure.interleave({"A": (session, BATCH)}, Bench(min_seconds=0, rounds=4))["A"]
    for block in blocks:
        assert block.dtype == np.float64
        np.testing.assert_array_equal(block, np.full(25, 2.0))


@pytest.mark.parametrize("ms", [0.01, 1.0, 30.0, 400.0])
def test_a_steady_session_is_warm_as_soon_as_it_may_be(clock, ms):
    session = Fake(clock, lambda _: ms)
    measure.warm_up(session, BATCH)
    assert session.runs >= measure.MIN_WARM_UP_RUNS
    assert clock.perf_counter() >= measure.MIN_WARM_UP_SECONDS
    runs_needed = max(measure.MIN_WARM_UP_RUNS, measure.MIN_WARM_UP_SECONDS * 1000 / ms)
    assert session.runs <= runs_needed + 11


def test_warm_up_lasts_until_a_session_has_settled(clock):
    session = Fake(clock, lambda run: 1 + 3 * np.exp(-run / 100))
    measure.warm_up(session, BATCH)
    assert session.ms(session.runs) < 1.02
    assert clock.perf_counter() < measure.MAX_WARM_UP_SECONDS


@pytest.mark.parametrize(
    "ms", [lambda run: 1.0 + run * 0.01, lambda run: 1.3 ** (run // 10), lambda _: 1400.0, lambda _: 60_000.0]
)
def test_warm_up_ends_for_a_session_that_never_settles(clock, ms):
    session = Fake(clock, ms)
    measure.warm_up(session, BATCH)
    longest = ms(session.runs - 1) / 1000
    assert clock.perf_counter() < measure.MAX_WARM_UP_SECONDS + longest + 1e-6


def test_a_summary_is_a_reports_latency_object():
    found = measure.latency_summary([np.full(50, 2.0), np.full(50, 4.0)], batch_size=8, threads=None)
    assert found["median"] == 3.0
    assert (found["p90"], found["p99"], found["runs"]) == (4.0, None, 100)
    assert (found["batch_size"], found["threads"]) == (8, None)
    assert found["ci95"][0] <= 3.0 <= found["ci95"][1]


def write_onnx(file, num_weights: int = 16):
    """y = x + weights, for x (1, num_weights)."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "weights"], ["y"])],
        "addition",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, num_weights])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, num_weights])],
        [numpy_helper.from_array(np.ones((1, num_weights), np.float32), "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file


def test_a_cold_start_is_that_of_a_fresh_process(tmp_path):
    found = measure.cold_start(OnnxRuntime(), write_onnx(tmp_path / "small.onnx"))
    assert 0 < found.init_ms < 60_000
    assert 0 <= (found.peak_memory_bytes or 0) < 50e6


@measures_memory
def test_peak_memory_holds_at_least_the_weights(tmp_path):
    megabytes = 64
    large = write_onnx(tmp_path / "large.onnx", num_weights=megabytes * 250_000)
    found = measure.cold_start(OnnxRuntime(), large)
    assert found.peak_memory_bytes >= megabytes * 1e6
    assert found.peak_memory_bytes < 10 * megabytes * 1e6


GREEDY = """
import numpy as np
from typing import ClassVar
from edgedl.core import Target, TensorSpec

class Session:
    inputs = {"x": TensorSpec((1, 2))}

    def run(self, batch):
        assert batch["x"].shape == (1, 2)

    def close(self):
        pass

class Greedy(Target):
    use: str = "greedy:Greedy"
    requires: ClassVar = {"open": ("heavy_runtime",)}

    def open(self, file):
        np.ones(100 * 125_000).sum()
        return Session()
"""


@measures_memory
def test_peak_memory_is_that_of_loading_and_running_and_not_of_the_runtime(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text(GREEDY)
    (tmp_path / "heavy_runtime.py").write_text("import numpy as np; np.ones(500 * 125_000).sum()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = measure.cold_start(plugins.load("targets", "greedy:Greedy")(), tmp_path / "file")
    assert 90e6 < found.peak_memory_bytes < 150e6


@pytest.mark.parametrize("content", [b"", b"no onnx at all"])
def test_a_broken_file_fails_with_what_the_process_said(tmp_path, content):
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match="onnxruntime cannot load it") as caught:
        measure.cold_start(OnnxRuntime(), file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_process_that_dies_without_a_word_fails_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "sys", SimpleNamespace(executable="/bin/false"))
    with pytest.raises(TargetError, match="failed in a process of its own: status 1"):
        measure.cold_start(OnnxRuntime(), tmp_path / "any.onnx")
