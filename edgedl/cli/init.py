"""`edgedl init`: a recipe, a network and data to start one's own from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path(),
    data: Annotated[
        str | None, typer.Option(help="Your data, a file or folder; without it, a module that makes some up.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The array or column to learn.")] = None,
    precision: Annotated[str | None, typer.Option(help="int8 (the default), int4, fp16 or mixed.")] = None,
    prune: Annotated[float | None, typer.Option(help="The share of channels to remove; by default none.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="May be given several times; by default tflite and onnxruntime.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, even on a terminal.")] = False,
) -> None:
    """Write a commented recipe, a network that fits the data, and data if there is none; ask for what is not given."""
    from edgedl import plugins, scaffold
    from edgedl.core import MissingPackage

    if not plugins.installed("torch"):
        raise MissingPackage(f"a network of one's own needs torch: {plugins.pip_line('train')}")
    if sys.stdin.isatty() and not yes:
        data = data or _asked("Your data, a file or folder (empty: some is made up)") or None
        label = label or (data and _asked("The array or column to learn (empty: label)")) or None
        precision = precision or _asked("Precision: int8, int4, fp16 or mixed", "int8")
        prune = _asked_share() if prune is None else prune
        target = target or _asked("Targets", "tflite onnxruntime").split()
    written = scaffold.write(
        folder, data, label, precision or "int8", prune or 0.0, target or ("tflite", "onnxruntime")
    )
    for file in written:
        typer.echo(f"wrote {file}")
    place = "" if folder == Path() else f"cd {folder} && "
    typer.echo(f"change them to your needs, then: {place}edgedl compress --recipe {scaffold.RECIPE}")


def _asked(question: str, default: str = "") -> str:
    answer: str = typer.prompt(question, default=default, show_default=bool(default), err=True)
    return answer.strip()


def _asked_share() -> float:
    return float(typer.prompt("Share of channels to remove, such as 0.5", default=0.0, type=float, err=True))
