"""Calibrators: from the histogram of a tensor's values to the range [low, high] that int8 shall cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Histogram:
    """The values that a tensor took over the calibration data.

    `counts` (B,) float64 over B equal bins of [-reach, reach]; `low` and `high` the exact extremes.
    """

    counts: np.ndarray
    reach: float
    low: float
    high: float

    @cached_property
    def centers(self) -> np.ndarray:
        """Bin centers, (B,) float64."""
        num_bins = len(self.counts)
        return (np.arange(num_bins) + 0.5) * (2 * self.reach / num_bins) - self.reach


Function = Callable[[np.ndarray], np.ndarray]
SATURATING: dict[str, Function] = {
    "aten.sigmoid.default": lambda x: 1 / (1 + np.exp(-x)),
    "aten.tanh.default": np.tanh,
}
"""Functions that networks end in, by operator: their outputs have no grid, so that of their inputs is theirs."""

Calibrator = Callable[[Histogram, bool], tuple[float, float]]
"""`(histogram, symmetric) -> (low, high)`, both in the tensor's unit, low <= 0 <= high."""

NUM_LEVELS = 256


def min_max(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """The whole range that was seen."""
    return _around_zero(histogram.low, histogram.high, symmetric)


def percentile(histogram: Histogram, symmetric: bool, coverage: float = 0.9999) -> tuple[float, float]:
    """The central `coverage` of all values; the tails saturate."""
    cumulated = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - coverage) / 2
    centers = histogram.centers
    first, last = np.searchsorted(cumulated, [tail, 1 - tail])
    low, high = centers[first], centers[min(last, len(centers) - 1)]
    return _around_zero(max(low, histogram.low), min(high, histogram.high), symmetric)


def mse(histogram: Histogram, symmetric: bool, function: Function = np.asarray) -> tuple[float, float]:
    """The range with the least expected squared error of rounding and saturation, over a grid of shrunk ranges.

    With a function it is the error of what it gives: one that saturates by itself has no use for large values.
    """
    low, high = min_max(histogram, symmetric)
    shrinks = np.linspace(1.0, 0.3, 71)
    best, best_error = (low, high), np.inf
    # One side after the other: the optimum of each hardly depends on the other.
    for shrink in shrinks:
        candidate = (low * shrink, high * shrink) if symmetric else (low, high * shrink)
        if (error := _squared_error(histogram, candidate, function)) < best_error:
            best, best_error = candidate, error
    if not symmetric and low < 0:
        high = best[1]
        for shrink in shrinks:
            candidate = (low * shrink, high)
            if (error := _squared_error(histogram, candidate, function)) < best_error:
                best, best_error = candidate, error
    return best


def entropy(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """The saturation threshold with the least Kullback-Leibler divergence between float and int8 values.

    After S. Migacz, "8-bit Inference with TensorRT", GTC 2017: magnitudes beyond a threshold are
    put into the last bin (the reference distribution), then the bins below are merged into as many
    levels as the grid has on one side of zero. The spike of exact zeros that a ReLU leaves is left out:
    zero is always representable, and its weight would hide all other values.
    """
    half = len(histogram.counts) // 2
    magnitudes = histogram.counts[half:] + histogram.counts[:half][::-1]
    magnitudes[0] = magnitudes[1]
    bin_width = histogram.reach / half
    num_used = min(half, int(np.ceil(max(-histogram.low, histogram.high) / bin_width)) or 1)
    one_sided = not symmetric and (histogram.low >= 0 or histogram.high <= 0)
    num_levels = NUM_LEVELS if one_sided else NUM_LEVELS // 2
    best, best_divergence = num_used, np.inf
    for stop in np.unique(np.linspace(min(num_levels, num_used), num_used, 100).astype(int)):
        inside = magnitudes[:stop]
        reference = inside.copy()
        reference[-1] += magnitudes[stop:].sum()
        levels = np.arange(stop) * num_levels // stop
        occupied = inside > 0
        mass = np.bincount(levels, weights=inside, minlength=num_levels)
        occupancy = np.bincount(levels, weights=occupied, minlength=num_levels)
        quantized = np.where(occupied, mass[levels] / np.maximum(occupancy[levels], 1), 0.0)
        if (divergence := _kullback_leibler(reference, quantized)) < best_divergence:
            best, best_divergence = int(stop), divergence
    threshold = best * bin_width
    return _around_zero(max(histogram.low, -threshold), min(histogram.high, threshold), symmetric)


CALIBRATORS: dict[str, Calibrator] = {"min-max": min_max, "percentile": percentile, "mse": mse, "entropy": entropy}


def _around_zero(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """Zero is always inside: padding and ReLU need it exactly."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if symmetric:
        reach = max(-low, high)
        return -reach, reach
    return low, high


def _squared_error(histogram: Histogram, covered: tuple[float, float], function: Function) -> float:
    low, high = covered
    if high <= low:
        return float(np.inf)
    centers = histogram.centers
    step = (high - low) / (NUM_LEVELS - 1)
    rounded = np.round(np.clip(centers, low, high) / step) * step
    return float(((function(centers) - function(rounded)) ** 2 * histogram.counts).sum())


def _kullback_leibler(reference: np.ndarray, quantized: np.ndarray) -> float:
    p, q = reference / max(reference.sum(), 1e-30), quantized / max(quantized.sum(), 1e-30)
    where = p > 0
    return float((p[where] * np.log(p[where] / np.maximum(q[where], 1e-30))).sum())
