"""What a person asks of a file next: how much it does at a time, how fast it starts, whether it lasts, what it draws.

It needs numpy and the file's runtime, nothing else: it runs on the device. docs/run-folder.md has what is answered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from edgedl import measure, stats
from edgedl.measure import Pace
from edgedl.probes import jetson, sensors
from edgedl.sessions import Batch, EdgedlError, Session

NUM_PARTS = 60
"""Of a sustained run: each is a point in its course."""
LONGEST_END_SECONDS = 60.0
"""The ends of a sustained run that are compared are a minute long, or a quarter of a run that is too short for that."""
IDLE_SHARE = 1 / 3
"""How long the idle machine is watched before a file's energy is measured, of the time that it is measured."""

Answer = dict[str, Any]


class Asked(NamedTuple):
    """Which questions; what is empty or 0 is not asked."""

    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    cold: int = 0
    """How many fresh processes are started."""
    sustained: float = 0.0
    """Seconds."""
    energy: bool = False
    end_to_end: bool = False
    """For the host alone, which has the task: `end_to_end.py`."""


NOTHING = Asked()


def answer(asked: Asked, opened: Callable[[int], Session], batch: Batch, threads: int, pace: Pace) -> Answer:
    """All but cold starts, which need processes of their own. `opened` gives the file with so many threads."""
    found: Answer = {}
    if asked.batches or asked.threads:
        found["throughput"] = throughput(opened, batch, asked.batches, asked.threads or (threads,), pace)
    if asked.sustained or asked.energy:
        session = opened(threads)
        measure.warm_up(session, batch)
        if asked.energy:
            found["energy"] = energy(session, batch, pace.min_seconds)
        if asked.sustained:
            found["sustained"] = sustained(session, batch, asked.sustained)
        session.close()
    return found


def throughput(
    opened: Callable[[int], Session], batch: Batch, batches: Sequence[int], threads: Sequence[int], pace: Pace
) -> Answer:
    """Samples in a second at each size of batch and number of threads; sizes are measured in turn.

    Numbers of threads are not, since threads that wait for work keep cores busy for a while. A file for batches of one
    size has that one alone, and `refused` says so.
    """
    session = opened(threads[0])
    own, takes_any = measure.batch_size(session), any_batch(session)
    session.close()
    sizes = tuple(dict.fromkeys(batches)) if takes_any and batches else (own,)
    left_out = [size for size in dict.fromkeys(batches) if size not in sizes]
    rows = [row for count in dict.fromkeys(threads) for row in _rates(opened, batch, sizes, own, count, pace)]
    refused = f"the file takes batches of {own} alone, so not {', '.join(map(str, left_out))}: max_batch makes others"
    return {"any_batch": takes_any, "refused": refused if left_out else None, "rows": rows}


def _rates(
    opened: Callable[[int], Session], batch: Batch, sizes: Sequence[int], own: int, threads: int, pace: Pace
) -> Iterator[Answer]:
    runs: dict[str, tuple[Session, Batch]] = {}
    refusals: dict[int, str] = {}
    for size in sizes:
        session, given = opened(threads), resized(batch, size, own)
        try:
            session.run(given)
            runs[str(size)] = session, given
        except EdgedlError as error:  # beyond what an engine was built for
            refusals[size] = str(error)
            session.close()
    blocks = measure.interleave(runs, pace)
    for session, _ in runs.values():
        session.close()
    for size in sizes:
        row = {"batch_size": size, "threads": threads, "per_second": None, "latency_ms": None, "reason": None}
        if size in refusals:
            yield row | {"reason": refusals[size]}
        else:
            latency = measure.latency_summary(blocks[str(size)], size, threads)
            yield row | {"per_second": size * 1000 / stats.summarize(blocks[str(size)]).median, "latency_ms": latency}


def any_batch(session: Session) -> bool:
    """Whether a file takes batches of other sizes than its own."""
    return bool(session.inputs) and not session.graphs and all(0 in spec.free for spec in session.inputs.values())


def resized(batch: Batch, size: int, own: int) -> Batch:
    """The samples of a batch again and again until there are `size`."""
    if size == own:
        return batch
    return {name: np.ascontiguousarray(np.resize(values, (size, *values.shape[1:]))) for name, values in batch.items()}


def sustained(session: Session, batch: Batch, seconds: float) -> Answer:
    """Runs a warm session without a pause, and compares the end with the beginning: does the machine slow down?

    Nothing is measured in turn here, so other work that came or went in that time shows as well.
    """
    course: list[Answer] = []
    start = time.perf_counter()
    for part in range(1, NUM_PARTS + 1):
        until = start + seconds * part / NUM_PARTS
        samples: list[float] = []
        while not samples or time.perf_counter() < until:
            begun = time.perf_counter_ns()
            session.run(batch)
            samples.append((time.perf_counter_ns() - begun) / 1e6)
        now = time.perf_counter() - start
        heat, clock = sensors.temperature_c(), sensors.clock_mhz()
        course.append(
            {"seconds": now, "median_ms": median(samples), "runs": len(samples)}
            | {"temperature_c": heat, "clock_mhz": clock}
        )
    ends = max(round(NUM_PARTS * min(LONGEST_END_SECONDS / seconds, 1 / 4)), 1)
    first, last = course[:ends], course[-ends:]
    logs = [np.log([part["median_ms"] for part in end]) for end in (first, last)]
    ratio, low, high = (float(value) for value in np.exp(stats.rank_sum_interval(logs[0], logs[1])))
    return {
        "seconds": course[-1]["seconds"],
        "compared_seconds": seconds * ends / NUM_PARTS,
        "first_ms": float(np.exp(np.median(logs[0]))),
        "last_ms": float(np.exp(np.median(logs[1]))),
        "slowdown": ratio,
        "ci95": [low, high],
        "throttled": low > 1 + stats.NEGLIGIBLE,
        "course": course,
    }


def energy(session: Session, batch: Batch, seconds: float, rail: sensors.Rail | str | None = None) -> Answer:
    """What one run draws: all of the rail while the file runs, and what that is above the idle machine.

    Beside it, how warm and how fast the machine was by the end of the runs, as far as it says.
    """
    rail = rail or jetson.rail() or sensors.rail()
    none: Answer = dict.fromkeys(
        ("rail", "energy_mj", "above_idle_mj", "watts", "idle_watts", "runs", "seconds", "reason")
    )
    none |= {"rails_w": {}, "temperature_c": {}, "clocks_mhz": {}}
    if isinstance(rail, str):
        return none | {"reason": rail}
    seconds = max(seconds, rail.least_seconds)
    with rail.drawing() as idle:
        start = time.perf_counter()
        time.sleep(seconds * IDLE_SHARE)
        idle_seconds = time.perf_counter() - start
    runs = 0
    with rail.drawing() as drawn:
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or not runs:
            session.run(batch)
            runs += 1
    clock = sensors.clock_mhz()
    if idle.joules is None or drawn.joules is None:
        return none | {"reason": f"{rail.name} said nothing of power"}
    idle_watts = idle.joules / idle_seconds
    return none | {
        "rail": rail.name,
        "energy_mj": drawn.joules * 1000 / runs,
        "above_idle_mj": (drawn.joules - idle_watts * elapsed) * 1000 / runs,
        "watts": drawn.joules / elapsed,
        "idle_watts": idle_watts,
        "runs": runs,
        "seconds": elapsed,
        "rails_w": dict(drawn.rails_w),
        "temperature_c": dict(drawn.temperature_c) or sensors.temperatures_c(),
        "clocks_mhz": dict(drawn.clocks_mhz) or ({} if clock is None else {"cpu": clock}),
    }


def cold_starts(command: Sequence[str], times: int) -> Answer:
    """How long fresh processes take from their start to the first answer, when they print a line of JSON.

    The line has `init_ms`, opening the file and running it once, and may have `import_ms`, loading the runtime; what
    is left is Python itself and numpy. The file is in the system's cache, as a device just switched on has it not.
    """
    totals, parts = [], {"init_ms": [], "import_ms": []}  # type: tuple[list[float], dict[str, list[float]]]
    for _ in range(times):
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            total = (time.perf_counter() - start) * 1000
        said: Mapping[str, Any] = {}
        try:
            said = json.loads(line)
        except ValueError:  # it died: below
            pass
        if process.returncode != 0 or "init_ms" not in said:
            reason = said.get("message") or f"a fresh process ended with status {process.returncode}"
            return {
                "starts": len(totals),
                "first_answer_ms": None,
                "import_ms": None,
                "init_ms": None,
                "reason": reason,
            }
        totals.append(total)
        for name, values in parts.items():
            if name in said:
                values.append(float(said[name]))
    spread = {name: _spread(values) if values else None for name, values in parts.items()}
    return {"starts": times, "first_answer_ms": _spread(totals), **spread, "reason": None}


def fresh(module: str, function: str, *arguments: str) -> list[str]:
    """The command that calls a function of this package in a fresh process, also from within a zipapp."""
    root = os.path.abspath(f"{__file__}/../../..")  # noqa: PTH100 - a place in an archive
    code = f"import sys; sys.path.insert(0, sys.argv[1]); from edgedl.{module} import {function} as call; "
    return [sys.executable, "-c", f"{code}call(*sys.argv[2:])", root, *arguments]


def _spread(values: Sequence[float]) -> Answer:
    return {"median": median(values), "min": min(values), "max": max(values)}
