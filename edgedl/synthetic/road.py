"""Pictures of roads drawn by arithmetic: vehicles, pedestrians and signs, and the boxes around them."""

from __future__ import annotations

import numpy as np

from edgedl.synthetic.drawing import Chance, Shape, paint, pixel_centres
from edgedl.synthetic.kept import kept

KINDS = ("vehicle", "pedestrian", "sign")
NUM_THINGS = 5
"""In each picture at most; what is nearer hides what is behind it."""
LEAST_VISIBLE = 0.4
"""Of a thing's pixels: what is hidden more has no box."""
LEAST_PIXELS = 12

Part = tuple[Shape, float, float, float, float, float, str]
"""Shape, taper, middle (right and down), half-sizes (across and up), colour; a thing at full size stands on (0, 0)."""

PARTS: dict[str, tuple[Part, ...]] = {
    "vehicle": (
        ("disc", 1.0, -0.2, -0.06, 0.07, 0.07, "black"),
        ("disc", 1.0, 0.2, -0.06, 0.07, 0.07, "black"),
        ("block", 0.7, 0.0, -0.31, 0.22, 0.09, "second"),
        ("block", 1.0, 0.0, -0.16, 0.36, 0.1, "first"),
    ),
    "pedestrian": (
        ("block", 1.0, -0.04, -0.12, 0.025, 0.13, "second"),
        ("block", 1.0, 0.04, -0.12, 0.025, 0.13, "second"),
        ("block", 1.3, 0.0, -0.36, 0.07, 0.13, "first"),
        ("disc", 1.0, 0.0, -0.55, 0.05, 0.06, "skin"),
    ),
    "sign": (("disc", 1.0, 0.0, -0.7, 0.14, 0.14, "loud"), ("disc", 1.0, 0.0, -0.7, 0.09, 0.09, "white")),
    "warning": (("block", 0.0, 0.0, -0.7, 0.16, 0.14, "loud"), ("block", 0.0, 0.0, -0.67, 0.09, 0.08, "white")),
}
KIND_OF = {"vehicle": 0, "pedestrian": 1, "sign": 2, "warning": 2}


def draw(num: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 3, size, size) uint8 and what is in them (N, NUM_THINGS, 5) float32.

    A thing is a row of its kind, left, top, right and bottom in pixels; of kind -1 where there is none.
    """
    chance, (_, y) = Chance(seed), pixel_centres(size)

    def number(low: float, high: float) -> np.ndarray:
        return chance(low, high, num, 1, 1)

    def colour(low: float, high: float) -> np.ndarray:
        return chance(low, high, num, 3, 1, 1)

    horizon = number(-0.4, 0.0)
    ground = np.where((y < horizon)[:, None], colour(0.5, 0.9), colour(0.2, 0.5)) + np.float32(0.1) * y
    canvas = np.repeat(ground, size, axis=3)
    everywhere = np.ones(num, bool)
    for _ in range(4):  # houses and trees behind the road
        half = number(0.1, 0.3)
        house = (number(-1, 1), horizon - half * 0.6, half * 0.5, half * 0.6)
        tree = (number(-1, 1), horizon - 0.1, half * 0.4, half * 0.5)
        _fill(canvas, everywhere, "block", 1.0, house, colour(0.2, 0.7))
        _fill(canvas, everywhere, "disc", 1.0, tree, colour(0.1, 0.5))
    road = (number(-0.2, 0.2), (horizon + 1.1) / 2, number(0.8, 1.2), (1.1 - horizon) / 2)
    _fill(canvas, everywhere, "block", 0.15, road, colour(0.25, 0.4))
    near = np.sort(chance(0.3, 1, NUM_THINGS, num), axis=0)[:, :, None, None]  # the nearest is painted last
    kinds = chance(0, 1, NUM_THINGS, num)
    foremost, sizes = np.full((num, size, size), -1), np.zeros((NUM_THINGS, num))
    things = np.full((NUM_THINGS, num, 5), -1, np.float32)
    for index, (scale, kind) in enumerate(zip(near, kinds, strict=True)):
        right, down, stretch = number(-0.9, 0.9), horizon + (0.85 - horizon) * scale, number(0.8, 1.25)
        paints = {"first": colour(0, 1), "second": colour(0, 0.6), "skin": colour(0.3, 0.8), "loud": colour(0, 0.9)}
        paints |= {"black": colour(0, 0.1), "white": colour(0.85, 1)}
        pole = (kind >= 0.55) & (kind < 0.85)  # which has no box of its own
        _fill(canvas, pole, "block", 1.0, (right, down - 0.3 * scale, 0.015 * scale, 0.3 * scale), paints["second"])
        for (name, parts), low, high in zip(PARTS.items(), (0, 0.3, 0.55, 0.7), (0.3, 0.55, 0.7, 0.85), strict=True):
            mine, covered = (kind >= low) & (kind < high), np.zeros((num, size, size), bool)
            for shape, taper, across, up, width, height, paint_name in parts:
                place = (right + across * scale * stretch, down + up * scale, width * scale * stretch, height * scale)
                covered |= _fill(canvas, mine, shape, taper, place, paints[paint_name])
            things[index, mine, 0] = KIND_OF[name]
            things[index, mine, 1:] = _boxes(covered)[mine]
            foremost[covered] = index
            sizes[index] += covered.sum(axis=(1, 2))
    for index in range(NUM_THINGS):
        seen = (foremost == index).sum(axis=(1, 2))
        things[index, (seen < LEAST_PIXELS) | (seen < LEAST_VISIBLE * sizes[index])] = -1
    canvas = canvas * number(0.5, 1.0)[:, None] + chance(-0.06, 0.06, *canvas.shape)
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8), things.transpose(1, 0, 2)


drawn = kept(draw)
"""As `draw`, from the cache where it has been drawn before."""


def _fill(
    canvas: np.ndarray, mine: np.ndarray, shape: Shape, taper: float, place: tuple[np.ndarray, ...], colour: np.ndarray
) -> np.ndarray:
    """Paints a shape into the pictures that are `mine` (N,), in place; returns the pixels that it fills (N, H, W)."""
    right, down, across, up = (values[mine] for values in place)
    x, y = pixel_centres(canvas.shape[-1])
    part = canvas[mine]
    filled = np.zeros((len(canvas), *canvas.shape[2:]), bool)
    reach = np.minimum(across, up)
    cover = paint(part, shape, taper, (x - right) / across, (y - down) / up, reach, colour[mine])
    filled[mine] = cover > 0.5
    canvas[mine] = part
    return filled


def _boxes(filled: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom of the filled pixels of each picture: (N, H, W) -> (N, 4)."""
    found = []
    for axis in (1, 2):
        some = np.asarray(filled.any(axis=axis))
        found.append((some.argmax(axis=1), some.shape[1] - some[:, ::-1].argmax(axis=1)))
    (left, right), (top, bottom) = found
    return np.stack([left, top, right, bottom], axis=1)
