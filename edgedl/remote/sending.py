"""What a device is sent: the runner, and of each row of a run its files, with the calls that they are to answer."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipapp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl import dimensions, files, graph_session, plugins, progress
from edgedl.core import Session, Task, UsageError
from edgedl.devices import Device
from edgedl.remote import recordings, runner
from edgedl.remote.recordings import Recording

MODULES = (
    *("__init__", "sessions", "graph_session", "measure", "stats", "progress", "origin"),
    *("remote/__init__", "remote/runner", "remote/calls", "links/__init__", "links/far_end", "links/said"),
    *("devices/__init__", "devices/local", "probes/__init__", "probes/loads", "probes/sensors", "probes/jetson"),
    *("tflite/__init__", "tflite/litert", "tflite/flatbuffer", "tflite/loops", "onnx/__init__", "onnx/session"),
    *(f"nvidia/{name}" for name in ("__init__", "building", "engine", "engine_there", "gpu", "library", "passport")),
)
"""What the runner imports."""
RUNNER, JOB = "edgedl.pyz", "job.json"
NO_TENSORRT = "there is no TensorRT for the Python there, to build engines with"


@dataclass(frozen=True)
class Sent:
    """A row of the run on its way to the device, and what became of its files here."""

    row: Mapping[str, Any]
    files: Mapping[str, Path]
    """By the names that they have there."""
    job: Mapping[str, Any]
    """Its entry in the job."""
    recording: Recording


def prepare(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    report: Mapping[str, Any],
    threads_there: int | None,
    work: Path,
) -> list[Sent]:
    """The files of each row over the test split on this machine, with all calls in `work`.

    On the device, files have names of ours: those of the run, whatever they hold, stay here. Raises `UsageError`,
    `TargetError`.
    """
    sent: list[Sent] = []
    timed: dict[str, dict[str, Any]] = {}
    with progress.stage("this machine: run", len(rows)) as step:
        for index, row in enumerate(rows):
            found, usual = files_of(folder, row), (row["latency_ms"] or {}).get("threads") or 1
            session = opened(row, found, usual)
            recording = recordings.record(session, task)
            session.close()
            calls = {graph: given.save(work) for graph, given in recording.given.items()}
            builds, settings = None, None
            if row["target"] == "tensorrt":
                found = {graph: file.with_name("model.onnx") for graph, file in found.items()}
                builds, settings = building(folder, row, report, task)
            # The calls of a target's first row, the float one: all files are to do the same work.
            timed.setdefault(row["target"], {"calls": calls, "order": recording.timed})
            graphs: dict[str, dict[str, Any]] = {
                graph: {
                    "file": f"{index}-{place}.model",
                    "inputs": list(one.inputs),
                    "outputs": list(one.outputs),
                    "calls": calls[graph],
                    "builds": builds,
                }
                for place, (graph, one) in enumerate(recording.graphs.items())
            }
            job = {
                "name": str(index),
                "opens": row["target"],
                "threads": threads_there or usual,
                "settings": settings,
                "graphs": graphs,
                "answers": f"answers-{index}.npz",
                "timed": timed[row["target"]],
            }
            sent.append(Sent(row, {graphs[graph]["file"]: file for graph, file in found.items()}, job, recording))
            step(1)
    return sent


def files_of(folder: Path, row: Mapping[str, Any]) -> dict[str, Path]:
    """A row's file by the name of its graph, which is nothing where there is one alone.

    Raises `UsageError` for files that are not those of the report.
    """
    found = {}
    for graph, known in (row.get("graphs") or {"": row}).items():
        file = folder / known["file"]
        if not file.is_file() or files.sha256(file) != known["sha256"]:
            raise UsageError(f"{file}: not the file that {folder / 'report.json'} tells of; compress again")
        found[graph] = file
    return found


def opened(row: Mapping[str, Any], found: Mapping[str, Path], threads: int) -> Session:
    """The session of a row's files on this machine; of what an engine could not be built of here, in onnxruntime."""
    graphs = {}
    for graph, file in found.items():
        source = row["target"].startswith("tensorrt") and file.suffix == ".onnx"
        target = plugins.stand_in() if source else plugins.target_for(file, threads, row["target"])
        plugins.require([target], "open")
        graphs[graph] = target.open(file)
    return graph_session.joined(graphs)


def make_runner(file: Path) -> None:
    """Writes the zipapp, which `python3` runs without anything installed but numpy and a runtime."""
    here = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        for module in MODULES:
            copy = Path(folder) / "edgedl" / f"{module}.py"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here / f"{module}.py", copy)
        zipapp.create_archive(folder, file, main="edgedl.remote.runner:main", compressed=True)


def building(
    folder: Path, row: Mapping[str, Any], report: Mapping[str, Any], task: Task
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How an engine is built of a row's ONNX file (see `engine.build_engine`), and run: as the target would."""
    target = passport_of(folder, row)["target"]
    found = dimensions.ranges(task, target.get("max_batch"), report["recipe"]["bench"]["batch_size"])
    sizes = {name: list(sizes) for name, sizes in found.items()}
    run = {"cuda_graph": target.get("cuda_graph", False), "spin_wait": target.get("spin_wait", True)}
    return {"sparse": report["parameters"][row["variant"]].get("zeros", 0) > 0, "sizes": sizes}, run


def passport_of(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the `artifact.json` beside a row's file, or in the folder of its graphs."""
    file = folder / row["file"]
    beside = file if row.get("graphs") else file.parent
    file = beside / "artifact.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = found["target"]["use"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{file}: cannot be read as the passport of a file: {error}") from error
    return found


def left_out(row: Mapping[str, Any], device: Device | None = None) -> str | None:
    """Why a row's files are not sent, to any device or to this one; None if they are."""
    if row["target"] == "tensorrt" and device is not None and not device.builds_engines:
        return NO_TENSORRT
    if row["target"] != "tflite" and device is not None and device.program:
        return "benchmark_model runs TFLite files alone"
    if row["file"] is None:
        return "there is no file"
    if row["target"] not in runner.OPENERS:
        return f"only files of {', '.join(runner.OPENERS)} can be run on other devices"
    if row.get("graphs") and device is not None and device.program:
        return "benchmark_model runs one file, and knows no decoding of several graphs"
    return None
