"""Records of any source as named columns, made arrays one by one; whatever cannot be is named with its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from edgedl.core import DataError

Column: TypeAlias = "np.ndarray | Sequence[Any]"
"""(N, ...) numbers, or a value a record that has yet to become one: a text, a number, a list."""

DTYPES = {
    "float16": "float32",
    "float64": "float32",
    "int8": "int32",
    "int16": "int32",
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
}
"""What networks are not given, and what they are given instead; float32, int32, int64, uint8 and bool stay."""
MAX_BYTES = 8 << 30
"""All data is held in memory; more than this is refused before it is read, where that is known."""


@dataclass(frozen=True)
class Records:
    """Columns of equal length, in the order of the source."""

    columns: Mapping[str, Column]
    source: str
    place: Callable[[int], str]
    """Where a record is, as errors name it: `homes.csv:5`."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes that whole numbers in a column stand for, where the source knows them."""
    images: frozenset[str] = frozenset()
    """Columns of images (N, C, H, W) uint8, decoded and of one size."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """How these were made so, for whoever has to do the same."""
    is_table: bool = False
    """Whether single numbers are columns of a table, which become one input together."""

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DataError(f"{self.source}: every array needs as many records as the others, but there are {said}")
        if not lengths or next(iter(lengths.values())) == 0:
            raise DataError(f"{self.source}: there are no records in it")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def is_scalar(self, name: str) -> bool:
        """Whether a column has one value a record."""
        values = self.columns[name]
        return values.ndim == 1 if isinstance(values, np.ndarray) else not np.shape(values[0])

    def is_text(self, name: str) -> bool:
        """Whether nothing in a column is a number."""
        values = self.columns[name]
        if isinstance(values, np.ndarray):
            return values.dtype.kind not in "biuf"
        return not any(_is_numeric(value) for value in values)

    def array(self, name: str) -> np.ndarray:
        """A column as (N, ...) finite numbers, in a type that networks take. Raises `DataError` with the record."""
        values = self.columns[name]
        found = values if isinstance(values, np.ndarray) else self._stacked(name, values)
        if found.dtype.kind not in "biuf":
            raise DataError(f"{self.source}: {name} holds {found.dtype}, but networks take numbers")
        wanted = DTYPES.get(found.dtype.name, found.dtype.name)
        if found.dtype == np.uint64 and found.max(initial=0) > np.iinfo(np.int64).max:
            raise DataError(f"{self.source}: {name} holds numbers that no int64 can")
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(found, dtype=wanted)
        if converted.dtype.kind == "f":
            finite = np.isfinite(converted).reshape(len(converted), -1).all(axis=1)
            if not finite.all():
                record = int(np.argmin(finite))
                bad = found[record][~np.isfinite(converted[record])].flat[0]
                raise DataError(f"{self.place(record)}: {name} holds {bad}, which is no finite float32")
        return converted

    def texts(self, name: str) -> list[str]:
        """A column of one value a record as texts, stripped. Raises `DataError` for an empty one."""
        found = []
        for record, value in enumerate(self.columns[name]):
            said = "" if value is None else str(value).strip()
            if not said or said.lower() == "nan":
                raise DataError(f"{self.place(record)}: {name} is {value!r}, which is no class")
            found.append(said)
        return found

    def dtype(self, name: str) -> str | None:
        """The type a column has in the source, where it has one."""
        values = self.columns[name]
        return values.dtype.name if isinstance(values, np.ndarray) else None

    def _stacked(self, name: str, values: Sequence[Any]) -> np.ndarray:
        if all(isinstance(value, str) for value in values):
            return self._parsed(name, values)
        rows = [self._row(name, record, value) for record, value in enumerate(values)]
        for record, row in enumerate(rows):
            if row.shape != rows[0].shape:
                raise DataError(
                    f"{self.place(record)}: {name} has shape {row.shape}, but that of the first record is "
                    f"{rows[0].shape}; pad or cut to one"
                )
        return np.stack(rows)

    def _row(self, name: str, record: int, value: Any) -> np.ndarray:
        try:
            row = np.asarray(value)
        except (ValueError, TypeError) as error:  # a list of lists that differ in length
            raise DataError(f"{self.place(record)}: {name} is no array: {error}") from error
        if row.dtype.kind not in "biuf":
            raise DataError(f"{self.place(record)}: {name} holds {_short(value)}, but networks take numbers")
        return row

    def _parsed(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Texts that are numbers: whole ones as int64, others as float64."""
        for kind in (np.int64, np.float64):
            try:
                return np.array(values, dtype=np.str_).astype(kind)
            except (ValueError, OverflowError):
                pass  # the next type, or a text that is none
        for record, value in enumerate(values):
            if not _is_numeric(value):
                raise DataError(f"{self.place(record)}: {name} holds {_short(value)}, which is no number")
        raise AssertionError("each is a number, but not all of them")


def check_bytes(num: int, place: str) -> None:
    """Raises `DataError` for more data than is held in memory, up to this place."""
    if num > MAX_BYTES:
        raise DataError(
            f"{place}: up to here the data takes more than {MAX_BYTES >> 30} GiB, and all of it is held in memory; "
            "give a part of it, or smaller images by size"
        )


def _is_numeric(value: Any) -> bool:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except (ValueError, TypeError):
        return True  # ragged numbers: to be refused where they are read, not left out


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:37]}..."
