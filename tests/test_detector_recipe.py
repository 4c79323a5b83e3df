"""The detector: its recipe in a tiny form, drawn roads, what is found, folders in COCO's format, and bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgedl import plugins
from edgedl.core import Model, UsageError
from edgedl.measure import evaluate
from edgedl.models.detector import RARE, Detector
from edgedl.steps.quantize import Quantize
from edgedl.synthetic import road
from edgedl.tasks import detection
from edgedl.tasks.detection import Detection
from edgedl.torch_session import TorchSession
from tests.tiny import refusal, tiny_run, told

Image = pytest.importorskip("PIL.Image")
NUM = 20


@pytest.fixture
def few(monkeypatch):
    """Pictures by the dozen."""
    monkeypatch.setattr(detection, "NUM_PICTURES", {"train": 48, "validation": 12, "test": 24})
    detection._drawn.cache_clear()
    yield
    detection._drawn.cache_clear()


@pytest.mark.usefixtures("few")
def test_the_recipe_of_the_detector_runs(tmp_path):
    report = tiny_run("detector-int8", tmp_path)
    assert report["metric"]["name"] == "mAP 50"
    told(report, tmp_path)


@pytest.mark.usefixtures("few")
def test_roads_hold_things_of_all_kinds_where_their_boxes_are():
    pictures, things = road.draw(60, 96, seed=5)
    again, _ = road.draw(60, 96, seed=5)
    np.testing.assert_array_equal(pictures, again)
    there = things[things[:, :, 0] >= 0]
    assert set(there[:, 0]) == {0, 1, 2}
    assert (there[:, 1:3] < there[:, 3:]).all()
    assert (there[:, 1:] >= 0).all()
    assert (there[:, 1:] <= 96).all()
    across, down = there[:, 3] - there[:, 1], there[:, 4] - there[:, 2]
    whole = (there[:, 1] > 0) & (there[:, 3] < 96)
    assert np.median((across / down)[whole & (there[:, 0] == 0)]) > 1.2
    assert np.median((across / down)[whole & (there[:, 0] == 1)]) < 0.5
    bare, _ = road.draw(60, 96, seed=6)
    assert bare.std(axis=(1, 2, 3)).min() > 5


def perfect(task: Detection, things: np.ndarray) -> dict[str, np.ndarray]:
    """What a network without fault answers."""
    cells = task.size // detection.STRIDE
    near, distances = detection._wanted(torch.from_numpy(things), cells, cells)
    kinds = torch.arange(task.num_classes) == torch.from_numpy(things)[:, :, :1]
    heat = (near[:, :, None] * kinds[:, :, :, None, None]).amax(1)
    whose = near.argmax(1, keepdim=True)
    boxes = distances.gather(1, whose[:, :, None].expand(-1, 1, 4, -1, -1)).squeeze(1)
    return {"heat": (torch.logit(heat, 1e-4)).numpy(), "boxes": boxes.numpy()}


def test_things_are_found_where_they_are():
    things = np.full((2, 3, 5), -1, np.float32)
    things[0, :2] = [0, 8, 40, 48, 64], [1, 60, 30, 70, 60]
    things[1, 0] = 2, 20, 20, 30, 30
    task = Detection()
    outputs = perfect(task, things)
    first, second = ([row for row in picture if row[5] > 0.9] for picture in task.found(outputs))
    np.testing.assert_allclose(sorted(row[:5].tolist() for row in first), things[0, :2], atol=1e-3)
    np.testing.assert_allclose([row[:5] for row in second], things[1, :1], atol=1e-3)
    batch = {"things": things}
    assert task.score(outputs, batch) == pytest.approx(1)
    assert task.figures(None, outputs, batch)["mAP 50-95"] == pytest.approx(1)
    shifted = outputs | {"boxes": outputs["boxes"] + 1}
    assert task.figures(None, shifted, batch)["mAP 50-95"] < 0.9
    nothing = outputs | {"heat": np.full_like(outputs["heat"], -20)}
    assert task.score(nothing, batch) == 0


def test_of_boxes_that_overlap_by_half_the_surest_stays():
    kinds, scores = np.array([0, 0, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6])
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [6, 0, 16, 10], [0, 0, 10, 10]], float)
    assert detection._kept(kinds, boxes, scores, suppress=True)[:, 5].tolist() == [0.9, 0.7, 0.6]
    assert len(detection._kept(kinds, boxes, scores, suppress=False)) == 4


def test_the_loss_is_least_where_all_is_found():
    _, things = road.draw(4, 96, seed=1)
    task, batch = Detection(), {"things": torch.from_numpy(things)}
    right = {name: torch.from_numpy(values) for name, values in perfect(task, things).items()}
    best = float(task.loss(right, batch))
    assert best < float(task.loss(right | {"boxes": right["boxes"] + 1}, batch))
    assert best < float(task.loss(right | {"heat": right["heat"].roll(2, 3)}, batch))
    nothing = {"things": torch.full((4, 1, 5), -1.0)}
    assert float(task.loss({name: 0 * values for name, values in right.items()}, nothing)) > 0


def test_with_suppression_inside_only_the_likeliest_of_neighbours_stays_likely():
    torch.manual_seed(0)
    inside = Detector().build(Detection(suppression="inside")).eval()
    outside = Detector().build(Detection()).eval()
    outside.load_state_dict(inside.state_dict())
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        (left, boxes), (heat, same) = inside(image), outside(image)
        torch.testing.assert_close(boxes, same)
        peaks = heat == torch.nn.functional.max_pool2d(heat, 3, 1, 1)
        torch.testing.assert_close(left[peaks], heat[peaks])
        clear = torch.nn.functional.max_pool2d(heat, 3, 1, 1) - heat > 0.1
        torch.testing.assert_close(left[clear], heat[clear] - 6)
        inside.train()
        outside.train()
        torch.testing.assert_close(inside(image)[0], outside(image)[0])  # what learns sees all cells


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("target", ["tflite", "onnxruntime"])
def test_with_suppression_inside_files_find_what_the_network_finds(target, tmp_path):
    """A step between neighbours may turn which of them is lowered by six, but only in a few cells."""
    torch.manual_seed(0)
    task = Detection(size=32, suppression="inside")
    net = Detector(widths=(8, 8, 8), head=8).build(task).eval()
    with torch.no_grad():
        net.heat.weight *= 30  # as far apart as those of a network that has learned
    model = Model(net=net)
    runtime = plugins.load("targets", target)()
    for given in (model, Quantize(method="ptq", calibrator="min-max", corrections=()).apply(model, task)):
        (tmp_path / given.precision).mkdir()
        session = runtime.open(runtime.build(given, task, tmp_path / given.precision, 1).file)
        found = evaluate(session, task, "test").outputs["heat"]
        wanted = evaluate(TorchSession(given.net, task), task, "test")
        if given.quantization is not None:
            wanted = given.quantization.simulated(runtime.scheme).evaluated("test")
        apart = np.abs(found - wanted.outputs["heat"])
        assert (apart < 0.05).mean() > (0.999 if given is model else 0.95)
        lowered = wanted.outputs["heat"] < RARE - 3
        assert 0.3 < lowered.mean() < 0.98


def test_a_detector_needs_sides_that_it_can_halve():
    with pytest.raises(
        UsageError, match="100x100 picture cannot be halved 4 times; take sides that are multiples of 16"
    ):
        Detector().build(Detection(size=100))


@pytest.mark.usefixtures("few")
def test_exhibits_frame_what_was_found():
    task = Detection()
    batch = task.arrays("test")
    outputs = perfect(task, batch["things"])
    blind = outputs | {"heat": np.full_like(outputs["heat"], -20)}
    shown = task.exhibits({"float": outputs, "int8": blind}, batch)
    assert len(shown) == 6
    for exhibit in shown:
        assert list(exhibit.panels) == ["input", "truth", "float", "int8"]
        assert exhibit.panels["truth"].shape == exhibit.panels["float"].shape == (288, 288, 3)
        plain = exhibit.panels["input"].repeat(3, axis=0).repeat(3, axis=1)
        np.testing.assert_array_equal(exhibit.panels["int8"], plain)
    assert sum((exhibit.panels["float"] != exhibit.panels["int8"]).any() for exhibit in shown) >= 4


def coco(folder: Path, file: str = "annotations.json", images: str = "images", num: int = NUM) -> dict[str, Any]:
    """Pictures of 80 by 40 pixels, on each a cat, on every other a dog and a crowd, too; returns what was written."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [],
        "annotations": [],
    }
    for index in range(num):
        values = np.random.default_rng(index).integers(0, 256, (40, 80, 3), np.uint8)
        Image.fromarray(values).save(folder / images / f"{index}.png")
        content["images"].append({"id": 100 + index, "file_name": f"{index}.png", "width": 80, "height": 40})
        for category, box, crowd in [
            (3, [20, 10, 40, 20], 0),
            *([(7, [0, 0, 8, 4], 0), (3, [0, 0, 80, 40], 1)] * (index % 2)),
        ]:
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number, "image_id": 100 + index, "category_id": category, "bbox": box, "iscrowd": crowd}
            )
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    return content


def test_boxes_are_read_from_one_file(tmp_path):
    coco(tmp_path)
    task = Detection(folder=str(tmp_path), size=32, classes=("cat", "dog"))
    sizes = {split: len(task.arrays(split)["image"]) for split in ("train", "validation", "test")}
    assert sizes == {"train": 13, "validation": 3, "test": 4}
    batch = task.arrays("train")
    assert batch["image"].shape[1:] == (3, 32, 32)
    np.testing.assert_allclose(batch["things"][:, 0], [[0, 8, 8, 24, 24]] * 13)
    dogs = batch["things"][batch["things"][:, :, 0] == 1]
    assert 0 < len(dogs) < 13
    np.testing.assert_allclose(dogs[:, 1:], [[0, 0, 3.2, 3.2]] * len(dogs), rtol=1e-6)
    cats = Detection(folder=str(tmp_path), size=32, classes=("cat",)).arrays("train")["things"]
    assert cats.shape == (13, 1, 5)


def test_boxes_are_read_from_folders_like_cocos(tmp_path):
    coco(tmp_path, "annotations/instances_train2017.json", "train2017")
    coco(tmp_path, "annotations/instances_val2017.json", "val2017", num=5)
    task = Detection(folder=str(tmp_path), size=32, classes=("cat", "dog"))
    sizes = {split: len(task.arrays(split)["image"]) for split in ("train", "validation", "test")}
    assert sizes == {"train": 18, "validation": 2, "test": 5}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ("annotations", 4, "bbox"),
            [1, 2, 3],
            "annotations.json: annotation 5 has the box [1, 2, 3]; a box is left, top,",
        ),
        (("annotations", 4, "bbox"), [1, 2, 3, float("nan")], "annotation 5 has the box [1, 2, 3, nan]"),
        (("annotations", 4, "bbox"), [90, 2, 3, 3], "the box [90, 2, 3, 3], which does not lie in its 80x40 image"),
        (("annotations", 4, "bbox"), [9, 2, -3, 3], "the box [9, 2, -3, 3], which does not lie in its 80x40 image"),
        (("annotations", 2, "image_id"), 5, "annotation 3 is of image 5, which is not among the images"),
        (("annotations", 2, "category_id"), 5, "annotation 3 has category 5, which is not among the categories"),
        (("categories", 1, "name"), "cow", "no category 'cat'; it has dog, cow"),
        (("images",), None, "annotations.json: not of COCO's format: TypeError"),
        (("images", 3, "file_name"), "gone.png", "images/gone.png: cannot be read as an image"),
    ],
)
def test_what_is_wrong_with_annotations_is_named(path, value, said, tmp_path):
    content: Any = coco(tmp_path)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert said in refusal(Detection(folder=str(tmp_path), size=32, classes=("cat",)))


def test_detection_refuses_bad_folders(tmp_path):
    task = Detection(folder=str(tmp_path), size=32, classes=("cat",))
    assert "neither annotations.json nor annotations/instances_train....json is in it" in refusal(task)
    coco(tmp_path)
    (tmp_path / "annotations.json").write_bytes(b'{"images": [')
    assert "annotations.json: no JSON of COCO's format: Expecting value" in refusal(task)
    (tmp_path / "annotations.json").write_bytes(b'{"images": []}')
    assert "annotations.json: not of COCO's format: KeyError 'categories'" in refusal(task)
    coco(tmp_path, num=1)
    assert "1 samples are too few" in refusal(task)
    assert "drawn roads have vehicle, pedestrian, sign alone" in refusal(Detection(classes=("cat",)))
