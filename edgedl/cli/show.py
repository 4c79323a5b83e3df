"""What several commands print alike."""

from __future__ import annotations

import json
from typing import Any

import typer


def print_json(value: Any) -> None:
    """A value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, default=str))
