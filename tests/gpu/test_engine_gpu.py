"""NVIDIA engines on a GPU: built by TensorRT-RTX, run, and compared with onnxruntime on the same ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper, numpy_helper

from edgedl import engine
from edgedl.core import Batch, ModelFileError, UsageError
from edgedl.targets.tensorrt_rtx import TensorRTRTX

pytestmark = pytest.mark.skipif(engine.find_gpu() is None, reason=f"needs an NVIDIA GPU: {engine.why_no_gpu()}")

TOLERANCES = {"fp32": 5e-3, "int8": 1e-5}
"""Largest difference as a share of the largest output: TF32 has 10 bits of mantissa, int8 sums are exact."""


def write_onnx(file: Path, precision: str, batch: int | str = 2) -> Path:
    """A convolution of image (batch, 3, 16, 16) with a residual addition, and a second output, its mean (batch, 8)."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    constants: dict[str, np.ndarray] = {"bias": rng.normal(size=8).astype(np.float32), "axes": np.array([2, 3])}
    nodes = []
    if precision == "int8":
        scale = np.abs(weight).max((1, 2, 3)) / 127
        constants["weight_q"] = np.round(weight / scale[:, None, None, None]).astype(np.int8)
        constants |= {"scale": np.float32(0.03), "zero": np.int8(0), "weight_scale": scale}
        nodes = [
            helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["image_q"], "q_image"),
            helper.make_node("DequantizeLinear", ["image_q", "scale", "zero"], ["input"], "dq_image"),
            helper.make_node("DequantizeLinear", ["weight_q", "weight_scale"], ["weight"], "dq_weight", axis=0),
        ]
    else:
        constants["weight"] = weight
        nodes = [helper.make_node("Identity", ["image"], ["input"], "input")]
    nodes += [
        helper.make_node("Conv", ["input", "weight", "bias"], ["sums"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["sums"], ["features"], "relu"),
        helper.make_node("ReduceMean", ["features", "axes"], ["mean"], "mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("features", "mean")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(file))
    return file


@pytest.fixture(scope="module", params=list(TOLERANCES))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Precision, ONNX file, engine file."""
    folder = tmp_path_factory.mktemp(request.param)
    source, built = write_onnx(folder / "model.onnx", request.param), folder / "model.rtx"
    built.write_bytes(engine.build_engine(tensorrt_rtx, source))
    return request.param, source, built


@pytest.fixture
def session(files: tuple[str, Path, Path]) -> Iterator[engine.EngineSession]:
    session = TensorRTRTX().open(files[2])
    yield session
    session.close()


def images(seed: int) -> Batch:
    return {"image": np.random.default_rng(seed).normal(size=(2, 3, 16, 16)).astype(np.float32)}


def test_gpu_is_described() -> None:
    gpu = engine.find_gpu()
    assert gpu is not None
    assert gpu.name in str(gpu)
    assert engine.why_no_gpu() is None
    assert all(len(version.split(".")) == 2 for version in (gpu.compute_capability, gpu.driver))


def test_session_says_what_it_takes(session: engine.EngineSession) -> None:
    assert session.runtime == f"tensorrt-rtx {tensorrt_rtx.__version__}"
    assert {name: (spec.shape, spec.dtype) for name, spec in session.inputs.items()} == {
        "image": ((2, 3, 16, 16), "float32")
    }
    assert {name: spec.shape for name, spec in session.outputs.items()} == {"features": (2, 8, 16, 16), "mean": (2, 8)}


def test_answers_are_those_of_onnxruntime(files: tuple[str, Path, Path], session: engine.EngineSession) -> None:
    precision, source, _ = files
    reference = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    for seed in range(3):
        expected = dict(zip(["features", "mean"], reference.run(["features", "mean"], images(seed)), strict=True))
        found = session.run(images(seed))
        for name, values in expected.items():
            assert np.abs(found[name] - values).max() <= TOLERANCES[precision] * np.abs(values).max(), name


def test_outputs_are_copies(session: engine.EngineSession) -> None:
    first = session.run(images(0))["mean"]
    kept = first.copy()
    session.run(images(1))
    np.testing.assert_array_equal(first, kept)


def test_input_need_not_be_contiguous(session: engine.EngineSession) -> None:
    batch = images(0)
    strided = np.ascontiguousarray(batch["image"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(session.run({"image": strided})["mean"], session.run(batch)["mean"])


@pytest.mark.parametrize(
    "batch", [{}, {"image": np.zeros((1, 3, 16, 16), np.float32)}, {"image": np.zeros((2, 3, 16, 16))}]
)
def test_wrong_input_is_named(session: engine.EngineSession, batch: Batch) -> None:
    with pytest.raises(UsageError, match=r"input image wants float32 \(2, 3, 16, 16\), was given"):
        session.run(batch)


def test_profile_names_layers(session: engine.EngineSession) -> None:
    before = session.run(images(0))
    times = session.profile(images(0))
    assert all(time.time_ms >= 0 and time.name and time.kind for time in times)
    assert sum(time.time_ms for time in times) > 0
    np.testing.assert_array_equal(session.run(images(0))["mean"], before["mean"])
    assert session.activations(images(0)) == ()


def test_close_gives_everything_back_and_may_be_repeated(files: tuple[str, Path, Path]) -> None:
    for _ in range(20):
        session = TensorRTRTX().open(files[2])
        session.run(images(0))
        session.close()
        session.close()


def test_engine_for_another_gpu(tmp_path: Path) -> None:
    gpu = engine.find_gpu()
    assert gpu is not None
    other = "7.5" if gpu.compute_capability != "7.5" else "12.0"
    file = tmp_path / "model.rtx"
    file.write_bytes(engine.build_engine(tensorrt_rtx, write_onnx(tmp_path / "model.onnx", "fp32"), (other,)))
    with pytest.raises(ModelFileError, match=r"build it again on this device"):
        TensorRTRTX().open(file)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_an_engine_for_a_range_of_batches(precision: str, tmp_path: Path) -> None:
    source, built = write_onnx(tmp_path / "model.onnx", precision, "batch"), tmp_path / "model.rtx"
    sizes = {"batch": engine.Range(1, 2, 5)}
    built.write_bytes(engine.build_engine(tensorrt_rtx, source, sizes=sizes))
    session = TensorRTRTX().open(built)
    assert (session.inputs["image"].shape, session.inputs["image"].free) == ((2, 3, 16, 16), (0,))
    assert (session.outputs["mean"].shape, session.outputs["mean"].free) == ((2, 8), (0,))
    reference = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    whole = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    for size in (5, 1, 2, 3):
        found = session.run({"image": whole[:size]})
        expected = dict(
            zip(["features", "mean"], reference.run(["features", "mean"], {"image": whole[:size]}), strict=True)
        )
        for name, values in expected.items():
            assert found[name].shape == values.shape
            assert np.abs(found[name] - values).max() <= TOLERANCES[precision] * np.abs(values).max(), name
    assert sum(time.time_ms for time in session.profile({"image": whole[:2]})) > 0
    with pytest.raises(UsageError, match=r"input image wants float32 \(any, such as 2, 3, 16, 16\), was given"):
        session.run({"image": np.zeros((6, 3, 16, 16), np.float32)})
    session.close()
