"""edgedl itself, on the trained PyTorch network, through the same calls that a recipe's `quantize` step leads to."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

from benchmarks import networks, peers
from edgedl import ladder, plugins
from edgedl.core import Model, Split, Step, Target
from edgedl.measure import evaluate
from edgedl.steps.quantize import Quantize
from edgedl.torch_session import TorchSession

STEPS: dict[str, Step] = {
    "static": Quantize(method="ptq"),
    "static-layers": Quantize(method="ptq"),
    "dynamic": Quantize(method="dynamic"),
    "weights": Quantize(method="weight-only"),
    "mixed": Quantize(precision="mixed"),
}
"""The forms that are compared, by name: the `quantize` step of a recipe. Form "int8 layers", which computes in float
between layers with weights, is one of those that method "auto" tries."""
NUM_IN_FLOAT = 2
"""Blocks that "mixed" leaves in float: of its three files the one in the middle."""


def write(form: str, use: str, source: Path, file: Path) -> dict[str, Any]:
    """A file for one target; what the simulation and the deployed file have to do with each other is found after."""
    target = plugins.load("targets", use).model_validate({})
    assert isinstance(target, Target)
    name = json.loads((source / "source.json").read_text())["name"]
    task = networks.SUBJECTS[name].task
    model, seconds = _quantized(form, name, source)
    start = time.perf_counter()
    assert model.quantization is not None
    if form == "mixed":
        plan = model.quantization.mixtures(target.scheme)[:NUM_IN_FLOAT][-1]
        model = replace(model, quantization=plan)
        assert model.quantization is not None
    key = (form, source, target.scheme.name)
    if key not in _simulated:
        model.quantization.simulated(target.scheme)
        _simulated[key] = time.perf_counter() - start
    start = time.perf_counter()
    artifact = target.build(model, task, file.parent, networks.BATCH_SIZE)
    seconds += _simulated[key] + time.perf_counter() - start
    artifact.file.replace(file)
    reference = evaluate(TorchSession(model.net, task), task, "test")
    session = target.open(file)
    climb = ladder.climb(model, reference, (ladder.rung("float", reference.score, (), task),), target, session, task)
    session.close()
    return {
        "seconds": seconds,
        "simulated_snr_db": climb.quantization_db,
        "agreement": asdict(climb.agreement),
        "first_divergence": None if climb.first_divergence is None else asdict(climb.first_divergence),
    }


@cache
def _quantized(form: str, name: str, source: Path) -> tuple[Model, float]:
    """The model after its `quantize` step, and the seconds that it took; targets share it, as in a run."""
    subject = networks.SUBJECTS[name]
    net = networks.load(subject, source)
    for split in get_args(Split):  # other peers find theirs in a file
        subject.task.arrays(split)
    start = time.perf_counter()
    model = STEPS[form].apply(Model(net=net, teacher=net), subject.task)
    if form == "static-layers":
        assert model.quantization is not None
        model = replace(model, quantization=model.quantization.in_form("int8 layers"))
    return model, time.perf_counter() - start


_simulated: dict[tuple[str, Path, str], float] = {}
"""Seconds that a simulation took: each target's file is charged with it, as if it were the only one."""

FILES: dict[str, peers.Write] = {
    f"{form}.{suffix}": partial(write, form, use)
    for form in STEPS
    for use, suffix in (("tflite", "tflite"), ("onnxruntime", "onnx"))
}

if __name__ == "__main__":
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  # before the clock starts

    networks.warm_up()
    peers.main(FILES, ["edgedl", "torch", "torchao", "litert-torch", "onnxruntime"])
