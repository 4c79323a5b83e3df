"""Transcripts: the recipe in a tiny form, what is read from logits, recordings with transcripts, and bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgedl.core import DataError
from edgedl.models.conv_recurrent import ConvRecurrent
from edgedl.tasks import transcription
from edgedl.tasks.transcription import LETTERS, Transcription
from tests.test_keywords_recipe import NUM, commands, record
from tests.tiny import refusal, tiny_run, told


@pytest.fixture
def few(monkeypatch):
    """Utterances by the dozen."""
    monkeypatch.setattr(transcription, "NUM_STRINGS", {"train": 40, "validation": 8, "test": 12})
    transcription._spoken.cache_clear()
    yield
    transcription._spoken.cache_clear()


@pytest.mark.usefixtures("few")
def test_the_recipe_of_the_transcripts_runs(tmp_path):
    report = tiny_run("ctc-int8", tmp_path, seconds=0.3)
    assert report["metric"]["name"] == "word error rate"
    told(report, tmp_path)


def answer(task: Transcription, said: list[str]) -> dict[str, np.ndarray]:
    """Logits of a network that says just this, every letter for two steps, and then a blank."""
    codes = [[code for letter in text for code in [1 + LETTERS.index(letter)] * 2 + [0]] for text in said]
    steps = max(map(len, codes)) + 3
    rows = np.array([[0, *row, *[0] * (steps - len(row))] for row in codes])
    return {"logits": np.eye(task.num_classes, dtype=np.float32)[rows] * 9}


def test_letters_are_read_as_they_are_meant():
    task = Transcription()
    said = ["three seven", "a'ha", "", "two  two "]
    outputs = answer(task, said)
    assert task.transcripts(outputs) == ["three seven", "a'ha", "", "two two"]
    truth = {"text": np.array([[1 + LETTERS.index(letter) for letter in "two one"]] * 2)}
    heard = answer(task, ["two one", "two nine"])
    assert task.score(heard, truth) == pytest.approx(1 / 4)
    assert task.figures(None, heard, truth)["character error rate"] == pytest.approx(2 / 14)
    assert task.metric.drop(0.1, 0.3) == pytest.approx(0.2)


def test_the_loss_falls_where_the_right_letters_are_likelier():
    task = Transcription()
    batch = {"text": torch.tensor([[1 + LETTERS.index(letter) for letter in "three"] + [0, 0]])}
    losses = [
        float(task.loss({"logits": torch.from_numpy(answer(task, [said])["logits"])}, batch))
        for said in ("three", "thre", "seven")
    ]
    assert losses == sorted(losses)
    assert losses[0] < 0.1 < losses[1]


@pytest.mark.usefixtures("few")
def test_strings_of_digits_are_said_and_shown():
    task = Transcription()
    batch = task.arrays("test")
    assert batch["frames"].shape == (12, *task.inputs["frames"].shape) == (12, 89, 20)
    truth = transcription._texts(batch["text"])
    assert {word for text in truth for word in text.split()} <= set(transcription.DIGITS)
    assert {len(text.split()) for text in truth} == {1, 2, 3}
    deaf = answer(task, ["", *truth[1:]])
    shown = task.exhibits({"float": answer(task, truth), "int8": deaf}, batch)
    assert len(shown) == 6
    assert {name: shown[0].panels[name] for name in ("truth", "float", "int8")} == {
        "truth": truth[0], "float": truth[0], "int8": "",
    }  # fmt: skip
    assert shown[0].panels["input"].dtype == np.uint8


def books(folder: Path, parts: tuple[str, ...] = ("train-clean-100", "dev-clean", "test-clean")) -> Path:
    """A folder like LibriSpeech's."""
    for number, part in enumerate(parts):
        place = folder / part / "84" / "121"
        for index in range(NUM):
            record(place / f"84-121-{index:04}.wav", 0.5, seed=number * NUM + index)
        lines = [f"84-121-{index:04} {'GO AND ' * (index % 2)}DON'T STOP\n" for index in range(NUM)]
        (place / "84-121.trans.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("divided", [True, False])
def test_transcripts_are_read_from_files_beside_recordings(divided, tmp_path):
    folder = books(tmp_path) if divided else books(tmp_path, ("all",))
    task = Transcription(folder=str(folder), seconds=0.8)
    sizes = {split: len(task.arrays(split)["text"]) for split in ("train", "validation", "test")}
    assert sizes == (dict.fromkeys(sizes, NUM) if divided else {"train": 8, "validation": 2, "test": 2})
    assert set(transcription._texts(task.arrays("train")["text"])) == {"don't stop", "go and don't stop"}
    assert task.arrays("train")["frames"].shape[1:] == task.inputs["frames"].shape


@pytest.mark.parametrize("missing", ["train-clean-100", "dev-clean", "test-clean"])
def test_a_split_without_its_folder_is_named_and_never_drawn_from_the_others(missing, tmp_path):
    parts = {"train-clean-100": "train", "dev-clean": "validation", "test-clean": "test"}
    folder = books(tmp_path, tuple(part for part in parts if part != missing))
    (folder / f"{missing}.txt").touch()  # a file is no folder
    task = Transcription(folder=str(folder), seconds=0.8)
    for part, split in parts.items():
        if part != missing:
            assert len(task.arrays(split)["text"]) == NUM
    with pytest.raises(DataError) as caught:
        task.arrays(parts[missing])
    pattern, others = f"{missing.split('-')[0]}*", ", ".join(part for part in parts if part != missing)
    said = f"no *.trans.txt for the {parts[missing]} split, in a folder {pattern}; there are: {others}"
    assert str(caught.value) == f"{folder}: {said}"


def test_words_are_transcripts_of_their_folders(tmp_path):
    task = Transcription(folder=str(commands(tmp_path, lists=True)), seconds=1.0)
    assert sorted(transcription._texts(task.arrays("test")["text"])) == ["bed", "no", "yes"]
    assert set(transcription._texts(task.arrays("train")["text"])) == {"bed", "cat", "no", "yes"}


def test_what_is_too_long_is_left_out(tmp_path):
    folder = books(tmp_path)
    record(folder / "test-clean/84/121/84-121-0003.wav", 1.5)
    assert len(Transcription(folder=str(folder), seconds=0.8).arrays("test")["text"]) == NUM - 1
    said = refusal(Transcription(folder=str(folder), seconds=0.2))
    assert f"none of the {NUM} recordings of the train split ends within 0.2 s" in said


def test_bad_transcripts_are_named_with_the_line(tmp_path):
    assert "gone: no such folder" in refusal(Transcription(folder=str(tmp_path / "gone")))
    assert "no *.trans.txt in it, and no folder of WAV files" in refusal(Transcription(folder=str(tmp_path)))
    folder = books(tmp_path)
    task, file = Transcription(folder=str(folder)), folder / "dev-clean/84/121/84-121.trans.txt"
    lines = file.read_text().splitlines()
    for line, said in (
        ("84-121-0002", "84-121.trans.txt:3: an empty transcript"),
        ("84-121-0002 NAÏVE", "84-121.trans.txt:3: 'ï' in a transcript"),
        ("84-121-0099 YES", "84-121.trans.txt:3: there is no 84-121-0099.wav beside it"),
    ):
        file.write_text("\n".join([*lines[:2], line, *lines[3:]]))
        assert said in refusal(task)
    (file.parent / "84-121-0099.flac").write_bytes(b"fLaC")
    assert "84-121-0099.flac: FLAC is not read here; make WAV files of it" in refusal(task)
    file.write_bytes("84-121-0002 café".encode("latin-1"))
    assert "84-121.trans.txt:1: no UTF-8: byte 15 is 0xe9" in refusal(task)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recognizer_hears_what_was_before_and_behind_only_if_it_reads_backwards(bidirectional):
    torch.manual_seed(0)
    net = ConvRecurrent(bidirectional=bidirectional).build(Transcription()).eval()
    frames = torch.randn(1, 119, 20)
    changed = frames.clone()
    changed[:, 80:] += 1
    with torch.no_grad():
        differ = (net(frames) - net(changed)).abs().amax(dim=(0, 2)) > 1e-6
    assert net(frames).shape == (1, 60, 29)
    assert differ[45:].all()
    assert bool(differ[:35].any()) == bidirectional
