"""How much of a network has to go so that its file for a target takes so many milliseconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from edgedl import measure, progress, stats
from edgedl.core import Batch, Session, Target, Task, UsageError
from edgedl.pruning.blocks import Block
from edgedl.pruning.latency import NETWORK_BENCH, Deployment, LayerTable, Precision
from edgedl.pruning.prunable import Piece, without

if TYPE_CHECKING:
    import torch
    from torch import nn

    Inputs = tuple[torch.Tensor, ...]
    Removed = Mapping[str, int]  # block -> channels

REACHED = 0.1
"""A file within this share of its goal has reached it."""
BELOW = (0.05, 0.08)
"""The last round's search ends with a file that is at most this share faster than its goal, and not slower: at first
it is worth another try to come nearer, later it isn't."""
AIM = 0.98
"""Of the goal: what the last round looks for, so that noise leaves the file below."""
MAX_TRIES = 8
PARTS = 4
"""Into so many parts a piece can be split where whole ones are too coarse."""
DETOUR = 0.005
"""How much nearer to the goal another choice has to come for each piece by which it leaves the order of worth."""
SPLIT = 0.01
"""The same for each width that it leaves between two multiples, where kernels are at their worst."""

TOO_SLOW = 1.2
"""A split that takes so many times what was expected is a hint that the target's kernels are made for multiples."""


@dataclass(frozen=True)
class Tried:
    """A network without some of its channels, as its file for the target was measured."""

    removed: Removed
    predicted_ms: float
    measured_ms: float
    speedup: float
    """Over the network as it was given: above 1 it is faster."""
    slower: bool
    """Than the network that this round began with, or than the one that was given."""


@dataclass(frozen=True)
class Point:
    """A network that was measured: its time by the table, and its file's."""

    removed: Removed
    table_ms: float
    measured_ms: float


@dataclass(frozen=True)
class Choice:
    """Pieces that could go, and what the table says is left then."""

    pieces: tuple[Piece, ...]
    table_ms: float
    moves: int = 0
    """By how many pieces it leaves the order of worth."""
    splits: int = 0
    """How many of those are parts, which leave a width between two multiples."""


class LatencyGoal:
    """Chooses what goes by a table of layers, and corrects it by what the networks' own files take.

    Latency is a staircase: kernels take channels by the tile. So a beginning of the list of pieces comes near to the
    goal, and the last round goes on with pieces exchanged between blocks, and parts of pieces, which make finer steps.

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
        before = self._alone()
        self.table = LayerTable(target, precision)
        self.table.measure(net, inputs, blocks)
        self.given_ms = self.now_ms = min(before, self._alone())  # what else the machine does comes and goes
        self.full_ms = self.table.predict(net, inputs)
        if not self.full_ms:
            raise UsageError(f"prune: no layer of the network can be measured alone on target {target.label}")
        self.slope = self.given_ms / self.full_ms

    def _alone(self) -> float:
        return stats.summarize(measure.interleave(self.running, NETWORK_BENCH)["given"]).median

    def __enter__(self) -> LatencyGoal:
        return self

    def __exit__(self, *_: object) -> None:
        self.deployed.stack.close()

    def check(self, pieces: Sequence[Piece]) -> float:
        """The least that can be reached, in ms. Raises `UsageError` if the goal is below it.

        That need not be what is left without all of the pieces: kernels can be slow with very few channels.
        """
        least = math.inf
        for count in (len(pieces), len(pieces) // 2):
            smaller = without(self.given, pieces[:count])
            found, _ = self._try(smaller, pieces[:count])
            gone = self.full_ms - self.table.predict(smaller, self.inputs)
            if gone > 0 and found.measured_ms < min(least, self.given_ms):
                self.slope = (self.given_ms - found.measured_ms) / gone
            least = min(least, found.measured_ms)
            if least <= self.goal_ms * (1 + REACHED):
                return least
        raise UsageError(
            f"prune: latency_ms = {self.goal_ms:g} cannot be reached on target {self.target.label}: the network "
            f"takes {self.given_ms:.3g} ms, and {least:.3g} ms without all that can go; lower round_to"
        )

    def describe(self, least_ms: float) -> dict[str, Any]:
        """What was asked for, where, and from which file to which it can go."""
        return {
            "target": self.target.model_dump(),
            "precision": self.precision,
            "goal_ms": self.goal_ms,
            "given_ms": self.given_ms,
            "least_ms": least_ms,
        }

    def conclude(self, net: nn.Module, trained: bool) -> dict[str, Any]:
        """What the network that is left takes, and whether that is what was asked for; a trained one's file anew."""
        if trained:
            times = measure.interleave(
                {"given": self.running["given"], "now": self.deployed.add(net, self.task)}, NETWORK_BENCH
            )
            self.now_ms = self.given_ms / stats.compare(times["given"], times["now"]).median
        missed = self.now_ms > self.goal_ms * (1 + REACHED)
        # One that was fast enough from the beginning has nothing to answer for.
        overshot = self.now_ms < self.goal_ms * (1 - REACHED) and self.given_ms > self.goal_ms
        return {"reached_ms": self.now_ms, "reached": not (missed or overshot)}

    def predict(self, net: nn.Module) -> float:
        """What a layer's channels are worth in ms, by the table, as far as it was corrected."""
        return self.slope * self.table.predict(net, self.inputs)

    def choose(self, net: nn.Module, pieces: Sequence[Piece], share: float) -> tuple[Sequence[Piece], dict[str, Any]]:
        """Which of the pieces go in this round, and what was measured; none where that makes the file slower.

        `share` is how much of the way to the goal the round is to go. Before the last round, the first file that is
        near enough will do. In the last one, a file that reaches its goal from below comes first, then the nearest.
        """
        goal, last = self.given_ms + (self.goal_ms - self.given_ms) * share, share == 1
        search = _Search(self, net, pieces, fine=last)
        opened: list[tuple[Sequence[Piece], tuple[Session, Batch]]] = []
        tried: list[Tried] = []

        def usable(one: Tried) -> bool:  # a round before the last must not go farther than the last is to go
            return not one.slower and (last or one.measured_ms >= self.goal_ms * (1 - BELOW[0]))

        def found(one: Tried) -> bool:
            ratio = one.measured_ms / goal
            below = BELOW[len(tried) > MAX_TRIES // 2]
            return usable(one) and (1 - below <= ratio <= 1 if last else abs(ratio - 1) <= REACHED)

        with progress.stage(f"{self.target.label}: search for {goal:.4g} ms", MAX_TRIES) as step:
            while self.now_ms > goal and len(tried) < MAX_TRIES and not any(map(found, tried)):
                choice = search.next(goal * (AIM if last else 1))
                reached = any(usable(one) and 1 - REACHED <= one.measured_ms / goal <= 1 for one in tried)
                if choice is None or (reached and abs(search.estimate(choice) / goal - 1) > REACHED):
                    break
                one, session = self._try(without(net, choice.pieces), choice.pieces, search.estimate(choice))
                tried.append(one)
                opened.append((choice.pieces, session))
                search.learn(choice, one.measured_ms)
                step(1, f"{one.measured_ms:.4g} ms")
        left = [index for index, one in enumerate(tried) if usable(one)]
        nearest = min(left, key=lambda index: _distance(tried[index].measured_ms / goal), default=None)
        best = None if nearest is None else tried[nearest]
        record = {
            "goal_ms": goal,
            "predicted_ms": best.predicted_ms if best else None,
            "measured_ms": best.measured_ms if best else None,
            "speedup": best.speedup if best else None,
            "undone": bool(tried) and all(one.slower for one in tried),
            "tried": [vars(one) for one in tried],
        }
        if best is None or nearest is None:
            return (), record
        chosen, self.running["before"] = opened[nearest]
        self.now_ms = best.measured_ms
        return chosen, record

    def _try(
        self, smaller: nn.Module, gone: Sequence[Piece], expected_ms: float = 0.0
    ) -> tuple[Tried, tuple[Session, Batch]]:
        now = self.deployed.add(smaller, self.task)
        times = measure.interleave(self.running | {"now": now}, NETWORK_BENCH)
        speedup = stats.compare(times["given"], times["now"])
        step = stats.compare(times["before"], times["now"]) if "before" in times else speedup
        slower = speedup.median < 1 or step.verdict == "slower"
        return Tried(_removed(gone), expected_ms, self.given_ms / speedup.median, speedup.median, slower), now


class _Search:
    """The choices of one round; each is expected to take what one like it took, and the table tells the rest."""

    def __init__(self, clock: LatencyGoal, net: nn.Module, pieces: Sequence[Piece], fine: bool) -> None:
        self.clock, self.net, self.pieces, self.fine = clock, net, pieces, fine
        self.tables: dict[tuple[tuple[str, int], ...], float] = {}
        self.points = [Point({}, self._table(()), clock.now_ms)]
        self.tried: list[Removed] = []
        self.splits = True

    def learn(self, choice: Choice, measured_ms: float) -> None:
        """Some kernels are so slow with odd widths that these say nothing of others; then no more are tried."""
        self.tried.append(_removed(choice.pieces))
        if choice.splits and measured_ms > self.estimate(choice) * TOO_SLOW:
            self.splits = False
        else:
            self.points.append(Point(self.tried[-1], choice.table_ms, measured_ms))

    def estimate(self, choice: Choice) -> float:
        """From the measured network that has lost the most alike."""
        removed = _removed(choice.pieces)
        nearest = min(self.points, key=lambda point: _apart(point.removed, removed))
        return max(nearest.measured_ms + self.clock.slope * (choice.table_ms - nearest.table_ms), 1e-6)

    def next(self, aim_ms: float) -> Choice | None:
        """The untried choice that promises most; None if there is none."""
        count = self._border(aim_ms)
        choices = [self._of(self.pieces[:num]) for num in (count, count + 1) if num <= len(self.pieces)]
        if self.fine:
            choices += self._variations(count)
        known = [{}, *self.tried]
        untried = [choice for choice in choices if _removed(choice.pieces) not in known]

        def cost(choice: Choice) -> float:
            off = abs(math.log(self.estimate(choice) / aim_ms))
            return off + DETOUR * choice.moves + SPLIT * choice.splits

        best = min(untried, key=cost, default=None)
        # A pair's time was only added up from the differences that its two make.
        return best and replace(best, table_ms=self._table(best.pieces))

    def _border(self, aim_ms: float) -> int:
        """The longest beginning of the list that is too slow by what is known."""
        low, high = 0, len(self.pieces)
        for point in self.points:  # measured beginnings of the list
            for count in range(low, high + 1):
                if _removed(self.pieces[:count]) == point.removed:
                    low, high = (max(low, count), high) if point.measured_ms > aim_ms else (low, max(count - 1, low))
                    break
        while low < high:
            middle = (low + high + 1) // 2
            if self.estimate(self._of(self.pieces[:middle])) > aim_ms:
                low = middle
            else:
                high = middle - 1
        return low

    def _variations(self, count: int) -> Iterator[Choice]:
        """A beginning of the list with more or less of one block or of two."""
        base = self.pieces[:count]
        start = self._table(base)
        singles: list[tuple[str, tuple[Piece, ...], Choice]] = []
        for name, moved, splits in self._moves(count):
            if splits and not self.splits:
                continue
            pieces = (*(piece for piece in base if piece.block.name != name), *moved)
            singles.append((name, moved, Choice(pieces, self._table(pieces), 1, splits)))
        yield from (choice for _, _, choice in singles)
        for (name, moved, one), (other, moved_too, two) in combinations(singles, 2):
            if name != other:
                kept = (piece for piece in base if piece.block.name not in (name, other))
                table = one.table_ms + two.table_ms - start
                yield Choice((*kept, *moved, *moved_too), table, 2, one.splits + two.splits)

    def _moves(self, count: int) -> Iterator[tuple[str, tuple[Piece, ...], int]]:
        """For each block the pieces that go instead of those in a beginning of the list, and how many are parts."""
        for name in dict.fromkeys(piece.block.name for piece in self.pieces):
            gone = [piece for piece in self.pieces[:count] if piece.block.name == name]
            left = [piece for piece in self.pieces[count:] if piece.block.name == name]
            if left:
                yield name, (*gone, left[0]), 0
                yield from ((name, (*gone, part), 1) for part in _parts(left[0]))
            if gone:
                yield name, tuple(gone[:-1]), 0
                yield from ((name, (*gone[:-1], part), 1) for part in _parts(gone[-1]))

    def _of(self, pieces: Sequence[Piece]) -> Choice:
        return Choice(tuple(pieces), self._table(pieces))

    def _table(self, pieces: Sequence[Piece]) -> float:
        key = tuple(sorted(_removed(pieces).items()))
        if key not in self.tables:
            self.tables[key] = self.clock.table.predict(without(self.net, pieces), self.clock.inputs)
        return self.tables[key]


def _parts(piece: Piece) -> Iterator[Piece]:
    """The least valuable channels of a piece, in some steps."""
    size = len(piece.channels)
    for count in sorted({size * part // PARTS for part in range(1, PARTS)} - {0}):
        yield replace(piece, channels=piece.channels[:count])


def _removed(pieces: Sequence[Piece]) -> dict[str, int]:
    """How many channels go of each block: of one block, those worth least go first."""
    removed: dict[str, int] = {}
    for piece in pieces:
        removed[piece.block.name] = removed.get(piece.block.name, 0) + len(piece.channels) * piece.block.size
    return removed


def _apart(some: Removed, others: Removed) -> int:
    """In how many channels two choices differ."""
    return sum(abs(some.get(name, 0) - others.get(name, 0)) for name in some.keys() | others.keys())


def _distance(ratio: float) -> tuple[bool, float]:
    """From the goal: one that is reached from below, then one reached, then whatever is nearest."""
    off = abs(math.log(ratio))
    return not 1 - REACHED <= ratio <= 1, off
