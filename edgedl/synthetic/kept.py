"""Arrays that take seconds to make, kept in the user's cache: for the next run, and for each trial of a search."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from edgedl import files
from edgedl.data import mel

Arrays = TypeVar("Arrays", bound=tuple[np.ndarray, ...])
SEAL = "made.json"


def kept(make: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """`make`, whose arrays are read if an earlier process has made them.

    They may depend on its arguments, of which JSON can tell all, and on what is written in its module and in this
    package, and on nothing else. A cache that is damaged or cannot be written to costs time and nothing else.
    """
    name = f"{make.__module__.rpartition('.')[2]}.{make.__name__}"

    @wraps(make)
    def arrays(*arguments: Any) -> Arrays:
        code = _digest(b"".join(file.read_bytes() for file in _sources(make)), np.__version__.encode())
        key = _digest(json.dumps(arguments).encode())
        try:
            folder = files.cache_folder("data") / f"{name}-{code}-{key}"
        except RuntimeError:  # whoever runs this has no home
            return make(*arguments)
        try:
            if (found := files.sealed(folder, SEAL, key)) is not None:
                return cast(Arrays, tuple(np.load(folder / file, allow_pickle=False) for file in found["arrays"]))
        except OSError:  # another process, with other code, has just removed it
            pass
        made = make(*arguments)
        try:
            _keep(folder, key, made)
            for old in set(folder.parent.glob(f"{name}-*")) - set(folder.parent.glob(f"{name}-{code}-*")):
                shutil.rmtree(old, ignore_errors=True)
        except OSError:  # there may be no room, or another process was faster
            pass
        return made

    return arrays


def _keep(folder: Path, key: str, made: tuple[np.ndarray, ...]) -> None:
    """Writes all under another name first. Raises `OSError`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", ignore_cleanup_errors=True) as work:
        whole = Path(work) / "whole"
        whole.mkdir()
        names = [f"{number}.npy" for number in range(len(made))]
        for name, array in zip(names, made, strict=True):
            np.save(whole / name, array, allow_pickle=False)
        files.seal(whole, SEAL, {"key": key, "arrays": names})
        if folder.exists():  # it is damaged
            folder.rename(Path(work) / "damaged")
        whole.rename(folder)


def _sources(make: Callable[..., Any]) -> list[Path]:
    """The code that arrays depend on."""
    return [Path(inspect.getfile(make)), Path(mel.__file__), *sorted(Path(__file__).parent.glob("*.py"))]


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
