"""One file a peer: from a trained network's files to its quantized ones, run by the Python of the peer's environment.

    python -m benchmarks.peers.NAME SOURCE OUTPUT FILE...

SOURCE is a folder that `networks.prepare` wrote. A peer's `FILES` maps each file that it can write, named after the
form of quantization and how it was set, to the function that writes it. Beside each FILE in OUTPUT stands FILE.json:
the seconds that it took, without imports and without what was loaded before the clock started, or why it failed.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Write = Callable[[Path, Path], Mapping[str, Any] | None]
"""`(source folder, file to write)`; what it returns goes into the facts, over those that were measured."""


def main(files: Mapping[str, Write], packages: Sequence[str]) -> None:
    """Writes the files that the command line asks for; each failure is a fact, and the next goes on."""
    source, output = (Path(argument) for argument in sys.argv[1:3])
    versions = {package: importlib.metadata.version(package) for package in packages}
    for name in sys.argv[3:]:
        facts: dict[str, Any] = {"versions": versions}
        start = time.perf_counter()
        try:
            made = files[name](source, output / name)
            facts |= {"seconds": time.perf_counter() - start} | dict(made or {})
        except Exception as error:  # a foreign tool may raise anything; whatever it is, it belongs into the results
            facts["failed"] = f"{type(error).__name__}: {reason(error)}"
        (output / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def reason(error: Exception) -> str:
    """The first line of what was said, short enough for a table."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[0][:300] if said else "(it said nothing)"


def calibration(source: Path) -> dict[str, np.ndarray]:
    """All samples by input name, each (N, ...)."""
    with np.load(source / "calibration.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def samples(source: Path) -> Iterator[dict[str, np.ndarray]]:
    """The calibration samples one by one, each (1, ...): the float files take batches of one."""
    arrays = calibration(source)
    for index in range(len(next(iter(arrays.values())))):
        yield {name: values[index : index + 1] for name, values in arrays.items()}
