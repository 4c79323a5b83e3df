"""Networks that never learned: what tasks call no answer at all, and what becomes of such a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgedl import pipeline, plugins, recipe
from edgedl.core import Task
from edgedl.report import terminal
from edgedl.report.page import write_page
from edgedl.tasks import detection, generation, keywords, machine_sound, masks, style, transcription, xray
from edgedl.tasks.control import Control
from edgedl.tasks.denoising import Denoising
from edgedl.tasks.detection import Detection
from edgedl.tasks.digits import Digits
from edgedl.tasks.generation import Generation
from edgedl.tasks.keywords import Keywords
from edgedl.tasks.language import Language
from edgedl.tasks.machine_sound import MachineSound
from edgedl.tasks.masks import Masks
from edgedl.tasks.nodes import Nodes
from edgedl.tasks.ratings import Ratings
from edgedl.tasks.regression import Regression
from edgedl.tasks.scenes import Scenes
from edgedl.tasks.style import Style
from edgedl.tasks.tracks import Tracks
from edgedl.tasks.transcription import Transcription
from edgedl.tasks.translation import Translation
from edgedl.tasks.variational import Variational
from edgedl.tasks.xray import Xray
from tests.sample_report import sample_report

SPLITS = ("train", "calibration", "validation", "test")
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
    [  # of the embedded data
        (Scenes(), 0.1, 1e-9),
        (Denoising(), 12.6, 0.05),
        (Regression(), 78.3, 0.05),
        (Ratings(), 1.10, 0.005),
        (Xray(), 0.5, 0),
        (Tracks(), 4.98, 0.005),
        (Nodes(), 0.2, 1e-9),
        (Variational(), -354.9, 0.05),
        (Translation(), 45.8, 0.1),
        (Language(), 25, 3),  # other versions of Python have another library
        (Control(), 22, 4),
    ],
    ids=lambda value: getattr(value, "use", ""),
)
def test_the_baseline_is_what_no_answer_scores(task, score, tolerance):
    assert task.baseline.score == pytest.approx(score, abs=tolerance)


@pytest.mark.parametrize(
    ("task", "module", "sizes", "low", "high"),
    [
        (MachineSound(bands=16), machine_sound, {"NUM_CLIPS": {"train": 40, "validation": 6, "test": 40}}, 0.55, 0.9),
        (Generation(), generation, {"NUM_IMAGES": dict.fromkeys(SPLITS, 64), "JUDGE_STEPS": 20}, 1, 1e5),
        (Style(size=32), style, {"NUM_PARTS": {"train": 16, "validation": 8, "test": 12}, "PUZZLES": 3}, 0.1, 1.5),
        (Keywords(), keywords, {"NUM_EACH": {"train": 2, "validation": 2, "test": 2}}, 1 / 12, 1 / 12),
        (Transcription(), transcription, {"NUM_STRINGS": {"train": 6, "validation": 6, "test": 12}}, 0.5, 1),
        (Detection(size=48), detection, {"NUM_PICTURES": {"train": 24, "validation": 6, "test": 12}}, 0, 0.2),
    ],
    ids=lambda value: getattr(value, "use", ""),
)
def test_the_baseline_of_data_that_takes_time_to_make_is_that_of_a_little_of_it(
    task, module, sizes, low, high, monkeypatch
):
    caches = [value for value in vars(module).values() if hasattr(value, "cache_clear")]
    for name, size in sizes.items():
        monkeypatch.setattr(module, name, size)
    for cache in caches:
        cache.cache_clear()
    assert low <= task.baseline.score <= high
    assert task.baseline == task.baseline
    for cache in caches:
        cache.cache_clear()


def test_the_baselines_of_transcripts_and_boxes_are_those_of_the_commonest_word_and_the_mean_box(monkeypatch):
    said = {"train": ["one"], "test": ["three two", "three", "one three"]}
    monkeypatch.setattr(transcription, "_spoken", lambda *given: (np.zeros((3, 4, 8)), said[given[-1]]))
    assert Transcription(mels=8).baseline.score == pytest.approx(2 / 5)
    things = np.array([[[0, 10, 10, 30, 30], [1, 0, 0, 8, 8]], [[0, 20, 20, 40, 40], [-1] * 5]], np.float32)
    pictures = {"train": things, "test": np.array([[[0, 15, 15, 35, 35]], [[0, 60, 60, 80, 80]]], np.float32)}
    monkeypatch.setattr(detection, "_drawn", lambda split, size: (np.zeros((2, 3, size, size)), pictures[split]))
    assert Detection().baseline.score == pytest.approx(51 / 101)  # one of two found; COCO reads recall at 101 places


@pytest.mark.parametrize("name", plugins.names("tasks"))
def test_every_task_has_a_baseline(name):
    assert plugins.load("tasks", name).baseline is not Task.baseline


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
