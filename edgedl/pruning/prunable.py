"""Which channels of a network can go: those that its graph names, after a trial on random weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgedl.core import UsageError
from edgedl.pruning import structure
from edgedl.pruning.blocks import FAILURES, Block, coupled, find_blocks, heads_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    Inputs = tuple[torch.Tensor, ...]

COUNTING = ("normalized_shape", "num_channels")
"""The widths of norms over channels."""

TOLERANCE = 1e-4
"""Of the largest output: what the order of a float32 sum may change."""


@dataclass(frozen=True)
class Piece:
    """The channels of a block that go in one step, so that its width stays a multiple."""

    block: Block
    channels: Sequence[int]
    worth: float
    share: float
    """It goes as soon as at least this share of channels is to be removed."""


def without(net: nn.Module, pieces: Sequence[Piece]) -> nn.Module:
    """A copy of `net` that lacks the pieces."""
    removed: dict[tuple[str, str], set[int]] = {}
    for piece in pieces:
        for part in piece.block.slices:
            positions = removed.setdefault((part.path, part.attribute), set())
            positions.update(part.at(piece.channels).places.ravel().tolist())
    return structure.cut(net, removed)


def prunable(net: nn.Module, inputs: Inputs) -> tuple[list[Block], dict[str, str]]:
    """The blocks that can be pruned, and for layers that cannot the reason. Raises `UsageError` if there is none."""
    blocks, whole = sound_blocks(net, inputs)
    if not blocks:
        raise UsageError(f"prune: no layer can be pruned: {first_reasons(whole)}")
    return blocks, whole


def sound_blocks(net: nn.Module, inputs: Inputs) -> tuple[list[Block], dict[str, str]]:
    """The blocks that can be pruned, maybe none, and for layers that cannot the reason.

    Raises `UsageError` if the network cannot be followed.
    """
    blocks, whole = find_blocks(net, inputs)
    if objection(net, inputs, blocks):
        found, blocks = blocks, []
        for block in found:
            reason = objection(net, inputs, [*blocks, block])
            heads = heads_of(block, net) if reason else None
            if not reason:
                blocks.append(block)
            elif heads and not objection(net, inputs, [*blocks, heads]):
                blocks.append(heads)
            else:
                whole[block.name] = reason
    return blocks, whole


def objection(net: nn.Module, inputs: Inputs, blocks: Sequence[Block]) -> str:
    """Why the blocks' channels cannot be removed, "" if they can; tried on random weights.

    Channels can stand in for each other if the network computes the same with any two of them swapped, in all
    that is coupled: whatever a dependency graph got wrong, such as the order of a flattened tensor, fails here.
    And to cut them has to be the same as to silence them, except for norms over channels, which see how many there are.
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
        for lane in (lane for block in blocks for lane in block.lanes):
            order = torch.randperm(len(lane[0].places), generator=dice).numpy()
            for item in coupled(lane, swapped):
                moved = item.tensor.index_select(item.dim, torch.from_numpy(item.places[order].ravel()))
                item.tensor.index_copy_(item.dim, torch.from_numpy(item.places.ravel()), moved)
        before = _run(probe, inputs)
        if not _alike(before, _run(swapped, inputs)):
            return "its channels are not interchangeable, as after a reshape or in attention heads"
        # Halves of some and single channels of others, so that what is cut into equal parts later shows up.
        # Of those that a group norm takes each by itself, none: they would go all at once.
        halves = [
            block.num_channels // 2 if index % 2 == 0 else min(1, block.num_channels - 1)
            for index, block in enumerate(blocks)
        ]
        pieces = [Piece(block, range(half), 0, 0) for block, half in zip(blocks, halves, strict=True)]
        plain = [piece for piece in pieces if not any(part.attribute in COUNTING for part in piece.block.slices)]
        try:
            shapes = [output.shape for output in _run(without(probe, pieces), inputs)]
            left = _run(without(probe, plain), inputs)
        except FAILURES as error:
            return f"the network does not run with fewer channels: {str(error).splitlines()[0]}"
        if shapes != [output.shape for output in before]:
            return "the shapes of the outputs depend on its width"
        silence(probe, plain)
        return "" if _alike(_run(probe, inputs), left) else "without its channels the network computes something else"


def silence(net: nn.Module, pieces: Sequence[Piece]) -> None:
    """Makes the pieces do nothing, in place: all that belongs to them becomes zero."""
    import torch

    with torch.no_grad():
        for piece in pieces:
            for item in piece.block.tensors(net):
                if isinstance(item.tensor, torch.nn.Parameter):
                    places = torch.from_numpy(item.places[list(piece.channels)].ravel())
                    item.tensor.index_fill_(item.dim, places, 0.0)


def _alike(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(
        bool(((one - other).abs() <= TOLERANCE * one.abs().max()).all())
        for one, other in zip(some, others, strict=True)
    )


def first_reasons(whole: Mapping[str, str]) -> str:
    """Some of the layers that keep their width, and why, for an error."""
    return "; ".join(f"{layer}: {reason}" for layer, reason in list(whole.items())[:3])


def _run(net: nn.Module, inputs: Inputs) -> list[Any]:
    outputs = net(*inputs)
    several = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [outputs] if hasattr(outputs, "shape") else list(several)
