"""Every peer's quantized files of every network, judged in one process: score, signal-to-noise, latency, bytes, time.

    python -m benchmarks.quantization --networks cnn --seeds 0 --peers onnxruntime

What is in the results file already is left as it is, so that a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import environments, networks
from benchmarks.networks import BATCH_SIZE, CONVERTED, FLOAT_FILES, SUBJECTS
from benchmarks.rows import CACHE, Row, read, say, write
from edgedl import measure, plugins, stats
from edgedl.core import Batch, Bench, EdgedlError, Session, Target, TargetError, Task, TensorSpec
from edgedl.tflite.litert import LiteRTSession

PEERS = ("edgedl", "ai_edge_quantizer", "torchao", "onnxruntime", "nncf", "modelopt")
RUNTIMES = {".tflite": "tflite", ".onnx": "onnxruntime"}
SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "quantization.json"
BENCH = Bench(batch_size=BATCH_SIZE, min_seconds=0.5, rounds=10)
MAX_SECONDS = 600
"""For one peer on one network; what is not written by then has failed."""

SHORTER = {"int64": "int32"}
"""What a .tflite file may take instead."""

KEY = ("network", "seed", "peer", "file")


class Adapted:
    """A session behind the task's names, matched by position, and in floats where the file itself takes int8."""

    def __init__(self, session: Session, task: Task) -> None:
        self.session, self.runtime = session, session.runtime
        self.inputs: Mapping[str, TensorSpec] = task.input_specs(BATCH_SIZE)
        self.outputs = dict(zip(task.outputs, session.outputs, strict=True))
        for (name, spec), own in zip(session.inputs.items(), self.inputs.values(), strict=True):
            if spec.shape != own.shape or spec.dtype not in (own.dtype, "int8", SHORTER.get(own.dtype)):
                raise TargetError(f"input {name} is {spec.dtype} {spec.shape}, not {own.dtype} {own.shape}")
        self.grids = _grids(session)

    def run(self, batch: Batch) -> Batch:
        answers = self.session.run(self.fed(batch))
        return {name: self._real(own, answers[own]) for name, own in self.outputs.items()}

    def fed(self, batch: Batch) -> Batch:
        """The task's arrays as the file itself takes them."""
        return {
            own: self._codes(own, np.ascontiguousarray(batch[name])).astype(spec.dtype, copy=False)
            for name, (own, spec) in zip(self.inputs, self.session.inputs.items(), strict=True)
        }

    def _codes(self, name: str, values: np.ndarray) -> np.ndarray:
        if name not in self.grids:
            return values
        scale, zero_point = self.grids[name]
        codes: np.ndarray = np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(np.int8)
        return codes

    def _real(self, name: str, values: np.ndarray) -> np.ndarray:
        if name not in self.grids:
            return values
        scale, zero_point = self.grids[name]
        return (values.astype(np.float32) - zero_point) * np.float32(scale)


def _grids(session: Session) -> dict[str, tuple[float, int]]:
    """Scale and zero point of the int8 inputs and outputs of a .tflite file."""
    if not isinstance(session, LiteRTSession):
        return {}
    found = {}
    details = session.interpreter.get_input_details(), session.interpreter.get_output_details()
    for specs, described in zip((session.inputs, session.outputs), details, strict=True):
        for (name, spec), detail in zip(specs.items(), described, strict=True):
            if spec.dtype == "int8":
                found[name] = detail["quantization"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compresses, judges and measures what is missing; the results are written after every network and seed."""
    parser = parser_of("quantization", __doc__, SUBJECTS, RESULTS)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in options.networks:
        for seed in options.seeds:
            rows = read(options.results)
            wanted = missing(rows, name, seed, options.peers, options.fresh)
            if wanted:
                rows = merged(rows, compare(name, seed, wanted, options.cache.resolve()))
                write(options.results, rows)


def parser_of(name: str, description: str, subjects: Iterable[str], results: Path) -> argparse.ArgumentParser:
    """What a comparison takes on the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS, default=list(subjects))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--cache", type=Path, default=CACHE, help="environments, trained networks and files")
    parser.add_argument("--fresh", action="store_true", help="repeat what the results hold already")
    return parser


def compare(name: str, seed: int, wanted: Mapping[str, Sequence[str]], cache: Path) -> list[Row]:
    """The rows of one trained network: the float file of each runtime, and of each peer the files wanted."""
    subject = SUBJECTS[name]
    folder = cache / "networks" / f"{name}-{seed}"
    source = networks.prepare(name, seed, folder)
    export_seconds = json.loads((source / "source.json").read_text())["export_seconds"]
    rows: list[Row] = []
    files: dict[int, Path] = {}
    for use, file in {**FLOAT_FILES, "converted": CONVERTED}.items():
        files[len(rows)] = source / file
        rows.append({"network": name, "seed": seed, "peer": "float", "file": file, "seconds": export_seconds[use]})
    for peer, names in wanted.items():
        output = cache / "files" / f"{name}-{seed}" / peer
        for file, facts in compress(peer, source, output, names, cache).items():
            # A tool that starts from a float file needs that to be made first.
            begins = {
                "edgedl": 0.0,
                "torchao": export_seconds["pt2"],
                "ai_edge_quantizer": export_seconds["converted"],
            }
            begin = begins.get(peer, export_seconds[RUNTIMES[Path(file).suffix]])
            files[len(rows)] = output / file
            rows.append({"network": name, "seed": seed, "peer": peer, "file": file, "export_seconds": begin} | facts)
    judge(subject.task, *networks.reference(subject, source), [(row, files[index]) for index, row in enumerate(rows)])
    return rows


def compress(peer: str, source: Path, output: Path, names: Sequence[str], cache: Path) -> dict[str, Row]:
    """Has a peer write its files, in a process of its own; facts or failure for each of them."""
    say(f"{source.name}: {peer}")
    python = environments.python(peer, cache)
    output.mkdir(parents=True, exist_ok=True)
    facts = {name: output / f"{name}.json" for name in names}
    for file in [*facts.values(), *(output / name for name in names)]:
        file.unlink(missing_ok=True)
    while remaining := [name for name, file in facts.items() if not file.exists()]:
        command = [str(python), "-m", f"benchmarks.peers.{peer}", str(source), str(output), *remaining]
        with (output / "log.txt").open("ab") as log:
            try:
                status = subprocess.run(
                    command,
                    cwd=environments.REPOSITORY,
                    env=environments.variables(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=MAX_SECONDS,
                    check=False,
                ).returncode
                how = f"ended by signal {-status}" if status < 0 else f"status {status}, see {output.name}/log.txt"
            except subprocess.TimeoutExpired:
                how = f"not done after {MAX_SECONDS} s"
        # The one at which it stopped has failed, and the next process begins with the one after.
        stopped_at = next((name for name in remaining if not facts[name].exists()), None)
        if stopped_at is not None:
            facts[stopped_at].write_text(json.dumps({"failed": how}))
    return {name: json.loads(file.read_text()) for name, file in facts.items()}


def judge(task: Task, reference: Batch, score: float, built: Sequence[tuple[Row, Path]]) -> None:
    """Adds to every row what its file is worth, or why it failed; files of one runtime are timed in turn.

    `reference` and `score` are the float network's in PyTorch over the whole test split.
    """
    for suffix, use in RUNTIMES.items():
        target = plugins.load("targets", use).model_validate({"threads": 1})
        assert isinstance(target, Target)
        running: dict[str, tuple[Session, Batch]] = {}
        of_runtime = [(row, file) for row, file in built if file.suffix == suffix]
        for row, file in of_runtime:
            row |= {"runtime": use, "kind": kind(row), "metric": task.metric.name, "reference_score": score}
            if "failed" in row:
                continue
            try:
                measure.cold_start(target, file)  # a file may crash the runtime: better in another process
                session = target.open(file)
                adapted = Adapted(session, task)
                row |= _worth(adapted, task, reference) | {"size_bytes": file.stat().st_size}
            except EdgedlError as error:
                row["failed"] = str(error).replace(str(file), file.name)
                continue
            running[f"{row['peer']}/{row['file']}"] = session, adapted.fed(next(task.batches("test", BATCH_SIZE)))
        say(f"{use}: measure {len(running)} files")
        blocks = measure.interleave(running, BENCH)
        for row, _ in of_runtime:
            if (own := blocks.get(f"{row['peer']}/{row['file']}")) is not None:
                speedup = stats.compare(blocks[f"float/{FLOAT_FILES[use]}"], own)
                row["latency_ms"] = stats.summarize(own).median
                row["speedup"] = {"median": speedup.median, "ci95": list(speedup.ci95)}


def kind(row: Row) -> str:
    """Static, dynamic ...: what stands before the first dash of a file's name; the rest is how it was set."""
    return Path(row["file"]).stem.partition("-")[0]


def _worth(session: Adapted, task: Task, reference: Batch) -> Row:
    """Score over the whole test split, and how far the outputs are from the float network's."""
    scored = measure.evaluate(session, task, "test")  # type: ignore[arg-type]
    noise = [stats.sqnr_db(reference[name], scored.outputs[name]) for name in task.outputs]
    return {"score": scored.score, "snr_db": min(noise), "runs_on": session.runtime}


def missing(rows: Sequence[Row], name: str, seed: int, peers: Sequence[str], fresh: bool) -> dict[str, list[str]]:
    """Peer -> its files that have no row yet; all of them with `fresh`."""
    present = (
        set()
        if fresh
        else {(row["peer"], row["file"]) for row in rows if (row["network"], row["seed"]) == (name, seed)}
    )
    wanted = {}
    for peer in peers:
        files = importlib.import_module(f"benchmarks.peers.{peer}").FILES
        if names := [file for file in files if (peer, file) not in present]:
            wanted[peer] = names
    return wanted


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Old rows but for those that are new, in a fixed order."""
    rows = {tuple(row[part] for part in KEY): row for row in [*old, *new]}
    order = {"float": -1} | {peer: index for index, peer in enumerate(PEERS)}
    networks_in_order = list(SUBJECTS)
    return sorted(
        rows.values(), key=lambda row: (networks_in_order.index(row["network"]), row["seed"], order[row["peer"]])
    )


if __name__ == "__main__":
    main()
