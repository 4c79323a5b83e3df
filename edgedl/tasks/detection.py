"""Where things are in a picture, and what: roads drawn by arithmetic, or pictures with boxes in COCO's format."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.data import image_files, splits
from edgedl.images import pixels
from edgedl.synthetic import road

if TYPE_CHECKING:
    import torch

NUM_PICTURES: dict[Split, int] = {"train": 1600, "validation": 150, "test": 300}
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
NUM_CALIBRATION = 200
STRIDE = 4
"""Pixels between the cells of the grid that networks answer on."""
SPREAD = 0.18
"""How far from a thing's middle cells are still nearly right, as a share of its box."""
MOST_FOUND, LEAST_SCORE, MOST_OVERLAP = 30, 0.05, 0.5
LEAST_SHOWN = 0.3
PAINTS = np.array([[230, 60, 60], [60, 220, 60], [80, 120, 255], [240, 200, 40], [220, 80, 220], [60, 220, 220]])

Pictures = tuple[np.ndarray, np.ndarray]
"""Images (N, 3, H, W) uint8 and things (N, most, 5) float32: class (-1 for none), left, top, right, bottom."""


class Detection(Task):
    """Networks answer `heat` (N, classes, H / 4, W / 4), logits that a thing's middle is there, and as many `boxes`.

    A cell's box is how far left, top, right and bottom are from its middle, in cells. A cell counts as found if it is
    as likely as all its neighbours, and no surer box of its class overlaps it by half. With `suppression` "inside", the
    network sees to the first itself when it is exported, and the second is left out. The score is COCO's mean average
    precision of boxes that overlap by half; mAP 50-95 is reported with it.

    Without `folder`, 1,600 / 150 / 300 drawn roads to train, validate and test on, with up to five vehicles,
    pedestrians and signs, one before another.

    `folder` holds images in `images` and what is on them in `annotations.json`, in COCO's format (T.-Y. Lin et al.,
    2014), of which `classes` names categories; or images in `train...` and `val...` and, in `annotations`,
    `instances_train....json` and `instances_val....json`, of which the latter tests. All are resized to `size`.
    """

    use: str = "detection"
    folder: str | None = None
    size: int = Field(default=96, ge=32)
    classes: tuple[str, ...] = Field(default=road.KINDS, min_length=1)
    suppression: Literal["outside", "inside"] = "outside"
    outputs: ClassVar[tuple[str, ...]] = ("heat", "boxes")
    metric: ClassVar[Metric] = Metric(name="mAP 50", unit="fraction", higher_is_better=True)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec(self.image_shape)}

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 3, H, W) float32 in [0, 1] and `things` (N, most, 5) float32. Raises `DataError`."""
        if self.folder is not None:
            images, things = _read(self.folder, self.classes, self.size, split)
        elif self.classes != road.KINDS:
            raise DataError(
                f"detection: drawn roads have {', '.join(road.KINDS)} alone; name a folder for other classes"
            )
        else:
            images, things = _drawn("train" if split == "calibration" else split, self.size)
            if split == "calibration":
                images, things = images[:NUM_CALIBRATION], things[:NUM_CALIBRATION]
        return {"image": images.astype(np.float32) / 255, "things": things}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Focal loss of the middles, as in Objects as Points, and how far boxes are off near them, by their sizes."""
        import torch
        from torch.nn.functional import logsigmoid

        heat, boxes, things = outputs["heat"], outputs["boxes"], batch["things"]
        near, distances = _wanted(things, heat.shape[2], heat.shape[3])
        kinds = torch.arange(heat.shape[1]) == things[:, :, :1]  # (N, most, classes)
        wanted = (near[:, :, None] * kinds[:, :, :, None, None]).amax(1)
        likely = heat.sigmoid()
        found = torch.where(wanted == 1, (1 - likely) ** 2 * logsigmoid(heat), 0).sum()
        missed = ((1 - wanted) ** 4 * likely**2 * logsigmoid(-heat)).sum()
        surest, whose = near.max(1, keepdim=True)
        target = distances.gather(1, whose[:, :, None].expand(-1, 1, 4, -1, -1)).squeeze(1)
        across = (target[:, 0] + target[:, 2], target[:, 1] + target[:, 3])
        sides = torch.stack([*across, *across], 1).clamp_min(0.5)
        weight = torch.where(surest > 0.5, surest, 0)
        off = ((boxes - target).abs() / sides * weight).sum() / weight.sum().clamp_min(1)
        return -(found + missed) / (wanted == 1).sum().clamp_min(1) + 2 * off

    def score(self, outputs: Batch, batch: Batch) -> float:
        return self._precision(outputs, batch)[1]

    @property
    def baseline(self) -> Baseline:
        """Of the mean box of each class, found in every picture."""
        things, batch = self.arrays("train")["things"].reshape(-1, 5), self.arrays("test")
        kinds = np.unique(things[things[:, 0] >= 0, 0])
        always = np.array([[*things[things[:, 0] == kind].mean(0), 1] for kind in kinds])
        found = [always] * len(batch["things"])
        score = mean_precision(found, batch["things"], self.num_classes)[1]
        return Baseline(score, "always answering the mean box of each class")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        return {"mAP 50-95": self._precision(outputs, batch)[0]}

    def _precision(self, outputs: Batch, batch: Batch) -> tuple[float, float]:
        return mean_precision(self.found(outputs), batch["things"], self.num_classes)

    def found(self, outputs: Batch) -> list[np.ndarray]:
        """What is found in each picture, surest first: (n, 6), class, left, top, right, bottom in pixels, and score."""
        heat = outputs["heat"]
        padded = np.pad(heat, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3)).max(axis=(4, 5))
        scores = np.where(heat >= around, 1 / (1 + np.exp(-heat.clip(-30, 30))), 0)
        return [
            _kept(*_surest(*picture), self.suppression == "outside")
            for picture in zip(scores, outputs["boxes"], strict=True)
        ]

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Pictures with the boxes of what is there and of what was found, a colour for each class."""
        first = next(iter(answers.values()))
        found = {
            name: self.found({key: values[:6] for key, values in outputs.items()}) for name, outputs in answers.items()
        }
        shown = []
        for index in range(min(6, len(first["heat"]))):
            picture = pixels(batch["image"][index])
            truth = batch["things"][index]
            panels: dict[str, str | np.ndarray] = {"input": picture, "truth": boxed(picture, truth[truth[:, 0] >= 0])}
            for name, pictures in found.items():
                panels[name] = boxed(picture, pictures[index][pictures[index][:, 5] >= LEAST_SHOWN])
            shown.append(Exhibit(f"picture {index}: {', '.join(self.classes)}", panels))
        return shown


def _wanted(things: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How near each cell is to each thing's middle, 1 in the middle cell alone, and how far its box's sides are.

    (N, most, 5) -> (N, most, H, W) and (N, most, 4, H, W), the latter in cells.
    """
    import torch

    left, top, right, bottom = (things[:, :, place, None, None] / STRIDE for place in range(1, 5))
    x, y = torch.arange(width)[None, None, None] + 0.5, torch.arange(height)[None, None, :, None] + 0.5
    off_x, off_y = x - ((left + right) / 2).floor() - 0.5, y - ((top + bottom) / 2).floor() - 0.5
    spread_x, spread_y = ((high - low).clamp_min(1) * SPREAD for low, high in ((left, right), (top, bottom)))
    near = torch.exp(-(((off_x / spread_x) ** 2 + (off_y / spread_y) ** 2) / 2))
    near = near * (things[:, :, 0, None, None] >= 0)
    sides = [side.expand_as(near) for side in (x - left, y - top, right - x, bottom - y)]
    return near, torch.stack(sides, 2)


def _surest(scores: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, boxes (n, 4) in pixels and scores of the surest cells, surest first."""
    places = np.argsort(-scores.reshape(-1), kind="stable")[:MOST_FOUND]
    kinds, rows, columns = np.unravel_index(places, scores.shape)
    middles = np.stack([columns, rows, columns, rows]) + 0.5
    sides = (middles + boxes[:, rows, columns] * np.array([-1, -1, 1, 1])[:, None]) * STRIDE
    reach = np.array([scores.shape[2], scores.shape[1]] * 2)[:, None] * STRIDE
    certain = scores.reshape(-1)[places] >= LEAST_SCORE
    return kinds[certain], np.clip(sides, 0, reach).T[certain], scores.reshape(-1)[places][certain]


def _kept(kinds: np.ndarray, boxes: np.ndarray, scores: np.ndarray, suppress: bool) -> np.ndarray:
    """What is left if of overlapping boxes of a class only the surest stays."""
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    area = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    overlap = shared / np.maximum(area[:, None] + area - shared, 1e-9)
    rivals = (overlap > MOST_OVERLAP) & (kinds[:, None] == kinds)
    kept: list[int] = []
    for place in range(len(kinds)):
        if not (suppress and rivals[place, kept].any()):
            kept.append(place)
    return np.column_stack([kinds[kept], boxes[kept], scores[kept]])


def mean_precision(found: Sequence[np.ndarray], things: np.ndarray, num_classes: int) -> tuple[float, float]:
    """COCO's mAP 50-95 and mAP 50, by its own code; 0 if nothing was found."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = [(index, thing) for index, picture in enumerate(things) for thing in picture if thing[0] >= 0]
    answers = [(index, answer) for index, picture in enumerate(found) for answer in picture]
    if not answers:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it reports what it does
        coco = COCO()
        coco.dataset = {
            "images": [{"id": index} for index in range(len(things))],
            "categories": [{"id": kind} for kind in range(num_classes)],
            "annotations": [_annotation(index, thing) | {"id": number, "iscrowd": 0}
                            for number, (index, thing) in enumerate(truth, start=1)],
        }  # fmt: skip
        coco.createIndex()
        rows = coco.loadRes([_annotation(index, answer) | {"score": float(answer[5])} for index, answer in answers])
        judged = COCOeval(coco, rows, "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[0]), float(judged.stats[1])


def _annotation(index: int, thing: np.ndarray) -> dict[str, Any]:
    left, top, right, bottom = map(float, thing[1:5])
    box = [left, top, right - left, bottom - top]
    return {"image_id": index, "category_id": int(thing[0]), "bbox": box, "area": box[2] * box[3]}


def boxed(picture: np.ndarray, things: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) three times as large, with a frame around each thing."""
    large = np.ascontiguousarray(picture.repeat(3, axis=0).repeat(3, axis=1))
    for kind, *sides in things[:, :5]:
        paint = PAINTS[int(kind) % len(PAINTS)]
        left, top, right, bottom = (round(float(side) * 3) for side in sides)
        large[top : top + 2, left:right] = large[max(bottom - 2, 0) : bottom, left:right] = paint
        large[top:bottom, left : left + 2] = large[top:bottom, max(right - 2, 0) : right] = paint
    return large


@lru_cache(maxsize=len(SEEDS))
def _drawn(split: Split, size: int) -> Pictures:
    return road.drawn(NUM_PICTURES[split], size, SEEDS[split])


@lru_cache(maxsize=4)
def _read(folder: str, classes: tuple[str, ...], size: int, split: Split) -> Pictures:
    root = Path(folder)
    if (root / "annotations.json").is_file():
        files = _annotated(root / "annotations.json", root / "images", classes)
        files = [files[index] for index in splits.chosen(len(files), split, folder)]
    else:
        part = "val" if split == "test" else "train"
        found = sorted((root / "annotations").glob(f"instances_{part}*.json"))
        if not found:
            raise DataError(f"{root}: neither annotations.json nor annotations/instances_{part}....json is in it")
        files = _annotated(found[0], root / found[0].stem.removeprefix("instances_"), classes)
        if part == "train":
            num_validation = len(files) // 10
            files = files[:num_validation] if split == "validation" else files[num_validation:]
            files = files[: splits.NUM_CALIBRATION] if split == "calibration" else files
    if not files:
        raise DataError(f"{root}: no pictures of the {split} split")
    images = [image_files.picture(file, (3, size, size)) for file, _ in files]
    things = np.full((len(files), max(1, *(len(rows) for _, rows in files)), 5), -1, np.float32)
    for place, (_, rows) in zip(things, files, strict=True):
        place[: len(rows)] = rows * [1, size, size, size, size] if len(rows) else rows
    return np.stack(images), things


def _annotated(file: Path, images: Path, classes: tuple[str, ...]) -> list[tuple[Path, np.ndarray]]:
    """Each picture and its things (n, 5), of which the box is in shares of its sides. Raises `DataError`."""
    try:
        content = json.loads(file.read_bytes().decode("utf-8"))
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        pictures = {entry["id"]: entry for entry in content["images"]}
        sizes = {key: (int(entry["width"]), int(entry["height"])) for key, entry in pictures.items()}
        files = {key: images / entry["file_name"] for key, entry in pictures.items()}
        annotations = [(entry["id"], entry["image_id"], entry["category_id"], entry["bbox"], entry.get("iscrowd", 0))
                       for entry in content["annotations"]]  # fmt: skip
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: no JSON of COCO's format: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not of COCO's format: {type(error).__name__} {error}") from error
    if lacking := [name for name in classes if name not in names.values()]:
        raise DataError(f"{file}: no category {lacking[0]!r}; it has {', '.join(map(str, names.values()))}")
    rows: dict[Any, list[list[float]]] = {key: [] for key in pictures}
    for number, picture, category, box, crowd in annotations:
        where = f"{file}: annotation {number}"
        if picture not in pictures:
            raise DataError(f"{where} is of image {picture}, which is not among the images")
        if category not in names:
            raise DataError(f"{where} has category {category}, which is not among the categories")
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
            raise DataError(f"{where} has the box {box}; a box is left, top, width and height in pixels")
        left, top, across, down = box
        width, height = sizes[picture]
        if across < 0 or down < 0 or left + across < 0 or top + down < 0 or left > width or top > height:
            raise DataError(f"{where} has the box {box}, which does not lie in its {width}x{height} image")
        if names[category] in classes and not crowd:
            sides = [left / width, top / height, (left + across) / width, (top + down) / height]
            rows[picture].append([classes.index(names[category]), *(min(max(side, 0.0), 1.0) for side in sides)])
    order = np.argsort(np.random.PCG64(0).random_raw(len(files)), kind="stable")
    listed = [(files[key], np.array(rows[key], np.float32).reshape(-1, 5)) for key in files]
    return [listed[index] for index in order]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
