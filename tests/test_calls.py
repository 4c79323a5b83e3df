"""Calls that are kept as changes: they come back bit for bit, and take little room where little changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedl.core import UsageError
from edgedl.remote import calls
from edgedl.remote.calls import Calls


def kept(given: list[dict[str, np.ndarray]]) -> Calls:
    found = Calls(list(given[0]))
    for call in given:
        found.append(call)
    return found


def assert_same(found: Calls, given: list[dict[str, np.ndarray]]) -> None:
    """By their bits, so that zeros keep their signs."""
    for one, other in zip(found, given, strict=True):
        assert list(one) == list(other)
        for name, values in one.items():
            assert (values.shape, values.dtype) == (other[name].shape, other[name].dtype)
            assert values.tobytes() == other[name].tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "bool"])
def test_what_was_kept_comes_back_from_a_file(dtype, tmp_path):
    draw = np.random.default_rng(0)
    given = []
    for num_changed in (0, 1, 40, 120, 0, 119, 3):
        state = (given[-1]["file"] if given else np.zeros((4, 30), dtype)).copy()
        state.reshape(-1)[draw.permutation(120)[:num_changed]] = np.array(draw.integers(0, 9, num_changed), dtype)
        given.append({"file": state, "../x": np.array(len(given) % 2, dtype)})
    found = kept(given)
    assert_same(found, given)
    file = tmp_path / found.save(tmp_path)
    assert_same(calls.read(file, ["file", "../x"]), given)
    assert kept(given).save(tmp_path) == file.name
    assert kept(given[:-1]).save(tmp_path) != file.name


def test_signs_of_zeros_and_what_is_no_number_are_kept(tmp_path):
    given = [{"x": np.array(values, np.float32)} for values in ([0.0, 1, np.nan], [-0.0, 1, np.nan], [-0.0, 1, 2])]
    found = kept(given)
    assert_same(found, given)
    assert found.inputs["x"].counts == [calls.WHOLE, 1, 1]


def test_caches_of_which_one_column_changes_take_its_room_alone(tmp_path: Path):
    cache, found = np.zeros((1, 64, 32), np.float32), Calls(["cache"])
    for place in range(64):
        cache[:, place] = place + 1  # in the array that was given before
        found.append({"cache": cache})
    assert found.num_bytes == cache.nbytes + 63 * 32 * 8
    assert [float(call["cache"].max()) for call in found] == list(range(1, 65))


def test_calls_that_are_wholly_new_take_no_more_than_themselves():
    images = [{"image": np.random.default_rng(seed).random((3, 8, 8))} for seed in range(5)]
    assert kept(images).num_bytes == 5 * images[0]["image"].nbytes


def test_calls_of_several_shapes_are_told():
    found = kept([{"image": np.zeros((2, 3), np.float32)}])
    with pytest.raises(UsageError, match=r"image is given as float32 \(2, 3\) and as float32 \(1, 3\)"):
        found.append({"image": np.zeros((1, 3), np.float32)})
