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
ASIDE: dict[Anchor, float] = {"center": 0.0, "left": 4.0, "right": -4.0}
"""How far a name stands beside its marker's middle, so that a line from another name can pass."""


@dataclass(frozen=True)
class Spot:
    """A marker and its name: `across` in shares of the plot's width, `down` and `radius` in pixels."""

    across: float
    down: float
    radius: float
    text: str


@dataclass(frozen=True)
class Place:
    """Where a name stands: its middle `offset` pixels below its marker, and its `anchor` end `aside` to the right."""

    offset: float
    aside: float
    anchor: Anchor
    near: bool
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
    """A place for every name, each the nearest one that is free; None if they don't all fit.

    A place must be free at each of the plot's `widths`; then it mostly is between them too. `blocked` are
    boxes with `left` and `right` in shares of the width.
    """
    from_left = sorted(range(len(spots)), key=lambda index: spots[index].across)
    # Names are put down one by one and stay; where they end up in each other's way, another order may do.
    for order, anchors in itertools.product((from_left, from_left[::-1]), itertools.permutations(ANCHORS)):
        places = _in_order(order, anchors, spots, widths, height, blocked)
        if places is not None:
            return [places[index] for index in range(len(spots))]
    return None


def _in_order(
    order: Sequence[int],
    anchors: Sequence[Anchor],
    spots: Sequence[Spot],
    widths: Sequence[float],
    height: float,
    blocked: Sequence[Box],
) -> dict[int, Place] | None:
    filled = {
        width: [_marker(spot, width) for spot in spots]
        + [Box(box.left * width, box.top, box.right * width, box.bottom) for box in blocked]
        for width in widths
    }
    names: dict[float, list[Box]] = {width: [] for width in widths}
    places: dict[int, Place] = {}
    for index in order:
        spot = spots[index]
        for level, side, anchor in itertools.product(range(NUM_LEVELS), (-1, 1), anchors):
            offset = side * (spot.radius + GAP + level * (LINE_HEIGHT + 4))
            boxes = {width: _name_and_line(spot, width, offset, anchor) for width in widths}
            if all(
                _is_inside(name, width, height) and _is_free(name, filled[width]) and _is_free(line, names[width])
                for width, (name, line) in boxes.items()
            ):
                break
        else:
            return None
        places[index] = Place(offset, ASIDE[anchor], anchor, near=level == 0)
        for width, (name, line) in boxes.items():
            filled[width] += [name, line]
            names[width].append(name)
    return places


def _is_inside(box: Box, width: float, height: float) -> bool:
    return box.left > 0 and box.right < width and box.top > 0 and box.bottom < height


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    return not any(box.meets(other) for other in taken)


def _marker(spot: Spot, width: float) -> Box:
    x = spot.across * width
    return Box(x - spot.radius, spot.down - spot.radius, x + spot.radius, spot.down + spot.radius)


def _name_and_line(spot: Spot, width: float, offset: float, anchor: Anchor) -> tuple[Box, Box]:
    """What a name takes up, and the line from it to its marker, which may cross other markers but no name."""
    length, x, middle = LETTER_WIDTH * len(spot.text), spot.across * width, spot.down + offset
    left = x + ASIDE[anchor] - {"left": 0.0, "center": length / 2, "right": length}[anchor]
    name = Box(left, middle - LINE_HEIGHT / 2, left + length, middle + LINE_HEIGHT / 2)
    edge = spot.down + (spot.radius if offset > 0 else -spot.radius)
    return name, Box(x - 2, min(edge, middle), x + 2, max(edge, middle))
