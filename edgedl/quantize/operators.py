"""The operator table: what each ATen operator needs to run in int8.

An operator that is not listed is an error that names it, never a silent float island. The table is of what is left
when `rewrite` has opened composite operators (attention, SiLU, splits, batch norms, average pooling).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """How an operator treats the grid of its inputs."""

    WEIGHTED = "has an int8 weight with a scale per output channel; its output gets a scale of its own"
    MULTIPLIES = "sums products of two activations, or multiplies them; its output gets a scale of its own"
    COMPUTES = "mixes or rescales values; its output gets a scale of its own"
    ACTIVATES = "computes element by element; right after a weighted operator or an addition it joins that kernel"
    LOOKS_UP = "takes rows of an int8 table with one scale; its output keeps that scale"
    MOVES = "only moves or selects data; its output keeps the scale of its input"


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    `inputs` are the positions of the activations among the arguments, `weight` and `bias` those of
    the parameters, `weight_axis` is the output-channel dimension of the weight.
    """

    role: Role
    inputs: tuple[int, ...] = (0,)
    weight: int = 1
    bias: int = 2
    weight_axis: int = 0
    bounds: tuple[float, float] | None = None
    """Where the outputs lie by definition: int8 kernels count on just this range."""


_CONVOLUTION = Operator(Role.WEIGHTED)
_BINARY = Operator(Role.COMPUTES, inputs=(0, 1))
_PRODUCT = Operator(Role.MULTIPLIES, inputs=(0, 1))
_UNARY = Operator(Role.COMPUTES)
_MOVE = Operator(Role.MOVES)
_ACTIVATION = Operator(Role.ACTIVATES)

OPERATORS: dict[str, Operator] = {
    # Weighted. A convolution's grouping, stride, padding and dilation don't matter to its grid.
    "aten.conv1d.default": _CONVOLUTION,
    "aten.conv2d.default": _CONVOLUTION,
    "aten.conv2d.padding": _CONVOLUTION,
    "aten.conv_transpose1d.default": Operator(Role.WEIGHTED, weight_axis=1),
    "aten.conv_transpose2d.input": Operator(Role.WEIGHTED, weight_axis=1),
    "aten.linear.default": _CONVOLUTION,
    "aten.embedding.default": Operator(Role.LOOKS_UP, inputs=(), weight=0),
    # Element by element, fused into the operator before.
    "aten.relu.default": _ACTIVATION,
    "aten.relu6.default": _ACTIVATION,
    "aten.hardtanh.default": _ACTIVATION,
    "aten.clamp.default": _ACTIVATION,
    # Products of two activations.
    "aten.matmul.default": _PRODUCT,
    "aten.bmm.default": _PRODUCT,
    "aten.mul.Tensor": _PRODUCT,
    # Computing.
    "aten.add.Tensor": _BINARY,
    "aten.sub.Tensor": _BINARY,
    "aten.div.Tensor": _BINARY,
    "aten.mean.dim": _UNARY,
    "aten.sum.dim_IntList": _UNARY,
    "aten.adaptive_avg_pool2d.default": _UNARY,
    "aten.neg.default": _UNARY,
    "aten.sigmoid.default": Operator(Role.COMPUTES, bounds=(0, 1)),
    "aten.tanh.default": Operator(Role.COMPUTES, bounds=(-1, 1)),
    "aten.softmax.int": Operator(Role.COMPUTES, bounds=(0, 1)),
    "aten.log_softmax.int": Operator(Role.COMPUTES, bounds=(-16, 0)),
    "aten.leaky_relu.default": _UNARY,
    "aten.prelu.default": _UNARY,
    "aten.softplus.default": _UNARY,
    "aten.gelu.default": _UNARY,
    "aten.hardswish.default": _UNARY,
    "aten.hardsigmoid.default": Operator(Role.COMPUTES, bounds=(0, 1)),
    "aten.sqrt.default": _UNARY,
    "aten.rsqrt.default": _UNARY,
    "aten.linalg_vector_norm.default": _UNARY,
    "aten.layer_norm.default": _UNARY,
    "aten.rms_norm.default": _UNARY,
    "aten.group_norm.default": _UNARY,
    # Moving or selecting.
    "aten.maximum.default": Operator(Role.MOVES, inputs=(0, 1)),
    "aten.minimum.default": Operator(Role.MOVES, inputs=(0, 1)),
    "aten.max_pool1d.default": _MOVE,
    "aten.max_pool2d.default": _MOVE,
    "aten.amax.default": _MOVE,
    "aten.upsample_nearest1d.vec": _MOVE,
    "aten.upsample_nearest2d.vec": _MOVE,
    "aten.pixel_shuffle.default": _MOVE,
    "aten.reshape.default": _MOVE,
    "aten.permute.default": _MOVE,
    "aten.transpose.int": _MOVE,
    "aten.squeeze.dims": _MOVE,
    "aten.squeeze.dim": _MOVE,
    "aten.unsqueeze.default": _MOVE,
    "aten.expand.default": _MOVE,
    "aten.repeat.default": _MOVE,
    "aten.slice.Tensor": _MOVE,
    "aten.select.int": _MOVE,
    "aten.flip.default": _MOVE,
    "aten.roll.default": _MOVE,
    "aten.pad.default": _MOVE,
    "aten.cat.default": _MOVE,
    "aten.stack.default": _MOVE,
}

NEAREST: dict[str, str] = {
    "aten.cumsum.default": "x @ torch.ones(n, n).triu(), a product with a triangular matrix",
    "aten.erf.default": "torch.nn.functional.gelu(x), if it is for that",
    "aten.exp.default": "torch.softmax or torch.sigmoid, if it is for one of them",
    "aten.log.default": "torch.log_softmax or torch.nn.functional.softplus, if it is for one of them",
    "aten.where.self": "m * a + (1 - m) * b with a mask of zeros and ones, if the condition is a constant or an input",
    "aten.masked_fill.Scalar": "x + m in front of a softmax, with -16 or less in m for what is masked",
    "aten.var.correction": "((x - x.mean(dim, keepdim=True)) ** 2).mean(dim)",
    "aten.max.dim": "x.amax(dim), if only values are needed",
    "aten.min.dim": "x.amin(dim), if only values are needed",
    "aten.adaptive_max_pool2d.default": "torch.nn.functional.max_pool2d, or x.amax((2, 3)) for one value",
    "aten.upsample_bilinear2d.vec": 'twice the size without align_corners, or mode = "nearest"',
    "aten.linear.default": "torch.matmul(x, weight.transpose(-2, -1)) + bias",
}
"""Operators that are not in the table, or not with a weight that is given, and what computes the same and is."""

LSTM, GRU = "aten.lstm.input", "aten.gru.input"
"""Whole layers, in the forms that a scheme names in `whole_recurrent`; in all others their cells are written out.

Only weights are quantized here. onnxruntime has an LSTM with int8 products, which scales its inputs at run time,
and no such GRU: in the form int8 dynamic, too, that computes in float, with weights stored in int8.
"""
RECURRENT_PARAMETERS = 2
"""The position of the list of weights and biases among the arguments of both."""

TO_NUMBERS = "aten._to_copy.default"
"""What makes floating numbers of others. Of images of uint8 it is taken, and so is what is done to these before
anything else (`quantizer.enters`): it stays in float, as the pixels of other networks are normalized in float."""

ELEMENTWISE = {"aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor"}
"""Operators of two values, of which one may be a constant or a number."""
