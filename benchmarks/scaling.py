"""What more workers bring: trials and training at 1 and 2 processes, and what a search itself costs at up to 1,000.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling

- simulated: the search as it is, with its database and its sampler, over workers that only wait. Their clock goes on
  while the search computes, and jumps to the next end of a trial when it waits: what is measured is how long workers
  wait for the search, at any number of them, on any machine.
- search: short trials in processes of this machine.
- training: one network by `torchrun` in processes of this machine, each on one thread.

What is in the results already is left as it is.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import CACHE, Row, read, say, titled, write
from edgedl.models.resnet import ResNet
from edgedl.search import searching
from edgedl.search.study import Study, database
from edgedl.search.workers import Event, Job, Processes
from edgedl.tasks.scenes import Scenes
from edgedl.training import loop, parallel

RESULTS = Path(__file__).parent / "results" / "scaling.json"
PARTS = ("simulated", "search", "training")
SPACE = "resnet8-p50-kd-qat"
"""The recipe that is searched where trials only wait."""
ROUNDS, LEAST = 3, 100
"""So many trials a worker where they only wait, and so many at least."""
SMALL = """
task = { use = "digits" }
model = { use = "mlp", widths = [64, 32] }
steps = [
  { use = "train", epochs = 10, lr = 3e-3 },
  { use = "prune", ratio = 0.5, epochs = 1 },
  { use = "quantize", method = "dynamic" },
]
targets = [{ use = "onnxruntime" }]
limits = { score_drop = 0.5, slower = "allow", unlearned = "allow" }
bench = { min_seconds = 0.2 }

[search]
"steps.prune.ratio" = { low = 0.2, high = 0.7 }
"steps.prune.lr" = { low = 1e-4, high = 1e-2, log = true }
"steps.prune.importance" = ["taylor", "l1"]
"""


def main() -> None:
    """All rows that have no result yet, one after another, and a table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workers", nargs="+", type=int, help="by default 1, 2, 10, 100, 1000, and 1, 2 of real ones")
    parser.add_argument("--trial", type=float, default=300.0, help="seconds that a trial takes which only waits")
    parser.add_argument("--storage", help="an empty database, such as postgresql://HOST/NAME; by default SQLite")
    parser.add_argument("--seconds", type=float, default=300.0, help="of a search of real trials")
    parser.add_argument("--epochs", type=int, default=5, help="of training")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE / "scaling")
    parser.add_argument("--train-here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train_here:
        train(options.epochs, options.train_here)
        return
    rows = read(options.results)
    for part in options.parts:
        for workers in options.workers or ([1, 2, 10, 100, 1000] if part == "simulated" else [1, 2]):
            if any((row["part"], row["workers"]) == (part, workers) for row in rows):
                continue
            if part == "simulated":
                found = simulated(workers, options.trial, options.storage)
            elif part == "search":
                found = searched(workers, options.seconds, options.cache / f"search-{workers}")
            else:
                found = trained(workers, options.epochs)
            rows.append({"part": part, "workers": workers, **found})
            say(json.dumps(rows[-1]))
            write(options.results, rows)
    options.results.with_suffix(".md").write_text(
        titled("What more workers bring", options.results, "part") + table(rows), encoding="utf-8"
    )


@dataclass(eq=False)
class Waiting:
    """Workers that need a time for each trial and do nothing meanwhile; waiting for them is skipped."""

    num: int
    trial_seconds: float
    """On average; each takes between half and one and a half of it."""
    trials: list[tuple[float, float]] = field(default_factory=list)
    """When each began and ended, in seconds."""
    _skipped: float = 0.0
    _running: list[tuple[float, int, Job]] = field(default_factory=list)
    _chance: random.Random = field(default_factory=lambda: random.Random(0))

    def submit(self, number: int, job: Job) -> None:
        sent = json.loads(json.dumps(job))
        now = self._now()
        ends = now + self.trial_seconds * self._chance.uniform(0.5, 1.5)
        self.trials.append((now, ends))
        heapq.heappush(self._running, (ends, number, sent))

    def events(self, timeout: float) -> list[Event]:
        wait = self._running[0][0] - self._now()
        self._skipped += min(max(wait, 0.0), timeout)
        if wait > timeout:
            return []
        _, number, job = heapq.heappop(self._running)
        return [Event(number, result=self._result(job))]

    def stop(self) -> None:
        self._running.clear()

    def _now(self) -> float:
        return time.perf_counter() + self._skipped

    def _result(self, job: Job) -> dict[str, Any]:
        """Figures by chance, as a trial gives them."""
        score, macs = self._chance.uniform(0.6, 0.9), self._chance.uniform(1e6, 1e7)
        early = {"score": score, "macs": macs, "parameters": macs / 1e3}
        latency = macs / 1e8 * self._chance.uniform(0.8, 1.2)
        return {
            "state": "done",
            "run": f"{job['name']}/2026-01-01T00-00-00",
            "file": "targets/compressed/tflite/model.tflite",
            "variant": "compressed",
            "status": "ok",
            "reason": None,
            "figures": {"score": score, "latency": latency, "size": 1e5, "energy": None, "drop": 0.9 - score},
            "reference": 0.9,
            "yardstick": {"sha256": "float", "latency": 0.1},
            "early": dict.fromkeys(("train", "prune", "distill"), early),
            "seconds": self.trial_seconds,
        }


def simulated(workers: int, trial_seconds: float, storage: str | None) -> Row:
    """A search over workers that only wait, and what part of their time they waited for the search."""
    with tempfile.TemporaryDirectory() as name:
        goal = searching.goal(SPACE, None, "score, latency", "score_drop<=0.2")
        study, team = Study(goal, storage or database(Path(name))), Waiting(workers, trial_seconds)
        began = time.perf_counter()
        searching.search(study, Path(name), team, 1 + max(workers * ROUNDS, LEAST), None, False, quiet)
        own_seconds = time.perf_counter() - began
    first, *others = team.trials
    last_began = max(begin for begin, _ in others)  # workers have nothing to wait for afterwards
    busy = sum(min(end, last_began) - begin for begin, end in others)
    return {
        "storage": (storage or "sqlite").partition(":")[0],
        "trial_seconds": trial_seconds,
        "trials": len(team.trials),
        "ms_a_trial": 1000 * own_seconds / len(team.trials),
        "idle": 1 - busy / (workers * (last_began - first[1])),
    }


def searched(workers: int, seconds: float, folder: Path) -> Row:
    """A search of real trials for so long, and trials an hour from when the first has finished, which is alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "small.toml").write_text(SMALL)
    study = Study(searching.goal(str(folder / "small.toml"), None, "score, size", None), database(folder))
    finished: dict[int, float] = {}

    def show(study: Study, running: Mapping[int, str]) -> None:
        for trial in study.trials():
            if trial.is_finished:
                finished.setdefault(trial.number, time.monotonic())

    searching.search(study, folder, Processes(workers, folder / "workers.log"), None, seconds, True, show)
    times = sorted(finished.values())
    return {"trials": len(times), "per_hour": 3600 * (len(times) - 1) / (times[-1] - times[0])}


def trained(workers: int, epochs: int) -> Row:
    """Training by `torchrun` in so many processes, validation after each epoch with it."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "seconds"
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        told = ["--module", "benchmarks.scaling", "--epochs", str(epochs), "--train-here", str(file)]
        subprocess.run([*run, *told], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        seconds = float(file.read_text())
    samples = epochs * len(Scenes().arrays("train")["label"])
    return {"epochs": epochs, "samples_per_second": samples / seconds}


def train(epochs: int, file: Path) -> None:
    """What each process of `torchrun` does; the first writes down the seconds."""
    task = Scenes()
    net = ResNet().build(task)
    task.arrays("train"), task.arrays("validation")
    with parallel.joined():
        began = time.monotonic()
        loop.fit(
            net,
            task,
            task.loss,
            epochs=epochs,
            batch_size=128,
            lr=0.006,
            optimizer="adam",
            schedule="cosine",
            weight_decay=0.0,
            label="train",
        )
        if parallel.rank() == 0:
            file.write_text(str(time.monotonic() - began))


def quiet(study: Study, running: Mapping[int, str]) -> None:
    """Shows nothing."""


def table(rows: list[Row]) -> str:
    """A table for each part."""
    by_part = {part: sorted((row for row in rows if row["part"] == part), key=_workers) for part in PARTS}
    lines = []
    if found := by_part["simulated"]:
        lines += [
            f"Trials of {found[0]['trial_seconds']:g} s that only wait; database: {found[0]['storage']}.",
            "",
            "| workers | trials | search's own time a trial | workers wait for the search |",
            f"|{' --- |' * 4}",
        ]
        for row in found:
            lines.append(f"| {row['workers']} | {row['trials']} | {row['ms_a_trial']:.1f} ms | {row['idle']:.2%} |")
    for part, what, unit in (
        ("search", "per_hour", "short real trials an hour"),
        ("training", "samples_per_second", "samples a second of training"),
    ):
        if found := by_part[part]:
            lines += ["", f"| processes | {unit} | of one |", f"|{' --- |' * 3}"]
            one = next((row[what] for row in found if row["workers"] == 1), None)
            for row in found:
                ratio = f"{row[what] / one:.2f}×" if one else "–"
                lines.append(f"| {row['workers']} | {row[what]:.0f} | {ratio} |")
    return "\n".join(lines).strip() + "\n"


def _workers(row: Row) -> int:
    return int(row["workers"])


if __name__ == "__main__":
    main()
