"""A number from numbers: scikit-learn's diabetes table, or a CSV file of one's own."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.data import splits

if TYPE_CHECKING:
    import torch


NUM_EXHIBITS = 6


class Table(NamedTuple):
    """Rows of numbers, and what each is to give."""

    features: np.ndarray
    """(N, columns) float64"""
    targets: np.ndarray
    """(N,) float64"""


class Regression(Task):
    """Networks answer `prediction` (N, 1) to `features` (N, columns), both standardized by the training rows.

    Without `file`, it is the progression of diabetes after a year from ten measurements of 442 patients; with it, the
    `column` of a CSV file with a header from all its other columns, which have to be numbers. The score is in
    the target's own unit; of the test patients, linear regression has an RMSE of 56.6.
    Source: B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, Least Angle Regression, 2004, as packaged by
    scikit-learn.
    """

    use: str = "regression"
    file: str | None = None
    column: str = "target"
    outputs: ClassVar[tuple[str, ...]] = ("prediction",)
    metric: ClassVar[Metric] = Metric(name="RMSE", unit="", higher_is_better=False)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"features": TensorSpec((self._table().features.shape[1],))}

    def arrays(self, split: Split) -> Batch:
        """`features` (N, columns) and `target` (N, 1), float32 with mean 0 and deviation 1. Raises `DataError`."""
        table, rows = self._table(), self._rows(split)
        means, deviations = _moments(table.features[self._rows("train")])
        mean, deviation = _moments(table.targets[self._rows("train")])
        return {
            "features": ((table.features[rows] - means) / deviations).astype(np.float32),
            "target": ((table.targets[rows] - mean) / deviation).astype(np.float32)[:, None],
        }

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error."""
        from torch.nn.functional import mse_loss

        return mse_loss(outputs["prediction"], batch["target"])

    def score(self, outputs: Batch, batch: Batch) -> float:
        """The root of the mean squared error, in the target's own unit."""
        _, deviation = _moments(self._table().targets[self._rows("train")])
        errors = outputs["prediction"].astype(np.float64) - batch["target"]
        return float(np.sqrt(np.square(errors).mean()) * deviation)

    @property
    def baseline(self) -> Baseline:
        batch = self.arrays("test")
        return Baseline(self.score({"prediction": np.zeros_like(batch["target"])}, batch), "always answering the mean")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """R², the share of the variance that is explained."""
        truth = batch["target"].astype(np.float64)
        return {"R²": float(1 - np.square(outputs["prediction"] - truth).sum() / np.square(truth - truth.mean()).sum())}

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """The rows on which the files differ most, in the target's own unit."""
        mean, deviation = _moments(self._table().targets[self._rows("train")])
        predicted = {name: outputs["prediction"] for name, outputs in answers.items()}
        order = np.argsort(-np.ptp(list(predicted.values()), axis=0)[:, 0], kind="stable")[:NUM_EXHIBITS]
        numbers = {"truth": batch["target"], **predicted}
        return [
            Exhibit(f"sample {index}", {name: f"{mean + deviation * v[index, 0]:.4g}" for name, v in numbers.items()})
            for index in order
        ]

    def _table(self) -> Table:
        return _diabetes() if self.file is None else _from_csv(self.file, self.column)

    def _rows(self, split: Split) -> np.ndarray:
        return splits.chosen(len(self._table().targets), split, self.file or "diabetes")


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column; 1 for one that never changes."""
    deviation = values.std(axis=0)
    return values.mean(axis=0), np.where(deviation > 0, deviation, 1)


@lru_cache(maxsize=1)
def _diabetes() -> Table:
    try:
        from sklearn.datasets import load_diabetes
    except ModuleNotFoundError as error:
        raise DataError("task regression needs scikit-learn: pip install 'edgedl[train]'") from error
    return Table(*load_diabetes(return_X_y=True, scaled=False))


@lru_cache(maxsize=4)
def _from_csv(file: str, target: str) -> Table:
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream)
            header = [name.strip() for name in next(lines, [])]
            if header.count(target) != 1:
                raise DataError(f"{file}: needs one column named {target!r}; it has {', '.join(header) or 'none'}")
            if len(header) < 2:
                raise DataError(f"{file}: has no column besides {target!r} to predict it from")
            rows = [_numbers(file, lines.line_num, header, values) for values in lines if values]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"{file}: has a header, but no rows")
    values = np.array(rows)
    place = header.index(target)
    return Table(np.delete(values, place, axis=1), values[:, place])


def _numbers(file: str, line: int, header: list[str], values: list[str]) -> list[float]:
    if len(values) != len(header):
        raise DataError(f"{file}:{line}: {len(values)} values, but the header names {len(header)} columns")
    numbers = []
    for name, value in zip(header, values, strict=True):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{file}:{line}: column {name!r} holds {value!r}, which is no finite number")
        numbers.append(number)
    return numbers
