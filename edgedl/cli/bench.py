"""`edgedl bench`: measure any exported file, with or without a run."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edgedl.cli.show import JsonLines, Quiet

MOST = 65536
"""Of a batch's samples, or of threads."""


def bench(
    files: Annotated[
        list[Path], typer.Argument(help="Files to measure: .onnx, .tflite, .engine, .plan, .rtx; or a run.")
    ],
    vs: Annotated[Path | None, typer.Option(help="A file to measure in turn with each, for a verdict.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Score the files over the test set of this recipe's task.")] = None,
    target: Annotated[str | None, typer.Option(help="Open with this target instead of the one for the ending.")] = None,
    threads: Annotated[
        str, typer.Option(help="Threads of a CPU runtime; of several, as 1,2, the first for all but --batches.")
    ] = "1",
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="How long each file is measured.")] = 3.0,
    operators: Annotated[bool, typer.Option("--operators", help="Also time each operator.")] = False,
    batches: Annotated[
        str | None, typer.Option(help="Throughput at sizes of batch, as 1,2,4,8, and at all numbers of --threads.")
    ] = None,
    cold: Annotated[
        int, typer.Option(min=0, max=1000, help="Cold start: from process start to first answer, in so many processes.")
    ] = 0,
    sustained: Annotated[
        float, typer.Option(min=0, max=86400, help="Run for so many seconds, and compare the end with the beginning.")
    ] = 0.0,
    energy: Annotated[bool, typer.Option("--energy", help="Energy of one run, where a rail can be read.")] = False,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="With the recorded preprocessing, and the task's decision.")
    ] = False,
    on: Annotated[
        list[str] | None,
        typer.Option(help="Run a run's files on a device, as `edgedl devices` calls it; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run folders are, for --on.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Measure exported files: latency, size and, with a recipe, the score."""
    from edgedl import benching, progress
    from edgedl import recipe as recipes
    from edgedl.cli.show import check_one_form, print_json
    from edgedl.probes.loads import Asked
    from edgedl.report import answered, terminal

    check_one_form(as_json, json_lines)
    if math.isnan(sustained):
        raise typer.BadParameter("give a number of seconds", param_hint="--sustained")
    counts, sizes = _numbers(threads, "--threads"), _numbers(batches, "--batches") if batches else ()
    sweep = counts if sizes or len(counts) > 1 else ()
    asked = Asked(sizes, sweep, cold, sustained, energy, end_to_end)
    if not on and len(files) == 1 and _is_run(files[0], out):
        on = ["local"]
    if on:
        from edgedl.core import UsageError
        from edgedl.remote import on_device
        from edgedl.run import find_finished

        if len(files) > 1 or vs or recipe or target or operators or (counts != (1,) and not sweep):
            raise UsageError(
                "a run, as --on takes one, has task, files and threads itself: leave out --vs, --recipe, --target, "
                "--operators and --threads (but for --batches, or several)"
            )
        folder = find_finished(str(files[0]), out)
        with progress.display(quiet or json_lines), progress.diverted(Path(os.devnull)):
            found, failed = on_device.bench_all(folder, on, seconds, asked)
        if found:
            _show(folder, found, as_json, json_lines)
        if failed:
            raise type(failed[0])("; ".join(dict.fromkeys(map(str, failed))))
        progress.emit("finished", exit_status=0, folder=str(folder))
        return

    task = recipes.load(recipe).task if recipe else None
    # What runtimes say while they load is no measurement.
    with progress.display(quiet or json_lines), progress.diverted(Path(os.devnull)):
        rows = benching.bench(files, vs, task, target, counts[0], seconds, operators, asked)
    progress.emit("finished", exit_status=0)
    if as_json:
        print_json(rows)
    elif not json_lines:
        terminal.print_bench(rows)
        answered.show({row["file"]: row for row in rows})


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= MOST for part in parts):
        raise typer.BadParameter(f"{text!r}: give whole numbers from 1 to {MOST}, as 1,2,4", param_hint=option)
    return tuple(dict.fromkeys(map(int, parts)))


def _is_run(path: Path, out: Path) -> bool:
    """Whether a finished run is meant, by its folder or its recipe's name, and not a file."""
    return (path / "report.json").is_file() or (not path.exists() and not path.suffix and (out / path).is_dir())


def _show(folder: Path, found: list[dict[str, Any]], as_json: bool, json_lines: bool) -> None:
    from edgedl.cli.show import print_json
    from edgedl.core import MissingPackage
    from edgedl.report import answered, page, terminal
    from edgedl.run import read_report

    try:
        shown = f"report: {page.write_page(read_report(folder), folder)}"
    except MissingPackage as error:
        shown = f"report: {folder / 'devices'} (no HTML page: {error})"
    if as_json:
        print_json(found)
    elif not json_lines:
        terminal.print_devices(found)
        for device in found:
            answered.show({f"{row['variant']} on {row['target']}": row for row in device["rows"]})
        typer.echo(shown)
