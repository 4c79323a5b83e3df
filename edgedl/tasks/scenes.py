"""Small pictures of ten things, drawn by arithmetic when first asked for: nothing to download, alike on any machine."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from edgedl.core import Batch, Split
from edgedl.images import Classification
from edgedl.synthetic.drawing import Chance, Shape, paint, pixel_centres

NUM_IMAGES: dict[Split, int] = {"train": 10_000, "validation": 2_000, "test": 4_000}
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
NUM_CALIBRATION = 500
SIZE = 32
CHUNK = 100
"""Images drawn at a time, all of one class; like the seeds and the order of draws, it decides every pixel."""

# How hard it is: chosen so that neither a network of full width nor one of half is near the top.
SCALE = (0.65, 0.95)
"""Half the size of a thing, where 1 is half the image."""
SHIFT = 0.25
TILT = 0.2
"""Tangent of half the largest angle: 23 degrees."""
LOOSE, RESIZED = 0.08, 0.2
"""How far a stroke strays from its place and from its size; in units of the thing's size, and as a share."""
CLUTTER, OCCLUDERS = (0.05, 0.3), (0.05, 0.22)
"""Half the size of shapes behind a thing and before it, where 1 is half the image."""
LIGHT = 0.2
NOISE = 0.04

BODY, TRIM, DARK, BRIGHT = range(4)
"""Colours of a thing, drawn anew for every image: two of any kind, a dark one, and a bright one."""


class Stroke(NamedTuple):
    """A filled shape at (x, y), y downwards; a thing fills the square from -1 to 1, looking right.

    The upper side of a block is `taper` times as wide as the lower; the right side of a fin is `taper` times as
    high as the left.
    """

    shape: Shape
    x: float
    y: float
    half_width: float
    half_height: float
    colour: int
    taper: float = 1.0


THINGS: dict[str, tuple[Stroke, ...]] = {
    "aeroplane": (
        Stroke("block", 0.05, -0.4, 0.22, 0.35, TRIM, 0.4),
        Stroke("disc", 0.0, 0.0, 0.95, 0.17, BODY),
        Stroke("block", -0.8, -0.2, 0.12, 0.25, BODY, 0.5),
        Stroke("block", 0.05, 0.4, 0.1, 0.35, TRIM, 2.2),
        Stroke("disc", 0.7, -0.05, 0.12, 0.06, BRIGHT),
    ),
    "bird": (
        Stroke("fin", -0.65, 0.0, 0.35, 0.2, TRIM, 0.4),
        Stroke("disc", -0.05, 0.05, 0.55, 0.32, BODY),
        Stroke("disc", 0.5, -0.25, 0.24, 0.22, BODY),
        Stroke("fin", 0.82, -0.22, 0.15, 0.1, BRIGHT, 0.0),
        Stroke("block", -0.1, -0.1, 0.3, 0.35, TRIM, 0.2),
        Stroke("disc", 0.55, -0.3, 0.06, 0.06, DARK),
    ),
    "boat": (
        Stroke("block", 0.0, 0.5, 0.6, 0.25, BODY, 1.5),
        Stroke("block", -0.05, -0.25, 0.05, 0.55, DARK),
        Stroke("block", 0.3, -0.25, 0.35, 0.45, BRIGHT, 0.0),
        Stroke("block", -0.3, 0.1, 0.25, 0.2, TRIM),
    ),
    "bus": (
        Stroke("block", 0.0, 0.0, 0.95, 0.45, BODY),
        Stroke("block", -0.55, -0.15, 0.2, 0.15, BRIGHT),
        Stroke("block", 0.0, -0.15, 0.2, 0.15, BRIGHT),
        Stroke("block", 0.55, -0.15, 0.2, 0.15, BRIGHT),
        Stroke("disc", -0.5, 0.5, 0.18, 0.18, DARK),
        Stroke("disc", 0.5, 0.5, 0.18, 0.18, DARK),
    ),
    "car": (
        Stroke("block", -0.05, -0.2, 0.5, 0.28, BODY, 0.7),
        Stroke("block", 0.0, 0.2, 0.95, 0.26, BODY),
        Stroke("block", -0.05, -0.18, 0.36, 0.17, BRIGHT, 0.7),
        Stroke("disc", -0.52, 0.48, 0.2, 0.2, DARK),
        Stroke("disc", 0.52, 0.48, 0.2, 0.2, DARK),
    ),
    "cat": (
        Stroke("block", -0.4, -0.55, 0.2, 0.28, BODY, 0.0),
        Stroke("block", 0.4, -0.55, 0.2, 0.28, BODY, 0.0),
        Stroke("disc", 0.0, 0.1, 0.65, 0.58, BODY),
        Stroke("disc", -0.25, 0.0, 0.1, 0.1, DARK),
        Stroke("disc", 0.25, 0.0, 0.1, 0.1, DARK),
        Stroke("disc", 0.0, 0.3, 0.12, 0.09, TRIM),
    ),
    "dog": (
        Stroke("disc", 0.0, 0.0, 0.6, 0.58, BODY),
        Stroke("disc", -0.6, 0.05, 0.18, 0.42, TRIM),
        Stroke("disc", 0.6, 0.05, 0.18, 0.42, TRIM),
        Stroke("disc", -0.22, -0.1, 0.1, 0.1, DARK),
        Stroke("disc", 0.22, -0.1, 0.1, 0.1, DARK),
        Stroke("disc", 0.0, 0.4, 0.3, 0.26, BRIGHT),
        Stroke("disc", 0.0, 0.3, 0.12, 0.09, DARK),
    ),
    "fish": (
        Stroke("fin", -0.7, 0.0, 0.28, 0.38, TRIM, 0.1),
        Stroke("disc", 0.1, 0.0, 0.7, 0.38, BODY),
        Stroke("block", 0.05, -0.35, 0.25, 0.2, TRIM, 0.3),
        Stroke("disc", 0.5, -0.08, 0.08, 0.08, DARK),
    ),
    "house": (
        Stroke("block", 0.35, -0.55, 0.1, 0.3, DARK),
        Stroke("block", 0.0, 0.35, 0.65, 0.45, BODY),
        Stroke("block", 0.0, -0.4, 0.85, 0.35, TRIM, 0.0),
        Stroke("block", -0.25, 0.5, 0.15, 0.3, DARK),
        Stroke("block", 0.3, 0.25, 0.16, 0.16, BRIGHT),
    ),
    "tree": (
        Stroke("block", 0.0, 0.6, 0.13, 0.4, DARK, 0.8),
        Stroke("disc", -0.25, 0.0, 0.42, 0.4, BODY),
        Stroke("disc", 0.25, 0.0, 0.42, 0.4, BODY),
        Stroke("disc", 0.0, -0.4, 0.45, 0.42, BODY),
    ),
}


class Scenes(Classification):
    """10,000 / 2,000 / 4,000 drawings to train, validate and test on, 3x32x32 in [0, 1], as many of each class.

    A scene is sky and ground, stray shapes, a thing that is tilted, mirrored, moved, resized and pulled about,
    two shapes before it, slanting light, and noise. Colours say nothing of the class, so shapes have to be
    seen; small, faint and hidden ones keep even a good network from being always right, so that what compression
    costs can be seen.
    """

    use: str = "scenes"
    image_shape: ClassVar[tuple[int, int, int]] = (3, SIZE, SIZE)
    num_classes: ClassVar[int] = len(THINGS)

    def class_name(self, label: int) -> str:
        return list(THINGS)[label]

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 3, 32, 32) float32 in [0, 1] and `label` (N,) int64, the place of the thing in `THINGS`."""
        images, labels = _drawn("train" if split == "calibration" else split)
        if split == "calibration":
            images, labels = images[:NUM_CALIBRATION], labels[:NUM_CALIBRATION]
        return {"image": images.astype(np.float32) / 255, "label": labels}


X, Y = pixel_centres(SIZE)
"""Pixel centres, from -1 to 1 over the image."""


@lru_cache(maxsize=len(SEEDS))
def _drawn(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64, which count 0 to 9 and begin again."""
    num_each = NUM_IMAGES[split] // len(THINGS)
    images = np.empty((num_each, len(THINGS), 3, SIZE, SIZE), np.uint8)
    chance = Chance(SEEDS[split])
    for start in range(0, num_each, CHUNK):
        for label, strokes in enumerate(THINGS.values()):
            images[start : start + CHUNK, label] = _draw(strokes, chance)
    return images.reshape(-1, 3, SIZE, SIZE), np.tile(np.arange(len(THINGS), dtype=np.int64), num_each)


def _draw(strokes: tuple[Stroke, ...], chance: Chance) -> np.ndarray:
    """`CHUNK` images of one thing, (CHUNK, 3, 32, 32) uint8.

    Only with what `synthetic/drawing.py` says is rounded alike everywhere, so that a pixel is the same byte anywhere.
    """

    def number(low: float, high: float) -> np.ndarray:
        return chance(low, high, CHUNK, 1, 1)

    def colour(low: float, high: float) -> np.ndarray:
        """Halfway to a grey, as most things are."""
        grey = chance(low, high, CHUNK, 1, 1, 1)
        muted: np.ndarray = grey + (chance(low, high, CHUNK, 3, 1, 1) - grey) * 0.5
        return muted

    def stray(shape: Shape, smallest: float, largest: float) -> None:
        half_width, half_height = number(smallest, largest), number(smallest, largest)
        u, v = (X - number(-1, 1)) / half_width, (Y - number(-1, 1)) / half_height
        paint(canvas, shape, 0.5, u, v, np.minimum(half_width, half_height), colour(0, 1))

    horizon, ground, sky = number(-0.6, 0.6), colour(0, 0.8), colour(0.2, 1)
    shade = X * number(-0.1, 0.1) + Y * number(-0.2, 0.2)
    canvas = np.where((horizon < Y)[:, None], ground, sky) + shade[:, None]
    stray("disc", *CLUTTER)
    stray("block", *CLUTTER)
    stray("fin", *CLUTTER)

    half_tan, scale, stretch = number(-TILT, TILT), number(*SCALE), number(0.85, 1.15)
    cosine, sine = (1 - half_tan**2) / (1 + half_tan**2), 2 * half_tan / (1 + half_tan**2)
    right, down = X - number(-SHIFT, SHIFT), Y - number(-SHIFT, SHIFT)
    facing = np.where(number(-1, 1) < 0, np.float32(-1), np.float32(1))
    x = (right * cosine + down * sine) / (scale * stretch) * facing
    y = (down * cosine - right * sine) / scale * stretch
    palette = {BODY: colour(0, 1), TRIM: colour(0, 1), DARK: colour(0, 0.35), BRIGHT: colour(0.6, 1)}
    for stroke in strokes:
        half_width = stroke.half_width * number(1 - RESIZED, 1 + RESIZED)
        half_height = stroke.half_height * number(1 - RESIZED, 1 + RESIZED)
        u = (x - stroke.x - number(-LOOSE, LOOSE)) / half_width
        v = (y - stroke.y - number(-LOOSE, LOOSE)) / half_height
        reach = np.minimum(half_width, half_height) * scale
        paint(canvas, stroke.shape, stroke.taper, u, v, reach, palette[stroke.colour])

    stray("disc", *OCCLUDERS)
    stray("block", *OCCLUDERS)
    light = (1 + X * number(-LIGHT, LIGHT) + Y * number(-LIGHT, LIGHT)) * number(0.6, 1.2)
    canvas *= light[:, None]
    canvas += chance(-NOISE, NOISE, *canvas.shape)
    pixels: np.ndarray = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return pixels
