"""`edgedl report` and `edgedl compare`: look at finished runs again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[Path, typer.Option("--out", help="Where run folders are.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def report(
    run: Annotated[str, typer.Argument(help="A run folder, or a recipe's name for its latest run.")],
    out: Root = Path("runs"),
    as_json: Json = False,
) -> None:
    """Show a finished run, and write its HTML page again."""
    from edgedl.cli.show import print_json
    from edgedl.core import MissingPackage
    from edgedl.report import page, terminal
    from edgedl.run import find_finished, read_report

    folder = find_finished(run, out)
    content = read_report(folder)
    if as_json:
        print_json(content)
        return
    terminal.print_report(content)
    try:
        typer.echo(f"report: {page.write_page(content, folder)}")
    except MissingPackage as error:
        typer.echo(f"report: {folder / 'report.json'} (no HTML page: {error})")


def compare(
    runs: Annotated[list[str], typer.Argument(help="Run folders, or recipes' names for their latest runs.")],
    out: Root = Path("runs"),
    as_json: Json = False,
) -> None:
    """Put the rows of several runs side by side."""
    from edgedl.cli.show import print_json
    from edgedl.report import terminal
    from edgedl.run import find_finished, read_report

    folders = [find_finished(name, out) for name in runs]
    found = {str(folder): read_report(folder) for folder in folders}
    if as_json:
        print_json([{"run": name, **row} for name, content in found.items() for row in content["rows"]])
    else:
        terminal.print_comparison(found)
