"""The channels of a network: which hang together, how to cut them out, and how to rebuild what is left from JSON.

A recipe builds a network in its full width, which the weights of a pruned one no longer fit. With the structure
beside them they do, and nothing is pickled.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgedl.core import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

Structure: TypeAlias = dict[str, dict[str, Any]]
"""Module path -> {"kind": class name, and the attributes that set its shapes, or "shapes" where those are unknown}."""

Axes: TypeAlias = Mapping[str, Mapping[str, int]]
"""Attribute -> {tensor: dimension that grows with it}; what a layer gives first, what it takes last."""

CONV: Axes = {"out_channels": {"weight": 0, "bias": 0}, "in_channels": {"weight": 1}}
CONV_TRANSPOSE: Axes = {"out_channels": {"weight": 1, "bias": 0}, "in_channels": {"weight": 0}}
DEPTHWISE: Axes = {"groups": {"weight": 0, "bias": 0}}
NORM: Axes = {"num_features": {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0}}
KINDS: Mapping[str, Axes] = {
    "Linear": {"out_features": {"weight": 0, "bias": 0}, "in_features": {"weight": 1}},
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), CONV),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), CONV_TRANSPOSE),
    **dict.fromkeys(("_BatchNorm", "_InstanceNorm"), NORM),
    "GroupNorm": {"num_channels": {"weight": 0, "bias": 0}},
    "LayerNorm": {"normalized_shape": {"weight": 0, "bias": 0}},
    "Embedding": {"embedding_dim": {"weight": 1}},
    "EmbeddingBag": {"embedding_dim": {"weight": 1}},
    "PReLU": {"num_parameters": {"weight": 0}},
}
"""By class name, so that reading and writing structures needs no framework."""

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What torch-pruning raises for a network that it does not understand."""


def axes(module: nn.Module) -> Axes:
    """The widths of a layer that pruning can change, and the tensors that they set; empty for an unknown module."""
    kind = _kind(module)
    groups = width(module, "groups") if "in_channels" in kind else 1
    return DEPTHWISE if 1 < groups == module.in_channels == module.out_channels else kind


def width(module: nn.Module, attribute: str) -> int:
    """One of the widths that `axes` names."""
    value = getattr(module, attribute)
    return int(value[-1] if isinstance(value, tuple) else value)


def describe(net: nn.Module) -> Structure:
    """The shapes of every module that has any of its own, ready for JSON."""
    structure: Structure = {}
    for path, module in net.named_modules():
        kind = {"kind": type(module).__name__}
        if known := _kind(module):
            structure[path] = kind | {attribute: width(module, attribute) for attribute in _attributes(known)}
        elif tensors := _tensors(module):
            structure[path] = kind | {"shapes": {name: list(tensor.shape) for name, tensor in tensors.items()}}
    return structure


def reshape(net: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Gives a freshly built network the described shapes, in place; returns it, ready for its weights.

    Tensors whose shape changes are zeros afterwards. Raises `UsageError`, naming the layer, where the structure
    is of another network, or changes a module that is not known here.
    """
    own = describe(net)
    if stray := sorted(own.keys() ^ structure.keys()):
        raise UsageError(f"structure: layer {stray[0]} is not in {'it' if stray[0] in own else 'the network'}")
    for path, wanted in structure.items():
        if own[path] == wanted:
            continue
        module = net.get_submodule(path)
        if own[path].keys() == wanted.keys() and own[path]["kind"] == wanted["kind"]:
            _resize(module, wanted)
        if describe(module).get("") != wanted:
            raise UsageError(f"structure: layer {path} is {own[path]}, which cannot become {dict(wanted)}")
    return net


def cut(net: nn.Module, removed: Mapping[tuple[str, str], Collection[int]]) -> nn.Module:
    """A copy of `net` without some channels: (module path, attribute of `axes`) -> positions to remove.

    Of a grouped convolution's inputs, every group must lose the same ones.
    """
    structure, weights = describe(net), dict(net.state_dict())
    for (path, attribute), positions in removed.items():
        known = axes(net.get_submodule(path))
        for name in _attributes(CONV) if known is DEPTHWISE else (attribute,):
            structure[path][name] -= len(positions)
        for name, dim in known[attribute].items():
            key = f"{path}.{name}" if path else name
            if key in weights:  # a layer may have no bias
                kept = [place for place in range(weights[key].shape[dim]) if place not in positions]
                weights[key] = weights[key][(slice(None),) * dim + (kept,)]
    smaller = reshape(copy.deepcopy(net), structure)
    smaller.load_state_dict(weights)
    return smaller


def _resize(module: nn.Module, wanted: Mapping[str, Any]) -> None:
    """Sets the widths of a layer as far as it can have them, and gives it zeros of the new shapes."""
    known, groups = _kind(module), wanted.get("groups", 1)
    widths = [wanted[attribute] for attribute in _attributes(known)]
    if (
        not known
        or any(type(value) is not int or value < 1 for value in widths)
        or wanted.get("in_channels", 0) % groups
    ):
        return
    for attribute, tensors in known.items():
        for name, dim in tensors.items():
            if (tensor := _tensors(module).get(name)) is None:
                continue
            shape = list(tensor.shape)
            shape[dim] = wanted[attribute] // (groups if dim == 1 else 1)  # a filter sees its own group's channels
            values = tensor.detach().new_zeros(shape)
            setattr(module, name, type(tensor)(values, tensor.requires_grad) if name in module._parameters else values)
    for attribute in _attributes(known):
        setattr(module, attribute, (wanted[attribute],) if attribute == "normalized_shape" else wanted[attribute])


def _kind(module: nn.Module) -> Axes:
    kind = next((KINDS[base.__name__] for base in type(module).__mro__ if base.__name__ in KINDS), {})
    known = {"num_batches_tracked"}.union(*kind.values())
    # A norm over several dimensions has none of channels alone, a PReLU of one slope none at all.
    several = "normalized_shape" in kind and len(module.normalized_shape) > 1  # type: ignore[arg-type]
    single = "num_parameters" in kind and module.num_parameters == 1
    return {} if several or single or not known.issuperset(_tensors(module)) else kind


def _attributes(known: Axes) -> tuple[str, ...]:
    return (*known, "groups") if "in_channels" in known else tuple(known)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers that go into a state dict, without those of its children."""
    kept = {**module._parameters, **module._buffers}
    lost = module._non_persistent_buffers_set
    return {name: tensor for name, tensor in kept.items() if tensor is not None and name not in lost}


@dataclass(frozen=True)
class Slice:
    """What a block has of one width of a layer: for each channel the places there, (channels, places a channel)."""

    path: str
    attribute: str
    places: np.ndarray


@dataclass(frozen=True)
class Block:
    """Channels that can stand in for each other, with everything in the network that is coupled to them.

    Where a grouped convolution or group norm needs it, a "channel" here is `lockstep` of them, one a group.
    """

    name: str
    lockstep: int
    slices: tuple[Slice, ...]

    @property
    def width(self) -> int:
        return len(self.slices[0].places) * self.lockstep

    def tensors(self, net: nn.Module) -> Iterator[Coupled]:
        """The tensors that hold its channels, with their places in them."""
        for part in self.slices:
            layer = net.get_submodule(part.path)
            for name, dim in axes(layer)[part.attribute].items():
                if (tensor := getattr(layer, name)) is None:
                    continue
                places, size = part.places, tensor.shape[dim]
                if size < width(layer, part.attribute):  # one group's share of a grouped convolution
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

    probe = copy.deepcopy(net).eval()
    for parameter in probe.parameters():  # one number for all channels would only lead the graph astray
        parameter.requires_grad_(parameter.numel() > 1)
    paths = {module: path for path, module in probe.named_modules()}
    graph = tp.DependencyGraph()
    blocks: list[Block] = []
    whole: dict[str, str] = {}
    covered: dict[str, set[int]] = defaultdict(set)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(probe, inputs, forward_fn=lambda traced, given: traced(*given), verbose=False)
        except FAILURES as error:
            raise UsageError(f"torch-pruning cannot follow {type(net).__name__}: {_line(error)}") from error
        for layer, path in paths.items():
            if not isinstance(layer, (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR)):
                continue
            if layer not in graph.module2node:
                whole[path] = "torch-pruning does not find it on the way to the outputs"
                continue
            roots = sorted(set(range(graph.get_out_channels(layer))) - covered[path])
            if not roots:
                continue
            try:
                group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, roots)
                slices = _slices(graph, group, paths)
                found = _blocks(path, roots, slices, probe)
            except (_Whole, *FAILURES) as error:
                whole[path] = str(error) if isinstance(error, _Whole) else f"torch-pruning fails there: {_line(error)}"
                continue
            blocks += found
            for (other, attribute), places in slices.items():
                if attribute == next(iter(axes(probe.get_submodule(other)))):
                    covered[other].update(*places.values())
    return blocks, whole


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
        blocks.append(Block(name if len(alike) == 1 else f"{name}[{index}]", lockstep, tuple(parts)))
    return blocks


def _line(error: BaseException) -> str:
    """An error on one line, for libraries that write several or none."""
    return f"{type(error).__name__} {error}".strip().splitlines()[0]
