"""NVIDIA ModelOpt, on the float ONNX file: int8 as for TensorRT (symmetric activations), run by onnxruntime here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks import peers


def static(method: str, gemv: bool, source: Path, file: Path) -> None:
    """Calibrated on all samples on the CPU; what is not quantized stays float32 instead of becoming float16.

    Without `gemv`, its default, dense layers of one row are left float, since TensorRT gains nothing by them.
    """
    from modelopt.onnx import quantization

    quantization.quantize(
        str(source / "float.onnx"),
        quantize_mode="int8",
        calibration_data=peers.calibration(source),
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        dq_only=True,  # weights stored as int8, not as float32 to be quantized while loading
        enable_gemv_detection_for_trt=not gemv,
        output_path=str(file),
        log_level="WARNING",
    )


FILES: dict[str, peers.Write] = {
    "static-entropy.onnx": partial(static, "entropy", False),
    "static-max.onnx": partial(static, "max", False),
    "static-max-gemv.onnx": partial(static, "max", True),
}

if __name__ == "__main__":
    from modelopt.onnx import quantization  # noqa: F401  # before the clock starts

    peers.main(FILES, ["nvidia-modelopt", "onnx", "onnxruntime-gpu"])
