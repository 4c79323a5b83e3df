"""Running the files of a run on another device, and making rows of what comes back: docs/devices.md describes them.

The device answers calls that were recorded here (`runner.py`); scores are made here, by the task, of what it answers.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import zipapp
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from edgedl import (
    __version__,
    answers,
    benchmarked,
    devices,
    end_to_end,
    files,
    gate,
    ladder,
    measure,
    plugins,
    progress,
    recipe,
    runner,
    stats,
)
from edgedl.answers import Answers, Block, Said, Time
from edgedl.benchmarked import Benchmarked
from edgedl.core import BATCH, Batch, Bench, Session, TargetError, Task, UsageError
from edgedl.devices import Device, plain
from edgedl.ladder import Agreement
from edgedl.loads import NOTHING, Asked
from edgedl.measure import Scored
from edgedl.run import DEVICES_SCHEMA, read_devices, read_report

MODULES = (
    *("__init__", "runner", "measure", "stats", "graph_session", "sessions", "devices/__init__", "devices/local"),
    *("loads", "sensors", "litert", "flatbuffer", "loops", "origin", "onnx_session", "engine", "passport", "gpu"),
    *("engine_there", "jetson", "far_end"),
)
"""What the runner imports."""
RUNNER, JOB, RESULT = "edgedl.pyz", "job.json", "result.json"
NO_TENSORRT = "there is no TensorRT for the Python there, to build engines with"


class Built(BaseModel, strict=True):
    """An engine that the device made of a file."""

    by: Said
    built_for: Said | None
    power_mode: Said | None
    seconds: Time
    size_bytes: NonNegativeInt


class Power(BaseModel, strict=True):
    """What a device drew while a file ran so many times without a pause, and how warm it got."""

    runs: PositiveInt
    seconds: Time
    samples: PositiveInt
    rails_mw: dict[Said, FiniteFloat]
    total_mw: FiniteFloat | None
    temperature_c: dict[Said, FiniteFloat]
    clocks_mhz: dict[Said, FiniteFloat]


class Found(BaseModel, strict=True):
    """What a device found of a file: an `error`, or the rest."""

    error: Said | None
    runtime: Said = ""
    init_ms: Time | None = None
    peak_memory_bytes: NonNegativeInt | None = None
    blocks_ms: Annotated[list[Block], Field(min_length=1)] | None = None
    not_timed: Said | None = None
    """Why there are no latencies, where they were asked for."""
    built: Built | None = None
    power: Power | None = None
    benchmarked: Benchmarked | None = None
    """What `benchmark_model` printed of it, which answers no test set. No device can say so itself."""
    answers: Answers | None = None
    """To what else was asked."""


class Result(BaseModel, strict=True):
    """`result.json`, which a device wrote."""

    device: dict[Said, Said | int | FiniteFloat | dict[Said, Said] | None]
    files: dict[str, Found]


class Recorded:
    """A session that notes what it is given and what it answers."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.given: list[Batch] = []
        self.answered: list[Batch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, batch: Batch) -> Batch:
        answers = self.session.run(batch)
        self.given.append({name: np.array(values) for name, values in batch.items()})
        self.answered.append({name: np.array(values) for name, values in answers.items()})
        return answers


class Played:
    """A device's answers to recorded calls, for a task that makes the same calls again."""

    def __init__(self, recorded: Recorded, answers: Batch) -> None:
        self.recorded, self.answers, self.num_calls = recorded, answers, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recorded, name)

    def run(self, batch: Batch) -> Batch:
        """Raises `TargetError` for another call: a task that goes on from answers goes on otherwise from wrong ones."""
        calls, place = self.recorded.given, self.num_calls
        if place >= len(calls) or any(calls[place][name].tobytes() != given.tobytes() for name, given in batch.items()):
            raise TargetError("no score: from what the device answers, the task goes on otherwise than here")
        self.num_calls += 1
        return {name: values[place] for name, values in self.answers.items()}


@dataclass(frozen=True)
class Sent:
    """A file of the run on its way to the device, and what became of it here."""

    row: Mapping[str, Any]
    file: Path
    job: Mapping[str, Any]
    """Its entry in the job."""
    recorded: Recorded
    scored: Scored


def bench(folder: Path, where: str, seconds: float, asked: Asked = NOTHING) -> dict[str, Any]:
    """Runs a finished run's files on the device `where`, writes `devices/<where>.json`, and returns its content.

    A file that fails there is a row with its reason. Raises `UsageError` before anything expensive, and `TargetError`
    where the device itself fails.
    """
    report, task = read_report(folder), recipe.load(str(folder / "recipe.toml")).task
    rows = [row for row in report["rows"] if _left_out(row) is None]
    if not rows:
        reasons = dict.fromkeys(str(_left_out(row)) for row in report["rows"])
        raise UsageError(f"{folder}: nothing to run on another device: {'; '.join(reasons)}")
    pace = Bench(min_seconds=seconds)
    with devices.connect(where) as device, tempfile.TemporaryDirectory() as work:
        if device.why_not:
            raise UsageError(device.why_not)
        if asked != NOTHING and (device.program or not device.timed):
            cannot = "benchmark_model times files, and" if device.program else "an emulator"
            raise UsageError(f"{device.name}: {cannot} answers nothing else: leave out --batches, --cold and the like")
        if asked.end_to_end and where != "local":
            raise UsageError("--end-to-end is of this machine, which has the task: leave it out, or --on local")
        rows = [row for row in rows if _left_out(row, device) is None]
        if not rows:
            reasons = dict.fromkeys(str(_left_out(row, device)) for row in report["rows"])
            raise UsageError(f"{folder}: nothing to run on {device.name}: {'; '.join(reasons)}")
        sent = _answered_here(folder, rows, task, report, device.threads, Path(work))
        device.most_threads = max(entry.job["threads"] for entry in sent)
        job = {
            "schema": runner.SCHEMA,
            "files": [entry.job for entry in sent],
            "pace": {"min_seconds": pace.min_seconds, "rounds": pace.rounds} if device.timed else None,
            "asked": asked._asdict() if asked != NOTHING else None,
        }
        files.write_json(Path(work) / JOB, job)
        make_runner(Path(work) / RUNNER)
        with progress.stage(f"{device.name}: run", 1) as step:
            ask = _benchmarked if device.program else _done
            result = ask(device, sent, pace, Path(work))
            step(1)
        environment = result.device | device.describe()
        made = [
            _row(device, entry, result.files[entry.job["file"]], task, _needed_db(entry.row, report), Path(work))
            for entry in sent
        ]
        if device.timed:
            made = _timed(made, sent, result)
            if asked.end_to_end and where == "local":
                for row, entry in zip(made, sent, strict=True):
                    row["end_to_end"] = _end_to_end(entry, task, pace)
            earlier = [row for content in read_devices(folder) for row in content["rows"]]
            made = answers.with_earlier(made, earlier)
    content = {
        "schema": DEVICES_SCHEMA,
        "edgedl": __version__,
        "device": device.name,
        "timed": device.timed,
        "environment": environment,
        "rows": made,
        "left_out": [
            {"variant": row["variant"], "target": row["target"], "reason": reason}
            for row in report["rows"]
            if (reason := _left_out(row, device))
        ],
        "warnings": _warnings(device, made),
    }
    (folder / "devices").mkdir(exist_ok=True)
    files.write_json(results_file(folder, where), content)
    return content


def results_file(folder: Path, where: str) -> Path:
    """Where a run keeps what `bench` found on a device."""
    return folder / "devices" / f"{re.sub(r'[^A-Za-z0-9.@-]+', '-', where)}.json"


def make_runner(file: Path) -> None:
    """Writes the zipapp, which `python3` runs without anything installed but numpy and a runtime."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        for module in MODULES:
            copy = Path(folder) / "edgedl" / f"{module}.py"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here / f"{module}.py", copy)
        zipapp.create_archive(folder, file, main="edgedl.runner:main", compressed=True)


def building(folder: Path, row: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """How an engine is built of a row's ONNX file (see `engine.build_engine`), and run: as the target would."""
    target = json.loads((folder / row["file"]).with_name("artifact.json").read_text(encoding="utf-8"))["target"]
    most, usual = target.get("max_batch"), report["recipe"]["bench"]["batch_size"]
    sizes = {BATCH: [1, usual, most]} if most else {}
    run = {"cuda_graph": target.get("cuda_graph", False), "spin_wait": target.get("spin_wait", True)}
    return {"sparse": report["parameters"][row["variant"]].get("zeros", 0) > 0, "sizes": sizes}, run


def _is_source(row: Mapping[str, Any]) -> bool:
    """Whether a row's file is the ONNX file of an engine that could not be built here."""
    return bool(row["target"] == "tensorrt" and row["file"].endswith(".onnx"))


def _answered_here(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    report: Mapping[str, Any],
    threads_there: int | None,
    work: Path,
) -> list[Sent]:
    """Every file over the test split on this machine, with its calls in `work`. Raises `UsageError`, `TargetError`.

    On the device, files have names of ours: those of the run, whatever they hold, stay here.
    """
    sent = []
    with progress.stage("this machine: run", len(rows)) as step:
        for index, row in enumerate(rows):
            file = folder / row["file"]
            if not file.is_file() or files.sha256(file) != row["sha256"]:
                raise UsageError(f"{file}: not the file that {folder / 'report.json'} tells of; compress again")
            threads = (row["latency_ms"] or {}).get("threads") or 1
            target = plugins.stand_in() if _is_source(row) else plugins.target_for(file, threads, row["target"])
            session = target.open(file)
            recorded = Recorded(session)
            scored = measure.evaluate(recorded, task, "test")
            session.close()
            builds, settings = None, None
            if row["target"] == "tensorrt":
                file = file.with_name("model.onnx")
                builds, settings = building(folder, row, report)
            job = {
                "builds": builds,
                "settings": settings,
                "file": f"{index}.model",
                "opens": row["target"],
                "threads": threads_there or threads,
                "inputs": list(recorded.inputs),
                "outputs": list(recorded.outputs),
                "calls": _kept(recorded, work),
                "answers": f"answers-{index}.npz",
            }
            sent.append(Sent(row, file, job, recorded, scored))
            step(1)
    return sent


def _kept(recorded: Recorded, work: Path) -> str:
    """The name of the file with a session's calls, stacked by input: most sessions of a run have the same."""
    calls = [np.stack([batch[name] for batch in recorded.given]) for name in recorded.inputs]
    digest = hashlib.sha256()
    for values in calls:
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    file = work / f"calls-{digest.hexdigest()[:16]}.npz"
    if not file.exists():
        np.savez(file, *calls)
    return file.name


def _done(device: Device, sent: Sequence[Sent], pace: Bench, work: Path) -> Result:
    """Has the job done on the device, and fetches what it made. Raises `TargetError` if the device fails as a whole."""
    calls = {entry.job["calls"] for entry in sent}
    models = {entry.job["file"]: entry.file for entry in sent}
    device.push({name: work / name for name in (RUNNER, JOB, *calls)} | models)
    done = device.run([RUNNER])
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise TargetError(
            f"{device.name}: the runner ended with {how}: {plain(said[-1]) if said else 'it said nothing'}"
        )
    device.pull([RESULT, *(entry.job["answers"] for entry in sent)], work)
    try:
        content = json.loads((work / RESULT).read_text(encoding="utf-8"), parse_constant=_no_number)
        result = Result.model_validate(content)
    except FileNotFoundError as error:
        raise TargetError(f"{device.name}: the runner left no {RESULT}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TargetError(f"{device.name}: {RESULT} is none: {plain(where)}: {plain(first['msg'])}") from error
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{device.name}: {RESULT} is no JSON: {plain(str(error))}") from error
    if lacking := [name for name in models if name not in result.files]:
        raise TargetError(f"{device.name}: {RESULT} lacks {', '.join(lacking)}")
    if any(found.blocks_ms and len(found.blocks_ms) != pace.rounds for found in result.files.values()):
        raise TargetError(f"{device.name}: {RESULT} has other blocks of latencies than it was asked for")
    return result


def _benchmarked(device: Device, sent: Sequence[Sent], pace: Bench, work: Path) -> Result:
    """What `benchmark_model` makes of the files, which are given the first of all calls. Raises `TargetError`."""
    runs = []
    for entry in sent:
        specs, given = entry.recorded.inputs, entry.recorded.given[0]
        inputs = [given[name].astype(spec.dtype) for name, spec in specs.items()]
        runs.append(benchmarked.Given(entry.job["file"], entry.file, entry.job["threads"], inputs))
    found = {}
    for name, one in benchmarked.benchmark(device, runs, pace.min_seconds, work).items():
        found[name] = Found(error=one.error) if one.error else Found(
            error=None, runtime=device.program or "", init_ms=one.init_ms, peak_memory_bytes=one.memory_bytes,
            blocks_ms=one.blocks_ms, benchmarked=one,
        )  # fmt: skip
    return Result(device={}, files=found)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _row(device: Device, entry: Sent, found: Found, task: Task, needed_db: float, work: Path) -> dict[str, Any]:
    """What is known of a file on the device: the keys of a report's rows, and `agreement` with this machine."""
    row = {key: entry.row[key] for key in ("variant", "target", "precision", "file", "size_bytes", "sha256")} | {
        "device": device.name,
        "status": "failed",
        "reason": found.error,
        "score": None,
        "samples": entry.scored.samples,
        "score_by": found.runtime or None,
        "score_here": entry.scored.score,
        "score_here_by": entry.recorded.runtime,
        "agreement": None,
        "init_ms": found.init_ms if device.timed else None,
        "peak_memory_bytes": found.peak_memory_bytes if device.timed else None,
        "latency_ms": None,
        "speedup": None,
        "engine": entry.job["settings"] and entry.job["settings"] | {"transfers": True},
        "built": found.built and found.built.model_dump(),
        "power": found.power and found.power.model_dump(),
    }
    row |= answers.of_row(found.answers if device.timed else None)
    if found.error is not None:
        return row
    if found.benchmarked is not None:
        return row | _of_benchmark(device, entry, found.benchmarked, needed_db, work)
    try:
        answered = _answers(entry, work)
    except TargetError as error:
        return row | {"reason": str(error)}
    scored, reasons = None, [found.not_timed] if found.not_timed else []
    try:
        scored = measure.evaluate(Played(entry.recorded, answered), task, "test")
    except TargetError as error:
        reasons.append(str(error))
    agreement = _agreement(entry, answered, scored)
    strays = agreement.sqnr_db < needed_db
    if strays:
        reasons.insert(0, f"{agreement.sqnr_db:.1f} dB where {needed_db:.1f} dB are needed")
    return row | {
        "status": "refused" if strays else "ok",
        "reason": "; ".join(reasons) or None,
        "score": scored.score if scored and np.isfinite(scored.score) else None,
        "agreement": vars(agreement),
    }


def _of_benchmark(device: Device, entry: Sent, found: Benchmarked, needed_db: float, work: Path) -> dict[str, Any]:
    """What a row has of a file that `benchmark_model` ran: no score, and the agreement of a single call."""
    made: dict[str, Any] = {
        "status": "ok",
        "reason": "no score: benchmark_model answers no test set",
        "benchmark_model": {"delegate": device.delegate or None, **asdict(found)},
    }
    first = {name: entry.recorded.answered[0][name] for name in entry.job["outputs"]}
    if (answered := benchmarked.answer(work / f"{entry.job['file']}.out", first)) is None:
        return made | {"reason": f"{made['reason']}, and this release not even one call"}
    agreement = replace(_agreement(entry, answered, None), max_steps=None)  # of which a few values tell nothing
    if device.delegate:  # they compute in half precision
        needed_db = min(needed_db, ladder.HALF_AGREEMENT_DB)
    strays = agreement.sqnr_db < needed_db
    found_db = f"{agreement.sqnr_db:.1f} dB where {needed_db:.1f} dB are needed; " if strays else ""
    return made | {
        "status": "refused" if strays else "ok",
        "reason": f"{found_db}{made['reason']}; the agreement is that of one call",
        "agreement": vars(agreement),
    }


def _answers(entry: Sent, work: Path) -> dict[str, np.ndarray]:
    """What the device answered to all calls, (calls, ...) by output. Raises `TargetError` where it is none of that."""
    here = entry.recorded.answered
    try:
        with np.load(work / entry.job["answers"]) as arrays:
            answers = dict(zip(entry.job["outputs"], arrays.values(), strict=True))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TargetError(f"its answers cannot be read: {plain(str(error))}") from error
    for name, first in here[0].items():
        wanted, found = (len(here), *first.shape), answers.get(name)
        if found is None or found.shape != wanted or found.dtype != first.dtype:
            said = "nothing" if found is None else f"{found.dtype} {found.shape}"
            raise TargetError(f"it answered {said} for {name}, which is {first.dtype} {wanted}")
    return answers


def _agreement(entry: Sent, answers: Mapping[str, np.ndarray], scored: Scored | None) -> Agreement:
    """How the device's answers agree with those of this machine, the worst output's; `max_steps` of int8 outputs.

    They may be those to the first calls alone.
    """
    ratios, steps = [], []
    for name in entry.recorded.outputs:
        there = answers[name]
        here = np.stack([batch[name] for batch in entry.recorded.answered[: len(there)]])
        if here.tobytes() == there.tobytes():
            ratios.append(stats.EXACT_DB)
        else:
            finite = np.isfinite(here).all() and np.isfinite(there).all()
            ratios.append(stats.sqnr_db(here, there) if finite else -stats.EXACT_DB)
        steps.append(max_steps(here, there))
    decided, other = entry.scored.decisions, scored.decisions if scored else None
    same = float((decided == other).mean()) if decided is not None and other is not None else None
    return Agreement(min(ratios), same, max((step for step in steps if step is not None), default=None))


def max_steps(here: np.ndarray, there: np.ndarray) -> int | None:
    """The largest difference in steps of the grid of 8 bits that outputs lie on; None if they lie on none."""
    levels = np.unique(here).astype(np.float64)
    difference = float(np.abs(there.astype(np.float64) - here).max())
    if not 1 < len(levels) <= 256 or not np.isfinite(difference):
        return None
    return int(np.rint(difference / np.diff(levels).min()))


def _needed_db(row: Mapping[str, Any], report: Mapping[str, Any]) -> float:
    """How closely another device has to repeat a file: as the file has to repeat what it was exported from."""
    (climb,) = (
        entry for entry in report["ladder"] if (entry["variant"], entry["target"]) == (row["variant"], row["target"])
    )
    noise = climb["quantization"]
    return ladder.FLOAT_AGREEMENT_DB if noise is None else float(noise["sqnr_db"]) + ladder.QUANTIZED_MARGIN_DB


def _timed(rows: Sequence[dict[str, Any]], sent: Sequence[Sent], result: Result) -> list[dict[str, Any]]:
    """Rows with latencies, and speed-ups against the float file of their target, where the device measured them."""
    blocks = {
        (row["target"], row["variant"]): [np.array(block) for block in found]
        for row, entry in zip(rows, sent, strict=True)
        if (found := result.files[entry.job["file"]].blocks_ms) and row["status"] != "failed"
    }
    made = []
    for row, entry in zip(rows, sent, strict=True):
        own, reference = blocks.get((row["target"], row["variant"])), blocks.get((row["target"], "float"))
        if own is not None:
            size = measure.batch_size(entry.recorded)
            row = row | {"latency_ms": measure.latency_summary(own, size, entry.job["threads"])}
            if one := result.files[entry.job["file"]].benchmarked:
                # Blocks of one figure each: percentiles of single runs are not known. A delegate has no threads.
                threads = None if row["benchmark_model"]["delegate"] else entry.job["threads"]
                row["latency_ms"] |= {"p90": None, "p99": None, "runs": one.runs, "threads": threads}
        if own is not None and reference is not None and row["variant"] != "float":
            row = row | {"speedup": gate.speedup_as_json(stats.compare(reference, own))}
        made.append(row)
    return made


def _end_to_end(entry: Sent, task: Task, pace: Bench) -> dict[str, Any]:
    """Here, where the task is: what an application adds to a run of the file."""
    session = plugins.target_for(entry.file, entry.job["threads"], entry.row["target"]).open(entry.file)
    found = end_to_end.measured(session, task, pace.min_seconds, pace.rounds)
    session.close()
    return found


def _warnings(device: Device, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader has to know before all else: runtimes that answer otherwise there, and what the device says."""
    straying = dict.fromkeys(row["score_by"] for row in rows if row["status"] == "refused")
    said = [f"{runtime} answers wrongly on {device.name}: do not ship with it" for runtime in straying]
    return [*said, *device.notes]


def _left_out(row: Mapping[str, Any], device: Device | None = None) -> str | None:
    """Why a row's file is not sent, to any device or to this one; None if it is."""
    if row["target"] == "tensorrt" and device is not None and not device.builds_engines:
        return NO_TENSORRT
    if row["target"] != "tflite" and device is not None and device.program:
        return "benchmark_model runs TFLite files alone"
    if row["file"] is None:
        return "there is no file"
    if row["target"] not in runner.OPENERS:
        return f"only files of {', '.join(runner.OPENERS)} can be run on other devices"
    return "networks of several graphs cannot be run on other devices" if row.get("graphs") else None
