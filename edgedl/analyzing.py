"""What `edgedl analyze` does: finds or trains a float network, times its files, and writes what its layers are like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgedl import files, measure, plugins, progress, stages
from edgedl import recipe as recipes
from edgedl import run as runs
from edgedl.analysis import by_layer
from edgedl.analysis.by_layer import Measured
from edgedl.core import EdgedlError, Model, Target, UsageError
from edgedl.devices import local
from edgedl.nvidia import gpu
from edgedl.recipe import Recipe
from edgedl.run import Run
from edgedl.training import loop

if TYPE_CHECKING:
    from torch import nn


PURPOSES: tuple[Literal["build", "open"], ...] = ("build", "open")


def of_recipe(recipe: Recipe, source: str, root: Path, ratio: float, fresh: bool = False) -> Path:
    """Analyses the float network of a recipe, trained or taken from earlier runs; returns the folder of a new run.

    `source` is the recipe's text. Raises `UsageError` before anything expensive, and whatever a step raises.
    """
    _check(recipe)
    stages.check(recipe)
    with Run.started(recipe, source, root, fresh=True) as run, progress.diverted(run.log):
        progress.emit("run", folder=str(run.folder), recipe=recipe.name)
        steps = recipe.steps[: _num_float_steps(recipe)]
        (reference,) = stages.apply_steps(recipe.model_copy(update={"steps": steps}), run, root, fresh)
        net = reference.model.net
        measured = [_measured(run, target, net) for target in recipe.targets]
        content = by_layer.analyze(net, recipe, measured, local.describe(), ratio)
    files.write_json(run.folder / "analysis.json", content)
    return run.folder


def of_run(folder: Path, ratio: float) -> None:
    """Analyses the float network of a finished run, with the times that were measured in it.

    Raises `UsageError` for a run that has lost its recipe or its weights.
    """
    report = runs.read_report(folder)
    recipe = recipes.load(str(folder / "recipe.toml")).model_copy(update={"name": report["recipe"]["name"]})
    _check(recipe)
    run = Run(folder, recipe)
    with progress.diverted(run.log):
        measured = [_measured_before(run, target, report) for target in recipe.targets]
        content = by_layer.analyze(_float_network(run), recipe, measured, report["environment"], ratio)
    files.write_json(folder / "analysis.json", content)


def _check(recipe: Recipe) -> None:
    """Raises `UsageError` for what is known to fail before anything is trained or measured."""
    if recipe.task.graphs:
        raise UsageError(f"analyze looks at networks of one graph; that of {recipe.name} is {len(recipe.task.graphs)}")
    recipe.task.arrays("test")


def _num_float_steps(recipe: Recipe) -> int:
    """How many steps stand before the first that compresses."""
    return next((index for index, step in enumerate(recipe.steps) if step.compresses), len(recipe.steps))


def _float_network(run: Run) -> nn.Module:
    """The network as the last step before the first compressing one left it."""
    from safetensors import SafetensorError

    recipe = run.recipe
    loop.seed(recipe.seed)
    net = recipe.model.built(recipe.task).eval()
    learned = [index for index in range(_num_float_steps(recipe)) if recipe.steps[index].learns]
    if learned:
        index = learned[-1]
        file = run.folder / "steps" / f"{index:02}-{recipe.steps[index].label}" / "weights.safetensors"
        try:
            runs.load_weights(net, file)
        except (OSError, ValueError, KeyError, RuntimeError, UsageError, SafetensorError) as error:
            raise UsageError(f"{file}: cannot be read as the weights of the float network: {error}") from error
    return net


def _measured(run: Run, target: Target, net: nn.Module) -> Measured:
    """Builds the float file and times its operators, if that can be done here."""
    name = run.target_folder("float", target).name
    for purpose in PURPOSES:
        if lacking := plugins.missing(target, purpose):
            needs = f"it needs {', '.join(lacking)}"
            return Measured(name, reason=f"{needs}: {plugins.install_line([target], purpose)}")
    if target.needs_gpu and (no_gpu := gpu.why_no_gpu()):
        return Measured(name, reason=f"it cannot run here: {no_gpu}")
    task = run.recipe.task
    with progress.stage(f"{name}: measure", 1) as step:
        try:
            with run.building("float", target) as folder:
                artifact = target.build(Model(net=net), task, folder, run.recipe.bench.batch_size)
            artifact = run.moved(artifact, folder, "float", target)
            if artifact.status != "ok":
                return Measured(name, reason=artifact.reason)
            session = target.open(artifact.file)
            operators = session.profile(measure.sample(task, session))
            session.close()
        except EdgedlError as error:
            return Measured(name, reason=str(error))
        step(1)
    return Measured(name, [dataclasses.asdict(operator) for operator in operators], artifact.file, session.runtime)


def _measured_before(run: Run, target: Target, report: Mapping[str, Any]) -> Measured:
    """What a finished run's report says of the float file."""
    folder = run.target_folder("float", target)
    for row in report["rows"]:
        if row["file"] and (run.folder / row["file"]).parent == folder:
            reason = None if row["latency_ms"] else row["reason"]
            return Measured(folder.name, row["operators"], run.folder / row["file"], row["score_by"], reason)
    return Measured(folder.name, reason="the run has no float file for it")
