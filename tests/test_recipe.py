"""Recipes: those that are shipped, every way to get one wrong and what is said of it, and the schema."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgedl import plugins
from edgedl import recipe as recipes
from edgedl.core import RecipeError, UsageError
from edgedl.recipe import Recipe, tomllib

INLINE = """\
description = "epochs, use = steps[1], task = { use }"
# task = { use = "mnist" }; steps = [{ epochs = 0 }]
seed = 0
task = { use = "digits" }
model = { use = "cnn", widths = [32, 64] }
steps = [
  { use = "train", epochs = 3, lr = 1e-3 },
  { use = "train", epochs = 2, lr = 1e-4 },  # { epochs }
]
targets = [{ use = "tflite", threads = 1 }, { use = "onnxruntime", threads = 2 }]
limits = { score_drop = 0.005 }
bench.batch_size = 1
bench.min_seconds = 3
"""

TABLES = """\
description = '''
[task]
use = "mnist"
[[steps]]
epochs = 5
'''

[task]
use = "digits"

[model]
use = "cnn"
hidden = 64

[[steps]]
use = "train"
epochs = 3

[[steps]]
use = "train"
epochs = 2

[[steps]]
use = "quantize"
# no epochs = 2 here

[[targets]]
use = "tflite"
threads = 1

[[targets]]
use = "onnxruntime"
threads = 2

[limits]
score_drop = 0.005

[bench]
"rounds" = 30
"""

MINIMAL: dict[str, Any] = {
    "task": {"use": "digits"},
    "model": {"use": "mlp"},
    "steps": [{"use": "train"}],
    "targets": [{"use": "onnxruntime"}],
}


def parse(text: str) -> Recipe:
    return recipes.parse(text, Path("own.toml"))


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message or "your code raised" in message
    assert message.startswith("own.toml:")
    return message


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old} is {text.count(old)} times in the text"
    return text.replace(old, new)


def toml(value: Any) -> str:
    """A value of JSON's kinds, or a number that JSON has no word for, as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def document(table: dict[str, Any]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in table.items())


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_loads_under_its_name(name):
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert recipes.load(str(recipes.find(name))) == recipe


@pytest.mark.parametrize("name", recipes.names())
def test_a_dumped_recipe_is_read_back_as_it_was(name):
    recipe = recipes.load(name).model_copy(update={"search": {}})  # which is no part of what a run does
    assert parse(document(json.loads(recipe.model_dump_json(exclude_none=True)))) == recipe


def test_tables_and_inline_tables_say_the_same():
    assert parse(INLINE).targets == parse(TABLES).targets
    assert [step.epochs for step in parse(TABLES).steps[:2]] == [3, 2]
    assert parse(TABLES).bench.rounds == 30
    assert parse(TABLES).model.hidden == 64


def test_what_is_left_out_has_its_default():
    recipe = parse(document(MINIMAL))
    assert (recipe.name, recipe.seed, recipe.limits.slower) == ("own", 0, "refuse")
    assert (recipe.limits.score_drop, recipe.bench.batch_size) == (0.01, 1)


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (INLINE, "epochs = 2", "epoch = 2", "own.toml:8: steps[1].epoch: unknown key; did you mean epochs?"),
        (INLINE, "threads = 2", "thread = 2", "own.toml:10: targets[1].thread: unknown key; did you mean threads?"),
        (INLINE, "score_drop", "scoredrop", "own.toml:11: limits.scoredrop: unknown key; did you mean score_drop?"),
        (INLINE, "bench.batch_size", "bench.batchsize", "own.toml:12: bench.batchsize: unknown key; did you mean"),
        (INLINE, "seed = 0", "sed = 0", "own.toml:3: sed: unknown key; did you mean seed?"),
        (INLINE, "\nmodel =", "\nmodle =", "own.toml:5: modle: unknown key; did you mean model?"),
        (INLINE, '{ use = "digits" }', '{ use = "digits", folder = "x" }', "own.toml:4: task.folder: unknown key;"),
        (
            INLINE,
            '{ use = "digits" }',
            r'{ use = "mnist", folder = "a\u0000b" }',
            "own.toml:4: task.folder: holds a NUL",
        ),
        (INLINE, "seed = 0", '"a\\nb" = 0', r'own.toml:1: "a\nb": unknown key; there are: name, description, seed'),
        (TABLES, "hidden", "hiden", "own.toml:13: model.hiden: unknown key; did you mean hidden?"),
        (TABLES, "score_drop", "drop", "own.toml:36: limits.drop: unknown key; there are: score_drop, slower"),
        (TABLES, "rounds", "round", "own.toml:39: bench.round: unknown key; did you mean rounds?"),
    ],
)
def test_an_unknown_key_has_its_line_its_table_and_the_nearest_valid_one(text, old, new, said):
    assert refusal(changed(text, old, new)).startswith(said)


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (INLINE, "epochs = 3", "epochs = 0", "own.toml:7: steps[0].epochs: Input should be greater than 0, not 0"),
        (INLINE, "epochs = 2", "epochs = 0", "own.toml:8: steps[1].epochs: Input should be greater than 0, not 0"),
        (INLINE, "1e-4", "-1", "own.toml:8: steps[1].lr: Input should be greater than 0, not -1"),
        (INLINE, "threads = 2", "threads = 0", "own.toml:10: targets[1].threads: Input should be greater than 0"),
        (INLINE, "64]", "-64]", "own.toml:5: model.widths[1]: Input should be greater than 0, not -64"),
        (INLINE, "min_seconds = 3", 'min_seconds = "3"', "own.toml:13: bench.min_seconds: Input should be a valid"),
        (TABLES, "epochs = 3", "epochs = -3", "own.toml:17: steps[0].epochs: Input should be greater than 0"),
        (TABLES, "\nepochs = 2", "\nepochs = -2", "own.toml:21: steps[1].epochs: Input should be greater"),
        (TABLES, '"quantize"', '"quantise"', "own.toml:24: steps[2].use: no steps named 'quantise'; did you"),
        (TABLES, "threads = 2", "threads = -2", "own.toml:33: targets[1].threads: Input should be greater"),
        (TABLES, '"onnxruntime"', '"onnx"', "own.toml:32: targets[1].use: no targets named 'onnx'; there are: "),
        (TABLES, '[task]\nuse = "digits"', '[task]\nuse = "digit"', "own.toml:9: task.use: no tasks named"),
        (TABLES, '"rounds" = 30', '"rounds" = 0', "own.toml:39: bench.rounds: Input should be greater than 0"),
        (TABLES, "hidden", '"hi\\u0064en"', "own.toml:11: model.hiden: unknown key; did you mean hidden?"),
    ],
)
def test_the_line_is_that_of_the_very_key_however_often_its_name_occurs(text, old, new, said):
    assert refusal(changed(text, old, new)).startswith(said)


@pytest.mark.parametrize(
    ("inner", "line", "said"),
    [
        ('student = { use = "transformer", widht = 64 }', 2, "student.widht: unknown key; did you mean width?"),
        ('student = { use = "transformer", width = -64 }', 2, "student.width: Input should be greater than 0, not -64"),
        ('student = { use = "mlp", widths = [8,\n 0] }', 2, "student.widths[1]: Input should be greater than 0, not 0"),
        ('student = { use = "mpl" }', 2, "student.use: no models named 'mpl'; did you mean mlp?"),
        ('student = { width = 64 }', 2, 'student: needs a table with use = "...", one of: autoencoder, cnn'),
        ('student.use = "mlp", student.width = 8', 2, "student.width: unknown key; did you mean widths?"),
        ('target = { use = "tflite", thread = 2 }', 1, "target.thread: unknown key; did you mean threads?"),
        ('target = { use = "tflite", threads = 0 }', 1, "target.threads: Input should be greater than 0, not 0"),
        ('target = "tflite"', 1, 'target: needs a table with use = "...", one of: onnxruntime'),
        ('layers = [["a", "b"],\n ["c", 3]]', 2, "layers[1][1]: Input should be a valid string, not 3"),
        ('corrections = ["headrom"]', 3, "corrections: no correction named 'headrom'; did you mean headroom?"),
    ],
)  # fmt: skip
def test_what_is_wrong_inside_a_step_has_its_line_and_its_whole_path(inner, line, said):
    steps = ['{ use = "train", epochs = 1 }', '{ use = "prune", ratio = 0.5 }',
             '{ use = "distill", weight = 0.5 }', '{ use = "quantize", method = "ptq" }']  # fmt: skip
    steps[line] = f"{steps[line].removesuffix(' }')},{inner} }}"
    rest = {key: value for key, value in MINIMAL.items() if key != "steps"}
    text = "steps = [\n" + ",\n".join(steps) + ",\n]\n" + document(rest)
    assert refusal(text).startswith(f"own.toml:{line + 2}: steps[{line}].{said}")


def test_a_part_inside_a_table_of_its_own_has_its_line():
    wrong = '[[steps]]\nuse = "distill"\n[steps.student]\nuse = "transformer"\n# width\nwidht = 64\n\n[[targets]]'
    message = refusal(TABLES.replace("[[targets]]", wrong, 1))
    assert message.startswith("own.toml:32: steps[3].student.widht: unknown key; did you mean width?")


def test_an_entry_without_use_has_its_own_line():
    for old, line, index in (('use = "train", epochs = 3', 7, 0), ('use = "train", epochs = 2', 8, 1)):
        message = refusal(changed(INLINE, old, old.removeprefix('use = "train", ')))
        assert message.startswith(f"own.toml:{line}: steps[{index}]: needs a table with use")
    message = refusal(changed(TABLES, 'use = "quantize"\n', ""))
    assert message.startswith('own.toml:23: steps[2]: needs a table with use = "...", one of: ')


@settings(deadline=None)
@given(
    wrong=st.integers(0, 5), num=st.integers(1, 6), blank=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    tables=st.booleans(), comment=st.sampled_from(["", "# epochs = 0", "# [[steps]] {", '# "epochs" {{[']),
)  # fmt: skip
def test_the_wrong_one_among_like_steps_is_found(wrong, num, blank, tables, comment):
    wrong %= num
    lines = ['task = { use = "digits" }', 'model = { use = "mlp" }', 'targets = [{ use = "tflite" }]']
    lines += [] if tables else ["steps = ["]
    for index in range(num):
        lines += [comment] * blank[index]
        epochs = f"epochs = {0 if index == wrong else 1}"
        lines += ["[[steps]]", 'use = "train"', epochs] if tables else [f'  {{ use = "train", {epochs} }},']
        if index == wrong:
            expected = len(lines)
    text = "\n".join(lines + ([] if tables else ["]"]))
    assert refusal(text).startswith(f"own.toml:{expected}: steps[{wrong}].epochs: ")


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("step", "epochs", 0), ("step", "epochs", -1), ("step", "epochs", 1.5), ("step", "epochs", 2.0),
        ("step", "epochs", True), ("step", "epochs", "3"), ("step", "epochs", [3]), ("step", "epochs", {}),
        ("step", "batch_size", 0), ("step", "lr", 0), ("step", "lr", -1), ("step", "lr", math.nan),
        ("step", "lr", math.inf), ("step", "lr", -math.inf), ("step", "lr", "1e-3"), ("step", "lr", True),
        ("step", "weight_decay", -0.1), ("step", "weight_decay", math.inf), ("step", "optimizer", "adm"),
        ("step", "optimizer", 1), ("step", "use", "train "), ("step", "use", 3), ("step", "use", ""),
        ("target", "threads", 0), ("target", "threads", -1), ("target", "threads", 0.5), ("target", "threads", "1"),
        ("limits", "score_drop", "a"), ("limits", "score_drop", -0.1), ("limits", "score_drop", math.nan),
        ("limits", "score_drop", math.inf), ("limits", "score_drop", "0.1"), ("limits", "slower", "maybe"),
        ("limits", "slower", True),
        ("bench", "batch_size", 0), ("bench", "batch_size", -1), ("bench", "batch_size", 1.0),
        ("bench", "rounds", 0), ("bench", "rounds", -3), ("bench", "rounds", "30"),
        ("bench", "min_seconds", -1), ("bench", "min_seconds", math.inf), ("bench", "min_seconds", math.nan),
        ("model", "widths", 3), ("model", "widths", [1, "2"]), ("model", "widths", [0]), ("model", "widths", "32"),
        ("recipe", "seed", -1), ("recipe", "seed", 2**32), ("recipe", "seed", "0"), ("recipe", "seed", True),
        ("recipe", "seed", 0.5), ("recipe", "description", 3), ("recipe", "limits", 3), ("recipe", "bench", []),
        ("recipe", "name", ""), ("recipe", "name", ".."), ("recipe", "name", "../up"), ("recipe", "name", "/top"),
        ("recipe", "name", "two\nlines"), ("recipe", "name", "a\0b"), ("recipe", "name", 8),
    ],
)  # fmt: skip
def test_a_value_out_of_range_or_of_another_type_is_refused_and_shown(table, key, value):
    whole = copy.deepcopy(MINIMAL) | {"limits": {}, "bench": {}}
    tables = whole | {"recipe": whole, "step": whole["steps"][0], "target": whole["targets"][0]}
    tables[table][key] = value
    message = refusal(document(whole))
    assert re.search(rf"\b{key}(\[\d\])?: |steps\[0\]: ", message), message
    if not isinstance(value, list | dict) and key != "use":
        assert repr(value) in message
    if repr(value) not in ("inf", "nan", "1.0", "2.0"):  # JSON has no infinity, and takes 2.0 for 2
        assert not valid(whole, schema())


@settings(deadline=None)
@given(
    epochs=st.integers(1, 10**6), lr=st.floats(0, exclude_min=True, allow_infinity=False),
    seed=st.integers(0, 2**32 - 1), drop=st.floats(0, allow_infinity=False), batch_size=st.integers(1, 10**6),
    seconds=st.floats(0, allow_infinity=False) | st.integers(0, 100),
    widths=st.lists(st.integers(1, 10**6), max_size=5),
    name=st.from_regex(r"[\w+ -][\w+. -]{0,20}", fullmatch=True),
)  # fmt: skip
def test_every_value_in_range_arrives_as_it_was_written(epochs, lr, seed, drop, batch_size, seconds, widths, name):
    recipe = parse(
        document(
            MINIMAL
            | {"name": name, "seed": seed, "model": {"use": "mlp", "widths": widths}}
            | {"steps": [{"use": "train", "epochs": epochs, "lr": lr}], "limits": {"score_drop": drop}}
            | {"bench": {"batch_size": batch_size, "min_seconds": seconds}}
        )
    )
    assert (recipe.name, recipe.seed, recipe.model.widths) == (name, seed, tuple(widths))
    assert (recipe.steps[0].epochs, recipe.steps[0].lr, recipe.limits.score_drop) == (epochs, lr, drop)
    assert (recipe.bench.batch_size, recipe.bench.min_seconds) == (batch_size, seconds)


@pytest.mark.parametrize("key", ["task", "model", "steps", "targets"])
def test_a_missing_key_is_named(key):
    table = {name: value for name, value in MINIMAL.items() if name != key}
    assert refusal(document(table)) == f"own.toml:1: {key}: this key is missing"


def test_the_same_target_twice_is_refused_and_with_other_threads_is_not():
    one, two = {"use": "onnxruntime", "threads": 1}, {"use": "onnxruntime", "threads": 2}
    message = refusal(document(MINIMAL | {"targets": [one, two, one]}))
    assert message == "own.toml:4: targets[2]: it is the same as targets[0]; leave one out"
    assert len(parse(document(MINIMAL | {"targets": [one, two]})).targets) == 2


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment"])
def test_an_empty_file_lacks_a_task(text):
    assert refusal(text) == "own.toml:1: task: this key is missing"


@pytest.mark.parametrize(
    ("key", "kind"), [("task", "tasks"), ("model", "models"), ("steps", "steps"), ("targets", "targets")]
)
@pytest.mark.parametrize("value", ["a", 3, True, [], {}, {"use": 3}, [3], [[]], [{}], ["a"]])
def test_what_is_no_part_is_answered_with_what_is_needed(key, kind, value):
    message = refusal(document(MINIMAL | {key: value}))
    if kind == key and not isinstance(value, list):
        assert message.endswith(f': {key}: needs an array of tables: {key} = [{{ use = "..." }}]')
    elif kind == key and not value:
        assert re.search(f": {key}: .*at least 1 item", message)
    else:
        where = f"{key}[0]" if kind == key else key
        needed = f': {where}: needs a table with use = "...", one of: {", ".join(plugins.names(kind))}'
        assert message.endswith(needed)


def test_one_table_is_no_array_of_tables_and_the_other_way_about():
    assert "steps: needs an array of tables" in refusal(document(MINIMAL | {"steps": {"use": "train"}}))
    assert 'task: needs a table with use = "..."' in refusal(document(MINIMAL | {"task": [{"use": "digits"}]}))


@pytest.mark.parametrize(
    "text", ["a = = 1", "a = 1\na = 2", "[task", 'task = { use = "digits" ', "\0", "a = 1e", "x = " + "[" * 9999,
             "x = " + "1" * 9999, "x = 0000-00-00", "\N{ZERO WIDTH NO-BREAK SPACE}seed = 0"]
)  # fmt: skip
def test_bad_toml_is_said_to_be_bad(text):
    assert refusal(text).startswith("own.toml: no valid TOML: ")


def test_bad_toml_has_its_line():
    assert "line 3" in refusal("seed = 0\n\nname 3\n")


def test_a_file_that_is_not_utf8_or_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "latin.toml"
    file.write_bytes('description = "für"'.encode("latin-1"))
    with pytest.raises(RecipeError, match=f"{file}: cannot be read: 'utf-8' codec"):
        recipes.load(str(file))
    with pytest.raises(UsageError, match=f"no recipe file {tmp_path}/absent.toml"):
        recipes.load(f"{tmp_path}/absent.toml")
    with pytest.raises(UsageError, match=f"no recipe file {tmp_path}"):
        recipes.load(str(tmp_path))
    with pytest.raises(UsageError, match="longlong"):
        recipes.load("long" * 5000 + ".toml")


def test_an_unknown_recipe_is_answered_with_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"no recipe named 'cnn-int'; did you mean cnn-int8"):
        recipes.load("cnn-int")
    with pytest.raises(UsageError, match=f"no recipe named 'xyz'; there are: {', '.join(recipes.names())}"):
        recipes.load("xyz")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xyz.toml").write_text(document(MINIMAL))
    assert recipes.load("xyz.toml").name == "xyz"


MODULE = """
from typing import Literal
from pydantic import BaseModel
from edgedl.core import Network, Step

class Schedule(BaseModel, extra="forbid"):
    warm_up: int = 0

class Deep(Network):
    use: str = "deep"
    depth: int
    schedule: Schedule = Schedule()
    other: Schedule | None = None
    several: list[Schedule] = []

class Aimed(Step):
    use: str = "aimed"
    target: str = "price"

class NoPart:
    pass
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A package of one's own with a network; returns the text of a recipe that uses it with these keys."""
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(MODULE)
    (package / "broken.py").write_text("def (:\n")
    (package / "needy.py").write_text("from os import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda keys: document(MINIMAL).replace('{"use" = "mlp"}', "{" + keys + "}")
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


def test_a_class_of_ones_own_stands_where_a_plugin_does(own_module):
    model = parse(own_module('use = "own_package.nets:Deep", depth = 3, several = [{ warm_up = 2 }]')).model
    assert (type(model).__name__, model.depth, model.several[0].warm_up) == ("Deep", 3, 2)
    assert model.use == "own_package.nets:Deep"
    assert valid(tomllib.loads(own_module('use = "own_package.nets:Deep", depth = 3')), schema())
    text = own_module('use = "mlp"').replace('"use" = "train"', 'use = "own_package.nets:Aimed", target = "size"')
    assert parse(text).steps[0].target == "size"  # whose name only is that of a part inside a part


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('use = "own_package.nets:Deep"', "model.depth: this key is missing"),
        ('use = "own_package.nets:Deep", deth = 3', "model.deth: unknown key; did you mean depth?"),
        ('use = "own_package.nets:Deep", depth = "3"', "model.depth: Input should be a valid integer, not '3'"),
        ('use = "own_package.nets:Deep", depth = 3, schedule = { warmup = 2 }',
         "model.schedule.warmup: unknown key; did you mean warm_up?"),
        ('use = "own_package.nets:Deep", depth = 3, other = { warmup = 2 }', "model.other.warmup: unknown key"),
        ('use = "own_package.nets:Deep", depth = 3, several = [{ warmup = 2 }]',
         "model.several[0].warmup: unknown key"),
        ('use = "own_package.nets:Dep"', "model.use: module own_package.nets has no Dep; did you mean Deep?"),
        ('use = "own_package.nets:NoPart"', "own_package.nets:NoPart is no Network and cannot stand under models"),
        ('use = "edgedl.steps.train:Train"', "edgedl.steps.train:Train is no Network and cannot stand under models"),
        ('use = "os.path:join"', "os.path:join is no Network and cannot stand under models"),
        ('use = "own_package.absent:Deep"', "cannot import own_package.absent: No module named"),
        ('use = "absent_package:Deep"', "cannot import absent_package: No module named 'absent_package'; is it on"),
        ('use = "own_package.broken:Deep"', "your code raised SyntaxError: invalid syntax (broken.py, line 1)"),
        ('use = "own_package.needy:Deep"', "needy: your code raised ImportError: cannot import name 'nothing_of_that"),
        ('use = "os:nothing"', "module os has no nothing; there are: "),
        *[(f'use = "{name}"', "names nothing; write package.module:name")
          for name in (":Deep", "own_package.nets:", ":", ".nets:Deep", "..:x", "a b:C", "own_package:nets:Deep",
                       "own_package.nets:Deep()", "own_package/nets.py:Deep", r"a\nb:C")],
    ],
)  # fmt: skip
def test_a_class_of_ones_own_that_is_wrong_is_said_to_be(own_module, keys, said):
    message = refusal(own_module(keys))
    assert message.startswith("own.toml:2: model")
    assert said in message


@functools.cache
def schema() -> dict[str, Any]:
    return recipes.schema()


def valid(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> bool:
    """Whether `value` follows a JSON Schema, as far as recipes use that language; other words are an error."""
    root = root or schema
    kinds = {"object": dict, "array": list | tuple, "string": str, "integer": int, "number": int | float,
             "boolean": bool, "null": None}  # fmt: skip

    def is_a(kind: str) -> bool:
        return value is None if kind == "null" else isinstance(value, kinds[kind]) and (
            kind == "boolean" or not isinstance(value, bool)
        )  # fmt: skip

    def entries(given: Any) -> bool:
        return not isinstance(value, list) or all(valid(item, given, root) for item in value)

    def more_keys(given: Any) -> bool:
        more = value.keys() - schema.get("properties", {}).keys() if isinstance(value, dict) else ()
        return all(given is not False and valid(value[key], given, root) for key in more)

    def is_number(compare: Any) -> bool:
        return not is_a("number") or compare(value)

    rules = {
        "$ref": lambda given: valid(value, root["$defs"][given.removeprefix("#/$defs/")], root),
        "type": is_a,
        "const": lambda given: value == given,
        "enum": lambda given: value in given,
        "oneOf": lambda given: sum(valid(value, option, root) for option in given) == 1,
        "anyOf": lambda given: any(valid(value, option, root) for option in given),
        "properties": lambda given: (
            not isinstance(value, dict)
            or all(valid(value[key], given[key], root) for key in given.keys() & value.keys())
        ),
        "required": lambda given: not isinstance(value, dict) or value.keys() >= set(given),
        "additionalProperties": more_keys,
        "items": entries,
        "prefixItems": lambda given: not isinstance(value, list) or all(map(valid, value, given, [root] * len(given))),
        "maxItems": lambda given: not isinstance(value, list) or len(value) <= given,
        "minItems": lambda given: not isinstance(value, list) or len(value) >= given,
        "minLength": lambda given: not isinstance(value, str) or len(value) >= given,
        "pattern": lambda given: not isinstance(value, str) or bool(re.search(given.replace("$", r"\Z"), value)),
        "minimum": lambda given: is_number(lambda number: number >= given),
        "maximum": lambda given: is_number(lambda number: number <= given),
        "exclusiveMinimum": lambda given: is_number(lambda number: number > given),
        "multipleOf": lambda given: is_number(lambda number: number % given == 0),
        "exclusiveMaximum": lambda given: is_number(lambda number: number < given),
    }
    remarks = {"title", "description", "default", "$defs"}
    return all(rules[word](given) for word, given in schema.items() if word not in remarks)


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_follows_the_schema_and_no_broken_one_does(name):
    json.dumps(schema(), allow_nan=False)
    table = tomllib.loads(recipes.find(name).read_text(encoding="utf-8"))
    assert valid(table, schema())
    for key in ("task", "model", "steps", "targets"):
        assert not valid({kept: value for kept, value in table.items() if kept != key}, schema())
        assert not valid(table | {key: table[key][0] if isinstance(table[key], list) else [table[key]]}, schema())
        assert not valid(table | {key: []}, schema())
    assert not valid(table | {"sed": 0}, schema())
    assert not valid(table | {"task": {"use": "digit"}}, schema())
    assert not valid(table | {"task": table["task"] | {"fold": 3}}, schema())
    assert not valid(table | {"task": {}}, schema())
    assert not valid(table | {"task": {"folder": "without use"}}, schema())
    assert not valid(table | {"steps": [{"use": "train", "epochs": 0}]}, schema())
    assert not valid(table | {"bench": {"batch_size": 0}}, schema())


def test_the_schema_describes_every_plugin_and_what_one_adds():
    definitions = schema()["$defs"]
    for kind in plugins.BASES:
        for name in plugins.names(kind):
            assert definitions[f"{kind}.{name}"]["properties"]["use"] == {"const": name, "type": "string"}
            assert definitions[f"{kind}.{name}"]["description"]


ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(
    ["digits", "mnist", "cnn", "mlp", "train", "quantize", "tflite", "onnxruntime", "a.b:C", 0, 1, -1, 1e-3]
)  # fmt: skip
KEYS = st.text(max_size=4) | st.sampled_from(
    ["use", "epochs", "lr", "threads", "widths", "folder", "score_drop", "rounds", "batch_size", "optimizer"]
)
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
PARTS = st.fixed_dictionaries(
    {}, optional={"use": ATOMS, "epochs": VALUES, "lr": VALUES, "widths": VALUES, "threads": VALUES}
)
RECIPES = st.fixed_dictionaries(
    {},
    optional={"task": PARTS | VALUES, "model": PARTS | VALUES}
    | {key: st.lists(PARTS, max_size=3) | VALUES for key in ("steps", "targets")}
    | dict.fromkeys(("name", "description", "seed", "limits", "bench", "search", "other"), VALUES),
)


def is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True


def parsed_or_refused(text: str) -> Recipe | None:
    try:
        return parse(text)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return None


@settings(max_examples=200, deadline=None)
@given(RECIPES)
def test_whatever_a_table_holds_the_only_error_is_that_of_a_recipe(table):
    parsed_or_refused(document(table))


PLACES = [
    *[("recipe", key) for key in ("name", "description", "seed", "limits", "bench", "task", "steps", "other")],
    *[("step", key) for key in ("use", "epochs", "batch_size", "lr", "optimizer", "weight_decay", "threads")],
    *[("model", key) for key in ("use", "widths", "hidden")],
    *[("target", key) for key in ("use", "threads", "compute_capabilities")],
    *[("limits", key) for key in ("score_drop", "slower")],
    *[("bench", key) for key in ("batch_size", "min_seconds", "rounds")],
    *[("search", key) for key in ("steps.train.epochs", "anything")],
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), ATOMS | st.lists(ATOMS, max_size=2) | VALUES)
def test_what_is_read_follows_the_schema_and_what_follows_it_is_read(place, value):
    table, key = place
    whole = copy.deepcopy(MINIMAL) | {"limits": {}, "bench": {}, "search": {}}
    tables = whole | {"recipe": whole, "step": whole["steps"][0], "target": whole["targets"][0]}
    tables[table][key] = value
    text = document(whole)
    assume(is_toml(text))
    # JSON has no NaN and takes 2.0 for 2, pydantic's takes no huge integer for a float, and there is no module a.b.
    assume(not re.search(r"nan|inf|\d\.0|\d{16}|a\.b:C", text))
    assume(key != "use" or not re.fullmatch("[^:]+:[^:]+", str(value)))  # which names a module, and there is none
    assert valid(whole, schema()) == (parsed_or_refused(text) is not None)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("[]{}=\"'.,# \n\tasktep0123456789-_:\\", max_size=200))
def test_garbage_is_refused_as_a_recipe(text):
    assert parsed_or_refused(text) is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_recipe_is_read_or_refused(data):
    text = data.draw(st.sampled_from([INLINE, TABLES]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.text('{}[]="\n #0z.', max_size=3)) + text[end:]
    parsed_or_refused(text)
