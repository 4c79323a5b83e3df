"""Named metrics of a data set of one's own, and the losses that go with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgedl import plugins
from edgedl.core import Baseline, Batch, DataError, Metric

if TYPE_CHECKING:
    import torch

Kind = Literal["classes", "numbers", "marks"]
"""What a label is: the number of a class, numbers to come near to, or a class of two or of each of several marks."""

METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("accuracy", "fraction", higher_is_better=True),
    "rmse": Metric("RMSE", "", higher_is_better=False),
    "mae": Metric("mean absolute error", "", higher_is_better=False),
    "r2": Metric("R²", "", higher_is_better=True),
    "auroc": Metric("AUROC", "fraction", higher_is_better=True),
    "miou": Metric("mean IoU", "fraction", higher_is_better=True),
    "agreement": Metric("agreement", "fraction", higher_is_better=True),
    "fidelity": Metric("fidelity", "fraction", higher_is_better=True),
}
UNLABELLED = ("agreement", "fidelity")
"""Those that hold answers against a teacher's."""
KINDS: Mapping[str, Kind] = {
    "accuracy": "classes",
    "miou": "classes",
    "auroc": "marks",
    "rmse": "numbers",
    "mae": "numbers",
    "r2": "numbers",
}
IGNORED = -100
"""Marks positions of a sequence or a picture that do not count, as PyTorch's cross-entropy has it."""


def class_axis(answer: tuple[int, ...], label: tuple[int, ...]) -> int | None:
    """Which axis of an answer (N, ...) counts classes, given the shape of the labels; None for one number a label.

    That is the second, as in PyTorch, or else the last. Raises `DataError` where the shapes do not go together.
    """
    if answer == label or answer == (*label, 1):
        return None
    for axis in (1, len(label)):
        if len(answer) == len(label) + 1 and (*answer[:axis], *answer[axis + 1 :]) == label:
            return axis
    raise DataError(f"answers {_shape(answer)} do not go with labels {_shape(label)}")


def decided(answer: np.ndarray, label: tuple[int, ...] | None) -> np.ndarray | None:
    """The class chosen for each label of this shape, int64; without labels, that of (N, classes), else None."""
    if label is None:
        return answer.argmax(axis=1) if answer.ndim == 2 and answer.shape[1] > 1 else None
    axis = class_axis(answer.shape, label)
    return np.asarray(answer.reshape(label) > 0, np.int64) if axis is None else answer.argmax(axis=axis)


def score(name: str, answer: np.ndarray, label: np.ndarray) -> float:
    """A named metric over a whole split. Raises `DataError` where answers and labels do not go together."""
    if KINDS[name] == "numbers":
        return _of_numbers(name, same_shape(answer, label).astype(np.float64), label.astype(np.float64))
    axis = class_axis(answer.shape, label.shape)
    if axis is not None:
        check_range(label, answer.shape[axis])
    if name == "auroc":
        return _auroc(answer, label, axis)
    found = decided(answer, label.shape)
    assert found is not None
    counted = label != IGNORED
    if name == "accuracy":
        return float((found == label)[counted].mean())
    return _iou(found, label, answer.shape[axis] if axis is not None else 2)


def own_score(name: str, outputs: Batch, batch: Batch) -> float:
    """What a person's function says, package.module:function. Raises `DataError` if it fails or is no number."""
    function = plugins.function(name)
    value = plugins.called(f"metric {name}", lambda: float(function(outputs, batch)), error=DataError)
    if not math.isfinite(value):
        raise DataError(f"metric {name} returned {value}, which is no score")
    return value


def baseline(name: str, train: np.ndarray, test: np.ndarray, num_classes: int) -> Baseline:
    """What needs no network: the commonest class, or the mean, of the training labels; or chance."""
    if name == "auroc":
        return Baseline(0.5, "guessing")
    if KINDS[name] == "numbers":
        middle, answer = (np.median, "median") if name == "mae" else (np.mean, "mean")
        constant = np.broadcast_to(middle(train.astype(np.float64), axis=0), test.shape)
        return Baseline(_of_numbers(name, constant, test.astype(np.float64)), f"always answering the {answer}")
    commonest = np.full_like(test, np.bincount(train[train != IGNORED].ravel()).argmax())
    counted = test != IGNORED
    value = float((commonest == test)[counted].mean()) if name == "accuracy" else _iou(commonest, test, num_classes)
    return Baseline(value, "always answering the commonest class")


def loss(name: str, answer: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Cross-entropy for classes, or of a single logit; mean squared or absolute error for numbers."""
    from torch.nn import functional

    if KINDS[name] == "numbers":
        distance = functional.l1_loss if name == "mae" else functional.mse_loss
        return distance(answer.reshape(label.shape), label)
    axis = class_axis(tuple(answer.shape), tuple(label.shape))
    if axis is None:
        return functional.binary_cross_entropy_with_logits(answer.reshape(label.shape), label.to(answer.dtype))
    check_range(label.numpy(), answer.shape[axis])  # PyTorch would not say which
    return functional.cross_entropy(answer.movedim(axis, 1), label, ignore_index=IGNORED)


def agreement(answers: Sequence[np.ndarray], taught: Sequence[np.ndarray]) -> float:
    """The share of same decisions, where the first answer is (N, classes); the fidelity of others; the least of these.

    What is no answer (N, classes) may be anything, such as a box: its largest number decides nothing.
    """
    found = [fidelity(answer, wanted) for answer, wanted in zip(answers, taught, strict=True)]
    ours, theirs = decided(answers[0], None), decided(taught[0], None)
    if ours is not None and theirs is not None:
        found[0] = float((ours == theirs).mean())
    return min(found)


def fidelity(answer: np.ndarray, taught: np.ndarray) -> float:
    """1 - noise power / signal power: 1 for the same numbers, 0 for an answer of zeros."""
    noise = np.square(answer.astype(np.float64) - taught).sum()
    signal = np.square(taught.astype(np.float64)).sum()
    return float(1 - noise / signal) if signal else float(noise == 0)


def same_shape(answer: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Answers in the shape of the labels: (N, 1) is as good as (N,). Raises `DataError` for others."""
    if answer.shape != label.shape and answer.shape != (*label.shape, 1) and (*answer.shape, 1) != label.shape:
        raise DataError(f"answers {_shape(answer.shape)} do not go with labels {_shape(label.shape)}")
    return answer.reshape(label.shape)


def check_range(label: np.ndarray, num_classes: int) -> None:
    """Raises `DataError` for a label that is no class of the network's."""
    wrong = (label >= num_classes).reshape(len(label), -1).any(axis=1)
    if wrong.any():
        record = int(np.argmax(wrong))
        raise DataError(
            f"sample {record} has label {label[record].max()}, but the network answers {num_classes} classes, "
            f"0 to {num_classes - 1}"
        )


def _of_numbers(name: str, answer: np.ndarray, label: np.ndarray) -> float:
    if name == "mae":
        return float(np.abs(answer - label).mean())
    squares = np.square(answer - label)
    if name == "rmse":
        return math.sqrt(squares.mean())
    spread = np.square(label - label.mean(axis=0)).sum(axis=0)
    if not np.all(spread > 0):
        raise DataError("R² needs labels that differ, but all of the split are the same; take rmse")
    return float((1 - squares.sum(axis=0) / spread).mean())


def _auroc(answer: np.ndarray, label: np.ndarray, axis: int | None) -> float:
    """The area under the ROC curve: of two classes, of each mark, or of each class against the others, their mean."""
    if axis is None:
        columns = answer.reshape(len(label), -1), label.reshape(len(label), -1)
        pairs = list(zip(columns[0].T, columns[1].T, strict=True))
    elif answer.shape[axis] == 2:
        flat = np.moveaxis(answer, axis, -1).reshape(-1, 2).astype(np.float64)
        pairs = [(flat[:, 1] - flat[:, 0], label.ravel())]
    else:
        flat = np.moveaxis(answer, axis, -1).reshape(-1, answer.shape[axis])
        shares = np.exp(flat - flat.max(axis=1, keepdims=True))
        shares = shares / shares.sum(axis=1, keepdims=True)
        pairs = [(shares[:, index], (label.ravel() == index).astype(np.int64)) for index in np.unique(label)]
    for index, (_, truth) in enumerate(pairs):
        if set(np.unique(truth)) != {0, 1}:
            raise DataError(f"AUROC needs labels 0 and 1, and both in a split; mark {index} has {np.unique(truth)[:4]}")
    return float(np.mean([_area(values, truth) for values, truth in pairs]))


def _area(values: np.ndarray, truth: np.ndarray) -> float:
    import torch
    from torchmetrics.functional.classification import binary_auroc

    # By its sign torchmetrics tells logits from probabilities; a sigmoid of its own would make ties of large ones.
    ranks = np.unique(values, return_inverse=True)[1] / len(values)
    return float(binary_auroc(torch.from_numpy(ranks), torch.from_numpy(truth.astype(np.int64))))


def _iou(found: np.ndarray, label: np.ndarray, num_classes: int) -> float:
    import torch
    from torchmetrics.functional.classification import multiclass_jaccard_index

    counted = label != IGNORED
    pair = (torch.from_numpy(np.ascontiguousarray(values[counted])) for values in (found, label))
    return float(multiclass_jaccard_index(*pair, num_classes, average="macro"))


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('N', *shape[1:])))})"
