"""Simulated quantization: from a float module to the graph that every deployed int8 file is held against."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgedl import progress, stats
from edgedl.core import Activation, Batch, Split, Task
from edgedl.measure import Scored, evaluate
from edgedl.quantize.calibrators import CALIBRATORS
from edgedl.quantize.operators import OPERATORS, Role
from edgedl.quantize.quantizer import ActivationObserver, TableQuantizer, is_float, layer_of
from edgedl.quantize.schemes import Scheme
from edgedl.torch_session import BATCH_SIZE, TorchSession

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
DEQUANTIZE_WEIGHT = torch.ops.quantized_decomposed.dequantize_per_channel.default


@dataclass(frozen=True)
class Trial:
    """How one calibrator did on validation data."""

    score: float
    sqnr_db: float


@dataclass(frozen=True)
class Simulation:
    """A network quantized for one scheme. `graph` takes any batch size and computes in float on int8 grids."""

    graph: GraphModule
    task: Task
    scheme: Scheme
    calibrator: str
    tried: Mapping[str, Trial]
    _evaluated: dict[Split, Scored] = field(default_factory=dict, repr=False)

    def evaluated(self, split: Split) -> Scored:
        """The simulated network over a whole split."""
        if split not in self._evaluated:
            self._evaluated[split] = evaluate(TorchSession(self.graph, self.task), self.task, split)
        return self._evaluated[split]

    def output_scales(self) -> dict[str, float]:
        """The int8 step of each output, by name; outputs that are not quantized are missing."""
        (output,) = (node for node in self.graph.graph.nodes if node.op == "output")
        values = output.args[0]
        values = values if isinstance(values, list | tuple) else [values]
        scales = {}
        for name, node in zip(self.task.outputs, values, strict=True):
            if node.target == DEQUANTIZE:
                scales[name] = float(node.args[1])
        return scales

    def grids(self) -> list[dict[str, Any]]:
        """Scale and zero point of every activation in execution order, for the run folder."""
        return [
            {"layer": source_layer(node), "scale": node.args[1], "zero_point": node.args[2]}
            for node in self.graph.graph.nodes
            if node.target == QUANTIZE
        ]


class Quantization:
    """How a network is to be quantized; the graph for a scheme is made when first asked for, and kept."""

    precision = "int8"

    def __init__(self, net: torch.nn.Module, task: Task, calibrator: str) -> None:
        self.net, self.task, self.calibrator = net, task, calibrator
        self.simulations: dict[str, Simulation] = {}

    def simulated(self, scheme: Scheme) -> Simulation:
        """Raises `UnsupportedOperator` for an operator that is not in the table."""
        if scheme.name not in self.simulations:
            self.simulations[scheme.name] = simulate(self.net, self.task, scheme, self.calibrator)
        return self.simulations[scheme.name]


def simulate(net: torch.nn.Module, task: Task, scheme: Scheme, calibrator: str = "auto") -> Simulation:
    """Static int8: calibrates on the calibration split, once; `auto` keeps the calibrator that validates best.

    The best is the one with the highest validation score, among equals the one whose outputs have
    the highest signal-to-noise ratio against the float network's.
    """
    prepared = prepare_pt2e(export_graph(net, task), TableQuantizer(scheme))
    with progress.stage(f"calibrate ({scheme.name})", len(task.arrays("calibration")[next(iter(task.inputs))])) as step:
        with torch.no_grad():
            for batch in task.batches("calibration", BATCH_SIZE):
                prepared(*(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in task.inputs))
                step(len(next(iter(batch.values()))))
    reference = evaluate(TorchSession(net, task), task, "validation")
    found: dict[str, Simulation] = {}
    tried: dict[str, Trial] = {}
    names = list(CALIBRATORS) if calibrator == "auto" else [calibrator]
    with progress.stage(f"choose calibrator ({scheme.name})", len(names)) as step:
        for name in names:
            found[name] = Simulation(_convert(prepared, name), task, scheme, name, tried)
            scored = found[name].evaluated("validation")
            noise = min(stats.sqnr_db(reference.outputs[key], scored.outputs[key]) for key in task.outputs)
            tried[name] = Trial(scored.score, noise)
            step(1, f"{name}: {task.metric.name} {scored.score:.4f}, {noise:.1f} dB")
    sign = 1 if task.metric.higher_is_better else -1
    best = max(names, key=lambda name: (sign * tried[name].score, tried[name].sqnr_db))
    return found[best]


def export_graph(net: torch.nn.Module, task: Task) -> GraphModule:
    """The ATen graph of a module, in evaluation mode, for any batch size."""
    net = copy.deepcopy(net).eval()
    # Two samples: an example of one would fix the batch size at one.
    example = tuple(torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in task.inputs.values())
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    return cast("GraphModule", torch.export.export(net, example, dynamic_shapes=dynamic).module())


def activations(graph: GraphModule, inputs: Sequence[np.ndarray]) -> list[Activation]:
    """Values of a graph on one batch, in execution order: the quantized ones, or all if none is quantized."""
    recorder = _Recorder(graph)
    with torch.no_grad():
        recorder.run(*(torch.from_numpy(np.ascontiguousarray(values)) for values in inputs))
    return recorder.quantized or recorder.computed


def source_layer(node: Node) -> str:
    """The module path of what a quantize node quantizes, or the name of the input that it quantizes."""
    source = node.args[0]
    assert isinstance(source, Node)
    return layer_of(source) or source.name


class _Recorder(Interpreter):
    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.quantized: list[Activation] = []
        self.computed: list[Activation] = []

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.target == QUANTIZE:
            scale, zero_point = cast("float", n.args[1]), cast("int", n.args[2])
            real = (value.numpy().astype(np.float32) - zero_point) * np.float32(scale)
            self.quantized.append(Activation(source_layer(n), real, scale))
        elif n.op == "call_function" and is_float(n):
            self.computed.append(Activation(layer_of(n) or n.name, value.numpy(), None))
        return value


def _convert(prepared: GraphModule, calibrator: str) -> GraphModule:
    converted = copy.deepcopy(prepared)
    for module in converted.modules():
        if isinstance(module, ActivationObserver):
            module.calibrator = calibrator
    graph = convert_pt2e(converted, fold_quantize=False)
    _round_biases(graph)
    return graph


def _round_biases(graph: GraphModule) -> None:
    """Puts biases on the grid of their kernel's int32 accumulator: input scale x weight scale.

    Runtimes store them so. Left between the grid's points, they make the simulation differ from the
    deployed file by one step in up to 0.8 % of a layer's outputs.
    """
    for node in graph.graph.nodes:
        operator = OPERATORS.get(str(node.target))
        if operator is None or operator.role is not Role.WEIGHTED or len(node.args) <= operator.bias:
            continue
        source, weight, bias = node.args[0], node.args[operator.weight], node.args[operator.bias]
        if bias is None:
            continue
        assert source.target == DEQUANTIZE and weight.target == DEQUANTIZE_WEIGHT
        grid = np.float32(source.args[1]) * _attribute(graph, weight.args[1].target)
        value = _attribute(graph, bias.target)
        with torch.no_grad():
            value.copy_(torch.round(value / grid) * grid)


def _attribute(graph: GraphModule, path: str) -> torch.Tensor:
    value: Any = graph
    for name in path.split("."):
        value = getattr(value, name)
    return cast("torch.Tensor", value)
