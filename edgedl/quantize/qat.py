"""Quantization-aware training: a network that computes on int8 grids, with gradients that pass through rounding.

It runs the very graph that is simulated and deployed later, batch norms folded and grids where observers are, so that
training sees what kernels do. Sources: B. Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018 (folding, moving ranges); R. Krishnamoorthi, Quantizing Deep Convolutional
Networks for Efficient Inference, 2018 (batch norms by statistics of the batch around the folded weight, frozen late);
S. Esser et al., Learned Step Size Quantization, ICLR 2020, and S. Jain et al., Trained Quantization Thresholds,
MLSys 2020 (scales learned, by their logarithms).
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from torch.fx import Interpreter, Node

from edgedl.core import Task, UsageError
from edgedl.origin import layer_of
from edgedl.quantize.folding import Fold, attribute
from edgedl.quantize.operators import OPERATORS, Role
from edgedl.quantize.quantizer import ActivationObserver, Grid, Grids, PerChannelWeightObserver
from edgedl.quantize.schemes import Scheme
from edgedl.quantize.simulate import activation_observers, export_graph, prepare

RANGE_MOMENTUM = 0.01
"""What a batch counts for in moving ranges."""


class FakeQuantized(nn.Module):
    """`net` as its simulation computes it, but in float and trainable: its own parameters, and the scales if learned.

    For the first `settling` batches of training, batch norms use the statistics of the batch, and ranges move;
    then both stand still, as in a deployed file. Dropout is left out. Weights that are zero stay zero.
    """

    num_batches: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        scheme: Scheme,
        grids: Grids,
        ranges: Literal["learned", "moving"],
        settling: int,
        float_ops: bool = False,
    ) -> None:
        """Begins with `grids`. Raises `UnsupportedOperator`, and `UsageError` for a weight that cannot be trained."""
        super().__init__()
        self.net, self.settling = net, settling
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))  # so that it is kept with the weights
        kind = LearnedScale if ranges == "learned" else MovingRange
        prepared, folds = prepare(export_graph(net, task), scheme, trained=True, float_ops=float_ops)
        names = {observer: name for name, observer in activation_observers(prepared).items()}
        self.activations = nn.ModuleDict({name: kind(observer, grids[name]) for observer, name in names.items()})
        modules = dict(prepared.named_modules(remove_duplicate=False))
        self.shared = {name: names[module] for name, module in modules.items() if module in names}
        self.folds = {fold.operator: fold for fold in folds}
        own = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        self.own = {name for name, _ in own}
        self.kept = {name: value != 0 for name, value in own if value.ndim > 1 and (value == 0).any()}
        self.prepared = (prepared,)  # in a tuple, as its parameters are only copies of the network's
        self._check_weights()

    @property
    def settled(self) -> bool:
        return bool(self.num_batches >= self.settling)

    def forward(self, *inputs: torch.Tensor) -> Any:
        outputs = _Run(self).run(*inputs)
        self.num_batches += self.training
        return outputs

    def grids(self) -> dict[str, Grid]:
        """What the activations' grids have become."""
        return {name: cast("LearnedScale | MovingRange", module).grid() for name, module in self.activations.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter or buffer of the network by name, with its zeros for good."""
        value = attribute(self.net, name)
        return value * self.kept[name] if name in self.kept else value

    def _check_weights(self) -> None:
        made = {fold.weight for fold in self.folds.values()}
        for node in self.prepared[0].graph.nodes:
            operator = OPERATORS.get(str(node.target))
            if operator is not None and operator.role is Role.WEIGHTED:
                source = node.args[operator.weight].args[0]
                if source.op != "get_attr" or source.target in self.own | made:
                    continue
                # Constants, such as those of an average pooling, are only rounded.
                if isinstance(attribute(self.prepared[0], source.target), nn.Parameter):
                    raise UsageError(
                        f"quantize: layer {layer_of(node)} computes with {source.target}, which is no parameter of the "
                        f'network, so that method = "qat" cannot train it; use method = "ptq"'
                    )


class _Run(Interpreter):
    """One pass through the graph, with the network's parameters of this moment."""

    def __init__(self, owner: FakeQuantized) -> None:
        super().__init__(owner.prepared[0])
        self.owner = owner
        self.lively = owner.training and not owner.settled
        self.factors: dict[str, torch.Tensor] = {}
        self.made: dict[str, torch.Tensor] = {}
        for fold in owner.folds.values():
            factor = fold.factor(owner.tensor)
            if self.lively:  # the normalization behind it undoes it: only rounding depends on it
                factor = factor.detach()
            else:
                self.made[fold.bias] = fold.folded_bias(owner.tensor, factor)
            self.factors[fold.operator] = factor
            self.made[fold.weight] = fold.folded_weight(owner.tensor, factor)

    def fetch_attr(self, target: str) -> Any:
        if target in self.made:
            return self.made[target]
        return self.owner.tensor(target) if target in self.owner.own else super().fetch_attr(target)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self.owner.shared:
            return self.owner.activations[self.owner.shared[target]](args[0], settled=self.owner.settled)
        observer = self.submodules[target]
        if isinstance(observer, PerChannelWeightObserver):
            return _fake_quantized(args[0], observer)
        return super().call_module(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        if self.lively and n.name in self.owner.folds:
            return self._normalized(n, self.owner.folds[n.name])
        return super().run_node(n)

    def _normalized(self, node: Node, fold: Fold) -> torch.Tensor:
        """The operator with the folded weight, and then the batch norm as it was before folding."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        bias = OPERATORS[str(node.target)].bias
        args = (*args[:bias], None, *args[bias + 1 :])
        given = cast("Any", node.target)(*args, **kwargs)
        # Of a dense layer every place is a sample, whatever the dimensions before its features.
        values = given.flatten(0, -2) if str(node.target).startswith("aten.linear") else given
        tensor, factor = self.owner.tensor, self.factors[fold.operator]
        shape = (-1, *[1] * (values.ndim - 2))
        values = values / torch.where(factor == 0, 1.0, factor).reshape(shape)
        if fold.own_bias is not None:
            values = values + tensor(fold.own_bias).reshape(shape)
        scale, shift = (None if name is None else tensor(name) for name in (fold.scale, fold.shift))
        mean, variance = tensor(fold.mean), tensor(fold.variance)
        made = nn.functional.batch_norm(values, mean, variance, scale, shift, True, fold.momentum, fold.epsilon)
        return made.reshape(given.shape)


class LearnedScale(nn.Module):
    """The grid of an activation whose scale is learned; its zero point stays."""

    start: torch.Tensor

    def __init__(self, observer: ActivationObserver, grid: Grid) -> None:
        super().__init__()
        scale, self.zero_point = grid
        self.lowest, self.highest = observer.quant_min - self.zero_point, observer.quant_max - self.zero_point
        self.register_buffer("start", torch.tensor(scale))
        self.stretch = nn.Parameter(torch.zeros(()))
        """Of the scale, as a logarithm: one rate of learning suits scales of any size, and decay leads to the start."""

    def forward(self, x: torch.Tensor, settled: bool) -> torch.Tensor:
        # The share of the gradient that Esser et al. found to balance scales and weights.
        share = 1 / math.sqrt(x.numel() * max(-self.lowest, self.highest))
        stretch = self.stretch * share + (self.stretch * (1 - share)).detach()
        on_grid: torch.Tensor = OnGrid.apply(x, self.start * stretch.exp(), self.lowest, self.highest)  # type: ignore[no-untyped-call]
        return on_grid

    def grid(self) -> Grid:
        return float(self.start * self.stretch.detach().exp()), self.zero_point


class OnGrid(torch.autograd.Function):
    """The points of a grid next to `x` of any shape, a scalar `scale` apart, with the gradients of Esser et al.

    What autograd makes of its steps takes longer.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, lowest: int, highest: int) -> torch.Tensor:
        steps = x / scale
        codes = steps.round().clamp_(lowest, highest)
        ctx.save_for_backward(steps, codes)
        ctx.beyond = (_next(lowest, -math.inf), _next(highest, math.inf))  # a clamp's ends pass gradients
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        steps, codes = ctx.saved_tensors
        gradient = gradients[0]
        if gradient.stride() != codes.stride():
            gradient = torch.empty_like(codes).copy_(gradient)
        passed = torch.ops.aten.hardtanh_backward(gradient, steps, *ctx.beyond)
        return passed, _dot(gradient, codes) - _dot(passed, steps), None, None


def _next(number: int, towards: float) -> float:
    return float(np.nextafter(np.float32(number), np.float32(towards)))


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The sum of the products of two tensors without holes that lie in memory alike."""
    return torch.dot(one.as_strided((one.numel(),), (1,)), other.as_strided((other.numel(),), (1,)))


class MovingRange(nn.Module):
    """The grid of an activation that covers a moving average of its extremes."""

    ends: torch.Tensor

    def __init__(self, observer: ActivationObserver, grid: Grid) -> None:
        super().__init__()
        scale, zero_point = grid
        codes = torch.tensor([observer.quant_min - zero_point, observer.quant_max - zero_point])
        if observer.qscheme == torch.per_tensor_symmetric:
            codes = torch.tensor([-observer.quant_max, observer.quant_max])
        self.observer = observer
        self.register_buffer("ends", codes * scale / observer.widened)

    def forward(self, x: torch.Tensor, settled: bool) -> torch.Tensor:
        if self.training and not settled:
            seen = torch.stack([x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)])
            if self.observer.qscheme == torch.per_tensor_symmetric:
                seen = torch.stack([-seen.abs().amax(), seen.abs().amax()])
            self.ends.lerp_(seen, RANGE_MOMENTUM)
        scale, zero_point = self.grid()
        return torch.fake_quantize_per_tensor_affine(
            x, scale, zero_point, self.observer.quant_min, self.observer.quant_max
        )

    def grid(self) -> Grid:
        low, high = self.ends.tolist()
        return self.observer.grid(low, high)


def _fake_quantized(weight: torch.Tensor, observer: PerChannelWeightObserver) -> torch.Tensor:
    observer(weight)
    scales, zero_points = observer.calculate_qparams()
    return torch.fake_quantize_per_channel_affine(
        weight, scales, zero_points.int(), observer.ch_axis, observer.quant_min, observer.quant_max
    )
