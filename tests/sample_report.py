"""A report with every kind of row and verdict, without training or measuring anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRIC = {"name": "accuracy", "unit": "fraction", "higher_is_better": True}
RECIPE = """description = "Small CNN on handwritten digits, int8 after training."
task = { use = "digits" }
steps = [{ use = "train", epochs = 10 }, { use = "quantize" }]
targets = [{ use = "tflite" }, { use = "onnxruntime" }, { use = "tensorrt" }, { use = "tensorrt-rtx" }]
"""


def sample_report() -> dict[str, Any]:
    """tflite ships compressed, onnxruntime keeps float, tensorrt is built only, and tensorrt-rtx fails."""
    slower = "it is slower than the fastest float file on this runtime: 0.78x (0.78 to 0.79); 33% conversions"
    built = "it cannot run here: tensorrt is not installed; copy the folder to the device and run `sh build.sh` there"
    parser = "node_pool (GlobalAveragePool): UNSUPPORTED_NODE: the window is too large (in importPool)"
    report: dict[str, Any] = {
        "schema": 1,
        "edgedl": "0.1.0",
        "recipe": {
            "name": "cnn-int8",
            "description": "Small CNN on handwritten digits, int8 after training.",
            "task": {"use": "digits"},
            "limits": {"score_drop": 0.005, "slower": "refuse"},
            "bench": {"batch_size": 1, "min_seconds": 3.0, "rounds": 30},
        },
        "environment": {
            "name": "Some Processor", "machine": "x86_64", "system": "Linux", "python": "3.11.7", "cores": 2,
            "memory_bytes": 25_276_510_208, "gpu": None, "governor": None, "temperature_c": 41.5,
            "versions": {"numpy": "2.4.6", "onnxruntime": "1.31.1"},
        },
        "metric": dict(METRIC),
        "parameters": {name: {"count": 421_642, "macs": 4_241_152} for name in ("float", "compressed")},
        "steps": [
            {"use": "train", "epochs": 10, "lr": 1e-3, "metrics": {"epochs": _epochs(10), "reused": "runs/before"}},
            {"use": "quantize", "precision": "int8", "metrics": {}},
        ],
        "baseline": {"score": 0.1056, "answer": "always answering the commonest class"},
        "warnings": [],
        "rows": [
            row("float", "tflite", 0.0543, 1_692_144, operators=_litert_operators()),
            row("compressed", "tflite", 0.0191, 432_464, score=0.9722, operators=_litert_operators()[:2]),
            row("float", "onnxruntime", 0.0550, 1_698_830, operators=_onnx_operators()),
            row("compressed", "onnxruntime", 0.0702, 458_060, score=0.9639, status="refused", reason=slower,
                operators=_onnx_operators()),
            row("float", "tensorrt", None, 1_698_830, status="built", reason=built),
            row("compressed", "tensorrt", None, 457_969, status="built", reason=built),
            row("float", "tensorrt-rtx", None, 2_223_364, status="built", reason="it cannot run here: no GPU"),
            row("compressed", "tensorrt-rtx", None, None, score=None, status="failed", reason=f"it refuses {parser}"),
        ],
        "ladder": [
            climb("float", "tflite", 126.3),
            climb("compressed", "tflite", 240.0, steps=0, score=0.9722),
            climb("float", "onnxruntime", 136.8),
            climb("compressed", "onnxruntime", 47.2, steps=3, score=0.9639, divergence={
                "layer": "features.3.conv", "sqnr_db": 31.4, "max_steps": 3, "deployed_tensor": "conv2d_1_quantized"}),
            climb("float", "tensorrt", 136.8),
            climb("compressed", "tensorrt", 67.4, steps=1),
            climb("float", "tensorrt-rtx", 136.8),
        ],
        "verdicts": [
            verdict("tflite", "compressed", 2.827, 0.0028, "compressed: 2.83x faster, 3.91x smaller"),
            verdict("onnxruntime", "float", 0.783, 0.0111, f"compressed is refused: {slower}"),
            verdict("tensorrt", "host only", None, 0.0,
                    "compressed: 3.71x smaller, accuracy the same; its speed is not known here: on the device run "
                    "`sh targets/compressed/tensorrt/build.sh && edgedl bench targets/compressed/tensorrt/model`"),
            {"target": "tensorrt-rtx", "ship": "none", "device": "Some Processor", "speedup": None, "size_ratio": None,
             "score_drop": None, "why": f"not judged, since a file is missing: compressed: it refuses {parser}"},
        ],
    }  # fmt: skip
    for said in report["verdicts"]:
        rows = [row for row in report["rows"] if row["target"] == said["target"] and row["latency_ms"]]
        if len(rows) > 1:
            rows[-1]["speedup"] = said["speedup"]
    return report


def row(
    variant: str,
    target: str,
    latency_ms: float | None,
    size_bytes: int | None,
    score: float | None = 0.975,
    status: str = "ok",
    reason: str | None = None,
    operators: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A row as `edgedl.report.document` writes it."""
    latency = None
    if latency_ms is not None:
        interval = [latency_ms * 0.99, latency_ms * 1.01]
        latency = {"median": latency_ms, "p90": latency_ms * 1.02, "p99": latency_ms * 1.5, "ci95": interval,
                   "runs": 53_979, "batch_size": 1, "threads": 1}  # fmt: skip
    return {
        "variant": variant,
        "target": target,
        "precision": "fp32" if variant == "float" else "int8",
        "in_float": [],
        "float_ops": [],
        "rewrites": {},
        "device": None if size_bytes is None else "Some Processor",
        "status": status,
        "reason": reason,
        "file": None if size_bytes is None else f"targets/{variant}/{target}/model",
        "size_bytes": size_bytes,
        "sha256": None if size_bytes is None else "1af86568" * 8,
        "score": score,
        "samples": None if score is None else 360,
        "score_by": None if score is None else "onnxruntime 1.31.1",
        "init_ms": None if latency is None else 13.545,
        "peak_memory_bytes": None if latency is None else 8_814_592,
        "latency_ms": latency,
        "speedup": None,
        "validation_score": None,
        "figures": {},
        "operators": operators or [],
    }


def climb(
    variant: str,
    target: str,
    sqnr_db: float,
    steps: int | None = None,
    score: float = 0.975,
    divergence: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An entry of the ladder."""
    names = ("float", "deployed") if variant == "float" else ("float", "simulated", "deployed")
    scores = [0.975] + [score] * (len(names) - 1)
    return {
        "variant": variant,
        "target": target,
        "rungs": [{"name": name, "score": at, "drop": 0.975 - at} for name, at in zip(names, scores, strict=True)],
        "quantization": None if variant == "float" else {"sqnr_db": 40.84},
        "agreement": {"sqnr_db": sqnr_db, "same_decision": 1.0, "max_steps": steps},
        "first_divergence": divergence,
    }


def verdict(target: str, ship: str, speedup: float | None, drop: float, why: str) -> dict[str, Any]:
    """A verdict on files that could be judged."""
    measured = None
    if speedup is not None:
        said = "faster" if speedup > 1 else "slower"
        measured = {"median": speedup, "ci95": [speedup * 0.99, speedup * 1.01], "verdict": said}
    return {"target": target, "ship": ship, "device": "Some Processor", "speedup": measured, "size_ratio": 3.91,
            "score_drop": drop, "why": why}  # fmt: skip


def write_beside(folder: Path) -> None:
    """What the page reads from the run folder besides the report."""
    (folder / "recipe.toml").write_text(RECIPE)
    quantize = folder / "quantization"
    quantize.mkdir()
    tried = {name: {"score": 0.966, "sqnr_db": 40.5} for name in ("min-max", "mse")}
    (quantize / "affine.json").write_text(json.dumps({"calibrator": "mse", "tried": tried, "grids": []}))
    (quantize / "other.json").write_text("{}")


def _epochs(num: int) -> list[dict[str, Any]]:
    return [{"epoch": i + 1, "loss": 1.5 / (i + 1) ** 1.5, "score": 0.97 - 0.12 / (i + 1)} for i in range(num)]


def _litert_operators() -> list[dict[str, Any]]:
    return [
        {"name": "tfl.quantize", "kind": "QUANTIZE", "time_ms": 0.0014},
        {"name": "relu2;;conv2;1", "kind": "CONV_2D",
         "time_ms": 0.0287},
        {"name": "flatten;1", "kind": "RESHAPE", "time_ms": 0.0},
    ]  # fmt: skip


def _onnx_operators() -> list[dict[str, Any]]:
    """More than a plot shows one by one."""
    kinds = ("QLinearConv", "NhwcMaxPool", "Transpose")
    return [
        {"name": f"node_conv2d_{index}_token_{index}", "kind": kinds[index % 3], "time_ms": 0.001 + 0.0001 * index}
        for index in range(40)
    ]
