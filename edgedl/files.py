"""Files: text that is given, which is named if it is none, and what is written, never half of it under a final name."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgedl.core import DataError

SEAL = "sha256"
"""Under which a sealed file has the digest of the rest of it."""


def read_text(file: Path) -> str:
    """A data file's text in UTF-8, with or without a mark at its beginning. Raises `DataError`."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}:{line}: no UTF-8: byte {error.start} is {error.object[error.start]:#04x}; save it as UTF-8"
        ) from error


def write_text(file: Path, text: str) -> None:
    """Writes a whole file under a temporary name, then renames it. Raises `OSError`."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """As `write_text`."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_json(file: Path, value: Any, indent: int | None = 2) -> None:
    """As `write_text`; refuses NaN and infinity, which are not JSON."""
    write_text(file, json.dumps(value, indent=indent, allow_nan=False, default=str) + "\n")


def seal(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Writes JSON into a folder with digests of all other files there, and of itself: `sealed` sees any change."""
    inside = {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    content = {**value, "files": inside}
    write_json(folder / name, {**content, SEAL: _digest(content)})


def sealed(folder: Path, name: str, key: str | None = None) -> dict[str, Any] | None:
    """What `seal` wrote; None if it or a file that it tells of is not there, was damaged, or changed since.

    With `key`, also None if another stands there under "key".
    """
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.pop(SEAL, None) != _digest(found) or key not in (None, found["key"]):
            return None
        whole = all(sha256(folder / inner) == digest for inner, digest in found["files"].items())
    except (OSError, ValueError, RecursionError):
        return None
    return found if whole else None


def _digest(value: Mapping[str, Any]) -> str:
    same = json.loads(json.dumps(value, default=str))  # as it will be read
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


@contextmanager
def filled_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `folder` when the block ends well, and vanishes when it does not."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cache_folder(part: str) -> Path:
    """Where a part of edgedl keeps what it can make again. Raises `RuntimeError` where a person has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgedl" / part


def make_executable(file: Path) -> None:
    """Lets whoever may read a file run it, and nobody else."""
    mode = file.stat().st_mode
    file.chmod(mode | (mode & 0o444) >> 2)


def gzip_size(file: Path) -> int:
    """Bytes of a file after `gzip -9`, which is about what it takes to send or to store it."""
    return len(gzip.compress(file.read_bytes(), mtime=0))


def sha256(file: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
