"""The drawn scenes: the same bytes everywhere, as many of each class, and not to be told apart by colour."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from edgedl.tasks import scenes
from edgedl.tasks.scenes import NUM_IMAGES, THINGS, Chance, Scenes

SPLITS = ("train", "validation", "test")


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def pixels(split) -> np.ndarray:
    return scenes._drawn(split)[0]


@pytest.mark.parametrize(
    ("split", "first", "all_of_them"),
    [
        ("train", "6002d1b34e762b15", "8aa7715722b68549"),
        ("validation", "1c89ba8fac3d2196", "5220e06d961cddab"),
        ("test", "72b435e5a9477f94", "f4d2cecdec588c1d"),
    ],
)
def test_every_machine_draws_the_same_bytes(split, first, all_of_them):
    assert digest(pixels(split)[:10]) == first
    assert digest(pixels(split)) == all_of_them


def test_chance_is_that_of_every_numpy():
    numbers = Chance(1)(-1, 1, 2, 2)
    assert numbers.dtype == np.float32
    assert (numbers * 2**24).tolist() == [[396666, 15115052], [-11940024, 15054176]]


def test_drawing_takes_seconds():
    scenes._drawn.cache_clear()
    start = time.process_time()
    for split in SPLITS:
        Scenes().arrays(split)
    assert time.process_time() - start < 10
    start = time.process_time()
    Scenes().arrays("train")
    assert time.process_time() - start < 1  # and the second time none


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_is_there_as_often(split):
    arrays = Scenes().arrays(split)
    assert arrays["image"].shape == (NUM_IMAGES[split], 3, 32, 32)
    assert np.bincount(arrays["label"]).tolist() == [NUM_IMAGES[split] // 10] * 10
    assert np.bincount(Scenes().arrays("calibration")["label"]).tolist() == [50] * 10


def test_no_image_is_there_twice():
    drawn = [digest(image) for split in SPLITS for image in pixels(split)]
    assert len(set(drawn)) == len(drawn) == sum(NUM_IMAGES.values())


def test_calibration_is_the_beginning_of_training():
    np.testing.assert_array_equal(Scenes().arrays("calibration")["image"], Scenes().arrays("train")["image"][:500])


@pytest.mark.parametrize("split", SPLITS)
def test_images_use_the_range_from_0_to_1(split):
    images = Scenes().arrays(split)["image"]
    assert (images.min(), images.max()) == (0, 1)
    assert 0.3 < images.mean() < 0.6
    np.testing.assert_array_equal(np.rint(images * 255), pixels(split))
    assert (images.std(axis=(1, 2, 3)) > 0.03).all()  # none is blank


def test_arrays_belong_to_who_asked():
    task = Scenes()
    task.arrays("test")["image"][:] = 0
    assert task.arrays("test")["image"].any()


@pytest.mark.parametrize("seen", ["mean colour", "mean image"])
def test_shapes_have_to_be_seen(seen):
    """What needs no network does badly: nearest class by mean colour, and by mean image."""

    def features(split) -> tuple[np.ndarray, np.ndarray]:
        arrays = Scenes().arrays(split)
        values = arrays["image"].mean(axis=(2, 3)) if seen == "mean colour" else arrays["image"].reshape(-1, 3072)
        return values, arrays["label"]

    (train, labels), (test, wanted) = features("train"), features("test")
    means = np.stack([train[labels == label].mean(axis=0) for label in range(10)])
    found = np.stack([((test - mean) ** 2).sum(axis=1) for mean in means]).argmin(axis=0)
    assert (found == wanted).mean() < (0.15 if seen == "mean colour" else 0.25)


@pytest.mark.parametrize("name", THINGS)
def test_a_thing_is_within_its_square_but_for_an_edge(name):
    for stroke in THINGS[name]:
        widest = max(1, stroke.taper) if stroke.shape == "block" else 1
        assert abs(stroke.x) + stroke.half_width * widest <= 1.05
        assert abs(stroke.y) + stroke.half_height <= 1.05
