"""Variational autoencoders: the recipe in a small form, the bound, where noise comes in, folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgedl.core import DataError
from edgedl.models.vae import VAE
from edgedl.tasks.variational import Variational
from tests.test_sequence_recipes import check, tiny
from tests.test_vision_recipes import noise, save
from tests.tiny import told


def tensors(batch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}


def test_the_recipe_runs(tmp_path):
    targets = ("tflite", "tensorrt-rtx")
    report = tiny("vae-int8", Variational(code=4), tmp_path, targets, hidden=64)
    check(report, targets)
    assert (report["metric"]["name"], report["metric"]["unit"]) == ("ELBO", "nats")
    told(report, tmp_path)


def test_the_bound_is_that_of_torchs_own_distributions():
    from torch.distributions import Bernoulli, Normal, kl_divergence

    task = Variational(code=4)
    batch = {name: values[:5] for name, values in task.arrays("test").items()}
    rng = np.random.default_rng(0)
    outputs = {
        "restored": rng.uniform(0.1, 0.9, batch["image"].shape).astype(np.float32),
        "mean": rng.standard_normal((5, 4)).astype(np.float32),
        "spread": rng.standard_normal((5, 4)).astype(np.float32),
    }
    given = tensors(outputs)
    pixels = Bernoulli(given["restored"], validate_args=False).log_prob(torch.from_numpy(batch["image"])).sum((1, 2, 3))
    deviation = torch.nn.functional.softplus(given["spread"])
    code = kl_divergence(Normal(given["mean"], deviation), Normal(0, 1)).sum(1)
    assert task.score(outputs, batch) == pytest.approx(float((pixels - code).mean()), rel=1e-5)
    assert task.loss(given, tensors(batch)).item() == pytest.approx(-task.score(outputs, batch), rel=1e-5)
    figures = task.figures(None, outputs, batch)
    assert figures["cross-entropy"] + figures["divergence"] == pytest.approx(-task.score(outputs, batch))
    assert figures["divergence"] == pytest.approx(float(code.mean()), rel=1e-5)


def test_to_draw_the_mean_image_is_far_from_the_image_itself():
    task = Variational()
    batch, train = task.arrays("test"), task.arrays("train")
    nothing = {"mean": np.zeros_like(batch["noise"]), "spread": np.full_like(batch["noise"], np.log(np.e - 1))}
    mean = np.broadcast_to(train["image"].mean(0), batch["image"].shape)
    assert task.score({"restored": mean, **nothing}, batch) == pytest.approx(-354.9, abs=0.1)
    assert task.score({"restored": batch["image"], **nothing}, batch) == pytest.approx(-252.4, abs=0.1)


def test_noise_is_an_input_where_it_counts_and_drawn_anew_where_it_trains():
    task = Variational(code=4)
    torch.manual_seed(0)
    net = VAE(hidden=16).build(task).eval()
    batch = tensors({name: values[:3] for name, values in task.arrays("test").items()})
    with torch.no_grad():
        first, again = net(**batch), net(**batch)
        other = net(batch["image"], batch["noise"] + 1)
        net.train()
        drawn = [net(**batch)[0] for _ in range(2)]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first[0] != other[0]).any()
    torch.testing.assert_close(first[1:], other[1:])
    assert (drawn[0] != drawn[1]).any()


def test_exhibits_go_from_the_least_likely_image_to_the_most_likely():
    task = Variational(code=4)
    batch = task.arrays("test")
    outputs = {"restored": batch["image"], "mean": np.zeros((360, 4)), "spread": np.zeros((360, 4))}
    shown = task.exhibits({"float": outputs, "compressed": outputs}, batch)
    bounds = [float(exhibit.caption.split()[2].rstrip(",")) for exhibit in shown]
    assert len(shown) == 6
    assert bounds == sorted(bounds)
    assert list(shown[0].panels) == ["input", "float", "compressed"]
    np.testing.assert_array_equal(shown[0].panels["input"], shown[0].panels["float"])
    assert shown[0].panels["input"].shape == (28, 28)


def test_images_are_read_from_a_folder(tmp_path):
    for index in range(20):
        save(tmp_path / f"{index}.png", noise(20, 16, 3, seed=index))
    task = Variational(folder=str(tmp_path), size=16, colour="rgb", code=3)
    sizes = {split: task.arrays(split)["image"].shape for split in ("train", "validation", "test")}
    assert sizes == {"train": (13, 3, 16, 16), "validation": (3, 3, 16, 16), "test": (4, 3, 16, 16)}
    restored, mean, spread = VAE(hidden=8).build(task)(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3))
    assert (restored.shape, mean.shape, spread.shape) == ((2, 3, 16, 16), (2, 3), (2, 3))


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="gone: no such folder"):
        Variational(folder=str(tmp_path / "gone")).arrays("train")
    with pytest.raises(DataError, match="no images in it"):
        Variational(folder=str(tmp_path)).arrays("train")
    for index in range(8):
        save(tmp_path / f"{index}.png", noise(8, 8))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"3\.png: cannot be read as an image"):
        [Variational(folder=str(tmp_path), size=8).arrays(split) for split in ("train", "validation", "test")]
