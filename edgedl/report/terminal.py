"""What the commands print: tables for a terminal, of any width."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgedl.recipe import Recipe
from edgedl.report import fitting, lines
from edgedl.report.numbers import NONE, four_digits, milliseconds, share, size

FIGURES = ("size", "change", "latency", "95 % interval", "p90", "p99", "init", "memory", "time")
"""Columns whose cells are figures with a unit."""
HTML_WIDTH = 140
"""Columns of a report in a notebook."""
STATUS_STYLE = {"ok": "green", "built": "cyan", "refused": "yellow", "failed": "red"}
SHIP_STYLE = {"float": "bold yellow", "host only": "bold cyan", "none": "bold red"}


def as_html(report: Mapping[str, Any]) -> str:
    """What `print_report` prints, for a notebook."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        console = Console(record=True, file=nowhere, width=HTML_WIDTH, markup=False, force_jupyter=False)
        print_report(report, console)
    return console.export_html(inline_styles=True, code_format="<pre style='line-height: 1.2'>{code}</pre>")


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Rows, then what the ladder found, then the verdicts in words."""
    console = console or open_console()
    metric = report["metric"]
    table = _table(
        "variant",
        "target",
        "precision",
        "size",
        metric["name"],
        "change",
        "latency",
        "95 % interval",
        "speed-up",
        "status",
    )
    for row in report["rows"]:
        latency = row["latency_ms"]
        table.add_row(
            row["variant"],
            row["target"],
            row["precision"],
            size(row["size_bytes"]),
            four_digits(row["score"]),
            _change(report, row),
            milliseconds(latency and latency["median"]),
            _interval(latency),
            _speedup(row),
            Text(row["status"], style=STATUS_STYLE[row["status"]]),
        )
    console.print()
    fitting.show(console, table, fitting.turned)
    console.print()
    quantized = [entry for entry in report["ladder"] if entry["quantization"] is not None]
    for entry in quantized:
        alone = sum(other["target"] == entry["target"] for other in quantized) == 1
        name = entry["target"] if alone else f"{entry['target']}, {entry['variant']}"
        rungs = " → ".join(f"{rung['name']} {rung['score']:.4f}" for rung in entry["rungs"])
        console.print("; ".join(filter(None, (f"{name}: {rungs}", lines.agreement(entry), lines.other_sizes(entry)))))
    for changes in lines.further_figures(report):
        console.print(changes)
    for row in report["rows"]:
        if row.get("graphs"):
            console.print(f"{row['target']}, {row['variant']}: {lines.graphs(row)}")
    for in_words in (lines.float_ops, lines.rewrites, lines.accelerators, lines.engine):
        for row in {row["target"]: row for row in report["rows"] if in_words(row)}.values():  # the best such file
            console.print(f"{row['target']}, {row['variant']}: {in_words(row)}")
    if said := lines.sparsity(report):
        console.print(said)
    for missed in lines.missed_goals(report):
        console.print(Text(missed, style="yellow"))
    console.print()
    warnings = report.get("warnings", ())  # which older runs lack
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "bold red"), warning))
    for verdict in report["verdicts"]:
        ship = "judge on the device" if verdict["ship"] == "host only" else f"ship {verdict['ship']}"
        line = Text.assemble(
            (f"{verdict['target']}: ", "bold"),
            (ship, SHIP_STYLE.get(verdict["ship"], "bold green")),
            f" — {verdict['why']}",
        )
        console.print(line)
    for row in report["rows"]:
        if row["status"] in ("refused", "failed") and row["reason"] not in warnings:
            console.print(
                Text.assemble((f"{row['variant']} on {row['target']} {row['status']}: ", "bold"), row["reason"])
            )


def print_analysis(analysis: Mapping[str, Any]) -> None:
    """A line a layer, then what has no layer, the whole, and why some figures are missing."""
    console, metric = open_console(), analysis["metric"]["name"]
    timed = [target for target in analysis["targets"] if target["time_ms"] is not None]
    ratio = analysis["pruning"]["ratio"]
    figures = ("parameters", "MACs", *(f"{target['target']} time" for target in timed))
    figures += ("int8 alone: SNR", f"int8 alone: {metric}", f"{100 * ratio:.0f} % pruned: {metric}")
    table = fitting.empty("layer", "kind", "weights", *figures, right=figures)
    for layer in analysis["layers"]:
        quantized, pruned = layer["quantized"], layer["pruned"]
        table.add_row(
            layer["layer"] or "(the network itself)",
            layer["kind"],
            lines.largest(layer["shapes"]),
            f"{layer['parameters']:,}",
            f"{layer['macs']:,}",
            *(share(layer["time_share"][target["target"]]) for target in timed),
            f"{quantized['sqnr_db']:.1f} dB" if quantized else NONE,
            four_digits(quantized and quantized["score"]),
            four_digits(pruned and pruned["score"]),
        )
    table.add_row("other", "", "", "", "", *(share(target["other"]["share"]) for target in timed))
    together = analysis["quantization"]["together"]
    table.add_row(
        Text("all", style="bold"),
        "",
        "",
        f"{analysis['parameters']:,}",
        f"{analysis['macs']:,}",
        *(milliseconds(target["time_ms"]) for target in timed),
        f"{together['sqnr_db']:.1f} dB" if together else NONE,
        four_digits(together and together["score"]),
    )
    console.print()
    fitting.show(console, table, fitting.listed)
    console.print()
    console.print(f"{metric} of the float network: {analysis['score']:.4f} on {analysis['samples']} validation samples")
    for line in lines.missing_figures(analysis):
        console.print(line)


def print_bench(rows: Sequence[Mapping[str, Any]]) -> None:
    """Measured files; with a verdict in words where two were compared."""
    console = open_console()
    columns = ("file", "runtime", "size", "score", "latency", "95 % interval", "p90", "p99", "init", "memory")
    folder = _common_folder([row["file"] for row in rows])
    table = _table(*columns, title=f"in {folder}" if folder.parts else None)
    for row in rows:
        latency = row["latency_ms"]
        table.add_row(
            str(Path(row["file"]).relative_to(folder)) if folder.parts else row["file"],
            row["runtime"],
            size(row["size_bytes"]),
            four_digits(row["score"]),
            milliseconds(latency["median"]),
            _interval(latency),
            milliseconds(latency["p90"]),
            milliseconds(latency["p99"]),
            milliseconds(row["init_ms"]),
            size(row["peak_memory_bytes"]),
        )
    fitting.show(console, table, fitting.turned)
    for row in rows:
        if row["speedup"]:
            low, high = row["speedup"]["ci95"]
            words = f"{row['speedup']['verdict']}: {row['speedup']['median']:.2f}x ({low:.2f} to {high:.2f})"
            console.print(f"{row['file']} against {row['vs']}: {words}")
        if said := lines.engine(row):
            console.print(f"{row['file']}: {said}")
        if row["operators"]:
            print_operators(row["file"], row["operators"])


def print_devices(found: Sequence[Mapping[str, Any]]) -> None:
    """What a run's files answered on other devices and, where that means anything, how long they took."""
    console = open_console()
    for device in found:
        latencies = ("latency", "95 % interval", "speed-up") if device["timed"] else ()
        columns = ("variant", "target", "runtime", "score", "here", "agrees with here", *latencies, "status")
        table = _table(*columns, title=device["device"])
        for row in device["rows"]:
            latency = row["latency_ms"]
            timed = (milliseconds(latency and latency["median"]), _interval(latency), _speedup(row))
            table.add_row(
                row["variant"],
                row["target"],
                row["score_by"] or NONE,
                four_digits(row["score"]),
                four_digits(row["score_here"]),
                lines.device_agreement(row),
                *(timed if device["timed"] else ()),
                Text(row["status"], style=STATUS_STYLE[row["status"]]),
            )
        console.print()
        fitting.show(console, table, fitting.turned)
        if said := lines.conditions(device["environment"]):
            console.print(said)
        if not device["timed"]:
            console.print("no latencies: what an emulator takes says nothing of a device")
        for row in device["rows"]:
            if row.get("graphs") and row["latency_ms"]:
                console.print(f"{row['target']}, {row['variant']}: {lines.decoding(row)}")
            if row["reason"]:
                status = "" if row["status"] == "ok" else f" {row['status']}"
                named = (f"{row['variant']} on {row['target']}{status}: ", "bold")
                console.print(Text.assemble(named, row["reason"]))
        for target in dict.fromkeys(row["target"] for row in device["left_out"]):
            reason = next(row["reason"] for row in device["left_out"] if row["target"] == target)
            console.print(f"{target} not run there: {reason}")
        for warning in device["warnings"]:
            console.print(Text.assemble(("warning: ", "bold red"), warning))


def print_device_list(rows: Sequence[Mapping[str, Any]]) -> None:
    """What there is to measure on, or why it could not be asked."""
    table = _table("--on", "what it is", "system", "cores", "memory", "state", "runs files with")
    for row in rows:
        found = row["passport"] or {}
        clocks = found.get("clocks_khz") or {}
        memory = found.get("memory_bytes")
        table.add_row(
            row["name"],
            found.get("name") or Text(f"not asked: {row['why']}", style="yellow"),
            found.get("system") or NONE,
            lines.clocks(clocks) or str(found.get("cores") or NONE),
            size(memory) if memory else NONE,
            _state(found) or NONE,
            found.get("runs_with") or NONE,
        )
    fitting.show(open_console(), table, fitting.listed)


def _state(found: Mapping[str, Any]) -> str:
    """Heat and battery, where they are known."""
    heat, battery, throttled = found.get("temperature_c"), found.get("battery_percent"), found.get("thermal_status")
    known = [
        f"{heat:.0f} °C" if heat is not None else "",
        f"battery {battery} %" if battery is not None else "",
        f"throttled: {throttled}" if throttled not in (None, "none") else "",
    ]
    return ", ".join(filter(None, known))


def print_operators(title: str, operators: Sequence[Mapping[str, Any]]) -> None:
    """Time per operator, in execution order."""
    table = _table("operator", "kind", "time", title=title)
    for operator in operators:
        table.add_row(operator["name"], operator["kind"], milliseconds(operator["time_ms"]))
    fitting.show(open_console(), table, fitting.listed)


def print_recipes(recipes: Sequence[Recipe], last: Sequence[Mapping[str, Any] | None]) -> None:
    """Name, family, what is learned and by what it is judged; and what the last run measured, if there is one."""
    console = open_console()
    columns = ("recipe", "family", "task", "metric", "float → compressed", "speed-up", "smaller", "best target ships")
    table = _table(*columns, "description")
    for recipe, figures in zip(recipes, last, strict=True):
        table.add_row(
            recipe.name,
            recipe.model.label,
            recipe.task.label,
            recipe.task.metric.name,
            f"{four_digits(figures['float'])} → {four_digits(figures['compressed'])}" if figures else NONE,
            _times(figures["speedup"]) if figures else NONE,
            _times(figures["size_ratio"]) if figures else NONE,
            f"{figures['target']}: {figures['ship']}" if figures else NONE,
            recipe.description,
        )
    fitting.show(console, table, fitting.listed)
    if not any(last):
        console.print("\nNo recipe has a finished run here: `edgedl compress --recipe NAME` makes one.")


def print_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Run folders, how far each came, and what room it takes."""
    table = _table("run", "state", "came as far as", "steps", "in other runs, too", "size")
    for row in rows:
        steps = (str(row["steps"]), str(row["shared_steps"]))
        table.add_row(row["run"], row["state"], row["stage"], *steps, size(row["size_bytes"]))
    console = open_console()
    fitting.show(console, table, fitting.listed)
    console.print(f"{len(rows)} runs, {size(sum(row['size_bytes'] for row in rows))}")


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}x"


def print_targets(rows: Sequence[Mapping[str, Any]]) -> None:
    """What each target needs and lacks here."""
    table = _table("target", "files", "scheme", "builds here", "runs here", "to install")
    for row in rows:
        table.add_row(
            row["target"],
            " ".join(row["files"]),
            row["scheme"],
            _lacks(row["build_lacks"]),
            _lacks(row["run_lacks"]),
            row["install"] or NONE,
        )
    fitting.show(open_console(), table, fitting.listed)


def print_device(device: Mapping[str, Any]) -> None:
    """This machine, and the versions of what matters."""
    table = Table.grid(padding=(0, 2))
    for key, value in device.items():
        if key == "versions":
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        elif key == "memory_bytes":
            key, value = "memory", size(value)
        table.add_row(Text(key, style="bold"), NONE if value is None else str(value))
    open_console().print(table)


def print_inspected(rows: Sequence[Mapping[str, Any]]) -> None:
    """What files take, what accelerators keep of them, and each operator that one leaves out."""
    console = open_console()
    table = _table("file", "size", "input", "output", "accelerator", "keeps", "labels", "metadata")
    for row in rows:
        kept = [f"{found['stay']} of {found['operators']}" for found in row["accelerators"]]
        table.add_row(
            row["file"],
            size(row["size_bytes"]),
            "\n".join(map(_tensor, row["inputs"])) or NONE,
            "\n".join(map(_tensor, row["outputs"])) or NONE,
            "\n".join(found["accelerator"] for found in row["accelerators"]) or NONE,
            "\n".join(kept) or NONE,
            NONE if row["labels"] is None else str(row["labels"]),
            {None: NONE, True: "yes", False: "none"}[row["metadata"]],
        )
    fitting.show(console, table, fitting.listed)
    for row in rows:
        for found in row["accelerators"]:
            if found["note"]:
                console.print(Text.assemble((f"{row['file']}, {found['accelerator']}: ", "bold"), found["note"]))
            if found["leaving"]:
                left = _table(
                    "operator", "times", "why", "layers", title=f"{row['file']}: {found['accelerator']} leaves out"
                )
                for entry in found["leaving"]:
                    layers = ", ".join(entry["layers"]) + (" ..." if entry["times"] > len(entry["layers"]) else "")
                    left.add_row(entry["operator"], str(entry["times"]), entry["reason"], layers)
                fitting.show(console, left, fitting.listed)
            if (found["parts"] or 1) > 1:
                console.print(
                    f"{row['file']}: it divides into {found['parts']} parts, and by default the delegate takes the "
                    "largest alone"
                )
        if row["passport"] is not None:
            built = row["passport"]
            console.print(f"{row['file']}: built by {built['library']} {built['version']} for {built['built_for']}")


def _tensor(spec: Mapping[str, Any]) -> str:
    shape = "×".join("any" if axis in spec["free"] else str(length) for axis, length in enumerate(spec["shape"]))
    return f"{spec['name']} {spec['dtype']} {shape}{' ' + spec['layout'] if spec['layout'] else ''}"


def _common_folder(files: Sequence[str]) -> Path:
    """The folder that several files lie in; for one file, or files in none, that in which we are."""
    parts = zip(*(Path(file).parent.parts for file in files), strict=False) if len(files) > 1 else ()
    return Path(*(same[0] for same in takewhile(lambda same: len(set(same)) == 1, parts)))


def _interval(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return NONE
    low, high = (milliseconds(end) for end in latency["ci95"])
    number, _, unit = low.partition(" ")
    return f"{number}-{high}" if high.endswith(unit) else f"{low}-{high}"


def _change(report: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Score change against the float network, signed so that + is a higher score."""
    reference = next(
        (
            rung["score"]
            for entry in report["ladder"]
            if (entry["target"], entry["variant"]) == (row["target"], row["variant"])
            for rung in entry["rungs"]
            if rung["name"] == "float"
        ),
        None,
    )
    return NONE if reference is None or row["score"] is None else f"{row['score'] - reference:+.4f}"


def _speedup(row: Mapping[str, Any]) -> str:
    speedup = row["speedup"]
    return f"{speedup['median']:.2f}x {speedup['verdict']}" if speedup else NONE


def _lacks(missing: Sequence[str]) -> Text:
    return Text("yes", style="green") if not missing else Text(f"no: {', '.join(missing)}", style="yellow")


def _table(*columns: str, title: str | None = None) -> Table:
    return fitting.empty(*columns, title=title, right=FIGURES)


def open_console() -> Console:
    """Where tables are printed."""
    # No markup: names and reasons are a person's own and may hold brackets. And a table that goes into
    # a file must not be folded at some width of nobody's.
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=200)
