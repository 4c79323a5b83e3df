"""`edgedl inspect`: what a file takes, and what a phone's GPU or a Jetson's DLA would leave out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    what: Annotated[str, typer.Argument(help="A .tflite, .onnx or engine file, a run, or a recipe for its latest.")],
    out: Annotated[Path, typer.Option("--out", help="Where run folders are.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what files take, and which operators accelerators would leave out, without a device."""
    import os

    from edgedl import inspecting, progress
    from edgedl.cli.show import print_json
    from edgedl.report import terminal

    with progress.diverted(Path(os.devnull)):
        rows = inspecting.inspect(what, out)
    if as_json:
        print_json(rows)
    else:
        terminal.print_inspected(rows)
