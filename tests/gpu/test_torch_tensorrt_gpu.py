"""Modules of torch-tensorrt on a GPU: built, opened, run, and compared with PyTorch on the same network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedl import plugins
from edgedl.core import Model, ModelFileError
from edgedl.nvidia import passport
from edgedl.quantize.simulate import Quantization
from edgedl.targets.torch_tensorrt import TorchTensorRT

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU and a PyTorch with CUDA", allow_module_level=True)
if not plugins.installed("torch_tensorrt"):
    pytest.skip("needs torch-tensorrt", allow_module_level=True)

from tests.test_torch_tensorrt import TASK, network  # noqa: E402 - it needs what was asked for above

TOLERANCES = {"fp32": 5e-3, "fp16": 2e-2}
"""Largest difference as a share of the largest output."""


@pytest.fixture(scope="module", params=list(TOLERANCES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    plan = Quantization(network(), TASK, "min-max").in_form("fp16") if request.param == "fp16" else None
    model = Model(net=network(), quantization=plan)
    return request.param, TorchTensorRT().build(model, TASK, tmp_path_factory.mktemp(request.param), 2).file


def test_answers_are_those_of_pytorch(built: tuple[str, Path]) -> None:
    precision, file = built
    session = TorchTensorRT().open(file)
    (name,) = session.inputs
    given = np.random.default_rng(0).normal(size=session.inputs[name].shape).astype(np.float32)
    with torch.no_grad():
        expected = network()(torch.from_numpy(given)).numpy()
    (found,) = session.run({name: given}).values()
    assert np.abs(found - expected).max() <= TOLERANCES[precision] * np.abs(expected).max()
    assert session.settings["transfers"] is True
    session.close()


def test_the_engine_by_itself_has_a_passport(built: tuple[str, Path]) -> None:
    for file in (built[1], built[1].with_name("model.engine")):
        known = passport.read(file)
        assert known is not None
        assert known.gpu == torch.cuda.get_device_name(0)


def test_another_gpu_is_refused(built: tuple[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "model.ep"
    copy.write_bytes(built[1].read_bytes())
    beside = passport.file_beside(built[1]).read_text()
    passport.file_beside(copy).write_text(beside.replace(torch.cuda.get_device_name(0), "Orin"))
    with pytest.raises(ModelFileError, match="build it again on this device"):
        TorchTensorRT().open(copy)
