"""Whether edgedl's latencies and verdicts can be trusted: runtimes' own programs, and files against themselves.

    taskset -c 1 python -m benchmarks.latency           # about 12 minutes on a core that has nothing else to do
    taskset -c 0 python -m benchmarks.latency --tries 20 --rounds 4   # about three minutes

The files are of one ResNet with weights by chance, float and int8, for both runtimes. First each file's latency by
edgedl and by its runtime's own program, block by block in turn. Then tries: a file opened three times, the third slowed
by 3 %, measured and judged as `edgedl bench --vs` does. Each must be a try of its own, so all is opened
anew. Results hold how much of the core each part had: on one that is shared, less than all.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.rows import CACHE, Row, measured_on, say, write
from benchmarks.table import as_table
from edgedl import measure, plugins, stats
from edgedl.core import Batch, Bench, Model, Session

RESULTS = Path(__file__).parent / "results" / "latency.json"
WIDTHS = (64, 128, 256)
"""Of the ResNet: its files take long enough for a program that rounds to hundredths of a millisecond."""
FILES = ("float.tflite", "int8.tflite", "float.onnx", "int8.onnx")
SLOWED = 0.03
NUM_CALIBRATING = 200
WITHIN = 0.03
"""How far from the runtime's own program edgedl may be."""
NO_DIFFERENCE, FOUND = 0.95, 0.80
"""Shares of the tries that are asked for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes the results and their tables after every part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.3, help="for each file of a try; edgedl's own default is 3")
    parser.add_argument("--rounds", type=int, default=24, help="blocks against the runtimes' own programs")
    parser.add_argument("--block", type=float, default=0.4, help="seconds of each of these")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE / "latency", help="where the files are kept")
    options = parser.parse_args(arguments)
    files = made(options.cache)
    rows: list[Row] = []
    for name in FILES:
        say(f"{name}: against its runtime's own program")
        rows.append(against_program(files[name], options.rounds, options.block))
        write(options.results, rows)
    for index in range(options.tries):
        rows.append(tried(files[FILES[index % len(FILES)]], options.seconds))
        say(f"try {index + 1}: " + ", ".join(f"{part} {rows[-1][part]['verdict']}" for part in ("itself", "slowed")))
        write(options.results, rows)
    results = json.loads(options.results.read_text())
    options.results.with_suffix(".md").write_text(markdown(results), encoding="utf-8")


def made(folder: Path) -> dict[str, Path]:
    """The files by name, built when they are not there."""
    from edgedl.models.resnet import ResNet
    from edgedl.steps.quantize import Quantize
    from edgedl.tasks.scenes import Scenes

    found = {name: folder / name for name in FILES}
    if all(file.exists() for file in found.values()):
        return found
    import torch

    torch.manual_seed(0)
    task = Scenes()
    model = Model(ResNet(widths=WIDTHS).build(task).eval())
    variants = {
        "float": model,
        "int8": Quantize(method="ptq", calibrator="min-max", corrections=()).apply(model, task),
    }
    for name, file in found.items():
        say(f"{name}: build")
        part = folder / f"{name}-build"
        part.mkdir(parents=True, exist_ok=True)
        artifact = plugins.target_for(file, 1).build(variants[file.stem], task, part, 1)
        artifact.file.replace(file)
    return found


def against_program(file: Path, rounds: int, seconds: float) -> Row:
    """The ratio of edgedl's median to that of the runtime's own program, from blocks in turn."""
    program, name = {".tflite": (_litert, "benchmark_litert_model"), ".onnx": (_onnxruntime, "benchmark_helper")}[
        file.suffix
    ]
    session, batch = _opened(file)
    runs = max(int(seconds * 1000 / measure.warm_up(session, batch)), 10)
    pairs: list[tuple[float, float]] = []
    share = Share()
    for index in range(rounds):
        first, second = (_edgedl, program) if index % 2 == 0 else (program, _edgedl)
        pair = {measured: measured(file, runs, seconds) for measured in (first, second)}
        pairs.append((pair[_edgedl], pair[program]))
    session.close()
    ratio, low, high = np.exp(stats.signed_rank_interval(np.log([ours / theirs for ours, theirs in pairs])))
    medians = dict(zip(("edgedl_ms", "program_ms"), map(median, zip(*pairs, strict=True)), strict=True))
    return {
        "part": "program", "file": file.name, "program": name, **medians, "ratio": float(ratio),
        "ci95": [float(low), float(high)], "rounds": rounds, "core_share": share.so_far(),
    }  # fmt: skip


def _edgedl(file: Path, runs: int, seconds: float) -> float:
    """As `edgedl bench` says it."""
    session, batch = _opened(file)
    blocks = measure.interleave({"file": (session, batch)}, Bench(min_seconds=seconds, rounds=10))["file"]
    session.close()
    return stats.summarize(blocks).median


def _litert(file: Path, runs: int, seconds: float) -> float:
    """The program of the LiteRT wheel; it uses the compiled model's interface, and copies nothing in or out."""
    from ai_edge_litert.tools import benchmark_litert_model as program

    options = argparse.Namespace(
        model=str(file), signature="", use_cpu=True, no_cpu=False, use_gpu=False, use_npu=False,
        require_full_delegation=False, dispatch_library_path="", compiler_plugin_path="", runtime_path="",
        num_runs=runs, warmup_runs=max(runs // 5, 5), num_threads=1, result_json="", verbose=False,
    )  # fmt: skip
    with redirect_stdout(io.StringIO()):
        return float(program.run_benchmark(options)["latency"]["median_ms"])


def _onnxruntime(file: Path, runs: int, seconds: float) -> float:
    """The loop of `onnxruntime.transformers.benchmark_helper.inference_ort`, whose own summary has no median."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    inputs = {
        name: np.random.default_rng(0).standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    timeit.repeat(lambda: session.run(None, inputs), number=1, repeat=max(runs // 5, 5))
    return median(timeit.repeat(lambda: session.run(None, inputs), number=1, repeat=runs)) * 1000


def tried(file: Path, seconds: float) -> Row:
    """The verdicts on a file against itself, and against itself slowed by 3 %."""
    opened = {name: _opened(file) for name in ("reference", "itself", "slowed")}
    slowed, batch = opened["slowed"]
    share = Share()
    blocks = measure.interleave(opened | {"slowed": (Slowed(slowed, batch), batch)}, Bench(min_seconds=seconds))
    for session, _ in opened.values():
        session.close()
    found = {name: asdict(stats.compare(blocks["reference"], blocks[name])) for name in ("itself", "slowed")}
    return {"part": "try", "file": file.name, **found, "core_share": share.so_far()}


class Slowed:
    """A session that computes nothing for so long at the end of each run, busy, that the run takes 3 % longer.

    That is 3 % of what it takes undisturbed, for which the lower quartile stands: of what it takes when it is
    interrupted it would be more.
    """

    def __init__(self, session: Session, batch: Batch) -> None:
        self.session, self.inputs = session, session.inputs
        measure.warm_up(session, batch)
        runs = timeit.repeat(lambda: session.run(batch), number=1, repeat=NUM_CALIBRATING)
        self.wait_ns = int(np.percentile(runs, 25) * 1e9 * SLOWED)

    def run(self, batch: Batch) -> Batch:
        """As the session's."""
        answers = self.session.run(batch)
        end = time.perf_counter_ns() + self.wait_ns
        while time.perf_counter_ns() < end:
            pass
        return answers


class Share:
    """How much of a core this process had since then."""

    def __init__(self) -> None:
        self.used, self.start = time.process_time(), time.perf_counter()

    def so_far(self) -> float:
        """1 on a core without other work."""
        return (time.process_time() - self.used) / (time.perf_counter() - self.start)


def _opened(file: Path) -> tuple[Session, Batch]:
    session = plugins.target_for(file, 1).open(file)
    return session, measure.random_inputs(session.inputs)


def markdown(results: Mapping[str, Any]) -> str:
    """Both parts in tables, and the counts that decide."""
    programs = [row for row in results["rows"] if row["part"] == "program"]
    tries = [row for row in results["rows"] if row["part"] == "try"]
    share = mean(row["core_share"] for row in results["rows"])
    core = (
        f"with {share:.0%} of one core: the rest went to other work" if share < 0.95 else "on a core without other work"
    )
    about = f"Measured on {measured_on(results, 'part')}, one thread, batches of one, {core}. "
    lines = [
        "# Whether latencies and verdicts can be trusted", "",
        about + "Written by `benchmarks/latency.py`, which says how.", "",
        "## Against the runtimes' own programs", "",
        f"Medians, block by block in turn; within {WITHIN:.0%} is asked for. LiteRT's program rounds to 0.01 ms.", "",
        *as_table(
            ("file", "program", "edgedl ms", "program ms", "ratio", "95 % interval", f"within {WITHIN:.0%}", "core"),
            [_program(row) for row in programs],
        ),
    ]  # fmt: skip
    if tries:
        lines += [
            "", "## Files against themselves", "",
            f"{len(tries)} tries, each file opened anew, which alone makes some tenths of a percent: the interval of "
            f"a speed-up, which is truly 1 or 1 ÷ {1 + SLOWED:g}, knows nothing of that.", "",
            *as_table(("against", "said", "tries", "asked for", "median speed-up", "interval holds the truth"), [
                _tries(tries, "itself", "no difference", NO_DIFFERENCE, 1.0),
                _tries(tries, "slowed", "slower", FOUND, 1 / (1 + SLOWED)),
            ]),
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _program(row: Row) -> list[str]:
    low, high = row["ci95"]
    within = "yes" if abs(row["ratio"] - 1) <= WITHIN else "no"
    return [
        row["file"], row["program"], f"{row['edgedl_ms']:.3f}", f"{row['program_ms']:.3f}", f"{row['ratio']:.3f}",
        f"{low:.3f} to {high:.3f}", within, f"{row['core_share']:.0%}",
    ]  # fmt: skip


def _tries(tries: Sequence[Row], part: str, wanted: str, asked: float, truth: float) -> list[str]:
    found = [row[part] for row in tries]
    count = sum(one["verdict"] == wanted for one in found)
    held = sum(one["ci95"][0] <= truth <= one["ci95"][1] for one in found)
    return [
        {"itself": "itself", "slowed": "itself, slowed by 3 %"}[part], wanted, f"{count} of {len(tries)}",
        f"{asked:.0%}", f"{median(one['median'] for one in found):.4f}", f"{held} of {len(tries)}",
    ]  # fmt: skip


Measured = Callable[[Path, int, float], float]


if __name__ == "__main__":
    main()
