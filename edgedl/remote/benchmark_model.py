"""LiteRT's `benchmark_model`, the program that its makers build for phones: how it is called, and what it prints.

The lines are those of tflite/tools/benchmark/benchmark_model.cc, the tables those of TensorFlow's stats_calculator.cc;
formats since TensorFlow 1.13 are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgedl.sessions import TargetError

DELEGATES = {"gpu": "GPU", "nnapi": "NNAPI"}
"""What a setting calls a delegate -> what the program calls it."""
WARM_UP_SECONDS = 0.5
MIN_RUNS = 10
MAX_LINES = 3
"""Of what a program said before it failed, the last."""
MAX_SAID = 500
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_LATENCIES = re.compile(r"nference timings in us: (.*)")
_FIGURE = re.compile(rf"(\w[\w ]*?)(?: \(avg\))?: ({_NUMBER})")
_SERIES = re.compile(r"^\W*(?:\w+\s*:\s*)?count=(\d{1,12})\b(.*)")
_MEMORY = re.compile(
    rf"emory footprint(?: delta from the start of the tool)? \(MB\): init=({_NUMBER}) overall=({_NUMBER})"
)
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({_NUMBER})")
_REPLACED = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((\w+)\) node, yielding (\d+) part")
_APPLIED = re.compile(r"Explicitly applied (\S+) delegate, and the model graph will be (completely|partially)")
_TITLE = re.compile(r"^\W*={5,} (.+?) ={5,}\s*$")


@dataclass(frozen=True)
class Series:
    """Times of runs that followed one another, in ms; percentiles only of releases that print them."""

    runs: int
    mean: float
    first: float | None = None
    deviation: float | None = None
    least: float | None = None
    most: float | None = None
    p5: float | None = None
    median: float | None = None
    p95: float | None = None


@dataclass(frozen=True)
class Replaced:
    """What one delegate took of a graph."""

    delegate: str
    nodes: int
    out_of: int | None
    partitions: int


@dataclass(frozen=True)
class Operator:
    """A line of the table of operators, in the order of a run."""

    graph: str
    """"main", "subgraph 1" ..., or "delegate" for what a delegate tells of its own."""
    kind: str
    name: str
    first_ms: float
    mean_ms: float
    share: float | None
    """Of the time of a run, 0 to 1."""
    memory_bytes: int
    times_called: int


@dataclass(frozen=True)
class Printed:
    """All that one call of the program tells."""

    init_ms: float
    first_ms: float | None
    warm_up: Series | None
    steady: Series
    init_memory_bytes: int | None
    """By how much the process grew until the file was loaded, and until the end; `peak` is the process's whole."""
    overall_memory_bytes: int | None
    peak_memory_bytes: int | None
    replaced: tuple[Replaced, ...]
    applied: Mapping[str, str]
    """Delegate -> "completely" or "partially", of those that were asked for and took something."""
    initialization: tuple[Operator, ...]
    operators: tuple[Operator, ...]


def arguments(
    graph: str, threads: int, delegate: str, seconds: float, inputs: Sequence[tuple[str, Sequence[int]]] = ()
) -> list[str]:
    """What follows the program's name; `inputs` are a file with values and a shape for each of the graph's inputs.

    The profiler is not on: it slows what it looks at.
    """
    names = [f"i{index}" for index in range(len(inputs))]  # the program only warns where the file has others
    values = [f"{name}:{file}" for name, (file, _) in zip(names, inputs, strict=True)]
    given = [
        f"--input_layer={','.join(names)}",
        f"--input_layer_shape={':'.join(','.join(map(str, shape)) for _, shape in inputs)}",
        f"--input_layer_value_files={','.join(values)}",
    ]
    return [
        f"--graph={graph}",
        f"--num_threads={threads}",
        *(given if inputs else ()),
        f"--warmup_min_secs={WARM_UP_SECONDS}",
        f"--min_secs={seconds}",
        f"--num_runs={MIN_RUNS}",
        *((f"--use_{delegate}=true",) if delegate else ()),
    ]


def check_delegate(printed: Printed, delegate: str) -> None:
    """Raises `TargetError` if a delegate was asked for and took nothing: its time would be that of the processor."""
    if delegate and DELEGATES[delegate] not in printed.applied:
        raise TargetError(f"benchmark_model: the {DELEGATES[delegate]} delegate took no part of the network")


def read(text: str) -> Printed:
    """What the program printed, stdout and stderr together. Raises `TargetError` with its last words if it failed."""
    lines = [
        "".join(letter if letter.isprintable() or letter == "\t" else " " for letter in line)
        for line in text.split("\n")
    ]
    latencies = next((found[1] for line in lines if (found := _LATENCIES.search(line))), None)
    series = [one for line in lines if (one := _series(line))]
    if latencies is None and (twin := _python_twin(lines)):
        return twin
    if latencies is None or not series:
        raise TargetError(f"benchmark_model: {_last_words(lines)}")
    figures = {name.lower(): float(value) / 1e3 for name, value in _FIGURE.findall(latencies)}
    if not 0 <= figures.get("init", -1) < math.inf or not 0 < series[-1].mean < math.inf:
        raise TargetError(f"benchmark_model: no times: {latencies[:200]}")
    memory = next((found for line in lines if (found := _MEMORY.search(line))), None)
    peak = next((found for line in lines if (found := _PEAK.search(line))), None)
    warm_up = series[0] if len(series) > 1 else None
    return Printed(
        init_ms=figures["init"],
        first_ms=figures.get("first inference", warm_up.first if warm_up else None),
        warm_up=warm_up,
        steady=series[-1],
        init_memory_bytes=_bytes(memory and memory[1]),
        overall_memory_bytes=_bytes(memory and memory[2]),
        peak_memory_bytes=_bytes(peak and peak[1]),
        replaced=tuple(
            Replaced(found[3], int(found[1]), int(found[2]) if found[2] else None, int(found[4]))
            for line in lines
            if (found := _REPLACED.search(line))
        ),
        applied={found[1]: found[2] for line in lines if (found := _APPLIED.search(line))},
        initialization=_operators(lines, of_runs=False),
        operators=_operators(lines, of_runs=True),
    )


def _series(line: str) -> Series | None:
    """A line such as `count=50 first=119 curr=115 min=111 max=119 avg=115.2 std=3 p5=112 median=115 p95=116`, in µs."""
    found = _SERIES.search(line)
    if found is None or int(found[1]) == 0:
        return None
    figures = {name: float(value) / 1e3 for name, value in re.findall(rf"(\w+)=({_NUMBER})", found[2])}
    same = figures.get("curr", math.nan)  # of runs that all took as long, no more than that is printed
    mean, first, least, most = (figures.get(name, same) for name in ("avg", "first", "min", "max"))
    rest = (figures.get("std", 0.0), least, most, figures.get("p5"), figures.get("median"), figures.get("p95"))
    if not all(math.isfinite(value) for value in (mean, first, *rest) if value is not None):
        return None
    return Series(int(found[1]), mean, first, *rest)


def _python_twin(lines: Sequence[str]) -> Printed | None:
    """What `ai_edge_litert.tools.benchmark_litert_model` prints: the same figures by other names, rounded to 10 µs."""
    pattern = re.compile(
        rf"^(Model initialization|Warmup|Inference)(?: \((\w+)\))?: +({_NUMBER}) ms(?: \((\d{{1,12}}) runs\))?"
    )
    found = {(line[1], line[2]): (float(line[3]), int(line[4] or 0)) for line in map(pattern.match, lines) if line}
    try:
        names = ("avg", "std", "min", "max", "p5", "median", "p95")
        mean, deviation, least, most, p5, median, p95 = (found["Inference", name][0] for name in names)
        first, warm_up = found["Warmup", "first"][0], found["Warmup", "avg"]
        init_ms = found["Model initialization", None][0]
    except KeyError:
        return None
    return Printed(
        init_ms=init_ms, first_ms=first, init_memory_bytes=None, overall_memory_bytes=None, peak_memory_bytes=None,
        warm_up=Series(warm_up[1], warm_up[0], first) if warm_up[1] else None,
        steady=Series(found["Inference", "avg"][1], mean, None, deviation, least, most, p5, median, p95),
        replaced=(), applied={}, initialization=(), operators=(),
    )  # fmt: skip


def _operators(lines: Sequence[str], of_runs: bool) -> tuple[Operator, ...]:
    """The tables "Run Order" of the runs, or of the initialization."""
    operators: list[Operator] = []
    graph, here, title = "main", of_runs, ""  # old releases tell of runs alone, and do not say so
    columns: list[str] = []
    for line in lines:
        if "Profiling Info for" in line:
            here, graph = ("Benchmark Initialization" not in line) == of_runs, "main"
        elif line.strip().startswith("Delegate internal:"):
            graph = "delegate"
        elif found := re.search(r"Subgraph \(index: (\d+).*profile:", line):
            graph = f"subgraph {found[1]}"
        elif found := _TITLE.search(line):
            title, columns = found[1], []
        elif "[node type]" in line:
            columns = [name.strip("[] ").lower() for name in line.strip().split("\t")]
        elif not line.strip():
            columns = []
        elif here and title == "Run Order" and columns:
            cells = [cell.strip() for cell in line.lstrip("\t ").split("\t", len(columns) - 1)]
            if operator := _operator(graph, dict(zip(columns, cells, strict=False))):
                operators.append(operator)
    return tuple(operators)


def _operator(graph: str, cells: Mapping[str, str]) -> Operator | None:
    try:
        share = float(cells["%"].rstrip("%")) / 100
        return Operator(
            graph=graph,
            kind=cells["node type"],
            name=cells["name"],
            first_ms=_finite(cells["first"]),
            mean_ms=_finite(cells["avg ms"]),
            share=share if math.isfinite(share) else None,  # of runs that took no time
            memory_bytes=round(_finite(cells["mem kb"]) * 1000),
            times_called=int(cells["times called"]),
        )
    except (KeyError, ValueError):
        return None  # a line that something else printed in between


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _bytes(megabytes: str | None) -> int | None:
    known = megabytes is not None and math.isfinite(float(megabytes))
    return max(round(float(megabytes) * 2**20), 0) if megabytes and known else None


def _last_words(lines: Sequence[str]) -> str:
    """Its errors, if it tells any, else its last lines."""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if "ERROR" in line and "Benchmarking failed" not in line]
    return " | ".join((errors or said)[-MAX_LINES:])[:MAX_SAID] or "it said nothing"
