"""Files of several runs side by side: as tables for a terminal, Markdown or CSV, and the one to ship in words."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from edgedl.comparison import File, Group
from edgedl.picking import Limit, Pick
from edgedl.report.numbers import NONE, four_digits, milliseconds, size, three_digits
from edgedl.report.terminal import STATUS_STYLE, open_console

MIN_WIDTH = 110
"""Columns of a terminal from which on a file's names stand beside each other."""
NAMES = ("run", "target", "variant")
NUMBERS = ("score", "drop", "latency", "size", "speed-up", "energy")
BEST = {"score": "best score", "latency": "fastest", "size": "smallest", "energy": "least energy"}


def print_tables(groups: Sequence[Group]) -> None:
    """A table for the files that can be compared with each other, what was not run below it, and what marks mean."""
    console = open_console()
    columns = columns_of(groups)
    narrow = console.width < MIN_WIDTH
    for group in groups:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("", *(("file", *columns[len(NAMES) :]) if narrow else columns)):
            justify: Literal["left", "right"] = "right" if column in NUMBERS else "left"
            table.add_column(column, overflow="fold", no_wrap=column not in ("file", *NAMES), justify=justify)
        for file in group.files:
            *told, status = cells(file, columns)
            if narrow:
                run, target, variant, *told = told
                told = [f"{run}\n{target} {variant}", *told]
            best = file in group.front
            row = ("*" if best else "", *told, Text(status, style=STATUS_STYLE[status]))
            table.add_row(*row, style="bold" if best else "")
        console.print()
        console.print(Text.assemble((group.judged, "bold"), _on(group)))
        console.print(table)
    console.print()
    for line in notes(groups):
        console.print(line)


def columns_of(groups: Sequence[Group]) -> list[str]:
    """What is told of each file; energy only where a device measures it."""
    energy = any(file.value("energy") is not None for group in groups for file in group.files)
    figures = ["score", "drop", "latency", "size", "speed-up", *(["energy"] if energy else [])]
    return [*NAMES, *figures, "status"]


def cells(file: File, columns: Sequence[str]) -> list[str]:
    """What stands in the columns."""
    speedup = file.row["speedup"]
    told = {
        "run": file.label,
        "target": file.row["target"],
        "variant": file.row["variant"],
        "score": four_digits(file.value("score")),
        "drop": NONE if file.drop is None else f"{round(file.drop, 4) + 0.0:.4f}",
        "latency": milliseconds(file.value("latency")),
        "size": size(file.row["size_bytes"]),
        "speed-up": f"{speedup['median']:.2f}x" if speedup else NONE,
        "energy": _energy(file.value("energy")),
        "status": file.row["status"],
    }
    return [told[column] for column in columns]


def notes(groups: Sequence[Group]) -> list[str]:
    """What a reader of a comparison has to know, a line each."""
    ran = [group for group in groups if group.device is not None]
    said = []
    if any(group.front for group in groups):
        said.append(
            "* on the Pareto front of its table: no other file that may ship is as good in score, latency and size "
            "and better in one of them"
        )
    if not ran:
        said.append("nothing to compare by latency: no file of these runs was measured")
    if len({group.judged for group in groups}) > 1:
        said.append("scores of different tasks, data or metrics stand in tables of their own: they cannot be compared")
    if len({group.where for group in ran}) > 1:
        said.append("so do latencies of different devices, threads or batch sizes")
    if any(len({file.label for file in group.files}) > 1 for group in ran):
        said.append("files of different runs were not timed in turn: a few percent of latency may be chance")
    for group in groups:
        for setting, values in group.settings.items():
            shown = ", ".join("none" if value is None else str(value) for value in values)
            said.append(f"{group.judged}: {setting} is not the same in all runs: {shown}")
    return list(dict.fromkeys(said))


def in_words(pick: Pick) -> str:
    """Which file to ship, and why; or which comes nearest, and what it misses."""
    if pick.file is None:
        return f"{pick.group.where}: none to ship: no file ran there that may"
    metric, file = pick.group.metric, pick.file
    figures = f"{metric['name']} {four_digits(file.value('score'))}, {milliseconds(file.value('latency'))}, "
    figures += size(file.row["size_bytes"])
    if pick.is_met:
        among = f"{BEST[pick.decided_by]} of {pick.num_met} files that meet all limits"
        only = "the only file that meets all limits" if pick.num_met == 1 else among
        return f"{pick.group.where}: ship {file.path}: {figures}; {only}"
    missed = "; ".join(_missed(limit, file, metric) for limit in pick.missed)
    return f"{pick.group.where}: no file meets all limits; nearest is {file.path}: {figures}; it misses {missed}"


def _on(group: Group) -> str:
    return f" on {group.where}" if group.device else ": not run here"


def _missed(limit: Limit, file: File, metric: Mapping[str, Any]) -> str:
    value = file.value(limit.name)
    if value is None:
        return f"{limit.text}: its {limit.name} is not known"
    unit = "" if metric["unit"] in ("", "fraction") else f" {metric['unit']}"
    shown: dict[str, Callable[[float], str]] = {
        "latency": milliseconds,
        "size": lambda num_bytes: size(round(num_bytes)),
        "energy": _energy,
        "speedup": lambda ratio: f"{ratio:.3g}x",
        "score": lambda score: f"{score:.4g}{unit}",
        "drop": lambda score: f"{score:.4g}{unit}",
    }
    say = shown[limit.name]
    return f"{limit.text} by {say(abs(value - limit.bound))} ({limit.name} {say(value)})"


def _energy(value: float | None) -> str:
    """Millijoules with three significant digits."""
    return NONE if value is None else f"{three_digits(value)} mJ"


def as_markdown(groups: Sequence[Group]) -> str:
    """The tables, rounded as on a terminal."""
    columns = columns_of(groups)
    parts = []
    for group in groups:
        aligned = ["---:" if column in NUMBERS else "---" for column in columns]
        lines = [["", *columns], ["---", *aligned]]
        lines += [["\\*" if file in group.front else "", *map(_escaped, cells(file, columns))] for file in group.files]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"**{_escaped(group.judged)}**{_escaped(_on(group))}\n\n{table}\n")
    # A list, for a line that begins with the mark would be one anyway.
    return "\n".join([*parts, "\n".join(f"- {_escaped(note)}" for note in notes(groups))])


def as_csv(rows: Sequence[Mapping[str, Any]], files: Sequence[File]) -> str:
    """A line a file, with numbers as they were measured."""
    text = io.StringIO()
    lines = [_flat(row, file) for row, file in zip(rows, files, strict=True)]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(row: Mapping[str, Any], file: File) -> dict[str, Any]:
    latency = row["latency_ms"] or {}
    low, high = latency.get("ci95", (None, None))
    told = {
        **{key: row[key] for key in ("run", "recipe", "task", "target", "variant", "precision", "device")},
        "threads": latency.get("threads"),
        "batch_size": latency.get("batch_size"),
        "metric": row["metric"],
        "score": row["score"],
        "drop": row["drop"],
        "latency_ms": latency.get("median"),
        "latency_low_ms": low,
        "latency_high_ms": high,
        "size_bytes": row["size_bytes"],
        "speedup": row["speedup"] and row["speedup"]["median"],
        "energy_mj": file.value("energy"),
        **{key: row[key] for key in ("status", "reason", "path", "front")},
        **({"picked": row["picked"], "missed": ", ".join(row["missed"])} if "picked" in row else {}),
    }
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in told.items()}


def _escaped(text: str) -> str:
    """A name or reason as Markdown shows it letter by letter, in one line."""
    text = re.sub(r"\s+", " ", text)
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#~" else letter for letter in text)
