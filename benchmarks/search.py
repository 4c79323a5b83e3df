"""`edgedl search` on shipped recipes: what it finds beside the recipe as it is written, and how many trials an hour.

    OMP_NUM_THREADS=1 python -m benchmarks.search --budget 3600 --workers 1 2

Each search begins from nothing in a folder of its own under `--cache`. The first trial, which trains the float network
for all others and runs alone, is not counted in trials an hour. What is in the results already is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.rows import CACHE, Row, read, say, titled, write
from edgedl.comparison import dominates
from edgedl.search import searching
from edgedl.search.study import Study, Trial, database
from edgedl.search.workers import Processes

RECIPES = ("resnet8-p50-kd-qat", "dscnn-p50-kd-int8")
RESULTS = Path(__file__).parent / "results" / "search.json"
OBJECTIVES = "score, latency"


def main() -> None:
    """Searches that have no result yet, one after another, and a table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds a search")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE / "search")
    options = parser.parse_args()
    rows = read(options.results)
    for recipe in options.recipes:
        for workers in options.workers:
            if not any((row["recipe"], row["workers"]) == (recipe, workers) for row in rows):
                rows.append(searched(recipe, workers, options.budget, options.cache / f"{Path(recipe).stem}-{workers}"))
                write(options.results, rows)
    options.results.with_suffix(".md").write_text(
        titled("What a search finds", options.results, "recipe") + table(rows), encoding="utf-8"
    )


def searched(recipe: str, workers: int, budget: float, folder: Path) -> Row:
    """One search from nothing, and what it has found."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    study = Study(searching.goal(recipe, None, OBJECTIVES, None), database(folder))
    began = time.monotonic()
    first_after = 0.0

    def show(study: Study, running: Mapping[int, str]) -> None:
        nonlocal first_after
        if not first_after and study.reference is not None:
            first_after = time.monotonic() - began

    team = Processes(workers, folder / "workers.log")
    why = searching.search(study, folder, team, None, budget, False, show)
    seconds = time.monotonic() - began
    trials, written = study.trials(), study.reference
    if written is None:
        raise SystemExit(f"{recipe}: the recipe as it is written has not finished within {budget:.0f} s; give it more")
    better = [
        trial.number for trial in trials if trial.is_met and dominates(costs(study, trial), costs(study, written))
    ]
    say(f"{recipe}, {workers} workers: {len(trials)} trials, {len(better)} better than as written in all; {why}")
    return {
        "recipe": recipe,
        "workers": workers,
        "seconds": seconds,
        "trials": {state: sum(trial.state == state for trial in trials) for state in ("done", "stopped", "failed")},
        "per_hour": 3600 * (sum(trial.is_finished for trial in trials) - 1) / (seconds - first_after),
        "written": point(written),
        "front": [point(trial) for trial in study.front()],
        "dominates": better,
    }


def costs(study: Study, trial: Trial) -> tuple[float, ...]:
    """Objectives, where less is better."""
    return tuple(trial.figures.cost(name) for name in study.goal.objectives)


def point(trial: Trial) -> Row:
    """A trial and its figures."""
    return {"trial": trial.number, "values": trial.values, **trial.figures.known}


def table(rows: list[Row]) -> str:
    """A line for each search, and below it its front."""
    lines = [
        "| recipe | workers | done, stopped, failed | trials an hour | score, latency as written | that dominate it |",
        f"|{' --- |' * 6}",
    ]
    for row in rows:
        counts = ", ".join(str(count) for count in row["trials"].values())
        cells = [row["recipe"], str(row["workers"]), counts, f"{row['per_hour']:.1f}", _told(row["written"])]
        lines.append(f"| {' | '.join([*cells, str(len(row['dominates']))])} |")
    for row in rows:
        lines += ["", f"{row['recipe']}, {row['workers']} workers, {row['seconds'] / 60:.0f} minutes; the front:", ""]
        lines += [f"- trial {found['trial']}: {_told(found)}" for found in row["front"]]
    return "\n".join(lines) + "\n"


def _told(found: Row) -> str:
    return f"{found['score']:.4f}, {found['latency'] * 1000:.1f} µs"


if __name__ == "__main__":
    main()
