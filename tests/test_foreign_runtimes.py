"""Exported files in plain runtimes, with nothing of ours around them, give the scores that the report states."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, numpy_helper

from edgedl.run import Run, read_report
from tests import quick, venvs

# Each is called as `python script.py MODEL DATA.npz OUTPUTS.npy`; it writes raw outputs and prints the accuracy.
SCORE = """
outputs = np.concatenate(outputs)
np.save(sys.argv[3], outputs)
assert not [name for name in sys.modules if name.startswith("edgedl")]
print(json.dumps(float((outputs.argmax(axis=1) == data["labels"]).mean())))
"""
ONNX = """
import json, sys
import numpy as np
import onnxruntime

data = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
outputs = [session.run(None, {name: image[None]})[0] for image in data["images"]]
"""
TFLITE = """
import json, sys
import numpy as np
from RUNTIME.interpreter import Interpreter

data = np.load(sys.argv[2])
interpreter = Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
outputs = []
for image in data["images"]:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
"""
SCRIPTS = {
    "onnxruntime": ONNX + SCORE,
    "ai_edge_litert": TFLITE.replace("RUNTIME", "ai_edge_litert") + SCORE,
    "tflite_runtime": TFLITE.replace("RUNTIME", "tflite_runtime") + SCORE,
}
TFLITE_RUNTIME = ("tflite-runtime==2.14.0", "numpy<2")


@pytest.fixture(scope="module", params=quick.NETWORKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return quick.finished_run(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def data(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "test.npz"
    arrays = run.recipe.task.arrays("test")
    np.savez(file, images=arrays["image"], labels=arrays["label"])
    return file


def row(run: Run, variant: str, target: str) -> dict[str, Any]:
    rows = read_report(run.folder)["rows"]
    (found,) = (row for row in rows if (row["variant"], row["target"]) == (variant, target))
    return found


def run_plainly(runtime: str, python: str | Path, file: Path, data: Path, folder: Path) -> tuple[float, np.ndarray]:
    """Accuracy and raw outputs of a file, by a script that knows of its runtime and numpy alone."""
    script, outputs = folder / f"{runtime}.py", folder / f"{runtime}.npy"
    script.write_text(SCRIPTS[runtime])
    command = [str(python), "-I", str(script), str(file), str(data), str(outputs)]
    done = subprocess.run(command, cwd=folder, env=venvs.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), np.load(outputs)


def python_for_tflite_runtime(factory: pytest.TempPathFactory) -> Path:
    for version in ("3.11", "3.10"):
        if venvs.find_interpreter(version):
            return venvs.make(factory, version, *TFLITE_RUNTIME)
    pytest.skip("tflite-runtime 2.14.0 has wheels up to Python 3.11, and there is no Python 3.10 or 3.11 here")


@pytest.mark.parametrize("variant", ["float", "compressed"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_plain_onnxruntime_gives_the_reported_score(run, data, target, variant, tmp_path):
    stated = row(run, variant, target)
    if target == "tensorrt" and stated["status"] != "built":
        pytest.skip("TensorRT and a GPU are here: the stated score is that of the engine")
    file = run.folder / stated["file"]
    score, outputs = run_plainly("onnxruntime", sys.executable, file, data, tmp_path)
    assert score == stated["score"]
    assert len(outputs) == stated["samples"] == 360


@pytest.mark.parametrize("variant", ["float", "compressed"])
def test_plain_litert_gives_the_reported_score(run, data, variant, tmp_path):
    stated = row(run, variant, "tflite")
    score, outputs = run_plainly("ai_edge_litert", sys.executable, run.folder / stated["file"], data, tmp_path)
    assert score == stated["score"]
    assert len(outputs) == stated["samples"] == 360


@pytest.mark.parametrize("variant", ["float", "compressed"])
def test_old_tflite_runtime_gives_the_reported_score_and_the_same_outputs(
    run, data, variant, tmp_path, tmp_path_factory
):
    python = python_for_tflite_runtime(tmp_path_factory)
    stated = row(run, variant, "tflite")
    file = run.folder / stated["file"]
    score, outputs = run_plainly("tflite_runtime", python, file, data, tmp_path)
    assert score == stated["score"]
    _, expected = run_plainly("ai_edge_litert", sys.executable, file, data, tmp_path)
    step = output_step(file) if variant == "compressed" else 1e-4
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=step * 1.001)


def test_int8_onnx_for_tensorrt_is_what_its_parser_takes(run):
    graph = onnx.load(run.folder / "targets" / "compressed" / "tensorrt" / "model.onnx").graph
    constants = constants_of(graph)
    quantizers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantizers
    for node in quantizers:
        assert constants[node.input[1]].data_type == TensorProto.FLOAT, f"{node.name}: its scale is no constant float"
        if len(node.input) > 2:
            zero_point = constants[node.input[2]]
            assert zero_point.data_type == TensorProto.INT8, f"{node.name}: not int8"
            assert not numpy_helper.to_array(zero_point).any(), f"{node.name}: not symmetric"
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            assert constants[node.input[0]].data_type == TensorProto.INT8, f"{node.name}: no int8 constant"


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_int8_onnx_stores_every_weight_as_int8(run, target):
    def weights(variant: str) -> list[tuple[int, int]]:
        """Type and number of elements of all constants of two dimensions and more, which biases are not."""
        graph = onnx.load(run.folder / "targets" / variant / target / "model.onnx").graph
        matrices = [tensor for tensor in constants_of(graph).values() if len(tensor.dims) > 1]
        return sorted((tensor.data_type, int(np.prod(tensor.dims))) for tensor in matrices)

    stored_as_float = weights("float")
    assert {kind for kind, _ in stored_as_float} == {TensorProto.FLOAT}
    assert weights("compressed") == [(TensorProto.INT8, count) for _, count in stored_as_float]


def test_int8_tflite_computes_in_int8_but_for_its_last_layer(run):
    """What makes the outputs is float, on int8 weights, where it is as small as it is here."""
    graph, kinds = read_tflite(run.folder / row(run, "compressed", "tflite")["file"])
    operators = without_constants(graph, kinds)
    names = [name for name, _ in operators]
    first, last = names.index("QUANTIZE"), names.index("DEQUANTIZE")
    # Before, nothing computes: values are at most put into another shape.
    assert set(names[:first]) <= {"RESHAPE", "TRANSPOSE"}
    assert sorted(set(names[last + 1 :]) - {"RESHAPE"}) == ["FULLY_CONNECTED"]
    assert names[last + 1 :].count("FULLY_CONNECTED") == 1
    between = operators[first + 1 : last]
    assert {"FULLY_CONNECTED"} <= {name for name, _ in between}
    for name, operator in between:
        for tensor in computed(graph, operator):
            assert tensor.type == schema.TensorType.INT8, f"{name}: {tensor.name} is of type {tensor.type}"


def test_int8_tflite_has_the_kernels_of_the_float_file_and_no_conversions_between_them(run):
    graph, kinds = read_tflite(run.folder / row(run, "compressed", "tflite")["file"])
    float_graph, float_kinds = read_tflite(run.folder / row(run, "float", "tflite")["file"])
    names = [name for name, _ in without_constants(graph, kinds)]
    assert names.count("QUANTIZE") == names.count("DEQUANTIZE") == 1
    kept = [name for name in names if name not in ("QUANTIZE", "DEQUANTIZE")]
    assert sorted(kept) == sorted(float_kinds[operator.opcodeIndex] for operator in float_graph.operators)


def test_int8_tflite_stores_every_weight_as_int8(run):
    model = schema.Model.GetRootAs((run.folder / row(run, "compressed", "tflite")["file"]).read_bytes(), 0)
    whole = schema.ModelT.InitFromObj(model)
    (graph,) = whole.subgraphs
    stored = [tensor for tensor in graph.tensors if whole.buffers[tensor.buffer].data is not None]
    assert {tensor.type for tensor in stored if len(tensor.shape) > 1} == {schema.TensorType.INT8}


def without_constants(graph: Any, kinds: list[str]) -> list[tuple[str, Any]]:
    """Operators with their names, but for those that dequantize a constant, which runtimes do once."""
    made = {int(index) for operator in graph.operators for index in operator.outputs} | set(map(int, graph.inputs))
    named = [(kinds[operator.opcodeIndex], operator) for operator in graph.operators]
    return [(name, operator) for name, operator in named if int(operator.inputs[0]) in made]


def constants_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    return found | {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}


def read_tflite(file: Path) -> tuple[Any, list[str]]:
    """The only subgraph of a file, and the operator names behind its operators' codes."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    (graph,) = model.subgraphs
    return graph, [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]


def computed(graph: Any, operator: Any) -> Iterator[Any]:
    """What an operator takes and gives, but for int32 that it does not compute in: biases, shapes and axes."""
    for index in [*operator.inputs, *operator.outputs]:
        if index >= 0 and not (index in operator.inputs and graph.tensors[index].type == schema.TensorType.INT32):
            yield graph.tensors[index]


def output_step(file: Path) -> float:
    """The scale of what the last DEQUANTIZE takes."""
    graph, kinds = read_tflite(file)
    last = [operator for operator in graph.operators if kinds[operator.opcodeIndex] == "DEQUANTIZE"][-1]
    return float(graph.tensors[last.inputs[0]].quantization.scale[0])
