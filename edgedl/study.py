"""The trials of a search, kept in a database: what to try next, what came of each, and which no other beats."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import comparison, plugins
from edgedl import recipe as recipes
from edgedl.core import Metric, MissingPackage, UsageError
from edgedl.hopeless import Figures
from edgedl.picking import Limit
from edgedl.recipe import Range
from edgedl.space import Space, Values

if TYPE_CHECKING:
    import optuna

STARTUP = 8
"""So many trials by chance before the sampler has enough to go by."""
MAX_REPEATS = 50
"""So many proposals in a row that were tried before: then all has been, or as good as."""
UNMET = 1e6
"""Stands in the database for what is not known."""


@dataclass(frozen=True)
class Goal:
    """What is searched for: the figures of the file for one target of the recipe, and what they have to keep to."""

    space: Space
    target: str
    objectives: tuple[str, ...]
    limits: tuple[Limit, ...]

    @property
    def metric(self) -> Metric:
        return self.space.recipe.task.metric

    @property
    def key(self) -> str:
        """Of the recipe and all that trials are judged by: searches of one key are one."""
        said = [
            self.space.text,
            self.space.recipe.name,
            self.target,
            self.objectives,
            [limit.text for limit in self.limits],
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Trial:
    """One choice of values, and what came of it."""

    number: int
    name: str
    values: Values
    state: str
    """"running", "done", "stopped" (nothing could come of it), "failed", "interrupted" (and asked for again)."""
    figures: Figures
    reason: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    missed: Sequence[str] = ()
    """The limits that its file misses; a gate's refusal is one."""

    @property
    def is_finished(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    @property
    def is_met(self) -> bool:
        return self.state == "done" and not self.missed

    @property
    def in_words(self) -> str:
        if self.state == "done":
            return f"misses {', '.join(self.missed)}" if self.missed else "ok"
        said = (self.reason or self.state).partition("\n")[0]
        return f"failed: {said}" if self.state == "failed" else said


class Study:
    """The trials of one goal in a database; another search of the same goal goes on with them."""

    def __init__(self, goal: Goal, storage: str) -> None:
        """Opens the database, an address of SQLAlchemy's, or makes it. Raises `MissingPackage`, `UsageError`."""
        if not plugins.installed("optuna"):
            raise MissingPackage(f"edgedl search needs optuna: {plugins.pip_line('search')}")
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.goal = goal
        self.name = f"{goal.space.recipe.name}-{goal.key}"
        self._open: dict[int, optuna.Trial] = {}
        up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        better = up if goal.metric.higher_is_better else down
        directions = [better if name == "score" else down for name in goal.objectives]
        try:
            with _quiet():
                self._study = optuna.create_study(
                    storage=storage, study_name=self.name, directions=directions, load_if_exists=True
                )
                self._study.set_metric_names(list(goal.objectives))
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise UsageError(f"--storage {storage}: {str(error).splitlines()[0]}") from error
        self._ask_again_for_lost()

    def trials(self) -> list[Trial]:
        """All of them in order, without repeats."""
        found = self._study.get_trials(deepcopy=False)
        return [self._read(trial) for trial in found if "values" in trial.user_attrs and self._state(trial) != "repeat"]

    @property
    def reference(self) -> Trial | None:
        """The finished trial of the recipe as it is written, whose float network drops are counted from."""
        written = self._written()
        return next((trial for trial in self.trials() if trial.state == "done" and _same(trial.values, written)), None)

    def front(self) -> list[Trial]:
        """The trials that meet all limits and that no other of those beats, by the first objective."""
        able = [trial for trial in self.trials() if trial.is_met]
        costs = [tuple(trial.figures.cost(name) for name in self.goal.objectives) for trial in able]
        alone = [trial for trial, best in zip(able, comparison.undominated(costs), strict=True) if best]
        return sorted(alone, key=lambda trial: trial.figures.cost(self.goal.objectives[0]))

    def ask(self) -> Trial | None:
        """The next trial, now running; None where all that there is has been tried."""
        import optuna

        known = [trial.values for trial in self.trials() if trial.state != "interrupted"]
        if self.reference is None:  # it comes first, and again where it has failed
            known = []
            if not self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING]):
                self._study.enqueue_trial(self._as_asked(self._written()))
        for repeats in range(MAX_REPEATS):
            seed = self.goal.space.recipe.seed + 1_000_003 * len(self._study.get_trials(deepcopy=False))
            chance = optuna.samplers.RandomSampler(seed=seed % 2**32)
            model = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=STARTUP)
            self._study.sampler = chance if repeats else model
            with _quiet():
                asked = self._study.ask()
                values = self.goal.space.sample(partial(_suggested, asked))
            asked.set_user_attr("values", values)
            if not any(_same(values, other) for other in known):
                asked.set_user_attr("owner", [platform.node(), os.getpid()])
                self._open[asked.number] = asked
                return self._read(self._frozen(asked.number))
            asked.set_user_attr("state", "repeat")
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        return None

    def tell(self, number: int, result: Mapping[str, Any]) -> Trial:
        """Keeps what came of a trial."""
        import optuna

        asked = self._open.pop(number)
        figures = dict(result["figures"])
        if result["state"] == "done":
            first = self.reference.result["reference"] if self.reference else result["reference"]
            figures["drop"] = self.goal.metric.drop(first, figures["score"])
        for key, value in {**result, "figures": figures}.items():
            asked.set_user_attr(key, value)
        if result["state"] == "failed":
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
            return self._read(self._frozen(number))
        trial = self._read(self._frozen(number))
        for limit in self.goal.limits:
            # A limit is met at 0, and misses are relative.
            asked.set_constraint(limit.text, min(limit.miss(trial.figures), UNMET))
        asked.set_constraint("gate", 1.0 if result.get("status", "ok") != "ok" else 0.0)
        values = [self._worth(name, trial) for name in self.goal.objectives]
        self._study.tell(asked, values)
        return self._read(self._frozen(number))

    def interrupt(self, number: int) -> None:
        """Ends a trial that has not finished; the next search asks for it again."""
        asked = self._open.pop(number)
        asked.set_user_attr("state", "interrupted")
        self._ask_again(asked.number)

    def as_json(self) -> list[dict[str, Any]]:
        """Every trial with its values and figures; `front` tells which no other beats."""
        front = {trial.number for trial in self.front()}
        return [
            {
                "number": trial.number,
                "name": trial.name,
                "state": trial.state,
                "reason": trial.reason,
                "values": trial.values,
                "figures": dict(trial.figures.known) if trial.state == "done" else {},
                "at_best": dict(trial.figures.known) if trial.state == "stopped" else {},
                "missed": list(trial.missed),
                "front": trial.number in front,
                "run": trial.result.get("run"),
                "file": trial.result.get("file"),
                "seconds": trial.result.get("seconds"),
            }
            for trial in self.trials()
        ]

    def _written(self) -> Values:
        """The recipe's own values as `sample` gives them."""
        written = self.goal.space.written
        return self.goal.space.sample(lambda path, found: written[path])

    def _as_asked(self, values: Values) -> dict[str, Any]:
        paths = self.goal.space.paths
        return {
            path: value if isinstance(paths[path], Range) else recipes.value(value) for path, value in values.items()
        }

    def _worth(self, name: str, trial: Trial) -> float:
        """An objective as the sampler is told; of a trial that was stopped what is not known is as bad as was seen."""
        value = trial.figures.value(name) if trial.state == "done" else None
        if value is not None:
            return value
        done = [other.figures for other in self.trials() if other.state == "done"]
        seen = [found for figures in done if (found := figures.value(name)) is not None]
        worst = min if name == "score" and self.goal.metric.higher_is_better else max
        return worst(seen, default=UNMET)

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _state(self, trial: optuna.trial.FrozenTrial) -> str:
        return str(trial.user_attrs.get("state", "running"))

    def _read(self, trial: optuna.trial.FrozenTrial) -> Trial:
        told = trial.user_attrs
        figures = Figures(told.get("figures", {}), self.goal.metric.higher_is_better)
        missed = []
        if self._state(trial) == "done":
            missed = [limit.text for limit in self.goal.limits if not limit.is_met(figures)]
            if told.get("status") != "ok" and not missed:
                missed = [f"the gate: {told.get('reason')}"]
        return Trial(
            trial.number,
            f"{self.goal.space.recipe.name}-{trial.number:04}",
            told["values"],
            self._state(trial),
            figures,
            told.get("reason"),
            told,
            missed,
        )

    def _ask_again_for_lost(self) -> None:
        """Trials whose search ended in the middle, as by a power failure, are asked for again."""
        import optuna

        for trial in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            machine, process = trial.user_attrs.get("owner", [platform.node(), 0])
            if machine == platform.node() and not _is_alive(process):
                self._study._storage.set_trial_user_attr(trial._trial_id, "state", "interrupted")
                self._ask_again(trial.number)

    def _ask_again(self, number: int) -> None:
        import optuna

        values = self._frozen(number).user_attrs.get("values")
        self._study.tell(number, state=optuna.trial.TrialState.FAIL)
        if values is not None:
            self._study.enqueue_trial(self._as_asked(values))


def _suggested(trial: optuna.Trial, path: str, found: Range | tuple[Any, ...]) -> Any:
    if not isinstance(found, Range):  # a database keeps texts, but no lists
        texts = {recipes.value(value): value for value in found}
        return texts[trial.suggest_categorical(path, list(texts))]
    if found.whole:
        return trial.suggest_int(path, int(found.low), int(found.high), step=int(found.step or 1), log=found.log)
    return trial.suggest_float(path, found.low, found.high, step=found.step, log=found.log)


def _same(one: Values, other: Values) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process > 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings of what is experimental, and of values that are repeated on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def database(folder: Path) -> str:
    """The address of the database in a search's folder."""
    return f"sqlite:///{(folder / 'trials.db').absolute()}"
