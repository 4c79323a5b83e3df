"""The shapes of a network: what sets them, how to cut channels out, and how to rebuild what is left from JSON.

A recipe builds a network in its full width, which the weights of a pruned one no longer fit. With the structure
beside them they do, and nothing is pickled.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgedl import files
from edgedl.core import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

STEP = "step.json"
"""What seals a step's folder."""

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
    "Conv1D": {"nf": {"weight": 1, "bias": 0}, "nx": {"weight": 0}},  # GPT-2's dense layers, the other way round
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), CONV),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), CONV_TRANSPOSE),
    **dict.fromkeys(("_BatchNorm", "_InstanceNorm"), NORM),
    "GroupNorm": {"num_channels": {"weight": 0, "bias": 0}},
    "LayerNorm": {"normalized_shape": {"weight": 0, "bias": 0}},
    "Embedding": {"embedding_dim": {"weight": 1}},
    "EmbeddingBag": {"embedding_dim": {"weight": 1}},
    "PReLU": {"num_parameters": {"weight": 0}},
}
"""By class name; those of sequences, which hold several matrices each, are in `sequence_layers`."""


def check_whole(folder: Path) -> None:
    """Raises `UsageError` where the files of a step are not those that its seal tells of, if it is there."""
    if (folder / STEP).is_file() and files.sealed(folder, STEP) is None:
        raise UsageError(f"{folder}: damaged: its files are not those that were written there; run its recipe again")


def axes(module: nn.Module) -> Axes:
    """The widths of a layer that pruning can change, and the tensors that they set; empty for an unknown module."""
    from edgedl.pruning import sequence_layers

    if special := sequence_layers.axes(module):
        return special
    kind = _kind(module)
    groups = width(module, "groups") if "in_channels" in kind else 1
    return DEPTHWISE if 1 < groups == module.in_channels == module.out_channels else kind


def width(module: nn.Module, attribute: str) -> int:
    """One of the widths that `axes` names."""
    value = getattr(module, attribute)
    return int(value[-1] if isinstance(value, tuple) else value)


def describe(net: nn.Module) -> Structure:
    """The shapes of every module that has any of its own, ready for JSON."""
    from edgedl.pruning import sequence_layers

    structure: Structure = {}
    for path, module in net.named_modules():
        kind = {"kind": type(module).__name__}
        if special := sequence_layers.sizes(module, _tensors(module)):
            structure[path] = kind | special
        elif known := _kind(module):
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
    from edgedl.pruning import sequence_layers

    structure, weights = describe(net), dict(net.state_dict())
    for (path, attribute), positions in removed.items():
        layer = net.get_submodule(path)
        known = axes(layer)
        for name, dim in known[attribute].items():
            key = f"{path}.{name}" if path else name
            if key in weights:  # a layer may have no bias
                kept = [place for place in range(weights[key].shape[dim]) if place not in positions]
                weights[key] = weights[key][(slice(None),) * dim + (kept,)]
        if name := sequence_layers.counts_heads(layer):
            structure[path][name] -= len(positions)
        elif sequence_layers.axes(layer):
            left = {name: weights[f"{path}.{name}" if path else name] for name in _tensors(layer)}
            structure[path] |= sequence_layers.sizes(layer, left)
        else:
            for name in _attributes(CONV) if known is DEPTHWISE else (attribute,):
                structure[path][name] -= len(positions)
    smaller = reshape(copy.deepcopy(net), structure)
    smaller.load_state_dict(weights)
    return smaller


def _resize(module: nn.Module, wanted: Mapping[str, Any]) -> None:
    """Sets the widths of a layer as far as it can have them, and gives it zeros of the new shapes."""
    from edgedl.pruning import sequence_layers

    if special := sequence_layers.sizes(module, _tensors(module)):
        if all(type(wanted[name]) is int and wanted[name] > 0 for name in special):
            sequence_layers.resize(module, wanted)
        return
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
