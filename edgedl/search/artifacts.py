"""Run folders where all machines of a search reach them: at any address that fsspec knows, such as s3://BUCKET/DIR."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgedl import plugins
from edgedl.core import EdgedlError, MissingPackage, UsageError

LAST = "report.json"
"""Whoever finds it finds all else, in a storage as in a run folder."""


def check(url: str) -> None:
    """Raises `MissingPackage` or `UsageError` where nothing can be kept there."""
    with _opened(url) as (system, path), _told(url):
        system.makedirs(path, exist_ok=True)
        system.pipe_file(f"{path}/.writable", b"")
        system.rm_file(f"{path}/.writable")


def put(url: str, run: str, root: Path) -> None:
    """Copies the run folder `root / run` to `url`, the report last. Raises `UsageError`."""
    found = sorted(file for file in (root / run).rglob("*") if file.is_file())
    with _opened(url) as (system, path), _told(url):
        for file in sorted(found, key=lambda file: file == root / run / LAST):
            there = f"{path}/{file.relative_to(root).as_posix()}"
            system.makedirs(there.rpartition("/")[0], exist_ok=True)
            system.put_file(str(file), there)


def fetch(url: str, run: str, root: Path) -> None:
    """Copies a run folder from `url` to `root / run`, where it is there and not yet here. Raises `UsageError`."""
    if (root / run).exists():
        return
    with _opened(url) as (system, path), _told(url):
        if not system.exists(f"{path}/{run}/{LAST}"):
            return
        with arriving(root / run) as folder:
            for there in system.find(f"{path}/{run}"):
                here = folder / there.rpartition(f"/{run}/")[2]
                if ".." in here.parts:
                    raise UsageError(f"--artifacts {url}: {there} would not lie in the run's folder")
                here.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(there, str(here))


def read(url: str, run: str) -> bytes | None:
    """A run's report; None where it is not there. Raises `UsageError`."""
    with _opened(url) as (system, path), _told(url):
        there = f"{path}/{run}/{LAST}"
        return bytes(system.cat_file(there)) if system.exists(there) else None


@contextmanager
def arriving(folder: Path) -> Iterator[Path]:
    """A folder that becomes `folder` when something was put into it, and nobody else was first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", ignore_cleanup_errors=True) as name:
        partial = Path(name) / folder.name
        partial.mkdir()
        yield partial
        if any(partial.iterdir()) and not folder.exists():
            try:
                partial.rename(folder)
            except OSError:  # another worker of this machine has brought it in the meantime
                if not folder.exists():
                    raise


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """The file system behind an address, and the path there."""
    if not plugins.installed("fsspec"):
        raise MissingPackage(f"--artifacts needs fsspec: {plugins.pip_line('artifacts')}")
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a protocol's own package, or no such protocol
        raise UsageError(f"--artifacts {url}: {str(error).splitlines()[0]}") from error
    yield system, str(path).rstrip("/")


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except EdgedlError:
        raise
    except Exception as error:  # every kind of storage has errors of its own
        said = str(error).strip().splitlines()
        raise UsageError(f"--artifacts {url}: {said[0] if said else type(error).__name__}") from error
