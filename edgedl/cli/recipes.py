"""`edgedl recipes`: what can be run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List, show and describe recipes.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_recipes(
    out: Annotated[Path, typer.Option(help="Where run folders are, for the figures last measured.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the shipped recipes, and what their last runs measured."""
    from edgedl import recipe as recipes
    from edgedl.cli.show import print_json
    from edgedl.report import summary, terminal

    found = [recipes.load(name) for name in recipes.names()]
    last = [summary.of_recipe(recipe, out) for recipe in found]
    if as_json:
        print_json(
            [
                recipe.model_dump(mode="json") | {"family": recipe.model.label, "last": figures}
                for recipe, figures in zip(found, last, strict=True)
            ]
        )
    else:
        terminal.print_recipes(found, last)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A recipe's name or a TOML file.")],
    as_json: Json = False,
) -> None:
    """Print a recipe: the text to start one's own from, or with --json every value that it implies."""
    from edgedl import recipe as recipes
    from edgedl.cli.show import print_json

    recipe = recipes.load(name)
    if as_json:
        print_json(recipe.model_dump(mode="json"))
    else:
        typer.echo(recipes.find(name).read_text(encoding="utf-8"), nl=False)


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="JSON is what it prints anyway.")] = True,
) -> None:
    """Print the JSON Schema of recipe files, for editors."""
    from edgedl import recipe as recipes
    from edgedl.cli.show import print_json

    print_json(recipes.schema())
