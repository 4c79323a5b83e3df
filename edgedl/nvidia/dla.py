"""Which layers of an ONNX file TensorRT would run on the GPU where a Jetson's DLA is asked for, and why.

From NVIDIA's list of ONNX operators on the DLA of Orin (github.com/NVIDIA/Deep-Learning-Accelerator-SW,
operators/README.md) and the limits of layers in TensorRT 10's NvInfer.h; where TensorRT and a DLA are here, from its
own answer. Q/DQ nodes: the DLA takes none but by NVIDIA's translator (the same repository, tools/qdq-translator), and
it computes in half precision or int8, so that float32 layers go to the GPU, too. Not checked on a DLA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl.nvidia import building
from edgedl.sessions import MissingPackage

if TYPE_CHECKING:
    import onnx

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
FREE = {"Cast", "Constant", "ConstantOfShape", "Identity", "Shape"}
"""What is no layer, or done when the engine is built."""
REWRITTEN = {
    "And", "DepthToSpace", "Gather", "GRU", "Neg", "Not", "Or", "ScatterElements", "SpaceToDepth", "Where", "Xor",
}  # fmt: skip
"""What NVIDIA shows how to write with operators that the DLA has."""
MAX_CHANNELS, MAX_SIZE = 8192, 8192


@dataclass(frozen=True)
class Falling:
    """Layers of one operator that run on the GPU for one reason."""

    kind: str
    reason: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class OnDla:
    """What a DLA would run of a file."""

    num_layers: int
    falling: tuple[Falling, ...]
    note: str | None
    """Why none would, whatever they are."""
    asked: bool
    """Whether TensorRT itself was asked, on a device with a DLA."""


@dataclass(frozen=True)
class Node:
    """What the rules ask of an operator."""

    kind: str
    settings: Mapping[str, Any]
    constants: Sequence[Any | None]
    """Its inputs that are constants, as arrays."""
    shape: Sequence[int] | None
    """Of its first input."""

    def setting(self, name: str, default: Any) -> Any:
        return self.settings.get(name, default)


def on_dla(file: Path) -> OnDla:
    """What a DLA would run of an ONNX file. Raises `MissingPackage` without onnx."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingPackage("looking for layers that leave the DLA needs onnx: pip install onnx") from error

    model = onnx.load(str(file))
    constants = _constants(model.graph)
    nodes = [node for node in model.graph.node if node.op_type not in FREE and node.output[0] not in constants]
    layers = [node for node in nodes if node.op_type not in QUANTIZERS]
    answers = _asked(file)
    reasons: dict[tuple[str, str], list[str]] = {}
    if answers is None:
        for node, seen in zip(layers, _seen(model, layers, constants), strict=True):
            if (reason := why_not(seen)) is not None:
                reasons.setdefault((node.op_type, reason), []).append(node.name or node.output[0])
    else:
        for kind, name in answers:
            reasons.setdefault((kind, "TensorRT says so"), []).append(name)
    falling = tuple(Falling(kind, reason, tuple(names)) for (kind, reason), names in reasons.items())
    return OnDla(len(layers), falling, _note(model, nodes), answers is not None)


def why_not(node: Node) -> str | None:
    """Why a DLA does not run an operator; None if it does."""
    rule = RULES.get(node.kind)
    if rule is None:
        rewritten = ", unless it is written with others as in NVIDIA's op_reconstruction"
        return f"the DLA does not have it{rewritten if node.kind in REWRITTEN else ''}"
    if node.shape is not None and any(size < 1 for size in node.shape):
        return "its sizes have to be fixed"
    if node.shape is not None and any(size > MAX_SIZE for size in node.shape[1:]):
        return f"no dimension may be larger than {MAX_SIZE}"
    return rule(node)


def _note(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> str | None:
    import onnx

    if any(node.op_type in QUANTIZERS for node in nodes):
        return "the DLA takes no Q/DQ nodes; give it the network in fp16, or NVIDIA's Q/DQ translator this file"
    stored = {tensor.data_type for tensor in model.graph.initializer}
    stored |= {entry.i for node in model.graph.node if node.op_type == "Cast" for entry in node.attribute}
    if onnx.TensorProto.FLOAT16 not in stored:
        return "the DLA does not compute in float32; give it the network in fp16"
    return None


def _constants(graph: onnx.GraphProto) -> dict[str, Any]:
    """Arrays of what is constant, and of what is made of such alone, as dequantized weights: those in their codes."""
    from onnx import numpy_helper

    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.input and all(name in found for name in node.input if name):
            order = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
            source = found[node.input[0]]
            found |= {name: source if order is None else source.transpose(order) for name in node.output}
    return found


def _seen(model: onnx.ModelProto, layers: Sequence[onnx.NodeProto], constants: Mapping[str, Any]) -> list[Node]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [size.dim_value if size.HasField("dim_value") else -1 for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return [
        Node(
            node.op_type,
            {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute},
            [constants.get(name) for name in node.input],
            shapes.get(node.input[0]) if node.input else None,
        )
        for node in layers
    ]


def _asked(file: Path) -> list[tuple[str, str]] | None:
    """Kind and name of the layers that TensorRT says its DLA cannot run; None without TensorRT, a GPU or a DLA."""
    try:
        import tensorrt
    except ImportError:
        return None
    return building.not_on_dla(tensorrt, file)


Rule = Callable[[Node], str | None]


def _any(node: Node) -> str | None:
    return None


def _within(what: str, values: Sequence[int], least: int, most: int) -> str | None:
    inside = all(least <= value <= most for value in values)
    return None if inside else f"its {what} has to be {least} to {most}, and is {'×'.join(map(str, values))}"


def _convolution(node: Node) -> str | None:
    weight = node.constants[1]
    if weight is None or weight.ndim != 4:
        return "it takes two dimensions and constant weights"
    kernel, pads = weight.shape[2:], node.setting("pads", [0] * 4)
    return (
        _within("kernel", kernel, 1, 32)
        or _within("padding", pads, 0, 31)
        or (None if max(pads) < max(kernel) else "its padding has to be smaller than its kernel")
        or _within("stride", node.setting("strides", [1, 1]), 1, 8)
        or _within("dilation", node.setting("dilations", [1, 1]), 1, 32)
        or _within("number of channels", weight.shape[:1], 1, MAX_CHANNELS)
    )


def _transposed(node: Node) -> str | None:
    weight = node.constants[1]
    if weight is None or weight.ndim != 4:
        return "it takes two dimensions and constant weights"
    return (
        _within("kernel", weight.shape[2:], 1, 32)
        or _within("padding", node.setting("pads", [0] * 4), 0, 0)
        or _within("number of groups", [node.setting("group", 1)], 1, 1)
        or _within("dilation", node.setting("dilations", [1, 1]), 1, 1)
    )


def _dense(node: Node) -> str | None:
    return None if node.constants[1] is not None else "its second input has to be constant"


def _pooling(node: Node) -> str | None:
    window, pads = node.setting("kernel_shape", []), node.setting("pads", [0] * 4)
    if len(window) != 2:
        return "it takes two dimensions"
    counted = node.kind == "MaxPool" or not any(pads) or node.setting("count_include_pad", 0)
    return (
        _within("window", window, 1, 8)
        or _within("padding", pads, 0, 7)
        or _within("stride", node.setting("strides", [1, 1]), 1, 16)
        or (None if counted else "padding has to count in its average")
    )


def _channels(node: Node) -> str | None:
    axis = node.setting("axis", 1)
    rank = len(node.shape) if node.shape is not None else 4
    return None if axis in (1, 1 - rank) else "it joins channels only"


def _softmax(node: Node) -> str | None:
    axis = node.setting("axis", -1)
    if node.shape is None or len(node.shape) < 2 or axis in (0, -len(node.shape)):
        return "it runs over channels, rows or columns"
    others = [size for index, size in enumerate(node.shape) if index not in (0, axis % len(node.shape))]
    return _within("size", [node.shape[axis]], 1, 8192 if all(size == 1 for size in others) else 1024)


def _slice(node: Node) -> str | None:
    if node.shape is not None and len(node.shape) != 4:
        return f"it takes 4 dimensions, not {len(node.shape)}"
    constants = [*node.constants, None, None, None, None][1:5]
    if constants[0] is None or constants[1] is None:
        return "it wants constant bounds"
    axes, steps = constants[2], constants[3]
    if axes is not None and 0 in axes.reshape(-1):
        return "it does not divide batches"
    return None if steps is None or all(steps.reshape(-1) == 1) else "its steps have to be 1"


def _resize(node: Node) -> str | None:
    scales = node.constants[2] if len(node.constants) > 2 else None
    mode = node.setting("mode", b"nearest").decode()
    most = {"nearest": 32, "linear": 4}.get(mode)
    if most is None:
        return f"it has no mode {mode}"
    if scales is None or scales.size != 4:
        return "it wants four constant scales"
    whole = all(scale == int(scale) for scale in scales) and all(scales[:2] == 1)
    return _within("scale", [int(scale) for scale in scales[2:]], 1, most) if whole else "its scales have to be whole"


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("Abs", "Add", "BatchNormalization", "Clip", "Equal", "LeakyRelu", "LRN", "Max", "Min", "Mul"), _any
    ),
    **dict.fromkeys(("PRelu", "Relu", "Sigmoid", "Sub", "Sum", "Tanh"), _any),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"), _any),
    "AveragePool": _pooling,
    "Concat": _channels,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _dense,
    "MatMul": _dense,
    "MaxPool": _pooling,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
}
