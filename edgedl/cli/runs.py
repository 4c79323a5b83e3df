"""`edgedl runs`: what was run, and what room it takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List runs, and delete those that are not needed.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", help="Where run folders are.")]


@app.command("list")
def list_runs(
    out: Out = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List all runs: how far each came, its size, and how many of its steps another run has, too."""
    from edgedl import housekeeping
    from edgedl.cli.show import print_json
    from edgedl.report import terminal

    rows = housekeeping.as_rows(housekeeping.runs(out))
    if as_json:
        print_json(rows)
    else:
        terminal.print_runs(rows)


@app.command()
def clean(
    interrupted: Annotated[
        bool, typer.Option("--interrupted", help="Only interrupted ones, as without any of these conditions.")
    ] = False,
    keep: Annotated[int | None, typer.Option(min=0, help="All but so many of each recipe, the newest.")] = None,
    older: Annotated[
        str | None, typer.Option(help="Only those begun longer ago than that, such as 12h or 30d.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    out: Out = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Delete runs that meet all conditions given; never one under way, nor one that another takes a teacher from."""
    from edgedl import housekeeping
    from edgedl.cli.show import print_json
    from edgedl.core import UsageError
    from edgedl.report import numbers, terminal

    only = interrupted or (keep is None and older is None)
    found = housekeeping.runs(out)
    choice = housekeeping.Choice(only, keep, None if older is None else housekeeping.age(older))
    going = choice.of(found)
    rows = [row for row in housekeeping.as_rows(found) if row["run"] in {str(run.folder) for run in going}]
    if not as_json:
        terminal.print_runs(rows)
    if going and not (dry_run or yes):
        if not sys.stdin.isatty():
            raise UsageError(f"{len(going)} runs would be deleted: say --yes, or --dry-run to see which")
        typer.confirm(f"Delete {len(going)} runs, {numbers.size(sum(run.size_bytes for run in going))}?", abort=True)
    deleted = [] if dry_run else [str(run.folder) for run in going if housekeeping.remove(run)]
    freed = sum(row["size_bytes"] for row in rows if row["run"] in deleted)
    if as_json:
        print_json([row | {"deleted": row["run"] in deleted} for row in rows])
    elif deleted:
        typer.echo(f"deleted: {len(deleted)} runs, {numbers.size(freed)}")
