"""How much a channel is worth: functions from all that is coupled to it to a score, and the scores of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgedl.core import Task
from edgedl.pruning.blocks import Block, Coupled, coupled

if TYPE_CHECKING:
    import torch
    from torch import nn

TAYLOR_BATCH = 16
"""Samples whose gradients are taken together: over many, the effects of one sign and the other cancel."""

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
    """Scores of every block that has any, (lanes, channels); for `taylor` the mean over the calibration split."""
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
                groups = [[item for item in coupled(lane, probe) if item.tensor.requires_grad] for lane in block.lanes]
                scores = [values for group in groups if (values := importance(group)) is not None]
                if len(scores) == len(groups):
                    found[block.name].append(torch.stack(scores).double().numpy())
    return {name: np.mean(scores, axis=0) for name, scores in found.items() if scores}


def paired(block: Block, scores: np.ndarray) -> tuple[Block, np.ndarray]:
    """A block of several lanes with the least of each lane together, and the next; its scores, (channels,)."""
    if len(scores) == 1:
        return block, scores[0]
    orders = np.argsort(scores, axis=1, kind="stable")
    shares = np.take_along_axis(scores, orders, axis=1) / np.maximum(scores.mean(axis=1, keepdims=True), 1e-30)
    return block.in_order(list(orders)), shares.mean(axis=0)
