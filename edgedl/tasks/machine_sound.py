"""Machines that sound wrong, told by networks that heard sound ones alone: a drawn machine, or WAV files of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.data import mel, sound_files, splits
from edgedl.synthetic.kept import kept

if TYPE_CHECKING:
    import torch

RATE, SECONDS = 16_000, 2
NUM_FRAMES, STRIDE = 5, 2
"""Frames that a network sees at once, and how far apart the first ones are."""
NUM_CLIPS: dict[Split, int] = {"train": 300, "validation": 80, "test": 240}
"""Every other one of those that validate and test is of a machine with a fault."""
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
RESONANCES = ((500.0, 200.0, 1.0), (1400.0, 400.0, 0.5), (3100.0, 700.0, 0.25))
"""Of the housing: frequency, width and strength."""

FAULT = 0.006
"""How loud faults are; the machine itself is about 1."""


class Clips(NamedTuple):
    """Frames of several clips, one after the other."""

    frames: np.ndarray
    """(N, 5, bands) float32, decibels"""
    clip: np.ndarray
    """(N,) int64: which clip each is of"""
    faulty: np.ndarray
    """(N,) bool"""


class MachineSound(Task):
    """Networks answer `restored` to `frames`, both (N, 5, bands): the farther they are apart, the stranger the sound.

    Without `folder`, clips of 2 s of a machine with harmonics of its speed, a housing that resonates, and noise that
    grows with load. Speed and load differ from clip to clip; faults are a knock at every other turn, a whine that is
    no harmonic, or a rub once a turn, all quiet. Frames are mel bands in decibels, with mean 0 and deviation 1 in each
    band over the training clips. With `folder`: its `train` and `test` hold WAV files whose names begin with `normal`
    or, in `test`, `anomaly`, as those of DCASE's and MLPerf Tiny's machines; a third of `test` validates.
    Source: Y. Koizumi et al., Description and Discussion on DCASE2020 Challenge Task2, 2020.
    """

    use: str = "machine-sound"
    folder: str | None = None
    bands: int = Field(default=128, ge=8, le=256)
    """Of the spectrogram."""
    outputs: ClassVar[tuple[str, ...]] = ("restored",)
    metric: ClassVar[Metric] = Metric(name="AUROC", unit="fraction", higher_is_better=True)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"frames": TensorSpec((NUM_FRAMES, self.bands))}

    def arrays(self, split: Split) -> Batch:
        """`frames` (N, 5, bands) float32, `clip` (N,) int64 and `faulty` (N,) bool. Raises `DataError`."""
        if split == "calibration":
            train = self.arrays("train")
            apart = max(1, len(train["clip"]) // splits.NUM_CALIBRATION)
            return {name: values[::apart] for name, values in train.items()}
        sound, clips = self._clips("train").frames, self._clips(split)
        frames = (clips.frames - sound.mean((0, 1))) / np.maximum(sound.std((0, 1)), 1e-3)
        return {"frames": frames, "clip": clips.clip, "faulty": clips.faulty}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error."""
        return (outputs["restored"] - batch["frames"]).square().mean()

    def score(self, outputs: Batch, batch: Batch) -> float:
        """Of a faulty and a sound clip, how often the faulty one is farther from what was restored of it."""
        return self._auroc(outputs, batch, None)

    @property
    def baseline(self) -> Baseline:
        batch = self.arrays("test")  # whose bands have mean 0 over the training clips
        return Baseline(
            self.score({"restored": np.zeros_like(batch["frames"])}, batch), "always answering the mean sound"
        )

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """The AUROC where at most a tenth of the sound clips raise an alarm, from 0.5 for chance to 1."""
        return {"partial AUROC": self._auroc(outputs, batch, 0.1)}

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """The strangest and the least strange clip of the sound and of the faulty machines, to the float network."""
        names, faulty = _by_clip(batch["faulty"], batch["clip"])
        errors = {name: _errors(found, batch) for name, found in answers.items()}
        first = next(iter(errors.values()))
        shown = []
        for fault in (False, True):
            some = np.flatnonzero((faulty > 0) == fault)
            for place in dict.fromkeys([some[first[some].argmin()], some[first[some].argmax()]] if len(some) else []):
                mine = batch["clip"] == names[place]
                panels = {"input": _picture(batch["frames"][mine])}
                panels |= {name: _picture(found["restored"][mine]) for name, found in answers.items()}
                said = ", ".join(f"{name} {found[place]:.3f}" for name, found in errors.items())
                shown.append(Exhibit(f"{'faulty' if fault else 'sound'} machine, error: {said}", panels))
        return shown

    def _auroc(self, outputs: Batch, batch: Batch, max_fpr: float | None) -> float:
        import torch
        from torchmetrics.functional.classification import binary_auroc

        errors, (_, faulty) = _errors(outputs, batch), _by_clip(batch["faulty"], batch["clip"])
        # Errors in the order of their ranks, since torchmetrics would squeeze large ones together.
        ranks = np.unique(errors, return_inverse=True)[1] / len(errors)
        return float(binary_auroc(torch.from_numpy(ranks), torch.from_numpy(faulty > 0).long(), max_fpr))

    def _clips(self, split: Split) -> Clips:
        return _drawn(split, self.bands) if self.folder is None else _read(self.folder, split, self.bands)


def _errors(outputs: Batch, batch: Batch) -> np.ndarray:
    """Mean squared error of each clip."""
    return _by_clip(np.square(outputs["restored"] - batch["frames"]).mean((1, 2)), batch["clip"])[1]


def _by_clip(values: np.ndarray, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The clips that there are, and the mean of the values of each."""
    names, places = np.unique(clip, return_inverse=True)
    return names, np.bincount(places, values.astype(np.float64)) / np.bincount(places)


def _picture(frames: np.ndarray) -> np.ndarray:
    """Bands upwards, time to the right, from 3 deviations below the mean to 3 above."""
    middle = frames[:, NUM_FRAMES // 2].T[::-1]
    return np.asarray(np.clip((middle + 3) / 6, 0, 1) * 255, np.uint8)


def _cut(clips: Sequence[np.ndarray], faulty: Sequence[bool]) -> Clips:
    """Frames (frames, bands) of each clip, `NUM_FRAMES` at a time."""
    views = [
        np.lib.stride_tricks.sliding_window_view(frames, NUM_FRAMES, 0)[::STRIDE].transpose(0, 2, 1) for frames in clips
    ]
    lengths = [len(view) for view in views]
    clip = np.repeat(np.arange(len(clips)), lengths)
    return Clips(np.concatenate(views).astype(np.float32), clip, np.repeat(faulty, lengths))


@lru_cache(maxsize=4)
def _read(folder: str, split: Split, num_bands: int) -> Clips:
    part = Path(folder) / ("train" if split == "train" else "test")
    if not part.is_dir():
        raise DataError(f"{part}: no such folder; WAV files have to be there")
    files = sorted(part.glob("*.wav"))
    if odd := [file for file in files if not file.name.startswith(("normal", "anomaly"))]:
        raise DataError(f"{odd[0]}: its name begins neither with normal nor with anomaly")
    sound, faulty = ([file for file in files if file.name.startswith(kind)] for kind in ("normal", "anomaly"))
    if split == "train" and faulty:
        raise DataError(f"{faulty[0]}: only sound machines may be trained on")
    for kind, found in (("normal", sound), ("anomaly", faulty)):
        if len(found) < (1 if split == "train" else 2) and (kind, split) != ("anomaly", "train"):
            raise DataError(f"{part}: {len(found)} files {kind}*.wav are too few")
    if split != "train":  # every third of either kind validates, so that both parts have both
        thirds = {file for kind in (sound, faulty) for file in kind[1::3]}
        files = [file for file in files if (file in thirds) == (split == "validation")]
    clips = [mel.log_mel(sound_files.sound(file, RATE), RATE, num_bands) for file in files]
    for file, frames in zip(files, clips, strict=True):
        if len(frames) < NUM_FRAMES:
            raise DataError(f"{file}: too short: {len(frames)} frames where {NUM_FRAMES} are needed at least")
    return _cut(clips, [file.name.startswith("anomaly") for file in files])


@lru_cache(maxsize=4)
def _drawn(split: Split, num_bands: int) -> Clips:
    faulty = [split != "train" and index % 2 == 1 for index in range(NUM_CLIPS[split])]
    (clips,) = _heard(faulty, SEEDS[split], num_bands)
    return _cut(list(clips), faulty)


@kept
def _heard(faulty: Sequence[bool], seed: int, num_bands: int) -> tuple[np.ndarray]:
    """Frames (N, frames, bands) of clips of sound and faulty machines."""
    rng = np.random.default_rng(seed)
    return (np.stack([mel.log_mel(_clip(rng, fault), RATE, num_bands) for fault in faulty]),)


def _clip(rng: np.random.Generator, faulty: bool) -> np.ndarray:
    """Two seconds of the machine, (n,) float64."""
    time = np.arange(RATE * SECONDS) / RATE
    speed, load = rng.uniform(25, 60), rng.uniform(0.3, 1.0)
    drift = 1 + 0.01 * np.sin(2 * np.pi * (rng.uniform(0.2, 1) * time + rng.random()))
    turns = np.cumsum(speed * drift) / RATE
    sound = load * 0.1 * _resounding(rng.standard_normal(len(time)))
    for order in range(1, 25):  # seven blades are louder than the shaft
        strength = (1.0 if order % 7 == 0 else 0.3) * _housing(order * speed) / order**0.3
        sound += load * strength * np.sin(2 * np.pi * (order * turns + rng.random()))
    sound += 0.01 * rng.standard_normal(len(time))
    kind, level = rng.integers(3), rng.uniform(0.5, 1.5)  # drawn for sound machines, too
    if faulty and kind == 0:
        knocks = np.zeros_like(time)
        knocks[np.flatnonzero(np.diff(np.floor(turns / 2))) + 1] = 1
        ring = np.exp(-time[:400] * 600) * np.sin(2 * np.pi * 4200 * time[:400])
        sound += FAULT * 16 * level * np.convolve(knocks, ring)[: len(time)]
    elif faulty and kind == 1:
        sound += FAULT * level * np.sin(2 * np.pi * (rng.uniform(40, 80) + 0.37) * turns)
    elif faulty:
        sound += FAULT * level * (1 + np.sin(2 * np.pi * turns)) * np.diff(rng.standard_normal(len(time) + 1))
    return sound * rng.uniform(0.8, 1.25)


def _housing(frequency: np.ndarray | float) -> np.ndarray:
    """How much louder the housing makes a frequency, in Hz."""
    parts = [peak / (1 + ((frequency - middle) / width) ** 2) for middle, width, peak in RESONANCES]
    return np.asarray(0.05 + sum(parts))


def _resounding(sound: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(sound)
    return np.fft.irfft(spectrum * _housing(np.fft.rfftfreq(len(sound), 1 / RATE)), len(sound))
