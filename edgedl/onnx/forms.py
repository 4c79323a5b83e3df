"""What becomes of an exported ONNX file in the forms that a PyTorch graph cannot say: an edit of its nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

MIN_HALVED = 16
"""Constants of fewer numbers stay float32 in `store_in_half`: a cast costs more than they do."""
TAKE_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a weight, which int8 kernels want signed."""
LARGEST_4_BIT = 7
COMPUTES_IN_INT8 = 4
"""Of onnxruntime's levels of accuracy, the one below float32 and half precision."""
INT4_OPSET = 21
"""The first that has INT4 and groups in DequantizeLinear."""


@dataclass(frozen=True)
class _Weight:
    """A quantized weight on its way to the node that takes it.

    `codes` are int8, with one scale for each row. Those of groups are (outputs x groups, group size), and `shape` is
    what they are put into: (outputs, inputs); without groups it is that of `codes`.
    """

    user: onnx.NodeProto
    dequantize: onnx.NodeProto
    codes: np.ndarray
    scales: np.ndarray
    shape: tuple[int, ...]
    transposed: bool
    """Whether the user gets (inputs, outputs)."""

    @property
    def grouped(self) -> bool:
        """Whether it has 4 bits, as only weights in groups do here; a group may be a whole row."""
        return bool(np.abs(self.codes).max() <= LARGEST_4_BIT)


class _Editor:
    """A model whose nodes are looked up by what they make, and taken out or put in."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def constant(self, name: str, values: np.ndarray) -> str:
        """Adds an initializer; returns its name."""
        # Not ascontiguousarray, which makes a row of a scalar: QLinearAdd takes no such zero point.
        return self.keep(numpy_helper.from_array(np.asarray(values, order="C"), name))

    def keep(self, tensor: onnx.TensorProto) -> str:
        """Adds an initializer, under another name if its own is taken; returns the name."""
        while tensor.name in self.constants or tensor.name in self.makers:
            tensor.name += "_"
        self.constants[tensor.name] = tensor
        self.graph.initializer.append(tensor)
        return str(tensor.name)

    def value(self, name: str) -> np.ndarray:
        values: np.ndarray = numpy_helper.to_array(self.constants[name])
        return values

    def joined(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Codes and scales, one for each row, of a value that is cut and joined of int8 weights; None for others."""

        def computed(source: str, leaf: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray | None:
            if source in self.constants:
                return self.value(source)
            node = self.makers.get(source)
            if node is None:
                return None
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                return leaf(self.value(node.input[0]), self.value(node.input[1]))
            sources = {given: computed(given, leaf) for given in node.input if given}
            if any(values is None for values in sources.values()):
                return None
            made: np.ndarray = ReferenceEvaluator(node).run(None, sources)[0]
            return made

        codes = computed(name, lambda codes, _: codes)
        scales = computed(name, lambda codes, scales: np.broadcast_to(scales[:, None], codes.shape))
        return None if codes is None or scales is None or codes.dtype != np.int8 else (codes, scales[..., 0])

    def weights(self, kinds: tuple[str, ...]) -> Iterator[_Weight]:
        """The quantized weights that operators of these kinds take as their second input."""
        for user in list(self.graph.node):
            if user.op_type not in kinds:
                continue
            node, transposed = self.makers.get(user.input[1]), False
            if user.op_type == "Gemm":
                transposed = not any(attribute.name == "transB" and attribute.i for attribute in user.attribute)
            if node is not None and node.op_type == "Transpose":
                node, transposed = self.makers.get(node.input[0]), True
            shape = None
            if node is not None and node.op_type == "Reshape":
                shape = tuple(int(size) for size in self.value(node.input[1]))
                node = self.makers.get(node.input[0])
            if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
                continue
            codes, scales = self.value(node.input[0]), self.value(node.input[1])
            if scales.shape == codes.shape[:1]:
                yield _Weight(user, node, codes, scales, shape or codes.shape, transposed)

    def replace(self, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
        """Puts nodes in the place of one."""
        index = next(i for i, node in enumerate(self.graph.node) if node is old or node == old)
        self.graph.node.remove(old)
        for offset, node in enumerate(new):
            self.graph.node.insert(index + offset, node)

    def use_operators_of(self, domain: str) -> None:
        """Notes that nodes may be of a domain beside ONNX's own."""
        if all(opset.domain != domain for opset in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(domain, 1))

    def drop_unused(self) -> None:
        """Removes nodes, and then initializers, that nothing takes."""
        outputs = {value.name for value in self.graph.output}
        while True:
            used = outputs | {name for node in self.graph.node for name in node.input}
            idle = [node for node in self.graph.node if not used & set(node.output)]
            if not idle:
                break
            for node in idle:
                self.graph.node.remove(node)
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name not in used]:
            self.graph.initializer.remove(tensor)


def use_unsigned_activations(file: Path) -> None:
    """Turns int8 activations into uint8 ones: codes and zero points rise by 128, values stay the same.

    onnxruntime has int8 kernels for unsigned activations alone. It rewrites signed ones by itself, but not where
    a value has two consumers: the convolutions of a residual network would stay in float.
    """
    editor = _Editor(onnx.load(str(file)))
    made = {node.output[0] for node in editor.graph.node if node.op_type == "QuantizeLinear"}
    weights = {node.input[1] for node in editor.graph.node if node.op_type in TAKE_WEIGHTS}
    raised: dict[str, str] = {}

    def unsigned(name: str) -> str:
        if name not in raised:
            values = editor.value(name).astype(np.int16) + 128
            raised[name] = editor.constant(f"{name}_unsigned", values.astype(np.uint8))
        return raised[name]

    for node in editor.graph.node:
        made_here = node.op_type == "DequantizeLinear" and node.input[0] in made
        if node.op_type == "QuantizeLinear" or made_here:
            node.input[2] = unsigned(node.input[2])
        elif node.op_type == "DequantizeLinear" and node.output[0] not in weights:  # a constant among activations
            node.input[0], node.input[2] = unsigned(node.input[0]), unsigned(node.input[2])
    del editor.graph.value_info[:]  # the types noted there are of before
    _save(editor, file)


def scale_at_run_time(file: Path) -> None:
    """Turns convolutions and dense layers with int8 weights into their integer forms, in the form that is fused.

    onnxruntime makes one kernel of DynamicQuantizeLinear, MatMulInteger, Cast, Mul and Add. Depthwise and transposed
    convolutions stay float, with int8 weights: their integer forms have no fast kernels.
    """
    editor = _Editor(onnx.load(str(file)))
    codes_of: dict[str, list[str]] = {}
    for weight in editor.weights(("Conv", "Gemm", "MatMul")):
        user, name = weight.user, weight.user.output[0]
        is_convolution = user.op_type == "Conv"
        if is_convolution and weight.codes.shape[1] == 1:
            continue
        source, nodes = user.input[0], []
        if source not in codes_of:  # queries, keys and values share one
            codes_of[source] = [f"{source}_{part}" for part in ("codes", "scale", "zero_point")]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [source], codes_of[source]))
        codes, scale, zero_point = codes_of[source]
        if is_convolution:
            shape, integers = (-1, *[1] * (weight.codes.ndim - 2)), weight.codes
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in user.attribute}
            kind = "ConvInteger"
        else:
            shape, integers = (-1,), weight.codes.T
            attributes, kind = {}, "MatMulInteger"
        held = editor.constant(f"{name}_weight", integers)
        unit = editor.constant(f"{name}_weight_scale", weight.scales.reshape(shape))
        bias = user.input[2] if len(user.input) > 2 else ""
        nodes += [
            helper.make_node(
                kind, [codes, held, zero_point], [f"{name}_sums"], name=f"{user.name}_integer", **attributes
            ),
            helper.make_node("Cast", [f"{name}_sums"], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, unit], [f"{name}_unit"]),
            helper.make_node("Mul", [f"{name}_float", f"{name}_unit"], [f"{name}_product" if bias else name]),
        ]
        if bias:
            added = bias if shape == (-1,) else editor.constant(f"{name}_bias", editor.value(bias).reshape(shape))
            nodes.append(helper.make_node("Add", [f"{name}_product", added], [name]))
        editor.replace(user, nodes)
    _save(editor, file)


def pack_recurrent(file: Path, run_time_scales: bool) -> None:
    """Makes a constant each of the int8 weights of LSTMs and GRUs, which exporters cut and join gate by gate.

    With `run_time_scales`, LSTMs become onnxruntime's operator that quantizes inputs and states when it runs. The
    others, and GRUs, for which there is none, compute in float with weights made of these when a file is loaded.
    """
    editor = _Editor(onnx.load(str(file)))
    for node in [node for node in editor.graph.node if node.op_type in ("LSTM", "GRU")]:
        found = {index: weight for index in (1, 2) if (weight := editor.joined(node.input[index])) is not None}
        if len(found) < 2:
            continue  # the network computes them
        made = onnx.NodeProto()
        made.CopyFrom(node)
        nodes = [made]
        quantizes = run_time_scales and node.op_type == "LSTM"
        if quantizes:
            made.op_type, made.domain = "DynamicQuantizeLSTM", "com.microsoft"
            editor.use_operators_of(made.domain)
            attributes = [attribute for attribute in node.attribute if attribute.name != "layout"]
            del made.attribute[:]
            made.attribute.extend(attributes)  # it knows no layout but the first, the exporter's
            made.input.extend([""] * (8 - len(made.input)))
        for index, (codes, scales) in found.items():
            name = f"{node.name}_{('inputs', 'states')[index - 1]}"
            if quantizes:
                made.input[index] = editor.constant(name, codes.transpose(0, 2, 1))
                made.input.append(editor.constant(f"{name}_scale", scales))
                made.input.append(editor.constant(f"{name}_zero_point", np.zeros(scales.shape, np.int8)))
                continue
            held, unit = editor.constant(name, codes), editor.constant(f"{name}_scale", scales[..., None])
            made.input[index] = f"{name}_weight"
            cast = helper.make_node("Cast", [held], [f"{name}_codes"], to=TensorProto.FLOAT)
            nodes[-1:-1] = [cast, helper.make_node("Mul", [f"{name}_codes", unit], [made.input[index]])]
        editor.replace(node, nodes)
    _save(editor, file)


def pack_for_onnxruntime(file: Path, run_time_scales: bool) -> None:
    """Turns dense layers with 4-bit weights in groups into onnxruntime's MatMulNBits.

    With `run_time_scales`, its kernel makes int8 codes of inputs, too, with a scale for each group of each row.
    """
    editor = _Editor(onnx.load(str(file)))
    for weight in editor.weights(("Gemm", "MatMul")):
        if not weight.grouped:
            continue
        user, name, (num_outputs, num_inputs) = weight.user, weight.user.output[0], weight.shape
        group = weight.codes.shape[1]
        unsigned = (weight.codes.reshape(num_outputs, -1, group) + 8).astype(np.uint8)  # the kernel's zero point is 8
        inputs = [
            user.input[0],
            editor.constant(f"{name}_weight", unsigned[..., 0::2] | unsigned[..., 1::2] << 4),
            editor.constant(f"{name}_weight_scale", weight.scales),
        ]
        if user.op_type == "Gemm" and len(user.input) > 2:
            inputs += ["", "", user.input[2]]
        attributes = {"K": num_inputs, "N": num_outputs, "bits": 4, "block_size": group}
        if run_time_scales:
            attributes["accuracy_level"] = COMPUTES_IN_INT8
        packed = helper.make_node("MatMulNBits", inputs, [name], user.name, domain="com.microsoft", **attributes)
        editor.replace(user, [packed])
    editor.use_operators_of("com.microsoft")
    _save(editor, file)


def pack_for_tensorrt(file: Path) -> None:
    """Stores 4-bit weights in groups as INT4, in the groups of DequantizeLinear."""
    editor = _Editor(onnx.load(str(file)))
    for weight in editor.weights(("Gemm", "MatMul")):
        if not weight.grouped:
            continue
        name, group = weight.user.output[0], weight.codes.shape[1]
        codes, made = weight.codes.reshape(weight.shape), weight.dequantize.output[0]
        low, high = codes[..., 0::2], codes[..., 1::2]
        packed = ((low & 15) | (high & 15) << 4).astype(np.uint8).tobytes()
        held = helper.make_tensor(f"{name}_weight", TensorProto.INT4, weight.shape, packed, raw=True)
        scales = editor.constant(f"{name}_weight_scale", weight.scales.reshape(weight.shape[0], -1))
        dequantize = helper.make_node("DequantizeLinear", [editor.keep(held), scales], [made], axis=1, block_size=group)
        dequantize.name = weight.dequantize.name
        if weight.codes.shape == weight.shape:  # a group is a whole row, and needs no reshape
            editor.replace(weight.dequantize, [dequantize])
            continue
        (reshape,) = (node for node in editor.graph.node if made in node.input)
        dequantize.output[0] = reshape.output[0]
        editor.replace(reshape, [dequantize])
    for opset in editor.model.opset_import:
        if opset.domain == "":
            opset.version = INT4_OPSET
    _save(editor, file)


def store_in_eight_bits(file: Path) -> None:
    """Turns the dequantization of weights into a cast and a product, which onnxruntime computes when it loads a file.

    It leaves DequantizeLinear to every run, or fuses it with a dense layer whose inputs it then rounds to 8 bits.
    """
    editor = _Editor(onnx.load(str(file)))
    for node in list(editor.graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] not in editor.constants:
            continue
        codes, scales, made = editor.value(node.input[0]), editor.value(node.input[1]), node.output[0]
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        shape = [-1 if dimension == axis else 1 for dimension in range(codes.ndim)]
        unit = editor.constant(f"{made}_scale", scales.reshape(shape))
        cast = helper.make_node("Cast", [node.input[0]], [f"{made}_codes"], to=TensorProto.FLOAT)
        editor.replace(node, [cast, helper.make_node("Mul", [f"{made}_codes", unit], [made])])
    _save(editor, file)


def store_in_half(file: Path) -> None:
    """Stores the weights that half precision holds exactly as float16, each with a cast to float32 behind it."""
    editor = _Editor(onnx.load(str(file)))
    for tensor in list(editor.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < MIN_HALVED or not np.array_equal(half.astype(np.float32), values):
            continue
        held = editor.constant(f"{tensor.name}_half", half)
        editor.graph.initializer.remove(tensor)
        editor.graph.node.insert(0, helper.make_node("Cast", [held], [tensor.name], to=TensorProto.FLOAT))
    _save(editor, file)


def _save(editor: _Editor, file: Path) -> None:
    editor.drop_unused()
    onnx.checker.check_model(editor.model)
    onnx.save(editor.model, str(file))


def take_pixels_as_codes(file: Path) -> None:
    """Leaves out conversion and quantization of images of uint8 that are the codes of the network's input already.

    Behind `use_unsigned_activations`: such have the grid of their pixels, with zero at 0.
    """
    editor = _Editor(onnx.load(str(file)))
    pixels = {given.name for given in editor.graph.input if given.type.tensor_type.elem_type == TensorProto.UINT8}
    uses = Counter(name for node in editor.graph.node for name in node.input)
    found = False
    for quantize in [node for node in editor.graph.node if node.op_type == "QuantizeLinear"]:
        moves, factor, node = [], np.ones(1, np.float32), editor.makers.get(quantize.input[0])
        while node is not None and node.op_type in ("Transpose", "Reshape") and uses[node.output[0]] == 1:
            moves.append(node)
            node = editor.makers.get(node.input[0])
        if node is not None and node.op_type == "Mul" and node.input[1] in editor.constants:
            factor, node = editor.value(node.input[1]), editor.makers.get(node.input[0])
        if node is None or node.op_type != "Cast" or node.input[0] not in pixels:
            continue
        scale, zero_point = (editor.value(name) for name in quantize.input[1:3])
        if zero_point.any() or factor.size != 1 or not np.isclose(scale, factor, rtol=1e-6, atol=0).all():
            continue
        if moves:
            moves[-1].input[0], moves[0].output[0] = node.input[0], quantize.output[0]
        for user in editor.graph.node if not moves else ():
            for index, name in enumerate(user.input):
                if name == quantize.output[0]:
                    user.input[index] = node.input[0]
        editor.graph.node.remove(quantize)
        found = True
    if found:
        _save(editor, file)
