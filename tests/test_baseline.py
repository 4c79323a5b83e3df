"""Networks that never learned: what tasks call no answer at all, and what becomes of such a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgedl import pipeline, recipe
from edgedl.report import terminal
from edgedl.report.page import write_page
from edgedl.tasks import masks, xray
from edgedl.tasks.denoising import Denoising
from edgedl.tasks.digits import Digits
from edgedl.tasks.masks import Masks
from edgedl.tasks.ratings import Ratings
from edgedl.tasks.regression import Regression
from edgedl.tasks.scenes import Scenes
from edgedl.tasks.xray import Xray
from tests.sample_report import sample_report

UNTRAINED = """
task = { use = "regression" }
model = { use = "mlp", widths = [8] }
steps = [
  { use = "train", epochs = 1, lr = 1e-9 },
  { use = "quantize", method = "ptq", calibrator = "min-max", corrections = [] },
]
targets = [{ use = "tflite" }, { use = "onnxruntime" }]
bench = { min_seconds = 0.02, rounds = 2 }
"""


@pytest.mark.parametrize(
    ("task", "score", "tolerance"),
    [  # as their docstrings state them, where they do
        (Scenes(), 0.1, 1e-9),
        (Denoising(), 12.6, 0.05),
        (Regression(), 78.3, 0.05),
        (Ratings(), 1.10, 0.005),
        (Xray(), 0.5, 0),
    ],
    ids=lambda value: getattr(value, "use", ""),
)
def test_the_baseline_is_what_no_answer_scores(task, score, tolerance):
    assert task.baseline.score == pytest.approx(score, abs=tolerance)


def test_the_commonest_class_is_that_of_the_test_samples():
    counts = np.bincount(Digits().arrays("test")["label"])
    assert Digits().baseline.score == counts.max() / 360


def test_the_baseline_of_masks_is_all_ground(monkeypatch):
    monkeypatch.setattr(masks, "NUM_IMAGES", {"train": 4, "validation": 4, "test": 24})
    masks._drawn.cache_clear()
    task = Masks()
    batch = task.arrays("test")
    ground = np.zeros((24, 4, 48, 48), np.float32)
    ground[:, 0] = 1
    assert task.baseline.score == task.score({"logits": ground}, batch) == pytest.approx(0.17, abs=0.02)
    masks._drawn.cache_clear()


def test_tasks_with_a_metric_of_their_own_do_not_take_over_the_baseline_of_accuracy(monkeypatch):
    class Other(Digits):
        metric = Xray.metric

    assert Other().baseline is None
    assert xray.Xray(size=64).baseline.answer == "guessing"


@pytest.mark.parametrize("allowed", [False, True])
def test_a_run_whose_network_never_learned_says_so_loudly_and_ships_nothing(allowed, tmp_path, capsys):
    text = UNTRAINED + ('limits = { unlearned = "allow", slower = "allow" }\n' if allowed else "")
    run = pipeline.compress(recipe.parse(text, Path("untrained.toml")), text, tmp_path)
    report = json.loads(run.report.read_text())
    assert report["baseline"] == {"score": pytest.approx(78.3, abs=0.05), "answer": "always answering the mean"}
    (warning,) = report["warnings"]
    assert warning.startswith("the float network does no better than always answering the mean: RMSE ")
    assert ("none" in {verdict["ship"] for verdict in report["verdicts"]}) != allowed
    if not allowed:
        assert {verdict["ship"] for verdict in report["verdicts"]} == {"none"}
        assert all(row["status"] == "refused" and row["reason"] == warning for row in report["rows"])
        assert all(warning in verdict["why"] for verdict in report["verdicts"])
    terminal.print_report(report)
    said = capsys.readouterr().out
    assert f"warning: {warning}" in said
    assert said.count(warning) == (1 if allowed else 3)  # each verdict says it too, but not each row
    html = write_page(report, run.folder).read_text(encoding="utf-8")
    assert f"<strong>Warning:</strong> {warning}" in html
    assert html.count("does no better than always answering the mean") > 1


def test_a_page_of_a_run_that_learned_has_no_warning(tmp_path):
    html = write_page(sample_report(), tmp_path).read_text(encoding="utf-8")
    assert '<p class="warning">' not in html
    assert "10.56% by always answering the commonest class" in html
    old = sample_report()
    del old["warnings"], old["baseline"]
    assert "by always answering" not in write_page(old, tmp_path).read_text(encoding="utf-8")
