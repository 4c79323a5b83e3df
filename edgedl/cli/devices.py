"""`edgedl devices`: what makes devices that files can be measured on."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Devices that `bench --on` measures on.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `setup` a command of its own as long as it is the only one."""


@app.command()
def setup(kind: Annotated[str, typer.Argument(help="Which: qemu-aarch64.")]) -> None:
    """Fetch what an emulated device needs into a cache folder; nothing is installed on this machine."""
    from edgedl.core import UsageError
    from edgedl.devices import qemu_aarch64

    if kind != "qemu-aarch64":
        raise UsageError(f"nothing is to be set up for {kind!r}, only for qemu-aarch64")
    typer.echo(f"ready: {qemu_aarch64.setup()}")
