"""Files on a device without Python: LiteRT's `benchmark_model` times them in turn, and gives one answer of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from edgedl import progress
from edgedl.devices import Device
from edgedl.remote import benchmark_model
from edgedl.remote.benchmark_model import Printed
from edgedl.sessions import TargetError

ROUNDS = 10
"""Calls of the program for each file; each loads and warms up anew, and is a block of a latency's statistics."""
COARSE_MS = 0.1
"""The program's clock has steps of 1 µs, and its median is one of them: below this, the mean says more."""


@dataclass(frozen=True)
class Given:
    """A file that is to be run, under a plain name, and what its inputs are given, in the file's order and types."""

    name: str
    file: Path
    threads: int
    inputs: Sequence[np.ndarray]


@dataclass(frozen=True)
class Benchmarked:
    """What came of one file: what the program printed in each round, or why it failed."""

    error: str | None
    rounds: tuple[Printed, ...] = ()
    profiled: Printed | None = None
    """Of a call more, with the profiler on, and not timed."""

    @property
    def blocks_ms(self) -> list[list[float]]:
        return [[_latency_ms(printed)] for printed in self.rounds]

    @property
    def runs(self) -> int:
        return sum(printed.steady.runs for printed in self.rounds)

    @property
    def init_ms(self) -> float:
        """Loading and the first run, as everywhere."""
        return median(printed.init_ms + (printed.first_ms or 0.0) for printed in self.rounds)

    @property
    def memory_bytes(self) -> int | None:
        """By how much the process grew, at most."""
        return max((printed.overall_memory_bytes or 0 for printed in self.rounds), default=0) or None


def benchmark(device: Device, given: Sequence[Given], seconds: float, work: Path) -> dict[str, Benchmarked]:
    """What the program tells of each file, and in `work` as NAME.out the bytes of its outputs for these inputs.

    Raises `TargetError` only where the device itself fails.
    """
    device.push({entry.name: entry.file for entry in given} | _inputs(given, work))
    found: dict[str, list[Printed]] = {entry.name: [] for entry in given}
    failed: dict[str, str] = {}
    with progress.stage(f"{device.name}: benchmark_model", ROUNDS) as step:
        for index in range(ROUNDS):
            for entry in given if index % 2 == 0 else reversed(given):
                if entry.name in failed:
                    continue
                try:
                    found[entry.name].append(_called(device, entry, seconds / ROUNDS))
                except _Failed as error:
                    failed[entry.name] = str(error)
            step(1)
    sound = [entry for entry in given if entry.name not in failed]
    profiled = {entry.name: _profiled(device, entry) for entry in sound}
    device.pull([f"{entry.name}.out" for entry in sound], work)
    return {
        name: Benchmarked(failed[name]) if name in failed else Benchmarked(None, tuple(rounds), profiled[name])
        for name, rounds in found.items()
    }


def answer(file: Path, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The outputs of one call, (1, ...) by name, of a file with their bytes in order; None if it holds others."""
    if not file.is_file() or file.stat().st_size != sum(values.nbytes for values in like.values()):
        return None
    content, found = file.read_bytes(), {}
    for name, values in like.items():
        found[name] = np.frombuffer(content[: values.nbytes], values.dtype).reshape(1, *values.shape)
        content = content[values.nbytes :]
    return found


class _Failed(TargetError):
    """One file, not the device."""


def _inputs(given: Sequence[Given], work: Path) -> dict[str, Path]:
    files = {}
    for entry in given:
        for index, values in enumerate(entry.inputs):
            name = f"{entry.name}.i{index}"
            (work / name).write_bytes(np.ascontiguousarray(values).tobytes())
            files[name] = work / name
    return files


def _called(device: Device, entry: Given, seconds: float, *more: str) -> Printed:
    inputs = [(f"{entry.name}.i{index}", values.shape) for index, values in enumerate(entry.inputs)]
    arguments = benchmark_model.arguments(entry.name, entry.threads, device.delegate, seconds, inputs)
    done = device.run([*arguments, *more], entry.threads)
    try:
        printed = benchmark_model.read(f"{done.stdout}\n{done.stderr}")
        if done.returncode != 0:
            raise TargetError(f"benchmark_model ended with status {done.returncode}")
        benchmark_model.check_delegate(printed, device.delegate)
        return printed
    except TargetError as error:
        raise _Failed(str(error)) from error


def _profiled(device: Device, entry: Given) -> Printed | None:
    """With the time of operators, and outputs into a file; None where that fails."""
    more = ("--enable_op_profiling=true", f"--output_filepath={entry.name}.out")
    try:
        return _called(device, entry, 0.1, *more)
    except _Failed:
        return None


def _latency_ms(printed: Printed) -> float:
    steady = printed.steady
    return steady.mean if steady.median is None or steady.median < COARSE_MS else steady.median
