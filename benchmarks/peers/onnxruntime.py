"""onnxruntime's own quantizer, on the float ONNX file: `quantize_static` with Q/DQ, and `quantize_dynamic`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import peers


def static(method: str, source: Path, file: Path) -> None:
    """As its documentation advises for x86 with VNNI: preprocessed, QUInt8 activations, QInt8 weights per channel."""
    from onnxruntime import quantization

    prepared = _prepared(source, file)
    quantization.quantize_static(
        prepared,
        file,
        _Reader(peers.samples(source)),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=False,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[method],
    )


def dynamic(source: Path, file: Path) -> None:
    """Weights int8 per channel, activations scaled at run time, for the operators that have such a kernel."""
    from onnxruntime import quantization

    quantization.quantize_dynamic(_prepared(source, file), file, per_channel=True)


def _prepared(source: Path, file: Path) -> Path:
    """The file with shapes inferred and batch norms folded: what its documentation asks to be done first."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_suffix(".prepared")
    quant_pre_process(source / "float.onnx", prepared)
    return prepared


class _Reader:
    def __init__(self, samples: Iterator[dict[str, np.ndarray]]) -> None:
        self.samples = samples

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.samples, None)


FILES: dict[str, peers.Write] = {
    "static-minmax.onnx": partial(static, "MinMax"),
    "static-entropy.onnx": partial(static, "Entropy"),
    "static-percentile.onnx": partial(static, "Percentile"),
    "dynamic.onnx": dynamic,
}

if __name__ == "__main__":
    import onnxruntime.quantization  # noqa: F401  # before the clock starts

    peers.main(FILES, ["onnxruntime", "onnx"])
