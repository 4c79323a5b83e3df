"""Measuring exported files: scores over whole splits, and latencies in interleaved blocks.

It needs numpy and the file's runtime, nothing else: it runs on the device.
"""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgedl import progress, sessions, stats
from edgedl.graph_session import Call, Recorder, Replay, open_files
from edgedl.sessions import Batch, Session, TargetError, TensorSpec, UsageError, in_batches, num_samples

if TYPE_CHECKING:
    from edgedl.core import Split, Target, Task

MIN_WARM_UP_RUNS = 10
MIN_WARM_UP_SECONDS = 0.2
MAX_WARM_UP_SECONDS = 5.0
STABLE = 0.02
"""Warm-up ends when the median of the last third of its runs is within this share of that of the third before."""
MIN_RUNS = 100
COLD_SECONDS = 0.005
"""How long a block runs before it counts, if that is at most a quarter of it: caches hold what ran before."""
LONG_SECONDS = 2.0
"""What takes longer is shown by itself, inside the stage that it belongs to."""
MAX_OPENING_SECONDS = 1800.0
"""A recipe's `limits.build_minutes` where there is none: large files may be compiled for long when they are opened."""
NARROWED = {"int64": "int32"}
"""What a converter makes of an input's dtype, which the session then takes as well."""


@dataclass(frozen=True)
class Scored:
    """What a session answered over a whole split."""

    outputs: Batch
    score: float
    samples: int
    decisions: np.ndarray | None


@dataclass(frozen=True)
class ColdStart:
    """A file opened in a fresh process."""

    init_ms: float
    """Loading the file and its first run."""
    peak_memory_bytes: int | None
    """Growth of the process's peak resident memory over what it held with the runtime imported; None off Linux."""


class Pace(Protocol):
    """How long files are measured: a recipe's `bench`, or what a device was told of it."""

    @property
    def min_seconds(self) -> float: ...

    @property
    def rounds(self) -> int: ...


def evaluate(session: Session, task: Task, split: Split, most: int | None = None) -> Scored:
    """Runs a whole split, or at most so many of its first samples, through a session, and scores what it answers."""
    arrays = {name: values[:most] for name, values in task.arrays(split).items()}
    size = batch_size(session)
    with progress.stage(f"score over the {split} data", num_samples(arrays), after=LONG_SECONDS) as step:

        def counted() -> Iterator[Batch]:
            for batch in in_batches(arrays, size):
                yield batch
                step(size)

        return scored(answers(session, task, counted()), task, arrays)


def scored(outputs: Batch, task: Task, arrays: Batch) -> Scored:
    """What the answers to samples, the arrays of a split, are worth."""
    return Scored(
        outputs=outputs,
        score=task.score(outputs, arrays),
        samples=num_samples(arrays),
        decisions=task.decisions(outputs),
    )


def answers(session: Session, task: Task, batches: Iterable[Batch]) -> Batch:
    """The outputs for all samples, in order; a batch that is smaller than the file's fixed size is padded to it."""
    size = batch_size(session)
    collected: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        length = num_samples(batch)
        padded = {name: _pad(values, size) for name, values in batch.items()}
        for name, values in task.predict(session, padded).items():
            collected.setdefault(name, []).append(values[:length])
    return {name: np.concatenate(parts) for name, parts in collected.items()}


def check_fits(file: Path, session: Session, task: Task) -> None:
    """Raises `UsageError` for a file that takes something else than the task feeds, or lacks what it scores."""
    if task.graphs:
        if set(session.graphs) != set(task.graphs):
            needed, has = (" and ".join(names) or "none" for names in (task.graphs, session.graphs))
            raise UsageError(f"{file}: task {task.use} needs a folder with the graphs {needed}; it has {has}")
        return
    for kind, wanted, found in (("input", task.inputs, session.inputs), ("output", task.outputs, session.outputs)):
        for name in wanted:
            if name not in found:
                raise UsageError(
                    f"{file}: no {kind} named {name}, as task {task.use} has; it has {', '.join(found) or 'none'}"
                )
    for name in task.outputs:
        if not session.outputs[name].shape:
            raise UsageError(
                f"{file}: output {name} is one number, not one answer a sample: task {task.use} cannot score it"
            )
    for name, given in session.inputs.items():
        if name not in task.inputs:
            raise UsageError(f"{file}: input {name} is nothing that task {task.use} feeds")
        spec = task.inputs[name]
        if given.shape[1:] != spec.shape or given.dtype not in (spec.dtype, NARROWED.get(spec.dtype)):
            shape = ", ".join(map(str, ("N", *spec.shape)))
            raise UsageError(
                f"{file}: input {name} is {given.dtype} {given.shape}, but task {task.use} feeds {spec.dtype} ({shape})"
            )


def batch_size(session: Session) -> int:
    """The batch size that a file was exported for."""
    first = next(iter(session.inputs.values()), None)
    return first.shape[0] if first is not None and first.shape else 1


def sample(task: Task, session: Session) -> Batch:
    """Real inputs of one batch, from the test split: time may depend on data."""
    size = batch_size(session)
    first = next(task.batches("test", size))
    found = {name: _pad(first[name], size) for name in task.inputs}
    # In the file's type where it tells one, since the session would have to narrow int64 at every run.
    types = {name: spec.dtype for name, spec in session.inputs.items()}
    return {name: np.ascontiguousarray(values, types.get(name)) for name, values in found.items()}


def timed(task: Task, session: Session, calls: Sequence[Call] = ()) -> tuple[Session, Batch]:
    """What is timed of a session: a run on a real sample or, where the network is several graphs, the whole decoding.

    That is to make the same `calls` again, or those that it takes for the first samples of the test split itself.
    """
    if not task.graphs:
        return session, sample(task, session)
    if not calls:
        size, recorder = batch_size(session), Recorder(session)
        first = next(task.batches("test", size))
        task.predict(recorder, {name: _pad(values, size) for name, values in first.items()})
        calls = recorder.calls
    return Replay(session, calls), {}


def random_inputs(inputs: Mapping[str, TensorSpec]) -> Batch:
    """Inputs for a file of which nothing is known: normal floats, zeros for integers and booleans."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(spec.shape).astype(spec.dtype)
        if np.issubdtype(np.dtype(spec.dtype), np.floating)
        else np.zeros(spec.shape, spec.dtype)
        for name, spec in inputs.items()
    }


def interleave(runs: Mapping[str, tuple[Session, Batch]], bench: Pace) -> dict[str, list[np.ndarray]]:
    """Latencies in ms of several sessions, measured in turn: `bench.rounds` blocks each.

    Returns for each name its blocks, each (runs,) float64. Nothing but `session.run` stands between the clock's two
    readings; the first runs of a block, which find the caches cold, are thrown away. Many short blocks tell more than
    few long ones: what else the machine does lasts longer than both blocks of a pair, and cancels. No block has fewer
    runs than a quiet one would have: else one run that is interrupted would be a block by itself. Rounds are in random
    order, lest it fall in step with something that comes and goes, and every other one is the one before backwards.
    """
    block_seconds = bench.min_seconds / bench.rounds
    block_runs = {
        name: max(-(-MIN_RUNS // bench.rounds), int(block_seconds * 1000 / warm_up(session, batch)))
        for name, (session, batch) in runs.items()
    }
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    names, order = list(runs), random.Random(0)
    with progress.stage("rounds", bench.rounds, after=LONG_SECONDS) as step:
        for round_index in range(bench.rounds):
            names.reverse()
            if round_index % 2 == 0:
                order.shuffle(names)
            for name in names:
                blocks[name].append(_block(*runs[name], block_seconds, block_runs[name]))
            step(1)
    return blocks


def warm_up(session: Session, batch: Batch) -> float:
    """Runs until the rolling median is stable: at least 10 runs and 0.2 s, at most 5 s. Returns it, in ms."""
    samples: list[int] = []
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MAX_WARM_UP_SECONDS:
        samples.append(_timed_run(session, batch))
        if elapsed < MIN_WARM_UP_SECONDS or len(samples) < MIN_WARM_UP_RUNS or len(samples) % 10:
            continue
        third = max(len(samples) // 3, 3)
        before, last = np.median(samples[-2 * third : -third]), np.median(samples[-third:])
        if abs(last - before) <= STABLE * before:
            break
    return max(float(np.median(samples[-max(len(samples) // 3, 3) :])) / 1e6, 1e-6)


def cold_start(
    target: Target, file: Path, seconds: float = MAX_OPENING_SECONDS, num_bytes: int | None = None
) -> ColdStart:
    """Opens a file and runs it once in a process of its own, which a damaged file may crash without harm.

    It may take so many `seconds`, and so many bytes of memory, where that is said.
    Raises what opening it raised there, or `TargetError` with the last line that was said.
    """
    command = fresh_command(target, file) + ([] if num_bytes is None else [str(num_bytes)])
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"{file}: had not opened and run after {seconds:g} s in a process of its own") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise TargetError(f"{file} failed in a process of its own: {said[-1] if said else how}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise vars(sessions)[answer["error"]](answer["message"])
    return ColdStart(answer["init_ms"], answer["peak_memory_bytes"])


def fresh_command(target: Target, file: Path) -> list[str]:
    """What opens a file in a process of its own, and prints what `first_run` found as a line of JSON."""
    return [sys.executable, "-m", "edgedl.measure", target.use, target.model_dump_json(), str(file)]


def first_run(open_session: Callable[[], Session]) -> tuple[Session, ColdStart]:
    """Opens a session and runs it once, in a process that has imported the runtime and has done nothing else yet."""
    _reset_peak_memory()
    before = _memory("VmRSS")
    start = time.perf_counter_ns()
    session = open_session()
    session.run(random_inputs(session.inputs))
    init_ms = (time.perf_counter_ns() - start) / 1e6
    peak = _memory("VmHWM")
    return session, ColdStart(init_ms, None if before is None or peak is None else max(peak - before, 0))


def latency_summary(blocks: list[np.ndarray], batch_size: int, threads: int | None) -> dict[str, object]:
    """The `latency_ms` object of a report's row."""
    latency = stats.summarize(blocks)
    return {
        "median": latency.median,
        "p90": latency.p90,
        "p99": latency.p99,
        "ci95": list(latency.ci95),
        "runs": latency.runs,
        "batch_size": batch_size,
        "threads": threads,
    }


def _block(session: Session, batch: Batch, seconds: float, min_runs: int) -> np.ndarray:
    end = time.perf_counter() + min(COLD_SECONDS, seconds / 4)
    session.run(batch)
    while time.perf_counter() < end:
        session.run(batch)
    samples: list[int] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < min_runs:
        samples.append(_timed_run(session, batch))
    return np.array(samples) / 1e6


def _timed_run(session: Session, batch: Batch) -> int:
    run = session.run
    start = time.perf_counter_ns()
    run(batch)
    return time.perf_counter_ns() - start


def _pad(values: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(values)
    return values if missing == 0 else np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])


def _memory(field: str) -> int | None:
    """A field of this process's status in bytes, such as VmRSS or VmHWM; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def _reset_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak then includes the imports, which is said in the documentation


def _limit(num_bytes: int | None) -> None:
    """Makes this process the one that is ended where memory runs out, and lets it have no more than so much."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass
    if num_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def _main(use: str, fields: str, file: str, num_bytes: str | None = None) -> None:
    _limit(None if num_bytes is None else int(num_bytes))
    from edgedl import plugins
    from edgedl.core import Target

    target = plugins.load("targets", use).model_validate_json(fields)
    assert isinstance(target, Target)
    for module in target.requires["open"]:
        for alternative in module.split("|"):
            if plugins.installed(alternative):
                importlib.import_module(alternative)
    try:
        _, found = first_run(lambda: open_files(target, Path(file)))
    except sessions.EdgedlError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return
    except MemoryError:
        print(json.dumps({"error": "TargetError", "message": f"{file}: not enough memory to open and run it"}))
        return
    print(json.dumps(vars(found)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
