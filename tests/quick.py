"""What keeps tests quick: small finished runs, whose files several tests look at, and commands that measure briefly."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgedl import pipeline, recipe
from edgedl.run import Run

NETWORKS = {
    "mlp": 'model = { use = "mlp", widths = [32, 16] }',
    "cnn": 'model = { use = "cnn", widths = [8, 16], hidden = 32 }',
}
REST = """
task = { use = "digits" }
steps = [
  { use = "train", epochs = 2, lr = 3e-3 },
  { use = "quantize", method = "ptq", calibrator = "min-max", corrections = [] },
]
targets = [ { use = "tflite" }, { use = "onnxruntime" }, { use = "tensorrt" } ]
limits = { score_drop = 1.0, slower = "allow" }
bench = { min_seconds = 0.05 }
"""


def measuring_briefly(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with which commands measure files for a moment only."""
    paths = (str(Path(__file__).parent / "briefly"), variables.get("PYTHONPATH"))
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def finished_run(factory: pytest.TempPathFactory, network: str) -> Run:
    """The run of "mlp" or "cnn", trained for two epochs and quantized to int8."""
    return _compress(factory.getbasetemp() / "quick", network)


@functools.cache
def _compress(root: Path, network: str) -> Run:
    text = NETWORKS[network] + REST
    return pipeline.compress(recipe.parse(text, Path(f"{network}.toml")), text, root)
