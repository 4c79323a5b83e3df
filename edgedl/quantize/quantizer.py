"""The PT2E quantizer: annotates an exported graph from the operator table and observes its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import ObserverBase
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgedl.core import UnsupportedOperator
from edgedl.origin import NUM_NAMED, counted
from edgedl.quantize.calibrators import CALIBRATORS, SATURATING, Histogram, mse
from edgedl.quantize.folding import FILLS, attribute
from edgedl.quantize.operators import ELEMENTWISE, NEAREST, OPERATORS, TO_NUMBERS, Operator, Role
from edgedl.quantize.recurrent import cell_call
from edgedl.quantize.schemes import Scheme
from edgedl.tflite import loops

NUM_BINS = 8192
UNTIED = 1 + 2**-7
"""What the range of a sum or a mean is widened by. With scales in a ratio such as 1 to 2, half of all
results would lie exactly between two codes, where runtimes round apart."""
SMALLEST_SCALE = 2.0**-120
"""For a tensor of zeros: still a normal float32, and so are its products with other scales."""

Grid: TypeAlias = tuple[float, int]
"""Scale, which a graph keeps as float32, and zero point."""
Grids: TypeAlias = Mapping[str, Grid]
"""The grid of each activation, by the name of the observer that `simulate.prepare` gives it."""


class TableQuantizer(Quantizer):  # type: ignore[misc]  # torchao has no types
    """Annotates every operator of a graph for one scheme, by the table in `operators`.

    Operators on float values that the table does not list stay in float if `float_ops`; else they raise
    `UnsupportedOperator`, all together.
    """

    def __init__(self, scheme: Scheme, float_ops: bool = False) -> None:
        super().__init__()
        self.scheme, self.float_ops = scheme, float_ops
        self.activation = self._activation(ActivationObserver)
        self.mixture = self._activation(ActivationObserver.with_args(widened=UNTIED))
        self.table = self._activation(ActivationObserver, symmetric=True)  # runtimes look up nothing else
        self.centered_mixture = self._activation(ActivationObserver.with_args(widened=UNTIED), symmetric=True)
        self.grids: dict[Node, Any] = {}
        """Values whose grid is not that of a plain activation, or that keep that of another."""

    def annotate(self, model: GraphModule) -> GraphModule:
        computing = [node for node in model.graph.nodes if node.op == "call_function" and is_float(node)]
        foreign = [node for node in computing if not has_int8_form(node) and not enters(node)]
        if foreign and not self.float_ops:
            raise _refusal(foreign)
        self._center_factors(computing)
        for node in computing:
            if not enters(node) and has_int8_form(node):
                self._annotate(node, OPERATORS[str(node.target)])
            elif enters(node) and (step := pixel_step(model, node)) and not self.scheme.symmetric_activations:
                self.grids[node] = self._bounded(0, 256 * step)  # a code a pixel: nothing is lost
        _share_between_steps(model)
        return model

    def _center_factors(self, nodes: Sequence[Node]) -> None:
        """Gives the right sides of products of matrices a grid around zero: XNNPACK takes no other in a batch.

        Not what no value of is negative, which would lose a bit.
        """
        for node in nodes:
            if str(node.target) not in ("aten.matmul.default", "aten.bmm.default"):
                continue
            made = cast("Node", node.args[1])
            while (row := OPERATORS.get(str(made.target))) is not None and row.role is Role.MOVES:
                made = made.all_input_nodes[0]
            if row is None or (row.bounds is None and row.role not in (Role.ACTIVATES, Role.LOOKS_UP)):
                is_sum = row is not None and row.role is Role.COMPUTES
                self.grids[made] = self.centered_mixture if is_sum else self.table

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check: `annotate` refuses what the table does not list."""

    def _annotate(self, node: Node, operator: Operator) -> None:
        inputs = _activations(node, operator)
        if self.scheme.symmetric_activations and str(node.target) in ELEMENTWISE:
            # TensorRT takes no quantized constant that has to be broadcast; as float ones it fuses them.
            inputs = [source for source in inputs if source.op != "get_attr"]
        specs: dict[Node, Any] = {source: self.grids.get(source, self.activation) for source in inputs}
        output: Any = self.mixture if operator.role is Role.COMPUTES else self.activation
        if self.grids.get(node) in (self.table, self.centered_mixture) and operator.role is not Role.MOVES:
            output = self.grids[node]
        joined = operator.role is Role.ACTIVATES and joins_producer(node)
        if operator.bounds is not None:
            output = self.grids[node] = self._bounded(*operator.bounds)
        elif operator.role is Role.WEIGHTED:
            specs[cast("Node", node.args[operator.weight])] = self._weight(node, operator.weight_axis)
        elif operator.role is Role.LOOKS_UP:
            table = cast("Node", node.args[operator.weight])
            specs[table], output = self.table, SharedQuantizationSpec((table, node))
            self.grids[node] = self.table
        elif operator.role is Role.MOVES:
            first, *others = inputs
            grid = specs[first]
            if any(specs[other] != grid for other in others):
                grid = self.activation  # of a bounded value and another, say: both are put on a grid of their own
            self.grids[node] = grid
            specs = {first: grid} | dict.fromkeys(others, SharedQuantizationSpec((first, node)))
            output = SharedQuantizationSpec((first, node))
        elif joined:
            specs = {}  # the producer's kernel applies it: no grid between the two
            if OPERATORS[str(cast("Node", node.args[0]).target)].role is Role.COMPUTES:
                output = self.mixture
        if joined_activation(node) is not None:
            output = None
        elif output is self.activation and (function := _last_function(node)):
            output = self.grids[node] = self._activation(ActivationObserver.with_args(function=function))
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            input_qspec_map=specs, output_qspec=output, _annotated=True
        )

    def _activation(self, observer: Any, symmetric: bool = False) -> QuantizationSpec:
        symmetric = symmetric or self.scheme.symmetric_activations
        return QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=observer,
            quant_min=self.scheme.activation_min,
            quant_max=self.scheme.activation_max,
            qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine,
        )

    def _bounded(self, low: float, high: float) -> FixedQParamsQuantizationSpec:
        """The grid of all that an operator can give, zero on a code of it: kernels count on no other."""
        lowest, highest = self.scheme.activation_min, self.scheme.activation_max
        if self.scheme.symmetric_activations:
            scale, zero_point = max(-low, high) / highest, 0
        else:
            scale = (high - low) / (highest - lowest + 1)
            zero_point = min(lowest - round(low / scale), highest)
        return FixedQParamsQuantizationSpec(
            dtype=torch.int8,
            scale=scale,
            zero_point=zero_point,
            quant_min=lowest,
            quant_max=highest,
            qscheme=torch.per_tensor_symmetric if self.scheme.symmetric_activations else torch.per_tensor_affine,
        )

    def _weight(self, node: Node, axis: int) -> QuantizationSpec:
        alike = has_one_scale(node, self.scheme)
        return QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=PerChannelWeightObserver.with_args(alike=alike),
            quant_min=self.scheme.weight_min,
            quant_max=self.scheme.weight_max,
            qscheme=torch.per_channel_symmetric,
            ch_axis=axis,
        )


class ActivationObserver(ObserverBase):  # type: ignore[misc]
    """Collects the histogram of an activation; any calibrator can read a range off it afterwards.

    Bins cover [-reach, reach] with reach a power of two; a larger value doubles the reach by merging
    neighbouring bins, so that the result does not depend on the order of the batches.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        widened: float = 1.0,
        function: str = "",
        **_: object,
    ) -> None:
        super().__init__(dtype=dtype)
        self.function = function
        self.quant_min, self.quant_max, self.qscheme, self.widened = quant_min, quant_max, qscheme, widened
        self.counts = np.zeros(NUM_BINS)
        self.reach = 0.0
        self.low, self.high = np.inf, -np.inf
        self.is_finite = True
        self.chosen: Grid | None = None
        """What the value is quantized with in the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.detach()
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(high - low):
            self.is_finite = False
            return x
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = 2.0 ** np.ceil(np.log2(max(-low, high, 2.0**-126)))
        if self.reach == 0.0:
            self.reach = reach
        while self.reach < reach:
            self.counts = _double_reach(self.counts)
            self.reach *= 2
        self.counts += torch.histc(values, NUM_BINS, -self.reach, self.reach).double().numpy()
        return x

    def calculate_qparams(self, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale float32 and zero point int32, scalars."""
        assert self.chosen is not None
        scale, zero_point = self.chosen
        return torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32)

    def calibrated(self, calibrator: str) -> Grid:
        """The grid over what a calibrator makes of the histogram."""
        histogram = Histogram(self.counts, self.reach, self.low, self.high)
        symmetric = self.qscheme == torch.per_tensor_symmetric
        if self.function and calibrator != "min-max":
            return self.grid(*mse(histogram, symmetric, SATURATING[self.function]))
        return self.grid(*CALIBRATORS[calibrator](histogram, symmetric))

    def grid(self, low: float, high: float) -> Grid:
        """The grid that covers a range; on a symmetric one, low = -high."""
        symmetric = self.qscheme == torch.per_tensor_symmetric
        low, high = self.widened * low, self.widened * high
        num_steps = 2 * self.quant_max if symmetric else self.quant_max - self.quant_min
        scale, zero_point = max((high - low) / num_steps, SMALLEST_SCALE), 0
        if not symmetric:
            # Each side that has values keeps a code at least.
            lowest, highest = self.quant_min + (low < 0), self.quant_max - (high > 0)
            zero_point = int(np.clip(self.quant_min - round(low / scale), lowest, highest))
            # Rounding the zero point has moved the grid: it is stretched until it covers both ends again.
            steps_above, steps_below = self.quant_max - zero_point, zero_point - self.quant_min
            scale = max(high / max(steps_above, 1), -low / max(steps_below, 1), SMALLEST_SCALE)
        return scale, zero_point


ONE_SCALE = ("aten.linear.default", "aten.embedding.default")
"""Whose outputs may share one."""


def has_one_scale(node: Node, scheme: Scheme) -> bool:
    """Whether all outputs of a weighted layer have the same scale; those of convolutions need one each."""
    return scheme.granularity == "tensor" and str(node.target) in ONE_SCALE


class PerChannelWeightObserver(ObserverBase):  # type: ignore[misc]
    """The largest magnitude of each output channel of a weight or, if they are to be `alike`, of the whole weight."""

    def __init__(
        self,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        ch_axis: int,
        alike: bool = False,
        **_: object,
    ) -> None:
        super().__init__(dtype=dtype)
        self.alike = alike
        self.quant_min, self.quant_max, self.qscheme, self.ch_axis = quant_min, quant_max, qscheme, ch_axis
        self.reach = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.reach = x.detach().movedim(self.ch_axis, 0).flatten(1).abs().amax(1)
        if self.alike:
            self.reach = self.reach.max().expand_as(self.reach)
        return x

    def calculate_qparams(self, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales float32 and zero points int64, both (C,)."""
        # A channel of zeros (pruned away, or never trained) still needs a scale to divide by.
        scale = torch.where(self.reach > 0, self.reach / self.quant_max, torch.ones_like(self.reach))
        return scale, torch.zeros_like(scale, dtype=torch.int64)


def _share_between_steps(model: GraphModule) -> None:
    """Gives the values of all steps of a recurrent cell the grids of the first, where a loop has one for them all.

    In a sequence too short for a loop each step keeps its own: a state that grows from step to step needs them.
    """
    steps: dict[str, dict[str, list[Node]]] = {}
    for node in model.graph.nodes:
        found = cell_call(node.meta.get("nn_module_stack"))
        if found is not None and Q_ANNOTATION_KEY in node.meta:
            path, call = found
            steps.setdefault(path, {}).setdefault(call, []).append(node)
    for calls in steps.values():
        if len(calls) < loops.MIN_REPETITIONS:
            continue
        first, *others = calls.values()
        for nodes in others:
            for node, same in zip(nodes, first, strict=True):
                annotation = node.meta[Q_ANNOTATION_KEY]
                if isinstance(annotation.output_qspec, QuantizationSpec):
                    assert same.target == node.target
                    annotation.output_qspec = SharedQuantizationSpec(same)


def _last_function(node: Node) -> str:
    """The saturating function that makes a network's output of a value, which nothing else reads; "" if none does."""
    users = list(node.users)
    if len(users) != 1 or str(users[0].target) not in SATURATING or {u.op for u in users[0].users} != {"output"}:
        return ""
    return str(users[0].target)


def has_int8_form(node: Node) -> bool:
    """Whether the table lists an operator, and it has a weight of its own if it needs one."""
    operator = OPERATORS.get(str(node.target))
    if operator is None:
        return False
    return operator.role is not Role.WEIGHTED or not _is_given(cast("Node", node.args[operator.weight]))


def is_weighted(node: Node) -> bool:
    """Whether an operator multiplies by an int8 weight of its own."""
    operator = OPERATORS.get(str(node.target))
    return operator is not None and operator.role is Role.WEIGHTED and has_int8_form(node)


def enters(value: Node) -> bool:
    """Whether a value is an image of uint8 or a mask of truths as numbers, with nothing done to it but constants added
    and multiplied in, and its elements moved. There is no grid before it, and behind it that of the network's input.
    """
    kind = str(value.target)
    if kind == TO_NUMBERS:
        return _made_of(value) in (torch.uint8, torch.bool)
    if kind in ELEMENTWISE:
        left, right = value.args[:2]
        return isinstance(right, Node) and right.op == "get_attr" and isinstance(left, Node) and enters(left)
    operator = OPERATORS.get(kind)
    return operator is not None and operator.role is Role.MOVES and all(map(enters, value.all_input_nodes))


def _made_of(value: Node) -> torch.dtype:
    """What numbers are made of."""
    return cast("torch.dtype", value.all_input_nodes[0].meta["val"].dtype)


def pixel_step(graph: GraphModule, value: Node) -> float | None:
    """What the step from one pixel value to the next has become in one that `enters`; None where channels have steps
    of their own, or zero has not stayed zero, and in a mask.
    """
    if str(value.target) == TO_NUMBERS:
        return 1.0 if _made_of(value) == torch.uint8 else None
    source = cast("Node", value.args[0])
    if OPERATORS[str(value.target)].role is Role.MOVES:
        return pixel_step(graph, source) if str(value.target) not in FILLS else None
    factor = attribute(graph, str(cast("Node", value.args[1]).target))
    if str(value.target) != "aten.mul.Tensor" or factor.numel() != 1 or factor <= 0:
        return None
    step = pixel_step(graph, source)
    return None if step is None else step * float(factor)


def _is_given(value: Node) -> bool:
    """Whether a value depends on the network's inputs: no file has a grid for each channel of such a one."""
    return value.op == "placeholder" or any(map(_is_given, value.all_input_nodes))


def _refusal(nodes: Sequence[Node]) -> UnsupportedOperator:
    """Names the operators, and for each what is nearest to it and has an int8 form, where that is known."""
    said = []
    for found, times in counted(nodes).items():
        given = " with a weight that depends on inputs" if found.operator in OPERATORS else ""
        words = f"{replace(found, operator=found.operator + given)}{f', {times} times' if times > 1 else ''}"
        nearest = NEAREST.get(found.operator)
        said.append(f"{words}; try {nearest}" if nearest else words)
    more = [f"{len(said) - NUM_NAMED} more"] if len(said) > NUM_NAMED else []
    return UnsupportedOperator([*said[:NUM_NAMED], *more])


def is_float(node: Node) -> bool:
    """Whether a node's value is a floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def joined_activation(node: Node) -> Node | None:
    """The element-wise operator that the kernel of `node` applies to its own result, if any."""
    operator = OPERATORS.get(str(node.target))
    users = list(node.users)
    fuses = operator is not None and (operator.role is Role.WEIGHTED or str(node.target).startswith("aten.add"))
    if fuses and len(users) == 1:
        follower = OPERATORS.get(str(users[0].target))
        if follower is not None and follower.role is Role.ACTIVATES:
            return users[0]
    return None


def joins_producer(node: Node) -> bool:
    """Whether an element-wise operator is applied by the kernel of the operator before it."""
    source = node.args[0]
    return isinstance(source, Node) and joined_activation(source) is node


def _activations(node: Node, operator: Operator) -> list[Node]:
    found: list[Node] = []
    for position in operator.inputs:
        argument = node.args[position]
        for candidate in argument if isinstance(argument, list | tuple) else [argument]:
            if isinstance(candidate, Node) and is_float(candidate) and candidate not in found:
                found.append(candidate)
    return found


def _double_reach(counts: np.ndarray) -> np.ndarray:
    quarter = len(counts) // 4
    wider = np.zeros_like(counts)
    wider[quarter : 3 * quarter] = counts.reshape(-1, 2).sum(1)
    return wider
