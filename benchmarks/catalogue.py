"""docs/recipes.md: what there is to run and what it measured, written by `python -m benchmarks.catalogue`.

What it says of a recipe comes from the recipe's file, from the first sentences of its network's and its task's
modules, and from `results/families.json`; a test checks that the document is what this gives.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.rows import measured_on
from edgedl import plugins
from edgedl import recipe as recipes
from edgedl.core import Part
from edgedl.recipe import Recipe
from edgedl.report import lines, words

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "families.json"
DOCUMENT = HERE.parent / "docs" / "recipes.md"
SOURCES = (("folder",), ("file",), ("csv",), ("hub",), ("edges", "features"), ("environment",))
"""Keys of tasks that name, together, data of one's own."""
LARGER = {"digits": "mnist", "scenes": "cifar10"}
"""Tasks with real data of the same shape as one that has embedded data alone."""


def main() -> None:
    """Writes the document."""
    DOCUMENT.write_text(document(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


def document(results: Mapping[str, Any]) -> str:
    """All recipes at a glance, then each by its family."""
    found = [recipes.load(name) for name in recipes.names()]
    rows = {row["recipe"]: row for row in results["rows"]}
    lines = [
        "<!-- Written by `python -m benchmarks.catalogue`: what is changed by hand is lost. -->",
        "",
        "# Recipes",
        "",
        "Each runs from start to finish with `edgedl compress --recipe NAME`, on data that needs no download. Figures "
        "are of the exported files over the whole test set, here those of the target that gains most; measured on "
        f"{measured_on(results, 'recipe')} with `python -m benchmarks.families`.",
        "",
        *table.as_table(GLANCE, [_glance(recipe, rows.get(recipe.name)) for recipe in found]),
    ]
    for family in sorted({recipe.model.label for recipe in found}):
        own = [recipe for recipe in found if recipe.model.label == family]
        lines += ["", f"## {family}", "", f"{_about(own[0].model)}."]
        for recipe in own:
            lines += ["", f"### {recipe.name}", "", *_details(recipe, rows.get(recipe.name))]
    return "\n".join(lines) + "\n"


GLANCE = ("recipe", "family", "task", "metric", "float → compressed", "smaller", "speed-up", "on", "s")


def _glance(recipe: Recipe, row: Mapping[str, Any] | None) -> list[str]:
    named = [f"[{recipe.name}](#{recipe.name})", recipe.model.label, recipe.task.label, recipe.task.metric.name]
    if row is None or "failed" in row:
        return [*named, row["failed"] if row else "not measured yet", *[table.NONE] * 4]
    gains = row["gains"]
    scores = f"{words.score(gains['float'], row['metric'])} → {words.score(gains['compressed'], row['metric'])}"
    ratios = [table.NONE if gains[key] is None else f"{gains[key]:.2f}×" for key in ("size_ratio", "speedup")]
    return [*named, scores, *ratios, gains["target"], f"{row['seconds']:.0f}"]


def _details(recipe: Recipe, row: Mapping[str, Any] | None) -> Iterator[str]:
    task, metric = recipe.task, recipe.task.metric
    better = "higher" if metric.higher_is_better else "lower"
    yield f"{recipe.description} `edgedl compress --recipe {recipe.name}`"
    yield ""
    if settings := words.settings(recipe.model.model_dump()):
        yield f"- Network: {settings}"
    yield f"- Steps: {'; '.join(_named(step) for step in recipe.steps)}"
    yield f"- Data: {_about(task)}"
    yield f"- Real data: {_real(task)}"
    yield f"- Judged by {metric.name}, {better} is better; may lose {recipe.limits.score_drop:g}"
    if row is not None and row.get("baseline"):
        yield f"- Baseline: {words.score(row['baseline']['score'], row['metric'])} by {row['baseline']['answer']}"
    if row is not None and "failed" not in row:
        yield ""
        yield from table.as_table(table.FAMILIES[1:], table.of_family(row))
        further = [_further(found) for found in row["targets"] if found["figures"]["float"]]
        if notes := [*further, *table.unshipped(row)]:
            yield ""
            yield from (f"- {note}" for note in notes)


def _further(found: Mapping[str, Any]) -> str:
    """What the task reports besides the score."""
    changes = lines.figure_changes(*({"figures": found["figures"][key]} for key in ("float", "judged")))
    return f"{found['target']}: {', '.join(f'{name} {change}' for name, change in changes.items())}"


def _named(step: Part) -> str:
    settings = words.settings(step.model_dump(exclude_defaults=True))
    return f"`{step.label}`{f' ({settings})' if settings else ''}"


def _about(part: Part) -> str:
    """The first sentence of a plugin's module, which says what it is."""
    module = inspect.getmodule(type(part))
    assert module is not None
    assert module.__doc__ is not None
    return module.__doc__.splitlines()[0].removesuffix(".")


def _real(task: Part) -> str:
    """How a recipe is told to take data of one's own."""
    use = LARGER.get(task.use, task.use)
    fields = plugins.load("tasks", use).model_fields
    sources = [", ".join(f'{key} = "..."' for key in keys) for keys in SOURCES if fields.keys() >= set(keys)]
    return " or ".join(f'`task = {{ use = "{use}", {source} }}`' for source in sources) or "none"


if __name__ == "__main__":
    main()
