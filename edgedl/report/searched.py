"""A search on a terminal: its trials while it goes on, and the front at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from edgedl import recipe as recipes
from edgedl.report.numbers import NONE, four_digits, milliseconds, size, three_digits

if TYPE_CHECKING:
    from edgedl.search.study import Study, Trial

NUM_LATEST = 8
"""Of trials that are finished and not on the front so many are shown while others run."""


def live(study: Study, running: Mapping[int, str]) -> Table:
    """The front, the latest of all others, and what runs."""
    trials, front = [trial for trial in study.trials() if trial.state != "interrupted"], study.front()
    chosen = {trial.number for trial in front} | set(running)
    chosen |= {trial.number for trial in [other for other in trials if other.number not in chosen][-NUM_LATEST:]}
    return table(study, [trial for trial in trials if trial.number in chosen], running)


def table(study: Study, trials: Sequence[Trial], running: Mapping[int, str] | None = None) -> Table:
    """A row a trial: its values, its figures, what came of it; those on the front in bold, with a mark."""
    front = {trial.number for trial in study.front()}
    names = list(dict.fromkeys([*study.goal.objectives, "drop"]))
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "trial", *names, "values", "result"):
        justify: Literal["left", "right"] = "right" if column in ("trial", *names) else "left"
        folds = column in ("values", "result")
        shown.add_column(column, justify=justify, overflow="fold", no_wrap=not folds, ratio=1 if folds else None)
    for trial in trials:
        best = trial.number in front
        doing = (running or {}).get(trial.number)
        told = trial.in_words if doing is None else f"running{f': {doing}' if doing else ''}"
        figures = [figure(name, trial.figures.value(name) if trial.state == "done" else None) for name in names]
        row = ("*" if best else "", str(trial.number), *figures, values(trial.values), told)
        shown.add_row(*row, style="bold" if best else "")
    return shown


def notes(study: Study) -> list[str]:
    """What a reader of the table has to know."""
    limits = ", ".join(limit.text for limit in study.goal.limits)
    metric = study.goal.metric
    better = "higher is better" if metric.higher_is_better else "lower is better"
    good = " and ".join(study.goal.objectives)
    trials = study.trials()
    counts = [(state, sum(trial.state == state for trial in trials)) for state in ("done", "stopped", "failed")]
    told = ", ".join(f"{count} {state}" for state, count in counts if count)
    said = [
        f"target {study.goal.target}; score: {metric.name}, {better}; limits: {limits}; trials: {told or 'none'}",
    ]
    if study.front():
        said.append(f"* no other that meets the limits is as good in {good} and better in one of them")
    if any(trial.state == "stopped" for trial in trials):
        said.append(
            "stopped: not converted and measured, since nothing could come of it if it were as lucky as the luckiest "
            "trial before: a score as far above that on validation data, a latency as low for its "
            "multiply-accumulates, a size as small for its parameters"
        )
    return said


def line(study: Study, trial: Trial) -> str:
    """A finished trial where no table can be shown anew."""
    told = (
        [figures(trial, *study.goal.objectives, "drop"), trial.in_words] if trial.state == "done" else [trial.in_words]
    )
    return f"trial {trial.number}: {'; '.join([*told, values(trial.values)])}"


def figures(trial: Trial, *names: str) -> str:
    """Some figures of a trial, in a line."""
    return ", ".join(f"{name} {figure(name, trial.figures.value(name))}" for name in dict.fromkeys(names))


def figure(name: str, value: float | None) -> str:
    """A figure as tables have it."""
    if value is None:
        return NONE
    if name == "energy":
        return f"{three_digits(value)} mJ"
    if name == "drop":
        return f"{round(value, 4) + 0.0:.4f}"
    if name in ("score", "speedup"):
        return four_digits(value)
    return milliseconds(value) if name == "latency" else size(round(value))


def values(chosen: Mapping[str, Any]) -> str:
    """Values by their paths; a step that is there as it is written is not worth a word."""
    told = {path.removeprefix("steps."): value for path, value in chosen.items() if value is not True}
    return ", ".join(f"{path} {recipes.value(value)}" for path, value in told.items())
