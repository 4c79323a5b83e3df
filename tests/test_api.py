"""`edgedl.compress` and what goes with it: a module and data from Python, or named on the command line."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from torch import nn

import edgedl
from edgedl import recipe
from edgedl import run as run_files
from edgedl.tasks.data import Data
from tests import quick
from tests.test_cli import run_in

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK: dict[str, Any] = {
    "steps": [{"use": "quantize", "method": "ptq", "calibrator": "min-max", "corrections": []}],
    "bench": {"min_seconds": 0, "rounds": 1},
    "limits": {"score_drop": 1, "slower": "allow"},
    "progress": False,
}
PERSONS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, signal):
        return {"scores": self.head(torch.relu(self.hidden(signal)))}


def build():
    torch.manual_seed(0)
    return Net()
"""


def blobs(num: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that a line tells apart."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, num)
    return (generator.normal(size=(num, 8)) + 3 * np.eye(8)[label]).astype(np.float32), label


def trained(net: nn.Module) -> nn.Module:
    x, y = map(torch.from_numpy, blobs())
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return trained(nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)))


@pytest.fixture(scope="module")
def finished(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> edgedl.Run:
    return edgedl.compress(network, blobs(), targets=["tflite"], out=tmp_path_factory.mktemp("runs"), **QUICK)


def test_the_names_are_these():
    assert edgedl.__all__ == ["EdgedlError", "Run", "bench", "compare", "compress", "load_run", "open"]
    assert all(getattr(edgedl, name).__doc__ for name in edgedl.__all__)
    assert set(edgedl.__all__) <= set(dir(edgedl))
    taken = {module.name for module in pkgutil.iter_modules(edgedl.__path__)}
    assert taken.isdisjoint(edgedl.__all__)  # a module that is imported would take the place of the function
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        edgedl.compres  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = "import sys, edgedl; print(*{'torch', 'numpy', 'pydantic', 'rich'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_module_and_arrays_come_out_as_a_file_that_answers_alike(network, finished):
    file = finished.best("tflite")
    assert file == finished.best()
    assert file.is_relative_to(finished.folder)
    float_file = finished.folder / "targets/float/tflite/model.tflite"
    x, _ = blobs()
    session = edgedl.open(float_file)
    (name,) = session.inputs
    answers = np.concatenate([session.run({name: x[index : index + 1]})["output"] for index in range(20)])
    with torch.no_grad():
        np.testing.assert_allclose(answers, network.eval()(torch.from_numpy(x[:20])), atol=1e-4)


def test_the_module_stays_as_it_was(tmp_path):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    structure = repr(net)
    steps = [{"use": "train", "epochs": 2}, {"use": "prune", "ratio": 0.5, "iterations": 1}, *QUICK["steps"]]
    run = edgedl.compress(net, blobs(), targets=["onnxruntime"], out=tmp_path, **QUICK | {"steps": steps})
    assert net.training
    assert repr(net) == structure
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert run.best().stat().st_size < (run.folder / "targets/float/onnxruntime/model.onnx").stat().st_size


def test_without_labels_files_are_held_against_the_module(network, tmp_path):
    run = edgedl.compress(network, {"signal": blobs()[0]}, targets=["tflite"], out=tmp_path, **QUICK)
    report = edgedl.load_run(run.folder)._repr_html_()
    assert "agreement" in report
    assert run.best().exists()


def test_a_run_is_found_again(finished):
    again = edgedl.load_run(finished.folder)
    assert again.best("tflite") == finished.best("tflite")
    assert edgedl.load_run(finished.recipe.name, finished.folder.parents[1]).folder == finished.folder
    assert again.recipe.steps == finished.recipe.steps
    assert "accuracy" in again._repr_html_()
    with pytest.raises(edgedl.EdgedlError, match="was given from Python"):
        again.recipe.model.build(again.recipe.task)
    with pytest.raises(edgedl.EdgedlError, match="no target onnx; there are: tflite"):
        again.best("onnx")
    with pytest.raises(edgedl.EdgedlError, match='no run "absent"'):
        edgedl.load_run("absent")


def test_files_are_measured_side_by_side(finished):
    float_file = finished.folder / "targets/float/tflite/model.tflite"
    rows = edgedl.bench(finished.best(), vs=float_file, seconds=0.01)
    assert [Path(row["file"]) for row in rows] == [finished.best(), float_file]
    assert rows[0]["speedup"]["median"] > 0
    for call in (edgedl.bench, edgedl.open):
        with pytest.raises(edgedl.EdgedlError, match=r"no file absent\.tflite"):
            call("absent.tflite")


def test_what_a_file_does_not_take_is_said(finished, tmp_path):
    file = finished.best("tflite")
    session = edgedl.open(file)
    for arrays, said in [
        (
            {"input": np.zeros((4, 8), np.float32)},
            r"takes input float32 \(1, 8\), and was given input float32 \(4, 8\)",
        ),
        ({"input": np.zeros((1, 8))}, "was given input float64"),
        ({"inptu": np.zeros((1, 8), np.float32)}, "was given inptu"),
        ({}, "was given nothing"),
    ]:
        with pytest.raises(edgedl.EdgedlError, match=said):
            session.run(arrays)
    (tmp_path / "cut.tflite").write_bytes(file.read_bytes()[:500])
    with pytest.raises(edgedl.EdgedlError, match=r"cut\.tflite"):
        edgedl.open(tmp_path / "cut.tflite")


def share_of_hits(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> float:
    return float((outputs["output"].argmax(axis=1) == batch["label"]).mean())


def test_a_metric_is_a_function(network, tmp_path):
    given = {"data": blobs(), "targets": ["tflite"], "out": tmp_path / "runs"} | QUICK
    run = edgedl.compress(network, metric=share_of_hits, **given)
    report = run_files.read_report(run.folder)
    assert report["metric"]["name"] == "share_of_hits"
    assert report["rows"][0]["score"] > 0.9
    with pytest.raises(edgedl.EdgedlError, match=r"metric is .*<lambda>, which no name leads to"):
        edgedl.compress(network, metric=lambda outputs, batch: 1.0, **given)


def test_a_notebook_shows_what_is_done_and_what_came_of_it(tmp_path):
    lines = [
        PERSONS.strip(),
        "import edgedl\nimport numpy as np\nx = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)",
        f"edgedl.compress(build(), x, targets=['tflite'], **{QUICK | {'progress': True}!r})",
        "edgedl.compress(build(), x, targets=['coreml'])",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in lines])
    NotebookClient(notebook, timeout=600, allow_errors=True, resources={"metadata": {"path": tmp_path}}).execute()
    *_, shown, wrong = notebook.cells
    said = "".join(output.text for output in shown.outputs if output.output_type == "stream")
    (result,) = (output for output in shown.outputs if output.output_type != "stream")
    assert "tflite: build" in said
    assert "LiteRT-Torch" not in said, "the converter's own lines are for the log"
    assert "Warning" not in said
    assert "ship" in result.data["text/html"]
    assert "no targets named 'coreml'" in wrong.outputs[-1].evalue


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": None}, "there is no data"),
        ({"task": "digits"}, "data, label, metric, images and dynamic say what to judge by"),
        ({"model": 3}, "model is a int: give a torch.nn.Module"),
        ({"model": "my_model"}, "is no network; there are: package.module:name"),
        ({"steps": [{"use": "prune", "ratoi": 0.5}]}, r"steps\[0\].ratoi: unknown key; did you mean ratio"),
        ({"steps": ["quantise"]}, r"steps\[0\].use: no steps named 'quantise'; did you mean quantize"),
        ({"steps": []}, "steps: .*at least 1"),
        ({"targets": ["coreml"]}, "no targets named 'coreml'"),
        ({"limits": {"score_dorp": 1}}, "limits.score_dorp: unknown key; did you mean score_drop"),
        ({"metric": "acuracy"}, "no metric named 'acuracy'; did you mean accuracy"),
        ({"label": "target"}, "target"),
        ({"dynamic": ["signal=length"]}, "dynamic: .*names no dimension of an input, such as tokens.1=length or"),
        ({"dynamic": ["signal.1=length:4-16"]}, "for any length: its forward takes that for a fixed 8"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(changed, said, network, tmp_path):
    given = {"model": network, "data": {"signal": blobs()[0], "label": blobs()[1]}, "out": tmp_path / "runs"} | QUICK
    with pytest.raises(edgedl.EdgedlError, match=said) as error:
        edgedl.compress(**given | changed)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_network_of_ones_own_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", quick.measuring_briefly(os.environ)["PYTHONPATH"])
    (tmp_path / "my_model.py").write_text(PERSONS)
    x, y = blobs()
    np.savez(tmp_path / "data.npz", signal=x, label=y)
    done = run_in(
        tmp_path, "compress", "--model", "my_model:build", "--data", "data.npz", "--epochs", "3", "--fp16",
        "--target", "tensorrt-rtx", "--target", "onnxruntime",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "importing my_model" in done.stderr
    assert "onnxruntime: ship" in done.stdout
    (text,) = (tmp_path / "runs/my_model").glob("*/recipe.toml")
    read = recipe.load(str(text))
    assert [target.use for target in read.targets] == ["tensorrt-rtx", "onnxruntime"]
    assert [step.use for step in read.steps] == ["train", "quantize"]
    again = run_in(tmp_path, "compress", "--recipe", str(text.relative_to(tmp_path)))
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "give a recipe (edgedl recipes list), or your own network with --model and --data"),
        (("--recipe", "cnn-int8", "--int8"), "a recipe says it all: leave out --int8"),
        (("--recipe", "cnn-int8", "--target", "tflite"), "leave out --target"),
        (("--model", "my_model:build"), "there is no data"),
        (("--model", "absent:build", "--data", "data.npz"), "cannot import absent: No module named"),
        (("--model", "my_model:build", "--data", "absent.npz"), "absent.npz: no such file"),
        (
            ("--model", "my_model:build", "--data", "data.npz", "--dynamic", "signa.1=n"),
            "no input 'signa'; did you mean",
        ),
        (("--model", "my_model:build", "--data", "data.npz", "--metric", "my_model:hits"), "my_model has no hits"),
        (("--model", "my_model:build", "--data", "absent.npz", "--int8", "--fp16"), "two ways to store weights"),
        (("--model", "model.onnx", "--data", "x.npz", "--weights", "w.safetensors"), "has its weights"),
    ],
)
def test_wrong_options_are_one_line(given, said, tmp_path):
    (tmp_path / "my_model.py").write_text(PERSONS)
    np.savez(tmp_path / "data.npz", signal=blobs()[0])
    done = run_in(tmp_path, "compress", *given)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


TEXT = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4), st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=3))
def test_a_recipes_text_says_what_it_was_made_of(table, steps):
    table = table | {"steps": steps}
    assert tomllib.loads(recipe.dumps(table)) == table


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (np.arange(60) % 3, "accuracy"),
        (["no", "yes"] * 30, "accuracy"),
        (np.linspace(0, 1, 60), "rmse"),
        (np.zeros((60, 4, 4), np.int64) + np.arange(4) % 2, "miou"),
    ],
)
def test_the_labels_tell_what_to_judge_by(label, name):
    task = Data.of({"x": np.zeros((60, 2), np.float32) + np.arange(60)[:, None], "label": label})
    assert task.measured_by == name
    assert Data.of({"x": np.zeros((60, 2)), "y": label}, label="y").measured_by == name
