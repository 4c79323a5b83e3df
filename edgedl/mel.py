"""Sound as networks take it: WAV files read by the standard library, and logarithms of mel bands frame by frame."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from edgedl.core import DataError

WINDOW, HOP = 1024, 512
"""In samples."""
QUIETEST = 1e-10
"""Power below which there is silence."""


def read_wave(file: Path, rate: int) -> np.ndarray:
    """The first channel of a WAV file of 16 bits a sample, (n,) float32 in [-1, 1). Raises `DataError`."""
    try:
        with wave.open(str(file), "rb") as stream:
            width, found, channels = stream.getsampwidth(), stream.getframerate(), stream.getnchannels()
            content = stream.readframes(stream.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"{file}: cannot be read as a WAV file: {error or 'it ends too early'}") from error
    if width != 2 or found != rate:
        raise DataError(f"{file}: {8 * width} bits a sample, {found} Hz; needed are 16 bits and {rate} Hz")
    whole = len(content) // (2 * channels) * channels
    return np.frombuffer(content, "<i2")[:whole].reshape(-1, channels)[:, 0].astype(np.float32) / 32768


def log_mel(samples: np.ndarray, rate: int, num_bands: int) -> np.ndarray:
    """Decibels of mel bands, (frames, num_bands) float32, from `samples` (n,); no frame where n < 1,024."""
    if len(samples) < WINDOW:
        return np.zeros((0, num_bands), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    spectrum = np.square(np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1))) / WINDOW
    power = spectrum @ _bands(rate, num_bands)
    return np.asarray(10 * np.log10(np.maximum(power, QUIETEST)), np.float32)


def _bands(rate: int, num_bands: int) -> np.ndarray:
    """Triangles, (frequencies, bands), evenly spaced in mel, each up to the middles of its neighbours."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    middles = 700 * (10 ** (np.linspace(0, highest, num_bands + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, WINDOW // 2 + 1)[:, None]
    low, middle, high = middles[:-2], middles[1:-1], middles[2:]
    return np.clip(np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)), 0, None)
