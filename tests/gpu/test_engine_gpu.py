"""NVIDIA engines on a GPU: built by what is there of TensorRT and TensorRT-RTX, run, and compared with onnxruntime.

`pytest tests/gpu` on any machine with an NVIDIA GPU, cuda-python, onnx, onnxruntime, and one of the two.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgedl import benching, plugins
from edgedl.core import Batch, ModelFileError, Target, UsageError
from edgedl.nvidia import building, engine, gpu, library, passport

if (no_gpu := gpu.why_no_gpu()) is not None:
    pytest.skip(f"needs an NVIDIA GPU: {no_gpu}", allow_module_level=True)
PACKAGES = [name for name in ("tensorrt", "tensorrt_rtx") if plugins.installed(name)]
if not PACKAGES:
    pytest.skip("needs tensorrt or tensorrt-rtx", allow_module_level=True)

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper
onnxruntime = pytest.importorskip("onnxruntime")

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


@pytest.fixture(scope="module", params=PACKAGES)
def trt(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def target_of(trt: ModuleType, **fields: bool) -> Target:
    found = plugins.load("targets", trt.__name__.replace("_", "-")).model_validate(fields)
    assert isinstance(found, Target)
    return found


def engine_file(trt: ModuleType, folder: Path) -> Path:
    return folder / f"model{target_of(trt).suffixes[0]}"


@pytest.fixture(scope="module", params=list(TOLERANCES))
def files(
    request: pytest.FixtureRequest, trt: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """Precision, ONNX file, engine file."""
    folder = tmp_path_factory.mktemp(request.param)
    source, built = write_onnx(folder / "model.onnx", request.param), engine_file(trt, folder)
    building.write_engine(trt, source, built)
    return request.param, source, built


@pytest.fixture
def opened(trt: ModuleType, files: tuple[str, Path, Path]) -> Iterator[Callable[..., engine.EngineSession]]:
    """Opens the engine, with the target's fields if there are any."""
    sessions = []

    def made(**fields: bool) -> engine.EngineSession:
        session = target_of(trt, **fields).open(files[2])
        assert isinstance(session, engine.EngineSession)
        sessions.append(session)
        return session

    yield made
    for session in sessions:
        session.close()


@pytest.fixture
def session(opened: Callable[..., engine.EngineSession]) -> engine.EngineSession:
    return opened()


def images(seed: int) -> Batch:
    return {"image": np.random.default_rng(seed).normal(size=(2, 3, 16, 16)).astype(np.float32)}


def test_gpu_is_described() -> None:
    here = gpu.find_gpu()
    assert here is not None
    assert here.name in str(here)
    assert gpu.why_no_gpu() is None
    assert all(len(version.split(".")) == 2 for version in (here.compute_capability, here.driver))
    assert here.multiprocessors


def test_session_says_what_it_takes(trt: ModuleType, session: engine.EngineSession) -> None:
    assert session.runtime == library.describe(trt).lower()
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


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_close_gives_everything_back_and_may_be_repeated(
    opened: Callable[..., engine.EngineSession], cuda_graph: bool
) -> None:
    for _ in range(20):
        session = opened(cuda_graph=cuda_graph)
        session.run(images(0))
        session.close()
        session.close()


@pytest.mark.parametrize("spin_wait", [False, True])
def test_a_cuda_graph_answers_as_kernels_one_by_one(
    opened: Callable[..., engine.EngineSession], session: engine.EngineSession, spin_wait: bool
) -> None:
    recorded = opened(cuda_graph=True, spin_wait=spin_wait)
    assert (recorded.settings["cuda_graph"], recorded.settings["spin_wait"]) == (True, spin_wait)
    for seed in (0, 1, 2, 0):
        for name, values in session.run(images(seed)).items():
            np.testing.assert_array_equal(recorded.run(images(seed))[name], values)
    assert sum(time.time_ms for time in recorded.profile(images(0))) > 0


def test_a_passport_is_of_what_is_here(
    trt: ModuleType, files: tuple[str, Path, Path], session: engine.EngineSession
) -> None:
    known, here = passport.read(files[2]), gpu.find_gpu()
    assert known is not None
    assert here is not None
    assert (known.version, known.cuda, known.driver) == (trt.__version__, here.driver, gpu.driver_version())
    if trt.__name__ == "tensorrt":
        assert (known.gpu, known.multiprocessors) == (here.name, here.multiprocessors)
    assert session.settings["passport"]["engine_sha256"] == known.engine_sha256
    assert session.settings["warning"] is None


@pytest.mark.parametrize("key", ["gpu", "version"])
def test_an_engine_of_another_device_or_version_is_refused(
    trt: ModuleType, files: tuple[str, Path, Path], tmp_path: Path, key: str
) -> None:
    """By its passport alone: the engine itself would open."""
    if key == "gpu" and trt.__name__ == "tensorrt_rtx":
        pytest.skip("engines of TensorRT-RTX are for many GPUs")
    copy = engine_file(trt, tmp_path)
    copy.write_bytes(files[2].read_bytes())
    content = json.loads(passport.file_beside(files[2]).read_text())
    passport.file_beside(copy).write_text(json.dumps(content | {key: {"gpu": "Orin", "version": "10.1.0"}[key]}))
    with pytest.raises(ModelFileError, match=r"was built by .* here is .*: build it again on this device"):
        target_of(trt).open(copy)


def test_bench_states_how_the_engine_was_run(files: tuple[str, Path, Path]) -> None:
    (row,) = benching.bench([files[2]], None, None, None, 1, 0.1, False)
    assert row["engine"]["transfers"] is True
    assert (row["engine"]["cuda_graph"], row["engine"]["spin_wait"]) == (False, True)
    assert row["latency_ms"]["median"] > 0


@pytest.mark.skipif("tensorrt" not in PACKAGES, reason="a timing cache does nothing in TensorRT-RTX")
def test_timings_are_kept(tmp_path: Path) -> None:
    tensorrt = importlib.import_module("tensorrt")
    source, kept = write_onnx(tmp_path / "model.onnx", "fp32"), tmp_path / "kernels.cache"
    building.write_engine(tensorrt, source, tmp_path / "first.engine", timing_cache=kept)
    size = kept.stat().st_size
    building.write_engine(tensorrt, source, tmp_path / "again.engine", timing_cache=kept)
    assert kept.stat().st_size == size > 0


@pytest.mark.skipif("tensorrt_rtx" not in PACKAGES, reason="TensorRT builds for the GPU that is here alone")
@pytest.mark.parametrize("with_passport", [True, False])
def test_engine_for_another_gpu(tmp_path: Path, with_passport: bool) -> None:
    trt, here = importlib.import_module("tensorrt_rtx"), gpu.find_gpu()
    assert here is not None
    other = "7.5" if here.compute_capability != "7.5" else "12.0"
    file = engine_file(trt, tmp_path)
    building.write_engine(trt, write_onnx(tmp_path / "model.onnx", "fp32"), file, (other,))
    if not with_passport:
        passport.file_beside(file).unlink()
    with pytest.raises(ModelFileError, match=r"build it again on this device"):
        target_of(trt).open(file)


@pytest.mark.parametrize("precision", list(TOLERANCES))
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_for_a_range_of_batches(trt: ModuleType, precision: str, cuda_graph: bool, tmp_path: Path) -> None:
    source, built = write_onnx(tmp_path / "model.onnx", precision, "batch"), engine_file(trt, tmp_path)
    building.write_engine(trt, source, built, sizes={"batch": building.Range(1, 2, 5)})
    session = target_of(trt, cuda_graph=cuda_graph).open(built)
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
