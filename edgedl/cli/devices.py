"""`edgedl devices`: which devices there are to measure files on, and what makes one."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Devices that `bench --on` measures on; alone, a list of them.")
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback(invoke_without_command=True)
def _group(context: typer.Context, as_json: Json = False) -> None:
    """Devices that `bench --on` measures on; alone, a list of them."""
    if context.invoked_subcommand is None:
        list_devices(as_json)


@app.command("list")
def list_devices(as_json: Json = False) -> None:
    """List this machine, what adb sees and what devices.toml names, and ask each what it is."""
    from edgedl.cli.show import print_json
    from edgedl.remote import device_list
    from edgedl.report import terminal

    rows = device_list.known()
    if as_json:
        print_json(rows)
    else:
        terminal.print_device_list(rows)


@app.command()
def setup(
    kind: Annotated[str, typer.Argument(help="Which: qemu-aarch64, adb, or adb:// and a serial number.")],
) -> None:
    """Fetch an arm64 Python with runtimes into a cache folder, to be emulated or, for adb, put onto a phone."""
    from edgedl.core import UsageError
    from edgedl.links import android, arm64, phone_python

    name, separator, serial = kind.partition("://")
    if kind == "qemu-aarch64":
        typer.echo(f"ready: {arm64.setup()}")
    elif name == "adb":
        shell = android.Shell(android.find(serial if separator else None))
        typer.echo(f"ready: {phone_python.setup(shell)} on the phone")
    else:
        raise UsageError(f"nothing is to be set up for {kind!r}, only for qemu-aarch64 and adb")
