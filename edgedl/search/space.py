"""What `edgedl search` may vary: the table `search` of a recipe, and the recipe that one choice of values makes."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from pydantic import BaseModel

from edgedl import plugins
from edgedl import recipe as recipes
from edgedl.core import RecipeError, UsageError
from edgedl.recipe import Location, Range, Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Values: TypeAlias = dict[str, Any]
"""A value for each path that counts: those inside of a part that is left out or replaced do not."""
Suggest: TypeAlias = Callable[[str, "Range | tuple[Any, ...]"], Any]
ROOTS = ("model", "steps")


@dataclass(frozen=True)
class Space:
    """A recipe and what may be varied in it, by path: a field such as `steps.prune.ratio`, or a whole part."""

    recipe: Recipe
    table: Mapping[str, Any]
    """The recipe's file without `search`."""
    text: str
    file: Path

    @property
    def paths(self) -> Mapping[str, Range | tuple[Any, ...]]:
        return self.recipe.search

    @cached_property
    def places(self) -> Mapping[str, Location]:
        """Where each path leads in the table. Raises `RecipeError`."""
        return {path: self._located(path) for path in self.paths}

    @cached_property
    def written(self) -> Values:
        """The values of the recipe as it is written, which are the first trial. Raises `RecipeError`."""
        return {path: self._written(path) for path in self.paths}

    def sample(self, suggest: Suggest) -> Values:
        """A value for each path; `suggest` is asked for no field of a part that is left out or replaced."""
        values: Values = {}
        for path in sorted(self.paths, key=lambda path: len(self.places[path])):  # whole parts first
            place = self.places[path]
            whole = [
                values[other] for other in values if len(self.places[other]) < len(place) and self._in(path, other)
            ]
            if all(value is True for value in whole):
                found = self.paths[path]
                value = suggest(path, found)
                if isinstance(found, Range) and value != self.written[path]:
                    value = found.rounded(value)
                values[path] = value
        return values

    def recipe_of(self, values: Values, name: str, **changes: Any) -> tuple[Recipe, str]:
        """The recipe with these values under a name, and its text; `changes` are other keys of it.

        Raises `RecipeError` where values do not go together.
        """
        table = {"name": name, **copy.deepcopy(dict(self.table)), **changes}
        table["name"] = name
        dropped = set()
        for path, value in sorted(values.items(), key=lambda item: -len(self.places[item[0]])):
            place = self.places[path]
            if len(place) > len(_part_of(place)):
                _put(table, place, value)
            elif value is False:
                dropped.add(place[1])
            elif value is not True:
                _put(table, place, value)
        table["steps"] = [step for index, step in enumerate(table["steps"]) if index not in dropped]
        text = recipes.dumps(table)
        return recipes.parse(text, Path(f"{name}.toml")), text

    def check(self) -> None:
        """Raises `RecipeError` where a path leads nowhere, or the recipe is none with one of its values."""
        written = self.written
        for path, found in self.paths.items():
            texts = [] if isinstance(found, Range) else [recipes.value(value) for value in found]
            if twice := next((text for text in texts if texts.count(text) > 1), None):
                self._wrong(path, f"{twice} stands twice in the list")
            inside = {other for other in self.paths if other != path and self._in(other, path)}
            for value in (found.low, found.high) if isinstance(found, Range) else found:
                values = {other: given for other, given in written.items() if other not in inside}
                try:
                    self.recipe_of(values | {path: value}, self.recipe.name)
                except RecipeError as error:
                    said = re.sub(r"^.*?\.toml:\d+: ", "", str(error))
                    self._wrong(path, f"{recipes.value(value)} makes no recipe: {said}")

    def _in(self, path: str, whole: str) -> bool:
        return self.places[path][: len(self.places[whole])] == self.places[whole]

    def _located(self, path: str) -> Location:
        found = re.fullmatch(r"(\w+)((?:\.[\w-]+|\[\d+\])*)", path, re.ASCII)
        if found is None or found[1] not in ROOTS:
            self._wrong(path, f"needs the path of a value, such as steps.prune.ratio or model.widths ({_roots()})")
        keys: list[str | int] = [found[1]]
        keys += [int(index) if index else key for key, index in re.findall(r"\.([\w-]+)|\[(\d+)\]", found[2])]
        if keys[0] == "steps":
            keys[1:2] = [self._step(path, keys[1:2])]
        place = tuple(keys)
        if place == _part_of(place):
            self._check_parts(path, place)
        return place

    def _step(self, path: str, named: list[str | int]) -> int:
        uses = [step["use"] for step in self.table["steps"]]
        if not named:
            self._wrong(path, f"needs a step: {', '.join(f'steps.{use}' for use in uses)}")
        (name,) = named
        if isinstance(name, int):
            if name >= len(uses):
                self._wrong(path, f"there are {len(uses)} steps, and the first is steps[0]")
            return name
        at = [index for index, use in enumerate(uses) if use == name]
        if not at:
            self._wrong(path, f"no step {name}; {plugins.nearest(name, uses)}")
        if len(at) > 1:
            self._wrong(path, f"steps of that name are {' and '.join(f'steps[{index}]' for index in at)}: name one so")
        return at[0]

    def _check_parts(self, path: str, place: Location) -> None:
        found = self.paths[path]
        wanted = "true, for it as it is written" + (", false, to leave it out" if place[0] == "steps" else "")
        wanted += ', or a table with use = "..." to stand in its place'
        if isinstance(found, Range):
            self._wrong(path, f"is a whole part: give a list of {wanted}")
        for value in found:
            if not (value is True or (value is False and place[0] == "steps") or isinstance(value, dict)):
                self._wrong(path, f"{recipes.value(value)} cannot stand for a whole part: give {wanted}")

    def _written(self, path: str) -> Any:
        """The recipe's own value, or the default of its field."""
        place, found = self.places[path], self.paths[path]
        value: Any = True if place == _part_of(place) else self._value(path, place)
        if isinstance(found, Range):
            if isinstance(value, bool) or not isinstance(value, int | float) or not found.holds(value):
                self._wrong(
                    path, f"{_told(value)}, which is not in the range; the recipe as it is written is the first trial"
                )
        elif value not in found:
            self._wrong(
                path, f"{_told(value)}, which is not in the list; the recipe as it is written is the first trial"
            )
        return value

    def _value(self, path: str, place: Location) -> Any:
        at: Any = self.recipe
        for index, key in enumerate(place):
            if isinstance(key, int):
                at = at[key]
            elif isinstance(at, BaseModel):
                named = {field.alias or name: name for name, field in type(at).model_fields.items()}
                if key not in named:
                    owner = getattr(at, "label", place[index - 1])
                    self._wrong(path, f"{owner} has no key {key}; {plugins.nearest(str(key), named)}")
                at = getattr(at, named[key])
            elif isinstance(at, Mapping) and key in at:
                at = at[key]
            else:
                self._wrong(
                    path, "there is nothing to vary: write a value for it in the recipe, which is the first trial"
                )
        if isinstance(at, BaseModel):
            table: Any = self.table
            for key in place:
                table = table[key]
            return table
        return _listed(at)

    def _wrong(self, path: str, said: str) -> NoReturn:
        raise RecipeError(f"{recipes.place(self.file, self.text, ('search', path))}: {said}")


def read(name: str) -> Space:
    """The space of a recipe by name or path, with every single value tried. Raises `UsageError` or `RecipeError`."""
    recipe, file = recipes.load(name), recipes.find(name)
    text = file.read_text(encoding="utf-8")
    table = tomllib.loads(text)
    if not table.pop("search", None):
        raise UsageError(
            f"{file}: nothing to search: it has no table search, such as "
            'search = { "steps.prune.ratio" = { low = 0.3, high = 0.8 } }'
        )
    space = Space(recipe, table, text, file)
    space.check()
    return space


def _part_of(place: Location) -> Location:
    """The part that a place lies in, or is."""
    return place[:2] if place[0] == "steps" else place[:1]


def _put(table: Any, place: Location, value: Any) -> None:
    *before, last = place
    for key in before:
        table = table[key] if isinstance(key, int) else table.setdefault(key, {})
    table[last] = value


def _listed(value: Any) -> Any:
    return [_listed(entry) for entry in value] if isinstance(value, list | tuple) else value


def _told(value: Any) -> str:
    return "the recipe has no value for it" if value is None else f"the recipe's own value is {recipes.value(value)}"


def _roots() -> str:
    return "the model's and steps' can be varied; data, targets, limits and bench are what trials are compared by"
