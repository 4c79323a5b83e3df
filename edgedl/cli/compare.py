"""`edgedl compare`: files of several runs side by side, and which of them to ship."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

MISSED = 1


class Format(str, Enum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    markdown = "markdown"
    json = "json"


def compare(
    runs: Annotated[list[str], typer.Argument(help="Run folders, or recipes' names for their latest runs.")],
    pick: Annotated[
        str | None,
        typer.Option(
            help='Name the file to ship within limits such as "latency<5ms, score>=0.97, size<200kB": of latency, '
            "score, drop, size, speedup, energy. What no limit is on decides, score before latency before size. "
            "Exit with 1 and the nearest file if none meets them."
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Only files of this target; may be given several times.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Only files that ran on a device with this in its name; may be given several times."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where run folders are.")] = Path("runs"),
    form: Annotated[Format | None, typer.Option("--format", help="How to print; by default as a table.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page that works offline.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Put the files of several runs side by side, and mark those that no other beats: the Pareto front."""
    from edgedl import comparison, picking
    from edgedl.cli.show import print_json
    from edgedl.core import UsageError
    from edgedl.report import compared, side_by_side

    if as_json and form not in (None, Format.json):
        raise UsageError(f"--json and --format {form.value} are two ways to print: give one of them")
    limits = picking.parse(pick) if pick is not None else []
    files = comparison.only(comparison.read(runs, out), target or [], device or [])
    groups = comparison.groups(files)
    picks: list[picking.Pick] = []
    if limits:
        picking.check(limits, groups)
        picks = [picking.pick(group, limits) for group in groups if group.device is not None]
    if html is not None:
        compared.write_page(groups, picks, html)
    rows = comparison.as_rows(groups, files)
    if limits:
        rows = picking.marked(rows, files, limits, picks)
    chosen = Format.json if as_json else form or Format.table
    if chosen is Format.json:
        print_json(rows)
    elif chosen is Format.csv:
        typer.echo(side_by_side.as_csv(rows, files), nl=False)
    elif chosen is Format.markdown:
        typer.echo(side_by_side.as_markdown(groups))
    else:
        side_by_side.print_tables(groups)
    aside = chosen is not Format.table  # what is piped is rows alone
    for said in map(side_by_side.in_words, picks):
        typer.echo(said, err=aside)
    if limits and not picks:
        typer.echo("none to ship: no file of these runs was measured", err=aside)
    if html is not None:
        typer.echo(f"page: {html}", err=aside)
    if limits and not (picks and all(found.is_met for found in picks)):
        raise typer.Exit(MISSED)
