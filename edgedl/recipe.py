"""Recipes: a TOML file, whole and flat, checked before anything expensive starts."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainValidator,
    SerializeAsAny,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from edgedl import plugins
from edgedl.core import Bench, Limits, Network, Part, RecipeError, Step, Target, Task, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Location = tuple[str | int, ...]

PARTS: dict[str, plugins.Kind] = {"task": "tasks", "model": "models", "steps": "steps", "targets": "targets"}
SEVERAL = ("steps", "targets")
NESTED: dict[str, plugins.Kind] = {"target": "targets", "student": "models", "teacher": "models"}
"""Keys of parts that hold another part."""
FOREIGN = {
    "description": "A class of one's own, package.module:Class; its keys are its fields.",
    "type": "object",
    "properties": {"use": {"type": "string", "pattern": "^[^:]+:[^:]+$"}},
    "required": ["use"],
}


class Range(BaseModel):
    """The numbers from `low` to `high`, whole ones if both are: all alike, or their logarithms; or in strides."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = False
    step: int | FiniteFloat | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} has to be less than high = {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None and (self.step <= 0 or (self.whole and not isinstance(self.step, int))):
            raise ValueError(f"step = {self.step} has to be {'a whole number ' if self.whole else ''}above 0")
        if self.step is not None and self.nearest(self.high) == self.low:
            raise ValueError(f"step = {self.step} leads beyond high = {self.high}, and leaves nothing but low")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, number: float) -> bool:
        """Whether a number is one of its."""
        if not self.low <= number <= self.high or (self.whole and not isinstance(number, int)):
            return False
        strides = 0.0 if self.step is None else (number - self.low) / self.step
        return abs(strides - round(strides)) < 1e-6

    def nearest(self, number: float) -> float:
        """That one of its numbers which is nearest."""
        within = min(max(number, self.low), self.high)
        step = self.step or (1 if self.whole else None)
        if step is None:
            return float(within)
        most = math.floor((self.high - self.low) / step + 1e-6)  # 0.3 / 0.1 is less than 3
        found = self.low + min(round((within - self.low) / step), most) * step
        if self.whole:
            return found
        digits = 9 - math.floor(math.log10(step))
        return min(round(float(found), digits), float(self.high))  # 0.1 + 2 * 0.1 is more than 0.3

    def rounded(self, number: float) -> float:
        """A number of its with few digits, so that recipes can be read."""
        if self.whole:
            return round(number)
        return min(max(float(f"{number:.4g}"), float(self.low)), float(self.high))


def _searched(value: Any) -> Range | tuple[Any, ...]:
    if isinstance(value, dict):
        if "low" not in value and "high" not in value:
            raise ValueError(
                'needs low and high; a path stands in quotes: "steps.prune.ratio" = { low = 0.3, high = 0.8 }'
            )
        try:
            return Range.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            key = f"{first['loc'][0]}: " if first["loc"] else ""
            raise ValueError(key + first["msg"].removeprefix("Value error, ")) from error
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError("needs a list of two values or more, or { low = ..., high = ... }")
    return tuple(value)


Searched: TypeAlias = Annotated[
    Any,
    PlainValidator(_searched),
    WithJsonSchema({"anyOf": [{"type": "array", "minItems": 2}, Range.model_json_schema()]}),
]
"""What a value may be in a search: one of a list, or a number of a range."""


class PartError(ValueError):
    """What is wrong with one part beside the others; pydantic places what a validator of the whole finds nowhere."""

    def __init__(self, location: Location, said: str) -> None:
        super().__init__(f"{_dotted(location)}: {said}")
        self.location, self.said = location, said


class Recipe(BaseModel):
    """What to make: task, network, steps in order, targets, and what may ship."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[^/.\x00-\x1f][^/\x00-\x1f]*$")
    """What runs are called, by default as the file; also the name of a folder."""
    description: str = ""
    """What it is for, in a line."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """What chance begins with, in the first weights and in each step."""
    task: SerializeAsAny[Task]
    """Data, loss and metric."""
    model: SerializeAsAny[Network]
    """The network."""
    steps: tuple[SerializeAsAny[Step], ...] = Field(min_length=1)
    """What is done to the network, in order."""
    targets: tuple[SerializeAsAny[Target], ...] = Field(min_length=1)
    """What files are made for."""
    limits: Limits = Limits()
    """What may ship."""
    bench: Bench = Bench()
    """How latency is measured."""
    search: dict[str, Searched] = Field(default={}, exclude=True)
    """What `edgedl search` may vary, by path (`edgedl/search/space.py`); nothing else reads it."""

    @property
    def needed_targets(self) -> tuple[Target, ...]:
        """Those to build for, and those that a step measures on."""
        return (*self.targets, *(target for step in self.steps if (target := step.measures_on) is not None))

    def network_after(self, index: int) -> Network:
        """What builds the network that a step leaves, in its full width."""
        network: Network = self.model
        for step in self.steps[: index + 1]:
            network = step.network(network)
        return network

    @model_validator(mode="after")
    def _learns_before_it_plans(self) -> Recipe:
        for index, (earlier, later) in enumerate(pairwise(self.steps), start=1):
            if later.learns and (earlier.final or not earlier.learns):
                said = f"{later.label} changes weights and has to stand before {earlier.label}"
                raise PartError(("steps", index), said)
        return self

    @model_validator(mode="after")
    def _cuts_before_it_sparsifies(self) -> Recipe:
        for (_, earlier), (index, later) in combinations(enumerate(self.steps), 2):
            if earlier.sparsifies and later.cuts:
                said = f"{later.label} removes channels and has to stand before {earlier.label}"
                raise PartError(("steps", index), f"{said}, whose zeros it would tear apart")
        return self

    @model_validator(mode="after")
    def _steps_suit_the_task(self) -> Recipe:
        for index, step in enumerate(self.steps):
            if why := step.unsuited(self.task):
                raise PartError(("steps", index), f"{step.label}: {why}")
        return self

    @model_validator(mode="after")
    def _targets_differ(self) -> Recipe:
        for index, target in enumerate(self.targets):
            if target in self.targets[:index]:
                said = f"it is the same as targets[{self.targets.index(target)}]; leave one out"
                raise PartError(("targets", index), said)
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Recipe:
        for index, target in enumerate(self.targets):
            most = getattr(target, "max_batch", None)
            if most is not None and most < self.bench.batch_size:
                said = f"it is {most}, and bench.batch_size {self.bench.batch_size}"
                raise PartError(
                    ("targets", index, "max_batch"), f"{said}: files are measured with batches that they take"
                )
        return self

    @model_validator(mode="after")
    def _targets_have_the_form(self) -> Recipe:
        for step in self.steps:
            for index, target in enumerate(self.targets):
                if refusal := step.refused_by(target):
                    said = f"{refusal}; change step {step.label}, or leave the target out"
                    raise PartError(("targets", index), said)
        return self


def folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or beside the package in a checkout."""
    packaged = Path(__file__).parent / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "recipes"


def names() -> list[str]:
    """The shipped recipes."""
    return sorted(file.stem for file in folder().glob("*.toml"))


def pairs() -> dict[tuple[str, str], str]:
    """Tasks and models, students among them, that a shipped recipe has together, and the first such recipe."""
    found: dict[tuple[str, str], str] = {}
    for name in names():
        table = tomllib.loads(find(name).read_text(encoding="utf-8"))
        students = (step["student"] for step in table["steps"] if "student" in step)
        for model in (table["model"], *students):
            found.setdefault((table["task"]["use"], model["use"]), name)
    return found


def find(name: str) -> Path:
    """The file of a shipped recipe, or of a path. Raises `UsageError` with the nearest names."""
    if name.endswith(".toml") or "/" in name:
        try:
            if Path(name).is_file():
                return Path(name)
        except OSError as error:  # no permission, or a name too long
            raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
        raise UsageError(f"no recipe file {name}")
    if name not in names():
        raise UsageError(f"no recipe named {name!r}; {plugins.nearest(name, names())}")
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
    except (ValueError, RecursionError) as error:  # a number too long, and nesting too deep, are ones of Python's own
        raise RecipeError(f"{file}: no valid TOML: {error}") from error
    _check_texts(table, (), text, file)
    for key in PARTS:
        if key in table:
            table[key] = _parts(key, table[key], text, file)
    for key, model in (("limits", Limits), ("bench", Bench)):
        if key in table:
            table[key] = _validated(model, table[key], (key,), text, file)
    table.setdefault("name", file.stem)
    return cast("Recipe", _validated(Recipe, table, (), text, file))


def part(kind: plugins.Kind, key: str, table: Mapping[str, Any]) -> Part:
    """One part, from a table as it would stand under `key`. Raises `RecipeError`."""
    text = dumps({key: table})
    return _part(kind, tomllib.loads(text)[key], (key,), text, Path("recipe"))


def dumps(table: Mapping[str, Any]) -> str:
    """A recipe's text from its values: TOML with a part a line; what is None is left out."""
    lines = []
    for key, entry in table.items():
        if key in SEVERAL:
            lines += [f"{_key(key)} = [", *(f"  {value(part)}," for part in entry), "]"]
        elif entry is not None:
            lines.append(f"{_key(key)} = {value(entry)}")
    return "\n".join(lines) + "\n"


def value(given: Any) -> str:
    """A value as it stands in a recipe's text."""
    if isinstance(given, Mapping):
        entries = [f"{_key(str(key))} = {value(entry)}" for key, entry in given.items() if entry is not None]
        return f"{{ {', '.join(entries)} }}" if entries else "{}"
    if isinstance(given, list | tuple):
        return f"[{', '.join(map(value, given))}]"
    if isinstance(given, bool | int | float):
        return json.dumps(given)
    return _quoted(str(given))


def _check_texts(given: Any, location: Location, text: str, file: Path) -> None:
    """Raises `RecipeError` for a text that no path or name may be: systems end them at a NUL."""
    inside = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    for key, entry in inside:
        _check_texts(entry, (*location, key), text, file)
    if isinstance(given, str) and "\0" in given:
        raise RecipeError(f"{place(file, text, location)}: holds a NUL character: {given!r}; leave it out")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else _quoted(name)


def _quoted(text: str) -> str:
    """As JSON has it, which leaves one character that TOML wants escaped, and would write one beyond 16 bits as two."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors and checkers."""
    whole = Recipe.model_json_schema()
    definitions = whole["$defs"]
    for key, kind in PARTS.items():
        variants = []
        for name in plugins.names(kind):
            loaded = plugins.load(kind, name)
            part = loaded.model_json_schema()
            _explain(part["properties"], loaded)
            definitions |= part.pop("$defs", {})
            part["properties"]["use"] = {"const": name, "type": "string"}
            part["required"] = ["use", *part.get("required", [])]
            definitions[f"{kind}.{name}"] = part
            variants.append({"$ref": f"#/$defs/{kind}.{name}"})
        choice = {"oneOf": [*variants, {"$ref": "#/$defs/foreign"}]}
        whole["properties"][key] = {"type": "array", "minItems": 1, "items": choice} if key in SEVERAL else choice
    definitions["foreign"] = FOREIGN
    _explain(whole["properties"], Recipe)
    whole["required"].remove("name")
    return whole


def _explain(properties: Mapping[str, Any], part: type[BaseModel]) -> None:
    """Gives keys without a description that of the class they come from, or what the docstrings say of them."""
    classes = [base for base in part.__mro__ if issubclass(base, BaseModel) and base not in (BaseModel, Part)]
    said = " ".join(" ".join((base.__doc__ or "").split()) for base in classes)
    sentences = re.split(r"(?<=[.;]) +(?=[A-Z`\"])", said)
    for key, found in properties.items():
        inherited = (base.model_fields[key].description for base in classes if key in base.model_fields)
        told = (sentence for sentence in sentences if re.search(rf"`{re.escape(key)}\b", sentence))
        if description := next(filter(None, inherited), None) or " ".join(dict.fromkeys(told)):
            found["description"] = description


def _parts(key: str, value: Any, text: str, file: Path) -> Part | tuple[Part, ...]:
    if key not in SEVERAL:
        return _part(PARTS[key], value, (key,), text, file)
    if not isinstance(value, list):
        raise RecipeError(f'{place(file, text, (key,))}: needs an array of tables: {key} = [{{ use = "..." }}]')
    return tuple(_part(PARTS[key], entry, (key, index), text, file) for index, entry in enumerate(value))


def _part(kind: plugins.Kind, entry: Any, location: Location, text: str, file: Path) -> Part:
    if not isinstance(entry, dict) or not isinstance(entry.get("use"), str):
        raise RecipeError(f'{place(file, text, location)}: needs a table with use = "...", one of: '
                          f"{', '.join(plugins.names(kind))}")  # fmt: skip
    try:
        found = plugins.load(kind, entry["use"])
    except UsageError as error:
        raise RecipeError(f"{place(file, text, (*location, 'use'))}: {error}") from error
    for key, inner in NESTED.items():
        field = found.model_fields.get(key)
        if key in entry and field and _holds(field.annotation, plugins.BASES[inner]):
            _part(inner, entry[key], (*location, key), text, file)  # by itself first: an error says where in it
    return cast("Part", _validated(found, entry, location, text, file))


def _holds(annotation: Any, base: type[Part]) -> bool:
    """Whether a field is for a part: one of somebody's own may have the name and be something else."""
    if isinstance(annotation, type):
        return issubclass(annotation, base)
    return any(_holds(argument, base) for argument in get_args(annotation))


def _validated(model: type[BaseModel], table: Any, location: Location, text: str, file: Path) -> BaseModel:
    """`table` as a `model`, strictly: TOML has types, and neither "10" nor true is a number."""
    try:
        if model is Recipe:
            return Recipe.model_validate(table, strict=True)
        return model.model_validate_json(json.dumps(table, default=str), strict=True)  # which takes arrays for tuples
    except ValidationError as error:
        # A misspelt key is also a missing one: the former says more.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        where = (*location, *first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raised = first.get("ctx", {}).get("error")
        if first["type"] == "extra_forbidden":
            valid = _keys(model, first["loc"])
            message = "unknown key" + (f"; {plugins.nearest(str(where[-1]), valid)}" if valid else "")
        elif first["type"] == "missing":
            message = "this key is missing"
        elif isinstance(raised, PartError):
            where, message = (*where, *raised.location), raised.said
        elif not isinstance(first["input"], dict | list | tuple) and not (raised and repr(first["input"]) in message):
            message += f", not {first['input']!r}"
        raise RecipeError(f"{place(file, text, where)}: {message}") from error


def _keys(model: type[BaseModel], loc: Location) -> list[str]:
    """The valid keys of the table in which the last part of `loc` stands; none where its type leaves a choice."""
    for key in loc[:-1]:
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def place(file: Path, text: str, location: Location) -> str:
    """`file:line: steps[2].ratio`; what the text does not hold stands where its table does."""
    position = next((found for end in range(len(location), 0, -1) if (found := _find(text, location[:end])) >= 0), 0)
    return f"{file}:{text.count(chr(10), 0, position) + 1}: {_dotted(location) or 'recipe'}"


def _dotted(location: Location) -> str:
    shown = ""
    for key in location:
        if isinstance(key, int):
            shown += f"[{key}]"
        else:
            shown += ("." if shown else "") + _key(key)
    return shown


def _find(text: str, location: Location) -> int:
    """Where the key or the array's table at `location` is written, or -1."""
    *table, key = location
    if isinstance(key, str):
        return next(iter(_written(text, tuple(table), key)), -1)
    written = _written(text, tuple(table[:-1]), str(table[-1]))
    headers = [place for place in written if text[:place].rstrip().endswith("[[")]
    if headers:
        return headers[key]
    entry = _at(tomllib.loads(text), location)
    return _find(text, (*location, next(iter(entry)))) if isinstance(entry, dict) and entry else -1


def _written(text: str, table: Location, key: str) -> list[int]:
    """Every place where `key` is written in the table at this location.

    That is where another name in its stead turns up in that very table when the text is read again.
    """
    other = f"{key}-"
    while other in text:
        other += "-"
    found = []
    for match in re.finditer(rf"(?<![\w-]){re.escape(key)}(?![\w-])", text):
        try:
            changed = _at(tomllib.loads(text[: match.start()] + other + text[match.end() :]), table)
        except ValueError:
            continue
        if isinstance(changed, dict) and other in changed:
            found.append(match.start())
    return found


def _at(table: Any, location: Location) -> Any:
    for key in location:
        try:
            table = table[key]
        except (KeyError, IndexError, TypeError):
            return None
    return table
