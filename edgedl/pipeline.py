"""The whole program: a recipe in, a run folder with measured files out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edgedl import building, checkpoint, converting, gate, ladder, measure, plugins, progress, stages, stats
from edgedl.core import EdgedlError, Target, UsageError
from edgedl.devices import local
from edgedl.graph_session import Call, Replay, open_files
from edgedl.recipe import Recipe
from edgedl.report import document, exhibits
from edgedl.report.document import Entry
from edgedl.run import Run
from edgedl.stages import Variant
from edgedl.training import parallel


def compress(recipe: Recipe, source: str, root: Path, fresh: bool = False, watch: stages.Watch | None = None) -> Run:
    """Trains, compresses, exports, measures and judges; returns the finished run.

    `source` is the recipe's text, kept in the run. With `fresh`, no step is taken from earlier runs.
    `watch` sees what each step that learns has made, and may end the run there by raising.
    What fails for one target is a row of the report with its reason; the others go on.
    Raises `UsageError` before anything expensive, and whatever a step raises.
    """
    if parallel.rank() > 0:
        raise UsageError(
            "of several processes the first alone compresses; torchrun --no-python edgedl compress does so"
        )
    plugins.require(recipe.needed_targets)
    task = recipe.task
    task.arrays("test")
    baseline = task.baseline
    for step in recipe.steps:
        step.sources()
    stages.check(recipe)
    with Run.started(recipe, source, root, fresh) as run, progress.diverted(run.log):
        progress.emit("run", folder=str(run.folder), recipe=recipe.name)
        with parallel.joined():
            variants = stages.apply_steps(recipe, run, root, fresh, watch)
        report = document.begin(recipe, {variant.name: variant.model for variant in variants}, baseline)
        unlearned = gate.why_unlearned(variants[0].source.score, task.metric, baseline)
        if unlearned:
            report["warnings"].append(unlearned)
        refusal = unlearned if recipe.limits.unlearned == "refuse" else None
        shown = False
        for target in recipe.targets:
            entries, verdict = _judged(run, target, variants, refusal)
            document.add(report, run, target, entries, verdict)
            _tell(report, len(entries))
            shown = shown or _exhibited(report, run, target, entries, verdict)
            run.note_stage(f"targets/{target.label}", {})
        run.save_quantization(variants[-1].model)
        run.finish(report)
    return run


def help_train(recipe: Recipe, source: str, root: Path, fresh: bool = False) -> None:
    """What a process does that `torchrun` has started beside the first: its part of all training, and nothing else.

    It takes from earlier runs what the first takes, and what it makes of steps goes when it ends. Of its progress it
    tells nobody: the first process does.
    """
    progress.hide()
    with tempfile.TemporaryDirectory() as scratch:
        run = Run.create(recipe, source, Path(scratch))
        with progress.diverted(run.log), parallel.joined():
            stages.apply_steps(recipe, run, root, fresh)


def _tell(report: Mapping[str, Any], num_rows: int) -> None:
    """Tells whoever listens of a target's rows, and of the verdict on them."""
    for row in report["rows"][-num_rows:]:
        progress.emit("row", row={key: value for key, value in row.items() if key != "operators"})
    progress.emit("verdict", verdict=report["verdicts"][-1])


def _judged(
    run: Run, target: Target, variants: Sequence[Variant], unlearned: str | None
) -> tuple[list[Entry], gate.Verdict | None]:
    """Every variant on one target: built, held against the ladder, measured in turn with the others, judged.

    `unlearned` is why none of them may ship, whatever they do.
    """
    reference, *others = variants
    entries = [_built(run, target, reference)]
    for variant in others:
        entries += _tried(run, target, variant, entries[0])
    running = {entry.variant: entry for entry in entries if entry.runs_here}
    if running:
        _measure(run, target, running)
    for entry in running.values():
        entry.compare_with(running.get("float"))
        entry.opened().close()
    float_entry, *compressed = entries
    if float_entry.climb is None:  # nothing to judge against
        return entries, None
    limits, metric = run.recipe.limits, run.recipe.task.metric
    if len(compressed) > 1:
        compressed = _ranked(compressed, float_entry, run.recipe)
        entries = [float_entry, *compressed]
    there = None if float_entry.runs_here else document.judging_command(run, entries)
    candidates = [entry.candidate() for entry in compressed if entry.climb]
    failures = {entry.variant: f"it failed: {entry.reason}" for entry in compressed if not entry.climb}
    verdict = gate.judge(float_entry.candidate(), candidates, failures, limits, metric, local.name(), there, unlearned)
    return entries, verdict


def _exhibited(
    report: dict[str, Any], run: Run, target: Target, entries: Sequence[Entry], verdict: gate.Verdict | None
) -> bool:
    """Keeps samples worth looking at, if the float file and a compressed one ran here: what ships, or the best."""
    answers = {entry.variant: entry.climb.deployed.outputs for entry in entries if entry.runs_here and entry.climb}
    shipped = verdict.ship if verdict and verdict.ship in answers else "float"
    other = shipped if shipped != "float" else next((name for name in reversed(answers) if name != "float"), None)
    if "float" not in answers or other is None:
        return False
    failure = exhibits.save(run, target.label, run.recipe.task, {name: answers[name] for name in ("float", other)})
    if failure:
        report["warnings"].append(failure)
    return True


def _tried(run: Run, target: Target, variant: Variant, reference: Entry) -> list[Entry]:
    """A variant in every form that its plan leaves open and the target has; the rest stays to be measured.

    Mixtures are tried where static int8 loses too much on validation data, or where they alone are asked for.
    """
    plan = variant.model.quantization
    if plan is None or plan.is_settled:
        return [_built(run, target, variant)]
    forms = [form for form in plan.forms if target.refusal(form) is None and form != "mixed"]
    if len(forms) == 1 and "mixed" not in plan.forms:  # nothing to choose from
        return [_built(run, target, variant.quantized(plan.in_form(forms[0]), forms[0], one_of_several=False))]
    if reference.session is not None and reference.climb:
        reference.validated = measure.evaluate(reference.session, run.recipe.task, "validation").score
    entries = [_built(run, target, variant.quantized(plan.in_form(form), form)) for form in forms]
    static = next((entry for entry in entries if entry.model.precision == "int8" and entry.climb), None)
    if "mixed" in plan.forms and "mixed" in target.forms and not (static and _holds(static, reference, run.recipe)):
        try:
            with _kept(run, variant):
                mixtures = plan.mixtures(target.scheme)
        except EdgedlError as error:
            failed = variant.quantized(plan.in_form("mixed"), "mixed")
            return [*entries, Entry(failed.name, failed.model, reason=str(error))]
        for count, mixture in enumerate(mixtures, 1):
            entries.append(_built(run, target, variant.quantized(mixture, f"mixed-{count}")))
    return entries[::-1]  # what is named first is preferred, where there is nothing to tell them apart


def _holds(entry: Entry, reference: Entry, recipe: Recipe) -> bool:
    """Whether a file stays within the limit on validation data; the test set is for judging what was chosen."""
    if entry.climb is None or entry.climb.breach or entry.validated is None or reference.validated is None:
        return False
    return recipe.task.metric.drop(reference.validated, entry.validated) <= recipe.limits.score_drop


AS_FAST, AS_SMALL = 1.05, 1.1
"""Of files within these factors of the fastest and the smallest, neither is better for it."""


def _ranked(entries: Sequence[Entry], reference: Entry, recipe: Recipe) -> list[Entry]:
    """The forms of a network, best last: those that may ship as far as is known, the fastest of them.

    Among those as fast as that the smallest are better, and among those as small the fastest. Where none could be
    timed, as engines without a GPU, size says nothing of what they are for: then the first that the plan names is best.
    """
    fit = [entry for entry in entries if _may_ship(entry, reference, recipe)]
    fastest = min(map(_latency_ms, fit), default=0.0)
    fast = [entry for entry in fit if _latency_ms(entry) <= AS_FAST * fastest]
    smallest = min(map(_size, fast), default=0)
    best = {entry.variant for entry in fast if _size(entry) <= AS_SMALL * smallest}
    sound = {entry.variant for entry in fit}
    if not any(entry.latencies_ms for entry in fit):
        return sorted(entries, key=lambda entry: entry.variant in sound)
    return sorted(entries, key=lambda entry: (entry.variant in best, entry.variant in sound, -_latency_ms(entry)))


def _may_ship(entry: Entry, reference: Entry, recipe: Recipe) -> bool:
    slower = entry.speedup is not None and entry.speedup.verdict == "slower" and recipe.limits.slower == "refuse"
    return _holds(entry, reference, recipe) and not slower


def _latency_ms(entry: Entry) -> float:
    return stats.summarize(entry.latencies_ms).median if entry.latencies_ms else 0.0


def _size(entry: Entry) -> int:
    return entry.artifact.size_bytes if entry.artifact else 0


def _measure(run: Run, target: Target, running: Mapping[str, Entry]) -> None:
    """Times the files that run here in turn, then operator by operator."""
    with progress.stage(f"{target.label}: measure", len(running)) as step:
        timed, calls = {}, tuple[Call, ...]()
        for name, entry in running.items():
            session, batch = timed[name] = measure.timed(run.recipe.task, entry.opened(), calls)
            calls = tuple(session.calls) if isinstance(session, Replay) else ()
        for name, blocks in measure.interleave(timed, run.recipe.bench).items():
            session, batch = timed[name]
            running[name].latencies_ms = blocks
            running[name].replay = session if isinstance(session, Replay) else None
            running[name].operators = session.profile(batch)
            step(1, f"{name}: {stats.summarize(blocks).median:.4f} ms")


def _built(run: Run, target: Target, variant: Variant) -> Entry:
    entry = Entry(variant.name, variant.model)
    task = run.recipe.task
    with progress.stage(f"{target.label}: build {variant.name}", 1) as step, _kept(run, variant):
        _build(run, target, variant, entry)
        step(1, entry.summary(task.metric))
    return entry


def _kept(run: Run, variant: Variant) -> AbstractContextManager[None]:
    """What calibration chose is kept until the run has finished, and taken from this run alone."""
    return checkpoint.at(run.checkpoints, run.folder, variant.key)


def _build(run: Run, target: Target, variant: Variant, entry: Entry) -> None:
    model, task = variant.model, run.recipe.task
    try:
        entry.artifact = artifact = building.built(run, target, variant)
        if artifact.status == "ok":
            bounds = converting.bounds(run.recipe.limits)
            entry.cold_start = measure.cold_start(target, artifact.file, bounds.seconds, bounds.num_bytes)
            entry.session = open_files(target, artifact.file)
        else:  # the very ONNX file that the engine was built from, where it can run
            assert artifact.stand_in is not None
            entry.session = open_files(plugins.stand_in(), artifact.stand_in)
        climb = ladder.climb(model, variant.source, variant.rungs, target, entry.session, task)
        entry.figures = task.figures(entry.session, climb.deployed.outputs, task.arrays("test"))
        entry.climb = climb
        if variant.one_of_several:
            entry.validated = measure.evaluate(entry.session, task, "validation").score
    except EdgedlError as error:
        entry.reason = str(error)
