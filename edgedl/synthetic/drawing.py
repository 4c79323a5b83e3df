"""Filled shapes on batches of images, and the chance that places them: the same bytes on any machine.

Sums, products, quotients and square roots alone, which IEEE 754 rounds alike everywhere: no sine, no matrix product.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Shape = Literal["disc", "block", "fin"]


class Chance:
    """Uniform float32 numbers from the raw bits of PCG64: NumPy keeps their stream, not that of its distributions."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def __call__(self, low: float, high: float, *shape: int) -> np.ndarray:
        """An array of that shape, in [low, high)."""
        raw = self.bits.random_raw(shape) >> np.uint64(40)
        numbers: np.ndarray = raw.astype(np.float32) * 2.0**-24 * (high - low) + low
        return numbers


def pixel_centres(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, size) and y (size, 1), float32, from -1 to 1 over the image, y downwards."""
    y = ((np.arange(size, dtype=np.float32) + 0.5) / (size / 2) - 1)[:, None]
    return y.T, y


def paint(
    canvas: np.ndarray, shape: Shape, taper: float, u: np.ndarray, v: np.ndarray, reach: np.ndarray, colour: np.ndarray
) -> np.ndarray:
    """Paints a shape over `canvas` (N, C, H, W), its edges blended over a pixel; returns what it covers (N, H, W).

    `u` and `v` (N, H, W) run from -1 to 1 over the shape, whose lesser half-size is `reach` (N, 1, 1); half
    the image is 1. `colour` is (N, C, 1, 1). The upper side of a block is `taper` times as wide as the lower; the
    right side of a fin is `taper` times as high as the left.
    """
    if shape == "disc":
        outside = np.sqrt(u * u + v * v) - 1
    else:
        along, across = (v, u) if shape == "block" else (-u, v)
        outside = np.maximum(np.abs(along) - 1, np.abs(across) - (1 + taper + (1 - taper) * along) / 2)
    cover: np.ndarray = np.clip(0.5 - outside * reach * (canvas.shape[-1] / 2), 0, 1)
    canvas += cover[:, None] * (colour - canvas)
    return cover
