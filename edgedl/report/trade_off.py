"""The plot that decides: latency against score, each file a marker as large as the file, with its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from edgedl.report import words
from edgedl.report.figures import LOG_FROM, Figure, axis, finished, layout, log_ticks, plain, steps
from edgedl.report.labels import LETTER_WIDTH, LINE_HEIGHT, Box, Spot, place
from edgedl.report.numbers import milliseconds, size

SYMBOLS = {"float": "circle", "compressed": "diamond"}
OTHER_SYMBOLS = ("square", "triangle-up", "cross", "star")
"""All of them stand in page.html.jinja too, for the key."""
HEIGHT, TOP, BOTTOM = 440, 20, 56
MAX_MARKER, MIN_MARKER = 34.0, 8.0
"""Diameters in pixels."""
WIDTHS = {
    # How an annotation's name begins -> pixels between the axes' ends: page.js leaves "wide" ones out on narrow
    # screens. The file's number follows. (Not in plotly's `meta`: that would make it read "%{x}" in what is untrusted.)
    "any": (255.0, 1010.0),
    "wide": (520.0, 1010.0),
}
MAX_NAME = 26
GATE_TEXT = "worst score that may ship"


@dataclass(frozen=True)
class Point:
    """A measured file."""

    target: str
    variant: str
    colour: str
    row: Mapping[str, Any]
    kind: str | None = None
    """What its symbol stands for; by default the variant."""
    title: str | None = None
    """Its name where there is room."""
    prominent: bool = True
    """Others are pale and have no name beside them."""
    number: int = 0
    """By which the page's script knows what it draws for this file."""

    @property
    def name(self) -> str:
        return f"{self.target} {self.variant}"

    @property
    def symbol_of(self) -> str:
        return self.kind or self.variant

    @property
    def latency_ms(self) -> float:
        return float(self.row["latency_ms"]["median"])


@dataclass(frozen=True)
class Scale:
    """Where values lie: x in shares of the width, y in pixels from the top."""

    x_range: list[float]
    y_range: list[float]
    logarithmic: bool
    biggest_bytes: int

    def x(self, latency_ms: float) -> float:
        """In the units of plotly's annotations, which want the logarithm."""
        return math.log10(latency_ms) if self.logarithmic else latency_ms

    def across(self, latency_ms: float) -> float:
        return (self.x(latency_ms) - self.x_range[0]) / (self.x_range[1] - self.x_range[0])

    def down(self, score: float) -> float:
        return (HEIGHT - TOP - BOTTOM) * (self.y_range[1] - score) / (self.y_range[1] - self.y_range[0])

    def radius(self, size_bytes: int) -> float:
        return max(MAX_MARKER * math.sqrt(size_bytes / self.biggest_bytes), MIN_MARKER) / 2


def trade_off(points: Sequence[Point], metric: Mapping[str, Any], lowest: float | None) -> Figure:
    """Latency against score of at least one file; `lowest` is the worst score that may ship."""
    latencies = [point.latency_ms for point in points]
    scores = [float(point.row["score"]) for point in points] + ([] if lowest is None else [lowest])
    logarithmic = max(latencies) > LOG_FROM * min(latencies)
    scale = Scale(
        x_range=[math.log10(min(latencies) / 1.8), math.log10(max(latencies) * 1.8)]
        if logarithmic
        else [0.0, max(latencies) * 1.15],
        y_range=_y_range(scores, metric),
        logarithmic=logarithmic,
        biggest_bytes=max(point.row["size_bytes"] for point in points),
    )
    annotations = _names([point for point in points if point.prominent], scale, lowest)
    shapes = []
    if lowest is not None:
        annotations.append(_gate_name(lowest))
        line = {"color": "var(--muted)", "width": 1.5, "dash": "dash"}
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": lowest, "y1": lowest, "line": line})
    better = "higher" if metric["higher_is_better"] else "lower"
    unit = "" if metric["unit"] in ("", "fraction") else f", {metric['unit']}"
    said = "; ".join(
        f"{point.name} {milliseconds(point.latency_ms)}, {words.score(point.row['score'], metric)}" for point in points
    )
    symbols = symbols_of(points)
    # The largest first, so that none hides a smaller one; and under all of them the intervals.
    by_size = sorted(points, key=lambda point: -int(point.row["size_bytes"]))
    return finished(
        [_interval(point, scale) for point in by_size]
        + [_marker(point, symbols[point.symbol_of], metric, scale) for point in by_size],
        layout(
            HEIGHT,
            margin={"l": 8, "r": 8, "t": TOP, "b": BOTTOM},
            xaxis=_x_axis(scale),
            yaxis=_y_axis(f"{metric['name']}{unit} ({better} is better)", scale.y_range, metric),
            annotations=annotations,
            shapes=shapes,
        ),
        f"Latency against {metric['name']}. {said}.",
    )


def symbols_of(points: Sequence[Point]) -> dict[str, str]:
    """The symbol of each variant, or whatever points say instead, by plotly's names."""
    kinds = list(dict.fromkeys(point.symbol_of for point in points))
    others = [kind for kind in kinds if kind not in SYMBOLS]
    chosen = SYMBOLS | {kind: OTHER_SYMBOLS[index % len(OTHER_SYMBOLS)] for index, kind in enumerate(others)}
    return {kind: chosen[kind] for kind in kinds}


def _interval(point: Point, scale: Scale) -> go.Scatter:
    median, (low, high) = point.latency_ms, point.row["latency_ms"]["ci95"]
    length = (scale.across(high) - scale.across(low)) * max(WIDTHS["wide"])
    return go.Scatter(
        x=[median],
        y=[point.row["score"]],
        mode="markers",
        marker={"opacity": 0},
        error_x={
            "type": "data",
            # What the marker covers would only blot it.
            "visible": length > 2 * scale.radius(point.row["size_bytes"]),
            "symmetric": False,
            "array": [high - median],
            "arrayminus": [median - low],
            "color": point.colour,
            "thickness": 1.5,
            "width": 5,
        },
        hoverinfo="skip",
        customdata=[point.number],
    )


def _marker(point: Point, symbol: str, metric: Mapping[str, Any], scale: Scale) -> go.Scatter:
    row, latency = point.row, point.row["latency_ms"]
    refused = row["status"] == "refused"
    lines = [
        f"<b>{plain(point.title or point.name)}</b>{' (refused)' if refused else ''}",
        f"{milliseconds(latency['median'])}, 95% interval {words.interval(latency)}",
        plain(f"{metric['name']} {words.score(row['score'], metric)}"),
        size(row["size_bytes"]),
    ]
    return go.Scatter(
        x=[latency["median"]],
        y=[row["score"]],
        mode="markers",
        marker={
            "symbol": f"{symbol}-open" if refused else symbol,
            "color": point.colour,
            "size": 2 * scale.radius(row["size_bytes"]),
            "opacity": 0.85 if point.prominent else 0.4,
            "line": {"width": 2, "color": point.colour if refused else "var(--surface)"},
        },
        cliponaxis=False,
        hovertext="<br>".join(lines),
        hoverinfo="text",
        customdata=[point.number],
    )


def _names(points: Sequence[Point], scale: Scale, lowest: float | None) -> list[dict[str, Any]]:
    """An annotation for every point; none at all where they would cover each other: colours and symbols have a key."""
    spots = [
        Spot(
            scale.across(point.latency_ms),
            scale.down(point.row["score"]),
            scale.radius(point.row["size_bytes"]),
            words.shortened(point.name, MAX_NAME),
        )
        for point in points
    ]
    for name, widths in WIDTHS.items():
        blocked = []
        if lowest is not None:
            top = scale.down(lowest) - 2
            left = 1 - LETTER_WIDTH * len(GATE_TEXT) / min(widths)
            blocked.append(Box(left, top, 1.0, top + LINE_HEIGHT + 2))
        places = place(spots, widths, HEIGHT - TOP - BOTTOM, blocked)
        if places is not None:
            return [
                {
                    "name": f"{name} {point.number}",
                    "x": scale.x(point.latency_ms),
                    "y": point.row["score"],
                    "text": plain(spot.text),
                    "showarrow": True,
                    "arrowhead": 0,
                    "arrowwidth": 1,
                    "arrowcolor": "rgba(0,0,0,0)" if found.near else "var(--muted)",
                    "standoff": spot.radius,
                    "ax": found.aside,
                    "ay": found.offset,
                    "xanchor": found.anchor,
                    "yanchor": "middle",
                    "font": {"size": 12, "color": "var(--ink)"},
                }
                for point, spot, found in zip(points, spots, places, strict=True)
            ]
    return []


def _gate_name(lowest: float) -> dict[str, Any]:
    return {
        "xref": "paper",
        "x": 1,
        "xanchor": "right",
        "y": lowest,
        "yanchor": "top",
        "showarrow": False,
        "text": GATE_TEXT,
        "font": {"size": 11, "color": "var(--muted)"},
    }


def _y_range(scores: Sequence[float], metric: Mapping[str, Any]) -> list[float]:
    """All scores with room around, and never so close that noise would look like a cliff."""
    middle = (max(scores) + min(scores)) / 2
    least = 0.01 if metric["unit"] == "fraction" else 0.01 * abs(middle) or 1.0
    half = max(max(scores) - min(scores), least) * 0.75
    return [middle - half, middle + half]


def _x_axis(scale: Scale) -> dict[str, Any]:
    title = "median latency (less is better)"
    low, high = scale.x_range
    if scale.logarithmic:
        return axis(title, type="log", range=[low, high], **log_ticks(10**low, 10**high, milliseconds))
    values = steps(0.0, high, 5)
    return axis(title, range=[low, high], tickvals=values, ticktext=["0", *map(milliseconds, values[1:])])


def _y_axis(title: str, limits: list[float], metric: Mapping[str, Any]) -> dict[str, Any]:
    values = steps(limits[0], limits[1], 6)
    if metric["unit"] != "fraction":
        return axis(title, range=limits, tickvals=values)
    values = [value for value in values if -1e-9 <= value <= 1 + 1e-9]
    return axis(title, range=limits, tickvals=values, tickformat=".1%" if limits[1] - limits[0] > 0.006 else ".2%")
