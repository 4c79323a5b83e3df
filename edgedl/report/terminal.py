"""What the commands print: tables for a terminal, of any width."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgedl.recipe import Recipe
from edgedl.stats import EXACT_DB

NONE = "–"
MAX_LEAVING = 3
"""Operators that leave an accelerator, named in a line."""
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
    console.print(table)
    console.print()
    quantized = [entry for entry in report["ladder"] if entry["quantization"] is not None]
    for entry in quantized:
        alone = sum(other["target"] == entry["target"] for other in quantized) == 1
        name = entry["target"] if alone else f"{entry['target']}, {entry['variant']}"
        rungs = " → ".join(f"{rung['name']} {rung['score']:.4f}" for rung in entry["rungs"])
        console.print("; ".join(filter(None, (f"{name}: {rungs}", agreement_in_words(entry), other_sizes(entry)))))
    for changes in further_figures(report):
        console.print(changes)
    for row in report["rows"]:
        if row.get("graphs"):
            console.print(f"{row['target']}, {row['variant']}: {graphs_in_words(row)}")
    for in_words in (float_ops_in_words, rewrites_in_words, accelerators_in_words, engine_in_words):
        for row in {row["target"]: row for row in report["rows"] if in_words(row)}.values():  # the best such file
            console.print(f"{row['target']}, {row['variant']}: {in_words(row)}")
    if said := sparsity_in_words(report):
        console.print(said)
    for missed in missed_goals(report):
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
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("layer", "kind", "weights"):
        table.add_column(column, overflow="fold")
    for column in ("parameters", "MACs", *(f"{target['target']} time" for target in timed)):
        table.add_column(column, justify="right")
    for column in ("int8 alone:\nSNR", f"int8 alone:\n{metric}", f"{100 * ratio:.0f} % pruned:\n{metric}"):
        table.add_column(column, justify="right")
    for layer in analysis["layers"]:
        quantized, pruned = layer["quantized"], layer["pruned"]
        table.add_row(
            layer["layer"] or "(the network itself)",
            layer["kind"],
            largest(layer["shapes"]),
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
    console.print(table)
    console.print()
    console.print(f"{metric} of the float network: {analysis['score']:.4f} on {analysis['samples']} validation samples")
    for line in missing_figures(analysis):
        console.print(line)


def missing_figures(analysis: Mapping[str, Any]) -> list[str]:
    """Why layers have not been quantized or pruned alone, or targets not measured; a line a reason."""
    said: dict[tuple[str, str], list[str]] = {}
    for layer in analysis["layers"]:
        for key, what in (("not_quantized", "int8 alone"), ("not_pruned", "pruned alone")):
            if layer[key] is not None:
                said.setdefault((what, layer[key]), []).append(layer["layer"] or "(the network itself)")
    lines = [f"not {what}: {', '.join(layers)}: {reason}" for (what, reason), layers in said.items()]
    untimed = [target for target in analysis["targets"] if target["time_ms"] is None]
    return [*lines, *(f"no times on {target['target']}: {target['reason']}" for target in untimed)]


def largest(shapes: Mapping[str, Sequence[int]]) -> str:
    """The shape of a layer's largest parameter."""
    return "×".join(map(str, max(shapes.values(), key=math.prod))) if shapes else NONE


def share(value: float | None) -> str:
    """A share of the time; none where a layer has no operator of its own."""
    return NONE if value is None else f"{100 * value:.1f} %"


def print_bench(rows: Sequence[Mapping[str, Any]]) -> None:
    """Measured files; with a verdict in words where two were compared."""
    console = open_console()
    table = _table("file", "runtime", "size", "score", "latency", "95 % interval", "p90", "p99", "init", "memory")
    for row in rows:
        latency = row["latency_ms"]
        table.add_row(
            row["file"],
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
    console.print(table)
    for row in rows:
        if row["speedup"]:
            low, high = row["speedup"]["ci95"]
            words = f"{row['speedup']['verdict']}: {row['speedup']['median']:.2f}x ({low:.2f} to {high:.2f})"
            console.print(f"{row['file']} against {row['vs']}: {words}")
        if said := engine_in_words(row):
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
                device_agreement(row),
                *(timed if device["timed"] else ()),
                Text(row["status"], style=STATUS_STYLE[row["status"]]),
            )
        console.print()
        console.print(table)
        if said := conditions_in_words(device["environment"]):
            console.print(said)
        if not device["timed"]:
            console.print("no latencies: what an emulator takes says nothing of a device")
        for row in device["rows"]:
            if row.get("graphs") and row["latency_ms"]:
                console.print(f"{row['target']}, {row['variant']}: {decoding_in_words(row)}")
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
            clocks_in_words(clocks) or str(found.get("cores") or NONE),
            size(memory) if memory else NONE,
            _state(found) or NONE,
            found.get("runs_with") or NONE,
        )
    open_console().print(table)


def clocks_in_words(clocks_khz: Mapping[str, int]) -> str:
    """Such as "4 × 1.80, 2 × 2.35, 2 × 2.85 GHz"."""
    clocks = sorted(clocks_khz.values())
    cores = [f"{clocks.count(clock)} × {clock / 1e6:.2f}" for clock in dict.fromkeys(clocks)]
    return f"{', '.join(cores)} GHz" if cores else ""


def _state(found: Mapping[str, Any]) -> str:
    """Heat and battery, where they are known."""
    heat, battery, throttled = found.get("temperature_c"), found.get("battery_percent"), found.get("thermal_status")
    known = [
        f"{heat:.0f} °C" if heat is not None else "",
        f"battery {battery} %" if battery is not None else "",
        f"throttled: {throttled}" if throttled not in (None, "none") else "",
    ]
    return ", ".join(filter(None, known))


def device_agreement(row: Mapping[str, Any]) -> str:
    """How the answers of a device agree with those of the machine that sent the file."""
    agreement = row["agreement"]
    if agreement is None:
        return NONE
    if agreement["sqnr_db"] == EXACT_DB:
        return "bit for bit"
    steps = agreement["max_steps"]
    by = "" if steps is None else f", within {steps} step{'s' if steps != 1 else ''}"
    return f"{agreement['sqnr_db']:.1f} dB{by}"


def conditions_in_words(environment: Mapping[str, Any]) -> str:
    """Of a phone the cores that files ran on, and heat and battery before and after; nothing of other devices."""
    before, after, cores = environment.get("before"), environment.get("after"), environment.get("pinned_to")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return ""
    known = [f"on cores {', '.join(map(str, cores))}"] if cores else ["on any core"]
    for key, unit in (
        ("temperature_c", "°C"),
        ("battery_temperature_c", "°C in the battery"),
        ("battery_percent", "%"),
    ):
        if before.get(key) is not None and after.get(key) is not None:
            known.append(f"{before[key]:.0f} → {after[key]:.0f} {unit}")
    return "; ".join([*known, f"powered by {after['powered_by']}"] if after.get("powered_by") else known)


def print_operators(title: str, operators: Sequence[Mapping[str, Any]]) -> None:
    """Time per operator, in execution order."""
    table = _table("operator", "kind", "time", title=title)
    for operator in operators:
        table.add_row(operator["name"], operator["kind"], milliseconds(operator["time_ms"]))
    open_console().print(table)


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
    console.print(table)
    if not any(last):
        console.print("\nNo recipe has a finished run here: `edgedl compress --recipe NAME` makes one.")


def print_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Run folders, how far each came, and what room it takes."""
    table = _table("run", "state", "came as far as", "steps", "in other runs, too", "size")
    for row in rows:
        steps = (str(row["steps"]), str(row["shared_steps"]))
        table.add_row(row["run"], row["state"], row["stage"], *steps, size(row["size_bytes"]))
    console = open_console()
    console.print(table)
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
    open_console().print(table)


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


def agreement_in_words(entry: Mapping[str, Any]) -> str:
    """How a deployed file agrees with its simulation, and what quantization itself cost."""
    agreement, noise = entry["agreement"], entry["quantization"]["sqnr_db"]
    if agreement["max_steps"] is None:  # of a form whose outputs are not int8
        said = f"deployed repeats simulated to {agreement['sqnr_db']:.1f} dB"
        return f"{said}; simulated against float: {noise:.1f} dB"
    if agreement["max_steps"] == 0:
        said = "deployed repeats simulated int8 bit for bit"
    else:
        steps, ratio = agreement["max_steps"], agreement["sqnr_db"]
        said = f"deployed differs from simulated int8 by up to {steps} steps ({ratio:.1f} dB)"
        if divergence := entry["first_divergence"]:
            said += f", first at layer {divergence['layer']}"
    return f"{said}; int8 against float: {noise:.1f} dB"


def other_sizes(entry: Mapping[str, Any]) -> str:
    """How a file does where dimensions with names are of other sizes than in the data; nothing where it takes none."""
    if not (found := entry.get("other_sizes")):
        return ""
    sizes = "; ".join(", ".join(f"{name} {size}" for name, size in one["sizes"].items()) for one in found)
    if failed := next((one["failure"] for one in found if one["failure"]), None):
        return f"at {sizes}: it does not run: {failed}"
    worst = min(one["agreement_db"] for one in found)
    return f"at {sizes}: {'bit for bit' if worst >= EXACT_DB else f'{worst:.1f} dB or more'}"


def further_figures(report: Mapping[str, Any]) -> list[str]:
    """What the task reports besides the score, float against the judged file; a line a target, if there is any."""
    lines = []
    for target in dict.fromkeys(row["target"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["target"] == target and row["score"] is not None]
        if rows and (said := figure_changes(rows[0], rows[-1])):
            named = rows[0]["variant"] if len(rows) == 1 else f"{rows[0]['variant']} → {rows[-1]['variant']}"
            lines.append(f"{target}, {named}: {', '.join(f'{name} {change}' for name, change in said.items())}")
    return lines


def figure_changes(reference: Mapping[str, Any], judged: Mapping[str, Any]) -> dict[str, str]:
    """The further figures of two rows, "0.4512 → 0.4498" by name; of one row alone if both are the same."""
    found, other = reference.get("figures") or {}, judged.get("figures") or {}
    if judged is reference:
        return {name: figure(value) for name, value in found.items()}
    return {name: f"{figure(found.get(name))} → {figure(other.get(name))}" for name in found | other}


def figure(value: float | None) -> str:
    """A further figure: four digits, and whole numbers from a thousand on."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def sparsity_in_words(report: Mapping[str, Any]) -> str | None:
    """What zeros are good for: smaller files once they are compressed, and no speed by themselves. None without any."""
    sparse = {name: counted for name, counted in report["parameters"].items() if counted.get("zeros")}
    if not sparse:
        return None
    shares = [f"{100 * counted['zeros'] / counted['count']:.0f} % of {name}" for name, counted in sparse.items()]
    dense = {row["target"]: row["gzip_bytes"] for row in report["rows"] if row["variant"] == "float"}
    sizes = [
        f"{row['target']} {size(row['size_bytes'])} → {size(row['gzip_bytes'])} (float {size(dense[row['target']])})"
        for row in report["rows"]
        if row["variant"] in sparse and row["gzip_bytes"] is not None
    ]
    return (
        f"zero weights: {', '.join(shares)}; a file holds zeros like any other weights, and is smaller for them only "
        f"after gzip: {', '.join(sizes)}; kernels multiply zeros, too, so none is faster for them unless its latency "
        "says so"
    )


def float_ops_in_words(row: Mapping[str, Any]) -> str | None:
    """Which operators stay in float, whose they are, and what they take; None without any."""
    found = row.get("float_ops") or ()  # which older runs lack
    if not found:
        return None
    said = []
    for operator in found:
        place = operator["layer"] or "the network itself"
        line = f" ({operator['line']})" if operator["line"] else ""
        times = f", {operator['times']} times" if operator["times"] > 1 else ""
        taken = "" if operator["time_share"] is None else f", {share(operator['time_share'])} of the time"
        said.append(f"{operator['operator']} of {place}{line}{times}{taken}")
    return f"in float, for want of an int8 form: {'; '.join(said)}"


def accelerators_in_words(row: Mapping[str, Any]) -> str | None:
    """What a phone's GPU or a Jetson's DLA would leave to another processor; None where it is nothing."""
    said = []
    for found in row.get("accelerators") or ():  # which older runs lack
        if not found["leaving"] or found["note"]:  # where none of a file can run there, no layer is to blame
            continue
        graph = f" of {found['graph']}" if found["graph"] else ""
        parts = f", the largest of {found['parts']} parts," if (found["parts"] or 1) > 1 else ""
        said.append(
            f"{found['accelerator']} would keep {found['stay']} of {found['operators']} operators{graph}{parts} "
            f"without {_leaving_in_words(found['leaving'])}"
        )
    return "; ".join(said) or None


def engine_in_words(row: Mapping[str, Any]) -> str | None:
    """How an NVIDIA engine was run; None of other files, and of engines that were not."""
    engine = row.get("engine")  # which older runs lack
    if not engine:
        return None
    launched = "as one CUDA graph" if engine["cuda_graph"] else "kernel by kernel"
    waits = {True: ", waiting without pause", False: ", waiting asleep", None: ""}[engine["spin_wait"]]
    mode = f"; power mode {engine['power_mode']}" if engine["power_mode"] else ""
    warning = f"; {engine['warning']}" if engine["warning"] else ""
    return f"run {launched}{waits}, with the copies from and to the host in the time{mode}{warning}"


def _leaving_in_words(leaving: Sequence[Mapping[str, Any]]) -> str:
    most = sorted(leaving, key=lambda left: -left["times"])
    named = [f"{left['operator']} ×{left['times']} ({left['reason']})" for left in most[:MAX_LEAVING]]
    return ", ".join(named) + (f" and {len(most) - MAX_LEAVING} more" if len(most) > MAX_LEAVING else "")


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
    console.print(table)
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
                console.print(left)
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


def rewrites_in_words(row: Mapping[str, Any]) -> str | None:
    """What was rewritten for the target; None if nothing was."""
    found = row.get("rewrites") or {}  # which older runs lack
    said = [f"{words} ({places} place{'s' if places != 1 else ''})" for words, places in found.items()]
    return f"rewritten: {', '.join(said)}" if said else None


def missed_goals(report: Mapping[str, Any]) -> list[str]:
    """What `prune` was asked for and did not reach, and the rounds that it undid; a line each."""
    lines = []
    for step in report["steps"]:
        goal = step["metrics"].get("latency")
        if step["use"] != "prune" or not goal:
            continue
        where = f"{goal['target']['use']}, {goal['precision']}"
        if not goal.get("reached", True):  # which older runs lack
            side = "slower" if goal["reached_ms"] > goal["goal_ms"] else "faster"
            lines.append(
                f"prune missed its goal of {milliseconds(goal['goal_ms'])} on {where}: the file takes "
                f"{milliseconds(goal['reached_ms'])}, {side} by more than 10 %; a smaller round_to leaves more choice"
            )
        rounds = step["metrics"]["iterations"]
        if undone := sum(record["latency"]["undone"] for record in rounds):
            lines.append(
                f"prune undid {undone} of {len(rounds)} rounds: all that was tried made the file slower on {where}"
            )
    return lines


def graphs_in_words(row: Mapping[str, Any]) -> str:
    """Of a network that is several graphs: the file of each, and what its calls take in the decoding that is timed."""
    files = []
    for name, graph in row["graphs"].items():
        count = f"{graph['calls']} call{'s' if graph['calls'] != 1 else ''}"
        calls = f", {count} of {milliseconds(graph['latency_ms'])}" if graph["latency_ms"] else ""
        files.append(f"{name} {size(graph['size_bytes'])}{calls}")
    whole = "; the latency is that of all calls together" if row["latency_ms"] else ""
    return f"{'; '.join(files)}{whole}"


def decoding_in_words(row: Mapping[str, Any]) -> str:
    """As `graphs_in_words`, of a device's row, and what follows from it, such as tokens a second."""
    return "; ".join([graphs_in_words(row), *(f"{figure(value)} {name}" for name, value in row["figures"].items())])


def size(num_bytes: int | None) -> str:
    """Bytes as people read them, in decimal units."""
    if num_bytes is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.{1 if unit == 'kB' else 2}f} {unit}"
    return f"{num_bytes} B"


def milliseconds(value: float | None) -> str:
    """A time with three significant digits, in µs below a tenth of a millisecond."""
    if value is None:
        return NONE
    return f"{three_digits(value * 1000)} µs" if value < 0.1 else f"{three_digits(value)} ms"


def _interval(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return NONE
    low, high = (milliseconds(end) for end in latency["ci95"])
    number, _, unit = low.partition(" ")
    return f"{number}-{high}" if high.endswith(unit) else f"{low}-{high}"


def three_digits(value: float) -> str:
    """Three significant digits, trailing zeros kept, so that columns can be compared at a glance."""
    return f"{value:#.3g}".removesuffix(".") if value < 1000 else f"{value:.0f}"


def four_digits(score: float | None) -> str:
    """A score as tables have it, whatever its unit."""
    return NONE if score is None else f"{score:.4f}"


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
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numeric = column in ("size", "change", "latency", "95 % interval", "p90", "p99", "init", "memory", "time")
        table.add_column(column, justify="right" if numeric else "left")
    return table


def open_console() -> Console:
    """Where tables are printed."""
    # No markup: names and reasons are a person's own and may hold brackets. And a table that goes into
    # a file must not be folded at some width of nobody's.
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=200)
