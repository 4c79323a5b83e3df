"""Removes whole channels with everything that hangs on them, in rounds of pruning and training."""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from edgedl import plugins, structure
from edgedl.core import MissingPackage, Model, Task, UsageError
from edgedl.learning import LearningStep
from edgedl.structure import Block, Coupled

if TYPE_CHECKING:
    import torch
    from torch import nn

    Inputs = tuple[torch.Tensor, ...]

TAYLOR_BATCH = 16
"""Samples whose gradients are taken together: over many, the effects of one sign and the other cancel."""

TOLERANCE = 1e-4
"""Of the largest output: what the order of a float32 sum may change."""

Share = Annotated[float, Field(gt=0, lt=1)]


class Prune(LearningStep):
    """Dependency-graph pruning (Fang et al., DepGraph, CVPR 2023): channels that are coupled over layers go together.

    Give `ratio`, the share of prunable channels to remove, or `macs`, the share of multiply-accumulates to keep.
    Each of the `iterations` takes an equal stride there, and then trains for `epochs`, if any.
    """

    use: str = "prune"
    ratio: Share | None = None
    macs: Share | None = None
    round_to: PositiveInt = 8
    importance: Literal["taylor", "l1", "l2", "bn", "random"] = "taylor"
    scope: Literal["global", "local"] = "global"
    iterations: PositiveInt = 5
    epochs: NonNegativeInt = 1
    lr: PositiveFloat = 5e-4

    cuts: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_goal(self) -> Prune:
        if (self.ratio is None) == (self.macs is None):
            raise ValueError("prune needs ratio (of channels to remove) or macs (share to keep), one of the two")
        return self

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `MissingPackage`, and `UsageError` where nothing can be removed or `macs` cannot be reached."""
        if not plugins.installed("torch_pruning"):
            raise MissingPackage(f"step prune needs torch-pruning: {plugins.pip_line('train')}")
        if model.quantization is not None:
            raise UsageError("prune: the network is quantized already; put prune before quantize")
        net, inputs = copy.deepcopy(model.net), sample(task)
        blocks, whole = prunable(net, inputs)
        original = {block.name: block.width for block in blocks}
        before = figures(net, inputs, task)
        rounds: list[dict[str, Any]] = []
        for number in range(1, self.iterations + 1):
            if number > 1:
                blocks = [block for block in structure.find_blocks(net, inputs)[0] if block.name in original]
            scores = score(net, task, blocks, IMPORTANCES[self.importance])
            for unscored in (block.name for block in blocks if block.name not in scores):
                whole[unscored] = "no batch norm to score it by"
                del original[unscored]
            pieces = self._in_order(blocks, scores, original)
            count = self._count(net, inputs, pieces, before["macs"], number / self.iterations)
            net = without(net, pieces[:count])
            found = figures(net, inputs, task)
            history: list[dict[str, float]] = []
            if count and self.epochs:
                net, history = self.fit(net, task, task.loss)
            trained = {"score_before_training": found["score"], "training": history}
            rounds.append((figures(net, inputs, task) if history else found) | trained)
        if rounds[-1]["widths"] == before["widths"]:
            raise UsageError(
                f"prune: too little is asked for, or round_to = {self.round_to} is too coarse: nothing is removed "
                f"from widths {sorted(set(original.values()))}; {_first(whole)}"
            )
        return model.after(self, {"before": before, "iterations": rounds, "left_whole": whole}, net=net)

    def _in_order(
        self, blocks: Sequence[Block], scores: Mapping[str, np.ndarray], original: Mapping[str, int]
    ) -> list[Piece]:
        """All that can be removed, what goes first in front; every beginning of the list is a valid choice.

        "global" ranks by score over the block's mean, as layers differ in scale; "local" thins all blocks alike.
        """
        pieces = []
        blocks = [block for block in blocks if block.name in scores]
        for block in blocks:
            values = scores[block.name]
            ascending = np.argsort(values, kind="stable")
            unit = math.lcm(self.round_to, block.lockstep) // block.lockstep
            gone, full = original[block.name] - block.width, original[block.name]
            start, end = 0, len(ascending) % unit or unit  # the first step leaves a multiple
            while end <= len(ascending) - unit:
                chosen = ascending[start:end]
                worth = float(values[chosen].mean() / (values.mean() or 1))
                share = (gone + block.lockstep * (start + end) / 2) / full
                pieces.append(Piece(block, chosen.tolist(), worth, share))
                start, end = end, end + unit
        if self.scope == "local":
            return sorted(pieces, key=lambda piece: piece.share)
        pieces.sort(key=lambda piece: piece.worth)
        sizes = np.array([len(piece.channels) * piece.block.lockstep for piece in pieces])
        full = sum(original.values())
        gone = sum(original[block.name] - block.width for block in blocks)
        shares = (gone + np.cumsum(sizes) - sizes / 2) / full
        return [replace(piece, share=float(share)) for piece, share in zip(pieces, shares, strict=True)]

    def _count(self, net: nn.Module, inputs: Inputs, pieces: Sequence[Piece], full: int, progress: float) -> int:
        """How many pieces go in this round; the goal is approached in equal strides."""
        if self.ratio is not None:
            return sum(piece.share <= self.ratio * progress for piece in pieces)
        assert self.macs is not None
        goal = full * (1 - (1 - self.macs) * progress)
        count = bisect_left(
            range(len(pieces) + 1), True, key=lambda num: macs(without(net, pieces[:num]), inputs) <= goal
        )
        if count > len(pieces):
            least = macs(without(net, pieces), inputs) / full
            raise UsageError(f"prune: macs = {self.macs} cannot be reached, the least is {least:.2f}; lower round_to")
        return count


@dataclass(frozen=True)
class Piece:
    """The channels of a block that go in one step, so that its width stays a multiple."""

    block: Block
    channels: Sequence[int]
    worth: float
    share: float
    """It goes as soon as at least this share of channels is to be removed."""


Importance = Callable[[Sequence[Coupled]], "torch.Tensor | None"]
"""What a block is coupled to -> a score for each channel, (channels,), higher for more worth; None: no basis."""


def l1(group: Sequence[Coupled]) -> torch.Tensor | None:
    """Sum of magnitudes (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017), over all that is coupled."""
    return _sum(item.rows(item.tensor.abs()) for item in group)


def l2(group: Sequence[Coupled]) -> torch.Tensor | None:
    """Euclidean norm of all that is coupled (the group norm of DepGraph)."""
    squares = _sum(item.rows(item.tensor.square()) for item in group)
    return None if squares is None else squares.sqrt()


def taylor(group: Sequence[Coupled]) -> torch.Tensor | None:
    """|sum of weight x gradient| of each coupled tensor: what removal does to the loss, at first order.

    After Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019. Needs gradients, which are
    taken of a few samples at a time, and the scores averaged.
    """
    effects = [item.rows(item.tensor * item.tensor.grad) for item in group if item.tensor.grad is not None]
    return _sum(effect.sum(dim=1, keepdim=True).abs() for effect in effects)


def bn(group: Sequence[Coupled]) -> torch.Tensor | None:
    """Magnitude of the batch norms' scales (Liu et al., Network Slimming, ICCV 2017)."""
    return _sum(item.rows(item.tensor.abs()) for item in group if item.is_scale)


def random(group: Sequence[Coupled]) -> torch.Tensor | None:
    """A control: whatever beats it has earned its name."""
    import torch

    return torch.rand(len(group[0].places))


IMPORTANCES: Mapping[str, Importance] = {"taylor": taylor, "l1": l1, "l2": l2, "bn": bn, "random": random}


def _sum(rows: Iterator[torch.Tensor]) -> torch.Tensor | None:
    sums = [values.sum(dim=1) for values in rows]
    return sum(sums[1:], start=sums[0]) if sums else None


def score(net: nn.Module, task: Task, blocks: Sequence[Block], importance: Importance) -> dict[str, np.ndarray]:
    """Scores of the channels of every block that has any; for `taylor` the mean over the calibration split."""
    import torch

    from edgedl.torch_session import named_outputs

    probe = copy.deepcopy(net).eval().requires_grad_(True)
    found: dict[str, list[np.ndarray]] = {block.name: [] for block in blocks}
    for arrays in task.batches("calibration", TAYLOR_BATCH) if importance is taylor else [{}]:
        if arrays:
            batch = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
            probe.zero_grad()
            outputs = named_outputs(probe(*(batch[name] for name in task.inputs)), task)
            task.loss(outputs, batch).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for block in blocks:
                scores = importance([item for item in block.tensors(probe) if item.tensor.requires_grad])
                if scores is not None:
                    found[block.name].append(scores.double().numpy())
    return {name: np.mean(scores, axis=0) for name, scores in found.items() if scores}


def without(net: nn.Module, pieces: Sequence[Piece]) -> nn.Module:
    """A copy of `net` that lacks the pieces."""
    removed: dict[tuple[str, str], set[int]] = {}
    for piece in pieces:
        for part in piece.block.slices:
            positions = removed.setdefault((part.path, part.attribute), set())
            positions.update(part.places[piece.channels].ravel().tolist())
    return structure.cut(net, removed)


def prunable(net: nn.Module, inputs: Inputs) -> tuple[list[Block], dict[str, str]]:
    """The blocks that can be pruned, and for layers that cannot the reason. Raises `UsageError` if there is none."""
    blocks, whole = structure.find_blocks(net, inputs)
    if objection(net, inputs, blocks):
        reasons = {block.name: objection(net, inputs, [block]) for block in blocks}
        blocks = [block for block in blocks if not reasons[block.name]]
        whole |= {name: reason for name, reason in reasons.items() if reason}
    if not blocks:
        raise UsageError(f"prune: no layer can be pruned: {_first(whole)}")
    return blocks, whole


def objection(net: nn.Module, inputs: Inputs, blocks: Sequence[Block]) -> str:
    """Why the blocks' channels cannot be removed, "" if they can; tried on random weights.

    Channels can stand in for each other if the network computes the same with any two of them swapped, in all
    that is coupled: whatever a dependency graph got wrong, such as the order of a flattened tensor, fails here.
    """
    import torch

    dice = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(net).eval()
    with torch.no_grad():
        for tensor in filter(torch.is_floating_point, probe.state_dict().values()):
            if tensor.ndim > 1:
                tensor.normal_(generator=dice).mul_((len(tensor) / tensor.numel()) ** 0.5)
            else:
                tensor.uniform_(0.5, 1.5, generator=dice)
        swapped = copy.deepcopy(probe)
        for block in blocks:
            order = torch.randperm(len(block.slices[0].places), generator=dice).numpy()
            for item in block.tensors(swapped):
                moved = item.tensor.index_select(item.dim, torch.from_numpy(item.places[order].ravel()))
                item.tensor.index_copy_(item.dim, torch.from_numpy(item.places.ravel()), moved)
        before, after = _run(probe, inputs), _run(swapped, inputs)
        for one, other in zip(before, after, strict=True):
            if not torch.allclose(one, other, rtol=0, atol=TOLERANCE * float(one.abs().max())):
                return "its channels are not interchangeable, as after a reshape or in attention heads"
        # Halves of some and single channels of others, so that what is cut into equal parts later shows up.
        halves = [len(block.slices[0].places) // 2 if index % 2 == 0 else 1 for index, block in enumerate(blocks)]
        pieces = [Piece(block, range(half), 0, 0) for block, half in zip(blocks, halves, strict=True)]
        try:
            shapes = [output.shape for output in _run(without(probe, pieces), inputs)]
        except structure.FAILURES as error:
            return f"the network does not run with fewer channels: {str(error).splitlines()[0]}"
    return "" if shapes == [output.shape for output in before] else "the shapes of the outputs depend on its width"


def _first(whole: Mapping[str, str]) -> str:
    """Some of the layers that keep their width, and why, for an error."""
    return "; ".join(f"{layer}: {reason}" for layer, reason in list(whole.items())[:3])


def _run(net: nn.Module, inputs: Inputs) -> list[Any]:
    outputs = net(*inputs)
    several = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [outputs] if hasattr(outputs, "shape") else list(several)


def sample(task: Task) -> Inputs:
    """Two samples of the calibration split: real ones, for a network that looks something up."""
    import torch

    batch = next(task.batches("calibration", 2))
    return tuple(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in task.inputs)


def figures(net: nn.Module, inputs: Inputs, task: Task) -> dict[str, Any]:
    """What a network is worth: widths of its layers, number of parameters, MACs for one sample, validation score."""
    from edgedl.measure import evaluate
    from edgedl.torch_session import TorchSession

    widths = ("out_channels", "out_features")
    return {
        "widths": {
            path: shape[key] for path, shape in structure.describe(net).items() for key in widths if key in shape
        },
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "macs": macs(net, inputs),
        "score": evaluate(TorchSession(net, task), task, "validation").score,
    }


def macs(net: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates for one sample, half of what PyTorch counts as operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net.eval()(*(values[:1] for values in inputs))
    return int(counter.get_total_flops()) // 2
