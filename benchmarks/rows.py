"""Results files: rows, and what they were measured on."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedl.devices import local

CACHE = Path(__file__).parent / ".cache"
"""Environments, trained networks and run folders; git ignores it."""

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    """The rows of a results file; none where there is no such file."""
    return list(json.loads(file.read_text())["rows"]) if file.exists() else []


def write(file: Path, rows: Sequence[Row]) -> None:
    """The rows, and what they were measured on: the device of those that the file has; others say `on` which."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before, device = read(file), local.describe()
    placed = [row if row in before else row | {"on": device["name"]} for row in rows]
    if any("on" not in row for row in placed):
        device = json.loads(file.read_text())["device"]
    for row in placed:
        if row.get("on") == device["name"]:
            del row["on"]
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"device": device, "rows": placed}, indent=1) + "\n")
    partial.replace(file)


def measured_on(results: Mapping[str, Any], name: str) -> str:
    """The machine of a results file, and which rows, by their `name`, were measured on another."""
    others: dict[str, list[str]] = {}
    for row in results["rows"]:
        if "on" in row:
            others.setdefault(row["on"], []).append(row[name])
    told = [f"{', '.join(sorted(set(of)))} on {device}" for device, of in others.items()]
    return " and ".join([results["device"]["name"], *told])


def titled(title: str, file: Path, name: str) -> str:
    """What stands above the table of a results file; its rows are told apart by their `name`."""
    return f"# {title}\n\nMeasured on {measured_on(json.loads(file.read_text()), name)}.\n\n"


def say(line: str) -> None:
    """Progress, for whoever waits."""
    print(line, file=sys.stderr, flush=True)


def same_file(entry: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether two tables of a report speak of the same file."""
    return (entry["target"], entry["variant"]) == (row["target"], row["variant"])


def cpu_seconds() -> float:
    """Of all processes that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
