"""`edgedl compress`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

REFUSED = 3
FAILED = 1


def compress(
    recipe: Annotated[str, typer.Option(help="A recipe's name (edgedl recipes list) or a TOML file.")],
    out: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Take no finished step from earlier runs.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a target keeps float because files were refused.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")] = False,
) -> None:
    """Train, compress, export, measure and judge, as a recipe says."""
    from edgedl import plugins, progress
    from edgedl import recipe as recipes
    from edgedl.cli.show import print_json
    from edgedl.core import MissingPackage

    wanted = recipes.load(recipe)
    plugins.require(wanted.targets)  # before the imports below, which need torch
    from edgedl import pipeline
    from edgedl.report import page, terminal
    from edgedl.run import read_report

    try:
        with progress.display():
            run = pipeline.compress(wanted, recipes.find(recipe).read_text(encoding="utf-8"), out, fresh=fresh)
    except OSError as error:
        error.filename = error.filename or str(out)  # a full disk does not say which it is
        raise
    report = read_report(run.folder)
    try:
        shown = f"report: {page.write_page(report, run.folder)}"
    except MissingPackage as error:
        shown = f"report: {run.report} (no HTML page: {error})"
    if as_json:
        print_json(report)
    else:
        terminal.print_report(report)
        typer.echo(shown)
    statuses = {row["status"] for row in report["rows"]}
    if "failed" in statuses:
        raise typer.Exit(FAILED)
    kept_float = {verdict["target"] for verdict in report["verdicts"] if verdict["ship"] in ("float", "none")}
    if strict and any(row["status"] == "refused" and row["target"] in kept_float for row in report["rows"]):
        raise typer.Exit(REFUSED)
