"""Images as cameras give them: files that take uint8 and channels last, and do the rest themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import edgedl
from edgedl import measure, plugins
from edgedl.core import Batch, DataError, Model, UsageError
from edgedl.data.samples import shown
from edgedl.models.given import Given
from edgedl.quantize.simulate import Quantization
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tflite import TFLite
from edgedl.tasks.data import Data
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.torch_session import TorchSession
from edgedl.training import teachers

PER_CHANNEL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CAMERA = {"uint8_input": True, "channels_last": True}
SIZE = (10, 12)


def photos() -> dict[str, np.ndarray]:
    """Pictures of noise with more of one colour, and which it is."""
    rng = np.random.default_rng(0)
    label = np.arange(120) % 3
    image = rng.integers(0, 160, (len(label), 3, *SIZE)).astype(np.uint8)
    image[np.arange(len(label)), label] += 90
    return {"image": image, "label": label}


class Net(nn.Module):
    """Ends in int8: nothing behind the last grid could differ in the order of a float sum."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.features(image).amax((2, 3))


class Inside(Net):
    """Does to pixels itself what the task could."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward((image.float() / 255 - 0.5) / 0.25)


@cache
def network(kind: type[Net]) -> Net:
    torch.manual_seed(0)
    return kind().eval()


def made(fields: Mapping[str, Any], kind: type[Net] = Net) -> tuple[Data, nn.Module]:
    """The task, and the network as it is exported for it."""
    task = Data.of(photos(), **fields)
    return task, Given.of(network(kind)).built(task)


def answers(net: nn.Module, task: Data) -> np.ndarray:
    return TorchSession(net, task).run(task.arrays("test"))["output"]


def deployed(target: TFLite | OnnxRuntime, model: Model, task: Data, folder: Path) -> tuple[Path, Batch]:
    """A file and what it answers to the test split."""
    folder.mkdir()
    file = target.build(model, task, folder, 1).file
    return file, measure.evaluate(target.open(file), task, "test").outputs


def kinds(file: Path) -> list[str]:
    """Of a file's operators, as far as the first convolution."""
    if file.suffix == ".onnx":
        found = [node.op_type for node in onnx.load(str(file)).graph.node if node.input[0] not in constants(file)]
    else:
        graph = Flatbuffer(file.read_bytes())
        found = [graph.kind(operator) for operator in graph.operators if not graph.is_constant(operator)]
    return found[: next(index for index, kind in enumerate(found) if kind.upper().startswith("CONV"))]


def constants(file: Path) -> set[str]:
    return {tensor.name for tensor in onnx.load(str(file)).graph.initializer}


@pytest.mark.parametrize("fields", [PER_CHANNEL, {"mean": (0.5,), "std": (0.25,)}, {"std": (1.0,)}])
def test_a_network_answers_the_same_to_images_as_they_are(fields):
    task, net = made(fields)
    expected = answers(net, task)
    assert type(net) is Net
    for options in ({"uint8_input": True}, {"channels_last": True}, CAMERA):
        task, net = made(fields | options)
        spec = task.inputs["image"]
        assert spec.shape == ((*SIZE, 3) if "channels_last" in options else (3, *SIZE))
        assert spec.dtype == ("uint8" if "uint8_input" in options else "float32")
        assert task.inner.inputs["image"].shape == (3, *SIZE)
        np.testing.assert_allclose(answers(net, task), expected, atol=2e-6)
        assert net.state_dict().keys() == {f"net.{name}" for name in network(Net).state_dict()}


def test_arrays_that_lie_channels_last_go_to_networks_of_either_kind():
    data = photos()
    task = Data.of(data | {"image": data["image"].transpose(0, 2, 3, 1)}, layout="channels-last", **CAMERA)
    np.testing.assert_array_equal(task.arrays("test")["image"], made(CAMERA)[0].arrays("test")["image"])
    keras = Data.of(data | {"image": data["image"].transpose(0, 2, 3, 1)}, layout="channels-last", uint8_input=True)
    assert (keras.inputs["image"].shape, keras.inner.inputs["image"].shape) == ((*SIZE, 3), (*SIZE, 3))

    class Last(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.mean((1, 2))

    net = Given.of(Last()).built(keras)
    expected = keras.arrays("test")["image"].mean((1, 2)) / 255
    np.testing.assert_allclose(answers(net, keras), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "before"),
    [(PER_CHANNEL, ["DEQUANTIZE", "MUL", "ADD"]), ({}, ["DEQUANTIZE"])],
    ids=["per-channel", "scale"],
)
def test_tflite_takes_pixels_without_transposing_and_repeats_the_simulation(fields, before, tmp_path):
    task, net = made(fields | CAMERA)
    plan = Quantization(net, task, "min-max")
    quantized, found = deployed(TFLite(), Model(net, quantization=plan), task, tmp_path / "int8")
    whole, in_float = deployed(TFLite(), Model(net), task, tmp_path / "float")
    np.testing.assert_array_equal(found["output"], plan.simulated(TFLite.scheme).evaluated("test").outputs["output"])
    np.testing.assert_allclose(in_float["output"], answers(net, task), atol=2e-6)
    assert (kinds(whole), kinds(quantized)) == ([*before, "PAD"], [*before, "QUANTIZE", "PAD"])
    assert edgedl.open(quantized).inputs["image"].dtype == edgedl.open(whole).inputs["image"].dtype == "uint8"
    assert edgedl.open(quantized).inputs["image"].shape == (1, *SIZE, 3)


def test_without_the_options_tflite_transposes_and_answers_the_same(tmp_path):
    found = {}
    for name, fields in {"plain": PER_CHANNEL, "camera": PER_CHANNEL | CAMERA}.items():
        task, net = made(fields)
        plan = Quantization(net, task, "min-max")
        simulated = plan.simulated(TFLite.scheme).evaluated("test")
        found[name] = simulated.outputs["output"], simulated.score
        if name == "plain":
            file, outputs = deployed(TFLite(), Model(net, quantization=plan), task, tmp_path / name)
            assert "TRANSPOSE" in kinds(file)
            np.testing.assert_array_equal(outputs["output"], found[name][0])
    # Normalized in another order, pixels differ in their last bits, and a code may tip over.
    step = plan.simulated(TFLite.scheme).output_scales()["output"]
    np.testing.assert_allclose(found["camera"][0], found["plain"][0], atol=1.01 * step)
    assert found["camera"][1] == found["plain"][1]


def test_onnxruntime_takes_pixels_for_codes_where_they_are(tmp_path):
    before = {}
    for name, fields in {"per-channel": PER_CHANNEL | CAMERA, "codes": CAMERA, "first": {"uint8_input": True}}.items():
        task, net = made(fields)
        plan = Quantization(net, task, "min-max")
        file, found = deployed(OnnxRuntime(), Model(net, quantization=plan), task, tmp_path / name)
        simulated = plan.simulated(OnnxRuntime.scheme).evaluated("test")
        np.testing.assert_array_equal(found["output"], simulated.outputs["output"])
        before[name] = kinds(file)
    assert before == {
        "per-channel": ["Cast", "Mul", "Add", "Transpose", "QuantizeLinear", "DequantizeLinear"],
        "codes": ["Transpose", "DequantizeLinear"],
        "first": ["DequantizeLinear"],
    }


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_nvidias_builder_takes_pixels(name, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    target = plugins.load("targets", name)()
    task, net = made(PER_CHANNEL | CAMERA)
    plan = Quantization(net, task, "min-max")
    models = {"float": Model(net)} if name == "tensorrt-rtx" else {}
    for precision, model in (models | {"int8": Model(net, quantization=plan)}).items():
        (tmp_path / precision).mkdir()
        artifact = target.build(model, task, tmp_path / precision, 1)
        assert artifact.stand_in is not None
        found = measure.evaluate(plugins.stand_in().open(artifact.stand_in), task, "test").outputs["output"]
        expected = answers(net, task)
        if model.quantization:
            expected = plan.simulated(target.scheme).evaluated("test").outputs["output"]
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_network_that_does_so_itself_is_quantized_as_well(tmp_path):
    task, net = made({}, Inside)
    assert task.inputs["image"].dtype == "uint8"
    plan = Quantization(net, task, "min-max")
    _, found = deployed(OnnxRuntime(), Model(net, quantization=plan), task, tmp_path / "int8")
    simulated = plan.simulated(OnnxRuntime.scheme).evaluated("test")
    np.testing.assert_array_equal(found["output"], simulated.outputs["output"])


def test_a_folder_of_photos_is_compressed_whole_with_its_contract(tmp_path):
    data = photos()
    for index, (pixels, label) in enumerate(zip(data["image"], data["label"], strict=True)):
        folder = tmp_path / "photos" / "rgb"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{index:03}.png")
    steps = [{"use": "train", "epochs": 20, "lr": 1e-2}, {"use": "prune", "ratio": 0.3, "epochs": 1},
             {"use": "quantize", "method": "ptq", "calibrator": "min-max", "corrections": ()}]  # fmt: skip
    layers = (nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3))
    run = edgedl.compress(
        net, tmp_path / "photos", images=PER_CHANNEL | CAMERA, steps=steps, targets=["tflite"],
        bench={"min_seconds": 0.2}, out=tmp_path / "runs", progress=False,
    )  # fmt: skip
    report = json.loads(run.report.read_text())
    assert {row["status"] for row in report["rows"]} <= {"ok", "refused"}
    file = run.folder / next(row["file"] for row in report["rows"] if row["variant"] == "compressed")
    contract = json.loads(file.with_name("artifact.json").read_text())
    said = contract["preprocessing"]["inputs"]["image"]
    assert (said["dtype"], said["shape"], said["layout"]) == ("uint8", [*SIZE, 3], "channels-last")
    assert "mean" not in said, "an app would take it off twice"
    assert said["in_file"]["mean"] == pytest.approx(PER_CHANNEL["mean"])
    # What an app does: the bytes of a photo, and nothing else.
    photo = np.asarray(Image.open(sorted((tmp_path / "photos" / "b").iterdir())[0]))
    scores = edgedl.open(file).run({"image": photo[None]})["output"][0]
    assert contract["preprocessing"]["label"]["classes"][int(scores.argmax())] == "b"
    assert edgedl.bench(file, seconds=0.1)[0]["latency_ms"]["median"] > 0


def test_a_teacher_and_pictures_of_the_report_see_the_same_pixels():
    task = Data.of(photos(), uint8_input=True, **PER_CHANNEL)
    batch = task.arrays("test")
    np.testing.assert_array_equal(shown(task._prepared, batch, 0), batch["image"][0].transpose(1, 2, 0))
    answered = teachers.answers_over(Given.of(network(Net)), task, {"test": batch})["test"]["output"]
    np.testing.assert_allclose(answered, answers(made(PER_CHANNEL)[1], made(PER_CHANNEL)[0]), atol=2e-6)


def test_what_there_is_nothing_to_do_to_is_said():
    numbers = {"x": np.zeros((40, 5), np.float32), "label": np.arange(40) % 2}
    floats = photos() | {"image": photos()["image"].astype(np.float32)}
    cases = [
        (floats, {"uint8_input": True}, r"uint8_input is for images of uint8.*image \(3, 10, 12\) float32"),
        (numbers, {"channels_last": True}, r"channels_last is for images of three axes.*x \(5,\) float32"),
        (photos(), {"uint8_input": True, "mean": (0.1, 0.2)}, "mean has 2 values, but image has 3 channels"),
    ]
    for data, fields, said in cases:
        with pytest.raises(DataError, match=said):
            Data.of(data, **fields).arrays("train")
    turned = Data.of(floats, channels_last=True)
    assert (turned.inputs["image"].shape, turned.inner.inputs["image"].shape) == ((*SIZE, 3), (3, *SIZE))
    assert turned.preprocessing["inputs"]["image"]["layout"] == "channels-last"
    with pytest.raises(UsageError, match="images has no uint8; did you mean uint8_input"):
        edgedl.compress(network(Net), photos(), images={"uint8": True})
