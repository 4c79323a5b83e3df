"""What each layer of a float network costs, and how it takes quantization and pruning, alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import __version__, measure, progress
from edgedl.analysis import attribution
from edgedl.analysis.counting import Layer, inside, layers, macs_of_modules
from edgedl.core import EdgedlError, Task, UsageError
from edgedl.origin import layer_of
from edgedl.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgedl.pruning.blocks import Block
    from edgedl.quantize.choose import Trial

SCHEMA = 1
"""Version of `analysis.json`; it rises when a key changes its meaning or goes."""
NUM_SAMPLES = 1024
"""Of the validation split, at most: every layer is scored twice."""
FOLLOWS = "it multiplies nothing, and follows the layers around it"
NORMS = ("num_features", "num_channels", "normalized_shape", "num_parameters")
"""The widths of what has a number for each channel of another layer."""


@dataclass(frozen=True)
class Measured:
    """The times of the operators of a float file on one target, or why there are none."""

    name: str
    operators: Sequence[Mapping[str, Any]] = ()
    file: Path | None = None
    runtime: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Quantized:
    """How layers do in static int8, each alone, by path; for those that cannot be, why."""

    calibrator: str | None = None
    together: Trial | None = None
    """The whole network in int8."""
    alone: Mapping[str, Trial] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruned:
    """How the network does when one layer has lost some of its channels, by path; for those that cannot, why."""

    alone: Mapping[str, Mapping[str, Any]]
    reasons: Mapping[str, str]


def analyze(
    net: nn.Module, recipe: Recipe, measured: Sequence[Measured], environment: Mapping[str, Any], ratio: float
) -> dict[str, Any]:
    """What `analysis.json` says of a float network; docs/run-folder.md describes its keys."""
    from edgedl.torch_session import TorchSession

    task, net = recipe.task, net.eval()
    inputs = _sample(task)
    ran, found = macs_of_modules(net, inputs), layers(net, inputs)
    reference = measure.evaluate(TorchSession(net, task), task, "validation", NUM_SAMPLES)
    quantized = _quantize_each(net, recipe, found, reference)
    pruned = _prune_each(net, task, found, ratio)
    shares = {entry.name: _shares(entry, ran, found) for entry in measured}
    return {
        "schema": SCHEMA,
        "edgedl": __version__,
        "recipe": recipe.name,
        "environment": environment,
        "metric": dataclasses.asdict(task.metric),
        "samples": reference.samples,
        "score": reference.score,
        "parameters": sum(layer.parameters for layer in found),
        "macs": sum(layer.macs for layer in found),
        "quantization": {
            "target": recipe.targets[0].label,
            "scheme": recipe.targets[0].scheme.name,
            "calibrator": quantized.calibrator,
            "together": _trial(quantized.together),
        },
        "pruning": {"ratio": ratio, "importance": "taylor"},
        "targets": [_target(entry, shares[entry.name]) for entry in measured],
        "layers": [
            {
                "layer": layer.path,
                "kind": layer.kind,
                "shapes": {name: list(shape) for name, shape in layer.shapes.items()},
                "parameters": layer.parameters,
                "macs": layer.macs,
                "time_share": {name: each.layers.get(layer.path) for name, each in shares.items() if each},
                "quantized": _trial(quantized.alone.get(layer.path)),
                "not_quantized": quantized.reasons.get(layer.path),
                "pruned": pruned.alone.get(layer.path),
                "not_pruned": pruned.reasons.get(layer.path),
            }
            for layer in found
        ],
    }


def read(folder: Path) -> dict[str, Any] | None:
    """The analysis in a run folder; None if there is none that this version can read."""
    try:
        content = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else None


def _target(entry: Measured, shares: attribution.Shares | None) -> dict[str, Any]:
    reason = entry.reason or "its runtime gave no times of operators"
    return {
        "target": entry.name,
        "runtime": entry.runtime,
        "time_ms": shares.time_ms if shares else None,
        "other": {"share": shares.other, "operators": list(shares.operators)} if shares else None,
        "reason": None if shares else reason,
    }


def _shares(entry: Measured, ran: Mapping[str, int], found: Sequence[Layer]) -> attribution.Shares | None:
    """How the time divides among layers; None without times, or without the file that tells whose an operator is."""
    if entry.file is None:
        return None
    made = attribution.names_in(entry.file, ran, found)
    return attribution.shares(entry.operators, found, made) if made else None


def _sample(task: Task) -> tuple[torch.Tensor, ...]:
    """Two real samples, for a network that looks something up."""
    import numpy as np
    import torch

    batch = next(task.batches("calibration", 2))
    return tuple(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in task.inputs)


def _quantize_each(net: nn.Module, recipe: Recipe, found: Sequence[Layer], reference: measure.Scored) -> Quantized:
    """Static int8 for each layer alone, with the calibrator that is best for the whole network."""
    from edgedl.quantize import choose, sensitivity
    from edgedl.quantize.simulate import simulate

    task = recipe.task
    known = {layer.path: layer for layer in found}
    try:
        simulation = simulate(net, task, recipe.targets[0].scheme, float_ops=recipe.limits.float_ops == "allow")
    except EdgedlError as error:
        return Quantized(reasons=dict.fromkeys(known, str(error)))
    together = choose.judged(simulation.graph, reference, task, NUM_SAMPLES)
    trials = sensitivity.of_parts(simulation, net, task, lambda node: inside(layer_of(node), known) or "", NUM_SAMPLES)
    alone = {path: trials[path] for path in known if path in trials}
    return Quantized(simulation.choice[0], together, alone, {path: FOLLOWS for path in known if path not in alone})


def _prune_each(net: nn.Module, task: Task, found: Sequence[Layer], ratio: float) -> Pruned:
    """Takes a share of each layer's least important channels, with all that hangs on them, and trains nothing."""
    from edgedl.pruning.importance import paired, score, taylor
    from edgedl.pruning.prunable import Piece, sound_blocks, without
    from edgedl.torch_session import TorchSession

    try:
        blocks, whole = sound_blocks(net, _sample(task))
    except UsageError as error:
        return Pruned({}, {layer.path: str(error) for layer in found})
    worth = score(net, task, blocks, taylor)
    alone: dict[str, Mapping[str, Any]] = {}
    reasons: dict[str, str] = {}
    scores: dict[tuple[str, ...], float] = {}
    with progress.stage("prune each alone", len(found)) as step:
        for layer in found:
            own = [block for block in blocks if _widens(block, layer.path, net)]
            pieces = []
            for block in own:
                ordered, values = paired(block, worth[block.name])
                gone = values.argsort(kind="stable")[: min(round(ratio * len(values)), len(values) - 1)]
                pieces += [Piece(ordered, gone.tolist(), 0, 0)] if len(gone) else []
            names = tuple(piece.block.name for piece in pieces)
            if not pieces:
                reasons[layer.path] = _why_whole(layer.path, blocks, own, whole)
            else:
                if names not in scores:
                    pruned = TorchSession(without(net, pieces), task)
                    scores[names] = measure.evaluate(pruned, task, "validation", NUM_SAMPLES).score
                removed = sum(len(piece.channels) * piece.block.size for piece in pieces)
                width = sum(block.width for block in own)
                alone[layer.path] = {"score": scores[names], "blocks": names, "removed": removed, "channels": width}
            step(1)
    return Pruned(alone, reasons)


def _widens(block: Block, path: str, net: nn.Module) -> bool:
    """Whether the block's channels are some that a layer gives."""
    from edgedl.pruning.structure import axes

    held = [part.attribute for part in block.slices if part.path == path]
    first = next(iter(axes(net.get_submodule(path))), "")
    return any(name.startswith("hidden_") or (name == first and name not in NORMS) for name in held)


def _why_whole(path: str, blocks: Sequence[Block], own: Sequence[Block], whole: Mapping[str, str]) -> str:
    if own:
        return "the ratio asks for less than one of its channels"
    for block in blocks:
        if any(part.path == path and part.attribute in NORMS for part in block.slices):
            return f"its channels go with those of {block.name}"
    return whole.get(path, "it has no channels of its own")


def _trial(trial: Trial | None) -> dict[str, float] | None:
    return None if trial is None else {"sqnr_db": trial.sqnr_db, "score": trial.score}
