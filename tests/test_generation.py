"""Generated images: the recipe in a small form, the distance of Fréchet, training against a discriminator, folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgedl.core import DataError, Model, UsageError
from edgedl.models.generator import Generator
from edgedl.steps.adversarial import Adversarial
from edgedl.tasks import generation
from edgedl.tasks.digits import Digits
from edgedl.tasks.generation import Generation, frechet
from tests.test_vision_recipes import noise, save
from tests.tiny import tiny_run, told


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few images from noise, and a judge that learned little."""
    sizes = {"train": 256, "calibration": 64, "validation": 64, "test": 96}
    monkeypatch.setattr(generation, "NUM_IMAGES", sizes)
    monkeypatch.setattr(generation, "JUDGE_STEPS", 60)
    generation._judge.cache_clear()
    yield
    generation._judge.cache_clear()


def test_the_recipe_runs(tmp_path):
    report = tiny_run("gan-int8", tmp_path)
    assert report["metric"]["name"] == "Fréchet distance"
    told(report, tmp_path)


def test_the_distance_of_normal_distributions_is_known():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((20_000, 3))
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    moved = one * np.array([1, 1, 3]) + np.array([0, 2, 0])
    assert frechet(one, moved) == pytest.approx(2**2 + (3 - 1) ** 2, rel=0.03)
    assert frechet(moved, one) == pytest.approx(frechet(one, moved), rel=1e-6)


def test_digits_are_nearer_to_digits_than_noise_is():
    task = Generation()
    batch = task.arrays("test")
    others = task.arrays("validation")["real"][:64].repeat(2, 0)[: len(batch["noise"])]
    real = task.score({"image": others}, batch)
    grey = np.random.default_rng(0).random(batch["real"].shape, np.float32)
    assert 0 < 5 * real < task.score({"image": grey}, batch)


def test_noise_is_normal_and_the_same_each_time():
    task = Generation()
    train, test = task.arrays("train"), task.arrays("test")
    np.testing.assert_array_equal(test["noise"], task.arrays("test")["noise"])
    assert abs(train["noise"].mean()) < 0.02
    assert train["noise"].std() == pytest.approx(1, abs=0.02)
    assert (train["noise"][:64] != test["noise"][:64]).all()
    np.testing.assert_array_equal(test["real"], Digits().arrays("test")["image"][:96])


def test_a_generator_learns_to_mislead():
    task = Generation()
    torch.manual_seed(0)
    model = Model(net=Generator(widths=(16, 8)).build(task))
    before = model.net(torch.from_numpy(task.arrays("test")["noise"])).detach().numpy()
    trained = Adversarial(epochs=15, batch_size=16, lr=2e-3, widths=(8, 16)).apply(model, task)
    with torch.no_grad():
        after = trained.net(torch.from_numpy(task.arrays("test")["noise"])).numpy()
    batch = task.arrays("test")
    assert task.score({"image": after}, batch) < 0.8 * task.score({"image": before}, batch)
    assert [entry["epoch"] for entry in trained.lineage[-1].metrics["epochs"]] == [5, 10, 15]
    assert list(trained.net.state_dict()) == list(model.net.state_dict())  # no discriminator in it


def test_the_loss_is_smallest_for_real_images():
    task = Generation()
    real = torch.from_numpy(task.arrays("train")["real"])
    made = torch.rand(real.shape, requires_grad=True)
    batch = {"real": real}
    loss = task.loss({"image": made}, batch)
    loss.backward()
    assert made.grad.abs().max() > 0
    assert task.loss({"image": real}, batch).item() < 0.1 * loss.item()


def test_a_task_without_real_images_has_nothing_to_tell_apart():
    with pytest.raises(UsageError, match="task digits has no noise and real images"):
        Adversarial().apply(Model(net=torch.nn.Identity()), Digits())
    with pytest.raises(UsageError, match="28x28 image cannot be halved 3 times; take sides that are multiples of 8"):
        Generator(widths=(4, 4, 4)).build(Generation())


def test_exhibits_show_what_comes_of_the_same_noise():
    task = Generation()
    batch = task.arrays("test")
    shown = task.exhibits({"float": {"image": batch["real"]}, "compressed": {"image": batch["real"]}}, batch)
    assert len(shown) == 2
    assert shown[0].caption.startswith("images 1 to 16 beside real ones; compressed: ")
    assert shown[0].panels["float"].shape == (112, 112)
    np.testing.assert_array_equal(shown[0].panels["truth"], shown[0].panels["compressed"])
    np.testing.assert_array_equal(shown[0].panels["truth"][:28, 28:56], np.rint(batch["real"][1, 0] * 255))


def test_images_of_a_folder_are_judged_by_how_they_are_turned(tmp_path):
    for index in range(20):
        save(tmp_path / f"{index}.png", noise(16, 16, 3, seed=index) // 4 + np.arange(0, 160, 10)[:, None, None])
    task = Generation(folder=str(tmp_path), size=16, colour="rgb", noise=8)
    batch = task.arrays("test")
    assert batch["real"].shape == (96, 3, 16, 16)
    assert len(np.unique(batch["real"], axis=0)) == 4
    turned = np.rot90(batch["real"], axes=(2, 3)).copy()
    assert task.score({"image": batch["real"]}, batch) == pytest.approx(0, abs=1e-4)
    assert task.score({"image": turned}, batch) > 0.01
    assert Generator(widths=(8, 4)).build(task)(torch.zeros(2, 8)).shape == (2, 3, 16, 16)


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="gone: no such folder"):
        Generation(folder=str(tmp_path / "gone")).arrays("train")
    (tmp_path / "0.png").write_text("no image")
    for index in range(1, 8):
        save(tmp_path / f"{index}.png", noise(8, 8))
    with pytest.raises(DataError, match=r"0\.png: cannot be read as an image"):
        [Generation(folder=str(tmp_path), size=8).arrays(split) for split in ("train", "validation", "test")]
