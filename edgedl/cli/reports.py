"""`edgedl report`: look at a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="A run folder, or a recipe's name for its latest run.")],
    out: Annotated[Path, typer.Option("--out", help="Where run folders are.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show a finished run, and write its HTML page again."""
    from rich.errors import ConsoleError

    from edgedl.cli.show import print_json
    from edgedl.core import MissingPackage
    from edgedl.report import page, terminal
    from edgedl.run import find_finished, looked_into, read_devices, read_report

    folder = find_finished(run, out)
    content = read_report(folder)
    if as_json:
        print_json(content)
        return
    with looked_into(folder, ConsoleError):
        terminal.print_report(content)
        terminal.print_devices(read_devices(folder))
    try:
        with looked_into(folder):
            typer.echo(f"report: {page.write_page(content, folder)}")
    except MissingPackage as error:
        typer.echo(f"report: {folder / 'report.json'} (no HTML page: {error})")
