"""The whole program: a recipe in, a run folder with measured files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgedl import gate, ladder, measure, plugins, progress, stages, stats
from edgedl.core import EdgedlError, Target
from edgedl.devices import local
from edgedl.recipe import Recipe
from edgedl.report import document
from edgedl.report.document import Entry
from edgedl.run import Run
from edgedl.stages import Variant


def compress(recipe: Recipe, source: str, root: Path, fresh: bool = False) -> Run:
    """Trains, compresses, exports, measures and judges; returns the finished run.

    `source` is the recipe's text, kept in the run. With `fresh`, no step is taken from earlier runs.
    What fails for one target is a row of the report with its reason; the others go on.
    Raises `UsageError` before anything expensive, and whatever a step raises.
    """
    plugins.require(recipe.needed_targets)
    task = recipe.task
    task.arrays("test")
    for step in recipe.steps:
        step.sources()
    run = Run.create(recipe, source, root)
    with progress.diverted(run.log):
        variants = stages.apply_steps(recipe, run, root, fresh)
        report = document.begin(recipe, {variant.name: variant.model for variant in variants})
        for target in recipe.targets:
            document.add(report, run, target, *_judged(run, target, variants))
            run.note_stage(f"targets/{target.label}", {})
        run.save_quantization(variants[-1].model)
        run.finish(report)
    return run


def _judged(run: Run, target: Target, variants: Sequence[Variant]) -> tuple[list[Entry], gate.Verdict | None]:
    """Every variant on one target: built, held against the ladder, measured in turn with the others, judged."""
    task = run.recipe.task
    with progress.stage(f"{target.label}: build", len(variants)) as step:
        entries = []
        for variant in variants:
            entries.append(_built(run, target, variant))
            step(1, entries[-1].summary(task.metric))
    running = {entry.variant: entry for entry in entries if entry.runs_here}
    if running:
        _measure(run, target, running)
    for entry in running.values():
        entry.compare_with(running.get("float"))
        entry.opened().close()
    float_entry, *compressed = entries
    if float_entry.climb is None:  # nothing to judge against
        return entries, None
    there = None if float_entry.runs_here else document.judging_command(run, entries)
    candidates = [entry.candidate() for entry in compressed if entry.climb]
    failures = {entry.variant: f"it failed: {entry.reason}" for entry in compressed if not entry.climb}
    verdict = gate.judge(
        float_entry.candidate(), candidates, failures, run.recipe.limits, task.metric, local.name(), there
    )
    return entries, verdict


def _measure(run: Run, target: Target, running: Mapping[str, Entry]) -> None:
    """Times the files that run here in turn, then operator by operator."""
    with progress.stage(f"{target.label}: measure", len(running)) as step:
        timed = {
            name: (entry.opened(), measure.sample(run.recipe.task, entry.opened())) for name, entry in running.items()
        }
        for name, blocks in measure.interleave(timed, run.recipe.bench).items():
            running[name].latencies_ms = blocks
            running[name].operators = running[name].opened().profile(timed[name][1])
            step(1, f"{name}: {stats.summarize(blocks).median:.4f} ms")


def _built(run: Run, target: Target, variant: Variant) -> Entry:
    model = variant.model
    entry = Entry(variant.name, model)
    task = run.recipe.task
    try:
        with run.building(variant.name, target) as folder:
            artifact = target.build(model, task, folder, run.recipe.bench.batch_size)
        entry.artifact = run.moved(artifact, folder, variant.name, target)
        if artifact.status == "ok":
            entry.cold_start = measure.cold_start(target, entry.artifact.file)
            entry.session = target.open(entry.artifact.file)
        else:  # the very ONNX file that the engine was built from, where it can run
            assert entry.artifact.stand_in is not None
            entry.session = plugins.stand_in().open(entry.artifact.stand_in)
        entry.climb = ladder.climb(model, variant.source, variant.rungs, target, entry.session, task)
    except EdgedlError as error:
        entry.reason = str(error)
    return entry
