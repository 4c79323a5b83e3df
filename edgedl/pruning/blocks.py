"""The channels of a network: which of them hang together, and which can stand in for each other."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.core import UsageError
from edgedl.pruning.structure import DEPTHWISE, axes, width

if TYPE_CHECKING:
    import torch
    from torch import nn

    Origins = dict[tuple[str, str], list[tuple[str, str, np.ndarray]]]

LINEAR = {"out_features", "in_features"}

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What torch-pruning raises for a network that it does not understand."""


@dataclass(frozen=True)
class Slice:
    """What a block has of one width of a layer: for each channel the places there, (channels, places a channel)."""

    path: str
    attribute: str
    places: np.ndarray

    def at(self, channels: Sequence[int] | np.ndarray) -> Slice:
        """Some of its channels, in this order."""
        return replace(self, places=self.places[channels])


@dataclass(frozen=True)
class Block:
    """Channels that can stand in for each other, with everything in the network that is coupled to them.

    Where a grouped convolution, group norm or attention needs it, a "channel" here is `lockstep` of them: one a group,
    or a head. Of several lanes each loses as many channels as the others, whichever they are: the layers and
    directions of a recurrent layer, which have one width.
    """

    name: str
    lockstep: int
    lanes: tuple[tuple[Slice, ...], ...]

    @property
    def slices(self) -> tuple[Slice, ...]:
        return tuple(part for lane in self.lanes for part in lane)

    @property
    def num_channels(self) -> int:
        """How many can go one by one."""
        return len(self.lanes[0][0].places)

    @property
    def size(self) -> int:
        """What goes with one of them, over all lanes."""
        return self.lockstep * len(self.lanes)

    @property
    def width(self) -> int:
        return self.num_channels * self.size

    def tensors(self, net: nn.Module) -> Iterator[Coupled]:
        """The tensors that hold its channels, with their places in them."""
        for lane in self.lanes:
            yield from coupled(lane, net)

    def in_order(self, orders: Sequence[np.ndarray]) -> Block:
        """With the channels of each lane in another order, (channels,)."""
        lanes = zip(self.lanes, orders, strict=True)
        return replace(self, lanes=tuple(tuple(part.at(order) for part in lane) for lane, order in lanes))

    def by_heads(self, heads: int) -> Block:
        """With heads for channels, each as many that lie side by side."""
        (lane,) = self.lanes
        merged = tuple(replace(part, places=part.places.reshape(heads, -1)) for part in lane)
        return replace(self, lockstep=self.lockstep * (self.num_channels // heads), lanes=(merged,))


def coupled(lane: Sequence[Slice], net: nn.Module) -> Iterator[Coupled]:
    """The tensors that hold a lane's channels, with their places in them."""
    for part in lane:
        layer = net.get_submodule(part.path)
        for name, dim in axes(layer)[part.attribute].items():
            if (tensor := getattr(layer, name)) is None:
                continue
            places, size = part.places, tensor.shape[dim]
            if part.attribute == "in_channels" and size < width(layer, part.attribute):  # one group's share
                places = np.array([sorted(set(row)) for row in places % size])
            yield Coupled(tensor, dim, places, is_scale="num_features" in axes(layer) and name == "weight")


@dataclass(frozen=True)
class Coupled:
    """A tensor that holds channels of a block, at `places` (channels, places a channel) along `dim`."""

    tensor: torch.Tensor
    dim: int
    places: np.ndarray
    is_scale: bool
    """Whether it is the scale of a batch or instance norm."""

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """From values in the tensor's shape those of each channel, (channels, values a channel)."""
        return values.movedim(self.dim, 0)[self.places.ravel()].reshape(len(self.places), -1)


def find_blocks(net: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[list[Block], dict[str, str]]:
    """All blocks by torch-pruning's dependency graph, and for layers that must keep their width the reason.

    Raises `UsageError` if the network cannot be followed.
    """
    import torch_pruning as tp

    probe, origins = _followable(net)
    for parameter in probe.parameters():  # one number for all channels would only lead the graph astray
        parameter.requires_grad_(parameter.numel() > 1)
    paths = {module: path for path, module in probe.named_modules()}
    graph = tp.DependencyGraph()
    # It counts the channels of an image that is flattened by what follows, where a concatenation is no way back.
    graph.REGISTERED_PRUNERS[tp.ops.OPTYPE.RESHAPE].get_in_channels = lambda flat: _image_channels(
        graph.module2node[flat].grad_fn
    )
    blocks: list[Block] = []
    whole: dict[str, str] = {}
    covered: dict[str, set[int]] = defaultdict(set)
    with warnings.catch_warnings(), _parts_told_apart(), _channels_followed_once(graph, paths):
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(probe, inputs, forward_fn=lambda traced, given: traced(*given), verbose=False)
        except FAILURES as error:
            raise UsageError(f"torch-pruning cannot follow {type(net).__name__}: {_line(error)}") from error
        for layer, path in paths.items():
            if not isinstance(layer, (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR, tp.ops.TORCH_EMBED)):
                continue
            real = origins.get((path, "out_features"), [(path, "", None)])[0][0]
            if layer not in graph.module2node:
                whole[real] = "torch-pruning does not find it on the way to the outputs"
                continue
            roots = sorted(set(range(graph.get_out_channels(layer))) - covered[path])
            if not roots:
                continue
            try:
                group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, roots)
                slices = _slices(graph, group, paths)
                found = [_real(block, origins, net) for block in _blocks(real, roots, slices, probe)]
            except (_Whole, *FAILURES) as error:
                whole[real] = str(error) if isinstance(error, _Whole) else f"torch-pruning fails there: {_line(error)}"
                continue
            blocks += found
            for (other, attribute), places in slices.items():
                if attribute == next(iter(axes(probe.get_submodule(other)))):
                    covered[other].update(*places.values())
    for fused in _fused_attention(net):
        blocks = [block for block in blocks if not _touches(block, fused)] + [fused]
    return _of_one_width(blocks, whole, net), whole


def _touches(block: Block, other: Block) -> bool:
    """Whether they share a layer's width, such as what one layer gives."""
    widths = {(part.path, part.attribute) for part in other.slices}
    return any((part.path, part.attribute) in widths for part in block.slices)


def _followable(net: nn.Module) -> tuple[nn.Module, Origins]:
    """A copy whose recurrent layers and attention are plain layers, and what in the real network these stand for."""
    from edgedl.pruning import sequence_layers

    probe, origins = copy.deepcopy(net).eval(), {}
    for path, module in net.named_modules():
        if (made := sequence_layers.stand_in(module)) is None:
            continue
        stand_in, known = made
        if path:
            probe.set_submodule(path, stand_in)
        else:
            probe = stand_in
        for (layer, attribute), real in known.items():
            origins[f"{path}.{layer}".strip("."), attribute] = [(path, *part) for part in real]
    return probe, origins


@contextmanager
def _parts_told_apart() -> Iterator[None]:
    """Makes torch-pruning look up which part of a split an operator takes.

    It takes the first user for that of the first part, and so on; where a part has several, the graph could not be
    built.
    """
    from torch_pruning.dependency import shape_infer

    original = shape_infer.infer_channels_between

    def between(graph: Any, node: Any, user: Any) -> Any:
        sizes = getattr(node.module, "split_sizes", None)
        parts = [part for source, part in getattr(user.grad_fn, "next_functions", ()) if source is node.grad_fn]
        return sizes[parts[0]] if sizes and parts else original(graph, node, user)

    shape_infer.infer_channels_between = between
    try:
        yield
    finally:
        shape_infer.infer_channels_between = original


@contextmanager
def _channels_followed_once(graph: Any, paths: Mapping[Any, str]) -> Iterator[None]:
    """Makes torch-pruning follow each channel through an operator once, and none that a layer does not have.

    It compares whole lists of channels with those that it came with before. Where one channel is a factor of many, such
    as a gate of focal modulation, it takes it for the others, counts on from them at every round, and never ends.
    """
    from torch_pruning.dependency.group import Group

    had, add = Group.has_pruning_op, Group.add_dep

    def followed(group: Any, dep: Any) -> set[Any]:
        known: dict[Any, set[Any]] = group.__dict__.setdefault("followed", {})
        return known.setdefault((dep.target, dep.handler), set())

    def added(group: Any, dep: Any, idxs: Any) -> None:
        layer = dep.target.module
        if layer in paths and (known := axes(layer)):
            attribute = list(known)[0 if graph.is_out_channel_pruning_fn(dep.handler) else -1]
            if max((index[0] for index in idxs), default=0) >= width(layer, attribute):
                raise _Whole(f"torch-pruning misjudges {paths[layer]}, which depends on its width")
        followed(group, dep).update(idxs)
        add(group, dep, idxs)

    Group.has_pruning_op = lambda group, dep, idxs: followed(group, dep).issuperset(idxs)
    Group.add_dep = added
    try:
        yield
    finally:
        Group.has_pruning_op, Group.add_dep = had, add


def _image_channels(grad_fn: Any) -> int | None:
    """The channels of what a reshape was given, if that was an image (N, C, H, W)."""
    sizes: tuple[int, ...] = getattr(grad_fn, "_saved_self_sym_sizes", ())
    return int(sizes[1]) if len(sizes) == 4 else None


def _real(block: Block, origins: Origins, net: nn.Module) -> Block:
    """A block of the network that was followed, in the real one. Raises `_Whole`."""
    parts: list[Slice] = []
    for part in block.slices:
        for path, attribute, table in origins.get((part.path, part.attribute), [(part.path, part.attribute, None)]):
            places = part.places if table is None else table[part.places].reshape(len(part.places), -1)
            parts.append(Slice(path, attribute, places))
    real = replace(block, lanes=(tuple(parts),))
    for path in {part.path for part in parts if part.attribute == "heads"}:
        attention: Any = net.get_submodule(path)
        if real.num_channels != attention.num_heads * attention.head_dim:
            raise _Whole(f"it is only a part of the heads of {path}")
        real = real.by_heads(attention.num_heads)
    return real


def find_again(net: nn.Module, inputs: tuple[torch.Tensor, ...], known: Sequence[Block]) -> list[Block]:
    """What is left of known blocks in a network that has lost some of their channels."""
    found = {block.name: block for block in find_blocks(net, inputs)[0]}
    again = []
    for old in known:
        if (block := found.get(old.name)) is None:
            continue
        heads = heads_of(block, net) if old.lockstep != block.lockstep else None
        again.append(heads or block)
    return again


def heads_of(block: Block, net: nn.Module) -> Block | None:
    """The block with whole heads for channels, if its layers belong to attention that says how many it has."""
    from edgedl.pruning import sequence_layers

    owner = block.slices[0].path.rpartition(".")[0]
    attention = net.get_submodule(owner)
    heads = sequence_layers.heads_in(attention, block.num_channels)
    if not heads or len(block.lanes) > 1 or block.lockstep > 1:
        return None
    merged = block.by_heads(heads)
    counted = (Slice(owner, "heads", np.arange(heads)[:, None]),) if sequence_layers.counts_heads(attention) else ()
    return replace(merged, lanes=((*merged.lanes[0], *counted),))


def _fused_attention(net: nn.Module) -> Iterator[Block]:
    """Heads whose queries, keys and values come out of one layer, one after another: the graph mixes them up."""
    from edgedl.pruning import sequence_layers

    for path, attention in net.named_modules():
        linears = [(name, child) for name, child in attention.named_children() if axes(child).keys() == LINEAR]
        for name, taking in linears:
            inner = taking.out_features // 3
            giving = [other for other, child in linears if child.in_features == inner and child is not taking]
            if taking.out_features % 3 or len(giving) != 1 or not sequence_layers.heads_in(attention, inner):
                continue
            parts = (
                Slice(f"{path}.{name}".lstrip("."), "out_features", np.arange(3 * inner).reshape(3, inner).T),
                Slice(f"{path}.{giving[0]}".lstrip("."), "in_features", np.arange(inner)[:, None]),
            )
            if heads := heads_of(Block(parts[0].path, 1, (parts,)), net):
                yield heads


def _of_one_width(blocks: Sequence[Block], whole: dict[str, str], net: nn.Module) -> list[Block]:
    """Makes lanes of one block of all blocks that hold a recurrent layer's units; adds to `whole` what cannot be."""
    from edgedl.pruning import sequence_layers

    teams: list[tuple[set[str], list[Block]]] = []
    for block in blocks:
        layers = {part.path for part in block.slices if part.attribute.startswith("recurrent")}
        members = [block]
        for team in [team for team in teams if layers & team[0]]:
            teams.remove(team)
            layers, members = layers | team[0], team[1] + members
        teams.append((layers, members))
    joined = []
    for layers, members in teams:
        held = [(part.path, part.attribute) for block in members for part in block.slices]
        needed = [
            (path, f"recurrent_{lane}") for path in layers for lane in sequence_layers.lanes(net.get_submodule(path))
        ]
        alike = len({(block.num_channels, block.lockstep) for block in members}) == 1
        if alike and all(held.count(lane) == 1 for lane in needed):
            lanes = tuple(lane for block in members for lane in block.lanes)
            joined.append(replace(members[0], name=min(layers, default=members[0].name), lanes=lanes))
        else:
            for path in layers:
                whole.setdefault(path, "not all of its units can go, and all its layers and directions have one width")
    return joined


class _Whole(Exception):
    """Why a layer must keep its width."""


def _slices(graph: Any, group: Any, paths: Mapping[Any, str]) -> dict[tuple[str, str], dict[int, set[int]]]:
    """(module path, attribute) -> {channel of the group's first layer: places there}. Raises `_Whole`."""
    slices: dict[tuple[str, str], dict[int, set[int]]] = {}
    for item in group:
        node, gives = item.dep.target, graph.is_out_channel_pruning_fn(item.dep.handler)
        if node.type == node.type.OUTPUT or (gives and not node.outputs):
            raise _Whole("the network's outputs depend on its width")
        if node.type == node.type.PARAMETER:
            raise _Whole("a parameter outside of any layer depends on its width")
        if node.module not in paths or graph.get_out_channels(node) is None:
            continue  # an operation without weights, or one weight for all channels
        layer, path = node.module, paths[node.module]
        known = axes(layer)
        if not known:
            raise _Whole(f"{path} depends on its width, and is of an unknown kind, {type(layer).__name__}")
        attribute = list(known)[0 if gives else -1]
        places = slices.setdefault((path, attribute), {})
        for place, root in zip(item.idxs, item.root_idxs, strict=True):
            if place >= width(layer, attribute):
                raise _Whole(f"torch-pruning misjudges {path}, which depends on its width")
            places.setdefault(root, set()).add(place)
    return slices


def _blocks(
    name: str, roots: list[int], slices: Mapping[tuple[str, str], Mapping[int, set[int]]], net: nn.Module
) -> list[Block]:
    """Parts the channels of a group into those that are found in the same places, as often. Raises `_Whole`."""
    lockstep = 1
    for (path, attribute), places in slices.items():
        layer = net.get_submodule(path)
        groups = getattr(layer, "num_groups", 1 if axes(layer) is DEPTHWISE else getattr(layer, "groups", 1))
        if groups > 1 and len(set().union(*places.values())) < width(layer, attribute):
            raise _Whole(f"it is only a part of what {path} takes in groups")
        lockstep = math.lcm(lockstep, groups)
    roots, slices = _united(roots, slices)
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for root in roots:
        alike[tuple(len(places.get(root, ())) for places in slices.values())].append(root)
    if lockstep > 1 and (len(alike) > 1 or len(roots) % lockstep):
        raise _Whole("not all of its channels are in the same groups")
    blocks = []
    for index, (counts, members) in enumerate(alike.items()):
        size = len(members) // lockstep
        parts = []
        for count, ((path, attribute), places) in zip(counts, slices.items(), strict=True):
            if count:
                rows = [
                    sorted(place for root in members[first::size] for place in places[root]) for first in range(size)
                ]
                parts.append(Slice(path, attribute, np.array(rows)))
        blocks.append(Block(name if len(alike) == 1 else f"{name}[{index}]", lockstep, (tuple(parts),)))
    return blocks


def _united(
    roots: list[int], slices: Mapping[tuple[str, str], Mapping[int, set[int]]]
) -> tuple[list[int], dict[tuple[str, str], dict[int, set[int]]]]:
    """With one channel for all that share a place, such as a query, key and value out of one layer."""
    first = {root: root for root in roots}
    for places in slices.values():
        seen: dict[int, int] = {}
        for root, here in places.items():
            for place in here:
                old, new = first[root], first[seen.setdefault(place, root)]
                if old != new:
                    low, high = sorted((old, new))
                    first = {key: low if value == high else value for key, value in first.items()}
    united: dict[tuple[str, str], dict[int, set[int]]] = {}
    for key, places in slices.items():
        united[key] = {}
        for root, here in places.items():
            united[key].setdefault(first[root], set()).update(here)
    return sorted(set(first.values())), united


def _line(error: BaseException) -> str:
    """An error on one line, for libraries that write several or none."""
    return f"{type(error).__name__} {error}".strip().splitlines()[0]
