"""The metadata of .tflite files for MediaPipe and ML Kit, read back by the numbers of its schema's fields."""

from __future__ import annotations

import zipfile
from typing import Any

import flatbuffers.encode
import flatbuffers.packer
import numpy as np
import pytest
import torch
from flatbuffers import number_types
from flatbuffers.table import Table
from torch import nn

from edgedl import inspecting
from edgedl.core import Model
from edgedl.measure import evaluate
from edgedl.targets.tflite import TFLite
from edgedl.tflite.flatbuffer import Flatbuffer
from tests.toys import Noise

CONTRACT = {"scale": 1 / 255, "mean": [0.5, 0.25, 0.0], "std": [0.5, 0.25, 1.0]}


class Photographs(Noise):
    """Small images with their channels last, of two kinds."""

    shape: tuple[int, ...] = (6, 5, 3)
    in_file: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("a  cat", "a\ndog")

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {"inputs": {"x0": {"in_file": CONTRACT} if self.in_file else CONTRACT}}


class Read:
    """A table, by the numbers of its fields in metadata_schema.fbs."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def _at(self, number: int) -> int:
        return int(self.table.Offset(4 + 2 * number))

    def text(self, number: int) -> str:
        return self.table.String(self._at(number) + self.table.Pos).decode()

    def byte(self, number: int) -> int:
        return int(self.table.Get(number_types.Uint8Flags, self._at(number) + self.table.Pos))

    def child(self, number: int) -> Read:
        return Read(Table(self.table.Bytes, self.table.Indirect(self._at(number) + self.table.Pos)))

    def children(self, number: int) -> list[Read]:
        offset = self._at(number)
        if not offset:
            return []
        start = self.table.Vector(offset)
        places = range(start, start + 4 * self.table.VectorLen(offset), 4)
        return [Read(Table(self.table.Bytes, self.table.Indirect(place))) for place in places]

    def floats(self, number: int) -> list[float]:
        return [float(one) for one in self.table.GetVectorAsNumpy(number_types.Float32Flags, self._at(number))]


def read(content: bytes) -> Read:
    graph = Flatbuffer(content)
    (entry,) = (one for one in graph.model.metadata if one.name == b"TFLITE_METADATA")
    found = bytes(graph.model.buffers[entry.buffer].data)
    assert found[4:8] == b"M001"
    return Read(Table(bytearray(found), flatbuffers.encode.Get(flatbuffers.packer.uoffset, found, 0)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.permute(0, 3, 1, 2))

    torch.manual_seed(0)
    return Last().eval()


@pytest.mark.parametrize("in_file", [False, True])
def test_a_file_says_what_its_image_is_and_how_its_classes_are_called(net, in_file, tmp_path):
    task = Photographs(in_file=in_file)
    artifact = TFLite(metadata=True).build(Model(net=net), task, tmp_path, 1)
    model = read(artifact.file.read_bytes())
    assert (model.text(0), model.text(7)) == ("noise", "1.0.0")
    (subgraph,) = model.children(3)
    (image,), (answer,) = subgraph.children(2), subgraph.children(3)
    assert (image.text(0), answer.text(0)) == ("x0", "y")
    content = image.child(3)
    assert (content.byte(0), content.child(1).byte(0)) == (2, 1)  # image properties, RGB
    (unit,) = image.children(4)
    assert unit.byte(0) == 1  # a normalization
    of_pixels = ([0.0], [1.0]) if in_file else ([127.5, 63.75, 0.0], [127.5, 63.75, 255.0])
    assert np.allclose([*unit.child(1).floats(0), *unit.child(1).floats(1)], [*of_pixels[0], *of_pixels[1]])
    (file,) = answer.children(6)
    assert (file.text(0), file.byte(2)) == ("labels.txt", 2)  # labels along an axis
    with zipfile.ZipFile(artifact.file) as archive:
        assert archive.read("labels.txt").decode() == "a cat\na dog\n"

    (tmp_path / "plain").mkdir()
    plain = TFLite().build(Model(net=net), task, tmp_path / "plain", 1)
    assert len(plain.file.read_bytes()) < len(artifact.file.read_bytes())
    outputs = []
    for made in (artifact, plain):
        session = TFLite().open(made.file)
        outputs.append(evaluate(session, task, "test").outputs["y"])
        session.close()
    assert np.array_equal(*outputs)
    assert inspecting.of_file(artifact.file)["metadata"] is True


def test_what_is_no_image_is_numbers_without_a_normalization(tmp_path):
    task = Noise(shape=(7,))
    artifact = TFLite(metadata=True).build(Model(net=nn.Linear(7, 2).eval()), task, tmp_path, 1)
    (subgraph,) = read(artifact.file.read_bytes()).children(3)
    (numbers,) = subgraph.children(2)
    assert numbers.child(3).byte(0) == 1
    assert numbers.children(4) == []
    assert not zipfile.is_zipfile(artifact.file)
