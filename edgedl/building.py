"""Building a variant's files for a target: in a process that may crash, and not again where an earlier one has."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

from edgedl import converting, graphs, plugins
from edgedl import run as runs
from edgedl.core import Artifact, Target
from edgedl.run import Run
from edgedl.stages import Variant
from edgedl.training import loop


def built(run: Run, target: Target, variant: Variant) -> Artifact:
    """The files under their final names; those that this run had built before it was interrupted, if nothing changed.

    Raises `TargetError` or `UnsupportedOperator` as `Target.build` does, and `TargetError` for a converter that
    crashes, or takes more time or memory than the recipe's limits allow.
    """
    loop.seed(run.recipe.seed)  # what is not built again must not matter to what comes after
    key = _key(run, target, variant)
    if (found := run.built(variant.name, target, key)) is not None:
        return found
    recipe, model = run.recipe, variant.model
    for part in graphs.parts(model, recipe.task).values() or (variant,):
        own = part.task if isinstance(part, graphs.Part) else recipe.task
        target.prepare(part.model, own, recipe.bench.batch_size)
    with run.building(variant.name, target) as folder:
        made = _made(target, variant, run, folder, key)
    return run.moved(made, folder, variant.name, target)


def _made(target: Target, variant: Variant, run: Run, folder: Path, key: str) -> Artifact:
    def build() -> None:
        recipe = run.recipe
        artifact = graphs.build(target, variant.model, recipe.task, folder, recipe.bench.batch_size)
        runs.write_artifact(artifact, folder, key)

    converting.apart(target, build, run.recipe.limits)
    return runs.read_artifact(json.loads((folder / runs.BUILT).read_text(encoding="utf-8")), folder)


def _key(run: Run, target: Target, variant: Variant) -> str:
    """A digest of all that the files depend on: network, form, target, and the packages that build."""
    plan = variant.model.quantization
    content = {
        "variant": variant.key,
        "form": None if plan is None else [*plan.forms, *sorted(plan.blocks)],
        "float_ops": variant.model.float_ops,
        "target": target.model_dump(),
        "batch_size": run.recipe.bench.batch_size,
        "packages": {module: _version(module) for module in target.requires["build"]},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _version(module: str) -> str | None:
    try:
        return importlib.metadata.version(plugins.PACKAGES.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return None
