"""ONNX files read back as layers of PyTorch, which can be trained, pruned and quantized like any others.

Each node becomes a layer or a function. What depends on constants alone is computed at once; sizes that depend on the
number of samples stay open: everything is run with two numbers of samples meanwhile, and what differs is open.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from edgedl.core import ModelFileError

QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
             "DynamicQuantizeLinear", "QGemm"}  # fmt: skip


NUM_FIRST, NUM_SECOND = 2, 3
"""Samples of the two examples."""

Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True)
class Value:
    """What is known when the network runs: a tensor or a size, and what it is for the two examples."""

    node: fx.Node
    examples: tuple[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """For the first example."""
        return tuple(self.examples[0].shape)

    @property
    def is_open(self) -> tuple[bool, ...]:
        """For each dimension whether it depends on the number of samples."""
        return tuple(one != other for one, other in zip(*(example.shape for example in self.examples), strict=True))


class Sizes(list[Any]):
    """A vector of integers, some of which are `Value`s; `is_scalar` if it is one number."""

    is_scalar = False


class Reader:
    """Reads one graph; `operators` finds the method for each kind of node by its name."""

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self.file, self.model, self.graph, self.root = name, model.graph, fx.Graph(), nn.Module()
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.values: dict[str, Any] = {"": None}
        self.labels: Counter[str] = Counter()
        self.parameters: dict[int, fx.Node] = {}
        self.kept: list[torch.Tensor] = []
        self.users = Counter(name for node in model.graph.node for name in node.input)
        self.users.update(output.name for output in model.graph.output)
        self.unbiased: dict[str, nn.Linear] = {}
        self.names: dict[int, str] = {}
        """Of constants."""
        self.fixed: int | None = None
        """The number of samples that the file was exported for, if it takes no other."""

    def read(self, examples: Mapping[str, tuple[torch.Tensor, torch.Tensor]], fixed: int | None) -> fx.GraphModule:
        """The module: takes the inputs in order, and returns a tensor, or a dictionary of several by name."""
        self.fixed = fixed
        for constant in self.model.initializer:
            self._keep(constant.name, _tensor(numpy_helper.to_array(constant)))
        for name, pair in examples.items():
            self.values[name] = Value(self.graph.placeholder(self._label(name)), pair)
        for node in self.model.node:
            if node.op_type in QUANTIZED:
                raise ModelFileError(
                    f"{self.file}: is quantized already (operator {node.op_type}); give the float network"
                )
            method = getattr(self, f"on_{node.op_type}", FUNCTIONS.get(node.op_type) and self._function)
            if method is None or node.domain not in ("", "ai.onnx"):
                raise self.refusal(node, "is not among those that edgedl reads; export the network without it")
            given = [self.values[name] for name in node.input]
            attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            try:
                found = method(node, *given, **attributes)
            except ModelFileError:
                raise
            # Whatever torch says of arguments that it was not made for.
            except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
                said = " ".join(str(error).split())[:200]
                raise self.refusal(node, f"is used in a way that edgedl does not read: {said}") from error
            several = found if isinstance(found, tuple) else (found,)
            for name, value in zip(node.output, several, strict=False):
                self.values[name] = _settled(value)
        results = {output.name: self._node(self.values[output.name]) for output in self.model.output}
        self.graph.output(next(iter(results.values())) if len(results) == 1 else results)
        module = fx.GraphModule(self.root, self.graph)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module

    def refusal(self, node: onnx.NodeProto, reason: str) -> ModelFileError:
        """An error that names a node."""
        domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
        fixed = (
            f" (the file is for {self.fixed} samples at once: export it with that dimension open)" if self.fixed else ""
        )
        return ModelFileError(f"{self.file}: operator {domain}{node.op_type} of node {_called(node)} {reason}{fixed}")

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A function of values and constants: computed now where all are constants, else a node of the graph."""
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
        if not leaves:
            return function(*args, **kwargs)
        lifted_args, lifted_kwargs = pytree.tree_map(self._node, (args, kwargs))
        node = self.graph.call_function(function, lifted_args, lifted_kwargs)
        with torch.no_grad():
            examples = []
            for index in (0, 1):
                own_args, own_kwargs = pytree.tree_map(
                    lambda leaf, index=index: leaf.examples[index] if isinstance(leaf, Value) else leaf, (args, kwargs)
                )
                examples.append(function(*own_args, **own_kwargs))
        return Value(node, (examples[0], examples[1]))

    def layer(self, node: onnx.NodeProto, module: nn.Module, *given: Any, name: str | None = None) -> Any:
        """A layer of its own; a constant that goes through one is computed now."""
        module = module.eval()
        if not any(isinstance(value, Value) for value in given):
            with torch.no_grad():
                return module(*given)
        label = self._label(name or node.name or f"{node.op_type}_{node.output[0]}")
        self.root.add_module(label, module)
        called = self.graph.call_module(label, tuple(map(self._node, given)))
        with torch.no_grad():
            one, other = (
                module(*(value.examples[index] if isinstance(value, Value) else value for value in given))
                for index in (0, 1)
            )
        return Value(called, (one, other))

    def parts(self, value: Any, count: int) -> tuple[Any, ...]:
        """Each of what a function or layer returns as a tuple."""
        return tuple(self.call(operator.getitem, value, index) for index in range(count))

    def size(self, value: Any, dim: int) -> Any:
        """An int, or where it depends on the number of samples a `Value`."""
        if not isinstance(value, Value):
            return value.shape[dim]
        return self.call(torch.Tensor.size, value, dim) if value.is_open[dim] else value.shape[dim]

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        self.values[name] = tensor
        self.names[id(tensor)] = name
        self.kept.append(tensor)  # so that no other gets its id

    def _label(self, name: str) -> str:
        label = re.sub(r"\W+", "_", name).strip("_") or "value"
        label = f"n{label}" if label[0].isdigit() else label
        self.labels[label] += 1
        return label if self.labels[label] == 1 else f"{label}_{self.labels[label]}"

    def _node(self, value: Any) -> Any:
        """A value as an argument of a node; constants become parameters, or buffers where they are whole numbers."""
        if isinstance(value, Value):
            return value.node
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self.parameters:
            label = self._label(self.names.get(id(value), "constant"))
            if value.is_floating_point() and value.numel() > 1:
                self.root.register_parameter(label, nn.Parameter(value.clone()))
            else:
                self.root.register_buffer(label, value.clone())
            self.parameters[id(value)] = self.graph.get_attr(label)
            self.kept.append(value)
        return self.parameters[id(value)]

    def _weight_name(self, tensor: torch.Tensor) -> str | None:
        """The layer's name, where that of its weight says it."""
        name = self.names.get(id(tensor), "")
        return name.removesuffix(".weight") if name.endswith(".weight") else None

    def _function(self, node: onnx.NodeProto, *given: Any, **attributes: Any) -> Any:
        function = FUNCTIONS[node.op_type]
        return self.call(function, *_numbers(*given), **attributes)

    # Layers with weights.

    def on_Conv(self, node: onnx.NodeProto, x: Any, w: Any, b: Any = None, **given: Any) -> Any:
        self._constant(node, w, b)
        dims = w.ndim - 2
        groups, strides = given.get("group", 1), tuple(given.get("strides", (1,) * dims))
        dilations = tuple(given.get("dilations", (1,) * dims))
        before, after = self._pads(x, tuple(w.shape[2:]), strides, dilations, given)
        if before != after:
            x, before = self.call(F.pad, x, _reversed(before, after)), (0,) * dims
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        layer = kind(
            w.shape[1] * groups, w.shape[0], tuple(w.shape[2:]), strides, before, dilations, groups, b is not None
        )
        return self.layer(node, _filled(layer, weight=w, bias=b), x, name=self._weight_name(w))

    def on_ConvTranspose(self, node: onnx.NodeProto, x: Any, w: Any, b: Any = None, **given: Any) -> Any:
        self._constant(node, w, b)
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
        y = self.layer(node, _filled(layer, weight=w, bias=b), x, name=self._weight_name(w))
        if even:
            return y
        for dim, (start, stop) in enumerate(zip(before, after, strict=True), start=2):
            y = self.call(torch.narrow, y, dim, start, y.shape[dim] - start - stop)
        return y

    def on_Gemm(self, node: onnx.NodeProto, a: Any, b: Any, c: Any = None, **given: Any) -> Any:
        alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
        a = self.call(torch.transpose, a, 0, 1) if given.get("transA") else a
        if isinstance(b, torch.Tensor) and (c is None or ((isinstance(c, torch.Tensor) and c.ndim < 2) or len(c) == 1)):
            weight = alpha * (b if given.get("transB") else b.T)
            bias = None if c is None else beta * c.reshape(-1).expand(len(weight))
            layer = _filled(nn.Linear(weight.shape[1], len(weight), bias is not None), weight=weight, bias=bias)
            return self.layer(node, layer, a, name=self._weight_name(b))
        b = self.call(torch.transpose, b, 0, 1) if given.get("transB") else b
        y = self.call(torch.matmul, a, b)
        y = y if alpha == 1 else self.call(operator.mul, y, alpha)
        return y if c is None else self.call(operator.add, y, c if beta == 1 else self.call(operator.mul, c, beta))

    def on_MatMul(self, node: onnx.NodeProto, a: Any, b: Any) -> Any:
        if isinstance(a, Value) and isinstance(b, torch.Tensor) and b.ndim == 2:
            layer = _filled(nn.Linear(b.shape[0], b.shape[1], bias=False), weight=b.T)
            if self.users[node.output[0]] == 1:
                self.unbiased[node.output[0]] = layer
            return self.layer(node, layer, a, name=self._weight_name(b))
        return self.call(torch.matmul, a, b)

    def on_Add(self, node: onnx.NodeProto, a: Any, b: Any) -> Any:
        if isinstance(a, Sizes) or isinstance(b, Sizes):
            return self._each(operator.add, a, b)
        for name, value, other in ((node.input[0], a, b), (node.input[1], b, a)):
            layer = self.unbiased.get(name)
            if layer is None or not isinstance(other, torch.Tensor) or other.numel() != layer.out_features:
                continue
            if other.ndim <= len(value.shape) and other.shape[-1] == other.numel():
                layer.bias = nn.Parameter(other.reshape(-1).clone())
                one, more = (example + other for example in value.examples)
                return Value(value.node, (one, more))
        return self.call(operator.add, *_numbers(a, b))

    def on_BatchNormalization(
        self, node: onnx.NodeProto, x: Any, scale: Any, b: Any, mean: Any, var: Any, **given: Any
    ) -> Any:
        self._constant(node, scale, b, mean, var)
        kind: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(x.shape)]
        layer = kind(len(scale), eps=given.get("epsilon", 1e-5), momentum=1 - given.get("momentum", 0.9))
        layer = _filled(layer, weight=scale, bias=b, running_mean=mean, running_var=var)
        return self.layer(node, layer, x, name=self._weight_name(scale))

    def on_InstanceNormalization(self, node: onnx.NodeProto, x: Any, scale: Any, b: Any, epsilon: float = 1e-5) -> Any:
        self._constant(node, scale, b)
        kind: Any = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[len(x.shape)]
        return self.layer(node, _filled(kind(len(scale), eps=epsilon, affine=True), weight=scale, bias=b), x)

    def on_GroupNormalization(self, node: onnx.NodeProto, x: Any, scale: Any, b: Any, **given: Any) -> Any:
        self._constant(node, scale, b)
        groups, channels = given["num_groups"], x.shape[1]
        if len(scale) != channels:  # opset 18 has a factor a group
            scale, b = (values.repeat_interleave(channels // groups) for values in (scale, b))
        layer = nn.GroupNorm(groups, channels, eps=given.get("epsilon", 1e-5))
        return self.layer(node, _filled(layer, weight=scale, bias=b), x)

    def on_LayerNormalization(self, node: onnx.NodeProto, x: Any, scale: Any, b: Any = None, **given: Any) -> Any:
        self._constant(node, scale, b)
        axis = given.get("axis", -1) % len(x.shape)
        layer = nn.LayerNorm(x.shape[axis:], eps=given.get("epsilon", 1e-5), bias=b is not None)
        return self.layer(node, _filled(layer, weight=scale, bias=b), x, name=self._weight_name(scale))

    def on_PRelu(self, node: onnx.NodeProto, x: Any, slope: Any) -> Any:
        self._constant(node, slope)
        per_channel = slope.ndim == len(x.shape) - 1 or slope.ndim == len(x.shape)
        if slope.numel() == 1 or (per_channel and slope.numel() == x.shape[1]):
            return self.layer(node, _filled(nn.PReLU(slope.numel()), weight=slope.reshape(-1)), x)
        return self.call(torch.where, self.call(operator.gt, x, 0), x, self.call(operator.mul, x, slope))

    def on_LSTM(self, node: onnx.NodeProto, x: Any, w: Any, r: Any, b: Any = None, *rest: Any, **given: Any) -> Any:
        return self._recurrent(node, nn.LSTM, (0, 2, 3, 1), x, w, r, b, rest, given)

    def on_GRU(self, node: onnx.NodeProto, x: Any, w: Any, r: Any, b: Any = None, *rest: Any, **given: Any) -> Any:
        if not given.pop("linear_before_reset", 0):
            raise self.refusal(node, "resets before its product (linear_before_reset = 0), as PyTorch's does not")
        return self._recurrent(node, nn.GRU, (1, 0, 2), x, w, r, b, rest, given)

    def _recurrent(
        self,
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
        self._constant(node, w, r, b)
        hidden, directions = given.pop("hidden_size"), len(w)
        usual = {2: [b"Sigmoid", b"Tanh", b"Tanh"], 1: [b"Sigmoid", b"Tanh"]}[2 if kind is nn.LSTM else 1]
        unusual = given.pop("activations", usual * directions) != usual * directions
        backwards = given.pop("direction", b"forward") == b"reverse"
        starts = [value for value in rest[1:3] if value is not None]
        # Zeros for as many samples as there are.
        states = any((value.examples[1] if isinstance(value, Value) else value).any() for value in starts)
        lengths_or_peepholes = any(value is not None for value in (*rest[:1], *rest[3:]))
        if unusual or backwards or states or lengths_or_peepholes or any(given.values()):
            raise self.refusal(
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
        result = self.layer(node, layer, x)
        y, states = self.parts(result, 2)
        # (T, N, D * H) -> (T, D, N, H)
        open_y = self.call(torch.Tensor.unflatten, y, -1, (directions, hidden))
        y = self.call(torch.permute, open_y, (0, 2, 1, 3))
        return (y, *(self.parts(states, 2) if kind is nn.LSTM else (states,)))

    # Pools.

    def on_MaxPool(self, node: onnx.NodeProto, x: Any, **given: Any) -> Any:
        kernel, strides, dilations, before, after = self._window(x, given)
        if before != after or any(pad > size // 2 for pad, size in zip(before, kernel, strict=True)):
            x, before = self.call(F.pad, x, _reversed(before, after), value=-torch.inf), (0,) * len(kernel)
        kind: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[len(kernel) - 1]
        ceil = bool(given.get("ceil_mode", 0))
        return self.layer(node, kind(kernel, strides, before, dilations, ceil_mode=ceil), x)

    def on_AveragePool(self, node: onnx.NodeProto, x: Any, **given: Any) -> Any:
        kernel, strides, dilations, before, after = self._window(x, given)
        counts_pads = bool(given.get("count_include_pad", 0))
        if any(dilation != 1 for dilation in dilations) or (before != after and not counts_pads):
            raise self.refusal(node, "has dilations, or padding on one side, that PyTorch's pooling does not have")
        if before != after:
            x, before = self.call(F.pad, x, _reversed(before, after)), (0,) * len(kernel)
        kind: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[len(kernel) - 1]
        return self.layer(node, kind(kernel, strides, before, bool(given.get("ceil_mode", 0)), counts_pads), x)

    def on_GlobalAveragePool(self, node: onnx.NodeProto, x: Any) -> Any:
        kind: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[len(x.shape) - 3]
        return self.layer(node, kind(1), x)

    def on_GlobalMaxPool(self, node: onnx.NodeProto, x: Any) -> Any:
        return self.call(torch.amax, x, tuple(range(2, len(x.shape))), True)

    # Activations with attributes.

    def on_Relu(self, node: onnx.NodeProto, x: Any) -> Any:
        return self.layer(node, nn.ReLU(), x)

    def on_LeakyRelu(self, node: onnx.NodeProto, x: Any, alpha: float = 0.01) -> Any:
        return self.layer(node, nn.LeakyReLU(alpha), x)

    def on_Elu(self, node: onnx.NodeProto, x: Any, alpha: float = 1.0) -> Any:
        return self.layer(node, nn.ELU(alpha), x)

    def on_Gelu(self, node: onnx.NodeProto, x: Any, approximate: bytes = b"none") -> Any:
        return self.layer(node, nn.GELU(approximate.decode()), x)

    def on_HardSigmoid(self, node: onnx.NodeProto, x: Any, alpha: float = 0.2, beta: float = 0.5) -> Any:
        if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
            return self.layer(node, nn.Hardsigmoid(), x)
        return self.call(torch.clamp, self.call(operator.add, self.call(operator.mul, x, alpha), beta), 0.0, 1.0)

    def on_Clip(self, node: onnx.NodeProto, x: Any, *bounds: Any, **given: Any) -> Any:
        low, high = (
            _number(bounds[index]) if len(bounds) > index else given.get(name)
            for index, name in enumerate(("min", "max"))
        )
        if (low, high) == (0, 6):
            return self.layer(node, nn.ReLU6(), x)
        return self.layer(node, nn.ReLU(), x) if (low, high) == (0, None) else self.call(torch.clamp, x, low, high)

    def on_Softmax(self, node: onnx.NodeProto, x: Any, axis: int | None = None) -> Any:
        return self._softmax(node, nn.Softmax, x, axis)

    def on_LogSoftmax(self, node: onnx.NodeProto, x: Any, axis: int | None = None) -> Any:
        return self._softmax(node, nn.LogSoftmax, x, axis)

    def _softmax(self, node: onnx.NodeProto, kind: Any, x: Any, axis: int | None) -> Any:
        ndim = len(x.shape)
        axis = (-1 if self.opset >= 13 else 1) if axis is None else axis
        if self.opset >= 13 or axis % ndim == ndim - 1:
            return self.layer(node, kind(axis), x)
        flat = self.call(torch.flatten, x, axis)  # it was once over all dimensions from there on
        return self.call(torch.reshape, self.layer(node, kind(-1), flat), [self.size(x, dim) for dim in range(ndim)])

    def on_Dropout(self, node: onnx.NodeProto, x: Any, ratio: Any = None, *_: Any, **given: Any) -> Any:
        share = _number(ratio) if ratio is not None else given.get("ratio", 0.5)
        return self.layer(node, nn.Dropout(float(share)), x)

    # Shapes.

    def on_Constant(self, node: onnx.NodeProto, **given: Any) -> torch.Tensor:
        (value,) = given.values()
        is_tensor = isinstance(value, onnx.TensorProto)
        array = numpy_helper.to_array(value) if is_tensor else np.asarray(value)
        array = array if is_tensor or array.dtype.kind != "f" else array.astype(np.float32)
        tensor = _tensor(array)
        self._keep(node.output[0], tensor)
        return tensor

    def on_Identity(self, node: onnx.NodeProto, x: Any) -> Any:
        return x

    def on_Shape(self, node: onnx.NodeProto, x: Any, start: int = 0, end: int | None = None) -> Any:
        ndim = len(x.shape)
        return Sizes(self.size(x, dim) for dim in range(ndim)[start:end])

    def on_Cast(self, node: onnx.NodeProto, x: Any, to: int, **_: Any) -> Any:
        kind = onnx.helper.tensor_dtype_to_np_dtype(to)
        if isinstance(x, Sizes):
            return x
        dtype = torch.from_numpy(np.zeros(1, kind)).dtype
        dtype = torch.float32 if dtype in (torch.float16, torch.float64) else dtype
        examples = x.examples if isinstance(x, Value) else (x,)
        return x if examples[0].dtype == dtype else self.call(torch.Tensor.to, x, dtype)

    def on_Reshape(self, node: onnx.NodeProto, x: Any, shape: Any, allowzero: int = 0) -> Any:
        target = list(shape) if isinstance(shape, Sizes) else shape.tolist()
        if isinstance(x, Sizes):
            return _as(x, scalar=not target)
        if not allowzero:
            target = [self.size(x, dim) if size == 0 else size for dim, size in enumerate(target)]
        if self.fixed and isinstance(x, Value) and any(x.is_open) and all(isinstance(size, int) for size in target):
            target = self._opened(x, target, self.fixed)
        return self.call(torch.reshape, x, target)

    def _opened(self, x: Value, target: list[int], fixed: int) -> list[int]:
        """The shape that a file for one number of samples gives, with that number open.

        As a rule it stands by itself, where as many values lie before it as before the open dimension of `x`; it may
        be one factor of a size, too. Whoever reads it wrongly hears of it: all outputs are held against the file's.
        """
        place = x.is_open.index(True)
        shape = [
            size * fixed // NUM_FIRST if is_open else size for size, is_open in zip(x.shape, x.is_open, strict=True)
        ]
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

    def on_Flatten(self, node: onnx.NodeProto, x: Any, axis: int = 1) -> Any:
        if axis == 1:
            return self.layer(node, nn.Flatten(), x)
        return self.call(torch.flatten, self.call(torch.flatten, x, axis), 0, axis - 1)

    def on_Transpose(self, node: onnx.NodeProto, x: Any, perm: Sequence[int] | None = None) -> Any:
        return self.call(torch.permute, x, tuple(perm or range(len(x.shape))[::-1]))

    def on_Squeeze(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        if isinstance(x, Sizes):
            return _as(x, scalar=True)
        axes = _axes(rest, given)
        ones = [dim for dim, size in enumerate(x.shape) if size == 1]
        return self.call(torch.squeeze, x, tuple(ones) if axes is None else tuple(axes))

    def on_Unsqueeze(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        if isinstance(x, Sizes):
            return _as(x, scalar=False)
        axes = _axes(rest, given) or []
        ndim = len(x.shape) + len(axes)
        for axis in sorted(axis % ndim for axis in axes):
            x = self.call(torch.unsqueeze, x, axis)
        return x

    def on_Concat(self, node: onnx.NodeProto, *given: Any, axis: int) -> Any:
        if any(isinstance(value, Sizes) for value in given):
            return Sizes(size for value in given for size in _list(value))
        return self.call(torch.cat, list(given), axis)

    def on_Split(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        axis = given.get("axis", 0)
        sizes = rest[0].tolist() if rest and rest[0] is not None else given.get("split")
        if sizes is None:
            step = -(-x.shape[axis] // len(node.output))
            sizes = [min(step, x.shape[axis] - start) for start in range(0, x.shape[axis], step)]
        return self.parts(self.call(torch.split, x, list(sizes), axis), len(sizes))

    def on_Slice(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
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
                    raise self.refusal(node, "goes backwards through a part of a dimension")
                x = self.call(torch.flip, x, (axis,))
                continue
            places = [slice(None)] * len(x.shape)
            places[axis] = slice(start, None if isinstance(stop, int) and stop >= x.shape[axis] else stop, step)
            x = self.call(operator.getitem, x, tuple(places))
        return x

    def on_Gather(self, node: onnx.NodeProto, x: Any, index: Any, axis: int = 0) -> Any:
        if isinstance(x, Sizes):
            chosen = [x[place] for place in index.reshape(-1).tolist()]
            return _as(Sizes(chosen), scalar=index.ndim == 0)
        if isinstance(x, torch.Tensor) and x.ndim == 2 and axis == 0 and isinstance(index, Value):
            layer = _filled(nn.Embedding(*x.shape), weight=x)
            return self.layer(node, layer, index, name=self._weight_name(x))
        axis %= len(x.shape)
        if isinstance(index, torch.Tensor) and index.ndim == 0:
            return self.call(torch.select, x, axis, int(index))
        flat = index.reshape(-1) if isinstance(index, torch.Tensor) else self.call(torch.flatten, index)
        picked = self.call(torch.index_select, x, axis, flat)
        if len(index.shape) == 1:
            return picked
        sizes = [self.size(index, dim) for dim in range(len(index.shape))]
        return self.call(torch.Tensor.unflatten, picked, axis, sizes)

    def on_Expand(self, node: onnx.NodeProto, x: Any, shape: Any) -> Any:
        target = _list(shape)
        own = [1] * (len(target) - len(x.shape)) + list(x.shape)
        target = [1] * (len(own) - len(target)) + target
        pairs = zip(target, own, range(-len(own), 0), strict=True)
        sizes = [-1 if self._is_one(size) and -dim <= len(x.shape) else size for size, _, dim in pairs]
        return self.call(torch.Tensor.expand, x, sizes)

    @staticmethod
    def _is_one(size: Any) -> bool:
        return isinstance(size, int) and size == 1

    def on_Tile(self, node: onnx.NodeProto, x: Any, repeats: Any) -> Any:
        return self.call(torch.tile, x, tuple(_list(repeats)))

    def on_ConstantOfShape(self, node: onnx.NodeProto, shape: Any, value: Any = None) -> Any:
        fill = torch.zeros(1) if value is None else _tensor(numpy_helper.to_array(value))
        return self.call(torch.full, _list(shape), fill.item(), dtype=fill.dtype)

    def on_Range(self, node: onnx.NodeProto, start: Any, limit: Any, delta: Any) -> Any:
        return self.call(
            torch.arange, *(value[0] if isinstance(value, Sizes) else _number(value) for value in (start, limit, delta))
        )

    def on_Pad(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        pads = _list(rest[0]) if rest else list(given["pads"])
        value = _number(rest[1]) if len(rest) > 1 and rest[1] is not None else given.get("value", 0.0)
        ndim = len(x.shape)
        axes = [axis % ndim for axis in _list(rest[2])] if len(rest) > 2 and rest[2] is not None else list(range(ndim))
        before, after = [0] * ndim, [0] * ndim
        for place, axis in enumerate(axes):
            before[axis], after[axis] = pads[place], pads[place + len(axes)]
        mode = {b"constant": "constant", b"reflect": "reflect", b"edge": "replicate"}[given.get("mode", b"constant")]
        if mode == "constant":
            return self.call(F.pad, x, _reversed(before, after), value=value)
        first = next((dim for dim in range(ndim) if before[dim] or after[dim]), ndim - 1)
        return self.call(F.pad, x, _reversed(before[max(first, 2) :], after[max(first, 2) :]), mode)

    def on_Upsample(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        scales = rest[0] if rest else torch.tensor(given.pop("scales"))
        given["coordinate_transformation_mode"] = b"asymmetric"
        return self.on_Resize(node, x, None, scales, **given)

    def on_Resize(
        self, node: onnx.NodeProto, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None, **given: Any
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
                return self.layer(node, nn.Upsample(scale_factor=tuple(factors), mode="nearest"), x)
            return self.call(F.interpolate, x, target, mode="nearest")
        if mode == b"linear" and way in (b"half_pixel", b"pytorch_half_pixel", b"align_corners"):
            if way != b"align_corners" and whole:
                return self.layer(node, nn.Upsample(scale_factor=tuple(factors), mode=linear, align_corners=False), x)
            return self.call(F.interpolate, x, target, mode=linear, align_corners=way == b"align_corners")
        raise self.refusal(node, f"has mode {mode.decode()} with {way.decode()}, which PyTorch does not have")

    def on_DepthToSpace(self, node: onnx.NodeProto, x: Any, blocksize: int, mode: bytes = b"DCR") -> Any:
        if mode == b"DCR":  # the channels of a pixel's places stand outside those of the picture, not inside
            inner = self.call(torch.Tensor.unflatten, x, 1, (blocksize**2, -1))
            x = self.call(torch.flatten, self.call(torch.transpose, inner, 1, 2), 1, 2)
        return self.layer(node, nn.PixelShuffle(blocksize), x)

    def on_SpaceToDepth(self, node: onnx.NodeProto, x: Any, blocksize: int) -> Any:
        y = self.call(F.pixel_unshuffle, x, blocksize)
        inner = self.call(torch.Tensor.unflatten, y, 1, (-1, blocksize**2))
        return self.call(torch.flatten, self.call(torch.transpose, inner, 1, 2), 1, 2)

    # Sums over dimensions, and numbers.

    def on_ReduceMean(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        return self._reduced(torch.mean, x, rest, given)

    def on_ReduceSum(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        return self._reduced(torch.sum, x, rest, given)

    def on_ReduceMax(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        return self._reduced(torch.amax, x, rest, given)

    def on_ReduceMin(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        return self._reduced(torch.amin, x, rest, given)

    def on_ReduceL2(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        squares = self._reduced(torch.sum, self.call(operator.mul, x, x), rest, given)
        return self.call(torch.sqrt, squares)

    def on_ReduceProd(self, node: onnx.NodeProto, x: Any, *rest: Any, **given: Any) -> Any:
        if not isinstance(x, Sizes):
            (axis,) = _axes(rest, given) or range(len(x.shape))
            return self.call(torch.prod, x, axis, bool(given.get("keepdims", 1)))
        product = x[0]
        for size in x[1:]:
            product = self.call(operator.mul, product, size)
        return _as(Sizes([product]), scalar=not given.get("keepdims", 1))

    def _reduced(self, function: Callable[..., Any], x: Any, rest: Any, given: Mapping[str, Any]) -> Any:
        axes = _axes(rest, given)
        if axes is None or not axes:
            if given.get("noop_with_empty_axes"):
                return x
            axes = list(range(len(x.shape)))
        return self.call(function, x, tuple(axes), bool(given.get("keepdims", 1)))

    def on_ArgMax(self, node: onnx.NodeProto, x: Any, axis: int = 0, keepdims: int = 1, **_: Any) -> Any:
        return self.call(torch.argmax, x, axis, bool(keepdims))

    def on_Einsum(self, node: onnx.NodeProto, *given: Any, equation: bytes) -> Any:
        return self.call(torch.einsum, equation.decode(), *given)

    def on_Mod(self, node: onnx.NodeProto, a: Any, b: Any, fmod: int = 0) -> Any:
        return self._each(torch.fmod if fmod else operator.mod, a, b)

    def on_Sub(self, node: onnx.NodeProto, a: Any, b: Any) -> Any:
        return self._each(operator.sub, a, b)

    def on_Mul(self, node: onnx.NodeProto, a: Any, b: Any) -> Any:
        return self._each(operator.mul, a, b)

    def on_Div(self, node: onnx.NodeProto, a: Any, b: Any) -> Any:
        kinds = [value.examples[0] if isinstance(value, Value) else value for value in (a, b)]
        whole = all(isinstance(kind, Sizes) or not kind.is_floating_point() for kind in kinds)
        return self._each(operator.floordiv if whole else operator.truediv, a, b)

    def _each(self, function: Callable[..., Any], a: Any, b: Any) -> Any:
        if not isinstance(a, Sizes) and not isinstance(b, Sizes):
            return self.call(function, *_numbers(a, b))
        ones, others = _list(a), _list(b)
        length = max(len(ones), len(others))
        pairs = zip(ones * (length // len(ones)), others * (length // len(others)), strict=True)
        scalar = all(value.is_scalar if isinstance(value, Sizes) else value.ndim == 0 for value in (a, b))
        return _as(Sizes(self.call(function, one, other) for one, other in pairs), scalar=scalar)

    def on_Where(self, node: onnx.NodeProto, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(a, Sizes) or isinstance(b, Sizes):
            ones, others, chosen = _list(a), _list(b), _list(condition)
            return Sizes(one if choice else other for choice, one, other in zip(chosen, ones, others, strict=True))
        return self.call(torch.where, condition, a, b)

    def on_Equal(self, node: onnx.NodeProto, a: Any, b: Any) -> Any:
        if isinstance(a, Sizes) or isinstance(b, Sizes):  # whether a size is -1, in what exporters write
            return torch.tensor([one is other or one == other for one, other in zip(_list(a), _list(b), strict=True)])
        return self.call(operator.eq, a, b)

    def on_Max(self, node: onnx.NodeProto, *given: Any) -> Any:
        return self._folded(torch.maximum, given)

    def on_Min(self, node: onnx.NodeProto, *given: Any) -> Any:
        return self._folded(torch.minimum, given)

    def on_Sum(self, node: onnx.NodeProto, *given: Any) -> Any:
        return self._folded(operator.add, given)

    def _folded(self, function: Callable[..., Any], given: Sequence[Any]) -> Any:
        result = given[0]
        for value in given[1:]:
            result = self.call(function, result, value)
        return result

    def _constant(self, node: onnx.NodeProto, *weights: Any) -> None:
        if any(isinstance(weight, Value) for weight in weights):
            raise self.refusal(node, "has weights that depend on what the network is given")

    def _window(self, x: Any, given: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
        """Kernel, strides, dilations, and pads before and behind."""
        kernel = tuple(given["kernel_shape"])
        strides, dilations = (tuple(given.get(key, (1,) * len(kernel))) for key in ("strides", "dilations"))
        return (kernel, strides, dilations, *self._pads(x, kernel, strides, dilations, given))

    def _pads(
        self, x: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], given: Mapping[str, Any]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        dims, auto = len(kernel), given.get("auto_pad", b"NOTSET")
        if not auto.startswith(b"SAME"):
            pads = tuple(given.get("pads", (0,) * 2 * dims)) if auto != b"VALID" else (0,) * 2 * dims
            return pads[:dims], pads[dims:]
        every = zip(x.shape[2:], kernel, strides, dilations, strict=True)
        whole = [max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size) for size, k, s, d in every]
        small, large = tuple(size // 2 for size in whole), tuple(size - size // 2 for size in whole)
        return (small, large) if auto == b"SAME_UPPER" else (large, small)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Selu": F.selu, "HardSwish": F.hardswish, "Softplus": F.softplus,
    "Softsign": F.softsign, "Mish": F.mish, "Swish": F.silu, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs, "Reciprocal": torch.reciprocal, "Pow": torch.pow,
    "Sin": torch.sin, "Cos": torch.cos, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Sign": torch.sign, "Not": torch.logical_not, "And": torch.logical_and, "Or": torch.logical_or,
    "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge, "LessOrEqual": operator.le,
}  # fmt: skip
"""Operators that take what the function takes."""


def _tensor(array: np.ndarray) -> torch.Tensor:
    """float32 where it was another float."""
    array = np.array(array)
    return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)


def _settled(value: Any) -> Any:
    """Sizes that depend on nothing are a constant."""
    if not isinstance(value, Sizes) or any(isinstance(size, Value) for size in value):
        return value
    return torch.tensor(value[0] if value.is_scalar else list(value), dtype=torch.int64)


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


def _called(node: onnx.NodeProto) -> str:
    return node.name or f"of {node.output[0]}"
