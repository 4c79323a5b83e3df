"""Recordings from files: read as numbers at one rate; whatever is none is named."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np

from edgedl import files
from edgedl.core import DataError, Split
from edgedl.data import splits

LEAST_SECONDS = 0.05
LISTS: dict[Split, str] = {"test": "testing_list.txt", "validation": "validation_list.txt"}
"""In a folder like Speech Commands: which recordings are not for training, a line each, word/name.wav."""


def sound(file: Path, rate: int) -> np.ndarray:
    """A WAV file's first channel as (samples,) float32 in [-1, 1], resampled to `rate`. Raises `DataError`."""
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that hold no sound
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            own, values = wavfile.read(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    # The last where SciPy looks for data that no chunk has.
    except (ValueError, EOFError, struct.error, ZeroDivisionError, wavfile.WavFileWarning, UnboundLocalError) as error:
        raise DataError(f"{file}: cannot be read as a WAV file: {error}") from error
    values = values[:, 0] if values.ndim > 1 else values
    if np.issubdtype(values.dtype, np.integer):
        middle, reach = (128.0, 128.0) if values.dtype == np.uint8 else (0.0, float(-np.iinfo(values.dtype).min))
        values = (values - middle) / reach
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        raise DataError(f"{file}: sample {place} is {values[place]}, which is no number")
    if len(values) < LEAST_SECONDS * own:
        raise DataError(f"{file}: {len(values)} samples are too few; {LEAST_SECONDS} s is the least that can be heard")
    if own != rate:
        shared = int(np.gcd(own, rate))
        values = resample_poly(values, rate // shared, own // shared)
    return np.asarray(values, np.float32)


def fitted(values: np.ndarray, samples: int) -> np.ndarray:
    """A recording of just so many samples: the end is cut off, or silence follows."""
    return np.pad(values[:samples], (0, max(0, samples - len(values))))


def of_split(root: Path, name: str, split: Split) -> list[Path]:
    """The WAV files of the folder `name` in `root` that belong to a split, by `LISTS` or else drawn."""
    files = sorted((root / name).glob("*.wav"))
    part: Split = "train" if split == "calibration" else split
    if not all((root / file).is_file() for file in LISTS.values()):
        return [files[index] for index in splits.chosen(len(files), part, str(root / name))] if files else []
    listed = {key: _listed(root / file) for key, file in LISTS.items()}
    if part in listed:
        return [file for file in files if f"{name}/{file.name}" in listed[part]]
    return [file for file in files if not any(f"{name}/{file.name}" in those for those in listed.values())]


def _listed(file: Path) -> frozenset[str]:
    return frozenset(files.read_text(file).split())
