"""Keywords: the recipe in a tiny form, synthesized speech, recordings from folders, and bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedl.core import DataError
from edgedl.data import sound_files
from edgedl.synthetic import speech
from edgedl.tasks import keywords
from edgedl.tasks.keywords import BACKGROUND, Keywords
from tests.tiny import refusal, tiny_run

wavfile = pytest.importorskip("scipy.io.wavfile")
NUM = 12


@pytest.fixture
def few(monkeypatch):
    """Utterances by the dozen."""
    monkeypatch.setattr(keywords, "NUM_EACH", {"train": 4, "validation": 2, "test": 2})
    keywords._spoken.cache_clear()
    yield
    keywords._spoken.cache_clear()


def record(file: Path, seconds: float = 1.0, rate: int = 16_000, seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate))
    wavfile.write(file, rate, (noise.clip(-1, 1) * 32767).astype(np.int16))
    return file


@pytest.mark.usefixtures("few")
def test_the_recipe_of_the_keywords_runs(tmp_path):
    report = tiny_run("kws-p50-int8", tmp_path)
    assert report["metric"]["name"] == "accuracy"
    assert report["parameters"]["compressed"]["count"] < 0.6 * report["parameters"]["float"]["count"]


def test_speech_is_the_same_every_time_and_of_many_speakers():
    first, again = (speech.speak([["yes"], ["yes"], []], 1.0, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, speech.RATE)
    assert first.dtype == np.float32
    assert np.abs(first).max() < 1
    assert np.abs(first[0] - first[1]).max() > 0.1
    assert np.abs(first[2]).max() < 0.1 < np.abs(first[:2]).max(axis=1).min()


def test_vowels_ring_where_they_were_measured(monkeypatch):
    """The loudest tones below 1,200 Hz of two vowels that a first formant of 270 and 730 Hz tells apart."""
    monkeypatch.setitem(speech.WORDS, "ee", "IY IY IY")
    monkeypatch.setitem(speech.WORDS, "ah", "AA AA AA")
    loudest = {}
    for word in ("ee", "ah"):
        sounds = speech.speak([[word]] * 24, 0.5, seed=0)
        spectra = np.abs(np.fft.rfft(sounds, axis=1)) ** 2
        tones = np.fft.rfftfreq(sounds.shape[1], 1 / speech.RATE)
        heard = (tones > 80) & (tones < 1200)
        loudest[word] = np.median(tones[heard][spectra[:, heard].argmax(axis=1)])
    assert 150 < loudest["ee"] < 420
    assert 550 < loudest["ah"] < 1100


@pytest.mark.parametrize("word", speech.WORDS)
def test_every_word_can_be_said(word):
    assert np.abs(speech.speak([[word]], 0.8, seed=1)).max() > 0.1


def test_what_is_too_long_is_said_faster():
    many = speech.speak([["seven"] * 12], 1.0, seed=0)[0]
    loud = np.flatnonzero(np.abs(many) > 0.05)
    assert loud[0] < 4000
    assert loud[-1] > 12_000


def test_frames_hear_a_tone_in_its_band():
    time = np.arange(speech.RATE) / speech.RATE
    tones = np.stack([np.sin(2 * np.pi * pitch * time) for pitch in (300, 1000, 4000)]).astype(np.float32)
    frames = speech.log_mel(tones, 320, 20)
    assert frames.shape == (3, 49, 20) == (3, speech.num_frames(speech.RATE, 320), 20)
    middles = (speech.mel_bands(20) * np.linspace(0, 8000, 257)[:, None]).sum(axis=0)
    np.testing.assert_allclose(middles[frames.mean(axis=1).argmax(axis=1)], (300, 1000, 4000), rtol=0.15)
    assert speech.log_mel(np.zeros((1, 8000), np.float32), 320, 20).max() == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float32"])
def test_recordings_of_any_kind_and_rate_sound_alike(kind, tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    values = {"int16": tone * 2**15, "int32": tone * 2**31, "uint8": tone * 128 + 128, "float32": tone}[kind]
    wavfile.write(tmp_path / "tone.wav", 8000, np.stack([values, 0 * values], axis=1).astype(kind))
    found = sound_files.sound(tmp_path / "tone.wav", 16_000)
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[200:-200], wanted[200:-200], atol=0.02)


def test_damaged_recordings_are_named(tmp_path):
    file = record(tmp_path / "7.wav")
    whole = file.read_bytes()
    nowhere = whole.replace(b"data", b"dbta")
    cut = ((whole[:3000], "Reached EOF"), (whole[:30], ""), (b"", ""), (b"no sound", "not understood"), (nowhere, ""))
    for damaged, said in cut:
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"7\.wav: cannot be read as a WAV file: .*{said}"):
            sound_files.sound(file, 16_000)
    record(file, seconds=0.01)
    with pytest.raises(DataError, match=r"7\.wav: 160 samples are too few"):
        sound_files.sound(file, 16_000)
    wavfile.write(file, 16_000, np.array([0.0, np.nan] * 1000, np.float32))
    with pytest.raises(DataError, match=r"7\.wav: sample 1 is nan"):
        sound_files.sound(file, 16_000)
    with pytest.raises(DataError, match=r"gone\.wav: cannot be read: No such file"):
        sound_files.sound(tmp_path / "gone.wav", 16_000)


@pytest.mark.usefixtures("few")
def test_keywords_are_of_all_classes_alike():
    task = Keywords()
    assert task.num_classes == 12
    for split, num in (("train", 4), ("validation", 2), ("test", 2)):
        batch = task.arrays(split)
        assert batch["image"].shape == (12 * num, *task.image_shape)
        np.testing.assert_array_equal(np.bincount(batch["label"]), [num] * 12)
    silent = batch["label"] == task.classes.index("silence")
    assert batch["image"][silent].max() < batch["image"][~silent].max(axis=(1, 2, 3)).min()
    assert "'hallo' is no word that can be synthesized here" in refusal(Keywords(words=("hallo", "yes")))


@pytest.mark.usefixtures("few")
def test_keywords_show_what_was_taken_for_another():
    task = Keywords()
    batch = task.arrays("test")
    right = np.eye(12, dtype=np.float32)[batch["label"]]
    wrong = right.copy()
    wrong[5] = np.roll(wrong[5], 1)
    shown, *_ = task.exhibits({"float": {"logits": 9 * right}, "int8": {"logits": 9 * wrong}}, batch)
    word, other = (task.classes[(batch["label"][5] + step) % 12] for step in (0, 1))
    assert shown.caption == "sample 5: float is right, int8 is wrong"
    assert (shown.panels["truth"], shown.panels["float"]) == (word, f"{word} (100%)")
    assert shown.panels["int8"] == f"{other} (100%)"
    assert shown.panels["input"].shape == (60, 147)
    assert shown.panels["input"].dtype == np.uint8


def commands(folder: Path, *, lists: bool) -> Path:
    """A folder like Speech Commands."""
    for number, word in enumerate(("yes", "no", "bed", "cat")):
        for index in range(NUM):
            record(folder / word / f"{index}_nohash_0.wav", 0.9, seed=number * NUM + index)
    record(folder / BACKGROUND / "hum.wav", 10.5, seed=99)
    if lists:
        for name, index in (("testing_list.txt", 0), ("validation_list.txt", 1)):
            (folder / name).write_text("".join(f"{word}/{index}_nohash_0.wav\n" for word in ("yes", "no", "bed")))
    return folder


@pytest.mark.parametrize("lists", [False, True])
def test_keywords_are_read_from_a_folder_for_each_word(lists, tmp_path):
    task = Keywords(folder=str(commands(tmp_path, lists=lists)), words=("yes", "no"))
    counts = {split: np.bincount(task.arrays(split)["label"]).tolist() for split in ("train", "validation", "test")}
    if lists:
        assert counts == {"train": [10, 10, 10, 6], "validation": [1, 1, 1, 1], "test": [1, 1, 1, 1]}
    else:
        assert counts == {"train": [8, 8, 8, 6], "validation": [2, 2, 2, 2], "test": [2, 2, 2, 2]}
    seen = np.concatenate([task.arrays(split)["image"] for split in counts])
    assert len(np.unique(seen, axis=0)) == len(seen)
    assert seen.shape[1:] == task.image_shape


def test_keywords_refuses_bad_folders(tmp_path):
    assert "gone/yes: no such folder" in refusal(Keywords(folder=str(tmp_path / "gone"), words=("yes",)))
    folder = commands(tmp_path, lists=True)
    task = Keywords(folder=str(folder), words=("yes", "no"))
    (folder / "yes" / "5_nohash_0.wav").write_bytes(b"RIFF")
    assert "yes/5_nohash_0.wav: cannot be read as a WAV file" in refusal(task)
    (folder / "yes" / "5_nohash_0.wav").unlink()
    (folder / "no" / "0_nohash_0.wav").unlink()
    assert f"{folder / 'no'}: no WAV files of the test split in it" in refusal(task)
    (folder / "testing_list.txt").write_bytes(b"caf\xe9/1.wav")
    assert "testing_list.txt:1: no UTF-8: byte 3 is 0xe9" in refusal(task)
    assert f"{folder / 'up'}: no such folder; the recordings of 'up'" in refusal(Keywords(folder=str(folder)))
