"""The `edgedl` program: its commands, and how errors become one line and an exit status."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgedl import refusals
from edgedl.cli import (
    analyze,
    bench,
    compare,
    compress,
    deploy,
    devices,
    doctor,
    init,
    inspect,
    recipes,
    reports,
    runs,
    search,
)

app = typer.Typer(
    help="Compress PyTorch models for small devices, and measure the very files that ship.",
    epilog=(
        "Exit status: 0 done, 1 a target failed, or no file meets --pick or a search's limits, "
        "2 wrong usage or recipe, 3 with --strict a target keeps float as files were refused, "
        "130 interrupted (run again to go on)."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(compress.compress)
app.command()(init.init)
app.command()(analyze.analyze)
app.command()(bench.bench)
app.command()(deploy.deploy)
app.command()(compare.compare)
app.command()(search.search)
app.command()(reports.report)
app.command()(inspect.inspect)
app.add_typer(recipes.app, name="recipes")
app.add_typer(runs.app, name="runs")
app.add_typer(devices.app, name="devices")
app.command()(doctor.targets)
app.command()(doctor.doctor)

INTERRUPTED = 130


def _version(asked: bool) -> None:
    if asked:
        from edgedl import __version__

        typer.echo(f"edgedl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    sys.path.append(str(Path.cwd()))  # modules of one's own are looked for here last, as `python` does first


def main() -> None:
    """Runs the program; errors that a person can mend are one line on stderr, never a traceback."""
    # Frameworks make a million objects that stay; short runs would look them through again and again.
    gc.set_threshold(100_000, 20, 20)
    _open_closed_streams()
    terminal = os.dup(2)
    try:
        app(standalone_mode=True)
    except (KeyboardInterrupt, SystemExit) as leaving:
        # Typer makes status 130 of Ctrl-C, without a word.
        if isinstance(leaving, SystemExit) and leaving.code != INTERRUPTED:
            raise
        # It may have come while stderr was on its way to a log file or back.
        os.dup2(terminal, 2)
        _interrupted()
    except Exception as error:
        if (refused := refusals.told(error)) is not None:
            _fail(refused, 1)
        # Only now is the error tree imported: `edgedl --help` shall not wait for it.
        from edgedl.core import EdgedlError

        if not isinstance(error, EdgedlError):
            if log := _tell(f"{type(error).__name__}: {error}", 1):
                print(f"edgedl: a mistake of edgedl's own; what went before is in {log}", file=sys.stderr)
            raise
        _fail(str(error), error.exit_status)


def _open_closed_streams() -> None:
    """Gives what was closed, as by `2>&-`, to nobody: else the next file opened, a model's say, would be stderr."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _interrupted() -> None:
    _tell("interrupted", INTERRUPTED)
    print(
        "edgedl: interrupted; finished steps are kept: run the same command to go on", file=sys.__stderr__, flush=True
    )
    # Not `sys.exit`: where the interrupt has passed through `exec` of a text, Python ends by the signal all the same.
    os._exit(INTERRUPTED)


def _fail(message: str, status: int) -> None:
    log = _tell(message, status)
    print(f"edgedl: {message}{f' (log: {log})' if log else ''}", file=sys.stderr)
    sys.exit(status)


def _tell(message: str, status: int) -> str | None:
    """Lets whoever listens have the error; returns the log of the work that it ended, if there is one."""
    from edgedl import progress

    log = progress.failed_log()
    progress.emit("error", exit_status=status, message=message, log=str(log) if log else None)
    return str(log) if log else None


if __name__ == "__main__":
    main()
