"""What was said, letter by letter: strings of digits in synthesized speech, or recordings with transcripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat

from edgedl import files
from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.data import sound_files, splits
from edgedl.synthetic import speech
from edgedl.synthetic.drawing import Chance

if TYPE_CHECKING:
    import torch

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_STRINGS: dict[Split, int] = {"train": 3200, "validation": 200, "test": 300}
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
NUM_CALIBRATION = 100
LONGEST = 3
"""Digits in a string."""
LETTERS = " abcdefghijklmnopqrstuvwxyz'"
BLANK = 0
"""What a network says between two letters; `LETTERS` come behind it."""
PARTS: dict[Split, str] = {"train": "train*", "validation": "dev*", "test": "test*"}
"""Folders of LibriSpeech, such as train-clean-100."""

Utterances = tuple[np.ndarray, list[str]]
"""Frames (N, T, mels) float32 and what was said in each."""


class Transcription(Task):
    """Networks answer `logits` (N, steps, 29), blank and letters, to the log-mel `frames` (N, T, mels) of a sound.

    They learn by connectionist temporal classification (A. Graves et al., 2006) when which letter was said, and are
    read greedily: the likeliest of each step, repetitions as one, blanks left out. The score is the word error rate,
    the character error rate is reported with it.

    Without `folder`, strings of one to three digits, each said by a speaker of its own in noise: 3,200 / 200 / 300 to
    train, validate and test on.

    `folder` is one like those of LibriSpeech (V. Panayotov et al., 2015), files of transcripts `*.trans.txt` with WAV
    files beside them, in folders `train*`, `dev*` and `test*`, or in none such, and then divided; or one like Speech
    Commands, a folder of WAV files for each word. What is longer than `seconds` is left out.
    """

    use: str = "transcription"
    folder: str | None = None
    seconds: PositiveFloat = 1.8
    mels: int = Field(default=20, ge=8, le=80)
    """Bands of the spectrogram."""
    hop_ms: int = Field(default=20, ge=5, le=30)
    """From one column of the spectrogram to the next, in milliseconds."""
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    metric: ClassVar[Metric] = Metric(name="word error rate", unit="fraction", higher_is_better=False)

    @property
    def num_classes(self) -> int:
        return 1 + len(LETTERS)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        samples = round(self.seconds * speech.RATE)
        return {"frames": TensorSpec((speech.num_frames(samples, self._hop), self.mels))}

    @property
    def _hop(self) -> int:
        return self.hop_ms * speech.RATE // 1000

    def arrays(self, split: Split) -> Batch:
        """`frames` (N, T, mels) float32 and `text` (N, letters) int64, filled up with blanks. Raises `DataError`."""
        part: Split = "train" if split == "calibration" else split
        if self.folder is None:
            frames, texts = _spoken(self.seconds, self._hop, self.mels, part)
        else:
            frames, texts = _read(self.folder, self.seconds, self._hop, self.mels, part)
        if split == "calibration":
            frames, texts = frames[:NUM_CALIBRATION], texts[:NUM_CALIBRATION]
        return {"frames": frames, "text": _codes(texts)}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """How unlikely the letters are in that order, by all ways of saying them, a letter."""
        import torch
        from torch.nn.functional import ctc_loss

        likely = outputs["logits"].log_softmax(2).transpose(0, 1)
        steps = torch.full((likely.shape[1],), likely.shape[0])
        return ctc_loss(likely, batch["text"], steps, (batch["text"] != BLANK).sum(1), BLANK, zero_infinity=True)

    def retold(self, said: Batch, batch: Batch) -> Batch:
        return {"frames": batch["frames"], "text": _codes(self.transcripts(said))}

    def score(self, outputs: Batch, batch: Batch) -> float:
        return _word_errors(self.transcripts(outputs), _texts(batch["text"]))

    @property
    def baseline(self) -> Baseline:
        truth = _texts(self.arrays("test")["text"])
        commonest = Counter(" ".join(truth).split()).most_common(1)[0][0]
        return Baseline(_word_errors([commonest] * len(truth), truth), "always answering the commonest word")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        from torchmetrics.functional.text import char_error_rate

        return {"character error rate": float(char_error_rate(self.transcripts(outputs), _texts(batch["text"])))}

    def decisions(self, outputs: Batch) -> np.ndarray:
        """The likeliest letter of each step, (N, steps) int64."""
        return np.asarray(outputs["logits"].argmax(axis=2))

    def transcripts(self, outputs: Batch) -> list[str]:
        """What a network heard."""
        found = self.decisions(outputs)
        repeated = np.diff(found, axis=1, prepend=BLANK) == 0
        return _texts(np.where(repeated, BLANK, found))

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """What the variants do not hear alike or as it was said, then any others."""
        truth = _texts(batch["text"])
        heard = {name: self.transcripts(outputs) for name, outputs in answers.items()}
        right = [len({text, *said}) == 1 for text, *said in zip(truth, *heard.values(), strict=True)]
        return [
            Exhibit(
                f"utterance {index}",
                {
                    "input": speech.picture(batch["frames"][index]),
                    "truth": truth[index],
                    **{name: texts[index] for name, texts in heard.items()},
                },
            )
            for index in np.argsort(right, kind="stable")[:6]
        ]


def _word_errors(heard: Sequence[str], truth: Sequence[str]) -> float:
    """Words replaced, left out and put in, a word that was said."""
    from torchmetrics.functional.text import word_error_rate

    return float(word_error_rate(heard, truth))


def _codes(texts: Sequence[str]) -> np.ndarray:
    """Texts as rows of letters (N, L) int64, filled up with blanks."""
    codes = np.full((len(texts), max(map(len, texts))), BLANK, np.int64)
    for row, text in zip(codes, texts, strict=True):
        row[: len(text)] = [1 + LETTERS.index(letter) for letter in text]
    return codes


def _texts(codes: np.ndarray) -> list[str]:
    """Rows of letters and blanks (N, L) as texts."""
    return [" ".join("".join(LETTERS[code - 1] for code in row if code != BLANK).split()) for row in codes]


@lru_cache(maxsize=len(SEEDS))
def _spoken(seconds: float, hop: int, mels: int, split: Split) -> Utterances:
    num, chance = NUM_STRINGS[split], Chance(SEEDS[split])
    lengths, digits = chance(1, LONGEST + 1, num).astype(int), chance(0, len(DIGITS), num, LONGEST).astype(int)
    said = [[DIGITS[digit] for digit in row[:length]] for row, length in zip(digits, lengths, strict=True)]
    (frames,) = speech.heard(said, seconds, SEEDS[split] + 10, hop, mels)
    return frames, [" ".join(words) for words in said]


@lru_cache(maxsize=4)
def _read(folder: str, seconds: float, hop: int, mels: int, split: Split) -> Utterances:
    root, samples = Path(folder), round(seconds * speech.RATE)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; recordings have to be there")
    if any(root.rglob("*.trans.txt")):
        parts = {name: _folders(root, pattern) for name, pattern in PARTS.items()}
        if any(parts.values()):
            pairs = [pair for part in parts[split] for pair in _transcribed(part)]
            if not pairs:  # never from the other parts: their recordings are for other splits
                there = ", ".join(part.name for found in parts.values() for part in found)
                raise DataError(f"{root}: no *.trans.txt for the {split} split, in a folder {PARTS[split]}; "
                                f"there are: {there}")  # fmt: skip
        else:
            pairs = [*_transcribed(root)]
            pairs = [pairs[index] for index in splits.chosen(len(pairs), split, folder)]
    else:
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("_"))
        pairs = [(file, _spelt(name, str(root / name))) for name in names
                 for file in sound_files.of_split(root, name, split)]  # fmt: skip
    if not pairs:
        raise DataError(f"{root}: no *.trans.txt in it, and no folder of WAV files for each word")
    pairs = [pairs[index] for index in np.argsort(np.random.PCG64(0).random_raw(len(pairs)), kind="stable")]
    heard = ((sound_files.sound(file, speech.RATE), text) for file, text in pairs)
    short = [(sound_files.fitted(values, samples), text) for values, text in heard if len(values) <= samples]
    if not short:
        raise DataError(f"{root}: none of the {len(pairs)} recordings of the {split} split ends within {seconds} s")
    return speech.log_mel(np.stack([values for values, _ in short]), hop, mels), [text for _, text in short]


def _folders(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in root.glob(pattern) if path.is_dir())


def _transcribed(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each recording that a file of transcripts names, and what is said in it."""
    for file in sorted(folder.rglob("*.trans.txt")):
        for number, line in enumerate(files.read_text(file).splitlines(), start=1):
            name, _, text = line.strip().partition(" ")
            recording = file.with_name(f"{name}.wav")
            if not recording.is_file() and recording.with_suffix(".flac").is_file():
                raise DataError(
                    f"{recording.with_suffix('.flac')}: FLAC is not read here; make WAV files of it, "
                    f"as ffmpeg -i {name}.flac {name}.wav does"
                )
            if not recording.is_file():
                raise DataError(f"{file}:{number}: there is no {recording.name} beside it")
            yield recording, _spelt(text, f"{file}:{number}")


def _spelt(text: str, where: str) -> str:
    """Lower-case words of the letters that there are. Raises `DataError`."""
    words = " ".join(text.lower().split())
    if not words:
        raise DataError(f"{where}: an empty transcript")
    if strange := [letter for letter in words if letter not in LETTERS]:
        raise DataError(f"{where}: {strange[0]!r} in a transcript; it is spelt with a to z, ' and spaces alone")
    return words
