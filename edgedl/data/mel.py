"""Mel bands: sound frame by frame as ears tell it apart, logarithms of the power in bands that widen with frequency."""

from __future__ import annotations

import numpy as np

WINDOW, HOP = 1024, 512
"""In samples."""
QUIETEST = 1e-10
"""Power below which there is silence."""


def log_mel(samples: np.ndarray, rate: int, num_bands: int) -> np.ndarray:
    """Decibels of mel bands, (frames, num_bands) float32, from `samples` (n,); no frame where n < 1,024."""
    if len(samples) < WINDOW:
        return np.zeros((0, num_bands), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    spectrum = np.square(np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1))) / WINDOW
    power = spectrum @ bands(rate, WINDOW, num_bands, 0, rate / 2)
    return np.asarray(10 * np.log10(np.maximum(power, QUIETEST)), np.float32)


def bands(rate: int, size: int, num_bands: int, lowest: float, highest: float) -> np.ndarray:
    """Triangles over the frequencies of an FFT of `size` samples, (size / 2 + 1, num_bands).

    They are evenly spaced in mel from `lowest` to `highest`, in Hz, each up to the middles of its neighbours.
    """
    low_end, high_end = (2595 * np.log10(1 + frequency / 700) for frequency in (lowest, highest))
    middles = 700 * (10 ** (np.linspace(low_end, high_end, num_bands + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, size // 2 + 1)[:, None]
    low, middle, high = middles[:-2], middles[1:-1], middles[2:]
    triangles: np.ndarray = np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle))
    return triangles.clip(0)
