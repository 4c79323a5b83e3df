"""`edgedl search`: tries recipes until a number or a time is reached, and keeps the best so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedl import comparison, files, picking, plugins
from edgedl.comparison import File
from edgedl.core import RecipeError, UsageError
from edgedl.report import searched
from edgedl.search import artifacts
from edgedl.search import space as spaces
from edgedl.search.study import Goal, Seldom, Study, Trial
from edgedl.search.workers import Job, Workers

SCHEMA = 1
"""Version of `search.json`; it rises when a key changes its meaning or goes."""
ATTEMPTS = 2
"""How often a trial is begun whose worker is lost: what killed it may have had nothing to do with it."""
TICK = 5.0
"""Seconds between two looks at the table while nothing happens; what happens is seen at once."""

Show = Callable[[Study, Mapping[int, str]], None]
"""Is shown the trials, and of those that run what they have done."""


def goal(name: str, target: str | None, objective: str, limits: str | None) -> Goal:
    """What is asked for, checked. Raises `UsageError` or `RecipeError`.

    A limit on the drop takes the place of the recipe's own, so that files which keep to it may ship; else the recipe's
    is a limit of the search.
    """
    space = spaces.read(name)
    labels = list(dict.fromkeys(found.label for found in space.recipe.targets))
    if target is not None and target not in labels:
        raise UsageError(f"--target {target}: the recipe has no such target; {plugins.nearest(target, labels)}")
    asked = tuple(part.strip() for part in objective.split(","))
    for part in asked:
        if part not in comparison.OBJECTIVES:
            said = plugins.nearest(part, comparison.OBJECTIVES)
            raise UsageError(f'--objective "{objective}": no objective "{part}"; {said}')
    if len(set(asked)) < len(asked):
        raise UsageError(f'--objective "{objective}": names one twice')
    wanted = picking.parse(limits, "--limit") if limits else []
    metric = space.recipe.task.metric
    picking.check_units(wanted, metric.name, metric.unit, "--limit")
    drops = [limit for limit in wanted if limit.name == "drop"]
    if not drops:
        most = space.recipe.limits.score_drop
        wanted.append(picking.Limit("drop", "<=", most, f"drop<={most:g}"))
    elif any(limit.sign in (">", ">=") or limit.bound < 0 for limit in drops):
        raise UsageError(f"--limit: {drops[0].text}: a drop is limited from above: score_drop<=0.01")
    else:
        most = min(limit.bound for limit in drops)
        limited = space.recipe.limits.model_copy(update={"score_drop": most})
        space = replace(
            space,
            recipe=space.recipe.model_copy(update={"limits": limited}),
            table={**space.table, "limits": {**space.table.get("limits", {}), "score_drop": most}},
        )
    return Goal(space, target or labels[0], asked, tuple(wanted))


def search(
    study: Study,
    folder: Path,
    workers: Workers,
    num_trials: int | None,
    seconds: float | None,
    measure_all: bool,
    show: Show,
    shared: str | None = None,
) -> str:
    """Runs trials below `folder` until so many have finished in all, or so much time has passed; says why it ends.

    Run folders are kept at the address `shared`, too, which all workers reach.

    What is at work at the end of the time, or when it is interrupted, is stopped: its finished steps are kept, and the
    next search of the same goal asks for it again. The recipe as it is written is the first trial, alone, since others
    take its trained network from it. Raises `UsageError` where that one fails.
    """
    until = None if seconds is None else time.monotonic() + seconds
    running: dict[int, str] = {}
    attempts: dict[int, int] = {}
    why = ""  # why no other trial begins
    look, write = Seldom(lambda: show(study, running)), Seldom(lambda: write_findings(study, folder))
    is_written = True
    try:
        while True:
            while not why and len(running) < (workers.num if study.reference else 1):
                if until is not None and time.monotonic() >= until:
                    break
                why = _why_enough(study, num_trials, len(running))
                if not why and (trial := study.ask()) is None:
                    why = "all that the recipe's table search leaves open has been tried"
                elif not why:
                    assert trial is not None
                    running[trial.number], attempts[trial.number] = "", 1
                    try:
                        _submit(study, folder, workers, trial, measure_all, shared)
                    except RecipeError as error:
                        del running[trial.number]
                        study.tell(trial.number, {"state": "failed", "reason": str(error), "figures": {}})
            if not running and why:
                return why
            look()
            is_written = is_written or write()
            if until is not None and time.monotonic() >= until:
                return "the time is up; run the same command to go on"
            for event in workers.events(TICK if until is None else min(TICK, max(until - time.monotonic(), 0.0))):
                number = event.number
                if event.doing is not None:
                    running[number] = event.doing
                    continue
                if event.lost is not None and attempts[number] < ATTEMPTS:
                    attempts[number] += 1
                    running[number] = f"begun again: {event.lost}"
                    trial = next(found for found in study.trials() if found.number == number)
                    _submit(study, folder, workers, trial, measure_all, shared)
                    continue
                result = event.result or {"state": "failed", "reason": f"{event.lost}, each time", "figures": {}}
                del running[number]
                _check_first(study, study.tell(number, result))
                is_written = False
    finally:
        workers.stop()
        for number in list(running):
            study.interrupt(number)
        write_findings(study, folder)
        show(study, {})


def write_findings(study: Study, folder: Path) -> None:
    """Writes `search.json` and, in `front/`, the recipes of the trials that no other beats."""
    files.write_json(folder / "search.json", findings(study))
    front = folder / "front"
    front.mkdir(exist_ok=True)
    written = set()
    for trial in study.front():
        _, text = study.goal.space.recipe_of(trial.values, trial.name)
        said = searched.figures(trial, *study.goal.objectives, "score", "latency", "size", "drop")
        file = front / f"{trial.name}.toml"
        files.write_text(file, f"# Trial {trial.number} of a search; {study.goal.target}: {said}\n{text}")
        written.add(file)
    for file in set(front.glob(f"{study.goal.space.recipe.name}-*.toml")) - written:
        file.unlink()


def findings(study: Study) -> dict[str, Any]:
    """What `search.json` holds."""
    asked = study.goal
    return {
        "schema": SCHEMA,
        "recipe": asked.space.recipe.name,
        "study": study.name,
        "target": asked.target,
        "metric": vars(asked.metric),
        "objectives": list(asked.objectives),
        "limits": [limit.text for limit in asked.limits],
        "front": [trial.number for trial in study.front()],
        "trials": study.as_json(),
    }


def compared(study: Study, folder: Path, shared: str | None = None) -> list[File]:
    """The files of all finished trials, and the first one's float file, as `edgedl compare` has them.

    Those that miss a limit of the search are refused by it. Reports that are not here are fetched from `shared`.
    """
    found: list[File] = []
    for trial in study.trials():
        if shared and trial.state == "done":
            _fetch_report(study, trial, folder, shared)
        if trial.state != "done" or not (folder / str(trial.result["run"]) / "report.json").is_file():
            continue
        rows = comparison.read([str(folder / str(trial.result["run"]))], folder)
        file = next(file for file in rows if file.row["variant"] == trial.result["variant"])
        row = file.row
        if trial.missed and row["status"] == "ok":
            row = {**row, "status": "refused", "reason": f"it misses {', '.join(trial.missed)}"}
        if not found:
            found.append(rows[0])
        found.append(replace(file, drop=trial.figures.value("drop"), row=row))
    return found


def _fetch_report(study: Study, trial: Trial, folder: Path, shared: str) -> None:
    run = str(trial.result["run"])
    if not (folder / run).exists() and (report := artifacts.read(_kept_at(study, shared), run)) is not None:
        with artifacts.arriving(folder / run) as arrived:
            files.write_bytes(arrived / "report.json", report)


def _kept_at(study: Study, shared: str) -> str:
    return f"{shared.rstrip('/')}/{study.name}"


def _why_enough(study: Study, num_trials: int | None, num_running: int) -> str:
    if num_trials is None or study.num_finished + num_running < num_trials:
        return ""
    return f"{num_trials} trials have finished; to go on, give more --trials"


def _submit(study: Study, folder: Path, workers: Workers, trial: Trial, measure_all: bool, shared: str | None) -> None:
    """Raises `RecipeError` where the trial's values do not go together."""
    asked = study.goal
    targets = [
        table
        for table, target in zip(asked.space.table["targets"], asked.space.recipe.targets, strict=True)
        if target.label == asked.target
    ]
    _, text = asked.space.recipe_of(trial.values, trial.name, targets=targets[:1])
    reference = study.reference
    job: Job = {
        "study": study.name,
        "name": trial.name,
        "recipe": text,
        "root": str(folder.absolute()),
        "artifacts": shared and _kept_at(study, shared),
        "first": reference and reference.result["run"],
        "objectives": list(asked.objectives),
        "limits": [vars(limit) for limit in asked.limits],
        "reference": reference and reference.result["reference"],
        "earlier": [] if measure_all or reference is None else _earlier(study.trials()),
    }
    workers.submit(trial.number, job)


def _earlier(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    return [
        {
            "number": trial.number,
            "early": trial.result["early"],
            "figures": trial.figures.known,
            "is_met": trial.is_met,
        }
        for trial in trials
        if trial.state == "done"
    ]


def _check_first(study: Study, trial: Trial) -> None:
    """Raises `UsageError` where the recipe as it is written cannot be judged: no other could be, either."""
    if study.reference is None:
        raise UsageError(f"the recipe as it is written is the first trial, and it failed: {trial.reason}")
    for name in study.goal.objectives:
        if study.reference.figures.value(name) is None:
            raise UsageError(f"--objective {name}: it was not measured on target {study.goal.target} here")
