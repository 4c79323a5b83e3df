"""Limits such as "latency<5ms, score>=0.97", and the file that meets them and serves best, or comes nearest."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn, Protocol

from edgedl import plugins
from edgedl.comparison import OBJECTIVES, File, Group
from edgedl.core import UsageError

UNITS = {
    # What can be limited -> its units, as factors of what `File.value` gives; "" is a number without one.
    "latency": {"us": "0.001", "ms": "1", "s": "1000"},
    "score": {"": "1", "%": "0.01"},
    "drop": {"": "1", "%": "0.01"},
    "size": {"B": "1", "kB": "1000", "MB": "1000000"},
    "speedup": {"": "1", "x": "1"},
    "energy": {"uJ": "0.001", "mJ": "1", "J": "1000"},
}
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NUMBER = r"-?(?:[0-9]{1,15}(?:\.[0-9]{1,15})?|\.[0-9]{1,15})(?![0-9.])"
UNIT = r"(?:[A-Za-z%\u00b5\u03bc]+(?![A-Za-z%])(?!\s*[<>]))?"
"""No more than letters, and not the name of the next limit where a comma is missing."""
ALIASES = {"score_drop": "drop"}
"""As recipes call it."""
SETTLES = {"drop": "score", "speedup": "latency"}
"""Limits that are on an objective by another name."""


class Measured(Protocol):
    """Whatever has figures: a file, or a trial of a search."""

    def value(self, name: str) -> float | None: ...


@dataclass(frozen=True)
class Limit:
    """One of the limits: `bound` is in the unit of `File.value`."""

    name: str
    sign: str
    bound: float
    text: str
    """As it was written."""
    percent: bool = False

    def is_met(self, file: Measured) -> bool:
        value = file.value(self.name)
        return value is not None and OPERATORS[self.sign](value, self.bound)

    def miss(self, file: Measured) -> float:
        """By which share of the limit a file misses it; 0 if it does not, infinite where its value is not known."""
        value = file.value(self.name)
        if value is None:
            return float("inf")
        return 0.0 if self.is_met(file) else abs(value - self.bound) / (abs(self.bound) or 1.0)


@dataclass(frozen=True)
class Pick:
    """The file to ship of a group; or, if `missed` is not empty, the one that comes nearest; None if none may ship."""

    group: Group
    file: File | None
    missed: Sequence[Limit]
    num_met: int
    """How many files meet all limits."""
    decided_by: str
    """The objective that was made as good as possible."""

    @property
    def is_met(self) -> bool:
        return self.file is not None and not self.missed


def parse(text: str, option: str = "--pick") -> list[Limit]:
    """The limits given with an option, separated by commas. Raises `UsageError` with the character that is wrong."""
    try:
        return _parsed(text)
    except UsageError as error:
        raise UsageError(f"{option} {error}") from error


def _parsed(text: str) -> list[Limit]:
    limits, at = [], 0
    while True:
        start = at
        name, at = _token(text, at, r"[A-Za-z_-]+", f"the name of a figure: {_listed(UNITS)}")
        name = ALIASES.get(name, name)
        if name not in UNITS:
            _wrong(text, at - len(name), f'no figure "{name}"; {plugins.nearest(name, UNITS)}')
        sign, at = _token(text, at, "[<>]=?", f"{_listed(OPERATORS)} behind {name}")
        number, at = _token(text, at, NUMBER, "a number")
        units = UNITS[name]
        unit, at = _token(text, at, UNIT, "")
        factor = units.get(unit.replace("\u00b5", "u").replace("\u03bc", "u"))
        if factor is None:
            said = f'no unit "{unit}"' if unit else f"{name} needs a unit"
            _wrong(text, at - len(unit), f"{said}: {_listed(unit or 'none' for unit in units)}")
        limits.append(Limit(name, sign, float(Decimal(number) * Decimal(factor)), text[start:at].strip(), unit == "%"))
        comma, at = _token(text, at, ",|$", "a comma, or the end")
        if not comma:
            return limits


def check(limits: Sequence[Limit], groups: Sequence[Group]) -> None:
    """Refuses limits that these files cannot be held against. Raises `UsageError`."""
    exams = list(dict.fromkeys(group.judged for group in groups))
    if len(exams) > 1:
        raise UsageError(
            f"--pick is for runs of one task and metric, and these are {'; '.join(exams)}: give runs of one"
        )
    check_units(limits, groups[0].metric["name"], groups[0].metric["unit"])


def check_units(limits: Sequence[Limit], metric: str, unit: str, option: str = "--pick") -> None:
    """Refuses a share of 100 % of what is none. Raises `UsageError`."""
    for limit in limits:
        if limit.percent and unit != "fraction":
            raise UsageError(f"{option}: {limit.text}: {metric} is no share of 100 %: leave out the %")


def pick(group: Group, limits: Sequence[Limit]) -> Pick:
    """The best file that may ship and meets all limits; else that whose worst miss is the smallest share of a limit.

    A limit says what is good enough, so what no limit is on decides first: the score, then latency, size, energy.
    """
    limited = {SETTLES.get(limit.name, limit.name) for limit in limits}
    able = [file for file in group.files if file.may_ship]
    known = [name for name in OBJECTIVES if any(file.value(name) is not None for file in able)] or OBJECTIVES
    order = sorted(known, key=lambda name: name in limited)

    def worth(file: File) -> tuple[object, ...]:
        return *(file.cost(name) for name in order), str(file.path)

    met = [file for file in able if all(limit.is_met(file) for limit in limits)]
    if met:
        return Pick(group, min(met, key=worth), (), len(met), order[0])

    def worst_first(file: File) -> list[float]:
        return sorted((limit.miss(file) for limit in limits), reverse=True)

    nearest = min(able, key=lambda file: (worst_first(file), worth(file)), default=None)
    missed = [limit for limit in limits if nearest is not None and not limit.is_met(nearest)]
    return Pick(group, nearest, missed, 0, order[0])


def marked(
    rows: Sequence[Mapping[str, Any]], files: Sequence[File], limits: Sequence[Limit], picks: Sequence[Pick]
) -> list[dict[str, Any]]:
    """Rows with whether each was picked, and the limits that it misses."""
    chosen = {id(found.file) for found in picks if found.is_met}
    return [
        {**row, "picked": id(file) in chosen, "missed": [limit.text for limit in limits if not limit.is_met(file)]}
        for row, file in zip(rows, files, strict=True)
    ]


def _token(text: str, at: int, pattern: str, wanted: str) -> tuple[str, int]:
    """What stands at a place behind spaces, and the place behind it."""
    found = re.compile(rf"\s*({pattern})").match(text, at)
    if found is None:
        at = len(text) - len(text[at:].lstrip())
        _wrong(text, at, f"expected {wanted}{f', not {text[at : at + 12]!r}' if text[at:] else ''}")
    return found[1], found.end()


def _wrong(text: str, at: int, said: str) -> NoReturn:
    raise UsageError(f"{json.dumps(text, ensure_ascii=False)}: character {at + 1}: {said}")


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"
