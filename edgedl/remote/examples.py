"""What is left beside a deployed file: a small program that runs and checks it, and for phones the lines that load it.

The texts are the same for every file: names, shapes and values are read from what lies beside.
"""

from __future__ import annotations

HEAD = '''\
"""Runs the model beside it on a recorded input, and compares what it answers with what was recorded.

It needs numpy and {needs}. Sizes, types and, in `preprocessing`, what is to be done to an
application's own data are in artifact.json. A model of several graphs, such as an encoder and a decoder, has a file
for each; how the answers of one lead to the next call is the application's.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
passport = json.loads((HERE / "artifact.json").read_text(encoding="utf-8"))


'''
TFLITE = """\
def run(file, inputs, outputs):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=passport["target"]["threads"])
    if interpreter.get_signature_list():
        return interpreter.get_signature_runner()(**inputs)
    interpreter.allocate_tensors()  # the names are those of the tensors
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], inputs[tensor["name"]])
    interpreter.invoke()
    return {tensor["name"]: interpreter.get_tensor(tensor["index"]) for tensor in interpreter.get_output_details()}
"""
ONNXRUNTIME = """\
def run(file, inputs, outputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = passport["target"]["threads"]
    # Else it may round inputs of dense layers to int8, whatever the file says.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, inputs)))
"""
ENGINE = """\
def run(file, inputs, outputs):
    import importlib

    sys.path.insert(0, str(HERE / "edgedl.pyz"))
    from edgedl.nvidia.engine import EngineSession

    library = importlib.import_module(passport["target"]["use"].replace("-", "_"))
    how = {key: passport["target"][key] for key in ("cuda_graph", "spin_wait") if key in passport["target"]}
    return EngineSession(library, file, **how).run(inputs)
"""
TAIL = """

with np.load(HERE / "example.npz") as recorded:
    values = iter(list(recorded.values()))
wrong = []
for graph in list(passport["graphs"].values()) or [passport]:
    inputs = {name: next(values) for name in graph["inputs"]}
    expected = {name: next(values) for name in graph["outputs"]}
    answers = run(HERE / graph["file"], inputs, list(expected))
    for name, wanted in expected.items():
        difference = np.abs(answers[name].astype(np.float64) - wanted).max(initial=0.0)
        largest = np.abs(wanted.astype(np.float64)).max(initial=0.0)
        said = f"{name} {answers[name].shape}: at most {difference:.3g} off, where values are up to {largest:.3g}"
        print(said if graph is passport else f"{graph['file']}: {said}")
        if not difference <= 0.05 * largest:
            wrong.append(name if graph is passport else f"{name} of {graph['file']}")
if wrong:
    sys.exit(f"wrong answers in {', '.join(wrong)}: do not ship this file with this runtime")
print("right")
"""
RUNS = {
    # target -> what the example needs, and how it runs the file
    "tflite": ("ai-edge-litert (or tflite-runtime)", TFLITE),
    "onnxruntime": ("onnxruntime", ONNXRUNTIME),
    "tensorrt": ("TensorRT with cuda-python; edgedl.pyz beside it has the lines that call them", ENGINE),
    "tensorrt-rtx": ("tensorrt-rtx with cuda-python; edgedl.pyz beside it has the lines that call them", ENGINE),
}
KOTLIN = """\
// Loads a .tflite file in an Android app, and runs it. Copy it to src/main/assets, and in build.gradle.kts:
//     implementation("com.google.ai.edge.litert:litert:1.4.0")
// Names, shapes and types of inputs and outputs are in artifact.json, and what is to be done to data before.
// A model of several graphs has a file for each: load each, and let the answers of one lead to the next call.
import android.content.Context
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import org.tensorflow.lite.Interpreter

fun loadModel(context: Context, asset: String = "model.tflite", threads: Int = 1): Interpreter =
    context.assets.openFd(asset).use { file ->
        FileInputStream(file.fileDescriptor).channel.use { channel ->
            val content = channel.map(FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength)
            Interpreter(content, Interpreter.Options().setNumThreads(threads))
        }
    }

fun runModel(model: Interpreter, inputs: Map<String, ByteBuffer>): Map<String, ByteBuffer> {
    val signature = model.signatureKeys.single()
    val outputs =
        model.getSignatureOutputs(signature).associateWith { name ->
            val size = model.getOutputTensorFromSignature(name, signature).numBytes()
            ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())
        }
    model.runSignature(inputs, outputs, signature)
    return outputs.onEach { (_, values) -> values.rewind() }
}
"""


def python(target: str) -> str:
    """`example.py` for files of a target."""
    needs, runs = RUNS[target]
    return HEAD.format(needs=needs) + runs + TAIL
