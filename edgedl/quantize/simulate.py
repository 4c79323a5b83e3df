"""Simulated quantization: from a float module to the graph that every deployed int8 file is held against."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgedl import progress
from edgedl.core import Activation, Split, Task
from edgedl.measure import Scored, evaluate
from edgedl.quantize import forms
from edgedl.quantize.choose import Candidate, Trial, choose
from edgedl.quantize.corrections import correct
from edgedl.quantize.equalization import equalize
from edgedl.quantize.folding import attribute, constant, fold_batch_norms
from edgedl.quantize.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, IntegerInterpreter, source_layer
from edgedl.quantize.operators import OPERATORS, Role
from edgedl.quantize.quantizer import ActivationObserver, TableQuantizer
from edgedl.quantize.rewrite import rewrite
from edgedl.quantize.schemes import Form, Scheme
from edgedl.recurrent import open_recurrent
from edgedl.torch_session import BATCH_SIZE, TorchSession

NUM_CORRECTING = 64
"""Calibration samples that corrections look at: they estimate means over samples and pixels, and more tell no more."""


@dataclass(frozen=True)
class Simulation:
    """A network quantized for one scheme.

    `graph` takes any batch size and computes in float on int8 grids: it is what exporters get.
    `session` runs it with the integer arithmetic of kernels: it is what deployed files are held against.
    """

    graph: GraphModule
    task: Task
    scheme: Scheme
    choice: Candidate
    """The calibrator, and the corrections behind it."""
    tried: Mapping[str, Trial]
    form: Form = "int8"
    _evaluated: dict[Split, Scored] = field(default_factory=dict, repr=False)

    def evaluated(self, split: Split) -> Scored:
        """The simulated network over a whole split."""
        if split not in self._evaluated:
            self._evaluated[split] = evaluate(self.session(), self.task, split)
        return self._evaluated[split]

    def session(self) -> TorchSession:
        """The simulated network, named arrays in and out."""
        return TorchSession(lambda *inputs: self._interpreter().run(*inputs), self.task)

    def activations(self, inputs: Sequence[np.ndarray]) -> list[Activation]:
        """Values inside on one batch, in execution order: the quantized ones, or all if none is quantized."""
        return _recorded(self._interpreter(record=True), inputs)

    @property
    def in_half(self) -> bool:
        """Whether it computes in half precision."""
        return self.form == "fp16" and self.scheme.computes_in_half

    def _interpreter(self, record: bool = False) -> IntegerInterpreter:
        if self.form.endswith("dynamic"):
            return forms.DynamicInterpreter(self.graph, self.scheme, record)
        return IntegerInterpreter(self.graph, self.scheme.runtime, record)

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
    """How a network is to be quantized; the graph for a scheme is made when first asked for, and kept.

    `calibrator` matters to the form int8 alone, `group_size` to 4-bit weights.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        task: Task,
        calibrator: str = "auto",
        corrections: Sequence[str] | Literal["auto"] = (),
        *,
        form: Form = "int8",
        group_size: int = 32,
    ) -> None:
        self.net, self.task, self.calibrator, self.corrections = net, task, calibrator, corrections
        self.form, self.group_size = form, group_size
        self.simulations: dict[str, Simulation] = {}

    @property
    def precision(self) -> str:
        return self.form

    def simulated(self, scheme: Scheme) -> Simulation:
        """Raises `UnsupportedOperator` for an operator that is not in the table, where the form is int8."""
        key = scheme.runtime or scheme.name
        if key not in self.simulations:
            self.simulations[key] = self._simulated(scheme)
        return self.simulations[key]

    def _simulated(self, scheme: Scheme) -> Simulation:
        if self.form != "int8":
            graph = forms.rewritten(export_graph(self.net, self.task), self.form, scheme, self.group_size)
            return Simulation(graph, self.task, scheme, (), {}, self.form)
        for twin in self.simulations.values():
            if twin.scheme.name == scheme.name:  # the same grids, run by other kernels
                return replace(twin, scheme=scheme, _evaluated={})
        return simulate(self.net, self.task, scheme, self.calibrator, self.corrections)


def simulate(
    net: torch.nn.Module,
    task: Task,
    scheme: Scheme,
    calibrator: str = "auto",
    corrections: Sequence[str] | Literal["auto"] = (),
) -> Simulation:
    """Static int8, calibrated on the calibration split; what is "auto" is chosen on validation data."""
    exported = export_graph(net, task)
    fold_batch_norms(exported)
    prepared = prepare_pt2e(exported, TableQuantizer(scheme))
    inputs = _first(task, NUM_CORRECTING)

    @cache
    def observed(equalized: bool) -> GraphModule:
        graph: GraphModule = copy.deepcopy(prepared)
        if equalized:
            equalize(graph, inputs)
        num_samples = len(next(iter(task.arrays("calibration").values())))
        with progress.stage(f"calibrate ({scheme.name})", num_samples) as step, torch.no_grad():
            for batch in task.batches("calibration", BATCH_SIZE):
                graph(*(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in task.inputs))
                step(len(next(iter(batch.values()))))
        return graph

    @cache
    def graph_of(candidate: Candidate) -> GraphModule:
        name, *names = candidate
        return _convert(observed("equalization" in names), name, names, inputs)

    choice, tried = choose(graph_of, net, task, calibrator, corrections)
    return Simulation(graph_of(choice), task, scheme, choice, tried)


def export_graph(net: torch.nn.Module, task: Task) -> GraphModule:
    """The ATen graph of a module, in evaluation mode, for any batch size."""
    net = copy.deepcopy(open_recurrent(net)).eval()
    # Two samples: an example of one would fix the batch size at one.
    example = tuple(torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in task.inputs.values())
    dynamic = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in example:
        dynamic[tensor] = {0: torch.export.Dim.DYNAMIC}
    return rewrite(torch.export.export(net, example, dynamic_shapes=dynamic))  # type: ignore[arg-type]


def activations(graph: GraphModule, inputs: Sequence[np.ndarray]) -> list[Activation]:
    """Values of a graph on one batch, in execution order: the quantized ones, or all if none is quantized."""
    return _recorded(IntegerInterpreter(graph, record=True), inputs)


def _recorded(recorder: IntegerInterpreter, inputs: Sequence[np.ndarray]) -> list[Activation]:
    with torch.no_grad():
        recorder.run(*(torch.from_numpy(np.ascontiguousarray(values)) for values in inputs))
    return recorder.quantized or recorder.computed


def _first(task: Task, num_samples: int) -> list[torch.Tensor]:
    """Inputs of the network from the calibration split."""
    arrays = task.arrays("calibration")
    return [torch.from_numpy(np.ascontiguousarray(arrays[name][:num_samples])) for name in task.inputs]


def _convert(
    prepared: GraphModule, calibrator: str, corrections: Sequence[str] = (), inputs: Sequence[torch.Tensor] = ()
) -> GraphModule:
    converted = copy.deepcopy(prepared)
    for module in converted.modules():
        if isinstance(module, ActivationObserver):
            module.calibrator = calibrator
    graph: GraphModule = convert_pt2e(converted, fold_quantize=False)
    correct(graph, inputs, corrections)
    _round_weights(graph)
    _round_biases(graph)
    _drop_saturating_activations(graph)
    for module in graph.modules():  # it knows one mode only, whatever this says; exporters look at it
        module.training = False
    return graph


def _drop_saturating_activations(graph: GraphModule) -> None:
    """Removes a ReLU or clamp whose bounds are the ends of the grid behind it: saturation does the same.

    onnxruntime fuses a convolution with the quantization behind it, but not across every clamp: such a
    layer would run in float.
    """
    for node in list(graph.graph.nodes):
        operator = OPERATORS.get(str(node.target))
        # One that stands alone stays: without it, nothing would be left between two grids.
        if operator is None or operator.role is not Role.ACTIVATES or node.args[0].target == DEQUANTIZE:
            continue
        (quantize,) = node.users  # every value in the graph is quantized
        scale, zero_point, low, high = quantize.args[1:5]
        ends = torch.tensor([(low - zero_point) * scale, (high - zero_point) * scale], dtype=torch.float64)
        if (node.target(ends.clone(), *node.args[1:]) - ends).abs().max() < scale / 2:
            quantize.replace_input_with(node, node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()


def _round_weights(graph: GraphModule) -> None:
    """Puts weights on their grid before they are quantized there.

    A converter that divides where torch multiplies would round one weight in 100,000 the other way.
    """
    for node in graph.graph.nodes:
        if node.target == DEQUANTIZE_WEIGHT:
            quantize = node.args[0]
            if quantize.args[0].op != "get_attr":
                continue
            weight, scale, zero_point = (attribute(graph, source.target).detach() for source in quantize.args[:3])
            axis, low, high, dtype = quantize.args[3:7]
            codes = quantize.target(weight, scale, zero_point, axis, low, high, dtype)
            rounded = node.target(codes, scale, zero_point, axis, low, high, dtype)
            with graph.graph.inserting_before(quantize):
                own = constant(graph, f"{quantize.name}_rounded", rounded)
            quantize.replace_input_with(quantize.args[0], own)
    graph.graph.eliminate_dead_code()
    graph.recompile()


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
        assert source.target == DEQUANTIZE
        assert weight.target == DEQUANTIZE_WEIGHT
        grid = torch.tensor(source.args[1]) * attribute(graph, weight.args[1].target)
        rounded = torch.round(attribute(graph, bias.target).detach() / grid) * grid
        # A constant of its own: the same bias may lie on another grid elsewhere.
        with graph.graph.inserting_before(node):
            own = constant(graph, f"{node.name}_bias_rounded", rounded)
        node.replace_input_with(bias, own)
    graph.graph.eliminate_dead_code()
    graph.recompile()
