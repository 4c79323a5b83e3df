"""Styles: the recipe in a small form, content and style loss, the photographs, VGG's weights, folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgedl.core import DataError, UsageError
from edgedl.data import image_files
from edgedl.models.stylizer import Stylizer
from edgedl.tasks import style
from edgedl.tasks.style import Style
from tests.test_vision_recipes import noise, save
from tests.tiny import tiny_run, told


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few parts of the photograph, and a feature network that learned little."""
    monkeypatch.setattr(style, "NUM_PARTS", {"train": 32, "validation": 8, "test": 12})
    monkeypatch.setattr(style, "PUZZLES", 5)
    style._judge.cache_clear()
    yield
    style._judge.cache_clear()


def test_the_recipe_runs(tmp_path):
    report = tiny_run("style-int8", tmp_path, size=32)
    assert report["metric"]["name"] == "content and style loss"
    told(report, tmp_path)


def test_the_splits_are_of_different_parts_of_the_photograph():
    task = Style(size=32)
    photograph = style._photograph("china.jpg")
    assert photograph.shape == (3, 213, 320)
    low = {"test": 0, "train": 107, "validation": 240}
    high = {"test": 107, "train": 240, "validation": 320}
    for split in low:
        image = task.arrays(split)["image"][0]
        found = [
            (top, left)
            for top in range(213 - 31)
            for left in range(320 - 31)
            for part in (image, image[:, :, ::-1])
            if photograph[0, top, left] == part[0, 0, 0]
            and (photograph[:, top : top + 32, left : left + 32] == part).all()
        ]
        assert len(found) == 1
        assert low[split] <= found[0][1] <= high[split] - 32


def test_each_loss_is_nothing_for_who_knows_but_the_other():
    task = Style(size=32)
    batch = task.arrays("train")
    unchanged = task.figures(None, {"styled": batch["image"]}, batch)
    assert unchanged["content"] == 0
    assert unchanged["style"] == pytest.approx(1, rel=1e-4)
    assert unchanged["SSIM to the input"] == pytest.approx(1)
    flower = style._style_image(None, 32)
    whole = np.broadcast_to(flower[:, :32, :32], batch["image"].shape)
    copied = task.figures(None, {"styled": whole}, batch)
    assert copied["content"] == pytest.approx(1, rel=1e-4)
    assert copied["style"] < 0.7
    half = Style(size=32, content=0.5)
    outputs = {"styled": whole.copy()}
    assert half.score(outputs, batch) == pytest.approx(task.score(outputs, batch) - 0.5, rel=1e-3)


def test_the_loss_is_the_score_and_can_be_learned_from():
    task = Style(size=32)
    batch = {name: values[:4] for name, values in task.arrays("test").items()}
    styled = torch.rand(4, 3, 32, 32, requires_grad=True)
    loss = task.loss({"styled": styled}, {"image": torch.from_numpy(batch["image"])})
    loss.backward()
    assert styled.grad.abs().max() > 0
    assert loss.item() == pytest.approx(task.score({"styled": styled.detach().numpy()}, batch), rel=1e-5)


def test_a_gram_matrix_does_not_care_where():
    features = torch.rand(2, 5, 8, 8)
    moved = features.flatten(2)[:, :, torch.randperm(64)].reshape(features.shape)
    torch.testing.assert_close(style.gram(moved), style.gram(features))
    torch.testing.assert_close(style.gram(features)[1, 2, 3], (features[1, 2] * features[1, 3]).mean())


def test_exhibits_show_before_and_after():
    task = Style(size=32)
    batch = task.arrays("test")
    shown = task.exhibits({"float": {"styled": batch["image"]}, "compressed": {"styled": batch["image"]}}, batch)
    assert len(shown) == 6
    assert shown[0].caption == "compressed: SSIM to float 1.000"
    assert list(shown[0].panels) == ["input", "style", "float", "compressed"]
    assert shown[0].panels["input"].shape == (32, 32, 3)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_weights_of_vgg_are_taken_from_a_file(tmp_path, monkeypatch, suffix):
    from safetensors.torch import save_file

    monkeypatch.setattr(style, "VGG_WIDTHS", (2, 2, 3, 3, 4, 4, 4, 4, 5, 5))  # the real ones are 40 MB
    places = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21)  # as torchvision numbers them
    widths = (3, *style.VGG_WIDTHS)
    weights = {f"features.{place}.bias": torch.randn(widths[index + 1]) for index, place in enumerate(places)}
    weights |= {
        f"features.{place}.weight": torch.randn(widths[index + 1], widths[index], 3, 3)
        for index, place in enumerate(places)
    }
    file = tmp_path / f"vgg{suffix}"
    write = save_file if suffix == ".safetensors" else torch.save
    write(weights | {"classifier.0.bias": torch.zeros(3)}, file)
    found = style._vgg(str(file))
    for place, convolution in zip(places, found, strict=True):
        assert torch.equal(convolution.weight, weights[f"features.{place}.weight"])
        assert torch.equal(convolution.bias, weights[f"features.{place}.bias"])
    task = Style(size=32, vgg=str(file))
    batch = task.arrays("test")
    assert task.figures(None, {"styled": batch["image"]}, batch)["content"] == 0
    weights["features.10.weight"] = torch.randn(1, 3, 3, 3)
    write(weights, file)
    with pytest.raises(DataError, match=r"features\.10\.weight should be \(4, 3, 3, 3\) .* there is \(1, 3, 3, 3\)"):
        style._vgg(str(file))
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as weights of VGG-19"):
        style._vgg(str(file))


def test_photographs_and_style_are_read_from_files(tmp_path):
    for index in range(20):
        save(tmp_path / "photos" / f"{index}.jpg", noise(40, 60, 3, seed=index))
    save(tmp_path / "style.png", noise(90, 90, 3) // 2)
    task = Style(folder=str(tmp_path / "photos"), style=str(tmp_path / "style.png"), size=16)
    assert {split: task.arrays(split)["image"].shape for split in ("train", "validation", "test")} == {
        "train": (13, 3, 16, 16), "validation": (3, 3, 16, 16), "test": (4, 3, 16, 16),
    }  # fmt: skip
    batch = task.arrays("test")
    assert task.figures(None, {"styled": batch["image"]}, batch)["style"] > 0.5


def test_damaged_files_are_named(tmp_path):
    for index in range(20):
        save(tmp_path / f"{index}.png", noise(16, 16, 3, seed=index))
    (tmp_path / "style.txt").write_text("no image")
    batch = Style(size=16, folder=str(tmp_path)).arrays("test")
    with pytest.raises(DataError, match=r"style\.txt: cannot be read as an image"):
        Style(size=16, folder=str(tmp_path), style=str(tmp_path / "style.txt")).score({"styled": batch["image"]}, batch)
    (tmp_path / "7.png").write_text("no image")
    image_files._pictures.cache_clear()
    with pytest.raises(DataError, match=r"7\.png: cannot be read as an image"):
        [Style(size=16, folder=str(tmp_path)).arrays(split) for split in ("train", "validation", "test")]
    with pytest.raises(DataError, match="gone: no such folder"):
        Style(folder=str(tmp_path / "gone")).arrays("train")
    with pytest.raises(DataError, match=r"china\.jpg: its validation part is 80 pixels wide, less than size = 88"):
        Style(size=88).arrays("validation")
    with pytest.raises(ValidationError, match="multiple of 8"):
        Style(size=50)


def test_a_stylizer_needs_sides_that_it_can_halve():
    with pytest.raises(UsageError, match="24x24 image cannot be halved 4 times; take sides that are multiples of 16"):
        Stylizer(widths=(4, 4, 4, 4, 4)).build(Style(size=24))
