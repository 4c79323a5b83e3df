"""The target torch-tensorrt without a GPU, where its package cannot even be imported: what it refuses, and how."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgedl import plugins
from edgedl.core import MissingPackage, Model, ModelFileError, TargetError
from edgedl.quantize.simulate import Quantization
from edgedl.targets.torch_tensorrt import TorchTensorRT
from tests.test_engine import TASK, network

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where PyTorch has no GPU")


@pytest.mark.skipif(plugins.installed("torch_tensorrt"), reason="torch-tensorrt is installed")
def test_without_its_package_it_is_refused_in_a_line() -> None:
    with pytest.raises(MissingPackage) as caught:
        plugins.require([TorchTensorRT()])
    assert str(caught.value) == (
        "target torch-tensorrt needs torch-tensorrt: pip install 'edgedl[torch-tensorrt]'"
    )  # fmt: skip


@without_cuda
def test_without_a_gpu_it_says_so_before_it_imports_anything(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"builds for the GPU that is there, and torch \S+ is built without CUDA"):
        TorchTensorRT().build(Model(net=network()), TASK, tmp_path, batch_size=2)
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.ep").write_bytes(b"")
    with pytest.raises(TargetError, match=r"model\.ep cannot run here, and torch \S+ is built without CUDA"):
        TorchTensorRT().open(tmp_path / "model.ep")
    with pytest.raises(ModelFileError, match=r"no file .*other\.ep"):
        TorchTensorRT().open(tmp_path / "other.ep")


def test_int8_is_for_another_target() -> None:
    model = Model(net=network(), quantization=Quantization(network(), TASK, "min-max"))
    with pytest.raises(TargetError, match=r"target torch-tensorrt has no form 'int8', only fp16"):
        TorchTensorRT().graph(model)
