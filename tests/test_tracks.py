"""Where things will go: the recipe in a small form, simulated traffic, CSV tracks whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedl.core import DataError
from edgedl.models.path_predictor import PathPredictor
from edgedl.tasks import tracks
from edgedl.tasks.tracks import Tracks
from tests.test_sequence_recipes import check, tiny
from tests.tiny import refusal, told

HEADER = "frame,agent,x,y"


@pytest.fixture
def few(monkeypatch):
    """Tracks by the dozen."""
    monkeypatch.setattr(tracks, "NUM_TRACKS", {"train": 96, "validation": 24, "test": 48})
    tracks._simulated.cache_clear()
    yield
    tracks._simulated.cache_clear()


def walks(num_agents: int = 10, num_frames: int = 30) -> list[str]:
    """Rows of agents that walk parallel lines, each at its own speed, seen at every tenth frame."""
    return [
        f"{10 * frame},{agent},{(1 + 0.1 * agent) * frame:.3f},{agent}"
        for frame in range(num_frames)
        for agent in range(num_agents)
    ]


def write(file: Path, rows: list[str], header: str = HEADER) -> str:
    file.write_text("\n".join([header, *rows]) + "\n")
    return str(file)


def refused(file: str) -> str:
    tracks._tracks.cache_clear()
    return refusal(Tracks(file=file))


@pytest.mark.usefixtures("few")
def test_the_recipe_runs(tmp_path):
    targets = ("tflite", "tensorrt-rtx")
    report = tiny("trajectory-int8", Tracks(), tmp_path, targets, widths=(8, 8), hidden=8)
    check(report, targets)
    assert (report["metric"]["name"], report["metric"]["unit"]) == ("ADE", "m")
    told(report, tmp_path)


@pytest.mark.usefixtures("few")
def test_a_track_is_seen_from_its_present_looking_to_the_right():
    batch = Tracks().arrays("test")
    np.testing.assert_allclose(batch["past"][:, -1], 0, atol=1e-6)
    np.testing.assert_allclose(batch["past"][:, -4, 1], 0, atol=1e-6)
    assert (batch["past"][:, -4, 0] < 0).all()
    assert batch["map"][:, 0, 15:17, 7:9].any((1, 2)).all()  # there is road where it stands
    assert set(np.unique(batch["map"])) == {0, 1}


@pytest.mark.usefixtures("few")
def test_what_follows_lies_on_the_road():
    found = tracks._simulated("test", 1.5)
    column, row = (np.floor(found.future[:, :, axis] / 1.5 + shift).astype(int) for axis, shift in ((0, 8), (1, 16)))
    inside = (column >= 0) & (column < 32) & (row >= 0) & (row < 32)
    sample = np.broadcast_to(np.arange(len(row))[:, None], row.shape)
    assert inside.mean() > 0.9
    assert found.map[sample[inside], 0, row[inside], column[inside]].mean() > 0.99


@pytest.mark.usefixtures("few")
def test_ade_and_fde_are_mean_and_last_distance():
    task = Tracks()
    batch = task.arrays("test")
    away = np.zeros((12, 2), np.float32)
    away[:, 0], away[-1] = 1, (3, 4)
    outputs = {"deviation": batch["deviation"] + away}
    assert task.score(outputs, batch) == pytest.approx(16 / 12, rel=1e-5)
    assert task.figures(None, outputs, batch) == {"FDE": pytest.approx(5, rel=1e-5)}


@pytest.mark.usefixtures("few")
def test_exhibits_draw_past_and_future_on_the_map():
    task = Tracks()
    batch = task.arrays("test")
    shown = task.exhibits({"float": {"deviation": batch["deviation"]}}, batch)
    assert 4 <= len(shown) <= 6
    for exhibit in shown:
        assert list(exhibit.panels) == ["input", "truth", "float"]
        np.testing.assert_array_equal(exhibit.panels["truth"], exhibit.panels["float"])
        assert (exhibit.panels["input"] != exhibit.panels["truth"]).any()
        assert exhibit.panels["input"].shape == (192, 192, 3)


def test_tracks_are_read_from_a_file(tmp_path):
    task = Tracks(file=write(tmp_path / "tracks.csv", walks()))
    sizes = {split: len(task.arrays(split)["past"]) for split in ("train", "validation", "test")}
    assert sizes == {"train": 6 * 3, "validation": 2 * 3, "test": 2 * 3}
    batch = task.arrays("test")
    np.testing.assert_allclose(batch["deviation"], 0, atol=1e-4)  # all go straight on
    steps = np.diff(batch["past"][..., 0])
    np.testing.assert_allclose(steps, steps[:, :1].repeat(7, 1), rtol=1e-5)
    assert batch["map"].any()
    assert PathPredictor(cell="gru", widths=(4,)).build(task)


def test_the_map_of_a_file_shows_no_way_of_ones_own(tmp_path):
    straight, crossing = [], []
    for frame in range(30):
        straight += [f"{frame},{agent},{frame},{100 * agent}" for agent in range(9)]
        crossing += [f"{frame},c,{frame},0.5"]
    alone = Tracks(file=write(tmp_path / "alone.csv", straight)).arrays("train")
    assert not alone["map"].any()
    beside = [Tracks(file=write(tmp_path / "beside.csv", straight + crossing)).arrays(s)["map"].any() for s in
              ("train", "validation", "test")]  # fmt: skip
    assert any(beside)


def test_a_gap_parts_a_track(tmp_path):
    rows = [row for row in walks(num_frames=40) if not row.startswith("190,3,")]
    task = Tracks(file=write(tmp_path / "tracks.csv", rows))
    num = sum(len(task.arrays(split)["past"]) for split in ("train", "validation", "test"))
    assert num == 9 * 6 + 1  # of 19 and 20 positions, 20 are enough


@pytest.mark.parametrize(
    ("changed", "header", "said"),
    [
        ((3, "0,3,nan,3"), HEADER, r"tracks\.csv:5: 0, 3, nan, 3 is no frame, agent and position"),
        ((3, "0,3,1.0"), HEADER, r"tracks\.csv:5: 0, 3, 1\.0, None is no frame"),
        ((3, "zero,3,1,3"), HEADER, r"tracks\.csv:5: zero, 3, 1, 3 is no frame"),
        ((3, "0,2,1,3"), HEADER, r"tracks\.csv:5: agent 2 is there twice in frame 0"),
        ((3, "0,3,1,3"), "time,agent,x,y", r"tracks\.csv: no column frame; it has time, agent, x, y"),
    ],
)
def test_damaged_rows_are_named(changed, header, said, tmp_path):
    rows = walks()
    rows[changed[0]] = changed[1]
    with pytest.raises(DataError, match=said):
        Tracks(file=write(tmp_path / "tracks.csv", rows, header)).arrays("train")


def test_files_without_tracks_are_named(tmp_path):
    assert "none.csv: cannot be read as CSV" in refused(str(tmp_path / "none.csv"))
    assert "tracks of 20 positions: 0 samples are too few" in refused(write(tmp_path / "a.csv", walks(num_frames=19)))
    (tmp_path / "b.csv").write_bytes(b"frame,agent,x,y\n\xff")
    assert "b.csv: cannot be read as CSV in UTF-8" in refused(str(tmp_path / "b.csv"))
