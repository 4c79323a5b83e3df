"""What the plots share, and those of operators and epochs; colours are names of variables in page.css."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from edgedl import gate
from edgedl.report import words
from edgedl.report.numbers import milliseconds

LOG_FROM = 8.0
"""Values that differ by more than this factor get a logarithmic axis."""
MAX_OPERATORS = 24
BAR_PITCH = 24
MIN_ROWS = 6
"""Plotly drops a hover label that is taller than the plot."""
HOVER_WIDTH, HOVER_LINES = 44, 7
# Colour and pattern of a bar: stripes, so that conversions show without colours too.
COMPUTE, CONVERSION, REST = ("var(--compute)", ""), ("var(--conversion)", "/"), ("var(--muted)", "")


@dataclass(frozen=True)
class Figure:
    """A plot: plotly's JSON, its height in pixels, and what it shows for those who don't see it."""

    content: dict[str, Any]
    height: int
    label: str


def operators(row: Mapping[str, Any], title: str, longest_ms: float) -> Figure:
    """Time per operator of one file in execution order, as bars up to `longest_ms`; the shortest are put together."""
    shown, rest = _longest(row["operators"])
    labels = [words.operator_label(operator["name"], operator["kind"]) for operator in shown]
    times = _times(shown)
    names = [f"{_wrapped(operator['name'])}<br>{plain(operator['kind'])}" for operator in shown]
    rows = max(len(shown) + bool(rest), MIN_ROWS)
    looks = [CONVERSION if operator["kind"] in gate.CONVERSIONS else COMPUTE for operator in shown]
    if rest:
        labels.append(f"{len(rest)} shorter ones")
        times.append(sum(_times(rest)))
        names.append("the others, together")
        looks.append(REST)
    positions = list(range(len(times)))
    bars = go.Bar(
        x=times,
        y=positions,
        orientation="h",
        marker={
            "color": [colour for colour, _ in looks],
            "pattern": {
                "shape": [shape for _, shape in looks],
                "fillmode": "overlay",
                "size": 7,
                "solidity": 0.2,
            },
        },
        text=[milliseconds(time) for time in times],
        textposition="outside",
        textfont={"size": 11},
        cliponaxis=False,
        hovertext=[f"{name}, {milliseconds(time)}" for name, time in zip(names, times, strict=True)],
        hoverinfo="text",
    )
    # Beyond the longest bar there is room for the time that stands behind it.
    x_axis = axis("", range=[0, longest_ms * 1.3 or 1], showticklabels=False, showgrid=False)
    y_axis = axis(
        "",
        tickvals=positions,
        ticktext=[f"{plain(label)}  " for label in labels],
        range=[rows - 0.5, -0.5],
        showgrid=False,
    )
    slowest = max(shown, key=lambda operator: float(operator["time_ms"]))
    label = f"Time per operator of {title}: {len(row['operators'])} operators, the longest is {slowest['kind']}"
    return finished(
        [bars],
        layout(BAR_PITCH * rows + 12, margin={"l": 8, "r": 8, "t": 4, "b": 8}, bargap=0.3)
        | {"xaxis": x_axis, "yaxis": y_axis},
        f"{label} with {milliseconds(slowest['time_ms'])}.",
    )


def longest_bar(rows: Sequence[Mapping[str, Any]]) -> float:
    """The longest bar in ms that `operators` would draw for any of these rows; 0 without rows."""
    longest = 0.0
    for row in rows:
        shown, rest = _longest(row["operators"])
        longest = max(longest, *_times(shown), sum(_times(rest)))
    return longest


def history(epochs: Sequence[Mapping[str, Any]], key: str, title: str, metric: Mapping[str, Any] | None) -> Figure:
    """One value over a step's epochs: a score if `metric` is given, else a loss."""
    values = [float(epoch[key]) for epoch in epochs]
    numbers = [epoch["epoch"] for epoch in epochs]
    said = [words.score(value, metric) if metric else f"{value:.4g}" for value in values]
    line = go.Scatter(
        x=numbers,
        y=values,
        mode="lines+markers",
        line={"color": "var(--series-0)" if metric else "var(--series-1)", "width": 2},
        marker={"size": 6},
        hovertext=[f"epoch {number}: {plain(value)}" for number, value in zip(numbers, said, strict=True)],
        hoverinfo="text",
    )
    y_axis = axis("", nticks=6)
    if metric is not None and metric["unit"] == "fraction":
        y_axis["tickformat"] = ".0%" if max(values) - min(values) > 0.05 else ".1%"
    elif metric is None and min(values) > 0 and max(values) > LOG_FROM * min(values):
        y_axis |= {"type": "log", **log_ticks(min(values) / 1.2, max(values) * 1.2, "{:g}".format)}
    x_axis = axis("epoch", showgrid=False, **({"dtick": 1} if len(numbers) <= 10 else {"nticks": 8}))
    return finished(
        [line],
        layout(240, margin={"l": 8, "r": 12, "t": 8, "b": 44}, xaxis=x_axis, yaxis=y_axis),
        f"{title} over {len(values)} epochs, from {said[0]} to {said[-1]}.",
    )


def layout(height: int, **more: Any) -> dict[str, Any]:
    """A figure's layout: transparent, in the page's font, without zooming, which would catch the scrolling finger."""
    font = {"family": "var(--font)", "size": 12, "color": "var(--ink)"}
    return {
        "template": "none",
        "height": height,
        "autosize": True,
        "dragmode": False,
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": font,
        "hoverlabel": {"bgcolor": "var(--raised)", "bordercolor": "var(--line)", "align": "left", "font": font},
    } | more


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with quiet lines; `title` is untrusted."""
    return {
        "title": {"text": plain(title), "font": {"size": 12, "color": "var(--muted)"}, "standoff": 10},
        "gridcolor": "var(--line)",
        "linecolor": "var(--line)",
        "zeroline": False,
        "automargin": True,
        "tickfont": {"size": 11},
        "fixedrange": True,
    } | more


def log_ticks(low: float, high: float, text: Callable[[float], str]) -> dict[str, Any]:
    """At most six round values on a logarithmic axis, if round ones can be had."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(values) <= 6:
            break
    return {"tickvals": values, "ticktext": [text(value) for value in values]}


def steps(low: float, high: float, num: int) -> list[float]:
    """Round values from `low` to `high`, at most about `num` of them."""
    raw = (high - low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    return [index * step for index in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def plain(untrusted: str) -> str:
    """Text as plotly shows it letter by letter: it would read tags and entities."""
    return html.escape(untrusted, quote=False)


def finished(traces: list[Any], of: dict[str, Any], label: str) -> Figure:
    """The figure, checked by plotly, as plain dictionaries."""
    return Figure(go.Figure(traces, of).to_plotly_json(), of["height"], label)


def _longest(listed: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The operators to show, in execution order, and those that would make the plot too long."""
    if len(listed) <= MAX_OPERATORS:
        return list(listed), []
    by_time = sorted(range(len(listed)), key=lambda index: -float(listed[index]["time_ms"]))
    kept = sorted(by_time[: MAX_OPERATORS - 1])
    return [listed[index] for index in kept], [listed[index] for index in by_time[MAX_OPERATORS - 1 :]]


def _times(listed: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(operator["time_ms"]) for operator in listed]


def _wrapped(untrusted: str) -> str:
    """Lines short enough for a hover label, which plotly does not fold."""
    lines = textwrap.wrap(untrusted, HOVER_WIDTH, max_lines=HOVER_LINES, placeholder="…")
    return "<br>".join(map(plain, lines))
