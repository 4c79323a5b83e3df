"""Arrays that are made once and read from then on, whatever becomes of the files."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgedl.synthetic import kept as module
from edgedl.synthetic.kept import kept

made = []


@kept
def squares(num: int, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    made.append(num)
    return np.arange(num) ** 2, np.array([len(name) for name in names], np.int8)


@kept
def cubes(num: int) -> tuple[np.ndarray]:
    made.append(num)
    return (np.arange(num) ** 3,)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made.clear()
    return tmp_path / "edgedl" / "data"


def same(arrays, others) -> bool:
    return all(
        np.array_equal(one, other) and one.dtype == other.dtype for one, other in zip(arrays, others, strict=True)
    )


def test_what_was_made_is_read_and_other_arguments_are_made(cache):
    first = squares(4, ["a", "bc"])
    assert same(squares(4, ["a", "bc"]), first)
    assert made == [4]
    assert len(squares(5, ["a"])[0]) == 5
    assert len(squares(4, [])[1]) == 0
    assert cubes(4)[0].tolist() == [0, 1, 8, 27]
    assert made == [4, 5, 4, 4]
    assert len(list(cache.iterdir())) == 4
    assert not list(cache.glob(".*"))


@pytest.mark.parametrize("damage", ["bit", "gone", "cut", "seal"])
def test_a_damaged_file_is_made_anew(cache, damage):
    first = squares(40, ["a"])
    (folder,) = cache.iterdir()
    file = folder / ("made.json" if damage == "seal" else "0.npy")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:50] if damage == "cut" else content)
    assert same(squares(40, ["a"]), first)
    assert same(squares(40, ["a"]), first)
    assert made == [40, 40]


def test_of_other_code_nothing_is_taken_and_nothing_stays(cache, monkeypatch, tmp_path):
    squares(4, [])
    cubes(4)
    (tmp_path / "code.py").write_text("# changed")
    monkeypatch.setattr(module, "_sources", lambda make: [tmp_path / "code.py"])
    squares(4, [])
    assert made == [4, 4, 4]
    assert sorted(folder.name.partition("-")[0] for folder in cache.iterdir()) == [
        "test_kept.cubes",
        "test_kept.squares",
    ]


def test_without_a_home_or_room_it_is_made_each_time(cache, monkeypatch, tmp_path):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder would be")
    assert same(squares(4, []), squares(4, []))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert same(squares(4, []), squares(4, []))
    assert made == [4] * 4


def test_what_is_wrong_with_arguments_is_said_as_ever(cache):
    with pytest.raises(ValueError, match="negative"):
        _fails(-1)
    assert not cache.exists()


@kept
def _fails(num: int) -> tuple[np.ndarray]:
    raise ValueError("negative")
