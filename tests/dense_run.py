"""A finished run whose files are written by hand, a dense layer on the digits: what devices are sent, in a second."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from edgedl.tasks.digits import Digits
from tests.sample_report import sample_report

RECIPE = """
task = { use = "digits" }
model = { use = "mlp", widths = [32] }
steps = [{ use = "train" }, { use = "quantize" }]
targets = [{ use = "tflite" }, { use = "onnxruntime" }]
"""
SHAPE = (1, 1, 28, 28)


def dense_run(folder: Path) -> Path:
    """Rows float and compressed for TFLite and onnxruntime; what is called compressed has its weights rounded."""
    weights = _weights()
    rounded = np.round(weights * 64).astype(np.float32) / 64
    report = sample_report()
    named = {"float": weights, "compressed": rounded}
    report["rows"] = [
        _written(folder, variant, target, row, named[variant])
        for target in ("tflite", "onnxruntime")
        for variant in named
        for row in report["rows"]
        if (row["variant"], row["target"]) == (variant, target)
    ]
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def tflite_file(weights: np.ndarray, shape: tuple[int, ...] = SHAPE) -> bytes:
    """`logits` = `image` as one row × `weights` (inputs, outputs)."""
    subgraph, model = schema.SubGraphT(), schema.ModelT()
    buffers = [np.empty(0, np.uint8), np.frombuffer(np.ascontiguousarray(weights.T, np.float32).tobytes(), np.uint8)]
    model.buffers = [schema.BufferT() for _ in buffers]
    model.buffers[1].data = buffers[1]
    known = [(b"image", shape, 0), (b"weights", weights.T.shape, 1), (b"logits", (1, weights.shape[1]), 0)]
    subgraph.tensors = []
    for name, sizes, buffer in known:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name, list(sizes), buffer, schema.TensorType.FLOAT32
        subgraph.tensors.append(tensor)
    code, dense = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    dense.inputs, dense.outputs, dense.opcodeIndex = [0, 1, -1], [2], 0
    dense.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    dense.builtinOptions = schema.FullyConnectedOptionsT()
    subgraph.operators, subgraph.inputs, subgraph.outputs = [dense], [0], [2]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [subgraph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def onnx_file(weights: np.ndarray) -> bytes:
    """The same network."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, weights.shape[1]])
    graph = helper.make_graph(nodes, "dense", [image], [logits], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def _weights() -> np.ndarray:
    """The best there are by least squares."""
    train = Digits().arrays("train")
    images, wanted = train["image"].reshape(len(train["image"]), -1), np.eye(10)[train["label"]]
    shrunk = images.T @ images + np.eye(images.shape[1])
    return np.linalg.solve(shrunk, images.T @ wanted).astype(np.float32)


def _written(folder: Path, variant: str, target: str, row: dict[str, Any], weights: np.ndarray) -> dict[str, Any]:
    name, content = ("model.tflite", tflite_file(weights)) if target == "tflite" else ("model.onnx", onnx_file(weights))
    file = Path("targets") / variant / target / name
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_bytes(content)
    known = {"file": str(file), "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return row | known | {"status": "ok", "reason": None}
