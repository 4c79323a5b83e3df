"""Small finished runs of the main job, made once a test session, whose files several tests look at."""

from __future__ import annotations

import functools
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


def finished_run(factory: pytest.TempPathFactory, network: str) -> Run:
    """The run of "mlp" or "cnn", trained for two epochs and quantized to int8."""
    return _compress(factory.getbasetemp() / "quick", network)


@functools.cache
def _compress(root: Path, network: str) -> Run:
    text = NETWORKS[network] + REST
    return pipeline.compress(recipe.parse(text, Path(f"{network}.toml")), text, root)
