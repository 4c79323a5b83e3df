"""What was asked of files beside their latency, for a terminal: throughput, cold start, energy and the like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from edgedl.report.numbers import milliseconds
from edgedl.report.terminal import open_console

Row = Mapping[str, Any]


def show(rows: Mapping[str, Row]) -> None:
    """Rows by what they are called; nothing where nothing was asked."""
    console = open_console()
    if any(row.get("throughput") for row in rows.values()):
        console.print()
        console.print(_throughput(rows))
    for name, row in rows.items():
        for line in lines(row):
            console.print(f"{name}: {line}")


def lines(row: Row) -> Iterator[str]:
    """A sentence for each answer but the table's."""
    if (found := row.get("throughput")) and found["refused"]:
        yield f"throughput: {found['refused']}"
    for key, told in (("cold_start", _cold), ("end_to_end", _whole), ("sustained", _sustained), ("energy", _energy)):
        if found := row.get(key):
            yield told(found)
    if row.get("unanswered"):
        yield f"not answered: {row['unanswered']}"


def _throughput(rows: Mapping[str, Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("file", "batch", "threads", "latency", "95 % interval", "samples/s"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name, row in rows.items():
        for entry in (row.get("throughput") or {"rows": ()})["rows"]:
            latency = entry["latency_ms"]
            table.add_row(
                name,
                str(entry["batch_size"]),
                str(entry["threads"]),
                milliseconds(latency["median"]) if latency else entry["reason"],
                " to ".join(map(milliseconds, latency["ci95"])) if latency else "",
                _rate(entry["per_second"]) if latency else "",
            )
    return table


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _cold(found: Row) -> str:
    whole = found["first_answer_ms"]
    if whole is None:
        return f"cold start: {found['reason']}"
    parts = [(found["import_ms"], "the runtime"), (found["init_ms"], "the file and its first run")]
    known = ", ".join(f"{milliseconds(part['median'])} {name}" for part, name in parts if part)
    spread = f"{milliseconds(whole['min'])} to {milliseconds(whole['max'])} in {found['starts']} processes"
    return f"cold start: {milliseconds(whole['median'])} to the first answer ({spread}); of that {known}"


def _whole(found: Row) -> str:
    latency = found["latency_ms"]
    parts = ", ".join(f"{name} {milliseconds(value)}" for name, value in found["parts_ms"].items())
    prepared = "; ".join(f"{name}: {said}" for name, said in found["prepared"].items())
    return f"end to end: {milliseconds(latency['median'])} ({parts}); prepared: {prepared}"


def _sustained(found: Row) -> str:
    low, high = found["ci95"]
    ends = f"{found['compared_seconds']:.3g} s"
    first, last = found["course"][0], found["course"][-1]
    said = f"{milliseconds(found['first_ms'])} in the first {ends}, {milliseconds(found['last_ms'])} in the last"
    changes = [
        f"{name} {first[key]:.0f} to {last[key]:.0f} {unit}"
        for key, name, unit in (("temperature_c", "temperature", "°C"), ("clock_mhz", "clock", "MHz"))
        if first[key] is not None and last[key] is not None
    ]
    verdict = "it slows down" if found["throttled"] else "it does not slow down"
    ratio = f"{found['slowdown']:.3f}x, {low:.3f} to {high:.3f}"
    return f"sustained for {found['seconds']:.3g} s: {said} ({ratio}): {'; '.join([verdict, *changes])}"


def _energy(found: Row) -> str:
    if found["energy_mj"] is None:
        return f"energy: {found['reason']}"
    above = f"{found['above_idle_mj']:.3g} mJ above the idle machine's {found['idle_watts']:.3g} W"
    heat, clocks = (found.get(key) or {} for key in ("temperature_c", "clocks_mhz"))  # which older answers lack
    meanwhile = [
        f"{found['watts']:.3g} W",
        *([f"{max(heat.values()):.0f} °C"] if heat else []),
        *(f"{name} {mhz:.0f} MHz" for name, mhz in clocks.items()),
    ]
    return f"energy: {found['energy_mj']:.3g} mJ a run ({above}) from {found['rail']}; meanwhile {', '.join(meanwhile)}"
