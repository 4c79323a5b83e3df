"""Engines that a device builds of a run's ONNX files, runs and times; TensorRT-RTX does where there is no TensorRT."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgedl import devices
from edgedl.devices import Device
from edgedl.devices.local import Local
from edgedl.nvidia.gpu import find_gpu, why_no_gpu
from edgedl.remote import deploying, on_device
from tests import made_run

pytestmark = pytest.mark.skipif(find_gpu() is None, reason=f"needs an NVIDIA GPU: {why_no_gpu()}")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, whose `tensorrt` is TensorRT-RTX if it has no other."""
    (tmp_path / "packages").mkdir()
    if importlib.util.find_spec("tensorrt") is None:
        stands_in = "import sys, tensorrt_rtx; sys.modules['tensorrt'] = tensorrt_rtx\n"
        (tmp_path / "packages" / "tensorrt.py").write_text(stands_in)

    @contextmanager
    def connect(where: str) -> Iterator[Device]:
        (tmp_path / "device").mkdir(exist_ok=True)
        found = Local(tmp_path / "device", PYTHONPATH=str(tmp_path / "packages"))
        found.builds_engines = True
        yield found

    monkeypatch.setattr(devices, "connect", connect)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("max_batch", [None, 4])
def test_engines_are_built_run_and_timed_on_the_device(max_batch, tmp_path):
    run = made_run.make(tmp_path / "run", max_batch=max_batch)
    for row in on_device.bench(run, "gpu", 0.1)["rows"]:
        assert row["status"] == "ok", row["reason"]
        assert row["score"] == pytest.approx(row["score_here"], abs=0.01)
        assert row["latency_ms"]["median"] > 0
        if row["target"] == "tensorrt":
            assert row["built"]["size_bytes"] > 1000
            assert row["engine"] == {"cuda_graph": False, "spin_wait": True, "transfers": True}


@pytest.mark.usefixtures("device")
def test_an_engine_is_left_with_an_example_that_is_right(tmp_path):
    run = made_run.make(tmp_path / "run")
    found = deploying.deploy(run, "gpu", "tensorrt", None, str(tmp_path / "left"))
    assert found["example"].splitlines()[-1] == "right"
    assert {"model.engine", "model.engine.json", "model.onnx"} < set(found["files"])
