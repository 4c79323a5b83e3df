"""Records made what a network is given: inputs and labels by name, in splits, with all that was done to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgedl import plugins
from edgedl.core import Batch, DataError, Split, TensorSpec
from edgedl.data import image_inputs, metrics, splits
from edgedl.data.image_inputs import Treatment
from edgedl.data.metrics import Kind
from edgedl.data.records import Records

STACKED = "features"
"""The input that single numbers of a table become, unless it is named."""


@dataclass(frozen=True)
class Wanted:
    """What is to be made of the records."""

    inputs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    label: str | None = None
    kind: Kind | Literal["any", "none"] = "classes"
    """What the label has to be; "none" where there need not be any."""
    others: bool = False
    """Whether columns that are neither inputs nor label are kept, for a function of one's own."""
    standardize: bool = False
    treatment: Treatment = field(default_factory=Treatment)
    """Of images."""
    resized: bool = False
    """Whether images were to be of one size."""
    parts: tuple[tuple[str, str], ...] = ()
    """Which part of the source each split is, where their names do not say it."""


@dataclass(frozen=True)
class Prepared:
    """Arrays of every split, and what an application has to do to its own before it runs the network."""

    arrays: Mapping[Split, Batch]
    inputs: Mapping[str, TensorSpec]
    inner: Mapping[str, TensorSpec]
    """What the network takes, where files make something else of `inputs` first."""
    label: str | None
    classes: tuple[str, ...]
    """Names of the classes; empty where the label is a number."""
    images: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Inputs that are images: mean and deviation of each channel in [0, 1], as they are taken off."""
    channels_last: bool
    """The layout of these in arrays."""
    columns: Mapping[str, tuple[str, ...]]
    """Inputs that are several columns: their names."""
    preprocessing: dict[str, Any]
    """The same in words and numbers that are JSON."""


def prepare(parts: Mapping[str, Records], wanted: Wanted) -> Prepared:
    """Everything at once: data is checked as a whole before anything expensive starts. Raises `DataError`."""
    first = next(iter(parts.values()))
    label = _label(first, wanted)
    names, stacked = _inputs(first, label, wanted)
    said: dict[str, Any] = {}
    arrays: dict[str, dict[str, np.ndarray]] = {part: {} for part in parts}
    for name in names:
        columns = stacked.get(name, (name,))
        for part, records in parts.items():
            arrays[part][name] = _input(records, name, columns, stacked=name in stacked)
        _alike(name, parts, arrays)
        said[name] = _origin(first, columns, name in stacked, arrays[next(iter(parts))][name].dtype.name)
    classes: tuple[str, ...] = ()
    if label is not None:
        classes = _add_labels(parts, arrays, label, wanted.kind)
    if wanted.others:
        for name in first.columns:
            if name not in arrays[next(iter(parts))] and not first.is_text(name):
                for part, records in parts.items():
                    arrays[part][name] = _column(records, name)
    sources = {part: records.source for part, records in parts.items()}
    divided, how = splits.divided(arrays, sources, dict(wanted.parts))
    images, treatment = {}, wanted.treatment
    layout = "channels-last" if treatment.files_channels_last else "channels-first"
    for name in names:
        values = divided["train"][name]
        pixels = values.dtype == np.uint8 and values.ndim == 4
        if values.ndim == 4:
            image_inputs.lay(divided, name, treatment, name in first.images)
        if name in first.images or (pixels and treatment.normalizes):
            images[name] = image_inputs.normalize(divided, name, treatment, first.source)
            said[name] |= image_inputs.contract(*images[name], treatment.uint8_input) | {
                "layout": layout,
                **first.notes,
            }
        elif values.ndim == 4 and treatment.channels_last_input:
            said[name] |= {"layout": layout}
        elif name in stacked and wanted.standardize:
            mean, deviation = _standardize(divided, name)
            said[name] |= {"mean": mean.tolist(), "std": deviation.tolist(), "from": "the training records"}
    inputs, inner = {}, {}
    for name in names:
        values = divided["train"][name]
        inputs[name] = inner[name] = TensorSpec(values.shape[1:], values.dtype.name)
        if treatment.channels_last_input and values.ndim == 4:
            inner[name] = TensorSpec((values.shape[3], *values.shape[1:3]), values.dtype.name)
        if treatment.uint8_input and name in images:
            inner[name] = TensorSpec(inner[name].shape)
        said[name] |= {"dtype": values.dtype.name, "shape": list(values.shape[1:])}
    _check_used(wanted, inputs, images, stacked, first)
    left_out = [name for name in first.columns if name not in {*names, label, *sum(stacked.values(), ())}]
    sizes = {str(split): len(next(iter(found.values()))) for split, found in divided.items()}
    preprocessing = {
        "source": first.source,
        "inputs": said,
        "label": {"name": label, **({"classes": list(classes)} if classes else {})} if label else None,
        "left_out": left_out,
        "splits": {"drawn": how, **sizes},
    }
    return Prepared(
        divided, inputs, inner, label, classes, images, treatment.files_channels_last, stacked, preprocessing
    )


def _check_used(
    wanted: Wanted,
    inputs: Mapping[str, TensorSpec],
    images: Iterable[str],
    stacked: Iterable[str],
    records: Records,
) -> None:
    """Raises `DataError` for what was asked for and has nothing to be done to."""
    said = ", ".join(f"{name} {spec.shape} {spec.dtype}" for name, spec in inputs.items())
    if wanted.treatment.normalizes and not images:
        key = "uint8_input is" if wanted.treatment.uint8_input else "mean and std are"
        raise DataError(f"{records.source}: {key} for images of uint8, which no input is: {said}")
    if wanted.treatment.channels_last_input and all(len(spec.shape) != 3 for spec in inputs.values()):
        raise DataError(f"{records.source}: channels_last is for images of three axes, which no input is: {said}")
    if wanted.standardize and not stacked:
        raise DataError(f"{records.source}: standardize is for columns of a table, which no input is: {said}")
    if wanted.resized and not records.images:
        raise DataError(f"{records.source}: size is for image files, which there are none of: {said}")


def _label(records: Records, wanted: Wanted) -> str | None:
    """The column of labels: the one that is named, or one named "label"."""
    if wanted.label is not None:
        _check_name(records, wanted.label, "label")
    if wanted.label is not None or wanted.kind == "none":
        return wanted.label if wanted.kind != "none" else None
    if "label" in records.columns:
        return "label"
    if wanted.kind == "any":
        return None
    raise DataError(
        f"{records.source}: which of its columns is the label? Say label = one of {', '.join(records.columns)}; "
        "without labels, say which network the answers are held against: teacher"
    )


def _inputs(records: Records, label: str | None, wanted: Wanted) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The names of inputs in order, and which of them are several columns."""
    free = [name for name in records.columns if name not in (label, wanted.label, "label")]
    for name in wanted.columns:
        _check_name(records, name, "columns")
    numbers = tuple(name for name in free if not records.is_text(name))
    if wanted.inputs:
        taken = {name for name in wanted.inputs if name in records.columns}
        strays = [name for name in wanted.inputs if name not in records.columns]
        if len(strays) > 1 or (strays and not wanted.columns and (strays != [STACKED] or not records.is_table)):
            _check_name(records, strays[0], "inputs")
        if wanted.columns and not strays:
            raise DataError(
                f"columns are put together as one input, but inputs has no name for it: "
                f"{', '.join(wanted.inputs)} are columns themselves"
            )
        columns = wanted.columns or tuple(
            name for name in numbers if name not in taken and records.is_scalar(name) and name not in records.images
        )
        names, stacked = wanted.inputs, dict.fromkeys(strays, columns)
    elif wanted.columns:
        names, stacked = (STACKED,), {STACKED: wanted.columns}
    elif records.is_table:
        columns = tuple(name for name in numbers if name not in records.images and records.is_scalar(name))
        own = tuple(name for name in numbers if name not in columns)
        names, stacked = ((STACKED,) if columns else ()) + own, {STACKED: columns} if columns else {}
    else:
        names, stacked = numbers, {}
    if not names or any(not columns for columns in stacked.values()):
        raise DataError(
            f"{records.source}: nothing is left for the network's input; it has {', '.join(records.columns)}"
            + (f", of which {label} is the label" if label else "")
        )
    if label is not None and label in (*names, *sum(stacked.values(), ())):
        raise DataError(f"{records.source}: {label} is the label and cannot be an input, too")
    return names, stacked


def _check_name(records: Records, name: str, key: str) -> None:
    if name not in records.columns:
        raise DataError(f"{records.source}: {key}: no column {name!r}; {plugins.nearest(name, records.columns)}")


def _column(records: Records, name: str) -> np.ndarray:
    _check_name(records, name, "inputs")
    if records.is_text(name) and not isinstance(records.columns[name], np.ndarray):
        shown = records.columns[name][0]
        raise DataError(f"{records.place(0)}: {name} holds {shown!r}, but networks take numbers")
    return records.array(name)


def _input(records: Records, name: str, columns: Sequence[str], stacked: bool) -> np.ndarray:
    if not stacked:
        values = _column(records, name)
        if values.dtype == np.int64 and (values != values.astype(np.int32)).any():
            raise DataError(f"{records.source}: {name} holds numbers beyond int32, which TFLite files take for int64")
        return values
    found = [_column(records, column) for column in columns]
    for column, values in zip(columns, found, strict=True):
        if values.ndim != 1:
            raise DataError(
                f"{records.source}: {column} has shape {values.shape[1:]} a record and cannot be put together with "
                "other columns; name it under inputs"
            )
    return np.stack(found, axis=1).astype(np.float32)


def _origin(records: Records, columns: Sequence[str], stacked: bool, dtype: str) -> dict[str, Any]:
    """What an input was in the source, where it was something else."""
    given = sorted({found for column in columns if (found := records.dtype(column)) not in (None, dtype)} - {None})
    said: dict[str, Any] = {"columns": list(columns)} if stacked else {}
    return said | ({"converted": f"{', '.join(map(str, given))} to {dtype}"} if given else {})


def _alike(name: str, parts: Mapping[str, Records], arrays: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raises `DataError` where two parts differ in what a record is."""
    (first, values), *others = ((part, arrays[part][name]) for part in parts)
    for part, found in others:
        if found.shape[1:] != values.shape[1:] or found.dtype != values.dtype:
            raise DataError(
                f"{parts[part].source}: {name} is {found.dtype} {found.shape[1:]} in {part}, "
                f"but {values.dtype} {values.shape[1:]} in {first}"
            )


def _add_labels(
    parts: Mapping[str, Records], arrays: Mapping[str, dict[str, np.ndarray]], label: str, kind: str
) -> tuple[str, ...]:
    """Puts the label of each part into `arrays`; returns the names of classes, if they are classes."""
    for records in parts.values():
        _check_name(records, label, "label")
    if kind == "numbers":
        for part, records in parts.items():
            arrays[part][label] = _column(records, label).astype(np.float32)
        _alike(label, parts, arrays)
        return ()
    names = next(iter(parts.values())).classes.get(label, ())
    if any(_has_texts(records, label) for records in parts.values()):
        texts = {part: records.texts(label) for part, records in parts.items()}
        names = tuple(sorted(set().union(*texts.values())))
        number = {name: index for index, name in enumerate(names)}
        for part, found in texts.items():
            arrays[part][label] = np.array([number[text] for text in found], np.int64)
    else:
        for part, records in parts.items():
            arrays[part][label] = _classes(records, label, names, fractions=kind == "any")
    _alike(label, parts, arrays)
    values = [arrays[part][label] for part in parts]
    if values[0].dtype.kind == "f":
        return ()
    largest = max(int(found.max()) for found in values)
    if kind != "any" and all(found.min() == found.max() == values[0].flat[0] for found in values):
        only = names[largest] if names else largest
        source = next(iter(parts.values())).source
        raise DataError(f"{source}: every {label} is {only}; two classes are needed at least")
    return names or tuple(map(str, range(largest + 1)))


def _has_texts(records: Records, label: str) -> bool:
    values = records.columns[label]
    if isinstance(values, np.ndarray):
        return values.dtype.kind == "U"
    try:
        records.array(label)
    except DataError:
        return any(isinstance(value, str) for value in values)
    return False


def _classes(records: Records, label: str, names: tuple[str, ...], fractions: bool) -> np.ndarray:
    values = records.array(label)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    whole = values.astype(np.int64)
    if values.dtype.kind == "f":
        off = (whole != values).reshape(len(values), -1).any(axis=1)
        if off.any() and fractions:
            return values
        if off.any():
            record = int(np.argmax(off))
            raise DataError(
                f"{records.place(record)}: {label} is {values[record]}, which is no class; if it is a number to come "
                'near to, say metric = "rmse", "mae" or "r2"'
            )
    if fractions:
        return whole
    wrong = (whole < 0) & ~((whole == metrics.IGNORED) & (whole.ndim > 1))
    if names:
        wrong |= whole >= len(names)
    if wrong.any():
        record = int(np.argmax(wrong.reshape(len(whole), -1).any(axis=1)))
        bad = whole[record][wrong[record]] if whole.ndim > 1 else whole[record]
        last = f"to {len(names) - 1}" if names else "on"
        raise DataError(f"{records.place(record)}: {label} is {np.ravel(bad)[0]}, but classes go from 0 {last}")
    return whole


def _standardize(divided: Mapping[Split, dict[str, np.ndarray]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns to mean 0 and deviation 1 over the training records; one that never changes to 0."""
    train = divided["train"][name].astype(np.float64)
    mean, spread = train.mean(axis=0), train.std(axis=0)
    deviation = np.where(spread > 0, spread, 1)
    for arrays in divided.values():
        arrays[name] = ((arrays[name] - mean) / deviation).astype(np.float32)
    return mean, deviation
