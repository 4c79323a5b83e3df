"""What every plugin promises, for every file in every folder of a kind; finding, loading and missing packages."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError

from edgedl import plugins
from edgedl.core import MissingPackage, Network, Part, Step, Target, UsageError
from edgedl.recipe import tomllib

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EVERY = [(kind, name) for kind in plugins.BASES for name in plugins.names(kind)]
HEAVY = ["torch", "torchao", "onnx", "onnxscript", "onnxruntime", "litert_torch", "ai_edge_litert", "tensorrt",
         "tensorrt_rtx", "cuda.bindings.runtime", "sklearn", "scipy", "datasets", "tensorflow", "jax", "transformers",
         "keras"]  # fmt: skip

TASKS = {
    "recurrent-classifier": "text",
    "ncf": "ratings",
    "path-predictor": "tracks",
    "gcn": "nodes",
    "policy": "control",
    "transformer": "text",
    "generator": "generation",
    "seq2seq": "translation",
    "gpt": "language",
    "conv-recurrent": "transcription",
    "detector": "detection",
    "vae": "variational",
    "stylizer": "style",
}
"""What networks learn that see no images."""
ANSWERS = {
    "autoencoder": (1, 28, 28),
    "dense-autoencoder": (1, 28, 28),
    "path-predictor": (12, 2),
    "gcn": (800, 5),
    "policy": (2,),
    "generator": (1, 28, 28),
    "vae": (1, 28, 28),
    "stylizer": (3, 64, 64),
    "unet": (10, 28, 28),
    "seq2seq": (16, 90),
    "gpt": (96, 100),
    "conv-recurrent": (45, 29),
    "detector": (3, 24, 24),
}
"""The shape of what a network says of a digit, where it is more than a number for each class; the first of several."""

FAMILIES = [
    name
    for name in plugins.names("models")
    if not any(field.is_required() for field in plugins.load("models", name).model_fields.values())
]
"""Networks that need nothing but their own fields: the others take one of a person's."""

each_plugin = pytest.mark.parametrize(("kind", "name"), EVERY, ids=lambda value: value)
each_target = pytest.mark.parametrize("target", [plugins.load("targets", name) for name in plugins.names("targets")])


def test_a_file_in_a_kinds_folder_is_a_plugin():
    for kind in plugins.BASES:
        folder = Path(importlib.import_module(f"edgedl.{kind}").__file__).parent
        files = {file.stem.replace("_", "-") for file in folder.glob("*.py")} - {"--init--"}
        assert files
        assert files <= set(plugins.names(kind))


@each_plugin
def test_its_file_begins_with_one_sentence(kind, name):
    source = Path(inspect.getfile(plugins.load(kind, name))).read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(source))
    assert said
    first = said.splitlines()[0]
    assert re.fullmatch(r".*[^.]\.", first), first
    assert not re.search(r"[.!?]\s+[A-Z]", first), first


@each_plugin
def test_its_class_is_of_its_kind_and_says_what_it_is(kind, name):
    found = plugins.load(kind, name)
    assert issubclass(found, plugins.BASES[kind])
    assert found is not plugins.BASES[kind]
    assert vars(found)["__doc__"]  # its own, not the base's
    assert found.model_fields["use"].default == name


@each_plugin
def test_it_takes_no_unknown_key_and_cannot_be_changed(kind, name):
    found = plugins.load(kind, name)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        found(no_such_key=1)
    part = found.model_construct()
    assert part.use == name
    for field in found.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, None)


@each_plugin
def test_it_overrides_what_its_kind_has_to_say(kind, name):
    needed = {"tasks": ("inputs", "arrays", "loss", "score"), "models": ("build",), "steps": ("apply",),
              "targets": ("build", "open")}  # fmt: skip
    found, base = plugins.load(kind, name), plugins.BASES[kind]
    assert all(getattr(found, member) is not getattr(base, member) for member in needed[kind])


@each_target
def test_a_target_declares_all_that_is_asked_of_it(target):
    assert set(target.requires) == {"build", "open"}
    assert target.scheme.__class__.__name__ == "Scheme"
    assert target.suffixes
    assert all(re.fullmatch(r"\.[a-z]+", suffix) for suffix in target.suffixes)


def test_no_two_targets_claim_an_ending():
    claimed = [suffix for name in plugins.names("targets") for suffix in plugins.load("targets", name).suffixes]
    assert len(claimed) == len(set(claimed))


def packages_of(extra: str) -> set[str]:
    """All that `pip install edgedl[extra]` brings, without versions; extras of this package are followed."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        name, inner = re.match(r"([\w-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        found |= set().union(*map(packages_of, inner.split(","))) if name == "edgedl" else {name}
    return found


@each_target
def test_the_extra_of_a_target_exists_and_brings_what_it_needs_to_build(target):
    brought = packages_of(target.extra)
    for module in target.requires["build"]:
        first = module.split("|")[0]
        assert plugins.PACKAGES.get(first, first) in brought


@each_plugin
def test_its_name_in_a_recipe_has_no_underscore(kind, name):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


def test_checking_every_recipe_with_every_plugin_imports_no_framework_and_no_runtime():
    program = f"""
import sys
from edgedl import plugins, recipe
parts = [plugins.load(kind, name) for kind in plugins.BASES for name in plugins.names(kind)]
assert len(parts) == {len(EVERY)}
recipe.schema()
assert all(recipe.load(name).targets for name in recipe.names())
[plugins.missing(part, purpose) for part in parts if hasattr(part, "requires") for purpose in ("build", "open")]
print(*sorted({set(HEAVY)!r} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def first_output(answer: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return answer[0] if isinstance(answer, tuple) else answer


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_maps_a_batch_of_the_task_to_its_outputs(name):
    task, network = plugins.load("tasks", TASKS.get(name, "digits"))(), plugins.load("models", name)()
    assert isinstance(network, Network)
    net = network.build(task).eval()
    arrays = task.arrays("test")
    inputs = [torch.from_numpy(arrays[input_name][:2]) for input_name in task.inputs]
    if len(inputs[0]) == 1:  # a graph is all there is
        inputs = [torch.cat([value, value.flip(-1)]) for value in inputs]

    def first_answer(*inputs: torch.Tensor) -> torch.Tensor:
        answers = net(*inputs)
        return answers[0] if isinstance(answers, tuple) else answers

    with torch.no_grad():
        logits = first_answer(*inputs)
        logits = first_output(net(*inputs))
        plain = (task.num_classes,) if hasattr(task, "num_classes") else ()
        assert logits.shape == (2, *ANSWERS.get(name, plain))
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        torch.testing.assert_close(first_answer(*(value[1:] for value in inputs)), logits[1:])  # each image by itself
        torch.testing.assert_close(
            first_output(net(*(value[1:] for value in inputs))), logits[1:]
        )  # each image by itself
        assert (logits[0] != logits[1]).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_seed_alone_decides_how_a_network_begins(name):
    task, network = plugins.load("tasks", TASKS.get(name, "digits"))(), plugins.load("models", name)()

    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return network.build(task).state_dict()

    first, second, other = weights(0), weights(0), weights(1)
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("kind", plugins.BASES)
def test_an_unknown_name_is_answered_with_the_nearest(kind):
    for name in plugins.names(kind):
        with pytest.raises(UsageError, match=rf"no {kind} named '{name}x'; did you mean {name}"):
            plugins.load(kind, f"{name}x")
    for name in ("", "__init__", "qqqqqqqqqq", "../core"):
        with pytest.raises(UsageError, match=re.escape(f"no {kind} named '{name}'; there are: ")):
            plugins.load(kind, name)


class Toy(Target):
    """Needs what nobody has."""

    use: str = "toy"
    requires: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "build": ("json", "no_such_module", "no_such_package.inner", "no_such_either|nor_this"),
        "open": ("no_such_either|json",),
    }
    extra: ClassVar[str] = "toys"


class Other(Toy):
    """Needs something else."""

    use: str = "other"
    requires: ClassVar[Mapping[str, tuple[str, ...]]] = {"build": ("no_such_other",), "open": ()}
    extra: ClassVar[str] = "others"


def test_missing_packages_of_all_targets_are_named_with_the_line_that_installs_them(monkeypatch):
    monkeypatch.setitem(plugins.PACKAGES, "no_such_module", "no-such-distribution")
    with pytest.raises(MissingPackage) as caught:
        plugins.require([Toy(), Other()])
    message = str(caught.value)
    assert "target toy needs no-such-distribution, no_such_package.inner, no_such_either; " in message
    assert "target other needs no_such_other" in message
    assert message.endswith(": pip install 'edgedl[toys,others]'")


def test_what_is_missing_to_open_a_file_is_the_runtime_alone():
    class Runtime(Toy):
        requires: ClassVar[Mapping[str, tuple[str, ...]]] = {"build": (), "open": ("json", "no_such_runtime|nor_this")}

    with pytest.raises(MissingPackage, match=r"target toy needs no_such_runtime: pip install no_such_runtime$"):
        plugins.require([Runtime()], "open")


def test_nothing_is_missing_where_one_alternative_is_there():
    plugins.require([Toy(), Other()], "open")
    assert plugins.missing(Toy(), "build") == ["no_such_module", "no_such_package.inner", "no_such_either|nor_this"]


def test_asking_whether_a_module_is_there_does_not_import_it(tmp_path, monkeypatch):
    (tmp_path / "fails_when_imported.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.installed("fails_when_imported")
    assert "fails_when_imported" not in sys.modules


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A distribution that adds plugins by entry points, on the path as if installed."""
    about = tmp_path / "foreign_plugins-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-plugins\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[edgedl.steps]\nshake_well = foreign_plugins:Shake\nabsent = foreign_plugins:Absent\n"
        "gone = foreign_plugins.gone:Gone\nno-step = foreign_plugins:NoStep\n"
    )
    (tmp_path / "foreign_plugins.py").write_text(
        "from edgedl.core import Network, Step\n\n"
        "class Shake(Step):\n    use: str = 'shake-well'\n    times: int = 3\n\n"
        "class NoStep(Network):\n    use: str = 'no-step'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("foreign_plugins", None)


@pytest.mark.usefixtures("foreign")
def test_an_installed_package_adds_plugins_by_entry_points():
    assert {"shake-well", "train", "quantize"} <= set(plugins.names("steps"))
    assert "foreign_plugins" not in sys.modules
    shake = plugins.load("steps", "shake-well")
    assert issubclass(shake, Step)
    assert shake().times == 3


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "module foreign_plugins has no Absent; there are: "),
        ("gone", "cannot import foreign_plugins.gone"),
        ("no-step", "no-step is no Step and cannot stand under steps"),
    ],
)
def test_a_plugin_of_an_installed_package_that_is_broken_is_said_to_be(name, said):
    with pytest.raises(UsageError, match=said):
        plugins.load("steps", name)


def test_parts_are_compared_by_their_fields():
    train = plugins.load("steps", "train")
    assert train(epochs=3) == train(epochs=3)
    assert train(epochs=3) != train(epochs=4)
    assert issubclass(train, Part)
