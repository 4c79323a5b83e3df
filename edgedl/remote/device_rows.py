"""Rows of what a device answered: scores by the task, agreement with this machine, latencies and speed-ups."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgedl import gate, ladder, measure, other_sizes, stats
from edgedl.core import Batch, TargetError, Task
from edgedl.devices import Device
from edgedl.ladder import Agreement
from edgedl.links.said import plain
from edgedl.measure import Scored
from edgedl.remote import answers, benchmarked
from edgedl.remote.answers import Found, Result
from edgedl.remote.benchmarked import Benchmarked
from edgedl.remote.recordings import Played, Recording
from edgedl.remote.sending import Sent


def row_of(
    device: Device, entry: Sent, found: Found, task: Task, report: Mapping[str, Any], work: Path
) -> dict[str, Any]:
    """What is known of a row's files on the device: the keys of a report's rows, and `agreement` with this machine."""
    recording = entry.recording
    row = {key: entry.row[key] for key in ("variant", "target", "precision", "file", "size_bytes", "sha256")} | {
        "graphs": _graphs(entry, found if device.timed else None),
        "device": device.name,
        "status": "failed",
        "reason": found.error,
        "score": None,
        "samples": recording.scored.samples,
        "score_by": found.runtime or None,
        "score_here": recording.scored.score,
        "score_here_by": recording.session.runtime,
        "agreement": None,
        "init_ms": found.init_ms if device.timed else None,
        "peak_memory_bytes": found.peak_memory_bytes if device.timed else None,
        "latency_ms": None,
        "speedup": None,
        "engine": entry.job["settings"] and entry.job["settings"] | {"transfers": True},
        "built": found.built and found.built.model_dump(),
    }
    row["figures"] = _rates(row, recording.batch_size, task)
    row |= answers.of_row(found.answers if device.timed else None)
    if found.error is not None:
        return row
    needed_db = _needed_db(entry.row, report)
    if found.benchmarked is not None:
        return row | _of_benchmark(device, entry, found.benchmarked, needed_db[""], work)
    try:
        answered = _answers(entry, work)
    except TargetError as error:
        return row | {"reason": str(error)}
    scored, reasons = None, [found.not_timed] if found.not_timed else []
    try:
        scored = Played(recording, answered).evaluate(task, min(needed_db.values()))
        reasons += _conditions(recording)
    except TargetError as error:
        reasons.append(str(error))
    by_graph = {name: _agreement(entry, name, arrays) for name, arrays in answered.items()}
    strays = {name: found_db for name, (found_db, _) in by_graph.items() if found_db < needed_db[name]}
    for name, found_db in strays.items():
        of = f"graph {name}: " if name else ""
        reasons.insert(0, f"{of}{found_db:.1f} dB where {needed_db[name]:.1f} dB are needed")
    return row | {
        "status": "refused" if strays else "ok",
        "reason": "; ".join(reasons) or None,
        "score": scored.score if scored and np.isfinite(scored.score) else None,
        "agreement": vars(_together(entry, by_graph, scored)),
    }


def _graphs(entry: Sent, timed: Found | None) -> dict[str, Any]:
    """As in a report's row; of what is timed there, the median of each graph's calls."""
    calls = entry.recording.timed
    return {
        name: {key: known[key] for key in ("file", "size_bytes", "sha256")}
        | {"calls": calls.count(name), "latency_ms": timed.calls_ms.get(name) if timed else None}
        for name, known in (entry.row.get("graphs") or {}).items()
    }


def _rates(row: Mapping[str, Any], batch_size: int, task: Task) -> dict[str, float]:
    """Figures of speed, where every graph's calls are timed."""
    medians = {name: graph["latency_ms"] for name, graph in row["graphs"].items()}
    if not medians or None in medians.values():
        return {}
    return dict(task.rates({name: median / batch_size for name, median in medians.items()}))


def _conditions(recording: Recording) -> list[str]:
    """What has to be known of a score that is not what an application would get, over all samples."""
    said = ["scored call by call, each from this machine's states"] if recording.session.graphs else []
    if recording.left_out:
        samples, total = recording.scored.samples, recording.scored.samples + recording.left_out
        said.append(f"the first {samples} of {total} samples: the calls for more are too large to send")
    return said


def _of_benchmark(device: Device, entry: Sent, found: Benchmarked, needed_db: float, work: Path) -> dict[str, Any]:
    """What a row has of a file that `benchmark_model` ran: no score, and the agreement of a single call."""
    made: dict[str, Any] = {
        "status": "ok",
        "reason": "no score: benchmark_model answers no test set",
        "benchmark_model": {"delegate": device.delegate or None, **asdict(found)},
    }
    first = {name: entry.recording.answered[""][0][name] for name in entry.recording.session.outputs}
    (file,) = entry.files
    if (answered := benchmarked.answer(work / f"{file}.out", first)) is None:
        return made | {"reason": f"{made['reason']}, and this release not even one call"}
    agreement = _together(entry, {"": _agreement(entry, "", answered)}, None)
    agreement = replace(agreement, max_steps=None)  # of which a few values tell nothing
    if device.delegate:  # they compute in half precision
        needed_db = min(needed_db, ladder.HALF_AGREEMENT_DB)
    strays = agreement.sqnr_db < needed_db
    found_db = f"{agreement.sqnr_db:.1f} dB where {needed_db:.1f} dB are needed; " if strays else ""
    return made | {
        "status": "refused" if strays else "ok",
        "reason": f"{found_db}{made['reason']}; the agreement is that of one call",
        "agreement": vars(agreement),
    }


def _answers(entry: Sent, work: Path) -> dict[str, Batch]:
    """What the device answered to all calls, (calls, ...) by graph and output. Raises `TargetError` where not."""
    graphs, recording = entry.job["graphs"], entry.recording
    names = [(graph, name) for graph, sent in graphs.items() for name in sent["outputs"]]
    try:
        with np.load(work / entry.job["answers"]) as arrays:
            found = dict(zip(names, arrays.values(), strict=True))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TargetError(f"its answers cannot be read: {plain(str(error))}") from error
    for (graph, name), values in found.items():
        here = recording.answered[graph]
        first, wanted = here[0][name], (len(here), *here[0][name].shape)
        if values.shape != wanted or values.dtype != first.dtype:
            of = f"{name} of {graph}" if graph else name
            raise TargetError(f"it answered {values.dtype} {values.shape} for {of}, which is {first.dtype} {wanted}")
    return {graph: {name: found[graph, name] for name in sent["outputs"]} for graph, sent in graphs.items()}


def _agreement(entry: Sent, graph: str, there: Batch) -> tuple[float, int | None]:
    """How a graph's answers on the device agree with those of this machine, in dB and steps; the worst output's.

    They may be those to the first calls alone.
    """
    ratios, steps = [], []
    answered = entry.recording.answered[graph]
    for name, values in there.items():
        here = np.stack([batch[name] for batch in answered[: len(values)]])
        if here.tobytes() == values.tobytes():
            ratios.append(stats.EXACT_DB)
        else:
            finite = np.isfinite(here).all() and np.isfinite(values).all()
            ratios.append(stats.sqnr_db(here, values) if finite else -stats.EXACT_DB)
        steps.append(max_steps(here, values))
    return min(ratios), max((step for step in steps if step is not None), default=None)


def _together(entry: Sent, by_graph: Mapping[str, tuple[float, int | None]], scored: Scored | None) -> Agreement:
    """The worst graph's agreement, and the share of equal decisions of the whole."""
    decided, other = entry.recording.scored.decisions, scored.decisions if scored else None
    same = float((decided == other).mean()) if decided is not None and other is not None else None
    steps = [found for _, found in by_graph.values() if found is not None]
    return Agreement(min(found for found, _ in by_graph.values()), same, max(steps, default=None))


def max_steps(here: np.ndarray, there: np.ndarray) -> int | None:
    """The largest difference in steps of the grid of 8 bits that outputs lie on; None if they lie on none."""
    levels = np.unique(here).astype(np.float64)
    difference = float(np.abs(there.astype(np.float64) - here).max())
    if not 1 < len(levels) <= 256 or not np.isfinite(difference):
        return None
    return int(np.rint(difference / np.diff(levels).min()))


def _needed_db(row: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, float]:
    """How closely another device has to repeat each graph: as its file has to repeat what it was exported from."""
    (climb,) = (
        entry for entry in report["ladder"] if (entry["variant"], entry["target"]) == (row["variant"], row["target"])
    )
    found = {}
    for graph, of_graph in (climb.get("graphs") or {"": climb}).items():
        noise = of_graph["quantization"]
        needed_db = other_sizes.FLOAT_AGREEMENT_DB if noise is None else noise["sqnr_db"] + ladder.QUANTIZED_MARGIN_DB
        in_half = row["target"] == "tensorrt" and row["precision"] == "fp16"
        found[graph] = min(needed_db, ladder.HALF_AGREEMENT_DB) if in_half else needed_db
    return found


def timed(rows: Sequence[dict[str, Any]], sent: Sequence[Sent], result: Result) -> list[dict[str, Any]]:
    """Rows with latencies, and speed-ups against the float file of their target, where the device measured them."""
    blocks = {
        (row["target"], row["variant"]): [np.array(block) for block in found]
        for row, entry in zip(rows, sent, strict=True)
        if (found := result.networks[entry.job["name"]].blocks_ms) and row["status"] != "failed"
    }
    made = []
    for row, entry in zip(rows, sent, strict=True):
        own, reference = blocks.get((row["target"], row["variant"])), blocks.get((row["target"], "float"))
        if own is not None:
            latency = measure.latency_summary(own, entry.recording.batch_size, entry.job["threads"])
            row = row | {"latency_ms": latency}
            if one := result.networks[entry.job["name"]].benchmarked:
                # Blocks of one figure each: percentiles of single runs are not known. A delegate has no threads.
                threads = None if row["benchmark_model"]["delegate"] else entry.job["threads"]
                row["latency_ms"] |= {"p90": None, "p99": None, "runs": one.runs, "threads": threads}
        if own is not None and reference is not None and row["variant"] != "float":
            row = row | {"speedup": gate.speedup_as_json(stats.compare(reference, own))}
        made.append(row)
    return made


def warnings(device: Device, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader has to know before all else: runtimes that answer otherwise there, and what the device says."""
    straying = dict.fromkeys(row["score_by"] for row in rows if row["status"] == "refused")
    said = [f"{runtime} answers wrongly on {device.name}: do not ship with it" for runtime in straying]
    return [*said, *device.notes]
