"""The trials of a search, kept in a database: what to try next, what came of each, and which no other beats."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import comparison, plugins
from edgedl import recipe as recipes
from edgedl.core import Metric, MissingPackage, UsageError
from edgedl.picking import Limit
from edgedl.recipe import Range
from edgedl.search.hopeless import Figures
from edgedl.search.space import Space, Values

if TYPE_CHECKING:
    import optuna

STARTUP = 8
"""So many trials like the recipe as it is written before the sampler has enough to go by. Later, every other trial is
like one of the front: an hour may be twenty trials, and a sampler wants more to tell good values from bad ones."""
SPREAD, NEAR = 0.15, 0.07
"""How far those are from what they are like, at first and later: a standard deviation, as a share of the range."""
SAME = 0.7
"""The chance that of a list they have the same."""
SEEN = 250
"""So many of the latest trials the sampler goes by, twice as many for a while, and by the front: it takes its time.

And so many of those that run.
"""
MAX_REPEATS = 50
"""So many proposals in a row that were tried before: then all has been, or as good as."""
UNMET = 1e6
"""Stands in the database for what is not known."""
KEPT_AS = 4
"""The form in which trials are kept; those of an earlier one are another search."""
SELDOM = 19
"""So many times as long as it took is waited until something is done again that is only for those who look on."""


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
            KEPT_AS,
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
    """The trials of one goal in a database; another search of the same goal goes on with them.

    It knows its trials by itself, and asks the database only now and then what other searches have found: to read a
    thousand trials that run takes longer than all the rest.
    """

    def __init__(self, goal: Goal, storage: str) -> None:
        """Opens the database, an address of SQLAlchemy's, or makes it. Raises `MissingPackage`, `UsageError`."""
        if not plugins.installed("optuna"):
            raise MissingPackage(f"edgedl search needs optuna: {plugins.pip_line('search')}")
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.goal = goal
        self.name = f"{goal.space.recipe.name}-{goal.key}"
        up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        better = up if goal.metric.higher_is_better else down
        directions = [better if name == "score" else down for name in goal.objectives]
        try:
            with _quiet():
                self._database = optuna.storages.get_storage(_with_driver(storage))
                kept = optuna.create_study(
                    storage=self._database, study_name=self.name, directions=directions, load_if_exists=True
                )
                kept.set_metric_names(list(goal.objectives))
                self._id = self._database.get_study_id_from_name(self.name)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            shown = re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:***@", storage)
            raise UsageError(f"--storage {shown}: {str(error).splitlines()[0]}") from error
        self._directions = directions
        self._sampler = optuna.create_study(directions=directions)  # in memory: it proposes, from what has finished
        self._learned: list[optuna.trial.FrozenTrial] = []
        self._expected: dict[int, int] = {}
        """Of the trials that run, their numbers for the sampler: it keeps away from them."""
        self._written = goal.space.sample(lambda path, found: goal.space.written[path])
        self._known: dict[int, Trial] = {}
        self._open: dict[int, int] = {}
        """Of the trials that this search runs, the database's name."""
        self._values: set[str] = set()
        """What has been tried, or is tried now."""
        self._reference: Trial | None = None
        self._front: list[Trial] = []
        self._look = Seldom(self._read_all)
        self._look(at_once=True)
        self._end_lost()

    def trials(self) -> list[Trial]:
        """All of them in order."""
        self._look()
        return [self._known[number] for number in sorted(self._known)]

    @property
    def num_finished(self) -> int:
        self._look()
        return sum(trial.is_finished for trial in self._known.values())

    @property
    def reference(self) -> Trial | None:
        """The finished trial of the recipe as it is written, whose float network drops are counted from."""
        self._look()
        return self._reference

    def front(self) -> list[Trial]:
        """The trials that meet all limits and that no other of those beats, by the first objective."""
        self._look()
        return sorted(self._front, key=lambda trial: trial.figures.cost(self.goal.objectives[0]))

    def ask(self) -> Trial | None:
        """The next trial, now running; None where all that there is has been tried."""
        import optuna

        if (values := self._next()) is None:
            return None
        asked = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=self._as_asked(values),
            distributions=self._distributions(values),
            user_attrs={"values": values, "owner": [platform.node(), os.getpid()]},
        )
        asked.datetime_start = datetime.now()
        name = self._database.create_new_trial(self._id, asked)
        number = self._database.get_trial_number_from_id(name)
        self._open[number] = name
        trial = self._trial(number, values, {})
        self._keep(trial)
        return trial

    def tell(self, number: int, result: Mapping[str, Any]) -> Trial:
        """Keeps what came of a trial."""
        import optuna

        figures = dict(result["figures"])
        if result["state"] == "done":
            first = self._reference.result["reference"] if self._reference else result["reference"]
            figures["drop"] = self.goal.metric.drop(first, figures["score"])
            figures["latency"] = self._latency(result)
        result = {**result, "figures": figures}
        trial = self._trial(number, self._known[number].values, result)
        name = self._open.pop(number)
        self._database.set_trial_user_attr(name, "result", result)
        if trial.state == "failed":
            self._database.set_trial_state_values(name, optuna.trial.TrialState.FAIL)
        else:
            worth = [self._worth(objective, trial) for objective in self.goal.objectives]
            self._database.set_trial_state_values(name, optuna.trial.TrialState.COMPLETE, worth)
            self._learn(trial, worth)
        self._keep(trial)
        return trial

    def _latency(self, result: Mapping[str, Any]) -> float | None:
        """That of the first trial's float file over the speed-up against the same file, measured in turn with it.

        So it does not matter how fast the machine was meanwhile. Where the float file is another, as that of another
        network, it is what was measured.
        """
        latency: float | None = result["figures"]["latency"]
        own, speedup = result["yardstick"], result["figures"].get("speedup")
        first = self._reference.result["yardstick"] if self._reference else own
        if latency is None or not speedup or not first["latency"] or first["sha256"] != own["sha256"]:
            return latency
        return float(first["latency"]) / float(speedup)

    def interrupt(self, number: int) -> None:
        """Ends a trial that has not finished; it is asked for again."""
        self._interrupt(self._known[number], self._open.pop(number))

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

    def _next(self) -> Values | None:
        """Values that nobody has tried: those of an interrupted trial, or what the sampler proposes."""
        import optuna

        if self.reference is None:  # it comes first, and again where it has failed
            return self._written
        if self._interrupted():
            self._look(at_once=True)  # another search may have begun it meanwhile
            if waiting := self._interrupted():
                return waiting[0].values
        for repeats in range(MAX_REPEATS):
            seed = (self.goal.space.recipe.seed + 1_000_003 * len(self._known) + 7_919 * repeats) % 2**32
            dice, number = random.Random(seed), len(self._known)
            if number <= STARTUP and 2 * repeats < MAX_REPEATS:
                values = self.goal.space.sample(partial(_like, dice, SPREAD, self.goal.space.written))
            elif number % 2 and self._front and 2 * repeats < MAX_REPEATS:
                best = self.goal.space.written | dice.choice(self.front()).values
                values = self.goal.space.sample(partial(_like, dice, NEAR, best))
            else:
                chance = optuna.samplers.RandomSampler(seed=seed)
                model = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
                self._sampler.sampler = chance if repeats else model
                with _quiet():
                    asked = self._sampler.ask()
                    values = self.goal.space.sample(partial(_suggested, asked))
                    self._sampler.tell(asked, state=optuna.trial.TrialState.FAIL)
            if _text(values) not in self._values:
                return values
        return None

    def _interrupted(self) -> list[Trial]:
        """The trials that nobody has begun again."""
        lost = [trial for trial in self._known.values() if trial.state == "interrupted"]
        return [trial for trial in lost if _text(trial.values) not in self._values]

    def _distributions(self, values: Values) -> dict[str, optuna.distributions.BaseDistribution]:
        return {path: _distribution(self.goal.space.paths[path]) for path in values}

    def _as_asked(self, values: Values) -> dict[str, Any]:
        """Values as the sampler knows them: numbers of a range on its grid, others as texts."""
        paths = self.goal.space.paths
        return {
            path: found.nearest(value) if isinstance(found := paths[path], Range) else recipes.value(value)
            for path, value in values.items()
        }

    def _worth(self, name: str, trial: Trial) -> float:
        """An objective as the sampler is told; of a trial that was stopped what is not known is as bad as was seen."""
        value = trial.figures.value(name) if trial.state == "done" else None
        if value is not None:
            return value
        done = [other.figures for other in self._known.values() if other.state == "done"]
        seen = [found for figures in done if (found := figures.value(name)) is not None]
        worst = min if name == "score" and self.goal.metric.higher_is_better else max
        return worst(seen, default=UNMET)

    def _trial(self, number: int, values: Values, result: Mapping[str, Any]) -> Trial:
        figures = Figures(result.get("figures", {}), self.goal.metric.higher_is_better)
        state, reason = result.get("state", "running"), result.get("reason")
        missed = []
        if state == "done":
            missed = [limit.text for limit in self.goal.limits if not limit.is_met(figures)]
            if result.get("status") != "ok" and not missed:
                missed = [f"the gate: {reason}"]
        name = f"{self.goal.space.recipe.name}-{number:04}"
        return Trial(number, name, values, state, figures, reason, result, missed)

    def _keep(self, trial: Trial) -> None:
        """Knows a trial from now on as it is."""
        self._known[trial.number] = trial
        self._expect(trial)
        if trial.state == "interrupted":
            self._values.discard(_text(trial.values))
            return
        self._values.add(_text(trial.values))
        if trial.state == "done" and self._reference is None and _text(trial.values) == _text(self._written):
            self._reference = trial
        if trial.is_met:
            costs = [self._costs(other) for other in (*self._front, trial)]
            best = comparison.undominated(costs)
            self._front = [other for other, is_best in zip((*self._front, trial), best, strict=True) if is_best]

    def _costs(self, trial: Trial) -> tuple[float, ...]:
        return tuple(trial.figures.cost(name) for name in self.goal.objectives)

    def _expect(self, trial: Trial) -> None:
        """Tells the sampler that a trial runs, or that it does no longer."""
        import optuna

        number, failed = trial.number, optuna.trial.TrialState.FAIL
        if trial.state != "running":
            if number in self._expected:
                self._sampler.tell(self._expected.pop(number), state=failed)  # what came of it is a trial of its own
        elif number not in self._expected and len(self._expected) < SEEN:
            params, known = self._as_asked(trial.values), self._distributions(trial.values)
            running = optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING, params=params, distributions=known
            )
            self._sampler.add_trial(running)
            self._expected[number] = self._sampler.get_trials(deepcopy=False)[-1].number

    def _learn(self, trial: Trial, worth: Sequence[float]) -> None:
        """Tells the sampler of a trial. A limit is met at 0, and misses are relative."""
        import optuna

        limits = {limit.text: min(limit.miss(trial.figures), UNMET) for limit in self.goal.limits}
        gate = {"gate": 1.0 if trial.result.get("status", "ok") != "ok" else 0.0}
        found = optuna.trial.create_trial(
            values=list(worth),
            params=self._as_asked(trial.values),
            distributions=self._distributions(trial.values),
            constraints=limits | gate,
            user_attrs={"number": trial.number},
        )
        self._learned.append(found)
        if len(self._learned) <= 2 * SEEN + len(self._front):
            self._sampler.add_trial(found)
            return
        best = {other.number for other in self._front}
        old, latest = self._learned[:-SEEN], self._learned[-SEEN:]
        self._learned = [other for other in old if other.user_attrs["number"] in best] + latest
        self._sampler, self._expected = optuna.create_study(directions=self._directions), {}
        self._sampler.add_trials(self._learned)
        for running in [trial for trial in self._known.values() if trial.state == "running"]:
            self._expect(running)

    def _read_all(self) -> None:
        """Takes up what other searches have begun and finished."""
        for found in self._database.get_all_trials(self._id, deepcopy=False):
            known = self._known.get(found.number)
            if found.number in self._open or (known and (known.is_finished or known.state == "interrupted")):
                continue
            told = found.user_attrs
            trial = self._trial(found.number, told["values"], told.get("result", {}))
            if known is None or trial.state != known.state:
                self._keep(trial)
                if found.values is not None:
                    self._learn(trial, found.values)

    def _end_lost(self) -> None:
        """Trials whose search ended in the middle, as by a power failure, are asked for again."""
        for found in self._database.get_all_trials(self._id, deepcopy=False):
            machine, process = found.user_attrs["owner"]
            if not found.state.is_finished() and machine == platform.node() and not _is_alive(process):
                self._interrupt(self._known[found.number], found._trial_id)

    def _interrupt(self, trial: Trial, name: int) -> None:
        import optuna

        result = {"state": "interrupted"}
        self._database.set_trial_user_attr(name, "result", result)
        self._database.set_trial_state_values(name, optuna.trial.TrialState.FAIL)
        self._keep(self._trial(trial.number, trial.values, result))


class Seldom:
    """Does what it is asked to, unless it would spend more than a twentieth of all time on it."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._next = 0.0

    def __call__(self, at_once: bool = False) -> bool:
        """Whether it did."""
        began = time.monotonic()
        if began < self._next and not at_once:
            return False
        self._do()
        ended = time.monotonic()
        self._next = ended + SELDOM * (ended - began)
        return True


def _like(chance: random.Random, spread: float, good: Values, path: str, found: Range | tuple[Any, ...]) -> Any:
    """A value like one that is good, by what has been measured or by the guess of whoever wrote the recipe."""
    if not isinstance(found, Range):
        return good[path] if chance.random() < SAME else chance.choice(found)
    scale, back = (math.log, math.exp) if found.log else (float, float)
    off = spread * (scale(found.high) - scale(found.low))
    return found.nearest(back(chance.gauss(scale(good[path]), off)))


def _suggested(trial: optuna.Trial, path: str, found: Range | tuple[Any, ...]) -> Any:
    if not isinstance(found, Range):  # a database keeps texts, but no lists
        texts = {recipes.value(value): value for value in found}
        return texts[trial.suggest_categorical(path, list(texts))]
    last = found.nearest(found.high)
    if found.whole:
        return trial.suggest_int(path, int(found.low), int(last), step=int(found.step or 1), log=found.log)
    return trial.suggest_float(path, found.low, last, step=found.step, log=found.log)


def _distribution(found: Range | tuple[Any, ...]) -> optuna.distributions.BaseDistribution:
    """As `_suggested` asks for it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(found, Range):
        return CategoricalDistribution([recipes.value(value) for value in found])
    last = found.nearest(found.high)
    if found.whole:
        return IntDistribution(int(found.low), int(last), step=int(found.step or 1), log=found.log)
    return FloatDistribution(found.low, last, step=found.step, log=found.log)


def _text(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _with_driver(storage: str) -> str:
    """An address of PostgreSQL without a driver has the one that is among the extras, whatever SQLAlchemy prefers."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", storage)


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
