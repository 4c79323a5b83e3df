"""How much of a network has to go so that its file for a target takes so many milliseconds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgedl import measure, stats
from edgedl.blocks import Block
from edgedl.core import Batch, Session, Target, Task, UsageError
from edgedl.latency import NETWORK_BENCH, Deployment, LayerTable, Precision
from edgedl.prunable import Piece, without

if TYPE_CHECKING:
    import torch
    from torch import nn

    Inputs = tuple[torch.Tensor, ...]

CLOSE = 0.03
"""A file that is as near to its goal needs no further search."""
REACHED = 0.1
MAX_TRIES = 6


@dataclass(frozen=True)
class Tried:
    """A network without some of the pieces, as its file for the target was measured."""

    count: int
    predicted_ms: float
    measured_ms: float
    speedup: float
    """Over the network as it was given: above 1 it is faster."""
    slower: bool
    """Than the network that this round began with, or than the one that was given."""


class LatencyGoal:
    """Chooses what goes by a table of layers, and corrects it by what the networks' own files take.

    Times are relative to the network that was given, measured in turn with each that is tried: `given_ms` divided by
    the speed-up. That is what its file takes on a machine as quiet as it was in the beginning. They are taken before a
    round trains: shapes decide them, not weights.
    """

    def __init__(
        self,
        goal_ms: float,
        target: Target,
        precision: Precision,
        net: nn.Module,
        blocks: Sequence[Block],
        task: Task,
        inputs: Inputs,
    ) -> None:
        self.goal_ms, self.target, self.precision, self.task, self.inputs = goal_ms, target, precision, task, inputs
        self.deployed = Deployment(target, precision)
        self.given = net
        self.running = {"given": self.deployed.add(net, task)}
        times = measure.interleave(self.running, NETWORK_BENCH)
        self.given_ms = self.now_ms = stats.summarize(times["given"]).median
        self.table = LayerTable(target, precision)
        self.table.measure(net, inputs, blocks)
        if not self.table.predict(net, inputs):
            raise UsageError(f"prune: no layer of the network can be measured alone on target {target.label}")
        self.correction = 1.0
        self._correct(net)

    def __enter__(self) -> LatencyGoal:
        return self

    def __exit__(self, *_: object) -> None:
        self.deployed.stack.close()

    def check(self, pieces: Sequence[Piece]) -> float:
        """What is left to run without all of the pieces, in ms. Raises `UsageError` if the goal is out of reach."""
        least = self._try(self.given, pieces)[0].measured_ms
        if least > self.goal_ms * (1 + REACHED):
            raise UsageError(
                f"prune: latency_ms = {self.goal_ms:g} cannot be reached on target {self.target.label}: the network "
                f"takes {self.given_ms:.3g} ms, and {least:.3g} ms without all that can go; lower round_to"
            )
        return least

    def describe(self, least_ms: float) -> dict[str, Any]:
        """What was asked for, where, and from which file to which it can go."""
        return {
            "target": self.target.model_dump(),
            "precision": self.precision,
            "goal_ms": self.goal_ms,
            "given_ms": self.given_ms,
            "least_ms": least_ms,
        }

    def predict(self, net: nn.Module) -> float:
        """By the table, as far as it was corrected."""
        return self.correction * self.table.predict(net, self.inputs)

    def _correct(self, net: nn.Module) -> None:
        """Makes the table right for the network that is being pruned."""
        self.correction = self.now_ms / self.table.predict(net, self.inputs)

    def choose(
        self, net: nn.Module, pieces: Sequence[Piece], progress: float
    ) -> tuple[Sequence[Piece], dict[str, Any]]:
        """Which of the pieces go in this round, and what was measured; none where that makes the file slower.

        It is a beginning of the list; where one piece more is the step from too slow to too fast, another piece in
        its stead is tried. The file that comes nearest to the round's goal is taken.
        """
        goal = self.given_ms + (self.goal_ms - self.given_ms) * progress
        self._correct(net)
        too_slow, fast_enough = 0, len(pieces) + 1
        tried: list[Tried] = []
        opened: list[tuple[Sequence[Piece], tuple[Session, Batch]]] = []

        def attempt(chosen: Sequence[Piece]) -> float:
            found, session = self._try(net, chosen)
            tried.append(found)
            opened.append((chosen, session))
            self.correction *= found.measured_ms / found.predicted_ms
            return found.measured_ms

        def close() -> bool:
            return any(abs(found.measured_ms / goal - 1) <= CLOSE for found in tried)

        while self.now_ms > goal and fast_enough - too_slow > 1 and len(tried) < MAX_TRIES and not close():
            wanted = bisect_left(
                range(len(pieces)), True, key=lambda num: self.predict(without(net, pieces[:num])) <= goal
            )
            count = min(max(wanted, too_slow + 1), fast_enough - 1)
            if attempt(pieces[:count]) > goal:
                too_slow = count
            else:
                fast_enough = count
        others = [] if close() or fast_enough > len(pieces) else self._others(net, pieces, too_slow, goal)
        for other in others[: MAX_TRIES - len(tried)]:
            if not close():
                attempt(other)
        usable = [index for index, found in enumerate(tried) if not found.slower]
        nearest = min(usable, key=lambda index: abs(math.log(tried[index].measured_ms / goal)), default=None)
        best = None if nearest is None else tried[nearest]
        record = {
            "goal_ms": goal,
            "predicted_ms": best.predicted_ms if best else None,
            "measured_ms": best.measured_ms if best else None,
            "speedup": best.speedup if best else None,
            "undone": bool(tried) and best is None,
            "tried": [vars(found) for found in tried],
        }
        if best is None or nearest is None:
            return (), record
        chosen, self.running["before"] = opened[nearest]
        self.now_ms = best.measured_ms
        return chosen, record

    def _others(self, net: nn.Module, pieces: Sequence[Piece], count: int, goal: float) -> list[list[Piece]]:
        """A beginning of the list, with the next piece of a block that does not come next; the likeliest first."""
        seen, found = {pieces[count].block.name}, []
        for piece in pieces[count + 1 :]:
            if piece.block.name not in seen:
                seen.add(piece.block.name)
                found.append([*pieces[:count], piece])
        return sorted(found, key=lambda chosen: abs(self.predict(without(net, chosen)) - goal))

    def _try(self, net: nn.Module, chosen: Sequence[Piece]) -> tuple[Tried, tuple[Session, Batch]]:
        smaller = without(net, chosen)
        now = self.deployed.add(smaller, self.task)
        times = measure.interleave(self.running | {"now": now}, NETWORK_BENCH)
        speedup = stats.compare(times["given"], times["now"])
        step = stats.compare(times["before"], times["now"]) if "before" in times else speedup
        slower = speedup.median < 1 or step.verdict == "slower"
        return Tried(len(chosen), self.predict(smaller), self.given_ms / speedup.median, speedup.median, slower), now
