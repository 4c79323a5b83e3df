"""Two processes that train together come to the weights of one, and leave one run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edgedl import pipeline, recipe
from edgedl.core import UsageError
from edgedl.run import find_finished, read_report
from edgedl.training import parallel

RECIPE = """
task = { use = "digits" }
model = { use = "mlp", widths = [16] }
steps = [
  { use = "train", epochs = 1, lr = 3e-3, batch_size = 63 },
  { use = "prune", ratio = 0.25, iterations = 1, epochs = 1 },
]
targets = [ { use = "onnxruntime" } ]
limits = { score_drop = 1.0, slower = "allow", unlearned = "allow" }
bench = { min_seconds = 0.02, rounds = 2 }
"""


@pytest.fixture
def torchrun():
    return [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--no-python", sys.executable]


def weights(root: Path) -> list[dict[str, np.ndarray]]:
    folder = find_finished("small", root)
    return [load_file(file) for file in sorted(folder.glob("steps/*/*.safetensors"))]


def test_two_processes_come_to_the_weights_of_one(torchrun, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(RECIPE)
    alone = pipeline.compress(recipe.load(str(file)), file.read_text(), tmp_path / "alone")
    program = ["-m", "edgedl.cli.main", "compress", "--recipe", str(file), "--out", str(tmp_path / "together")]
    done = subprocess.run([*torchrun, *program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert len(list(tmp_path.glob("together/*/*"))) == 1
    pairs = list(zip(weights(tmp_path / "alone"), weights(tmp_path / "together"), strict=True))
    assert len(pairs) == 2
    for one, two in pairs:
        assert one.keys() == two.keys()
        for name, values in one.items():
            np.testing.assert_allclose(two[name], values, atol=1e-4, err_msg=name)
    (report,) = (read_report(path) for path in tmp_path.glob("together/*/*"))
    scores = [[row["score"] for row in found["rows"]] for found in (read_report(alone.folder), report)]
    np.testing.assert_allclose(*scores, atol=0.01)


@given(st.integers(1, 40), st.integers(2, 5))
def test_parts_of_a_batch_are_the_batch_and_count_as_much_as_they_have_samples(num_samples, together):
    indices, losses = torch.arange(num_samples), torch.rand(num_samples, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "num", lambda: together)
        parts = []
        for rank in range(together):
            patch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            parts.append(parallel.part(indices))
    if num_samples >= together:
        assert torch.equal(torch.cat([mine for mine, _ in parts]), indices)
    mean = sum(share * losses[mine].mean() for mine, share in parts) / together
    torch.testing.assert_close(mean, losses.mean())


def test_a_second_process_in_python_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match="torchrun --no-python edgedl compress"):
        pipeline.compress(recipe.load("mlp-int8"), "", tmp_path)
    assert not any(tmp_path.iterdir())
