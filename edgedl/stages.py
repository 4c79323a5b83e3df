"""Applying a recipe's steps: each is seeded by itself and its weights kept, so that none is ever repeated."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgedl import progress, training
from edgedl import run as runs
from edgedl.core import Model, Split, Step, Task
from edgedl.recipe import Recipe
from edgedl.run import Run

SPLITS: tuple[Split, ...] = ("train", "calibration", "validation", "test")


def apply_steps(recipe: Recipe, run: Run, root: Path, fresh: bool) -> dict[str, Model]:
    """The variants to ship: "float", the network before the first compressing step, and "compressed", after the last.

    A step whose key is found among the runs under `root` takes its weights from there, unless `fresh`.
    """
    training.seed(recipe.seed)
    model = Model(net=recipe.model.build(recipe.task).eval())
    reference = model
    for index, step in enumerate(recipe.steps):
        key = stage_key(recipe, index)
        kept = None if fresh or not step.learns else runs.find_weights(root, key)
        training.seed(recipe.seed + index + 1)
        model = _reused(model, step, recipe, kept) if kept else step.apply(model, recipe.task)
        run.save_step(index, model, key)
        if not step.compresses and not any(earlier.compresses for earlier in recipe.steps[:index]):
            reference = model
    return {"float": reference} if reference is model else {"float": reference, "compressed": model}


def stage_key(recipe: Recipe, index: int) -> str:
    """What a step's result depends on, as a digest: recipe up to it, data, and edgedl's code."""
    prefix = {
        "seed": recipe.seed,
        "task": recipe.task.model_dump(),
        "model": recipe.model.model_dump(),
        "steps": [step.model_dump() for step in recipe.steps[: index + 1]],
        "data": _fingerprint(recipe.task),
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(prefix, sort_keys=True).encode()).hexdigest()


def _reused(model: Model, step: Step, recipe: Recipe, weights: Path) -> Model:
    net = recipe.model.build(recipe.task)
    with progress.stage(step.label, 1) as advance:
        runs.load_weights(net, weights)
        advance(1, f"taken from {weights.parents[2]}")
    metrics = json.loads(weights.with_name("metrics.json").read_text())
    return model.after(step, metrics | {"reused": str(weights.parent)}, net=net.eval())


def _fingerprint(task: Task) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for name, values in sorted(task.arrays(split).items()):
            digest.update(f"{split}/{name}/{values.dtype}/{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
