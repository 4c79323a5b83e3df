"""One trial of a search: an ordinary run, and what it is worth. As a program it is a worker: jobs in, results out."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from edgedl import comparison, pipeline, refusals
from edgedl import recipe as recipes
from edgedl.analysis import counting
from edgedl.core import EdgedlError, Model, Step
from edgedl.measure import evaluate
from edgedl.onnx.export import example_inputs
from edgedl.picking import Limit
from edgedl.recipe import Recipe
from edgedl.search import artifacts
from edgedl.search.hopeless import Earlier, Early, Figures, Hopeless, Judge
from edgedl.torch_session import TorchSession

Say = Callable[[str], None]
FIGURES = (*comparison.OBJECTIVES, "drop", "speedup")


def run(job: Mapping[str, Any], root: Path, say: Say = lambda doing: None) -> dict[str, Any]:
    """Runs a job's recipe below `root`; says which step it has done. Its result says what came of it.

    Where the search has a place for artifacts, the first trial's run comes from there, and the trial's own goes there.

    `state` is "done", with the figures of the file, "stopped", where nothing can come of it, or "failed", with the
    reason. Never raises what a recipe, data or a runtime may be at fault for.
    """
    began = time.monotonic()
    early: dict[str, Early] = {}
    result: dict[str, Any] = {"state": "failed", "reason": None, "figures": {}}
    try:
        recipe = recipes.parse(job["recipe"], Path(f"{job['name']}.toml"))
        if job["artifacts"] and job["first"]:
            artifacts.fetch(job["artifacts"], job["first"], root)
        judge = _judge(job, recipe) if job["earlier"] else None

        def watch(step: Step, model: Model) -> None:
            say(f"{step.label} done")
            if not step.final:  # what a network that was trained for its grids does without them says nothing
                early[step.label] = _early(model, recipe, step)
                if judge is not None:
                    judge.watch(step.label, early[step.label])

        made = pipeline.compress(recipe, job["recipe"], root, watch=watch)
        if job["artifacts"]:
            artifacts.put(job["artifacts"], str(made.folder.relative_to(root)), root)
        result |= _result(made.folder, root)
    except Hopeless as error:
        result |= {"state": "stopped", "reason": str(error), "figures": dict(error.at_best.known)}
    except EdgedlError as error:
        result["reason"] = str(error)
    except (MemoryError, RuntimeError) as error:
        if (refused := refusals.told(error)) is None:
            raise
        result["reason"] = refused
    except OSError as error:
        result["reason"] = f"{error.filename or root}: {error.strerror}"
    return result | {
        "early": {step: asdict(found) for step, found in early.items()},
        "seconds": time.monotonic() - began,
    }


def _early(model: Model, recipe: Recipe, step: Step) -> Early:
    place = next(index for index, other in enumerate(recipe.steps) if other is step)
    score = None
    if not any(later.learns and not later.final for later in recipe.steps[place + 1 :]):
        score = evaluate(TorchSession(model.net, recipe.task), recipe.task, "validation").score
    macs = counting.macs(model.net, example_inputs(recipe.task, 1))
    return Early(score, macs, counting.num_parameters(model.net))


def _judge(job: Mapping[str, Any], recipe: Recipe) -> Judge:
    metric = recipe.task.metric
    earlier = [
        Earlier(
            found["number"],
            {step: Early(**values) for step, values in found["early"].items()},
            Figures(found["figures"], metric.higher_is_better),
            found["is_met"],
        )
        for found in job["earlier"]
    ]
    limits = [Limit(**told) for told in job["limits"]]
    return Judge(job["objectives"], limits, metric, job["reference"], earlier)


def _result(folder: Path, root: Path) -> dict[str, Any]:
    """What a finished run's compressed file is worth: the one that was judged, the last of its forms."""
    rows = comparison.read([str(folder)], root)
    file = rows[-1]
    if file.row["status"] in ("failed", "built"):
        why = "it was not run here: " if file.row["status"] == "built" else ""
        return {"reason": f"{file.row['target']} {file.row['variant']}: {why}{file.row['reason']}"}
    yardstick = next(found for found in rows if found.row["variant"] == "float")
    return {
        "state": "done",
        "run": str(folder.relative_to(root)),
        "file": str(file.row["file"]),
        "variant": file.row["variant"],
        "status": file.row["status"],
        "reason": file.row["reason"],
        "figures": {name: file.value(name) for name in FIGURES},
        "reference": yardstick.value("score"),
        "yardstick": {"sha256": yardstick.digests, "latency": yardstick.value("latency")},
    }


def work(jobs: IO[str], results: IO[str]) -> None:
    """Runs jobs, a line of JSON each, and writes a line for each step and each result; ends where `jobs` does."""

    def write(said: Mapping[str, Any]) -> None:
        results.write(json.dumps(said) + "\n")
        results.flush()

    waiting: list[str] = []
    there = threading.Semaphore(0)

    def read() -> None:
        for line in jobs:
            waiting.append(line)
            there.release()
        os._exit(0)  # whoever asked is gone: what is at work now goes on from its finished steps another time

    threading.Thread(target=read, daemon=True).start()
    write({"ready": os.getpid()})
    while True:
        there.acquire()
        job = json.loads(waiting.pop(0))
        write({"result": run(job, Path(job["root"]), lambda doing: write({"doing": doing}))})


def main(arguments: Sequence[str]) -> None:
    """The worker: jobs on stdin, results on stdout, and all that libraries print on stderr; cores as arguments."""
    if arguments and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(map(int, arguments)))
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work(sys.stdin, results)
