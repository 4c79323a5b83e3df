"""AI Edge Quantizer, on the converted .tflite file: its public recipes, and static int8 with each of its algorithms."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import peers


def quantize(recipe: str, algorithm: str, averaged: bool, source: Path, file: Path) -> None:
    """A recipe by name; static ones calibrated on every sample, with inputs and outputs left float.

    The tool's own calibration is a moving average of each sample's extremes. Where not `averaged`, each sample is
    calibrated by itself, and the extremes of all are what it gets.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    tool = quantizer.Quantizer(str(source / "converted.tflite"))
    tool.load_quantization_recipe(getattr(recipes, recipe)(AlgorithmName[algorithm]))
    calibrated = None
    if tool.need_calibration:
        for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):  # callers feed floats, as elsewhere
            tool.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
        signature, dtypes = _signature(source)
        samples = [
            {name: values.astype(dtype) for (name, dtype), values in zip(dtypes.items(), sample.values(), strict=True)}
            for sample in peers.samples(source)
        ]
        calibrated = tool.calibrate({signature: samples if averaged else samples[:1]}, num_threads=1)
        for sample in [] if averaged else samples[1:]:
            for name, extremes in tool.calibrate({signature: [sample]}, num_threads=1).items():
                calibrated[name] = min_max_update(calibrated[name], extremes)
    tool.quantize(calibrated, serialize_to_path=str(file), enable_progress_report=False)


def _signature(source: Path) -> tuple[str, dict[str, Any]]:
    """The name of the file's entry, and the dtypes of its inputs in order, by their names."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(source / "converted.tflite"))
    ((name, entry),) = interpreter.get_signature_list().items()
    details = interpreter.get_signature_runner(name).get_input_details()
    return str(name), {argument: details[argument]["dtype"] for argument in entry["inputs"]}


FILES: dict[str, peers.Write] = {
    "static-minmax.tflite": partial(quantize, "static_wi8_ai8", "MIN_MAX_UNIFORM_QUANT", True),
    "static-mse.tflite": partial(quantize, "static_wi8_ai8", "MSE", True),
    "static-octav.tflite": partial(quantize, "static_wi8_ai8", "OCTAV", True),
    "static-extremes.tflite": partial(quantize, "static_wi8_ai8", "MIN_MAX_UNIFORM_QUANT", False),
    "int16-extremes.tflite": partial(quantize, "static_wi8_ai16", "MIN_MAX_UNIFORM_QUANT", False),
    "dynamic.tflite": partial(quantize, "dynamic_wi8_afp32", "MIN_MAX_UNIFORM_QUANT", True),
    "weight_only.tflite": partial(quantize, "weight_only_wi8_afp32", "MIN_MAX_UNIFORM_QUANT", True),
}

if __name__ == "__main__":
    import ai_edge_quantizer.quantizer  # noqa: F401  # before the clock starts

    peers.main(FILES, ["ai-edge-quantizer", "ai-edge-litert"])
