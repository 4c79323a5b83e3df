"""What several commands print alike, and the options that say how."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeAlias

import typer


def _write_lines(asked: bool) -> bool:
    if asked:
        from edgedl import display, progress

        progress.listen(display.json_lines())
    return asked


Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", help="Show no progress: the result alone.")]
# Heard from the first moment, so that an error in what else was given is told in the same way.
JsonLines: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--json-lines",
        help="Instead, print a line of JSON whenever something has happened, for a machine.",
        callback=_write_lines,
        is_eager=True,
    ),
]


def print_json(value: Any) -> None:
    """A value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, default=str))


def check_one_form(as_json: bool, lines: bool) -> None:
    """Raises `UsageError` where stdout is to be both."""
    from edgedl.core import UsageError

    if as_json and lines:
        raise UsageError("--json prints one value at the end, --json-lines one whenever something happens: give one")
