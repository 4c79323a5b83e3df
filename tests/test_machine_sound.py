"""Machines that sound wrong: the recipe in a small form, the drawn machine, WAV files whole and damaged."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from edgedl.data import mel, sound_files
from edgedl.tasks import machine_sound
from edgedl.tasks.machine_sound import RATE, MachineSound
from tests.tiny import refusal, tiny_run, told


@pytest.fixture
def few(monkeypatch):
    """Clips by the dozen."""
    monkeypatch.setattr(machine_sound, "NUM_CLIPS", {"train": 12, "validation": 6, "test": 12})
    machine_sound._drawn.cache_clear()
    yield
    machine_sound._drawn.cache_clear()


def tone(frequency: float, num: int = 8000, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(num) / RATE)


def write_wave(file: Path, samples: np.ndarray, rate: int = RATE, width: int = 2, channels: int = 1) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(width)
        stream.setframerate(rate)
        values = np.repeat(samples[:, None], channels, 1) * 2 ** (8 * width - 1)
        stream.writeframes(values.astype(f"<i{width}").tobytes())


@pytest.fixture
def folder(tmp_path) -> Path:
    for index in range(6):
        write_wave(tmp_path / "train" / f"normal_{index}.wav", tone(400 + index))
        write_wave(tmp_path / "test" / f"normal_{index}.wav", tone(410 + index))
        write_wave(tmp_path / "test" / f"anomaly_{index}.wav", tone(3000 + index))
    return tmp_path


def refused(folder: Path) -> str:
    machine_sound._read.cache_clear()
    return refusal(MachineSound(folder=str(folder), bands=32))


@pytest.mark.usefixtures("few")
def test_the_recipe_runs(tmp_path):
    report = tiny_run("anomaly-int8", tmp_path)
    assert report["metric"]["name"] == "AUROC"
    told(report, tmp_path)


def test_a_tone_is_loudest_in_the_band_around_it():
    frames = mel.log_mel(tone(1000), RATE, 40)
    assert frames.shape == (14, 40)
    mels = 2595 * np.log10(1 + np.array([1000, RATE / 2]) / 700)
    assert (frames.argmax(1) == round(mels[0] / mels[1] * 41) - 1).all()
    np.testing.assert_allclose(mel.log_mel(tone(1000, amplitude=0.05), RATE, 40).max(1) + 20, frames.max(1), atol=0.1)
    assert mel.log_mel(tone(1000, num=1023), RATE, 40).shape == (0, 40)


@pytest.mark.usefixtures("few")
def test_only_sound_machines_train_and_every_other_one_is_faulty_elsewhere():
    task = MachineSound(bands=32)
    train, test = task.arrays("train"), task.arrays("test")
    assert not train["faulty"].any()
    assert len(np.unique(test["clip"])) == 12
    assert (test["faulty"] == (test["clip"] % 2 == 1)).all()
    np.testing.assert_allclose(train["frames"].mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(train["frames"].std((0, 1)), 1, atol=1e-4)
    np.testing.assert_array_equal(train["frames"][0, 2], train["frames"][1, 0])  # two frames on


@pytest.mark.usefixtures("few")
def test_auroc_is_that_of_clips():
    task = MachineSound(bands=32)
    batch = task.arrays("test")
    size = np.where(batch["faulty"], 2.0, 1.0)
    size[batch["clip"] == 1] = 0.5  # one of six faulty clips is nearer than all sound ones
    size[np.flatnonzero(batch["clip"] == 0)[0]] = 8  # one frame is not its clip
    outputs = {"restored": (batch["frames"] + size[:, None, None]).astype(np.float32)}
    assert task.score(outputs, batch) == pytest.approx(5 / 6, abs=1e-6)
    assert 0.5 <= task.figures(None, outputs, batch)["partial AUROC"] <= 1


@pytest.mark.usefixtures("few")
def test_exhibits_show_what_was_heard_and_restored():
    task = MachineSound(bands=32)
    batch = task.arrays("test")
    zeros = {"restored": np.zeros_like(batch["frames"])}
    shown = task.exhibits({"float": zeros, "compressed": zeros}, batch)
    assert len(shown) == 4
    assert [exhibit.caption.split()[0] for exhibit in shown] == ["sound", "sound", "faulty", "faulty"]
    for exhibit in shown:
        assert list(exhibit.panels) == ["input", "float", "compressed"]
        assert all(panel.dtype == np.uint8 and panel.shape == (32, 29) for panel in exhibit.panels.values())
        assert (exhibit.panels["float"] == 127).all()


def test_wave_files_are_read(folder):
    task = MachineSound(folder=str(folder), bands=32)
    assert {split: len(np.unique(task.arrays(split)["clip"])) for split in ("train", "validation", "test")} == {
        "train": 6, "validation": 4, "test": 8,
    }  # fmt: skip
    batch = task.arrays("test")
    assert task.score({"restored": np.zeros_like(batch["frames"])}, batch) == 1  # another tone than ever heard


def test_other_channels_than_the_first_are_left_out(tmp_path):
    for channels in (1, 2):
        write_wave(tmp_path / f"{channels}.wav", tone(400), channels=channels)
    one, two = (sound_files.sound(tmp_path / f"{channels}.wav", RATE) for channels in (1, 2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one, tone(400), atol=1 / 16384)


def test_damaged_folders_are_named(folder, tmp_path):
    assert "gone/train: no such folder" in refused(tmp_path / "gone")
    write_wave(folder / "test" / "normal_2.wav", tone(400, num=100))
    assert "normal_2.wav: 100 samples are too few" in refused(folder)
    write_wave(folder / "test" / "normal_2.wav", tone(400, num=2000))
    assert "normal_2.wav: too short: 2 frames where 5 are needed" in refused(folder)
    (folder / "test" / "normal_2.wav").write_bytes(b"RIFF")
    assert "normal_2.wav: cannot be read as a WAV file" in refused(folder)
    (folder / "test" / "normal_2.wav").rename(folder / "test" / "odd.wav")
    assert "odd.wav: its name begins neither with normal nor with anomaly" in refused(folder)
    (folder / "test" / "odd.wav").unlink()
    write_wave(folder / "train" / "anomaly_0.wav", tone(400))
    assert "anomaly_0.wav: only sound machines may be trained on" in refused(folder)
    (folder / "train" / "anomaly_0.wav").unlink()
    for file in (folder / "test").glob("anomaly*"):
        file.unlink()
    assert "test: 0 files anomaly*.wav are too few" in refused(folder)
