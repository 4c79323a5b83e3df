"""Applying a recipe's steps: each is seeded by itself and its weights kept, so that none is ever repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgedl import checkpoint, files, graphs, progress, suitability
from edgedl import recipe as recipes
from edgedl import run as runs
from edgedl.core import Model, Split, Step, Task, UsageError, graphs_of
from edgedl.ladder import Rung, rung
from edgedl.measure import Scored, evaluate
from edgedl.own import networks
from edgedl.recipe import Recipe
from edgedl.run import Run
from edgedl.torch_session import TorchSession
from edgedl.training import loop, sparsity

if TYPE_CHECKING:
    import torch

    from edgedl.quantize.simulate import Quantization

Watch: TypeAlias = Callable[[Step, Model], None]
"""Is shown what each step that learns has made; what it raises ends the run."""

SPLITS: tuple[Split, ...] = ("train", "calibration", "validation", "test")


@dataclass(frozen=True)
class Variant:
    """A network that is to be exported: "float", or "compressed"."""

    name: str
    model: Model
    source: Scored
    """Its float network over the test set: what quantization and export are held against."""
    rungs: tuple[Rung, ...]
    """From the float reference down to `source`."""
    key: str = ""
    """A digest of all that the network depends on."""
    one_of_several: bool = False
    """Whether it is one form among others, of which the best is to be kept."""

    def quantized(self, plan: Quantization, name: str, one_of_several: bool = True) -> Variant:
        """The same network in one form of several, under the form's name, also where a target has only that one."""
        model = replace(self.model, quantization=plan)
        return replace(self, name=name.replace(" ", "-"), model=model, one_of_several=one_of_several)


def check(recipe: Recipe) -> None:
    """Raises `UsageError` where a network of the recipe, the first or a student, does not suit the task."""
    described = [recipe.model, *(recipe.network_after(index) for index in range(len(recipe.steps)))]
    for index, network in enumerate(described):
        if network in described[:index]:
            continue
        if why := suitability.why_unsuited(network, recipe.task):
            unsuited = f"model {network.label} does not suit task {recipe.task.label}: {why}"
            raise UsageError("; ".join(filter(None, (unsuited, _suited(network.label, recipe.task.label)))))


def _suited(model: str, task: str) -> str:
    """What goes with a task and with a model, as far as shipped recipes tell."""
    pairs = recipes.pairs()
    if (task, model) in pairs:
        return f"recipe {pairs[task, model]} has them together: compare its settings"
    models = [f"{other} (recipe {name})" for (of, other), name in pairs.items() if of == task]
    tasks = [f"{other} (recipe {name})" for (other, of), name in pairs.items() if of == model]
    said = [f"task {task} goes with model {' or '.join(models)}"] if models else []
    return "; ".join(said + ([f"model {model} with task {' or '.join(tasks)}"] if tasks else []))


def apply_steps(recipe: Recipe, run: Run, root: Path, fresh: bool, watch: Watch | None = None) -> list[Variant]:
    """The variants to export: the network before the first compressing step and, if there is one, after the last.

    A step whose key is found among the runs under `root` takes its weights from there, unless `fresh`.
    """
    loop.seed(recipe.seed)
    model = Model(net=recipe.model.built(recipe.task).eval(), float_ops=recipe.limits.float_ops == "allow")
    _check_graphs(recipe, model.net)
    begun = networks.digest(model.net)
    variants: list[Variant] = []
    for index, step in enumerate(recipe.steps):
        if step.compresses and not variants:
            model = replace(model, teacher=model.net)
            variants = [_reference(model, recipe, index, begun)] * 2
        key = stage_key(recipe, index, begun)
        kept = None if fresh or not step.learns else runs.find_weights(root, key)
        loop.seed(recipe.seed + index + 1)
        with checkpoint.at(run.checkpoints, None if fresh else root, key):
            before, model = model, _reused(model, index, recipe, kept) if kept else step.apply(model, recipe.task)
        _check_zeros(before, model, step)
        run.save_step(index, model, key)
        if step.learns and not kept:
            run.drop_checkpoints()
        if watch and step.learns:
            watch(step, model)
        if variants:
            variants[1] = replace(_compressed(variants[1], model, step, recipe.task), key=key)
    return variants or [_reference(model, recipe, len(recipe.steps), begun)]


def _check_graphs(recipe: Recipe, net: torch.nn.Module) -> None:
    """Raises `UsageError` where the network's graphs are not the task's, or a step cannot take several."""
    graphs.check(net, recipe.task)
    found = graphs_of(net)
    for step in recipe.steps:
        if found and (refusal := step.refusal(found)):
            raise UsageError(f"step {step.label}: {refusal}; the model is the graphs {' and '.join(found)}")


def _reference(model: Model, recipe: Recipe, num_steps: int, begun: str) -> Variant:
    task = recipe.task
    source = evaluate(TorchSession(model.net, task), task, "test")
    key = stage_key(recipe, num_steps - 1, begun)
    return Variant("float", model, source, (rung("float", source.score, (), task),), key)


def _compressed(before: Variant, model: Model, step: Step, task: Task) -> Variant:
    if not step.learns:  # the same weights, so the same scores
        return replace(before, name="compressed", model=model)
    source = evaluate(TorchSession(model.net, task), task, "test")
    if step.final:  # trained for its grids: what it does without them is nobody's concern
        return replace(before, name="compressed", model=model, source=source)
    return Variant("compressed", model, source, (*before.rungs, rung(step.label, source.score, before.rungs, task)))


def stage_key(recipe: Recipe, index: int, begun: str = "") -> str:
    """What a step's result depends on, as a digest: recipe up to it, files it names, data, and edgedl's code.

    `begun` is the digest of the network as it was built: one of a person's own may change behind its name.
    """
    prefix = {
        "network": begun,
        "seed": recipe.seed,
        "task": recipe.task.model_dump(),
        "model": recipe.model.model_dump(),
        "steps": [step.model_dump() for step in recipe.steps[: index + 1]],
        "sources": [files.sha256(file) for step in recipe.steps[: index + 1] for file in step.sources()],
        "data": _fingerprint(recipe.task),
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(prefix, sort_keys=True).encode()).hexdigest()


def _reused(model: Model, index: int, recipe: Recipe, weights: Path) -> Model:
    step, net = recipe.steps[index], recipe.network_after(index).built(recipe.task)
    with progress.stage(step.label, 1) as advance:
        runs.load_weights(net, weights)
        advance(1, f"taken from {weights.parents[2]}")
    metrics = json.loads(weights.with_name("metrics.json").read_text())
    return step.restored(model, recipe.task, net.eval(), metrics | {"reused": str(weights.parent)})


def _check_zeros(before: Model, after: Model, step: Step) -> None:
    """Raises `UsageError` if a step did not keep the zeros of a sparse network, as a step of one's own may not."""
    if before.sparse and (lost := sparsity.num_lost(sparsity.zeros(before.net), after.net)):
        raise UsageError(
            f"step {step.label} undid the sparsity of the network: {lost} weights that were zero are not any more; "
            "put it before the step that made the network sparse, or let it pass sparse = model.sparse on to fit"
        )


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
