"""What engines are built by and for, and that they are opened nowhere else; the GPU itself in tests/gpu."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx

from edgedl import plugins
from edgedl.core import MissingPackage, ModelFileError, TensorSpec
from edgedl.nvidia import building, engine, gpu, passport
from edgedl.nvidia.gpu import Gpu
from edgedl.nvidia.passport import Passport
from edgedl.report import lines
from edgedl.targets.tensorrt import TensorRT
from edgedl.targets.tensorrt_rtx import TensorRTRTX
from edgedl.targets.tflite import TFLite
from tests.test_engine import write_onnx

ORIN = Gpu("Orin", "8.7", "12.6", 16)
RELEASE = tensorrt_rtx.__version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    building.write_engine(tensorrt_rtx, write_onnx(folder / "model.onnx"), folder / "model.rtx", ("8.6", "8.9"))
    return folder / "model.rtx"


@pytest.fixture
def file(built: Path, tmp_path: Path) -> Path:
    """A copy with its passport, which tests may change."""
    copy = tmp_path / built.name
    copy.write_bytes(built.read_bytes())
    passport.file_beside(copy).write_bytes(passport.file_beside(built).read_bytes())
    return copy


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu], None]:
    """Makes this a machine with some GPU, as far as the checks before its first use see."""

    def there_is(found: Gpu) -> None:
        monkeypatch.setattr(gpu, "_probe", lambda: found)

    return there_is


def passport_of(here: Gpu, **changes: Any) -> Passport:
    return dataclasses.replace(passport.make("TensorRT", "10.3.0", b"plan", b"onnx", here, None), **changes)


def test_a_passport_says_by_what_and_for_what_an_engine_was_built(built: Path) -> None:
    found = passport.read(built)
    assert found is not None
    assert (found.library, found.version, found.gpu) == ("TensorRT-RTX", RELEASE, None)
    assert found.built_for == "GPUs of compute capability 8.6, 8.9"
    assert json.loads(passport.file_beside(built).read_text())["schema"] == passport.SCHEMA
    whole = passport.make("TensorRT", "10.3.0", b"plan", b"onnx", ORIN, None)
    assert whole.built_for == "Orin, compute capability 8.7, 16 multiprocessors"
    assert whole.cuda == "12.6"


def test_an_engine_for_other_gpus_is_refused_before_it_is_loaded(file: Path, on: Callable[[Gpu], None]) -> None:
    on(ORIN)
    with pytest.raises(ModelFileError) as caught:
        TensorRTRTX().open(file)
    assert str(caught.value) == (
        f"{file} was built by TensorRT-RTX {RELEASE} for GPUs of compute capability 8.6, 8.9; here is TensorRT-RTX "
        f"{RELEASE} and Orin, compute capability 8.7, 16 multiprocessors: build it again on this device, from its "
        "ONNX file"
    )


@pytest.mark.parametrize(
    ("listed", "capability", "served"),
    [(["8.6"], "8.6", True), (["8.6"], "8.9", False), ([], "12.0", True), ([], "8.0", True), ([], "7.5", False)],
)
def test_which_gpus_an_engine_of_tensorrt_rtx_serves(listed: list[str], capability: str, served: bool) -> None:
    made = passport.make("TensorRT-RTX", "1.7.1", b"plan", b"onnx", None, listed)
    here = Gpu("some GPU", capability, "13.0", 100)
    if served:
        passport.check(Path("m.rtx"), made, b"plan", "TensorRT-RTX", "1.7.1.116", here)
    else:
        with pytest.raises(ModelFileError, match=rf"here is .* compute capability {capability}"):
            passport.check(Path("m.rtx"), made, b"plan", "TensorRT-RTX", "1.7.1.116", here)


@pytest.mark.parametrize(
    ("library", "version", "here"),
    [
        ("TensorRT", "10.7.0", ORIN),
        ("TensorRT", "11.4.1", ORIN),
        ("TensorRT-RTX", "10.3.0", ORIN),
        ("TensorRT", "10.3.0", ORIN._replace(name="Thor")),
        ("TensorRT", "10.3.0", ORIN._replace(compute_capability="8.6")),
        ("TensorRT", "10.3.0", ORIN._replace(multiprocessors=8)),  # an Orin Nano, whose GPU has the same name
    ],
)
def test_another_version_or_device_is_refused_with_what_to_do(library: str, version: str, here: Gpu) -> None:
    made = passport_of(ORIN)
    passport.check(Path("m.engine"), made, b"plan", "TensorRT", "10.3.0.30", ORIN)
    passport.check(Path("m.engine"), made, b"plan", "TensorRT", "10.3.0", None)
    with pytest.raises(ModelFileError, match=rf"{library} {version} and .*: build it again on this device") as caught:
        passport.check(Path("m.engine"), made, b"plan", library, version, here)
    assert "was built by TensorRT 10.3.0 for Orin, compute capability 8.7, 16 multiprocessors; here is" in str(caught)


def test_an_engine_that_was_replaced_is_refused(file: Path) -> None:
    other = bytearray(file.read_bytes())
    other[-1] ^= 1
    file.write_bytes(other)
    with pytest.raises(ModelFileError, match=r"is not the engine that model\.rtx\.json tells of: .*build it again"):
        TensorRTRTX().open(file)


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "{}", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "library": 1, "version": "1", '
     '"engine_sha256": ""}', '{"schema": 1, "library": "TensorRT", "version": "1", "engine_sha256": "", "gpu": {}}',
     '{"schema": 1, "library": "", "version": "", "engine_sha256": "", "compute_capabilities": 8}'],
)  # fmt: skip
def test_what_is_no_passport_is_named(file: Path, text: str) -> None:
    passport.file_beside(file).write_text(text)
    with pytest.raises(ModelFileError, match=r"model\.rtx\.json: .*; build it again on this device") as caught:
        TensorRTRTX().open(file)
    assert "\n" not in str(caught.value)


def test_another_power_mode_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "nvpmodel"
    said.write_text("#!/bin/sh\n[ $1 = -q ] && printf 'NV Fan Mode:quiet\\nNV Power Mode: MODE_30W\\n2\\n'\n")
    said.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu.power_mode() == "MODE_30W"
    made = passport_of(ORIN)
    assert made.power_mode == "MODE_30W"
    assert passport.other_power_mode(made, "MODE_30W") is None
    assert "chosen in power mode MODE_30W, and it runs in MAXN" in str(passport.other_power_mode(made, "MAXN"))
    said.write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 350.00\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpu.power_mode() == "at most 350 W"


def test_the_driver_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain@mobile)\n"
        "GCC version:  gcc version 11.4.0\n"
    )
    monkeypatch.setattr(gpu, "DRIVER_FILE", file)
    assert gpu.driver_version() == "540.4.0"
    file.unlink()
    assert gpu.driver_version() is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in TensorRT-RTX a timing cache does nothing, but is there
def test_times_of_kernels_are_kept_and_damaged_ones_replaced(built: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "kernels.cache"
    source = built.with_name("model.onnx")
    building.build_engine(tensorrt_rtx, source, timing_cache=kept)
    first = kept.read_bytes()
    assert first
    kept.write_bytes(b"damaged")
    building.build_engine(tensorrt_rtx, source, timing_cache=kept)
    assert kept.read_bytes() == first
    assert [file.name for file in kept.parent.iterdir()] == ["kernels.cache"]


def test_times_are_of_a_version_a_gpu_and_a_power_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trt = SimpleNamespace(__name__="tensorrt", __version__="10.3.0")
    modes = ("15W", "MAXN", None)
    found = set()
    for mode in modes:
        monkeypatch.setattr(building, "power_mode", lambda mode=mode: mode)
        found |= {building.timing_cache(trt, here) for here in (ORIN, ORIN._replace(multiprocessors=8))}
    assert len(found) == 2 * len(modes)
    assert {file.parent for file in found} == {tmp_path / "edgedl" / "timing"}
    assert "tensorrt-10.3.0-Orin-16-MAXN.cache" in {file.name for file in found}


def test_a_tensorrt_without_its_libraries_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage, match=r"tensorrt cannot be loaded: libnvinfer\.so\.10: cannot open"):
        TensorRT().open(tmp_path / "model.engine")


def test_an_engine_of_a_run_is_run_as_its_recipe_says(tmp_path: Path) -> None:
    file = tmp_path / "model.engine"
    assert plugins._opened_with(file, TensorRT) == {}
    told = {"target": TensorRT(cuda_graph=True, spin_wait=False).model_dump()}
    (tmp_path / "artifact.json").write_text(json.dumps(told))
    assert plugins._opened_with(file, TensorRT) == {"cuda_graph": True, "spin_wait": False}
    assert plugins._opened_with(file, TFLite) == {}
    (tmp_path / "artifact.json").write_text("[]")
    assert plugins._opened_with(file, TensorRT) == {}


def test_how_an_engine_was_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "power_mode", lambda: "15W")
    made = passport_of(ORIN, power_mode="MAXN")
    row = {"engine": engine._settings(made, cuda_graph=True, spin_wait=False)}
    assert row["engine"]["passport"]["gpu"] == "Orin"
    assert lines.engine(row) == (
        "run as one CUDA graph, waiting asleep, with the copies from and to the host in the time; power mode 15W; its "
        "kernels were chosen in power mode MAXN, and it runs in 15W: build it again for it"
    )
    assert lines.engine({"engine": None}) is lines.engine({}) is None


class Cuda:
    """Writes down the calls that a session makes of the CUDA runtime, which is not here."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name.removeprefix("cuda") + (f" {arguments[3]}" if "Memcpy" in name else ""))
            return 0, f"{name}'s"

        return call


def session_without_gpu(cuda_graph: bool) -> tuple[engine.EngineSession, Cuda]:
    """A session as its constructor leaves it, for what `run` does then."""
    cuda, session = Cuda(), engine.EngineSession.__new__(engine.EngineSession)
    spec = TensorSpec((4, 2), free=(0,))
    session.inputs, session.outputs = {"x": spec}, {"y": TensorSpec((4, 2))}
    session._buffers = {name: (np.zeros((4, 2), np.float32), 1, 2) for name in ("x", "y")}
    session._cuda, session._stream, session._recorded = cuda, 7, (None, None)
    session._cuda_graph, session._recording, session.file = cuda_graph, engine.ExitStack(), Path("m.engine")
    session._sizes = lambda name: ((1, 2), (4, 2), (4, 2))  # type: ignore[method-assign]
    session._context = SimpleNamespace(
        execute_async_v3=lambda stream: cuda.calls.append("kernels") or True, set_input_shape=lambda name, shape: None
    )
    return session, cuda


def test_a_cuda_graph_is_recorded_once_a_shape_and_then_only_launched() -> None:
    whole, half = ({"x": np.ones((size, 2), np.float32)} for size in (4, 2))
    one_by_one = ["MemcpyAsync in", "kernels", "MemcpyAsync out", "StreamSynchronize"]
    recorded = [*one_by_one, "StreamBeginCapture", *one_by_one[:3], "StreamEndCapture", "GraphInstantiate"]
    launched = ["GraphLaunch", "StreamSynchronize"]
    session, cuda = session_without_gpu(cuda_graph=False)
    session.run(whole)
    assert cuda.calls == one_by_one
    session, cuda = session_without_gpu(cuda_graph=True)
    for batch in (whole, whole, half, half):
        session.run(batch)
    given_back = ["GraphExecDestroy", "GraphDestroy"]
    again = [*one_by_one, *given_back, *recorded[4:], *launched, *launched]
    assert cuda.calls == [*recorded, *launched, *launched, *again]
    session._recording.close()
    assert cuda.calls[-2:] == given_back
