"""What LiteRT's `benchmark_model` prints, in the formats of its releases; of its Python twin, what it prints here."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from edgedl.remote import benchmark_model
from edgedl.remote.benchmark_model import Operator, Replaced, Series
from edgedl.sessions import TargetError
from tests.dense_run import tflite_file

PRINTED = Path(__file__).parent / "printed"


def printed(name: str) -> benchmark_model.Printed:
    return benchmark_model.read((PRINTED / f"{name}.txt").read_text())


def test_all_that_is_printed_is_read():
    found = printed("processor")
    assert (found.init_ms, found.first_ms) == (4.217, 3.391)
    assert astuple(found.warm_up) == pytest.approx((372, 1.34122, 3.391, 0.118, 1.292, 3.391, 1.299, 1.322, 1.42))
    assert astuple(found.steady) == pytest.approx((228, 1.31493, 1.318, 0.031, 1.29, 1.702, 1.297, 1.309, 1.347))
    megabytes = [
        size / 2**20 for size in (found.init_memory_bytes, found.overall_memory_bytes, found.peak_memory_bytes)
    ]
    assert megabytes == [3.5625, 5.25, 12.5]
    assert found.replaced == (Replaced("TfLiteXNNPackDelegate", 4, 5, 1),)
    assert found.applied == {}
    assert [operator.kind for operator in found.initialization] == ["ModifyGraphWithDelegate", "AllocateTensors"]
    assert found.initialization[0].memory_bytes == 512_000
    assert found.operators == (
        Operator("main", "TfLiteXNNPackDelegate", "[StatefulPartitionedCall:0, relu;conv2]:5", 1.32, 1.251,
                 pytest.approx(0.96231), 0, 1),
        Operator("main", "SOFTMAX", "[probabilities]:4", 0.051, 0.049, pytest.approx(0.03769), 0, 1),
        Operator("delegate", "Convolution (NHWC, QS8) IGEMM", "Delegate/Convolution (NHWC, QS8) IGEMM:0", 0.871, 0.82,
                 pytest.approx(0.66129), 0, 1),
        Operator("delegate", "Fully Connected (NC, QS8) GEMM", "Delegate/Fully Connected (NC, QS8) GEMM:1", 0.44, 0.42,
                 pytest.approx(0.33871), 0, 1),
    )  # fmt: skip


def test_a_second_and_more_and_a_single_run():
    """From 1e+06 µs on, averages have an exponent; of runs that took as long, there is one figure."""
    found = printed("gpu")
    assert found.warm_up == Series(1, 1204.551, 1204.551, 0.0, 1204.551, 1204.551, 1204.551, 1204.551, 1204.551)
    assert found.steady.mean == 1201.71
    assert found.steady.median == 1201.455
    assert found.applied == {"GPU": "partially"}
    assert found.replaced == (Replaced("TfLiteGpuDelegateV2", 57, 58, 2),)
    assert found.peak_memory_bytes is None
    benchmark_model.check_delegate(found, "gpu")
    with pytest.raises(TargetError, match="the NNAPI delegate took no part"):
        benchmark_model.check_delegate(found, "nnapi")


def test_a_release_of_2019():
    found = printed("of-2019")
    assert (found.init_ms, found.first_ms) == (0.896, 12.231)
    assert found.steady == Series(123, 8.0771, 8.143, 0.124, 7.956, 8.656)
    assert found.overall_memory_bytes is None
    assert [(operator.kind, operator.name, operator.mean_ms) for operator in found.operators] == [
        ("CONV_2D", "[first/Relu6]", 4.27),
        ("DEPTHWISE_CONV_2D", "[second/Relu6]", 2.15),
        ("SOFTMAX", "[probabilities]", 1.58),
    ]
    assert found.initialization == ()


def test_operators_of_loops_are_told_apart():
    found = printed("subgraphs")
    assert [(operator.graph, operator.kind, operator.times_called) for operator in found.operators] == [
        ("main", "WHILE", 1), ("main", "FULLY_CONNECTED", 1), ("subgraph 1", "ADD", 64), ("subgraph 1", "TANH", 64),
    ]  # fmt: skip
    assert found.steady == Series(50, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ((PRINTED / "failed.txt").read_text(), "353 .* | .*BATCH_MATMUL.* failed to prepare. | .*Failed to allocate"),
        ("", "it said nothing"),
        ('CANNOT LINK EXECUTABLE "./benchmark_model": library "libOpenCL.so" not found', "CANNOT LINK"),
        ((PRINTED / "processor.txt").read_text().partition("INFO: Inference timings")[0], "avg=1314.93"),
        ((PRINTED / "processor.txt").read_text().replace("Init: 4217", "Init: 1e999"), "no times"),
        ((PRINTED / "processor.txt").read_text().replace("avg=1314.93", "avg=-5"), "no times"),
        ("Inference timings in us: \x1b[2J\ncount=5 curr=7", r"no times: +\[2J"),
        ("count=" + "9" * 5000 + " curr=1", "count=999"),
    ],
)
def test_what_tells_no_times_is_one_line(text, said):
    with pytest.raises(TargetError, match=said) as caught:
        benchmark_model.read(text)
    assert re.fullmatch(r"benchmark_model: [^\x00-\x1f\x7f]*", str(caught.value))
    assert len(str(caught.value)) < 1600


@pytest.mark.parametrize("lie", ["1e999", "nan", "-nan%", "1.2.3", "9" * 400, "", "\x00"])
@pytest.mark.parametrize("said", ["5.25", "12.5", "1.251", "96.231%", "512.000", "count=228", "=1309"])
def test_nothing_that_a_device_prints_breaks_the_reader(said, lie):
    text = (PRINTED / "processor.txt").read_text()
    try:
        found = benchmark_model.read(text.replace(said, lie))
    except TargetError:
        return
    assert all(np.isfinite(operator.mean_ms) for operator in found.operators)
    assert np.isfinite(found.steady.mean)


def test_what_it_is_called_with():
    given = benchmark_model.arguments("0.model", 4, "gpu", 0.3, [("0.model.i0", (1, 3, 8)), ("0.model.i1", (1,))])
    assert given == [
        "--graph=0.model",
        "--num_threads=4",
        "--input_layer=i0,i1",
        "--input_layer_shape=1,3,8:1",
        "--input_layer_value_files=i0:0.model.i0,i1:0.model.i1",
        "--warmup_min_secs=0.5",
        "--min_secs=0.3",
        "--num_runs=10",
        "--use_gpu=true",
    ]


def test_the_program_that_the_wheel_has_is_read_as_it_runs_here(tmp_path):
    """`benchmark_litert_model` of `ai_edge_litert`: the same figures, in other words and rounded to 10 µs."""
    (tmp_path / "0.model").write_bytes(tflite_file(np.ones((3000, 3000), np.float32), (1, 3000)))
    command = ["-m", "ai_edge_litert.tools.benchmark_litert_model", "--model=0.model", "--num_runs=20"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    found = benchmark_model.read(f"{done.stdout}\n{done.stderr}")
    assert found.steady.runs == 20
    assert found.warm_up is not None
    assert found.warm_up.runs == 5
    assert 0 < found.steady.least <= found.steady.median <= found.steady.most
    assert found.init_ms > 0
