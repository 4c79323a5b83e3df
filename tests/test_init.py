"""`edgedl init`: what it writes runs, and what it asks can be given."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgedl import recipe, scaffold
from edgedl.core import UsageError
from edgedl.own import networks
from tests.test_cli import command, environment, run_in


def arrays(folder: Path) -> dict[str, Path]:
    """A file for each kind of network."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 60)
    inputs = {
        "image": {"picture": generator.normal(size=(60, 3, 12, 10)).astype(np.float32)},
        "tokens": {"words": generator.integers(0, 50, (60, 9))},
        "rows": {"signal": generator.normal(size=(60, 4)).astype(np.float32), "more": np.ones((60, 2, 3), np.float32)},
    }
    files = {name: folder / f"{name}.npz" for name in inputs}
    for name, file in files.items():
        np.savez(file, **inputs[name], target=label)
    return files


def test_it_writes_a_recipe_a_network_and_data(tmp_path):
    """Which run: docs/own-model.md has these very commands."""
    assert run_in(tmp_path, "init", "mine", "--target", "tflite").returncode == 0
    folder = tmp_path / "mine"
    assert sorted(file.name for file in folder.iterdir()) == ["my_data.py", "my_model.py", "recipe.toml"]


@pytest.mark.parametrize("kind", ["image", "tokens", "rows"])
def test_the_network_fits_the_data(kind, tmp_path, monkeypatch):
    file = arrays(tmp_path)[kind]
    scaffold.write(tmp_path / "new", str(file), "target", "fp16", 0.25, ["onnxruntime"])
    monkeypatch.chdir(tmp_path / "new")
    monkeypatch.syspath_prepend(str(tmp_path / "new"))
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    found = recipe.load("recipe.toml")
    assert [step.use for step in found.steps] == ["train", "prune", "quantize"]
    net = found.model.build(found.task)
    inputs = {name: _zeros(spec) for name, spec in found.task.inputs.items()}
    assert networks.outputs_of(net, inputs)["output"].shape == (2, 3)


def _zeros(spec):
    import torch

    return torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": "int7"}, "precision: Input should be 'int8'"),
        ({"prune": 1.5}, "ratio: Input should be less than 1"),
        ({"targets": ["coreml"]}, "no targets named 'coreml'"),
        ({"data": "absent.csv"}, "absent.csv: no such file"),
        ({"label": "wurst"}, "wurst"),
        ({"label": None}, "what is to be learned"),
    ],
)
def test_wrong_answers_leave_nothing_behind(given, said, tmp_path):
    wanted = {"data": str(arrays(tmp_path)["image"]), "label": "target"} | given
    with pytest.raises(UsageError, match=said):
        scaffold.write(tmp_path / "new", **wanted)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "my_model.py").write_text("precious")
    with pytest.raises(UsageError, match=r"my_model\.py would be overwritten"):
        scaffold.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["my_model.py"]


def test_on_a_terminal_it_asks(tmp_path):
    master, slave = pty.openpty()
    with subprocess.Popen(
        command("init", "asked"), cwd=tmp_path, env=environment(), stdin=slave, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(slave)
        os.write(master, b"\nfp16\n0.5\ntflite\n")
        printed, said = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0, said
    assert "Precision" in said
    assert "wrote asked/recipe.toml" in printed
    found = recipe.load(str(tmp_path / "asked/recipe.toml"))
    assert [step.use for step in found.steps] == ["train", "prune", "quantize"]
    assert [target.use for target in found.targets] == ["tflite"]
