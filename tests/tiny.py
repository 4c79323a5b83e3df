"""Shipped recipes in a form that takes seconds, what is told of such a run, and what is said of bad data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from edgedl import pipeline, plugins
from edgedl import recipe as recipes
from edgedl.core import DataError, Split, Task
from edgedl.report import page
from edgedl.run import find_finished, read_report
from edgedl.steps.quantize import Quantize


def tiny_run(name: str, root: Path, may_stray: bool = False, **task: Any) -> dict[str, Any]:
    """A recipe with its own task, network and kinds of steps: one epoch, simplest calibration, two targets.

    What one epoch makes differs from processor to processor. Where it `may_stray`, onnxruntime in TensorRT's place may
    be a step apart in more values than the ladder lets through.
    """
    recipe = recipes.load(name)
    steps = []
    for step in recipe.steps:
        changes = {"epochs": 1, "iterations": 1} if step.cuts else {"epochs": 1}
        steps.append(step.model_copy(update=changes) if step.use != "quantize" else None)
    steps[-1] = Quantize(method="ptq", calibrator="min-max", corrections=())
    tiny = recipe.model_copy(
        update={
            "task": plugins.load("tasks", recipe.task.use)(**task) if task else recipe.task,
            "steps": tuple(steps),
            "targets": tuple(target for target in recipe.targets if target.use in ("tflite", "tensorrt-rtx")),
            "limits": recipe.limits.model_copy(update={"score_drop": 100.0, "slower": "allow", "unlearned": "allow"}),
            "bench": recipe.bench.model_copy(update={"min_seconds": 0.02, "rounds": 2}),
        }
    )
    report = read_report(pipeline.compress(tiny, "", root).folder)
    for row in report["rows"]:
        if may_stray and (row["variant"], row["target"], row["status"]) == ("compressed", "tensorrt-rtx", "refused"):
            assert "strays from what was exported" in row["reason"]
            row["status"] = "built"
    found = [(row["variant"], row["target"], row["precision"], row["status"]) for row in report["rows"]]
    assert sorted(found) == [
        ("compressed", "tensorrt-rtx", "int8", "built"),
        ("compressed", "tflite", "int8", "ok"),
        ("float", "tensorrt-rtx", "fp32", "built"),
        ("float", "tflite", "fp32", "ok"),
    ]
    for entry in report["ladder"]:
        agreement = entry["agreement"]
        if entry["variant"] == "float":
            assert agreement["sqnr_db"] > 100
        elif entry["target"] == "tflite":
            assert agreement["sqnr_db"] > entry["quantization"]["sqnr_db"] + 20
        else:  # onnxruntime stands in, whose convolutions with a ReLU compute in float on a symmetric grid
            assert agreement["sqnr_db"] > entry["quantization"]["sqnr_db"] + (8 if may_stray else 10)
            assert (agreement["max_steps"] or 0) <= (2 if may_stray else 1)
    return report


def told(report: dict[str, Any], root: Path) -> str:
    """The page of the only run; where the metric is another, nobody may be told of accuracy."""
    html = page.write_page(report, find_finished(report["recipe"]["name"], root)).read_text(encoding="utf-8")
    said = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert report["metric"]["name"] in said
    assert "accuracy" not in said.lower()
    return said


def refusal(task: Task, *splits: Split) -> str:
    """The one line that is said of data that will not do."""
    with pytest.raises(DataError) as caught:
        [task.arrays(split) for split in splits or ("train", "validation", "test")]
    assert "\n" not in str(caught.value)
    return str(caught.value)
