"""What accelerators leave out of files by their makers' rules, shown of hand-written .tflite and .onnx files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgedl import inspecting
from edgedl.cli.main import app
from edgedl.core import ModelFileError
from edgedl.nvidia import building, dla
from edgedl.report import lines
from edgedl.tasks.cifar10 import Cifar10
from edgedl.tasks.control import Control
from edgedl.tasks.digits import Digits
from edgedl.tasks.keywords import Keywords
from edgedl.tflite import delegate_rules, gpu_delegate
from edgedl.tflite.delegate_rules import Operator
from edgedl.tflite.flatbuffer import IDENTIFIER, Flatbuffer


def write_tflite(file: Path, kinds: Sequence[str], shape: Sequence[int] = (1, 4)) -> Path:
    """Operators of one input and one output each, in a row."""
    import flatbuffers

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], [schema.BufferT()], []
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [0], [len(kinds)]
    for index in range(len(kinds) + 1):
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = f"layer{index}".encode(), schema.TensorType.FLOAT32, 0
        tensor.shape, tensor.hasRank = list(shape), True
        graph.tensors.append(tensor)
    for index, kind in enumerate(kinds):
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        builtin = getattr(schema.BuiltinOperator, kind)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        model.operatorCodes.append(code)
        operator.opcodeIndex, operator.inputs, operator.outputs = index, [index], [index + 1]
        graph.operators.append(operator)
    if "L2_NORMALIZATION" in kinds:
        normalizing = graph.operators[kinds.index("L2_NORMALIZATION")]
        normalizing.builtinOptionsType = schema.BuiltinOptions.L2NormOptions
        normalizing.builtinOptions = schema.L2NormOptionsT()
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    file.write_bytes(bytes(builder.Output()))
    return file


PARTED = ("RELU", "HARD_SWISH", "L2_NORMALIZATION", "TANH")


def test_what_the_delegate_leaves_out_parts_a_file(tmp_path: Path) -> None:
    found = gpu_delegate.delegated(Flatbuffer(write_tflite(tmp_path / "m.tflite", PARTED).read_bytes()))
    assert (found.num_operators, found.num_parts, found.num_on_gpu) == (4, 2, 2)
    (left,) = found.leaving
    assert (left.kind, left.reason, left.names) == ("L2_NORMALIZATION", "the delegate does not have it", ("layer3",))
    whole = gpu_delegate.delegated(Flatbuffer(write_tflite(tmp_path / "n.tflite", PARTED[:2]).read_bytes()))
    assert (whole.leaving, whole.num_parts, whole.num_on_gpu) == ((), 1, 2)


def operator(
    kind: str, *inputs: Any, out: tuple[int, ...] = (1, 8, 8, 4), out_type: str = "FLOAT32", **options: Any
) -> Operator:
    """Inputs are shapes of computed float32 values; with a type in front of another, with "=" before it constant."""
    types, shapes, constant = [], [], []
    for given in inputs:
        kind_of, shape = given if isinstance(given[0], str) else ("FLOAT32", given) if given else ("FLOAT32", ())
        constant.append(kind_of.startswith("="))
        types.append(kind_of.lstrip("="))
        shapes.append(tuple(shape))
    made = type("Options", (), options) if options else None
    return Operator(kind, "layer", types, shapes, constant, [out_type], [out], made)


IMAGE = (1, 8, 8, 4)
WEIGHT = ("=FLOAT32", (4, 3, 3, 4))
TAKEN = {
    "a convolution": operator("CONV_2D", IMAGE, WEIGHT, ("=FLOAT32", (4,))),
    "an int8 one": operator("CONV_2D", ("INT8", IMAGE), ("=INT8", (4, 3, 3, 4)), ("=INT32", (4,)), out_type="INT8"),
    "a depthwise one": operator("DEPTHWISE_CONV_2D", IMAGE, ("=FLOAT32", (1, 3, 3, 4)), depthMultiplier=1),
    "a sum": operator("ADD", IMAGE, IMAGE),
    "a number in a sum": operator("ADD", IMAGE, ("=FLOAT32", (4,))),
    "a sum that broadcasts rows to an image": operator("ADD", IMAGE, (1, 4)),
    "a mean": operator("MEAN", IMAGE, ("=INT32", (2,))),
    "a comparison": operator("GREATER", IMAGE, IMAGE, out_type="BOOL"),
    "a gather": operator("GATHER", (10, 4), ("INT32", (5,)), out=(5, 4)),
    "a slice": operator("SLICE", IMAGE, ("=INT32", (4,)), ("=INT32", (4,))),
}
LEFT = {
    "one that it does not have": (operator("WHILE", IMAGE), "does not have it"),
    "a sum of different ranks": (operator("ADD", (48, 96), (1, 48, 96), out=(1, 48, 96)), "combine 48×96 with 1×48×96"),
    "five dimensions": (operator("TANH", (1, 2, 3, 4, 5), out=(1, 2, 3, 4, 5)), "up to 4 dimensions, not 5"),
    "int16": (operator("TANH", ("INT16", IMAGE), out_type="INT16"), "does not take int16"),
    "indices": (operator("RESHAPE", ("INT32", (1, 4)), ("=INT32", (1,)), out_type="INT32"), "does not take int32"),
    "a mean over computed axes": (operator("MEAN", IMAGE, ("INT32", (2,))), "takes 1 computed inputs"),
    "a slice of two dimensions": (operator("SLICE", (4, 4), ("=INT32", (2,)), ("=INT32", (2,))), "3 or 4 dimensions"),
    "a slice that drops a dimension": (operator("STRIDED_SLICE", IMAGE, shrinkAxisMask=1), "adds nor drops"),
    "a padding of two dimensions": (operator("PAD", (4, 4), ("=INT32", (2, 2))), "pads 3 or 4"),
    "a symmetric padding": (operator("MIRROR_PAD", IMAGE, ("=INT32", (4, 2)), mode=1), "reflects only"),
    "a cast to int64": (operator("CAST", IMAGE, out_type="INT64"), "makes no int64 of float32"),
    "a softmax with a beta": (operator("SOFTMAX", IMAGE, beta=2.0), "beta has to be 1"),
    "weights in another order": (operator("FULLY_CONNECTED", (1, 4), WEIGHT, weightsFormat=1), "another order"),
    "a lookup of float16 rows": (operator("EMBEDDING_LOOKUP", ("INT32", (5,)), ("=FLOAT16", (9, 4))), "float32 rows"),
    "a choice that broadcasts": (operator("SELECT_V2", ("BOOL", IMAGE), (1, 1, 1, 4), IMAGE), "the output's shape"),
    "corners and centers": (
        operator("RESIZE_BILINEAR", IMAGE, ("=INT32", (2,)), alignCorners=True, halfPixelCenters=True), "not both",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_what_the_delegate_takes(case: str) -> None:
    assert delegate_rules.why_not(TAKEN[case]) is None


@pytest.mark.parametrize("case", LEFT)
def test_what_the_delegate_leaves(case: str) -> None:
    given, said = LEFT[case]
    reason = delegate_rules.why_not(given)
    assert reason is not None
    assert said in reason


def test_every_rule_is_of_an_operator_that_there_is() -> None:
    assert set(delegate_rules.RULES) <= set(vars(schema.BuiltinOperator))
    assert set(dla.RULES) <= {operator.name for operator in onnx.defs.get_all_schemas()}


def write_onnx(file: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], shape: Sequence[int]) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(file))
    return file


HALF = {"weight": np.zeros((4, 3, 3, 3), np.float16)}
SHAPE = (1, 3, 16, 16)
NODE = helper.make_node
ON_DLA = {
    "a convolution": (NODE("Conv", ["image", "weight"], ["y"], pads=[1] * 4), {}),
    "its kernel": (NODE("Conv", ["image", "w33"], ["y"], pads=[16] * 4), {"w33": np.zeros((1, 3, 33, 33), np.float16)}),
    "its stride": (NODE("Conv", ["image", "weight"], ["y"], strides=[9, 9]), {}),
    "a pooling": (NODE("MaxPool", ["image"], ["y"], kernel_shape=[8, 8]), {}),
    "its window": (NODE("MaxPool", ["image"], ["y"], kernel_shape=[16, 16]), {}),
    "an average over a padding": (NODE("AveragePool", ["image"], ["y"], kernel_shape=[2, 2], pads=[1] * 4), {}),
    "a mean": (NODE("ReduceMean", ["image"], ["y"]), {}),
    "a product of two inputs": (NODE("MatMul", ["image", "image"], ["y"]), {}),
    "channels joined": (NODE("Concat", ["image", "image"], ["y"], axis=1), {}),
    "rows joined": (NODE("Concat", ["image", "image"], ["y"], axis=2), {}),
    "a doubling": (NODE("Resize", ["image", "", "s2"], ["y"], mode="nearest"), {"s2": np.float32([1, 1, 2, 2])}),
    "an odd scale": (NODE("Resize", ["image", "", "s2"], ["y"], mode="nearest"), {"s2": np.float32([1, 1, 1.5, 2])}),
    "a choice": (NODE("Gather", ["image", "i"], ["y"]), {"i": np.int64([0])}),
}
FALLING = {
    "its kernel": "kernel has to be 1 to 32, and is 33×33", "its stride": "stride has to be 1 to 8, and is 9×9",
    "its window": "window has to be 1 to 8, and is 16×16", "an average over a padding": "padding has to count",
    "a mean": "does not have it", "a product of two inputs": "second input has to be constant",
    "rows joined": "joins channels only", "an odd scale": "scales have to be whole", "a choice": "op_reconstruction",
}  # fmt: skip


@pytest.mark.parametrize("case", ON_DLA)
def test_what_a_dla_runs(tmp_path: Path, case: str) -> None:
    node, constants = ON_DLA[case]
    found = dla.on_dla(write_onnx(tmp_path / "m.onnx", [node], HALF | constants, SHAPE))
    assert (found.num_layers, found.note, found.asked) == (1, None, False)
    assert [falling.kind for falling in found.falling] == ([node.op_type] if case in FALLING else [])
    assert all(FALLING[case] in falling.reason for falling in found.falling)


def test_a_dla_takes_neither_float32_nor_quantizers_nor_free_sizes(tmp_path: Path) -> None:
    node = NODE("Relu", ["image"], ["y"])
    assert "float32" in str(dla.on_dla(write_onnx(tmp_path / "m.onnx", [node], {}, SHAPE)).note)
    quantizer = NODE("QuantizeLinear", ["image", "scale"], ["q"])
    quantized = [quantizer, NODE("DequantizeLinear", ["q", "scale"], ["d"]), NODE("Relu", ["d"], ["y"])]
    note = dla.on_dla(write_onnx(tmp_path / "q.onnx", quantized, {"scale": np.float16(1)}, SHAPE)).note
    assert "takes no Q/DQ nodes" in str(note)
    free = dla.on_dla(write_onnx(tmp_path / "f.onnx", [node], HALF, ("batch", 3, 16, 16)))
    assert [falling.reason for falling in free.falling] == ["its sizes have to be fixed"]


def test_weights_that_are_made_when_the_engine_is_built_are_constant(tmp_path: Path) -> None:
    """As an exporter leaves them: dequantized, then transposed."""
    weights = {"codes": np.zeros((4, 16), np.int8), "scale": np.float16(1)}
    nodes = [
        NODE("DequantizeLinear", ["codes", "scale"], ["d"]),
        NODE("Transpose", ["d"], ["t"], perm=[1, 0]),
        NODE("MatMul", ["image", "t"], ["y"]),
    ]
    found = dla.on_dla(write_onnx(tmp_path / "m.onnx", nodes, weights, (1, 16)))
    assert (found.num_layers, found.falling, found.note) == (1, (), None)


def test_nothing_is_asked_of_tensorrt_without_a_dla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_onnx(tmp_path / "m.onnx", [NODE("Relu", ["image"], ["y"])], HALF, SHAPE)
    assert building.not_on_dla(tensorrt_rtx, file) is None
    monkeypatch.setattr(building, "find_gpu", lambda: "some GPU")  # which has none: TensorRT-RTX says so
    assert building.not_on_dla(tensorrt_rtx, file) is None


@pytest.mark.parametrize(
    ("shape", "found"),
    [((1, 3, 224, 224), "NCHW"), ((1, 224, 224, 3), "NHWC"), ((1, 1, 28, 28), "NCHW"), ((1, 3, 3, 3), None),
     ((1, 64, 7, 9), None), ((1, 128), None)],
)  # fmt: skip
def test_how_an_image_lies(shape: tuple[int, ...], found: str | None) -> None:
    assert inspecting.layout(shape) == found


def test_a_file_is_shown_as_a_table_and_as_json(tmp_path: Path) -> None:
    file = write_tflite(tmp_path / "model.tflite", PARTED, (1, 8, 8, 3))
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "artifact.json").write_text(
        json.dumps({"preprocessing": {"x": {"scale": 2}}, "target": {"use": "tflite"}})
    )
    told = CliRunner().invoke(app, ["inspect", str(file), "--json"])
    assert told.exit_code == 0, told.output
    (row,) = json.loads(told.stdout)
    assert row["inputs"] == [
        {"name": "layer0", "dtype": "float32", "shape": [1, 8, 8, 3], "free": [], "layout": "NHWC"}
    ]
    assert (row["target"], row["labels"], row["metadata"], row["size_bytes"]) == (
        "tflite",
        2,
        False,
        file.stat().st_size,
    )
    assert row["preprocessing"] == {"x": {"scale": 2}}
    (found,) = row["accelerators"]
    assert (found["accelerator"], found["stay"], found["operators"], found["parts"]) == (
        inspecting.GPU_DELEGATE,
        2,
        4,
        2,
    )
    assert found["leaving"] == [
        {"operator": "L2_NORMALIZATION", "reason": "the delegate does not have it", "times": 1, "layers": ["layer3"]}
    ]
    table = CliRunner().invoke(app, ["inspect", str(file)], env={"COLUMNS": "200"})
    assert table.exit_code == 0
    for said in ("NHWC", "2 of 4", "L2_NORMALIZATION", "divides into 2 parts"):
        assert said in table.stdout
    assert lines.accelerators(row) == (
        "LiteRT's GPU delegate would keep 2 of 4 operators, the largest of 2 parts, without L2_NORMALIZATION ×1 (the "
        "delegate does not have it)"
    )
    assert lines.accelerators(row | {"accelerators": [found | {"leaving": []}]}) is None


def test_what_cannot_be_inspected_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"no file .*absent\.tflite"):
        inspecting.inspect(str(tmp_path / "absent.tflite"), tmp_path)
    with pytest.raises(ModelFileError, match=r'unknown ending "\.bin"; there are: \.tflite'):
        inspecting.inspect(str(tmp_path / "m.bin"), tmp_path)
    (tmp_path / "m.tflite").write_bytes(b"no TFLite")
    with pytest.raises(ModelFileError, match=r"m\.tflite: no TFLite file"):
        inspecting.inspect(str(tmp_path / "m.tflite"), tmp_path)


def test_classes_have_names_in_the_order_of_outputs() -> None:
    assert Digits().class_names == tuple("0123456789")
    assert Cifar10().class_names[:2] == ("airplane", "automobile")
    assert Keywords(words=("yes", "no")).class_names == ("yes", "no", "unknown", "silence")
    assert Control().class_names == ()
