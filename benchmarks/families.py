"""Every shipped recipe from start to finish, each in a process of its own: what it costs, gains, and whether it ships.

    python -m benchmarks.families --recipes mlp-int8 mlp-regression

Nothing is taken from earlier runs: seconds are those of the whole way, training included. A recipe whose row is there
and whose file has not changed since is left as it is, so that a run that was interrupted goes on where it stopped.
After every recipe the rows, their table beside them, and docs/recipes.md are written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import catalogue, table
from benchmarks.rows import CACHE, Row, cpu_seconds, read, same_file, say, write
from edgedl import files
from edgedl import recipe as recipes
from edgedl.report import summary

RESULTS = Path(__file__).parent / "results" / "families.json"
MAX_SECONDS = 1800
"""For one recipe; `results/families.md` says what each took."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing or has failed; the results are written after every recipe."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--recipes", nargs="+", choices=recipes.names(), default=recipes.names(), metavar="RECIPE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=catalogue.DOCUMENT)
    parser.add_argument("--runs", type=Path, default=CACHE / "families", help="where run folders go")
    parser.add_argument("--limit", type=float, default=MAX_SECONDS, help="seconds for one recipe")
    parser.add_argument("--fresh", action="store_true", help="repeat what the results hold already")
    options = parser.parse_args(arguments)
    for name in options.recipes:
        rows = {row["recipe"]: row for row in read(options.results) if row["recipe"] in recipes.names()}
        if options.fresh or not is_done(rows.get(name)):
            say(f"{name} ...")
            rows[name] = measured(name, options.runs, options.limit)
            say(f"{name}: {rows[name].get('failed', 'done')}, {rows[name]['seconds']:.0f} s")
        write(options.results, [rows[name] for name in sorted(rows)])
        results = json.loads(options.results.read_text())
        options.results.with_suffix(".md").write_text(table.families(results), encoding="utf-8")
        options.document.write_text(catalogue.document(results), encoding="utf-8")


def is_done(row: Mapping[str, Any] | None) -> bool:
    """Whether a row holds figures of the recipe as it is now."""
    return row is not None and "failed" not in row and row["sha256"] == files.sha256(recipes.find(row["recipe"]))


def measured(name: str, runs: Path, limit: float) -> Row:
    """The row of one recipe; with `failed`, the reason, where there is no report."""
    call = [sys.executable, "-m", "edgedl.cli.main", "compress", "--recipe", name, "--fresh", "--json"]
    row: Row = {"recipe": name, "sha256": files.sha256(recipes.find(name))}
    started, before = time.monotonic(), cpu_seconds()
    with subprocess.Popen(
        [*call, "--out", str(runs)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            printed, said = process.communicate(timeout=limit)
            failed = None
        except subprocess.TimeoutExpired:
            failed = f"did not end within {limit:g} s"
        finally:
            if process.poll() is None:  # with whatever it has started
                os.killpg(process.pid, signal.SIGKILL)
    row |= {"seconds": time.monotonic() - started, "cpu_seconds": cpu_seconds() - before}
    if failed is None:
        try:
            return row | figures(json.loads(printed))
        except ValueError:  # no JSON, so no report
            failed = said.strip().splitlines()[-1] if said.strip() else f"ended with status {process.returncode}"
    return row | {"failed": failed}


def figures(report: Mapping[str, Any]) -> Row:
    """What is kept of a report: what it gains at best, and every target, by its file that was judged."""
    targets = []
    for verdict in report["verdicts"]:
        rows = [row for row in report["rows"] if row["target"] == verdict["target"]]
        judged = next((row for row in reversed(rows) if row["score"] is not None and row["variant"] != "float"), None)
        judged = judged or rows[-1]
        ladder = next((it for it in report["ladder"] if same_file(it, judged)), None)
        floats = [row for row in rows if row["variant"] == "float" and row["score"] is not None]
        targets.append(
            {
                "target": verdict["target"],
                "variant": judged["variant"],
                "precision": judged["precision"],
                "status": judged["status"],
                "float": floats[0]["score"] if floats else None,
                "score": judged["score"],
                "figures": {"float": floats[0]["figures"] if floats else {}, "judged": judged["figures"]},
                "drop": verdict["score_drop"],
                "size_ratio": verdict["size_ratio"],
                "speedup": verdict["speedup"],
                "agreement": ladder["agreement"] if ladder else None,
                "ship": verdict["ship"],
                "why": verdict["why"],
            }
        )
    return {
        "metric": report["metric"],
        "baseline": report["baseline"],
        "parameters": report["parameters"],
        "gains": summary.gains(report),
        "warnings": report["warnings"],
        "targets": targets,
    }


if __name__ == "__main__":
    main()
