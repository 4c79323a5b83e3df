"""Whether a trial of a search can still come to anything, by cheap figures that earlier trials had, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgedl.comparison import dominates
from edgedl.core import EdgedlError, Metric
from edgedl.picking import Limit

STANDS_FOR = {"score": "validation score", "latency": "multiply-accumulates", "size": "parameters"}
"""What can be known of a figure before a network is converted and measured."""
LEAST = 4
"""Of so many earlier trials has to be known what came of their cheap figures."""


class Hopeless(EdgedlError):
    """A trial that was stopped before its network was converted and measured."""

    def __init__(self, reason: str, at_best: Figures) -> None:
        super().__init__(reason)
        self.at_best = at_best


@dataclass(frozen=True)
class Figures:
    """What is known of a file: score, drop, latency (ms), size (bytes), speedup, energy (mJ)."""

    known: Mapping[str, float | None]
    higher_is_better: bool

    def value(self, name: str) -> float | None:
        return self.known.get(name)

    def cost(self, name: str) -> float:
        """A figure, the less the better; what is not known is infinite."""
        value = self.value(name)
        if value is None:
            return float("inf")
        return -value if name == "score" and self.higher_is_better else value


@dataclass(frozen=True)
class Early:
    """A network after a step: its score over validation data, its multiply-accumulates and its parameters.

    Where it is still to be trained on its score says nothing, and is left out: the worse, the more can be made good.
    """

    score: float | None
    macs: float
    parameters: float


@dataclass(frozen=True)
class Earlier:
    """A finished trial: what was early known after each step, what came of it, and whether it meets all limits."""

    number: int
    early: Mapping[str, Early]
    figures: Figures
    is_met: bool


@dataclass(frozen=True)
class Judge:
    """Says of a network after a step what it can be at best: as lucky as the luckiest earlier trial in each figure."""

    objectives: Sequence[str]
    limits: Sequence[Limit]
    metric: Metric
    reference: float
    """The score that a drop is counted from."""
    earlier: Sequence[Earlier]

    def watch(self, step: str, early: Early) -> None:
        """Raises `Hopeless` where not even the best that can come of it meets all limits and is on the front."""
        alike = [trial for trial in self.earlier if step in trial.early]
        if len(alike) < LEAST:
            return
        best = self.at_best(early, [(trial.early[step], trial.figures) for trial in alike])
        for limit in self.limits:
            value = best.value(limit.name)
            if value is not None and not limit.is_met(best):
                raise Hopeless(f"stopped after {step}: {limit.name} {value:.4g} at best, {self._by(limit.name)}", best)
        known = all(best.value(name) is not None for name in self.objectives)
        for trial in self.earlier if known else ():
            if trial.is_met and dominates(self._costs(trial.figures), self._costs(best)):
                by = ", ".join(f"{name} {best.value(name):.4g}" for name in self.objectives)
                raise Hopeless(f"stopped after {step}: at best {by}, and trial {trial.number} is better", best)

    def at_best(self, early: Early, alike: Sequence[tuple[Early, Figures]]) -> Figures:
        """The best figures that fit what came of others: scores by the highest gain, all else by the lowest ratio."""
        higher = self.metric.higher_is_better
        sign = 1 if higher else -1
        pairs = [(found.value("score"), other.score) for other, found in alike]
        gains = [sign * (score - before) for score, before in pairs if score is not None and before is not None]
        score = early.score + sign * max(gains) if gains and early.score is not None else None

        def least(name: str, now: float, before: Sequence[float]) -> float | None:
            values = [found.value(name) for _, found in alike]
            ratios = [value / other for value, other in zip(values, before, strict=True) if value is not None and other]
            return now * min(ratios) if ratios else None

        macs = [other.macs for other, _ in alike]
        return Figures(
            {
                "score": score,
                "drop": None if score is None else self.metric.drop(self.reference, score),
                "latency": least("latency", early.macs, macs),
                "energy": least("energy", early.macs, macs),
                "size": least("size", early.parameters, [other.parameters for other, _ in alike]),
            },
            higher,
        )

    def _costs(self, figures: Figures) -> tuple[float, ...]:
        return tuple(figures.cost(name) for name in self.objectives)

    def _by(self, name: str) -> str:
        return f"by its {STANDS_FOR['score' if name == 'drop' else 'latency' if name == 'energy' else name]}"
