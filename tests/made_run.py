"""A finished run whose files are written by hand, for what does not care what was learned: takes no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgedl import files, recipe
from edgedl.plugins import stand_in
from edgedl.run import SCHEMA

RECIPE = """
task = { use = "digits" }
model = { use = "mlp", widths = [32] }
steps = [ { use = "train" }, { use = "quantize" } ]
targets = [ { use = "onnxruntime" }, { use = "tensorrt" } ]
"""


def make(folder: Path, *, max_batch: int | None = None) -> Path:
    """The run of a dense layer on digits for onnxruntime, and for TensorRT where it could not be built."""
    (folder / "targets").mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    loaded = recipe.load(str(folder / "recipe.toml"))
    rows = []
    for target in ("onnxruntime", "tensorrt"):
        for variant, seed in (("float", 0), ("compressed", 1)):
            file = folder / "targets" / variant / target / "model.onnx"
            file.parent.mkdir(parents=True)
            write_dense(file, seed, "batch" if max_batch and target == "tensorrt" else 1)
            (file.parent / "build.sh").write_text("#!/bin/sh\n")
            rows.append(_row(file, folder, variant, target, max_batch if target == "tensorrt" else None))
    report = {
        "schema": SCHEMA,
        "edgedl": "0.1.0",
        "recipe": json.loads(loaded.model_dump_json()),
        "environment": {},
        "metric": {"name": "accuracy", "unit": "fraction", "higher_is_better": True},
        "parameters": {variant: {"count": 7850, "zeros": 0, "macs": 7840} for variant in ("float", "compressed")},
        "steps": [],
        "rows": rows,
        "ladder": [{"variant": row["variant"], "target": row["target"], "quantization": None} for row in rows],
        "verdicts": [
            {"target": "onnxruntime", "ship": "compressed", "why": "it is faster"},
            {"target": "tensorrt", "ship": "host only", "why": "its speed is not known here"},
        ],
        "warnings": [],
    }
    files.write_json(folder / "report.json", report)
    return folder


def write_dense(file: Path, seed: int = 0, batch: int | str = 1) -> None:
    """Digits in, ten answers out: whole numbers as weights, so that every machine sums them alike."""
    weights = np.random.default_rng(seed).integers(-8, 8, (784, 10)).astype(np.float32) / 8
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"], "dense"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
        for name, shape in (("image", (1, 28, 28)), ("logits", (10,)))
    ]
    graph = helper.make_graph(nodes, "dense", values[:1], values[1:], [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def _row(file: Path, folder: Path, variant: str, target: str, max_batch: int | None) -> dict[str, Any]:
    """As `report.json` has it, and the file's passport; nobody has scored it."""
    session = stand_in().open(file)
    runs_here = target == "onnxruntime"
    row = {
        "variant": variant, "target": target, "precision": "fp32", "device": "here",
        "status": "ok" if runs_here else "built", "reason": None if runs_here else "tensorrt is not installed",
        "file": str(file.relative_to(folder)), "graphs": {}, "size_bytes": file.stat().st_size, "gzip_bytes": 1,
        "sha256": files.sha256(file), "score": 0.1, "samples": 360, "score_by": session.runtime,
        "latency_ms": {"median": 0.01, "threads": 1} if runs_here else None,
    }  # fmt: skip
    specs = {
        kind: {name: vars(spec) for name, spec in getattr(session, kind).items()} for kind in ("inputs", "outputs")
    }
    passport = {key: row[key] for key in ("precision", "size_bytes", "sha256", "status", "reason")} | specs | {
        "file": "model.onnx", "graphs": {}, "built_for": "any device with the runtime", "versions": {},
        "target": {"use": target} | ({"max_batch": max_batch} if target == "tensorrt" else {"threads": 1}),
        "preprocessing": {},
    }  # fmt: skip
    files.write_json(file.with_name("artifact.json"), passport)
    session.close()
    return row
