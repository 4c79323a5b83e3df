"""What is said of a file, a step or a run in a line, on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgedl.report.numbers import NONE, figure, milliseconds, share, size
from edgedl.stats import EXACT_DB

MAX_LEAVING = 3
"""Operators that leave an accelerator, named in a line."""


def agreement(entry: Mapping[str, Any]) -> str:
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


def sparsity(report: Mapping[str, Any]) -> str | None:
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


def float_ops(row: Mapping[str, Any]) -> str | None:
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


def accelerators(row: Mapping[str, Any]) -> str | None:
    """What a phone's GPU or a Jetson's DLA would leave to another processor; None where it is nothing."""
    said = []
    for found in row.get("accelerators") or ():  # which older runs lack
        if not found["leaving"] or found["note"]:  # where none of a file can run there, no layer is to blame
            continue
        graph = f" of {found['graph']}" if found["graph"] else ""
        parts = f", the largest of {found['parts']} parts," if (found["parts"] or 1) > 1 else ""
        said.append(
            f"{found['accelerator']} would keep {found['stay']} of {found['operators']} operators{graph}{parts} "
            f"without {_leaving(found['leaving'])}"
        )
    return "; ".join(said) or None


def engine(row: Mapping[str, Any]) -> str | None:
    """How an NVIDIA engine was run; None of other files, and of engines that were not."""
    engine = row.get("engine")  # which older runs lack
    if not engine:
        return None
    launched = "as one CUDA graph" if engine["cuda_graph"] else "kernel by kernel"
    waits = {True: ", waiting without pause", False: ", waiting asleep", None: ""}[engine["spin_wait"]]
    mode = f"; power mode {engine['power_mode']}" if engine["power_mode"] else ""
    warning = f"; {engine['warning']}" if engine["warning"] else ""
    return f"run {launched}{waits}, with the copies from and to the host in the time{mode}{warning}"


def _leaving(leaving: Sequence[Mapping[str, Any]]) -> str:
    most = sorted(leaving, key=lambda left: -left["times"])
    named = [f"{left['operator']} ×{left['times']} ({left['reason']})" for left in most[:MAX_LEAVING]]
    return ", ".join(named) + (f" and {len(most) - MAX_LEAVING} more" if len(most) > MAX_LEAVING else "")


def rewrites(row: Mapping[str, Any]) -> str | None:
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


def graphs(row: Mapping[str, Any]) -> str:
    """Of a network that is several graphs: the file of each, and what its calls take in the decoding that is timed."""
    files = []
    for name, graph in row["graphs"].items():
        count = f"{graph['calls']} call{'s' if graph['calls'] != 1 else ''}"
        calls = f", {count} of {milliseconds(graph['latency_ms'])}" if graph["latency_ms"] else ""
        files.append(f"{name} {size(graph['size_bytes'])}{calls}")
    whole = "; the latency is that of all calls together" if row["latency_ms"] else ""
    return f"{'; '.join(files)}{whole}"


def decoding(row: Mapping[str, Any]) -> str:
    """As `graphs`, of a device's row, and what follows from it, such as tokens a second."""
    return "; ".join([graphs(row), *(f"{figure(value)} {name}" for name, value in row["figures"].items())])


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


def conditions(environment: Mapping[str, Any]) -> str:
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


def clocks(clocks_khz: Mapping[str, int]) -> str:
    """Such as "4 × 1.80, 2 × 2.35, 2 × 2.85 GHz"."""
    clocks = sorted(clocks_khz.values())
    cores = [f"{clocks.count(clock)} × {clock / 1e6:.2f}" for clock in dict.fromkeys(clocks)]
    return f"{', '.join(cores)} GHz" if cores else ""


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
