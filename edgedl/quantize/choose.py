"""Choosing calibrator and corrections on validation data, with few looks at few samples: most of the time is here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch.fx import GraphModule

from edgedl import progress, stats
from edgedl.core import Task
from edgedl.measure import Scored, evaluate
from edgedl.quantize.calibrators import CALIBRATORS
from edgedl.quantize.corrections import CORRECTIONS
from edgedl.quantize.integer import FloatInterpreter
from edgedl.torch_session import TorchSession

Candidate = tuple[str, ...]
"""A calibrator, and the corrections behind it."""

NUM_JUDGING, NUM_CONFIRMING = 128, 256
"""Validation samples on which every candidate is judged, and on which what was chosen has to prove itself again."""
CHANCE = 0.3
"""A score on n samples that is worse by a share below 0.3 / sqrt(n) may be so by chance: it is what a tenth of all
decisions make of it if they tip either way at random. Noise in decibels tells candidates apart far more finely."""
AUTO: tuple[tuple[str, ...], ...] = (("re-estimation", "bias-correction"), ("equalization",), ("headroom",))
"""What is tried one after the other, and of each at most one kept."""
LOUD_DB = 20.0
"""With less signal to noise than this, learned rounding is worth its minutes."""


@dataclass(frozen=True)
class Trial:
    """How a candidate did on the first `samples` of the validation data; `sqnr_db` is against the float network."""

    score: float
    sqnr_db: float
    samples: int


def judged(graph: GraphModule, reference: Scored, task: Task, num_samples: int) -> Trial:
    """How a quantized graph does on the first validation samples, against what the float network answered there.

    In float: exact integers tell the same to a step in one value of 10,000, and take four times as long.
    """
    interpreter = FloatInterpreter(graph)
    scored = evaluate(TorchSession(lambda *inputs: interpreter.run(*inputs), task), task, "validation", num_samples)
    noise = min(stats.sqnr_db(reference.outputs[name], scored.outputs[name]) for name in task.outputs)
    return Trial(scored.score, noise, scored.samples)


def choose(
    graph_of: Callable[[Candidate], GraphModule],
    net: torch.nn.Module,
    task: Task,
    calibrator: str,
    corrections: Sequence[str] | Literal["auto"],
) -> tuple[Candidate, dict[str, Trial]]:
    """The best candidate, and how each that was tried did, by its name.

    First the calibrator with the least noise, then one correction after another that makes it less. A score that is
    worse by more than `CHANCE` rules a candidate out.
    """
    tried: dict[str, Trial] = {}

    @cache
    def reference(num_samples: int) -> Scored:
        return evaluate(TorchSession(net, task), task, "validation", num_samples)

    @cache
    def trial(candidate: Candidate, num_samples: int = NUM_JUDGING) -> Trial:
        tried[label(candidate)] = found = judged(graph_of(candidate), reference(num_samples), task, num_samples)
        step(0, f"{label(candidate)}: {task.metric.name} {found.score:.4f}, {found.sqnr_db:.1f} dB")
        return found

    def worse(one: Trial, other: Trial) -> bool:
        return bool(task.metric.drop(other.score, one.score) > CHANCE / one.samples**0.5 * abs(other.score))

    def with_less_noise(found: Candidate, options: Iterable[Candidate]) -> Candidate:
        sound = [option for option in options if not worse(trial(option), trial(found))]
        return max([found, *sound], key=lambda candidate: trial(candidate).sqnr_db)

    fixed = () if corrections == "auto" else in_order(corrections)
    firsts = [(name, *fixed) for name in (CALIBRATORS if calibrator == "auto" else [calibrator])]
    with progress.stage("choose calibrator and corrections", len(AUTO) + 2) as step:
        sign = 1 if task.metric.higher_is_better else -1
        plain = found = with_less_noise(max(firsts, key=lambda first: sign * trial(first).score), firsts)
        step(1, label(found))
        if corrections == "auto":
            for names in AUTO:
                found = with_less_noise(found, [_with(found, name) for name in names])
                step(1, label(found))
            if trial(found).sqnr_db < LOUD_DB:
                found = with_less_noise(found, [_with(found, "adaround")])
            if found != plain and trial(found).samples == NUM_JUDGING:  # there are more
                first, last = trial(plain, NUM_CONFIRMING), trial(found, NUM_CONFIRMING)
                found = plain if worse(last, first) or last.sqnr_db < first.sqnr_db else found
        step(1, label(found))
    return found, tried


def label(candidate: Candidate) -> str:
    """Its name in tables."""
    return " + ".join(candidate)


def in_order(corrections: Iterable[str]) -> tuple[str, ...]:
    """Names of corrections in the order in which they are done, each once."""
    return tuple(name for name in CORRECTIONS if name in corrections)


def _with(candidate: Candidate, name: str) -> Candidate:
    return candidate[0], *in_order({*candidate[1:], name})
