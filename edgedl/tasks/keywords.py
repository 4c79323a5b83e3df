"""Ten spoken words, any other word, or none: synthesized speech, or recordings in a folder for each word."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import Field

from edgedl.core import Batch, DataError, Split
from edgedl.data import splits
from edgedl.data.sound_files import fitted, of_split, sound
from edgedl.images import Classification
from edgedl.synthetic import speech

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "unknown", "silence"
BACKGROUND = "_background_noise_"
NUM_EACH: dict[Split, int] = {"train": 250, "validation": 50, "test": 100}
"""Synthesized utterances of each class."""
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
NUM_CALIBRATION = 240
HOP = 320
"""Samples between frames: 20 ms."""

Sounds = tuple[np.ndarray, np.ndarray]
"""Frames (N, frames, mels) float32 and classes (N,) int64."""


class Keywords(Classification):
    """Networks are shown a second of sound, `image` (N, 1, 49, mels): log-mel frames, time goes down.

    Without `folder`, speech of our own making: 250 / 50 / 100 utterances of each class to train, validate and test on,
    each by a speaker of its own in noise, `unknown` one of 25 other words, `silence` noise alone.

    `folder` is that of Google's Speech Commands (P. Warden, 2018): a folder of WAV files for each word, of which those
    in `words` are told apart and all others are `unknown`, as many as there are of one word on average; its
    `_background_noise_` is cut into seconds of `silence`, if it is there. Its lists of files to validate and test on
    are followed; without them, files are drawn.
    """

    use: str = "keywords"
    folder: str | None = None
    words: tuple[str, ...] = Field(default=WORDS, min_length=1)
    mels: int = Field(default=20, ge=8, le=80)
    """Bands of the spectrogram."""

    @property
    def image_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        return (1, speech.num_frames(speech.RATE, HOP), self.mels)

    @property
    def classes(self) -> tuple[str, ...]:
        return (*self.words, UNKNOWN, SILENCE)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        return len(self.classes)

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 1, 49, mels) float32 and `label` (N,) int64. Raises `DataError`."""
        if self.folder is not None:
            frames, labels = _read(self.folder, self.words, self.mels, split)
        else:
            frames, labels = _spoken(self.words, self.mels, "train" if split == "calibration" else split)
            if split == "calibration":
                frames, labels = frames[:NUM_CALIBRATION], labels[:NUM_CALIBRATION]
        return {"image": frames[:, None], "label": labels}

    def class_name(self, label: int) -> str:
        return self.classes[label]

    def shown(self, batch: Batch, index: int) -> np.ndarray:
        """As it was heard: time to the right, high tones on top."""
        return speech.picture(batch["image"][index, 0])


@lru_cache(maxsize=len(SEEDS))
def _spoken(words: tuple[str, ...], mels: int, split: Split) -> Sounds:
    """In random order, but always the same."""
    if strange := [word for word in words if word not in speech.WORDS]:
        raise DataError(
            f"keywords: {strange[0]!r} is no word that can be synthesized here; name a folder of recordings, "
            f"or words out of {', '.join(speech.WORDS)}"
        )
    others = [word for word in speech.WORDS if word not in words]
    labels = np.arange(len(words) + 2).repeat(NUM_EACH[split])
    labels = labels[np.argsort(np.random.PCG64(SEEDS[split]).random_raw(len(labels)), kind="stable")]
    said = [
        (*((word,) for word in words), (others[index % len(others)],), ())[label] for index, label in enumerate(labels)
    ]
    (frames,) = speech.heard(said, 1.0, SEEDS[split], HOP, mels)
    return frames, labels


@lru_cache(maxsize=4)
def _read(folder: str, words: tuple[str, ...], mels: int, split: Split) -> Sounds:
    root = Path(folder)
    if lacking := [word for word in words if not (root / word).is_dir()]:
        raise DataError(f"{root / lacking[0]}: no such folder; the recordings of {lacking[0]!r} have to be there")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != BACKGROUND)
    found = {name: of_split(root, name, split) for name in names}
    if empty := [word for word in words if not found[word]]:
        raise DataError(f"{root / empty[0]}: no WAV files of the {split} split in it")
    files = [(file, words.index(word)) for word in words for file in found[word]]
    num_each = -(-len(files) // len(words))
    others = [file for name in names if name not in words for file in found[name]]
    order = np.argsort(np.random.PCG64(0).random_raw(len(others)), kind="stable")[:num_each]
    files += [(others[index], len(words)) for index in order]
    sounds = [fitted(sound(file, speech.RATE), speech.RATE) for file, _ in files]
    labels = [label for _, label in files]
    quiet = _seconds(root / BACKGROUND, split, num_each)
    frames = speech.log_mel(np.stack(sounds + quiet), HOP, mels)
    classes = np.array(labels + [len(words) + 1] * len(quiet))
    mixed = np.argsort(np.random.PCG64(1).random_raw(len(classes)), kind="stable")
    mixed = mixed[: splits.NUM_CALIBRATION] if split == "calibration" else mixed
    return frames[mixed], classes[mixed]


def _seconds(folder: Path, split: Split, most: int) -> list[np.ndarray]:
    """At most so many seconds of silence, of which each is in one split alone."""
    files = sorted(folder.glob("*.wav"))
    noises = [sound(file, speech.RATE) for file in files]
    cut = [noise[start : start + speech.RATE] for noise in noises
           for start in range(0, len(noise) - speech.RATE + 1, speech.RATE)]  # fmt: skip
    if not cut:
        return []
    part: Split = "train" if split == "calibration" else split
    return [cut[index] for index in splits.chosen(len(cut), part, str(folder))[:most]]
