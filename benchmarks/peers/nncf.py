"""NNCF (OpenVINO's compression toolkit), on the float ONNX file, set for onnxruntime on a CPU with VNNI."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from benchmarks import peers


def static(ranges: str, accurate: bool, source: Path, file: Path) -> None:
    """Post-training quantization on all samples, asymmetric activations, per-channel weights on all eight bits.

    `ranges` is one of its sets of range estimators for activations, "" its default: the mean of each sample's extremes.
    `accurate` is its slower bias correction, which does not work together with the SmoothQuant of its Transformer
    mode: that is left out with it.
    """
    import nncf
    import onnx
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    network = json.loads((source / "source.json").read_text())["configuration"]["network"]["use"]
    samples = list(peers.samples(source))
    # The default of overflow_fix halves the range of weights for processors that saturate; this one's sums are exact.
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE)
    if ranges:
        advanced.activations_range_estimator_params = getattr(RangeEstimatorParametersSet, ranges)
    if accurate:
        advanced.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    quantized = nncf.quantize(
        onnx.load(source / "float.onnx"),
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(samples),
        fast_bias_correction=not accurate,
        model_type=nncf.ModelType.TRANSFORMER if network == "transformer" else None,
        advanced_parameters=advanced,
    )
    onnx.save(quantized, file)


FILES: dict[str, peers.Write] = {
    "static-default.onnx": partial(static, "", False),
    "static-minmax.onnx": partial(static, "MINMAX", False),
    "static-minmax-accurate.onnx": partial(static, "MINMAX", True),
    "static-histogram.onnx": partial(static, "HISTOGRAM", False),
}

if __name__ == "__main__":
    import nncf.onnx  # noqa: F401  # before the clock starts
    import onnxruntime  # noqa: F401

    peers.main(FILES, ["nncf", "onnx", "onnxruntime"])
