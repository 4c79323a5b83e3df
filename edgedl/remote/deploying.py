"""Leaving a file of a run on a device: with its passport, an example that runs and checks it, and checksums."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from edgedl import devices, files, graph_session, measure, progress, recipe
from edgedl.core import TargetError, Task, UsageError
from edgedl.devices import Device
from edgedl.graph_session import Recorder
from edgedl.links.ssh import printable
from edgedl.nvidia import engine_there, passport
from edgedl.remote import examples, on_device, sending
from edgedl.remote.answers import Built
from edgedl.remote.sending import RUNNER
from edgedl.run import looked_into, read_report

EXAMPLE = "example.py"
BUILD = f"import sys; sys.path.insert(0, {RUNNER!r}); from edgedl.nvidia.engine_there import main; main()"


def deploy(folder: Path, where: str, target: str | None, variant: str | None, to: str | None) -> dict[str, Any]:
    """Leaves a file of a finished run on the device `where`; returns where it lies and the command that runs it.

    The example runs there first: a file that does not answer right is not left. Raises `UsageError`, `TargetError`.
    """
    report, task = read_report(folder), recipe.load(str(folder / "recipe.toml")).task
    with looked_into(folder):
        row = chosen(folder, report, where, target, variant)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{report['recipe']['name']}-{row['variant']}-{row['target']}").lstrip("-.")
    stage = progress.stage(f"{where}: deploy {row['variant']} on {row['target']}", 1)
    with devices.connect(where) as device, tempfile.TemporaryDirectory() as work, stage as step:
        found = gathered(folder, row, report, task, device, Path(work))
        said = _tried(device, found) if device.runs_python else None
        left = device.leave(found, name, to)
        step(1)
    return {
        "device": device.name,
        "folder": left.folder,
        "command": left.command,
        "variant": row["variant"],
        "target": row["target"],
        "files": sorted(found),
        "example": said,
    }


def chosen(
    folder: Path, report: Mapping[str, Any], where: str, target: str | None, variant: str | None
) -> Mapping[str, Any]:
    """The row whose file is meant: named, or the best of what may ship, the fastest on that device if it is known."""
    rows = {(row["target"], row["variant"]): row for row in report["rows"] if target in (None, row["target"])}
    if not rows or (variant and not any(variant == known for _, known in rows)):
        known = ", ".join(sorted({f"{row['variant']} on {row['target']}" for row in report["rows"]}))
        raise UsageError(f"{folder}: no {variant or 'file'} on {target or 'any target'}; there are: {known}")
    ships = {verdict["target"]: verdict for verdict in report["verdicts"]}
    able: dict[tuple[str, str], Mapping[str, Any]] = {
        (on, name): row
        for (on, name), row in rows.items()
        if (name == variant if variant else _may_ship(row, ships.get(on)))
    }
    if not able:
        raise UsageError(f"{folder}: nothing ships: {'; '.join(ships[on]['why'] for on, _ in rows if on in ships)}")
    if lacking := [row for row in able.values() if _why_not(row)]:
        able = {key: row for key, row in able.items() if row not in lacking}
        if not able:
            raise UsageError(f"{folder}: {_why_not(lacking[0])}")
    there = {key: latency for key, latency in _measured_there(folder, where).items() if key in able}
    if there:
        return able[min(there, key=lambda key: there[key])]
    targets = list(dict.fromkeys(on for on, _ in able))
    if len(targets) > 1:
        raise UsageError(
            f"{folder}: which of {', '.join(targets)}? name it with --target, or let "
            f"`edgedl bench --on {where}` find the fastest there first"
        )
    return list(able.values())[-1]  # the gate puts the best last


def gathered(
    folder: Path, row: Mapping[str, Any], report: Mapping[str, Any], task: Task, device: Device, work: Path
) -> dict[str, Path]:
    """All that is left on a device, by name; an engine is built there. Raises `UsageError`, `TargetError`."""
    sources = sending.files_of(folder, row)
    about = sending.passport_of(folder, row)
    plain = _plain_names(list(sources))
    found = {f"{plain[graph]}{file.suffix}": file for graph, file in sources.items()}
    found |= {name: work / name for name in ("example.npz", "artifact.json")}
    specs = _record(sources, row, task, found["example.npz"])
    ships = {graph: f"{plain[graph]}{file.suffix}" for graph, file in sources.items()}
    if row["target"].startswith("tensorrt"):
        found[RUNNER] = work / RUNNER
        sending.make_runner(found[RUNNER])
    if row["target"] == "tensorrt":
        found |= {f"{plain[graph]}.onnx": file.with_name("model.onnx") for graph, file in sources.items()}
        found |= _scripts(sources, plain, work)
        how, _ = sending.building(folder, row, report, task)
        engines, built = _built(found, [f"{name}.onnx" for name in plain.values()], how, device, work)
        found |= {file.name: file for file in engines}
        ships = {graph: f"{name}.engine" for graph, name in plain.items()}
        about |= {
            "size_bytes": built.size_bytes,
            "status": "ok",
            "reason": None,
            "built_for": built.built_for,
            "versions": {**about["versions"], "built_by": built.by},
        }
    of_files = {
        graph: {"file": name, "size_bytes": found[name].stat().st_size, "sha256": files.sha256(found[name])}
        for graph, name in ships.items()
    }
    graphs = {graph: of_files[graph] | specs[graph] for graph in of_files}
    files.write_json(found["artifact.json"], about | graphs.get("", {"graphs": graphs}))
    texts = {EXAMPLE: examples.python(row["target"])}
    if row["target"] == "tflite" and device.is_phone:
        texts["LoadModel.kt"] = examples.KOTLIN
    for name, text in texts.items():
        found[name] = work / name
        files.write_text(found[name], text)
    sums = "".join(f"{files.sha256(file)}  {name}\n" for name, file in sorted(found.items()))
    found["SHA256SUMS"] = work / "SHA256SUMS"
    files.write_text(found["SHA256SUMS"], sums)
    return found


def _plain_names(graphs: Sequence[str]) -> dict[str, str]:
    """What the files of each graph are called on the device, before their endings: its name if all names are plain."""
    if all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", graph) for graph in graphs):
        return {graph: graph for graph in graphs}
    return {graph: f"graph-{place}" if graph else "model" for place, graph in enumerate(graphs)}


def _record(sources: Mapping[str, Path], row: Mapping[str, Any], task: Task, to: Path) -> dict[str, dict[str, Any]]:
    """Of each graph the first call for the test split, and what this machine answers, as `example.py` reads them.

    Arrays lie in order: a graph's inputs, its outputs, then those of the next. Returns their names and types.
    """
    if row["target"].startswith("tensorrt"):
        sources = {graph: file.with_name("model.onnx") for graph, file in sources.items()}
    session = sending.opened(row, sources, 1)
    recorder = Recorder(session)
    first = next(task.batches("test", measure.batch_size(session)))
    measure.answers(recorder, task, [first])
    arrays: list[np.ndarray] = []
    specs = {}
    for graph, one in graph_session.parts(session).items():
        place = next((place for place, (name, _) in enumerate(recorder.calls) if name == graph), None)
        if place is None:
            raise UsageError(
                f"task {task.use} never calls graph {graph} for the first test sample: there is no example"
            )
        given = graph_session.fitted(recorder.calls[place][1], one)
        arrays += [*given.values(), *(recorder.answered[place][name] for name in one.outputs)]
        specs[graph] = {
            "inputs": {name: vars(spec) for name, spec in one.inputs.items()},
            "outputs": {name: vars(spec) for name, spec in one.outputs.items()},
        }
    session.close()
    np.savez(to, *arrays)
    return specs


def _scripts(sources: Mapping[str, Path], plain: Mapping[str, str], work: Path) -> dict[str, Path]:
    """What builds each engine again after an update: `build.sh`, or one script a graph, for its file by its name."""
    found = {}
    for graph, file in sources.items():
        name = "build.sh" if not graph else f"{plain[graph]}.build.sh"
        text = file.with_name("build.sh").read_text(encoding="utf-8")
        for ending in ("onnx", "engine"):
            text = text.replace(f"model.{ending}", f"{plain[graph]}.{ending}")
        found[name] = work / name
        files.write_text(found[name], text)
    return found


def _built(
    found: Mapping[str, Path], sources: Sequence[str], how: Mapping[str, Any], device: Device, work: Path
) -> tuple[list[Path], Built]:
    """The engines that the device builds of ONNX files, with passports and times, and what it says of them."""
    if not device.builds_engines:
        raise UsageError(f"{device.name}: {sending.NO_TENSORRT}")
    files.write_json(work / "build.json", [{"file": name, "builds": how} for name in sources])
    needed = (*sources, RUNNER)
    device.push({name: found[name] for name in needed} | {"build.json": work / "build.json"})
    _ran(device, ["-c", BUILD], "the engine was not built")
    engines = [engine_there.engine_of(work / name) for name in sources]
    made = [*engines, *map(passport.file_beside, engines), work / engine_there.TIMINGS]
    device.pull([*(file.name for file in made), "built.json"], work)
    try:
        built = Built.model_validate_json((work / "built.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise TargetError(f"{device.name}: it does not say what it built: {printable(first)}") from error
    if any(not engine.is_file() or passport.read(engine) is None for engine in engines):
        raise TargetError(f"{device.name}: it says that it built an engine, and there is none, or no passport")
    return [file for file in made if file.is_file()], built


def _tried(device: Device, found: Mapping[str, Path]) -> str:
    """What the example says there. Raises `TargetError` where it fails."""
    device.push(found)
    return _ran(device, [EXAMPLE], "the file does not do there what it does here")


def _ran(device: Device, arguments: list[str], failure: str) -> str:
    done = device.run(arguments)
    said = [line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line.strip()]
    if done.returncode:
        raise TargetError(f"{device.name}: {failure}: {printable(said[-1]) if said else 'it said nothing'}")
    return "\n".join(map(printable, said))


def _may_ship(row: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> bool:
    """What the gate lets ship; where it could not judge the speed, any compressed file that it found sound."""
    if verdict is None:
        return False
    if verdict["ship"] == "host only":
        return bool(row["status"] == "built" and row["variant"] != "float")
    return bool(row["variant"] == verdict["ship"])


def _why_not(row: Mapping[str, Any]) -> str | None:
    """Why a row cannot be deployed, however good it is; None if it can."""
    named = f"{row['variant']} on {row['target']}"
    if row["file"] is None:
        return f"{named}: there is no file: {row['reason']}"
    return None if row["target"] in examples.RUNS else f"{named}: there is no example for files of this target"


def _measured_there(folder: Path, where: str) -> dict[tuple[str, str], float]:
    """Latencies of sound files, by target and variant, that `bench --on` has found on this device."""
    try:
        content = json.loads(on_device.results_file(folder, where).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    rows = [row for row in content["rows"] if row["status"] == "ok" and row["latency_ms"]]
    return {(row["target"], row["variant"]): row["latency_ms"]["median"] for row in rows}
