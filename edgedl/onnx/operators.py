"""What the operators of ONNX mean in PyTorch: one function for each, `on_` and its name.

They are given the node, its inputs (values, constants, or None) and its attributes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from edgedl.onnx.builder import NUM_FIRST, Builder, Sizes, Value, as_tensor

Layer = TypeVar("Layer", bound=nn.Module)

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Selu": F.selu, "HardSwish": F.hardswish, "Softplus": F.softplus,
    "Softsign": F.softsign, "Mish": F.mish, "Swish": F.silu, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs, "Reciprocal": torch.reciprocal, "Pow": torch.pow,
    "Sin": torch.sin, "Cos": torch.cos, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Sign": torch.sign, "Not": torch.logical_not, "And": torch.logical_and, "Or": torch.logical_or,
    "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge, "LessOrEqual": operator.le,
}  # fmt: skip
"""Operators that take what the function takes."""


def plain(function: Callable[..., Any], builder: Builder, node: onnx.NodeProto, *given: Any, **attributes: Any) -> Any:
    """An operator that takes what a function of PyTorch takes."""
    return builder.call(function, *_numbers(*given), **attributes)


# Layers with weights.


def on_Conv(builder: Builder, node: onnx.NodeProto, x: Any, w: Any, b: Any = None, **given: Any) -> Any:
    _constant(builder, node, w, b)
    dims = w.ndim - 2
    groups, strides = given.get("group", 1), tuple(given.get("strides", (1,) * dims))
    dilations = tuple(given.get("dilations", (1,) * dims))
    before, after = _pads(builder, x, tuple(w.shape[2:]), strides, dilations, given)
    if before != after:
        x, before = builder.call(F.pad, x, _reversed(before, after)), (0,) * dims
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(w.shape[1] * groups, w.shape[0], tuple(w.shape[2:]), strides, before, dilations, groups, b is not None)
    return builder.layer(node, _filled(layer, weight=w, bias=b), x, name=builder.weight_name(w))


def on_ConvTranspose(builder: Builder, node: onnx.NodeProto, x: Any, w: Any, b: Any = None, **given: Any) -> Any:
    _constant(builder, node, w, b)
    dims = w.ndim - 2
    groups, strides = given.get("group", 1), tuple(given.get("strides", (1,) * dims))
    dilations, more = tuple(given.get("dilations", (1,) * dims)), tuple(given.get("output_padding", (0,) * dims))
    pads = tuple(given.get("pads", (0,) * 2 * dims))
    if "output_shape" in given or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        whole = [
            stride * (size - 1) + extra + dilation * (kernel - 1) + 1
            for stride, size, extra, dilation, kernel in zip(
                strides, x.shape[2:], more, dilations, w.shape[2:], strict=True
            )
        ]
        wanted = given.get("output_shape") or [s * size for s, size in zip(strides, x.shape[2:], strict=True)]
        over = [max(0, size - want) for size, want in zip(whole, list(wanted)[-dims:], strict=True)]
        small, large = tuple(size // 2 for size in over), tuple(size - size // 2 for size in over)
        pads = (*large, *small) if given.get("auto_pad") == b"SAME_LOWER" else (*small, *large)
    before, after = pads[:dims], pads[dims:]
    even = before == after
    kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    layer = kind(
        w.shape[0], w.shape[1] * groups, tuple(w.shape[2:]), strides, before if even else 0, more, groups,
        b is not None, dilations,
    )  # fmt: skip
    y = builder.layer(node, _filled(layer, weight=w, bias=b), x, name=builder.weight_name(w))
    if even:
        return y
    for dim, (start, stop) in enumerate(zip(before, after, strict=True), start=2):
        y = builder.call(torch.narrow, y, dim, start, y.shape[dim] - start - stop)
    return y


def on_Gemm(builder: Builder, node: onnx.NodeProto, a: Any, b: Any, c: Any = None, **given: Any) -> Any:
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
    a = builder.call(torch.transpose, a, 0, 1) if given.get("transA") else a
    if isinstance(b, torch.Tensor) and (c is None or ((isinstance(c, torch.Tensor) and c.ndim < 2) or len(c) == 1)):
        weight = alpha * (b if given.get("transB") else b.T)
        bias = None if c is None else beta * c.reshape(-1).expand(len(weight))
        layer = _filled(nn.Linear(weight.shape[1], len(weight), bias is not None), weight=weight, bias=bias)
        return builder.layer(node, layer, a, name=builder.weight_name(b))
    b = builder.call(torch.transpose, b, 0, 1) if given.get("transB") else b
    y = builder.call(torch.matmul, a, b)
    y = y if alpha == 1 else builder.call(operator.mul, y, alpha)
    return y if c is None else builder.call(operator.add, y, c if beta == 1 else builder.call(operator.mul, c, beta))


def on_MatMul(builder: Builder, node: onnx.NodeProto, a: Any, b: Any) -> Any:
    if isinstance(a, Value) and isinstance(b, torch.Tensor) and b.ndim == 2:
        layer = _filled(nn.Linear(b.shape[0], b.shape[1], bias=False), weight=b.T)
        if builder.users[node.output[0]] == 1:
            builder.unbiased[node.output[0]] = layer
        return builder.layer(node, layer, a, name=builder.weight_name(b))
    return builder.call(torch.matmul, a, b)


def on_Add(builder: Builder, node: onnx.NodeProto, a: Any, b: Any) -> Any:
    if isinstance(a, Sizes) or isinstance(b, Sizes):
        return _each(builder, operator.add, a, b)
    for name, value, other in ((node.input[0], a, b), (node.input[1], b, a)):
        layer = builder.unbiased.get(name)
        if layer is None or not isinstance(other, torch.Tensor) or other.numel() != layer.out_features:
            continue
        if other.ndim <= len(value.shape) and other.shape[-1] == other.numel():
            layer.bias = nn.Parameter(other.reshape(-1).clone())
            one, more = (example + other for example in value.examples)
            return Value(value.node, (one, more))
    return builder.call(operator.add, *_numbers(a, b))


def on_BatchNormalization(
    builder: Builder, node: onnx.NodeProto, x: Any, scale: Any, b: Any, mean: Any, var: Any, **given: Any
) -> Any:
    _constant(builder, node, scale, b, mean, var)
    kind: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(x.shape)]
    layer = kind(len(scale), eps=given.get("epsilon", 1e-5), momentum=1 - given.get("momentum", 0.9))
    layer = _filled(layer, weight=scale, bias=b, running_mean=mean, running_var=var)
    return builder.layer(node, layer, x, name=builder.weight_name(scale))


def on_InstanceNormalization(
    builder: Builder, node: onnx.NodeProto, x: Any, scale: Any, b: Any, epsilon: float = 1e-5
) -> Any:
    _constant(builder, node, scale, b)
    kind: Any = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[len(x.shape)]
    return builder.layer(node, _filled(kind(len(scale), eps=epsilon, affine=True), weight=scale, bias=b), x)


def on_GroupNormalization(builder: Builder, node: onnx.NodeProto, x: Any, scale: Any, b: Any, **given: Any) -> Any:
    _constant(builder, node, scale, b)
    groups, channels = given["num_groups"], x.shape[1]
    if len(scale) != channels:  # opset 18 has a factor a group
        scale, b = (values.repeat_interleave(channels // groups) for values in (scale, b))
    layer = nn.GroupNorm(groups, channels, eps=given.get("epsilon", 1e-5))
    return builder.layer(node, _filled(layer, weight=scale, bias=b), x)


def on_LayerNormalization(
    builder: Builder, node: onnx.NodeProto, x: Any, scale: Any, b: Any = None, **given: Any
) -> Any:
    _constant(builder, node, scale, b)
    axis = given.get("axis", -1) % len(x.shape)
    layer = nn.LayerNorm(x.shape[axis:], eps=given.get("epsilon", 1e-5), bias=b is not None)
    return builder.layer(node, _filled(layer, weight=scale, bias=b), x, name=builder.weight_name(scale))


def on_PRelu(builder: Builder, node: onnx.NodeProto, x: Any, slope: Any) -> Any:
    _constant(builder, node, slope)
    per_channel = slope.ndim == len(x.shape) - 1 or slope.ndim == len(x.shape)
    if slope.numel() == 1 or (per_channel and slope.numel() == x.shape[1]):
        return builder.layer(node, _filled(nn.PReLU(slope.numel()), weight=slope.reshape(-1)), x)
    return builder.call(torch.where, builder.call(operator.gt, x, 0), x, builder.call(operator.mul, x, slope))


def on_LSTM(
    builder: Builder, node: onnx.NodeProto, x: Any, w: Any, r: Any, b: Any = None, *rest: Any, **given: Any
) -> Any:
    return _recurrent(builder, node, nn.LSTM, (0, 2, 3, 1), x, w, r, b, rest, given)


def on_GRU(
    builder: Builder, node: onnx.NodeProto, x: Any, w: Any, r: Any, b: Any = None, *rest: Any, **given: Any
) -> Any:
    if not given.pop("linear_before_reset", 0):
        raise builder.refusal(node, "resets before its product (linear_before_reset = 0), as PyTorch's does not")
    return _recurrent(builder, node, nn.GRU, (1, 0, 2), x, w, r, b, rest, given)


def _recurrent(
    builder: Builder,
    node: onnx.NodeProto,
    kind: Any,
    gates: Sequence[int],
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    rest: Any,
    given: Any,
) -> Any:
    """`gates`: where ONNX has each of PyTorch's."""
    _constant(builder, node, w, r, b)
    hidden, directions = given.pop("hidden_size"), len(w)
    usual = {2: [b"Sigmoid", b"Tanh", b"Tanh"], 1: [b"Sigmoid", b"Tanh"]}[2 if kind is nn.LSTM else 1]
    unusual = given.pop("activations", usual * directions) != usual * directions
    backwards = given.pop("direction", b"forward") == b"reverse"
    starts = [value for value in rest[1:3] if value is not None]
    # Zeros for as many samples as there are.
    states = any((value.examples[1] if isinstance(value, Value) else value).any() for value in starts)
    lengths_or_peepholes = any(value is not None for value in (*rest[:1], *rest[3:]))
    if unusual or backwards or states or lengths_or_peepholes or any(given.values()):
        raise builder.refusal(
            node, "has activations, lengths, peepholes, a layout or a first state of its own, or goes backwards"
        )
    b = torch.zeros(directions, 2 * len(gates) * hidden) if b is None else b

    def ordered(values: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(values, hidden)
        return torch.cat([pieces[gate] for gate in gates])

    tensors = {}
    for direction, suffix in zip(range(directions), ("", "_reverse"), strict=False):
        tensors[f"weight_ih_l0{suffix}"], tensors[f"weight_hh_l0{suffix}"] = (
            ordered(values[direction]) for values in (w, r)
        )
        own, recurrent = b[direction].chunk(2)
        tensors[f"bias_ih_l0{suffix}"], tensors[f"bias_hh_l0{suffix}"] = ordered(own), ordered(recurrent)
    layer = _filled(kind(w.shape[2], hidden, bidirectional=directions == 2), **tensors)
    result = builder.layer(node, layer, x)
    y, states = builder.parts(result, 2)
    # (T, N, D * H) -> (T, D, N, H)
    open_y = builder.call(torch.Tensor.unflatten, y, -1, (directions, hidden))
    y = builder.call(torch.permute, open_y, (0, 2, 1, 3))
    return (y, *(builder.parts(states, 2) if kind is nn.LSTM else (states,)))


# Pools.


def on_MaxPool(builder: Builder, node: onnx.NodeProto, x: Any, **given: Any) -> Any:
    kernel, strides, dilations, before, after = _window(builder, x, given)
    if before != after or any(pad > size // 2 for pad, size in zip(before, kernel, strict=True)):
        x, before = builder.call(F.pad, x, _reversed(before, after), value=-torch.inf), (0,) * len(kernel)
    kind: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[len(kernel) - 1]
    ceil = bool(given.get("ceil_mode", 0))
    return builder.layer(node, kind(kernel, strides, before, dilations, ceil_mode=ceil), x)


def on_AveragePool(builder: Builder, node: onnx.NodeProto, x: Any, **given: Any) -> Any:
    kernel, strides, dilations, before, after = _window(builder, x, given)
    counts_pads = bool(given.get("count_include_pad", 0))
    if any(dilation != 1 for dilation in dilations) or (before != after and not counts_pads):
        raise builder.refusal(node, "has dilations, or padding on one side, that PyTorch's pooling does not have")
    if before != after:
        x, before = builder.call(F.pad, x, _reversed(before, after)), (0,) * len(kernel)
    kind: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[len(kernel) - 1]
    return builder.layer(node, kind(kernel, strides, before, bool(given.get("ceil_mode", 0)), counts_pads), x)


def on_GlobalAveragePool(builder: Builder, node: onnx.NodeProto, x: Any) -> Any:
    kind: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[len(x.shape) - 3]
    return builder.layer(node, kind(1), x)


def on_GlobalMaxPool(builder: Builder, node: onnx.NodeProto, x: Any) -> Any:
    return builder.call(torch.amax, x, tuple(range(2, len(x.shape))), True)


# Activations with attributes.


def on_Relu(builder: Builder, node: onnx.NodeProto, x: Any) -> Any:
    return builder.layer(node, nn.ReLU(), x)


def on_LeakyRelu(builder: Builder, node: onnx.NodeProto, x: Any, alpha: float = 0.01) -> Any:
    return builder.layer(node, nn.LeakyReLU(alpha), x)


def on_Elu(builder: Builder, node: onnx.NodeProto, x: Any, alpha: float = 1.0) -> Any:
    return builder.layer(node, nn.ELU(alpha), x)


def on_Gelu(builder: Builder, node: onnx.NodeProto, x: Any, approximate: bytes = b"none") -> Any:
    return builder.layer(node, nn.GELU(approximate.decode()), x)


def on_HardSigmoid(builder: Builder, node: onnx.NodeProto, x: Any, alpha: float = 0.2, beta: float = 0.5) -> Any:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return builder.layer(node, nn.Hardsigmoid(), x)
    return builder.call(torch.clamp, builder.call(operator.add, builder.call(operator.mul, x, alpha), beta), 0.0, 1.0)


def on_Clip(builder: Builder, node: onnx.NodeProto, x: Any, *bounds: Any, **given: Any) -> Any:
    low, high = (
        _number(bounds[index]) if len(bounds) > index else given.get(name) for index, name in enumerate(("min", "max"))
    )
    if (low, high) == (0, 6):
        return builder.layer(node, nn.ReLU6(), x)
    return builder.layer(node, nn.ReLU(), x) if (low, high) == (0, None) else builder.call(torch.clamp, x, low, high)


def on_Softmax(builder: Builder, node: onnx.NodeProto, x: Any, axis: int | None = None) -> Any:
    return _softmax(builder, node, nn.Softmax, x, axis)


def on_LogSoftmax(builder: Builder, node: onnx.NodeProto, x: Any, axis: int | None = None) -> Any:
    return _softmax(builder, node, nn.LogSoftmax, x, axis)


def _softmax(builder: Builder, node: onnx.NodeProto, kind: Any, x: Any, axis: int | None) -> Any:
    ndim = len(x.shape)
    axis = (-1 if builder.opset >= 13 else 1) if axis is None else axis
    if builder.opset >= 13 or axis % ndim == ndim - 1:
        return builder.layer(node, kind(axis), x)
    flat = builder.call(torch.flatten, x, axis)  # it was once over all dimensions from there on
    return builder.call(
        torch.reshape, builder.layer(node, kind(-1), flat), [builder.size(x, dim) for dim in range(ndim)]
    )


def on_Dropout(builder: Builder, node: onnx.NodeProto, x: Any, ratio: Any = None, *_: Any, **given: Any) -> Any:
    share = _number(ratio) if ratio is not None else given.get("ratio", 0.5)
    return builder.layer(node, nn.Dropout(float(share)), x)


# Shapes.


def on_Constant(builder: Builder, node: onnx.NodeProto, **given: Any) -> torch.Tensor:
    (value,) = given.values()
    is_tensor = isinstance(value, onnx.TensorProto)
    array = numpy_helper.to_array(value) if is_tensor else np.asarray(value)
    array = array if is_tensor or array.dtype.kind != "f" else array.astype(np.float32)
    tensor = as_tensor(array)
    builder.keep(node.output[0], tensor)
    return tensor


def on_Identity(builder: Builder, node: onnx.NodeProto, x: Any) -> Any:
    return x


def on_Shape(builder: Builder, node: onnx.NodeProto, x: Any, start: int = 0, end: int | None = None) -> Any:
    ndim = len(x.shape)
    return Sizes(builder.size(x, dim) for dim in range(ndim)[start:end])


def on_Cast(builder: Builder, node: onnx.NodeProto, x: Any, to: int, **_: Any) -> Any:
    kind = onnx.helper.tensor_dtype_to_np_dtype(to)
    if isinstance(x, Sizes):
        return x
    dtype = torch.from_numpy(np.zeros(1, kind)).dtype
    dtype = torch.float32 if dtype in (torch.float16, torch.float64) else dtype
    examples = x.examples if isinstance(x, Value) else (x,)
    return x if examples[0].dtype == dtype else builder.call(torch.Tensor.to, x, dtype)


def on_Reshape(builder: Builder, node: onnx.NodeProto, x: Any, shape: Any, allowzero: int = 0) -> Any:
    target = list(shape) if isinstance(shape, Sizes) else shape.tolist()
    if isinstance(x, Sizes):
        return _as(x, scalar=not target)
    if not allowzero:
        target = [builder.size(x, dim) if size == 0 else size for dim, size in enumerate(target)]
    if builder.fixed and isinstance(x, Value) and any(x.is_open) and all(isinstance(size, int) for size in target):
        target = _opened(builder, x, target, builder.fixed)
    return builder.call(torch.reshape, x, target)


def _opened(builder: Builder, x: Value, target: list[int], fixed: int) -> list[int]:
    """The shape that a file for one number of samples gives, with that number open.

    As a rule it stands by itself, where as many values lie before it as before the open dimension of `x`; it may
    be one factor of a size, too. Whoever reads it wrongly hears of it: all outputs are held against the file's.
    """
    place = x.is_open.index(True)
    shape = [size * fixed // NUM_FIRST if is_open else size for size, is_open in zip(x.shape, x.is_open, strict=True)]
    rest = math.prod(size for size in target if size != -1)
    whole = [math.prod(shape) // rest if size == -1 else size for size in target]
    before, behind = math.prod(shape[:place]), math.prod(shape[place + 1 :])
    dims = [dim for dim, size in enumerate(whole) if size % fixed == 0]
    begins = [dim for dim in dims if math.prod(whole[:dim]) == before]
    alone = sorted((dim for dim in begins if whole[dim] == fixed), key=lambda dim: abs(dim - place))
    same = [dim for dim in begins if dim == place and len(whole) == len(shape)]
    ends = [dim for dim in dims if math.prod(whole[dim + 1 :]) == behind]
    for dim in (*alone, *same, *ends, *begins):
        return [*whole[:dim], -1, *whole[dim + 1 :]]
    return target


def on_Flatten(builder: Builder, node: onnx.NodeProto, x: Any, axis: int = 1) -> Any:
    if axis == 1:
        return builder.layer(node, nn.Flatten(), x)
    return builder.call(torch.flatten, builder.call(torch.flatten, x, axis), 0, axis - 1)


def on_Transpose(builder: Builder, node: onnx.NodeProto, x: Any, perm: Sequence[int] | None = None) -> Any:
    return builder.call(torch.permute, x, tuple(perm or range(len(x.shape))[::-1]))


def on_Squeeze(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    if isinstance(x, Sizes):
        return _as(x, scalar=True)
    axes = _axes(rest, given)
    ones = [dim for dim, size in enumerate(x.shape) if size == 1]
    return builder.call(torch.squeeze, x, tuple(ones) if axes is None else tuple(axes))


def on_Unsqueeze(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    if isinstance(x, Sizes):
        return _as(x, scalar=False)
    axes = _axes(rest, given) or []
    ndim = len(x.shape) + len(axes)
    for axis in sorted(axis % ndim for axis in axes):
        x = builder.call(torch.unsqueeze, x, axis)
    return x


def on_Concat(builder: Builder, node: onnx.NodeProto, *given: Any, axis: int) -> Any:
    if any(isinstance(value, Sizes) for value in given):
        return Sizes(size for value in given for size in _list(value))
    return builder.call(torch.cat, list(given), axis)


def on_Split(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    axis = given.get("axis", 0)
    sizes = rest[0].tolist() if rest and rest[0] is not None else given.get("split")
    if sizes is None:
        step = -(-x.shape[axis] // len(node.output))
        sizes = [min(step, x.shape[axis] - start) for start in range(0, x.shape[axis], step)]
    return builder.parts(builder.call(torch.split, x, list(sizes), axis), len(sizes))


def on_Slice(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    found = dict(zip(("starts", "ends", "axes", "steps"), map(_list, rest), strict=False)) or given
    starts, ends = list(found["starts"]), list(found["ends"])
    axes = found.get("axes") or range(len(starts))
    steps = found.get("steps") or [1] * len(starts)
    if isinstance(x, Sizes):
        return Sizes(x[starts[0] : ends[0] : steps[0]])
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            whole = step == -1 and (start == -1 or start >= x.shape[axis] - 1) and stop < -x.shape[axis]
            if not whole:
                raise builder.refusal(node, "goes backwards through a part of a dimension")
            x = builder.call(torch.flip, x, (axis,))
            continue
        places = [slice(None)] * len(x.shape)
        places[axis] = slice(start, None if isinstance(stop, int) and stop >= x.shape[axis] else stop, step)
        x = builder.call(operator.getitem, x, tuple(places))
    return x


def on_Gather(builder: Builder, node: onnx.NodeProto, x: Any, index: Any, axis: int = 0) -> Any:
    if isinstance(x, Sizes):
        chosen = [x[place] for place in index.reshape(-1).tolist()]
        return _as(Sizes(chosen), scalar=index.ndim == 0)
    if isinstance(x, torch.Tensor) and x.ndim == 2 and axis == 0 and isinstance(index, Value):
        layer = _filled(nn.Embedding(*x.shape), weight=x)
        return builder.layer(node, layer, index, name=builder.weight_name(x))
    axis %= len(x.shape)
    if isinstance(index, torch.Tensor) and index.ndim == 0:
        return builder.call(torch.select, x, axis, int(index))
    flat = index.reshape(-1) if isinstance(index, torch.Tensor) else builder.call(torch.flatten, index)
    picked = builder.call(torch.index_select, x, axis, flat)
    if len(index.shape) == 1:
        return picked
    sizes = [builder.size(index, dim) for dim in range(len(index.shape))]
    return builder.call(torch.Tensor.unflatten, picked, axis, sizes)


def on_Expand(builder: Builder, node: onnx.NodeProto, x: Any, shape: Any) -> Any:
    target = _list(shape)
    own = [1] * (len(target) - len(x.shape)) + list(x.shape)
    target = [1] * (len(own) - len(target)) + target
    pairs = zip(target, own, range(-len(own), 0), strict=True)
    sizes = [-1 if _is_one(size) and -dim <= len(x.shape) else size for size, _, dim in pairs]
    return builder.call(torch.Tensor.expand, x, sizes)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def on_Tile(builder: Builder, node: onnx.NodeProto, x: Any, repeats: Any) -> Any:
    return builder.call(torch.tile, x, tuple(_list(repeats)))


def on_ConstantOfShape(builder: Builder, node: onnx.NodeProto, shape: Any, value: Any = None) -> Any:
    fill = torch.zeros(1) if value is None else as_tensor(numpy_helper.to_array(value))
    return builder.call(torch.full, _list(shape), fill.item(), dtype=fill.dtype)


def on_Range(builder: Builder, node: onnx.NodeProto, start: Any, limit: Any, delta: Any) -> Any:
    return builder.call(
        torch.arange, *(value[0] if isinstance(value, Sizes) else _number(value) for value in (start, limit, delta))
    )


def on_Pad(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    pads = _list(rest[0]) if rest else list(given["pads"])
    value = _number(rest[1]) if len(rest) > 1 and rest[1] is not None else given.get("value", 0.0)
    ndim = len(x.shape)
    axes = [axis % ndim for axis in _list(rest[2])] if len(rest) > 2 and rest[2] is not None else list(range(ndim))
    before, after = [0] * ndim, [0] * ndim
    for place, axis in enumerate(axes):
        before[axis], after[axis] = pads[place], pads[place + len(axes)]
    mode = {b"constant": "constant", b"reflect": "reflect", b"edge": "replicate"}[given.get("mode", b"constant")]
    if mode == "constant":
        return builder.call(F.pad, x, _reversed(before, after), value=value)
    first = next((dim for dim in range(ndim) if before[dim] or after[dim]), ndim - 1)
    return builder.call(F.pad, x, _reversed(before[max(first, 2) :], after[max(first, 2) :]), mode)


def on_Upsample(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    scales = rest[0] if rest else torch.tensor(given.pop("scales"))
    given["coordinate_transformation_mode"] = b"asymmetric"
    return on_Resize(builder, node, x, None, scales, **given)


def on_Resize(
    builder: Builder, node: onnx.NodeProto, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None, **given: Any
) -> Any:
    mode, way = given.get("mode", b"nearest"), given.get("coordinate_transformation_mode", b"half_pixel")
    if scales is None or not scales.numel():
        target = _list(sizes)[2:]
        factors = [float(want) / size for want, size in zip(target, x.shape[2:], strict=True)]
    else:
        factors = scales.tolist()[2:]
        target = [int(size * factor) for size, factor in zip(x.shape[2:], factors, strict=True)]
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(target)]
    whole = all(factor >= 1 and factor == int(factor) for factor in factors)
    asks = (mode, way, given.get("nearest_mode", b"round_prefer_floor"))
    if mode == b"nearest" and (whole or (asks[1:] == (b"asymmetric", b"floor"))):
        if whole:  # which says so to whoever looks for it, and has no sizes in it
            return builder.layer(node, nn.Upsample(scale_factor=tuple(factors), mode="nearest"), x)
        return builder.call(F.interpolate, x, target, mode="nearest")
    if mode == b"linear" and way in (b"half_pixel", b"pytorch_half_pixel", b"align_corners"):
        if way != b"align_corners" and whole:
            return builder.layer(node, nn.Upsample(scale_factor=tuple(factors), mode=linear, align_corners=False), x)
        return builder.call(F.interpolate, x, target, mode=linear, align_corners=way == b"align_corners")
    raise builder.refusal(node, f"has mode {mode.decode()} with {way.decode()}, which PyTorch does not have")


def on_DepthToSpace(builder: Builder, node: onnx.NodeProto, x: Any, blocksize: int, mode: bytes = b"DCR") -> Any:
    if mode == b"DCR":  # the channels of a pixel's places stand outside those of the picture, not inside
        inner = builder.call(torch.Tensor.unflatten, x, 1, (blocksize**2, -1))
        x = builder.call(torch.flatten, builder.call(torch.transpose, inner, 1, 2), 1, 2)
    return builder.layer(node, nn.PixelShuffle(blocksize), x)


def on_SpaceToDepth(builder: Builder, node: onnx.NodeProto, x: Any, blocksize: int) -> Any:
    y = builder.call(F.pixel_unshuffle, x, blocksize)
    inner = builder.call(torch.Tensor.unflatten, y, 1, (-1, blocksize**2))
    return builder.call(torch.flatten, builder.call(torch.transpose, inner, 1, 2), 1, 2)


# Sums over dimensions, and numbers.


def on_ReduceMean(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    return _reduced(builder, torch.mean, x, rest, given)


def on_ReduceSum(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    return _reduced(builder, torch.sum, x, rest, given)


def on_ReduceMax(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    return _reduced(builder, torch.amax, x, rest, given)


def on_ReduceMin(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    return _reduced(builder, torch.amin, x, rest, given)


def on_ReduceL2(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    squares = _reduced(builder, torch.sum, builder.call(operator.mul, x, x), rest, given)
    return builder.call(torch.sqrt, squares)


def on_ReduceProd(builder: Builder, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
    if not isinstance(x, Sizes):
        (axis,) = _axes(rest, given) or range(len(x.shape))
        return builder.call(torch.prod, x, axis, bool(given.get("keepdims", 1)))
    product = x[0]
    for size in x[1:]:
        product = builder.call(operator.mul, product, size)
    return _as(Sizes([product]), scalar=not given.get("keepdims", 1))


def _reduced(builder: Builder, function: Callable[..., Any], x: Any, rest: Any, given: Mapping[str, Any]) -> Any:
    axes = _axes(rest, given)
    if axes is None or not axes:
        if given.get("noop_with_empty_axes"):
            return x
        axes = list(range(len(x.shape)))
    return builder.call(function, x, tuple(axes), bool(given.get("keepdims", 1)))


def on_ArgMax(builder: Builder, node: onnx.NodeProto, x: Any, axis: int = 0, keepdims: int = 1, **_: Any) -> Any:
    return builder.call(torch.argmax, x, axis, bool(keepdims))


def on_Einsum(builder: Builder, node: onnx.NodeProto, *given: Any, equation: bytes) -> Any:
    return builder.call(torch.einsum, equation.decode(), *given)


def on_Mod(builder: Builder, node: onnx.NodeProto, a: Any, b: Any, fmod: int = 0) -> Any:
    return _each(builder, torch.fmod if fmod else operator.mod, a, b)


def on_Sub(builder: Builder, node: onnx.NodeProto, a: Any, b: Any) -> Any:
    return _each(builder, operator.sub, a, b)


def on_Mul(builder: Builder, node: onnx.NodeProto, a: Any, b: Any) -> Any:
    return _each(builder, operator.mul, a, b)


def on_Div(builder: Builder, node: onnx.NodeProto, a: Any, b: Any) -> Any:
    kinds = [value.examples[0] if isinstance(value, Value) else value for value in (a, b)]
    whole = all(isinstance(kind, Sizes) or not kind.is_floating_point() for kind in kinds)
    return _each(builder, operator.floordiv if whole else operator.truediv, a, b)


def _each(builder: Builder, function: Callable[..., Any], a: Any, b: Any) -> Any:
    if not isinstance(a, Sizes) and not isinstance(b, Sizes):
        return builder.call(function, *_numbers(a, b))
    ones, others = _list(a), _list(b)
    length = max(len(ones), len(others))
    pairs = zip(ones * (length // len(ones)), others * (length // len(others)), strict=True)
    scalar = all(value.is_scalar if isinstance(value, Sizes) else value.ndim == 0 for value in (a, b))
    return _as(Sizes(builder.call(function, one, other) for one, other in pairs), scalar=scalar)


def on_Where(builder: Builder, node: onnx.NodeProto, condition: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Sizes) or isinstance(b, Sizes):
        ones, others, chosen = _list(a), _list(b), _list(condition)
        return Sizes(one if choice else other for choice, one, other in zip(chosen, ones, others, strict=True))
    return builder.call(torch.where, condition, a, b)


def on_Equal(builder: Builder, node: onnx.NodeProto, a: Any, b: Any) -> Any:
    if isinstance(a, Sizes) or isinstance(b, Sizes):  # whether a size is -1, in what exporters write
        return torch.tensor([one is other or one == other for one, other in zip(_list(a), _list(b), strict=True)])
    return builder.call(operator.eq, a, b)


def on_Max(builder: Builder, node: onnx.NodeProto, *given: Any) -> Any:
    return _folded(builder, torch.maximum, given)


def on_Min(builder: Builder, node: onnx.NodeProto, *given: Any) -> Any:
    return _folded(builder, torch.minimum, given)


def on_Sum(builder: Builder, node: onnx.NodeProto, *given: Any) -> Any:
    return _folded(builder, operator.add, given)


def _folded(builder: Builder, function: Callable[..., Any], given: Sequence[Any]) -> Any:
    result = given[0]
    for value in given[1:]:
        result = builder.call(function, result, value)
    return result


def _constant(builder: Builder, node: onnx.NodeProto, *weights: Any) -> None:
    if any(isinstance(weight, Value) for weight in weights):
        raise builder.refusal(node, "has weights that depend on what the network is given")


def _window(builder: Builder, x: Any, given: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Kernel, strides, dilations, and pads before and behind."""
    kernel = tuple(given["kernel_shape"])
    strides, dilations = (tuple(given.get(key, (1,) * len(kernel))) for key in ("strides", "dilations"))
    return (kernel, strides, dilations, *_pads(builder, x, kernel, strides, dilations, given))


def _pads(
    builder: Builder,
    x: Any,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    given: Mapping[str, Any],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    dims, auto = len(kernel), given.get("auto_pad", b"NOTSET")
    if not auto.startswith(b"SAME"):
        pads = tuple(given.get("pads", (0,) * 2 * dims)) if auto != b"VALID" else (0,) * 2 * dims
        return pads[:dims], pads[dims:]
    every = zip(x.shape[2:], kernel, strides, dilations, strict=True)
    whole = [max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size) for size, k, s, d in every]
    small, large = tuple(size // 2 for size in whole), tuple(size - size // 2 for size in whole)
    return (small, large) if auto == b"SAME_UPPER" else (large, small)


def _as(sizes: Sizes, scalar: bool) -> Sizes:
    found = Sizes(sizes)
    found.is_scalar = scalar
    return found


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sizes) else list(value.reshape(-1).tolist())


def _number(value: Any) -> Any:
    """A constant of one element as a number, which quantization knows to handle."""
    return value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value


def _numbers(*given: Any) -> tuple[Any, ...]:
    """Single constants beside values as numbers."""
    return tuple(map(_number, given)) if any(isinstance(value, Value) for value in given) else given


def _axes(rest: Sequence[Any], given: Mapping[str, Any]) -> list[int] | None:
    """Which later versions of an operator have as an input."""
    if rest and rest[0] is not None:
        return _list(rest[0])
    return list(given["axes"]) if "axes" in given else None


def _reversed(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads as PyTorch wants them: the last dimension first."""
    return [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]


def _filled(layer: Layer, **tensors: torch.Tensor | None) -> Layer:
    """A layer with these weights."""
    layer.load_state_dict({name: value for name, value in tensors.items() if value is not None}, strict=False)
    return layer
