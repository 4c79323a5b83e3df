"""The plots of an analysis: for every layer what it costs, and how it takes quantization and pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from edgedl.report import words
from edgedl.report.figures import MIN_ROWS, Figure, axis, finished, layout, plain
from edgedl.report.numbers import share

BAR_PITCH = 13
GAP = 12
MAX_LABEL = 28


def figures(analysis: Mapping[str, Any]) -> dict[str, Figure]:
    """All plots of an analysis, by the names that the template calls them."""
    # What neither multiplies nor takes time, such as a folded batch norm, would be an empty row.
    layers = [layer for layer in analysis["layers"] if layer["macs"] or any(layer["time_share"].values())]
    if not layers:
        return {}
    other = {target["target"]: target["other"]["share"] for target in analysis["targets"] if target["other"]}
    rest = [{"layer": "other", "parameters": None, "macs": None, "time_share": other}] if any(other.values()) else []
    drawn = {"layers-cost": costs(analysis, [*layers, *rest])}
    if any(layer["quantized"] for layer in layers):
        drawn["layers-noise"] = noise(layers)
    if any(layer["quantized"] or layer["pruned"] for layer in layers):
        drawn["layers-score"] = scores(analysis, layers)
    return drawn


def series(analysis: Mapping[str, Any]) -> dict[str, str]:
    """What the bars of costs stand for, and their colours."""
    timed = [target["target"] for target in analysis["targets"] if target["time_ms"] is not None]
    names = [*(f"time on {name}" for name in timed), "parameters", "MACs"]
    return {name: f"var(--series-{index % 6})" for index, name in enumerate(names)}


def costs(analysis: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> Figure:
    """Each layer's share of the time on every target, of the parameters and of the multiply-accumulates."""
    timed = [target for target in analysis["targets"] if target["time_ms"] is not None]
    columns = [[layer["time_share"][target["target"]] for layer in layers] for target in timed]
    for key in ("parameters", "macs"):
        columns.append([None if layer[key] is None else layer[key] / max(analysis[key], 1) for layer in layers])
    groups = [
        (name, colour, [value or 0.0 for value in values], [share(value) for value in values])
        for (name, colour), values in zip(series(analysis).items(), columns, strict=True)
    ]
    slowest = max(layers, key=lambda layer: max(filter(None, layer["time_share"].values()), default=0.0))
    longest = max(max(values) for _, _, values, _ in groups)
    return _bars(layers, groups, longest, f"Costs of layers; most time goes into {_name(slowest)}.")


def noise(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """The outputs' signal-to-noise ratio if a layer alone is in int8: the shortest bar suffers most."""
    values = [max(layer["quantized"]["sqnr_db"], 0.0) if layer["quantized"] else 0.0 for layer in layers]
    said = [f"{layer['quantized']['sqnr_db']:.1f} dB" if layer["quantized"] else "–" for layer in layers]
    worst = min((layer for layer in layers if layer["quantized"]), key=lambda layer: layer["quantized"]["sqnr_db"])
    return _bars(
        layers,
        [("int8 alone", "var(--series-0)", values, said)],
        max(values),
        f"Signal-to-noise ratio if one of {len(layers)} layers is in int8; the worst is {_name(worst)}.",
    )


def scores(analysis: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> Figure:
    """What is lost of the score if a layer alone is quantized, or pruned."""
    metric, reference = analysis["metric"], analysis["score"]
    groups = []
    for key, colour in (("quantized", "var(--series-0)"), ("pruned", "var(--series-1)")):
        found = [layer[key] for layer in layers]
        drops = [reference - one["score"] if one else 0.0 for one in found]
        drops = drops if metric["higher_is_better"] else [-drop for drop in drops]
        said = [words.change(drop, metric) if one else "–" for one, drop in zip(found, drops, strict=True)]
        groups.append((f"{key} alone", colour, [max(drop, 0.0) for drop in drops], said))
    longest = max(max(values) for _, _, values, _ in groups)
    return _bars(layers, groups, longest, f"Loss of {metric['name']} if one of {len(layers)} layers is changed.")


def _bars(
    layers: Sequence[Mapping[str, Any]],
    groups: Sequence[tuple[str, str, Sequence[float], Sequence[str]]],
    longest: float,
    label: str,
) -> Figure:
    """Horizontal bars, for each layer one of every group: (name, colour, values, what is said behind them)."""
    pitch = BAR_PITCH * len(groups) + GAP
    rows = max(len(layers), -(-MIN_ROWS * 24 // pitch))
    bars = [
        go.Bar(
            x=list(values),
            y=[row + (index - (len(groups) - 1) / 2) * BAR_PITCH / pitch for row in range(len(layers))],
            width=0.85 * BAR_PITCH / pitch,
            orientation="h",
            marker={"color": colour},
            text=list(said),
            textposition="outside",
            textfont={"size": 10},
            cliponaxis=False,
            hovertext=[f"{plain(_name(layer))}<br>{plain(name)}: {plain(text)}"
                       for layer, text in zip(layers, said, strict=True)],
            hoverinfo="text",
        )
        for index, (name, colour, values, said) in enumerate(groups)
    ]  # fmt: skip
    names = [f"{plain(words.shortened(_name(layer), MAX_LABEL))}  " for layer in layers]
    x_axis = axis("", range=[0, longest * 1.4 or 1], showticklabels=False, showgrid=False)
    y_axis = axis("", tickvals=list(range(len(layers))), ticktext=names, range=[rows - 0.5, -0.5], showgrid=False)
    of = layout(pitch * rows + 12, margin={"l": 8, "r": 8, "t": 4, "b": 8}, barmode="overlay")
    return finished(bars, of | {"xaxis": x_axis, "yaxis": y_axis}, label)


def _name(layer: Mapping[str, Any]) -> str:
    return str(layer["layer"] or "(the network itself)")
