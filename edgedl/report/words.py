"""Scores, changes, agreement, dates and operators in the words that the HTML page shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edgedl import stats
from edgedl.report.numbers import NONE, milliseconds

EXPORTER_MARKS = re.compile(r"^(fused )?(node_|serving_default_|tfl\.|__myl_)|((_token_\d+)|_nchwc|_myl\d+_\d+)+$")
"""What exporters and runtimes put around a name."""
NUMBER = re.compile(r"(?<=;)\d+$")
"""What tells a layer's operators in a TFLite file apart."""
MAX_OPERATOR_LABEL = 30


def score(value: float | None, metric: Mapping[str, Any], digits: int = 2) -> str:
    """A score in its unit; a fraction as a percentage."""
    if value is None:
        return NONE
    if metric["unit"] == "fraction":
        return f"{value:.{digits}%}"
    return f"{value:,.4g} {metric['unit']}".rstrip()


def change(drop: float | None, metric: Mapping[str, Any]) -> str:
    """How much worse or better than the float network, in the metric's unit; a fraction in percentage points."""
    if drop is None:
        return NONE
    if drop == 0:
        return "the same"
    size, unit = abs(drop), metric["unit"]
    amount = f"{size:,.3g}"
    if unit == "fraction":
        amount = f"{size * 100:.3g}" if size >= 1e-4 else "less than 0.01"
        unit = "point" if amount == "1" else "points"
    return " ".join(f"{amount} {unit} {'worse' if drop > 0 else 'better'}".split())


def heading(name: str) -> str:
    """A name with a capital in front, unless it has capitals of its own, as mAP has."""
    return name[:1].upper() + name[1:] if name.islower() else name


def interval(latency: Mapping[str, Any]) -> str:
    """The 95% interval of a latency."""
    low, high = latency["ci95"]
    return f"{milliseconds(low)} to {milliseconds(high)}"


def agreement(found: Mapping[str, Any]) -> str:
    """How closely a deployed file repeats what it was exported from."""
    if found["sqnr_db"] >= stats.EXACT_DB and not found["max_steps"]:
        return "bit for bit"
    parts = [f"{found['sqnr_db']:.1f} dB"]
    if found["max_steps"] is not None:
        parts.append(f"up to {found['max_steps']} {'step' if found['max_steps'] == 1 else 'steps'} apart")
    if found["same_decision"] is not None:
        # 99.996 % must not read as all of them.
        share = "all" if found["same_decision"] == 1 else f"{int(found['same_decision'] * 1000) / 10:.1f}% of"
        parts.append(f"{share} decisions equal")
    return ", ".join(parts)


def summary(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """All verdicts in one sentence."""
    counted = Counter(str(verdict["ship"]) for verdict in verdicts)
    parts = []
    for ship, count in counted.items():
        said = {
            "float": "keeps float" if count == 1 else "keep float",
            "host only": "is to be judged on its device" if count == 1 else "are to be judged on their devices",
            "none": "has nothing to ship" if count == 1 else "have nothing to ship",
        }
        parts.append(f"{count} {said.get(ship, f'ships {ship}' if count == 1 else f'ship {ship}')}")
    return f"Of {len(verdicts)} {'target' if len(verdicts) == 1 else 'targets'}, {', '.join(parts)}."


def date(folder: Path) -> datetime | None:
    """When a run began, as its folder's name says; None for a folder that was renamed."""
    found = re.match(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d", folder.name)
    try:
        return datetime.strptime(found[0], "%Y-%m-%dT%H-%M-%S") if found else None
    except ValueError:
        return None


def settings(part: Mapping[str, Any]) -> str:
    """The keys of a recipe's table in one line."""
    shown = {key: value for key, value in part.items() if key not in ("use", "metrics")}
    return ", ".join(f"{key} {_value(value)}" for key, value in shown.items())


def operator_label(name: str, kind: str) -> str:
    """A short name for an operator, beginning with its kind: "CONV_2D · relu2 + conv2"."""
    named = NUMBER.sub("", name)
    layers = list(dict.fromkeys(layer for part in re.split(r";+|\s\+\s", named) if (layer := _layer(part, kind))))
    return shortened(" · ".join([kind, " + ".join(layers)] if layers else [kind]), MAX_OPERATOR_LABEL)


def shortened(text: str, length: int) -> str:
    """At most `length` characters, the last one an ellipsis if some are left out."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def _layer(part: str, kind: str) -> str:
    """The layer's path or name in one part of an operator's; empty where it says no more than the kind."""
    name = EXPORTER_MARKS.sub("", EXPORTER_MARKS.sub("", part.strip().rsplit("/", 1)[-1]))
    return "" if _letters(name) == _letters(kind) else name


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _value(value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, Sequence):
        names = any(isinstance(entry, str) for entry in value)
        return (" + " if names else "×").join(map(_value, value)) or "none"
    return str(value)
