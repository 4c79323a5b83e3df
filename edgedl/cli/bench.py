"""`edgedl bench`: measure any exported file, with or without a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def bench(
    files: Annotated[list[Path], typer.Argument(help="Files to measure: .onnx, .tflite, .engine, .plan, .rtx.")],
    vs: Annotated[Path | None, typer.Option(help="A file to measure in turn with each, for a verdict.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Score the files over the test set of this recipe's task.")] = None,
    target: Annotated[str | None, typer.Option(help="Open with this target instead of the one for the ending.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a CPU runtime.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="How long each file is measured.")] = 3.0,
    operators: Annotated[bool, typer.Option("--operators", help="Also time each operator.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure exported files: latency, size and, with a recipe, the score."""
    from edgedl import benching, progress
    from edgedl import recipe as recipes
    from edgedl.cli.show import print_json
    from edgedl.report import terminal

    task = recipes.load(recipe).task if recipe else None
    # What runtimes say while they load is no measurement.
    with progress.display(), progress.diverted(Path(os.devnull)):
        rows = benching.bench(files, vs, task, target, threads, seconds, operators)
    if as_json:
        print_json(rows)
    else:
        terminal.print_bench(rows)
