"""Finds places for the names of a plot's markers, so that no name covers another or a marker."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

LINE_HEIGHT, LETTER_WIDTH = 17.0, 6.5
GAP = 12.0
"""From a marker's edge to the middle of the nearest place for its name."""
NUM_LEVELS = 5
"""Places over and under a marker; a name farther away would need too long a line."""

Anchor: TypeAlias = Literal["center", "left", "right"]
ANCHORS: tuple[Anchor, ...] = ("center", "left", "right")


@dataclass(frozen=True)
class Spot:
    """A marker and its name: `across` in shares of the plot's width, `down` and `radius` in pixels."""

    across: float
    down: float
    radius: float
    text: str


@dataclass(frozen=True)
class Place:
    """Where a name stands: its middle `offset` pixels below its marker, and which of its ends is at the marker."""

    offset: float
    anchor: Anchor
    beside: bool
    """So near that it needs no line to its marker."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def place(spots: Sequence[Spot], widths: Sequence[float], height: float, blocked: Sequence[Box]) -> list[Place] | None:
    """A place for every name, from left to right each the nearest one that is free; None if they don't all fit.

    A place must be free at each of the plot's `widths`; then it mostly is between them too. `blocked` are
    boxes with `left` and `right` in shares of the width.
    """
    taken = {
        width: [_marker(spot, width) for spot in spots]
        + [Box(box.left * width, box.top, box.right * width, box.bottom) for box in blocked]
        for width in widths
    }
    places: dict[int, Place] = {}
    for index in sorted(range(len(spots)), key=lambda index: spots[index].across):
        spot = spots[index]
        for level, side, anchor in itertools.product(range(NUM_LEVELS), (-1, 1), ANCHORS):
            offset = side * (spot.radius + GAP + level * (LINE_HEIGHT + 4))
            boxes = {width: _name(spot, width, offset, anchor) for width in widths}
            if all(_is_free(box, width, height, taken[width]) for width, box in boxes.items()):
                break
        else:
            return None
        places[index] = Place(offset, anchor, beside=level == 0)
        for width, box in boxes.items():
            taken[width].append(box)
    return [places[index] for index in range(len(spots))]


def _is_free(box: Box, width: float, height: float, taken: Sequence[Box]) -> bool:
    inside = box.left > 0 and box.right < width and box.top > 0 and box.bottom < height
    return inside and not any(box.meets(other) for other in taken)


def _marker(spot: Spot, width: float) -> Box:
    x = spot.across * width
    return Box(x - spot.radius, spot.down - spot.radius, x + spot.radius, spot.down + spot.radius)


def _name(spot: Spot, width: float, offset: float, anchor: Anchor) -> Box:
    length = LETTER_WIDTH * len(spot.text)
    left = spot.across * width - {"left": 0.0, "center": length / 2, "right": length}[anchor]
    middle = spot.down + offset
    return Box(left, middle - LINE_HEIGHT / 2, left + length, middle + LINE_HEIGHT / 2)
