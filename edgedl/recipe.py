"""Recipes: a TOML file, whole and flat, checked before anything expensive starts."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from edgedl import plugins
from edgedl.core import Bench, Limits, Network, Part, RecipeError, Step, Target, Task, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Location = tuple[str | int, ...]

PARTS: dict[str, plugins.Kind] = {"task": "tasks", "model": "models", "steps": "steps", "targets": "targets"}


class Recipe(BaseModel):
    """What to make: task, network, steps in order, targets, and what may ship."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    seed: int = 0
    task: SerializeAsAny[Task]
    model: SerializeAsAny[Network]
    steps: tuple[SerializeAsAny[Step], ...] = Field(min_length=1)
    targets: tuple[SerializeAsAny[Target], ...] = Field(min_length=1)
    limits: Limits = Limits()
    bench: Bench = Bench()


def folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or beside the package in a checkout."""
    packaged = Path(__file__).parent / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "recipes"


def names() -> list[str]:
    """The shipped recipes."""
    return sorted(file.stem for file in folder().glob("*.toml"))


def find(name: str) -> Path:
    """The file of a shipped recipe, or of a path. Raises `UsageError` with the nearest names."""
    if name.endswith(".toml") or "/" in name:
        if not Path(name).is_file():
            raise UsageError(f"no recipe file {name}")
        return Path(name)
    if name not in names():
        raise UsageError(f'no recipe named "{name}"; {plugins.nearest(name, names())}')
    return folder() / f"{name}.toml"


def load(name: str) -> Recipe:
    """Reads a recipe by name or path. Raises `UsageError` or `RecipeError`."""
    file = find(name)
    try:
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read: {error}") from error
    return parse(text, file)


def parse(text: str, file: Path) -> Recipe:
    """A recipe from its text; `file` names it in errors and gives its name. Raises `RecipeError`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{file}: no valid TOML: {error}") from error
    for key, kind in PARTS.items():
        if isinstance(table.get(key), list):
            table[key] = [_part(kind, entry, (key, index), text, file) for index, entry in enumerate(table[key])]
        elif key in table:
            table[key] = _part(kind, table[key], (key,), text, file)
    table.setdefault("name", file.stem)
    return cast("Recipe", _validated(Recipe, table, (), text, file))


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors and checkers."""
    whole = Recipe.model_json_schema()
    definitions = whole["$defs"]
    for key, kind in PARTS.items():
        variants = []
        for name in plugins.names(kind):
            part = plugins.load(kind, name).model_json_schema()
            definitions |= part.pop("$defs", {})
            part["properties"]["use"] = {"const": name, "type": "string"}
            definitions[f"{kind}.{name}"] = part
            variants.append({"$ref": f"#/$defs/{kind}.{name}"})
        choice = {"oneOf": variants}
        several = whole["properties"][key].get("type") == "array"
        whole["properties"][key] = {"type": "array", "minItems": 1, "items": choice} if several else choice
    whole["required"].remove("name")
    return whole


def _part(kind: plugins.Kind, entry: Any, location: Location, text: str, file: Path) -> Part:
    if not isinstance(entry, dict) or not isinstance(entry.get("use"), str):
        raise RecipeError(f'{_place(file, text, location)}: needs a table with use = "...", one of: '
                          f"{', '.join(plugins.names(kind))}")  # fmt: skip
    try:
        found = plugins.load(kind, entry["use"])
    except UsageError as error:
        raise RecipeError(f"{_place(file, text, (*location, 'use'))}: {error}") from error
    return cast("Part", _validated(found, entry, location, text, file))


def _validated(model: type[BaseModel], table: dict[str, Any], location: Location, text: str, file: Path) -> BaseModel:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = (*location, *first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; {plugins.nearest(str(where[-1]), _keys(model, first['loc']))}"
        elif first["type"] == "missing":
            message = "this key is missing"
        elif not isinstance(first["input"], dict | list):
            message += f", not {first['input']!r}"
        raise RecipeError(f"{_place(file, text, where)}: {message}") from error


def _keys(model: type[BaseModel], loc: Location) -> list[str]:
    """The valid keys of the table in which the last part of `loc` stands."""
    for key in loc[:-1]:
        annotation = model.model_fields[str(key)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)


def _place(file: Path, text: str, location: Location) -> str:
    """`file:line: steps[2].ratio`, as near as the text tells: each key is looked for behind the one before."""
    position, shown = 0, ""
    for key in location:
        if isinstance(key, int):
            shown += f"[{key}]"
            for _ in range(key + 1):
                entry = re.compile(r"\{").search(text, position)
                position = entry.end() if entry else position
        else:
            shown += f".{key}" if shown else key
            found = re.compile(rf"(?m)(?:^|[\s{{,\[.]){re.escape(key)}\s*[=\].]").search(text, position)
            position = found.start() + 1 if found else position
    return f"{file}:{text.count(chr(10), 0, position) + 1}: {shown or 'recipe'}"
