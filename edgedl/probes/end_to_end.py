"""From a record as an application has it to its decision: what the recorded preprocessing and the task add to a run.

Records are made of the test split by undoing what was done to them: images are pixels again, as a camera or a decoder
gives them (H, W, C), columns of a table single numbers. Decoding a file and resizing are not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from edgedl import measure, stats
from edgedl.core import Session, Task

NUM_BATCHES = 32
"""Of the test split, which are run again and again."""
PARTS = ("prepare", "run", "decide")
Record = Mapping[str, Any]


def measured(session: Session, task: Task, seconds: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of a whole answer and of its parts; `run` is all calls that the task makes of the file."""
    size = measure.batch_size(session)
    steps = {name: _step(task.preprocessing.get("inputs", {}).get(name, {})) for name in task.inputs}
    batches = [
        batch for batch in islice(task.batches("test", size), NUM_BATCHES) if len(next(iter(batch.values()))) == size
    ]
    batches = batches or [measure.sample(task, session)]
    raw = [{name: undone(batch[name]) for name, (undone, _, _) in steps.items()} for batch in batches]
    others = [{name: values for name, values in batch.items() if name not in steps} for batch in batches]
    blocks: list[np.ndarray] = []
    parts: list[tuple[int, ...]] = []
    turn = 0
    for round_index in range(-1, rounds):  # the first warms up
        end = time.perf_counter() + seconds / rounds
        samples: list[tuple[int, ...]] = []
        while not samples or time.perf_counter() < end:
            records, rest = raw[turn % len(raw)], others[turn % len(raw)]
            turn += 1
            start = time.perf_counter_ns()
            given = {name: done(records[name]) for name, (_, done, _) in steps.items()}
            prepared = time.perf_counter_ns()
            outputs = task.predict(session, given | rest)
            ran = time.perf_counter_ns()
            task.decisions(outputs)
            decided = time.perf_counter_ns()
            samples.append((prepared - start, ran - prepared, decided - ran))
        if round_index >= 0:
            blocks.append(np.array([sum(sample) for sample in samples]) / 1e6)
            parts += samples
    whole = stats.summarize(blocks)
    return {
        "latency_ms": {"median": whole.median, "ci95": list(whole.ci95), "p90": whole.p90, "p99": whole.p99}
        | {"runs": whole.runs, "batch_size": size},
        "parts_ms": dict(zip(PARTS, np.median(np.array(parts), axis=0) / 1e6, strict=True)),
        "prepared": {name: said for name, (_, _, said) in steps.items()},
    }


def _step(recorded: Mapping[str, Any]) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray], str]:
    """What makes records of an input's array, what makes the array of records, and that in words."""
    if "layout" in recorded and ("scale" in recorded or "in_file" in recorded):
        return _image(recorded)
    if "columns" in recorded:
        return _columns(recorded)
    return (lambda values: values), np.ascontiguousarray, "as it is"


def _image(recorded: Mapping[str, Any]) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray], str]:
    first = recorded["layout"] == "channels-first"
    in_file = "in_file" in recorded
    shape = (-1, 1, 1) if first else (-1,)
    mean, deviation = (
        np.array(recorded.get(key, [fill]), np.float32).reshape(shape) for key, fill in (("mean", 0.0), ("std", 1.0))
    )

    def undone(values: np.ndarray) -> np.ndarray:
        pixels = values if in_file else np.rint((values * deviation + mean) * 255).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if first else pixels)

    def done(pixels: np.ndarray) -> np.ndarray:
        laid = pixels.transpose(0, 3, 1, 2) if first else pixels
        if in_file:
            return np.ascontiguousarray(laid)
        return np.ascontiguousarray((laid.astype(np.float32) / 255 - mean) / deviation)

    work = [] if in_file else ["pixels between 0 and 1, mean and deviation of each channel"]
    return undone, done, ", ".join([*work, f"{recorded['layout']} of (H, W, C)"])


def _columns(recorded: Mapping[str, Any]) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray], str]:
    mean, deviation = np.array(recorded.get("mean", 0.0)), np.array(recorded.get("std", 1.0))
    deviation = np.where(deviation > 0, deviation, 1.0)

    def undone(values: np.ndarray) -> list[list[float]]:
        return (values.astype(np.float64) * deviation + mean).tolist()  # type: ignore[no-any-return]

    def done(rows: list[list[float]]) -> np.ndarray:
        values: np.ndarray = (np.array(rows) - mean) / deviation if "mean" in recorded else np.array(rows)
        return values.astype(np.float32)

    return undone, done, "columns put together" + (", mean and deviation of each" if "mean" in recorded else "")
