"""`edgedl bench`: measure any exported file, with or without a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def bench(
    files: Annotated[
        list[Path], typer.Argument(help="Files to measure: .onnx, .tflite, .engine, .plan, .rtx; with --on, a run.")
    ],
    vs: Annotated[Path | None, typer.Option(help="A file to measure in turn with each, for a verdict.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Score the files over the test set of this recipe's task.")] = None,
    target: Annotated[str | None, typer.Option(help="Open with this target instead of the one for the ending.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a CPU runtime.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="How long each file is measured.")] = 3.0,
    operators: Annotated[bool, typer.Option("--operators", help="Also time each operator.")] = False,
    on: Annotated[
        list[str] | None,
        typer.Option(help="Run a run's files on a device, as `edgedl devices` calls it; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run folders are, for --on.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure exported files: latency, size and, with a recipe, the score."""
    from edgedl import benching, progress
    from edgedl import recipe as recipes
    from edgedl.cli.show import print_json
    from edgedl.report import terminal

    if on:
        _on_devices(files, on, out, seconds, as_json, given=bool(vs or recipe or target or operators or threads > 1))
        return

    task = recipes.load(recipe).task if recipe else None
    # What runtimes say while they load is no measurement.
    with progress.display(), progress.diverted(Path(os.devnull)):
        rows = benching.bench(files, vs, task, target, threads, seconds, operators)
    if as_json:
        print_json(rows)
    else:
        terminal.print_bench(rows)


def _on_devices(runs: list[Path], on: list[str], out: Path, seconds: float, as_json: bool, given: bool) -> None:
    """A run's files on one device after another."""
    from edgedl import devices, on_device, progress
    from edgedl.cli.show import print_json
    from edgedl.core import MissingPackage, UsageError
    from edgedl.report import page, terminal
    from edgedl.run import find_finished, read_report

    if len(runs) > 1 or given:
        raise UsageError("--on takes one run, and --seconds, --out and --json: the rest is the run's")
    for where in on:
        devices.check(where)
    folder = find_finished(str(runs[0]), out)
    with progress.display(), progress.diverted(Path(os.devnull)):
        found = [on_device.bench(folder, where, seconds) for where in on]
    try:
        shown = f"report: {page.write_page(read_report(folder), folder)}"
    except MissingPackage as error:
        shown = f"report: {folder / 'devices'} (no HTML page: {error})"
    if as_json:
        print_json(found)
    else:
        terminal.print_devices(found)
        typer.echo(shown)
