"""Removes whole channels with everything that hangs on them, in one or several rounds of pruning and training."""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from edgedl import plugins
from edgedl.analysis.counting import macs, num_parameters
from edgedl.core import Graph, MissingPackage, Model, Target, Task, UsageError
from edgedl.pruning import structure
from edgedl.pruning.blocks import Block, find_again
from edgedl.pruning.importance import IMPORTANCES, paired, score
from edgedl.pruning.prunable import Piece, first_reasons, prunable, without
from edgedl.training.learning import TaughtStep
from edgedl.training.teachers import answers_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgedl.pruning.latency_goal import LatencyGoal

    Inputs = tuple[torch.Tensor, ...]

LEAST_COST = 1e-3
"""Of the highest cost of a channel: what one counts that seems to cost nothing, or less."""


Share = Annotated[float, Field(gt=0, lt=1)]


class Prune(TaughtStep):
    """Dependency-graph pruning (Fang et al., DepGraph, CVPR 2023): channels that are coupled over layers go together.

    Give one goal: `ratio`, the share of prunable channels to remove; `macs` or `size`, the share of
    multiply-accumulates or of parameters to keep; or `latency_ms`, what the file for `target` is to take for one
    sample, at `precision`. Each of the `iterations` takes an equal stride there, and then trains for `epochs`, if any;
    the same epochs are worth more after one cut than spread over several (docs/architecture.md has figures). With
    `weight`, the float network teaches meanwhile, as the last `train` step left it, or as it is given.
    Widths stay multiples of `round_to`; where that is too coarse for a latency, the last round leaves a few that are
    not. The file then takes at most 10 % more or less than `latency_ms`, or the report says that the goal was missed.
    """

    use: str = "prune"
    ratio: Share | None = None
    macs: Share | None = None
    size: Share | None = None
    latency_ms: PositiveFloat | None = None
    target: plugins.InnerTarget | None = None
    precision: Literal["fp32", "int8"] = "fp32"
    round_to: PositiveInt = 8
    importance: Literal["taylor", "l1", "l2", "bn", "random"] = "taylor"
    """By what channels are ranked: gradients times weights, the size of weights, scales of batch norms, or chance."""
    scope: Literal["global", "local"] = "global"
    """Whether blocks compete for the share that goes, or each gives its own."""
    iterations: PositiveInt = 1
    epochs: NonNegativeInt = 5
    lr: PositiveFloat = 5e-4

    cuts: ClassVar[bool] = True

    def refusal(self, graphs: Mapping[str, Graph]) -> str | None:
        return None if self.latency_ms is None else "latency_ms is that of one file"

    @model_validator(mode="after")
    def _one_goal(self) -> Prune:
        if sum(goal is not None for goal in (self.ratio, self.macs, self.size, self.latency_ms)) != 1:
            raise ValueError(
                "prune needs one goal: ratio (of channels to remove), macs or size (share to keep), or latency_ms"
            )
        if self.latency_ms is not None and self.target is None:
            raise ValueError('latency_ms needs the target that is to reach it: target = { use = "tflite" }')
        if self.latency_ms is None and (self.target is not None or self.precision != "fp32"):
            raise ValueError("target and precision belong to latency_ms")
        return self

    @property
    def measures_on(self) -> Target | None:
        return self.target

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `MissingPackage`, and `UsageError` where nothing can be removed or the goal cannot be reached."""
        if not plugins.installed("torch_pruning"):
            raise MissingPackage(f"step prune needs torch-pruning: {plugins.pip_line('train')}")
        if model.quantization is not None:
            raise UsageError("prune: the network is quantized already; put prune before quantize")
        net, inputs = copy.deepcopy(model.net), sample(task)
        blocks, whole = prunable(net, inputs)
        original = {block.name: block.width for block in blocks}
        before = figures(net, inputs, task)
        metrics: dict[str, Any] = {"before": before}
        rounds: list[dict[str, Any]] = []
        loss, samples = self.lesson(answers_of(model.teacher or model.net, task), task)
        with self._clock(net, blocks, task, inputs) as clock:
            for number in range(1, self.iterations + 1):
                if number > 1:
                    blocks = find_again(net, inputs, [block for block in blocks if block.name in original])
                scores = score(net, task, blocks, IMPORTANCES[self.importance])
                for unscored in (block.name for block in blocks if block.name not in scores):
                    whole[unscored] = "no batch norm to score it by"
                    del original[unscored]
                pieces = self._in_order(blocks, scores, original, self._costs(net, blocks, clock))
                timed: dict[str, Any] = {}
                chosen: Sequence[Piece]
                if clock is None:
                    chosen = self._enough(net, inputs, pieces, before, number / self.iterations)
                else:
                    if number == 1:
                        metrics["latency"] = clock.describe(clock.check(pieces))
                    chosen, timing = clock.choose(net, pieces, number / self.iterations)
                    timed = {"latency": timing}
                net = without(net, chosen)
                found = figures(net, inputs, task)
                history: list[dict[str, float]] = []
                if chosen and self.epochs:
                    net, history = self.fit(net, task, loss, samples=samples)
                trained = {"score_before_training": found["score"], "training": history}
                rounds.append((figures(net, inputs, task) if history else found) | trained | timed)
            if clock is not None:
                metrics["latency"] |= clock.conclude(net, trained=any(record["training"] for record in rounds))
        if rounds[-1]["widths"] == before["widths"] and self.latency_ms is None:
            raise UsageError(
                f"prune: too little is asked for, or round_to = {self.round_to} is too coarse: nothing is removed "
                f"from widths {sorted(set(original.values()))}; {first_reasons(whole)}"
            )
        return model.after(self, metrics | {"iterations": rounds, "left_whole": whole}, net=net)

    def _clock(
        self, net: nn.Module, blocks: Sequence[Block], task: Task, inputs: Inputs
    ) -> LatencyGoal | nullcontext[None]:
        if self.latency_ms is None or self.target is None:
            return nullcontext()
        from edgedl.pruning.latency_goal import LatencyGoal

        return LatencyGoal(self.latency_ms, self.target, self.precision, net, blocks, task, inputs)

    def _costs(self, net: nn.Module, blocks: Sequence[Block], clock: LatencyGoal | None) -> dict[str, float]:
        """What a channel of each block takes in ms by the table; 1 each where time is not the goal."""
        costs = dict.fromkeys((block.name for block in blocks), 1.0)
        if clock is not None:
            full = clock.predict(net)
            for block in blocks:
                gone = block.num_channels // 2
                if gone:
                    saved = full - clock.predict(without(net, [Piece(block, range(gone), 0, 0)]))
                    costs[block.name] = saved / (gone * block.size)
        return costs

    def _in_order(
        self,
        blocks: Sequence[Block],
        scores: Mapping[str, np.ndarray],
        original: Mapping[str, int],
        costs: Mapping[str, float],
    ) -> list[Piece]:
        """All that can be removed, what goes first in front; every beginning of the list is a valid choice.

        "global" ranks by score over the block's mean, as layers differ in scale, and over what a channel costs (as
        Shen et al., Structural Pruning via Latency-Saliency Knapsack, NeurIPS 2022); "local" thins all blocks alike.
        """
        pieces = []
        blocks = [block for block in blocks if block.name in scores]
        cheapest = max(max(costs.values(), default=1.0), 1e-12) * LEAST_COST
        for block in blocks:
            block, values = paired(block, scores[block.name])
            ascending = np.argsort(values, kind="stable")
            unit = math.lcm(self.round_to, block.lockstep) // block.lockstep
            gone, full = original[block.name] - block.width, original[block.name]
            start, end = 0, len(ascending) % unit or unit  # the first step leaves a multiple
            while end <= len(ascending) - unit:
                chosen = ascending[start:end]
                worth = float(values[chosen].mean() / (values.mean() or 1)) / max(costs[block.name], cheapest)
                share = (gone + block.size * (start + end) / 2) / full
                pieces.append(Piece(block, chosen.tolist(), worth, share))
                start, end = end, end + unit
        if self.scope == "local":
            return sorted(pieces, key=lambda piece: piece.share)
        pieces.sort(key=lambda piece: piece.worth)
        sizes = np.array([len(piece.channels) * piece.block.size for piece in pieces])
        full = sum(original.values())
        gone = sum(original[block.name] - block.width for block in blocks)
        shares = (gone + np.cumsum(sizes) - sizes / 2) / full
        return [replace(piece, share=float(share)) for piece, share in zip(pieces, shares, strict=True)]

    def _enough(
        self, net: nn.Module, inputs: Inputs, pieces: Sequence[Piece], before: Mapping[str, Any], progress: float
    ) -> Sequence[Piece]:
        """The pieces that go in this round; the goal is approached in equal strides."""
        if self.ratio is not None:
            return pieces[: sum(piece.share <= self.ratio * progress for piece in pieces)]
        name, share = ("macs", self.macs) if self.macs is not None else ("size", self.size)
        assert share is not None

        def left(chosen: Sequence[Piece]) -> float:
            smaller = without(net, chosen)
            if name == "macs":
                return macs(smaller, inputs) / float(before["macs"])
            return num_parameters(smaller) / float(before["parameters"])

        goal = 1 - (1 - share) * progress
        count = bisect_left(range(len(pieces) + 1), True, key=lambda num: left(pieces[:num]) <= goal)
        if count > len(pieces):
            least = left(pieces)
            raise UsageError(f"prune: {name} = {share} cannot be reached, the least is {least:.2f}; lower round_to")
        chosen = pieces[:count]
        if self.scope == "local":
            return chosen
        # The last piece may be a large one, beside which others need not go: the best of them stay.
        while True:
            rests = [[one for one in chosen if one is not last] for last in _lasts(chosen)]
            spared = next((rest for rest in rests if left(rest) <= goal), None)
            if spared is None:
                return chosen
            chosen = spared


def _lasts(chosen: Sequence[Piece]) -> list[Piece]:
    """Of each block the piece that goes last, the only one that can stay by itself; the best first."""
    lasts = {piece.block.name: piece for piece in chosen}
    return sorted(lasts.values(), key=lambda piece: piece.worth, reverse=True)


def sample(task: Task) -> Inputs:
    """Two samples of the calibration split: real ones, for a network that looks something up."""
    import torch

    batch = next(task.batches("calibration", 2))
    return tuple(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in task.inputs)


def figures(net: nn.Module, inputs: Inputs, task: Task) -> dict[str, Any]:
    """What a network is worth: widths of its layers, number of parameters, MACs for one sample, validation score."""
    from edgedl.measure import evaluate
    from edgedl.torch_session import TorchSession

    widths = ("out_channels", "out_features", "nf", "embedding_dim", "hidden_size", "num_heads")
    return {
        "widths": {
            path: shape[key] for path, shape in structure.describe(net).items() for key in widths if key in shape
        },
        "parameters": num_parameters(net),
        "macs": macs(net, inputs),
        "score": evaluate(TorchSession(net, task), task, "validation").score,
    }
