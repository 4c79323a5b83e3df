"""Data sets from files: arrays (.npz) and tables (.csv, .tsv, .jsonl, .parquet), each file a part or the whole."""

from __future__ import annotations

import csv
import io
import json
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import files
from edgedl.core import DataError, MissingPackage
from edgedl.data.records import MAX_BYTES, Column, Records
from edgedl.data.splits import PARTS, WHOLE

UNREADABLE = (
    ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError, tokenize.TokenError,
)  # fmt: skip
"""What readers of .npz files raise: of the archive, of an array's header, and for arrays that say they are huge."""


def read(file: Path) -> dict[str, Records]:
    """The parts of a data set in a file. Raises `DataError`."""
    return of_npz(file) if file.suffix.lower() == ".npz" else {WHOLE: whole(file)}


def is_part(file: Path) -> bool:
    """Whether a file is one part of a data set: `train.csv`."""
    return file.is_file() and file.stem.lower() in PARTS and file.suffix.lower() in READERS


def whole(file: Path) -> Records:
    """A file that is one part, or all there is. Raises `DataError`."""
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f'{file}: unknown ending "{file.suffix}"; data can end in {", ".join(READERS)}')
    try:
        return reader(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def of_npz(file: Path) -> dict[str, Records]:
    """Arrays by name; names such as `train/x` and `test/x` make parts. Never unpickles anything."""
    found = arrays(file)
    divided = {name: PARTS.get(name.partition("/")[0].lower()) for name in found if "/" in name}
    if not any(divided.values()):
        return {WHOLE: _of_arrays(found, str(file))}
    if strays := [name for name in found if divided.get(name) is None]:
        raise DataError(f"{file}: array {strays[0]} is in no part; name it train/{strays[0]}, test/{strays[0]}, ...")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, values in found.items():
        parts.setdefault(PARTS[name.partition("/")[0].lower()], {})[name.partition("/")[2]] = values
    return {name: _of_arrays(values, f"{file}, part {name}") for name, values in parts.items()}


def arrays(file: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or those of these names that are there; none is unpickled. Raises `DataError`."""
    name = ""
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"{file}: {size >> 20} MiB of arrays; at most {MAX_BYTES >> 20} are held in memory")
        found = {}
        with np.load(file, allow_pickle=False) as content:
            for name in content.files:
                if names is None or name in names:
                    found[name] = content[name]
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UNREADABLE as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{file}: array {name} holds Python objects, which could run code when read; save numbers, "
                "or texts as an array of str"
            ) from error
        what = f"array {name} cannot be read" if name else "cannot be read as an .npz file"
        raise DataError(f"{file}: {what}: {error}") from error
    for name, values in found.items():
        if not isinstance(values, np.ndarray):
            raise DataError(f"{file}: {name} is no array")
    return found


def _of_arrays(arrays: Mapping[str, np.ndarray], source: str) -> Records:
    for name, values in arrays.items():
        if values.ndim == 0:
            raise DataError(f"{source}: {name} is a single value; the first axis of every array counts the records")
    return Records(arrays, source, lambda record: f"{source}: record {record}")


def _npz_part(file: Path) -> Records:
    return _of_arrays(arrays(file), str(file))


def _csv(file: Path, delimiter: str = ",") -> Records:
    """A table with a header; cells stay text until they are asked for."""
    lines, header = list[int](), list[str]()
    rows: list[list[str]] = []
    try:
        reader = csv.reader(io.StringIO(files.read_text(file), newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{file}:{reader.line_num}: {len(values)} values, but the header names {len(header)} columns"
                )
            lines.append(reader.line_num)
            rows.append([value.strip() for value in values])
    except csv.Error as error:
        place = lines[-1] + 1 if lines else 2 if header else 1
        raise DataError(f"{file}:{place}: no CSV from here on: {error}") from error
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{file}: two columns are named {twice[0]!r}")
    if not rows:
        raise DataError(f"{file}: " + ("has a header, but no rows" if header else "is empty"))
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return Records(columns, str(file), lambda record: f"{file}:{lines[record]}", is_table=True)


def _json_lines(file: Path) -> Records:
    """An object a line, all with the same keys."""
    lines: list[int] = []
    columns: dict[str, list[Any]] = {}
    for number, line in enumerate(files.read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{number}: no JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{file}:{number}: a {type(record).__name__}, but every line has to be an object")
        if not lines:
            columns = {name: [] for name in record}
        if different := columns.keys() ^ record.keys():
            name = sorted(different)[0]
            what = "is missing" if name in columns else "is none of the keys of the first line"
            raise DataError(f"{file}:{number}: key {name!r} {what}")
        lines.append(number)
        for name, value in record.items():
            columns[name].append(value)
    if not lines:
        raise DataError(f"{file}: is empty")
    return Records(columns, str(file), lambda record: f"{file}:{lines[record]}", is_table=True)


def _parquet(file: Path) -> Records:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{file}: reading Parquet needs pyarrow: pip install 'edgedl[data]'") from error
    try:
        with file.open("rb") as stream:
            columns = of_table(parquet.read_table(stream))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise DataError(f"{file}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return Records(columns, str(file), lambda record: f"{file}: record {record}", is_table=True)


def of_table(table: Any) -> dict[str, Column]:
    """The columns of a table of Arrow: numbers as an array, the rest as one Python value a record."""
    found: dict[str, Column] = {}
    for name in table.column_names:
        column = table.column(name)
        values = column.to_pylist() if column.null_count else column.to_numpy()
        if isinstance(values, np.ndarray) and values.dtype == object:
            values = column.to_pylist()
        found[name] = values
    return found


READERS: Mapping[str, Callable[[Path], Records]] = {
    ".npz": _npz_part,
    ".csv": _csv,
    ".tsv": lambda file: _csv(file, "\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
