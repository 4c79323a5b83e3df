"""LeNet, autoencoder, U-Net and radiographs: their recipes in a small form, data, metrics, and bad folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgedl.core import UsageError
from edgedl.models.autoencoder import Autoencoder
from edgedl.models.cnn import CNN
from edgedl.models.lenet import LeNet
from edgedl.models.unet import UNet
from edgedl.tasks import masks, xray
from edgedl.tasks.denoising import Denoising
from edgedl.tasks.digits import Digits
from edgedl.tasks.masks import Masks
from edgedl.tasks.scenes import Scenes
from edgedl.tasks.xray import Xray
from tests.tiny import refusal, tiny_run, told

Image = pytest.importorskip("PIL.Image")
FEW = {"train": 48, "validation": 16, "test": 24}
NUM = 20


@pytest.fixture
def few(monkeypatch):
    """Drawings by the dozen."""
    monkeypatch.setattr(masks, "NUM_IMAGES", FEW)
    monkeypatch.setattr(xray, "NUM_IMAGES", {"train": 60, "test": 24})
    for drawn in (masks._drawn, xray._drawn):
        drawn.cache_clear()
    yield
    for drawn in (masks._drawn, xray._drawn):
        drawn.cache_clear()


def save(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(file)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape)


def test_the_recipe_of_lenet_runs(tmp_path):
    assert tiny_run("lenet-int8", tmp_path, use="digits")["metric"]["name"] == "accuracy"


def test_lenet_has_the_layers_of_the_textbook():
    net = LeNet().build(Scenes())
    shapes = {name: tuple(value.shape) for name, value in net.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (6, 3, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "dense1.weight": (120, 400),
        "dense2.weight": (84, 120),
        "dense3.weight": (10, 84),
    }
    with pytest.raises(UsageError, match="nothing is left of a 3x3 image"):
        LeNet().build(type("Small", (Digits,), {"image_shape": (1, 3, 3)})())


def test_the_recipe_of_the_autoencoder_runs(tmp_path):
    report = tiny_run("autoencoder-int8", tmp_path)
    assert (report["metric"]["name"], report["metric"]["unit"]) == ("PSNR", "dB")
    assert "dB" in told(report, tmp_path)


def test_noise_is_nearly_normal_and_the_same_whatever_is_asked_first():
    task = Denoising(noise=0.3)
    test, train = task.arrays("test"), task.arrays("train")
    np.testing.assert_array_equal(test["clean"], Digits().arrays("test")["image"])
    np.testing.assert_array_equal(task.arrays("test")["image"], test["image"])
    np.testing.assert_array_equal(task.arrays("calibration")["image"][:5], train["image"][:5])
    middle = (test["clean"] > 0.4) & (test["clean"] < 0.6)
    added = (test["image"] - test["clean"])[middle]
    assert abs(added.mean()) < 0.02
    assert 0.25 < added.std() < 0.3  # some is cut off
    assert np.unique(test["image"][0] - train["image"][0]).size > 200


def test_psnr_is_the_mean_over_images():
    task = Denoising()
    batch = {"clean": np.full((2, 1, 28, 28), 0.5, np.float32)}
    restored = batch["clean"] + np.array([0.1, 0.01], np.float32)[:, None, None, None]
    assert task.score({"restored": restored}, batch) == pytest.approx((20 + 40) / 2, abs=1e-3)


def test_the_noisy_image_itself_is_far_from_the_clean_one():
    task = Denoising()
    batch = task.arrays("test")
    assert task.score({"restored": batch["image"]}, batch) == pytest.approx(12.6, abs=0.05)


def test_an_autoencoder_needs_sides_that_it_can_halve():
    with pytest.raises(UsageError, match="28x28 image cannot be halved 3 times; take sides that are multiples of 8"):
        Autoencoder(widths=(4, 4, 4)).build(Denoising())


def test_denoising_reads_a_folder(tmp_path):
    for index in range(NUM):
        save(tmp_path / f"{index}.png", noise(16, 24, 3, seed=index))
    task = Denoising(folder=str(tmp_path), size=16, colour="rgb")
    found = {split: task.arrays(split)["clean"] for split in ("train", "validation", "test")}
    assert {split: values.shape for split, values in found.items()} == {
        "train": (13, 3, 16, 16),
        "validation": (3, 3, 16, 16),
        "test": (4, 3, 16, 16),
    }
    assert len(np.unique(np.concatenate(list(found.values())), axis=0)) == NUM


def test_denoising_refuses_bad_folders(tmp_path):
    assert "gone: no such folder" in refusal(Denoising(folder=str(tmp_path / "gone")))
    assert "no images in it" in refusal(Denoising(folder=str(tmp_path)))
    save(tmp_path / "0.png", noise(8, 8))
    assert "1 samples are too few" in refusal(Denoising(folder=str(tmp_path)))
    for index in range(NUM):
        save(tmp_path / f"{index}.png", noise(8, 8))
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:40])
    assert "7.png: cannot be read as an image" in refusal(Denoising(folder=str(tmp_path)))


@pytest.mark.usefixtures("few")
def test_the_recipe_of_the_unet_runs(tmp_path):
    report = tiny_run("unet-p30-int8", tmp_path, may_stray=True)
    assert report["metric"]["name"] == "mean IoU"
    assert report["parameters"]["compressed"]["count"] < report["parameters"]["float"]["count"]
    told(report, tmp_path)


@pytest.mark.usefixtures("few")
def test_a_mask_says_what_is_seen():
    batch = Masks().arrays("train")
    assert set(np.unique(batch["label"])) == {0, 1, 2, 3}
    differences = [[], []]
    for image, label in zip(batch["image"], batch["label"], strict=True):
        step, same = np.abs(np.diff(image, axis=2)).mean(axis=0), np.diff(label, axis=1) == 0
        for edge in (0, 1):
            differences[edge].append(step[same if edge == 0 else ~same].mean())
    assert np.mean(differences[1]) > 1.4 * np.mean(differences[0])  # where the class changes, the colour does


@pytest.mark.usefixtures("few")
def test_mean_iou_is_that_of_the_whole_split():
    task = Masks()
    batch = task.arrays("test")
    right = np.moveaxis(np.eye(4, dtype=np.float32)[batch["label"]], -1, 1)
    assert task.score({"logits": right}, batch) == 1
    assert task.decisions({"logits": right}).shape == (24, 48, 48)
    found = np.random.default_rng(0).integers(0, 4, batch["label"].shape)
    shares = [
        ((found == kind) & (batch["label"] == kind)).sum() / ((found == kind) | (batch["label"] == kind)).sum()
        for kind in range(4)
    ]
    logits = np.moveaxis(np.eye(4, dtype=np.float32)[found], -1, 1)
    assert task.score({"logits": logits}, batch) == pytest.approx(np.mean(shares), abs=1e-6)


def test_a_unet_needs_sides_that_it_can_halve():
    with pytest.raises(UsageError, match="50x50 image cannot be halved 2 times; take sides that are multiples of 4"):
        UNet().build(Masks(size=50))
    assert UNet(widths=(4, 8)).build(Masks(size=50))(torch.zeros(1, 3, 50, 50)).shape == (1, 4, 50, 50)


def write_masks(folder: Path) -> Path:
    for index in range(NUM):
        save(folder / "images" / f"{index}.jpg", noise(20, 30, 3, seed=index))
        save(folder / "masks" / f"{index}.png", noise(20, 30, seed=index) % 3)
    return folder


def test_masks_are_read_from_folders(tmp_path):
    task = Masks(folder=str(write_masks(tmp_path)), size=16, classes=3)
    batch = task.arrays("train")
    assert batch["image"].shape == (13, 3, 16, 16)
    assert batch["label"].shape == (13, 16, 16)
    assert set(np.unique(batch["label"])) == {0, 1, 2}
    assert UNet(widths=(4, 8)).build(task)(torch.from_numpy(batch["image"])).shape == (13, 3, 16, 16)


def test_masks_refuses_bad_folders(tmp_path):
    folder = write_masks(tmp_path)
    task = Masks(folder=str(folder), size=16, classes=3)
    save(folder / "masks" / "3.png", np.full((20, 30), 9))
    assert "3.png: the pixel in row 0, column 0 has class 9, but classes go from 0 to 2" in refusal(task)
    save(folder / "masks" / "3.png", noise(20, 30, 3))
    assert "3.png: a mask needs one number a pixel, its class, but this image has RGB" in refusal(task)
    (folder / "masks" / "3.png").unlink()
    assert "3.jpg: no mask of that name" in refusal(task)
    assert "gone/images: no such folder" in refusal(Masks(folder=str(tmp_path / "gone")))


@pytest.mark.usefixtures("few")
def test_the_recipe_of_the_radiographs_runs(tmp_path):
    report = tiny_run("xray-int8", tmp_path)
    assert report["metric"]["name"] == "AUROC"
    told(report, tmp_path)


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    excess, labels = np.round(rng.normal(0, 40, 60), -1).astype(np.float32), rng.integers(0, 2, 60)
    pairs = excess[labels == 1][:, None] - excess[labels == 0]
    wanted = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    logits = np.stack([-excess / 2, excess / 2], axis=1)
    assert Xray().score({"logits": logits}, {"label": labels}) == pytest.approx(wanted, abs=1e-6)


def test_a_network_that_looks_anywhere_does_not_care_where():
    net = CNN(widths=(4, 8), hidden=8, stride=2, look="anywhere").build(Xray(size=64))
    assert net.dense1.in_features == 8
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 16:20, 16:20] = 1
    with torch.no_grad():
        torch.testing.assert_close(net(image), net(image.roll((24, 8), dims=(2, 3))))


def write_classes(folder: Path, num: int = NUM) -> Path:
    for name in ("ill", "well"):
        for index in range(num):
            save(folder / name / f"{index}.png", noise(40, 40, seed=index + 100 * (name == "ill")))
    return folder


@pytest.mark.parametrize("divided", [False, True])
def test_radiographs_are_read_from_a_folder_for_each_class(tmp_path, divided):
    if divided:
        write_classes(tmp_path / "train")
        write_classes(tmp_path / "test", num=6)
    else:
        write_classes(tmp_path)
    task = Xray(folder=str(tmp_path), size=32)
    sizes = {split: len(task.arrays(split)["label"]) for split in ("train", "validation", "test")}
    assert sizes == (
        {"train": 32, "validation": 8, "test": 12} if divided else {"train": 26, "validation": 6, "test": 8}
    )
    for split in sizes:
        assert task.arrays(split)["image"].shape[1:] == (1, 32, 32)
        assert set(task.arrays(split)["label"]) == {0, 1}


def test_radiographs_of_16_bits_keep_their_shades(tmp_path):
    write_classes(tmp_path)
    for index in range(NUM):
        Image.fromarray(np.full((40, 40), 257 * 100, np.uint16)).save(tmp_path / "ill" / f"{index}.png")
    batch = Xray(folder=str(tmp_path), size=32).arrays("train")
    np.testing.assert_allclose(batch["image"][batch["label"] == 0], 100 / 255, atol=1e-6)


def test_radiographs_refuses_bad_folders(tmp_path):
    task = Xray(folder=str(tmp_path), size=32)
    assert "needs a folder of images for each of two classes; there are none" in refusal(task)
    write_classes(tmp_path)
    (tmp_path / "third").mkdir()
    assert "there are ill, third, well" in refusal(task)
    (tmp_path / "third").rmdir()
    (tmp_path / "ill" / "4.png").write_text("no image")
    assert "4.png: cannot be read as an image" in refusal(task)
    for file in (tmp_path / "ill").iterdir():
        file.unlink()
    assert "ill: no images in it" in refusal(task)
    assert "gone: no such folder" in refusal(Xray(folder=str(tmp_path / "gone")))


def write_medmnist(file: Path, **changes: np.ndarray) -> Xray:
    arrays = {}
    for seed, (part, num) in enumerate((("train", 12), ("val", 4), ("test", 6))):
        pictures = [noise(28, 28, seed=100 * seed + index) for index in range(num)]
        arrays[f"{part}_images"] = np.stack(pictures).astype(np.uint8)
        arrays[f"{part}_labels"] = np.arange(num, dtype=np.uint8)[:, None] % 2
    np.savez_compressed(file, **(arrays | changes))
    return Xray(file=str(file), size=32)


def test_radiographs_are_read_from_a_file_of_medmnist(tmp_path):
    task = write_medmnist(tmp_path / "pneumoniamnist.npz")
    assert [len(task.arrays(split)["label"]) for split in ("train", "calibration", "validation", "test")] == [
        12,
        12,
        4,
        6,
    ]
    batch = task.arrays("test")
    assert batch["image"].shape == (6, 1, 32, 32)
    assert batch["label"].tolist() == [0, 1, 0, 1, 0, 1]
    whole = task.model_copy(update={"size": 28}).arrays("validation")["image"]
    np.testing.assert_allclose(whole[2, 0], noise(28, 28, seed=102) / np.float32(255), atol=1e-7)


def test_damaged_files_of_medmnist_are_named(tmp_path):
    file = tmp_path / "odd.npz"
    assert "odd.npz: cannot be read: No such file" in refusal(Xray(file=str(file)))
    assert "odd.npz: test_labels has the labels [2]; 0 and 1 are needed, and both" in refusal(
        write_medmnist(file, test_labels=np.full((6, 1), 2, np.uint8))
    )
    assert "test_images is uint8 (6, 28, 28, 3)" in refusal(
        write_medmnist(file, test_images=np.zeros((6, 28, 28, 3), np.uint8))
    )
    file.write_bytes(file.read_bytes()[:100])
    assert "odd.npz: cannot be read as an .npz file: " in refusal(Xray(file=str(file)))
    np.savez(file, train_images=np.zeros(3))
    assert "odd.npz: no array train_labels" in refusal(Xray(file=str(file)))
    np.savez(file, train_images=np.array([{}], object), train_labels=np.zeros(1))
    assert "odd.npz: array train_images holds Python objects, which could run code" in refusal(Xray(file=str(file)))
    assert "folder and file are both given" in refusal(Xray(file=str(file), folder=str(tmp_path)))
