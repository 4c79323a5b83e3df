"""Samples of a data set of one's own as a person would look at them, with what files answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgedl.classes import NUM_EXHIBITS, judged, softmax
from edgedl.core import Batch, Exhibit
from edgedl.data.prepared import Prepared

NUM_NUMBERS = 8
"""Shown of an array, and of an answer."""


def exhibits(
    prepared: Prepared,
    output: str,
    decide: Callable[[Batch], np.ndarray | None],
    answers: Mapping[str, Batch],
    batch: Batch,
) -> Sequence[Exhibit]:
    """Samples whose answers in `output` differ most between files, those of another class first."""
    given = {name: outputs[output] for name, outputs in answers.items()}
    label = batch[prepared.label] if prepared.label is not None else None
    chosen = {name: decide(outputs) for name, outputs in answers.items()}
    flat = np.stack([values.reshape(len(values), -1).astype(np.float64) for values in given.values()])
    order = np.lexsort((-np.ptp(flat, axis=0).max(axis=1), _alike(list(chosen.values()), flat.shape[1])))
    found = []
    for index in map(int, order[:NUM_EXHIBITS]):
        panels: dict[str, str | np.ndarray] = {"input": shown(prepared, batch, index)}
        if label is not None:
            panels["truth"] = _said(label[index], None, prepared.classes)
        for name, values in given.items():
            decision = chosen[name]
            panels[name] = _said(values[index], None if decision is None else decision[index], prepared.classes)
        caption = f"sample {index}"
        if label is not None and label.ndim == 1 and prepared.classes:
            right = {name: bool(values[index] == label[index]) for name, values in chosen.items() if values is not None}
            caption += f": {judged(right)}"
        found.append(Exhibit(caption, panels))
    return found


def shown(prepared: Prepared, batch: Batch, index: int) -> str | np.ndarray:
    """A picture of the first image among the inputs, or all inputs as text."""
    for name, spec in prepared.inputs.items():
        values = batch[name][index]
        if name in prepared.images:
            mean, deviation = prepared.images[name]
            channels_last = values if prepared.channels_last else values.transpose(1, 2, 0)
            return _picture(channels_last / 255 if spec.dtype == "uint8" else channels_last * deviation + mean)
        if len(spec.shape) == 3 and spec.dtype == "uint8" and 1 in (len(values), values.shape[2]):
            return np.ascontiguousarray(values.reshape(values.shape[1:] if len(values) == 1 else values.shape[:2]))
        if len(spec.shape) == 3 and spec.dtype == "uint8" and 3 in (len(values), values.shape[2]):
            return np.ascontiguousarray(values if values.shape[2] == 3 else values.transpose(1, 2, 0))
    return "; ".join(_numbers(name, batch[name][index], prepared.columns.get(name, ())) for name in prepared.inputs)


def _picture(values: np.ndarray) -> np.ndarray:
    """(H, W, channels) in [0, 1] as uint8, grey unless there are three channels."""
    pixels = np.asarray(np.rint(np.clip(values, 0, 1) * 255), np.uint8)
    return pixels if pixels.shape[2] == 3 else np.asarray(pixels.mean(axis=2), np.uint8)


def _numbers(name: str, values: np.ndarray, columns: Sequence[str]) -> str:
    flat = values.ravel()
    if columns:
        shown = [f"{column} {value:.4g}" for column, value in zip(columns, flat, strict=True)]
    else:
        shown = [f"{value:.4g}" for value in flat]
    more = f", ... ({' x '.join(map(str, values.shape))})" if len(shown) > NUM_NUMBERS else ""
    return ("" if columns else f"{name} ") + ", ".join(shown[:NUM_NUMBERS]) + more


def _said(values: np.ndarray, decision: np.ndarray | None, classes: Sequence[str]) -> str:
    """A label, or an answer and what was decided on it."""
    if decision is None:
        is_class = classes and values.ndim == 0 and values.dtype.kind == "i"
        return classes[int(values)] if is_class else _numbers("", values, ()).strip()
    if decision.ndim:
        return f"classes {_numbers('', decision, ()).strip()}"
    name = classes[int(decision)] if classes else str(int(decision))
    share = softmax(values)[int(decision)] if values.size > 1 else None
    return name if share is None else f"{name} ({share:.0%})"


def _alike(chosen: Sequence[np.ndarray | None], num: int) -> np.ndarray:
    """(N,) whether all files decide the same; so they do where nothing is decided."""
    first = chosen[0]
    if first is None:
        return np.ones(num, np.bool_)
    same = [np.equal(decided, first).reshape(len(first), -1).all(axis=1) for decided in chosen if decided is not None]
    return np.asarray(np.all(same, axis=0))
