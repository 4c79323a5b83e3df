"""Samples worth looking at: what tasks choose, pictures in the run folder, and what must not be lost for them."""

from __future__ import annotations

import io
import json
import types

import numpy as np
import pytest

from edgedl import pipeline
from edgedl.core import Exhibit
from edgedl.images import pixels
from edgedl.measure import Scored
from edgedl.report import exhibits
from edgedl.report.document import Entry
from edgedl.report.page import write_page
from edgedl.tasks import masks
from edgedl.tasks.denoising import Denoising
from edgedl.tasks.digits import Digits
from edgedl.tasks.masks import Masks
from edgedl.tasks.ratings import Ratings
from edgedl.tasks.regression import Regression
from edgedl.tasks.scenes import Scenes
from edgedl.tasks.text import Text
from edgedl.tasks.xray import Xray
from tests.sample_report import sample_report

Image = pytest.importorskip("PIL.Image")
MARKUP = "</dd><script>alert(1)</script>"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (7, 5, 3)])
def test_a_png_file_holds_the_very_pixels(shape):
    pixels = noise(*shape)
    found = Image.open(io.BytesIO(exhibits.png(pixels)))
    found.load()
    assert found.mode == ("L" if len(shape) == 2 else "RGB")
    np.testing.assert_array_equal(np.asarray(found), pixels)


@pytest.mark.parametrize("bad", [noise(2, 2, 4), noise(4), noise(0, 3), noise(2, 2) / 255])
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(ValueError, match="a picture is"):
        exhibits.png(bad)


class Shows(Digits):
    """Digits whose exhibits are given."""

    def exhibits(self, answers, batch):
        assert list(answers) == ["float", "int8"]
        panels = {"input": batch["image"][0, 0].astype(np.uint8), "Truth, so called": MARKUP, "int8": noise(3, 4, 3)}
        return [Exhibit(f"first {MARKUP}", panels), Exhibit("second", {"input": "only text"})]


class Fails(Digits):
    """Digits that cannot be shown: the second exhibit has no picture."""

    def exhibits(self, answers, batch):
        return [Exhibit("fine", {"input": noise(2, 2)}), Exhibit("not", {"input": np.zeros(3)})]


ANSWERS = {"float": {"logits": np.zeros((360, 10))}, "int8": {"logits": np.zeros((360, 10))}}


def test_exhibits_are_files_of_the_run_and_part_of_its_page(tmp_path):
    run = types.SimpleNamespace(folder=tmp_path)
    assert exhibits.save(run, "tflite", Shows(), ANSWERS) is None
    folder = tmp_path / "exhibits"
    assert {file.name for file in folder.iterdir()} == {"exhibits.json", "00-input.png", "00-int8.png"}
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "00-int8.png")), noise(3, 4, 3))
    found = exhibits.read(tmp_path)
    assert found.target == "tflite"
    (_, panels), (caption, second) = found.exhibits
    assert [panel.name for panel in panels] == ["input", "Truth, so called", "int8"]
    assert [(panel.width, panel.height) for panel in panels] == [(28, 28), (0, 0), (4, 3)]
    assert (caption, second[0].text) == ("second", "only text")
    html = write_page(sample_report(), tmp_path).read_text(encoding="utf-8")
    assert "From the deployed files" in html
    assert html.count('<img src="data:image/png;base64,') == 2
    assert MARKUP not in html
    assert html.count("&lt;/dd&gt;&lt;script&gt;alert(1)&lt;/script&gt;") == 4  # caption, two alternative texts, panel


def test_what_a_task_cannot_show_is_a_warning_and_leaves_nothing(tmp_path, capsys):
    run = types.SimpleNamespace(folder=tmp_path)
    reason = exhibits.save(run, "tflite", Fails(), ANSWERS)
    assert (
        reason
        == "task digits could not show samples: ValueError: a picture is (H, W) or (H, W, 3) uint8, not (3,) float64"
    )
    assert "Traceback" in capsys.readouterr().err  # which goes into the run's log
    assert not list(tmp_path.iterdir())
    assert exhibits.save(run, "tflite", Digits(), {"float": {}}).startswith(
        "task digits could not show samples: KeyError"
    )


def test_a_run_without_exhibits_has_no_section_and_damaged_ones_do_not_hide_the_report(tmp_path):
    assert "From the deployed files" not in write_page(sample_report(), tmp_path).read_text(encoding="utf-8")
    folder = tmp_path / "exhibits"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(exhibits.png(noise(2, 2)))
    for content in ("", "[]", "{}", json.dumps({"target": "x", "exhibits": [{"caption": "c", "panels": [
        {"name": "input", "file": "../secret.png"}]}]})):  # fmt: skip
        (folder / "exhibits.json").write_text(content)
        assert exhibits.read(tmp_path) is None
    (folder / "a.png").write_text("no picture")
    panels = [{"name": "input", "file": "a.png"}]
    (folder / "exhibits.json").write_text(json.dumps({"target": "x", "exhibits": [{"caption": "c", "panels": panels}]}))
    assert exhibits.read(tmp_path) is None
    assert "From the deployed files" not in write_page(sample_report(), tmp_path).read_text(encoding="utf-8")


def entry(variant: str, runs: bool = True) -> Entry:
    climb = types.SimpleNamespace(deployed=Scored(ANSWERS["float"], 0.1, 360, None))
    artifact = types.SimpleNamespace(status="ok" if runs else "built")
    return Entry(variant, None, artifact, climb=climb)


@pytest.mark.parametrize(
    ("entries", "ship", "shown"),
    [
        ([entry("float"), entry("int8"), entry("fp16")], "int8", "int8"),  # what ships, if not the best of all
        ([entry("float"), entry("fp16"), entry("int8")], "float", "int8"),
        ([entry("float"), entry("int8"), entry("fp16", runs=False)], "none", "int8"),
        ([entry("float", runs=False), entry("int8", runs=False)], "host only", None),
        ([entry("float")], "float", None),
    ],
)
def test_samples_are_shown_of_the_first_target_where_both_files_ran(entries, ship, shown, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        exhibits, "save", lambda run, target, task, answers: seen.append((target, list(answers))) or "why"
    )
    run = types.SimpleNamespace(folder=tmp_path, recipe=types.SimpleNamespace(task=Digits()))
    report = {"warnings": []}
    verdict = types.SimpleNamespace(ship=ship)
    done = pipeline._exhibited(report, run, types.SimpleNamespace(label="tflite"), entries, verdict)
    assert done == (shown is not None)
    assert seen == ([("tflite", ["float", shown])] if shown else [])
    assert report["warnings"] == (["why"] if shown else [])


def logits(classes: np.ndarray, num: int, sure: float = 3.0) -> np.ndarray:
    return sure * np.eye(num, dtype=np.float32)[classes]


def test_classes_show_first_what_files_disagree_on_then_what_they_take_for_another():
    task = Digits()
    batch = task.arrays("test")
    decided = {"float": batch["label"].copy(), "int8": batch["label"].copy()}
    for name, index in (("float", 9), ("int8", 9), ("float", 30), ("int8", 20)):
        decided[name][index] = (batch["label"][index] + 1) % 10
    found = task.exhibits({name: {"logits": logits(classes, 10)} for name, classes in decided.items()}, batch)
    assert [exhibit.caption for exhibit in found] == [
        "sample 20: float is right, int8 is wrong",
        "sample 30: float is wrong, int8 is right",
        "sample 9: all are wrong",
        "sample 0: all are right",
        "sample 1: all are right",
        "sample 2: all are right",
    ]
    assert list(found[0].panels) == ["input", "truth", "float", "int8"]
    np.testing.assert_array_equal(found[0].panels["input"], np.rint(batch["image"][20, 0] * 255))
    label = batch["label"][20]
    assert found[0].panels["truth"] == str(label)
    assert found[0].panels["int8"] == f"{(label + 1) % 10} (69%)"  # e³ / (e³ + 9)


def test_classes_are_called_by_their_names(monkeypatch):
    assert Scenes().class_name(0) == "aeroplane"
    assert [Xray().class_name(label) for label in (0, 1)] == ["no lesion", "lesion"]


def test_the_classes_of_a_folder_of_radiographs_are_its_folders(tmp_path):
    for name in ("well", "ill"):
        (tmp_path / name).mkdir()
    assert Xray(folder=str(tmp_path)).class_name(1) == "well"
    for name in ("a", "b"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
    assert Xray(folder=str(tmp_path)).class_name(0) == "a"


def test_a_task_that_cannot_show_its_samples_has_no_exhibits(monkeypatch):
    monkeypatch.setattr(Digits, "shown", lambda self, batch, index: None)
    assert Digits().exhibits(ANSWERS, Digits().arrays("test")) == ()


def test_texts_show_the_words_that_the_network_saw(tmp_path):
    rows = [
        f"{'bad dull' if index % 3 else 'good fine'} word{index} film,{'-' if index % 3 else '+'}"
        for index in range(60)
    ]
    file = tmp_path / "films.csv"
    file.write_text("\n".join(["text,label", *rows]))
    task = Text(csv=str(file), words=8, vocabulary=7)  # five words: all but "good"
    batch = task.arrays("test")
    said = {"+": "… fine word film", "-": "bad dull word film"}
    for exhibit in task.exhibits({"float": {"logits": logits(1 - batch["label"], 2)}}, batch):
        assert exhibit.caption.endswith(": all are wrong")
        assert exhibit.panels["input"] == said[exhibit.panels["truth"]]
        assert exhibit.panels["float"] == ("-" if exhibit.panels["truth"] == "+" else "+") + " (95%)"


def test_denoising_shows_the_worst_images():
    task = Denoising()
    batch = {name: values[:20] for name, values in task.arrays("test").items()}
    worse = batch["clean"] + np.linspace(0, 0.3, 20, dtype=np.float32)[:, None, None, None]
    found = task.exhibits({"float": {"restored": batch["image"]}, "int8": {"restored": worse}}, batch)
    assert [exhibit.caption.partition(":")[0] for exhibit in found] == [
        f"sample {index}" for index in range(19, 13, -1)
    ]
    error = np.square(np.clip(worse[19], 0, 1) - batch["clean"][19]).mean()
    assert found[0].caption.endswith(f"int8 {-10 * np.log10(error):.1f} dB")
    assert {name: panel.shape for name, panel in found[0].panels.items()} == dict.fromkeys(
        ("input", "truth", "float", "int8"), (28, 28)
    )
    np.testing.assert_array_equal(found[0].panels["truth"], pixels(batch["clean"][19]))


def test_masks_lie_as_colours_over_the_image(monkeypatch):
    monkeypatch.setattr(masks, "NUM_IMAGES", {"train": 4, "validation": 4, "test": 8})
    masks._drawn.cache_clear()
    task = Masks()
    batch = task.arrays("test")
    masks._drawn.cache_clear()
    right = np.moveaxis(np.eye(4, dtype=np.float32)[batch["label"]], -1, 1)
    wrong = right.copy()
    wrong[5] = np.roll(wrong[5], 1, axis=0)
    found = task.exhibits({"float": {"logits": right}, "int8": {"logits": wrong}}, batch)
    assert len(found) == 6
    assert found[0].caption == "sample 5: right pixels: float 100.0%, int8 0.0%"
    panels = found[0].panels
    assert list(panels) == ["input", "truth", "float", "int8"]
    assert all(panel.shape == (48, 48, 3) and panel.dtype == np.uint8 for panel in panels.values())
    np.testing.assert_array_equal(panels["truth"], panels["float"])
    coloured = np.ptp(panels["truth"].astype(int), axis=2) > 0
    np.testing.assert_array_equal(coloured, batch["label"][5] > 0)


def test_numbers_are_shown_where_files_differ_most():
    task = Regression()
    batch = task.arrays("test")
    answers = {"float": {"prediction": batch["target"]}, "int8": {"prediction": batch["target"].copy()}}
    answers["int8"]["prediction"][[3, 7]] += np.array([[0.5], [-1.0]], np.float32)
    found = task.exhibits(answers, batch)
    assert [exhibit.caption for exhibit in found[:2]] == ["sample 7", "sample 3"]
    panels = {name: float(value) for name, value in found[0].panels.items()}
    assert panels["truth"] == panels["float"] > 24  # patients, as the table has them
    assert panels["int8"] == pytest.approx(panels["truth"] - 77, abs=3)  # their standard deviation
    ratings = {"user": np.arange(3), "item": np.arange(3), "stars": np.array([1.0, 2.0, 3.0], np.float32)}
    answers = {"float": {"stars": ratings["stars"]}, "int8": {"stars": ratings["stars"] + np.array([0, 0, 1])}}
    found = Ratings().exhibits(answers, ratings)
    assert found[0] == Exhibit("user 2, item 2", {"truth": "3.00 stars", "float": "3.00 stars", "int8": "4.00 stars"})
