"""TensorRT engines on the device that runs them: built there from the ONNX file that was sent, and opened."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from edgedl.nvidia.building import Range, write_engine
from edgedl.nvidia.engine import EngineSession
from edgedl.nvidia.library import describe
from edgedl.sessions import TargetError

TIMINGS = "timing.cache"
"""What one build has learned of kernels, for the next one in this folder."""


def build(graphs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes engines and their passports beside the files of a network's graphs; by what and for what they are."""
    trt = _tensorrt()
    start, size_bytes = time.perf_counter(), 0
    for graph in graphs:
        file = Path(graph["file"])
        sizes = {name: Range(*found) for name, found in graph["builds"]["sizes"].items()}
        made = write_engine(
            trt, file, engine_of(file), sparse=graph["builds"]["sparse"], sizes=sizes, timing_cache=Path(TIMINGS)
        )
        size_bytes += engine_of(file).stat().st_size
    known = made.gpu is not None or made.compute_capabilities is not None
    return {
        "by": describe(trt),
        "built_for": f"{made.built_for}, {describe(trt)}" if known else None,
        "power_mode": made.power_mode,
        "seconds": time.perf_counter() - start,
        "size_bytes": size_bytes,
    }


def main() -> None:
    """Builds the graphs of `build.json` in this folder, and writes `built.json`."""
    try:
        found = build(json.loads(Path("build.json").read_text(encoding="utf-8")))
    except TargetError as error:
        sys.exit(" ".join(str(error).split()))
    Path("built.json").write_text(json.dumps(found), encoding="utf-8")


def open_engine(file: Path, threads: int, cuda_graph: bool, spin_wait: bool) -> EngineSession:
    """The engine that was built of this file; a GPU has no threads."""
    return EngineSession(_tensorrt(), engine_of(file), cuda_graph=cuda_graph, spin_wait=spin_wait)


def engine_of(file: Path) -> Path:
    """Where the engine of a file lies."""
    return file.with_suffix(".engine")


def _tensorrt() -> ModuleType:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise TargetError(
            f"there is no TensorRT for this Python: {error}; on a Jetson it comes with JetPack"
        ) from error
