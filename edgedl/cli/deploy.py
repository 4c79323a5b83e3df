"""`edgedl deploy`: leave a file of a run on a device, with an example that runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgedl.cli.show import Quiet


def deploy(
    run: Annotated[str, typer.Argument(help="A run's folder, or a recipe's name for its latest.")],
    on: Annotated[str, typer.Option(help="The device, as for bench.")],
    target: Annotated[str | None, typer.Option(help="Of which target the file is.")] = None,
    variant: Annotated[str | None, typer.Option(help="Which file, instead of the best.")] = None,
    to: Annotated[str | None, typer.Option(help="The folder there; local needs it.")] = None,
    out: Annotated[Path, typer.Option(help="Where run folders are.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")] = False,
    quiet: Quiet = False,
) -> None:
    """Leave a file of a finished run on a device, with its passport, an example, and checksums."""
    from edgedl import devices, progress
    from edgedl.cli.show import print_json
    from edgedl.remote import deploying
    from edgedl.run import find_finished

    devices.check(on)
    folder = find_finished(run, out)
    with progress.display(quiet), progress.diverted(Path(os.devnull)):
        found = deploying.deploy(folder, on, target, variant, to)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['variant']} for {found['target']} lies on {found['device']} in {found['folder']}")
    typer.echo(f"run it: {found['command']}")
