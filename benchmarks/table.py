"""The Markdown tables of the results: `python -m benchmarks.table` writes each beside its file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.rows import Row, measured_on
from edgedl import ladder
from edgedl.report import words

RESULTS = Path(__file__).parent / "results"
OURS = "edgedl"
RUNTIMES = ("tflite", "onnxruntime")
NONE = "–"


def main() -> None:
    """Reads what results there are, writes their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder")
    folder = parser.parse_args().results
    for name, written in WRITTEN.items():
        if (file := folder / f"{name}.json").exists():
            file.with_suffix(".md").write_text(written(json.loads(file.read_text())))


FAMILIES = ("recipe", "target", "file", "metric", "baseline", "float", "compressed", "drop", "smaller", "speed-up",
            "repeats its simulation", "ships")  # fmt: skip


def families(results: dict[str, Any]) -> str:
    """A line for every recipe and target, what does not ship and why, and what each recipe took."""
    rows: list[Row] = results["rows"]
    done = [row for row in rows if "failed" not in row]
    device = measured_on(results, "recipe")
    about = (
        f"Measured on {device}, one thread, batches of one, each recipe in a process of its own, "
        "nothing taken from earlier runs. Scores are of the exported files over the whole test set; of TensorRT's, "
        "which are built but cannot run there, onnxruntime scores the very ONNX file that the engine is made of. Drop: "
        "in the metric's unit, and as a share of the float score. Baseline: the score of an answer that takes no "
        "network, such as always the commonest class. Written by `benchmarks/families.py`."
    )
    measured = [[row["recipe"], *cells] for row in done for cells in of_family(row)]
    lines = ["# Every recipe, from start to finish", "", about, "", *as_table(FAMILIES, measured)]
    refusals = [f"- {row['recipe']}, {reason}" for row in done for reason in unshipped(row)]
    if refusals:
        lines += ["", "## What does not ship, and why", "", *refusals]
    costs = [[row["recipe"], f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}"] for row in rows]
    lines += ["", "## What it takes", "", *as_table(("recipe", "s", "CPU s"), costs)]
    if failed := [f"- {row['recipe']}: {row['failed']}" for row in rows if "failed" in row]:
        lines += ["", "## Failed", "", *failed]
    return "\n".join(lines) + "\n"


def of_family(row: Row) -> list[list[str]]:
    """What is said of every target of one recipe."""
    return [[found["target"], *_family(found, row)] for found in row["targets"]]


def unshipped(row: Row) -> list[str]:
    """Why targets ship float or nothing; the device has to judge where a file cannot run."""
    kept = [found for found in row["targets"] if found["ship"] in ("float", "none") and found["variant"] != "float"]
    return [f"{found['target']} ships {found['ship']}: {found['why']}" for found in kept]


def _family(found: Row, row: Row) -> list[str]:
    baseline, drop, speedup, agreement = row["baseline"], found["drop"], found["speedup"], found["agreement"]
    share = f" ({drop / abs(found['float']):+.2%})" if drop is not None and found["float"] else ""
    built = "" if found["status"] == "ok" else f", {found['status']}"
    return [
        f"{found['variant']}, {found['precision']}{built}",
        row["metric"]["name"],
        NONE if baseline is None else f"{baseline['score']:.4f}",
        NONE if found["float"] is None else f"{found['float']:.4f}",
        NONE if found["variant"] == "float" or found["score"] is None else f"{found['score']:.4f}",
        NONE if drop is None else f"{drop:+.4f}{share}",
        NONE if found["size_ratio"] is None else f"{found['size_ratio']:.2f}×",
        NONE if speedup is None else f"{speedup['median']:.2f}× {speedup['verdict']}",
        NONE if agreement is None else words.agreement(agreement),
        found["ship"],
    ]


STAGES = {"int8": "int8", "half": "cut by half, int8"}
SURVIVED = ("architecture", "kind", "stage", "target", "ships", "speed-up", "smaller", "score, float", "score",
            "int8 to float, dB", "int8 to its simulation", "simulation to float, dB")  # fmt: skip


def zoo(results: dict[str, Any]) -> str:
    """A line for every architecture, stage and target, and what failed and why."""
    rows: list[Row] = results["rows"]
    ended = [found for row in rows for found in row["stages"].values()]
    targets = [target for found in ended for target in found.get("targets", ())]
    shipped = [target["speedup"]["median"] for target in targets if target["ship"] in _variants(target)]
    whole = sum(all(map(_is_through, row["stages"].values())) for row in rows)
    exact = [
        found["first_divergence"] is None and found["agreement"]["sqnr_db"] >= ladder.ROUNDING_DB
        for target in targets
        if target["target"] in RUNTIMES and (found := _static(target))
    ]
    device = measured_on(results, "architecture")
    about = (
        f"{len(rows)} architectures of `transformers`, small and trained for seconds on made-up tasks, so that nothing "
        f"is downloaded: {whole} go through every stage to files of every target. "
        f"{_tried(rows)}{_pace(shipped)}{sum(exact)} of {len(exact)} "
        "static int8 files for LiteRT and onnxruntime repeat every int8 value of their simulation. dB: static int8 "
        "over the whole test split, against the float network that was quantized; of TensorRT-RTX's, onnxruntime "
        "answers by the file that the engine is made "
        f"of. Measured on {device}, one thread, batches of one. Written by `benchmarks/zoo.py`."
    )
    lines = ["# What public architectures survive", "", about, ""]
    cells = [
        [row["architecture"], row["kind"], STAGES[stage], target["target"], *_survived(target)]
        for row in rows
        for stage, found in row["stages"].items()
        for target in found.get("targets", ())
    ]
    lines += as_table(SURVIVED, cells)
    failed = [
        f"- {row['architecture']}, {STAGES[stage]}: {found['failed']}"
        for row in rows
        for stage, found in row["stages"].items()
        if "failed" in found
    ]
    refused = [
        f"- {row['architecture']}, {STAGES[stage]}, {target['target']}, {file['variant']}: {file['reason']}"
        for row in rows
        for stage, found in row["stages"].items()
        for target in found.get("targets", ())
        for file in target["files"]
        if file["status"] in ("failed", "refused")
    ]
    parted = [
        f"- {row['architecture']}, {STAGES[stage]}, {target['target']}: {_parting(found)}"
        for row in rows
        for stage, ended in row["stages"].items()
        for target in ended.get("targets", ())
        if (found := _static(target)) and found["first_divergence"]
    ]
    for title, said in (
        ("Failed", failed),
        ("Files that are refused, and why", refused),
        ("Where static int8 first differs from its simulation", parted),
    ):
        lines += ["", f"## {title}", "", *said] if said else []
    return "\n".join([*lines, *_beside([row for row in rows if "peer" in row])]) + "\n"


def _beside(rows: Sequence[Row]) -> list[str]:
    """What AI Edge Quantizer makes of the same networks."""
    if not rows:
        return []
    header = ["architecture", "edgedl static", "AI Edge static", "AI Edge dynamic", "edgedl ships", "that is"]
    lines, pairs = [], []
    for row in rows:
        files = {Path(found["file"]).stem: found for found in row["peer"]}
        ours = files.get("int8") or files.get("compressed", {})
        theirs = [files[name] for name in ("static-minmax", "static-extremes")]
        best = max(theirs, key=lambda found: found.get("snr_db", float("-inf")))
        ships = next((name for name, found in files.items() if found.get("ships")), "float")
        if "snr_db" in ours and "snr_db" in best:
            pairs.append((ours, best))
        cells = [_noise_and_pace(found) for found in (ours, best, files["dynamic"], files[ships])]
        lines.append([row["architecture"], *cells, ships])
    noise, pace = ([[found[key] for found in pair] for pair in pairs] for key in ("snr_db", "speedup"))
    about = (
        "The same trained networks on LiteRT, timed in turn; dB against the float network over the whole test split, "
        "speed over edgedl's float file. Of AI Edge Quantizer's two static files the one with more dB: as the tool "
        "comes, or with the extremes of all samples for its ranges."
    )
    if pairs:
        more = sum(own >= other for own, other in noise)
        medians = [f"{median(found):.1f} dB" for found in zip(*noise, strict=True)]
        paces = [f"{median(found['median'] for found in both):.2f}×" for both in zip(*pace, strict=True)]
        about += (
            f" Static int8: edgedl's has as many dB or more on {more} of {len(pairs)}; in the median {medians[0]} and "
            f"{paces[0]} against {medians[1]} and {paces[1]}."
        )
    return ["", "## Beside AI Edge Quantizer", "", about, "", *as_table(header, lines)]


def _noise_and_pace(found: Row) -> str:
    if "failed" in found:
        return f"failed: {found['failed'][:80]}"
    return f"{found['snr_db']:.1f} dB, {found['speedup']['median']:.2f}×" if found else NONE


def _tried(rows: Sequence[Row]) -> str:
    """What int8 could be, where that was not all that edgedl has."""
    plain = [row["architecture"] for row in rows if row["method"] == "ptq"]
    return (
        f"Of {'all' if len(plain) == len(rows) else ', '.join(plain)} plain static int8 alone was tried. "
        if plain
        else ""
    )


def _pace(shipped: Sequence[float]) -> str:
    """How fast what ships is, if anything does."""
    if not shipped:
        return ""
    return (
        f"What ships is {median(shipped):.2f}× as fast as the fastest float file in the median, and "
        f"{min(shipped):.2f}× at least. "
    )


def _is_through(stage: Row) -> bool:
    """Whether every target has a compressed file that was built, run, and held against what it was exported from."""
    return "failed" not in stage and all(map(_variants, stage["targets"]))


def _variants(target: Row) -> list[str]:
    """The compressed files that run here."""
    return [found["variant"] for found in target["files"] if found["variant"] != "float" and "agreement" in found]


def _static(target: Row) -> Row | None:
    """The file in static int8, if there is one."""
    return next((found for found in target["files"] if found["precision"] == "int8" and "agreement" in found), None)


def _survived(target: Row) -> list[str]:
    ships, speedup, static = target["ship"], target["speedup"], _static(target)
    float_file = next((found for found in target["files"] if found["variant"] == "float"), None)
    shipped = next((found for found in target["files"] if found["variant"] == ships), None)
    return [
        ships,
        NONE if speedup is None else f"{speedup['median']:.2f}×",
        NONE if target["size_ratio"] is None else f"{target['size_ratio']:.2f}×",
        NONE if float_file is None or float_file["score"] is None else f"{float_file['score']:.3f}",
        NONE if shipped is None or shipped["score"] is None else f"{shipped['score']:.3f}",
        NONE if static is None else f"{static['snr_db']:.1f}",
        NONE if static is None else words.agreement(static["agreement"]),
        NONE if static is None else f"{static['quantization']['sqnr_db']:.1f}",
    ]


def _parting(found: Row) -> str:
    parting = found["first_divergence"]
    steps = "" if parting["max_steps"] is None else f" by up to {parting['max_steps']} steps"
    return f"layer {parting['layer'] or 'none'}{steps}, tensor {parting['deployed_tensor']}"


def markdown(results: dict[str, Any]) -> str:
    """First static int8 at a glance, then every file of every network."""
    rows: list[Row] = results["rows"]
    networks = _unique(row["network"] for row in rows)
    device = measured_on(results, "network")
    lines = [
        "# Quantization: edgedl against the specialists",
        "",
        f"Measured on {device}, one thread, batches of one; seeds {_seeds(rows)}: means over "
        "them, medians for times. Written by `benchmarks/table.py`.",
        "",
        "## Static int8 at a glance",
        "",
        "dB: outputs against the float network's over the whole test split; s: from the trained PyTorch network to the "
        "file; each tool by the static setting with the most dB. A tool that leaves layers in float has more dB, and a "
        "larger or slower file, which the tables below show; edgedl does that by form mixed, here with the two blocks "
        "in float that int8 harms most.",
        "",
        *as_table(
            GLANCE, [line for network in networks for runtime in RUNTIMES if (line := _glance(rows, network, runtime))]
        ),
    ]
    for network in networks:
        own = [row for row in rows if row["network"] == network]
        lines += ["", f"## {network}", "", _about(own), ""]
        for runtime in RUNTIMES:
            there = [row for row in own if row.get("runtime") == runtime]
            if there:
                lines += [*as_table(["runtime", "tool", "file", *COLUMNS], _details(there, runtime)), ""]
        lines += [f"- {line}" for line in _failures(own)]
    return "\n".join(lines).rstrip() + "\n"


def pruning(results: dict[str, Any]) -> str:
    """One table: every method at every goal."""
    rows: list[Row] = results["rows"]
    lines = []
    for network, share, method in dict.fromkeys((row["network"], row["share"], row["method"]) for row in rows):
        done = [row for row in rows if (row["network"], row["share"], row["method"]) == (network, share, method)]
        figures = [
            f"{_mean(done, 'macs'):.1%}",
            f"{_mean(done, 'parameters') / 1e3:.1f}",
            _spread([row["score"] for row in done], 4),
            *(f"{median(row[f'{runtime}_speedup'] for row in done):.2f}×" for runtime in RUNTIMES),
            f"{median(row['seconds'] for row in done):.0f}",
        ]
        lines.append([network, f"{share:.0%}", method, *figures])
    header = [
        "network",
        "goal",
        "method",
        "MACs",
        "1,000 parameters",
        "score",
        *(f"{it} speed-up" for it in RUNTIMES),
        "s",
    ]
    device = measured_on(results, "network")
    about = (
        f"Measured on {device}, one thread, batches of one; seeds {_seeds(rows)}: means over them, "
        "medians for times. Speed-ups of float files over the whole network's; s: pruning and training."
    )
    return "\n".join(["# Pruning: edgedl against torch-pruning", "", about, "", *as_table(header, lines)]) + "\n"


def auto(results: dict[str, Any]) -> str:
    """A line for every network and runtime, of one seed each."""
    worth = ["score", "dB", "kB", "speed-up"]
    header = ["network", "seed", "runtime", "auto ships", *worth, "by hand", *worth]
    lines = []
    for row in results["rows"]:
        cells = [row["network"], str(row["seed"]), row["runtime"], row["auto"]["variant"], *_worth(row["auto"])]
        peer = row.get("peer")
        lines.append([*cells, Path(peer["file"]).stem if peer else NONE, *(_worth(peer) if peer else [NONE] * 4)])
    device = measured_on(results, "network")
    about = (
        f"Measured on {device}, one thread, batches of one. By hand: of all files of AI Edge "
        "Quantizer the fastest whose test score is within the limit, timed in turn with what `auto` ships; that "
        "was chosen without test samples. Speed-ups, with 95 % intervals, are over edgedl's float file; what would be "
        f"slower is not shipped. {_against_hand(results['rows'])}"
    )
    return "\n".join(["# Method auto: what is shipped", "", about, "", *as_table(header, lines)]) + "\n"


def _against_hand(rows: Sequence[Row]) -> str:
    """How often what ships is faster, slower or nearer to float than the peer's best file, where both are known."""
    pairs = [(row["auto"], row["peer"]) for row in rows if row.get("peer")]
    paces = [(_interval(ours), _interval(peer)) for ours, peer in pairs]
    faster = sum(low > highest for (low, _), (_, highest) in paces)
    slower = sum(high < lowest for (_, high), (lowest, _) in paces)
    nearer = sum(ours["snr_db"] >= peer["snr_db"] for ours, peer in pairs)
    return (
        f"Of {len(pairs)} such pairs what `auto` ships is faster in {faster} and slower in {slower} by intervals "
        f"that do not meet, and has as many dB or more in {nearer}."
    )


def _interval(row: Row) -> tuple[float, float]:
    low, high = row["speedup"]["ci95"] if row["speedup"] else (1.0, 1.0)
    return low, high


def _worth(row: Row) -> list[str]:
    noise = f"{row['snr_db']:.1f}" if "snr_db" in row else NONE
    low, high = _interval(row)
    speedup = f"{row['speedup']['median']:.2f}× ({low:.2f} to {high:.2f})" if row["speedup"] else "1.00×"
    return [f"{row['score']:.4f}", noise, f"{row['size_bytes'] / 1e3:.0f}", speedup]


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(map(str, sorted({row["seed"] for row in rows})))


GLANCE = ("network", "runtime", "edgedl dB", "that is", "best peer dB", "that is", "median peer dB", "edgedl s",
          "median peer s", "edgedl mixed dB", "that is")  # fmt: skip


def _glance(rows: Sequence[Row], network: str, runtime: str) -> list[str] | None:
    """Each tool by its best static setting; None where no static file was asked for."""
    static = [
        row for row in rows if row["network"] == network and row.get("runtime") == runtime and row["kind"] == "static"
    ]
    if not static:
        return None
    best: dict[str, tuple[float, float, str]] = {}
    for peer in _unique(row["peer"] for row in static):
        for file in _unique(row["file"] for row in static if row["peer"] == peer):
            done = _of(static, peer, file)
            if not any("failed" in row for row in done):
                named = Path(file).stem if peer == OURS else f"{peer} {Path(file).stem}"
                what = f"{named}, {COLUMNS['speed-up'](done)}, {COLUMNS['kB'](done)} kB"
                worth = _mean(done, "snr_db"), median(map(_seconds, done)), what
                best[peer] = max(best.get(peer, worth), worth)
    ours = best.pop(OURS, None)
    noises, seconds = [worth[0] for worth in best.values()], [worth[1] for worth in best.values()]
    return [
        network,
        runtime,
        f"{ours[0]:.1f}" if ours else "failed",
        ours[2] if ours else NONE,
        f"{max(noises):.1f}" if best else NONE,
        max(best.values())[2] if best else NONE,
        f"{median(noises):.1f}" if best else NONE,
        f"{ours[1]:.1f}" if ours else NONE,
        f"{median(seconds):.1f}" if best else NONE,
        *_mixed([row for row in rows if row["network"] == network and row.get("runtime") == runtime]),
    ]


def _mixed(rows: Sequence[Row]) -> list[str]:
    """With the blocks in float that int8 harms most: dB, and what that costs."""
    done = [row for row in rows if row["peer"] == OURS and row["kind"] == "mixed" and "failed" not in row]
    if not done:
        return [NONE, NONE]
    return [f"{_mean(done, 'snr_db'):.1f}", f"{COLUMNS['speed-up'](done)}, {COLUMNS['kB'](done)} kB"]


COLUMNS: dict[str, Callable[[Sequence[Row]], str]] = {
    "score": lambda done: f"{_mean(done, 'score'):.4f}",
    "dB": lambda done: _spread([row["snr_db"] for row in done]),
    "speed-up": lambda done: f"{median(row['speedup']['median'] for row in done):.2f}×",
    "kB": lambda done: f"{_mean(done, 'size_bytes') / 1e3:.0f}",
    "s": lambda done: f"{median(map(_seconds, done)):.1f}",
}
"""What is said of one file over all seeds at which it was made."""


def _details(rows: Sequence[Row], runtime: str) -> list[list[str]]:
    lines = []
    for peer in _unique(row["peer"] for row in rows):
        for file in _unique(row["file"] for row in rows if row["peer"] == peer):
            found = _of(rows, peer, file)
            done = [row for row in found if "failed" not in row]
            figures = [column(done) if done else NONE for column in COLUMNS.values()]
            failed = f" (failed {len(found) - len(done)} of {len(found)})" if len(done) < len(found) else ""
            lines.append([runtime, peer, Path(file).stem + failed, *figures])
    return lines


def _failures(rows: Sequence[Row]) -> list[str]:
    """One line for every reason."""
    said = (f"{row['peer']} {row['file']}: {row['failed']}" for row in rows if "failed" in row)
    return _unique(said)


def _about(rows: Sequence[Row]) -> str:
    references = {row["seed"]: row["reference_score"] for row in rows}
    return f"Score: {rows[0]['metric']}; the float network in PyTorch: {mean(references.values()):.4f}."


def _of(rows: Sequence[Row], peer: str, file: str) -> list[Row]:
    return [row for row in rows if (row["peer"], row["file"]) == (peer, file)]


def _seconds(row: Row) -> float:
    """From the trained PyTorch network to the file, the float file that a tool starts from included."""
    return float(row["seconds"] + row.get("export_seconds", 0.0))


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(mean(row[key] for row in rows))


def _spread(values: Sequence[float], digits: int = 1) -> str:
    ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{ends}"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def as_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line."""
    rule = ["---"] * len(header)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *lines)]


WRITTEN = {"quantization": markdown, "pruning": pruning, "auto": auto, "families": families, "zoo": zoo}
"""What is written of each results file."""


if __name__ == "__main__":
    main()
