"""`edgedl analyze`: which layers cost what, and which take quantization or pruning ill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedl.cli.show import JsonLines, Quiet


def analyze(
    recipe_or_run: Annotated[str, typer.Argument(help="A run folder, a recipe for its latest finished run, or any.")],
    out: Annotated[Path, typer.Option(help="Where run folders are, and go.")] = Path("runs"),
    ratio: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of a layer's channels to prune.")] = 0.5,
    fresh: Annotated[bool, typer.Option("--fresh", help="Take nothing from earlier runs: train again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print analysis.json instead of the table.")] = False,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Say for each layer what it costs, and what it does to the score to quantize or prune it alone."""
    from edgedl import progress
    from edgedl import recipe as recipes
    from edgedl.cli.show import check_one_form, print_json
    from edgedl.core import MissingPackage

    check_one_form(as_json, json_lines)
    folder = None if fresh else _finished(recipe_or_run, out)
    recipe = recipes.load(recipe_or_run) if folder is None else None
    _require()  # before the imports below, which need torch
    from edgedl import analyzing
    from edgedl.analysis import by_layer
    from edgedl.report import page, terminal

    with progress.display(quiet or json_lines):
        if recipe is not None:
            text = recipes.find(recipe_or_run).read_text(encoding="utf-8")
            folder = analyzing.of_recipe(recipe, text, out, ratio, fresh)
        else:
            assert folder is not None
            analyzing.of_run(folder, ratio)
    found = by_layer.read(folder)
    assert found is not None
    try:
        shown = f"page: {page.write_analysis(found, folder)}"
    except MissingPackage as error:
        shown = f"analysis: {folder / 'analysis.json'} (no HTML page: {error})"
    progress.emit("finished", exit_status=0, folder=str(folder), report=str(folder / "analysis.json"))
    if as_json:
        print_json(found)
    elif not json_lines:
        terminal.print_analysis(found)
        typer.echo(shown)


def _finished(name: str, root: Path) -> Path | None:
    """The run that is named by its folder, or by a recipe that has finished; None for a recipe that has not."""
    from edgedl import recipe as recipes
    from edgedl.run import find_finished

    if name.endswith(".toml"):
        return None
    is_folder = "/" in name or (Path(name).is_dir() and name not in recipes.names())
    return find_finished(name, root) if is_folder or any(root.glob(f"{name}/*/report.json")) else None


def _require() -> None:
    from edgedl import plugins
    from edgedl.core import MissingPackage

    lacking = [
        module for module in ("torch", "torchao", "torch_pruning", "safetensors") if not plugins.installed(module)
    ]
    if lacking:
        raise MissingPackage(f"analyze needs {', '.join(lacking)}: {plugins.pip_line('train')}")
