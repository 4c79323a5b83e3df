"""`report.json`: what a run found, row by row; docs/run-folder.md describes its keys."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import __version__, files, gate, inspecting, ladder, measure, stats
from edgedl.analysis import attribution
from edgedl.core import Artifact, Baseline, Metric, Model, OperatorTime, Session, Target
from edgedl.devices import local
from edgedl.gate import Candidate, Verdict
from edgedl.graph_session import Replay
from edgedl.ladder import Climb
from edgedl.measure import ColdStart
from edgedl.origin import Origin
from edgedl.recipe import Recipe
from edgedl.run import SCHEMA, Run
from edgedl.stats import Speedup

if TYPE_CHECKING:
    from edgedl.quantize.simulate import Quantization


@dataclass
class Entry:
    """One variant on one target, as far as it has come; `reason` says why it came no further."""

    variant: str
    model: Model
    artifact: Artifact | None = None
    session: Session | None = None
    climb: Climb | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else the task reports of the file."""
    cold_start: ColdStart | None = None
    latencies_ms: list[np.ndarray] | None = None
    replay: Replay | None = None
    """What was timed, if the network is several graphs."""
    operators: Sequence[OperatorTime] = ()
    speedup: Speedup | None = None
    validated: float | None = None
    """The score on validation data, where one of several forms is to be chosen."""
    reason: str | None = None

    @property
    def runs_here(self) -> bool:
        return self.climb is not None and self.artifact is not None and self.artifact.status == "ok"

    def opened(self) -> Session:
        assert self.session is not None
        return self.session

    def compare_with(self, reference: Entry | None) -> None:
        """Sets the speed-up against another entry, measured in turn with this one."""
        if reference is not None and reference is not self and reference.latencies_ms and self.latencies_ms:
            self.speedup = stats.compare(reference.latencies_ms, self.latencies_ms)

    def candidate(self) -> Candidate:
        """What the gate judges."""
        assert self.artifact is not None
        assert self.climb is not None
        return Candidate(
            self.variant, self.artifact.size_bytes, self.climb, self.speedup, self.operators, widths(self.model)
        )

    def summary(self, metric: Metric) -> str:
        """For the progress line."""
        if self.climb is None:
            return f"{self.variant}: failed"
        return f"{self.variant}: {metric.name} {self.climb.deployed.score:.4f}"


def begin(recipe: Recipe, variants: Mapping[str, Model], baseline: Baseline | None) -> dict[str, Any]:
    """A report without rows yet."""
    return {
        "schema": SCHEMA,
        "edgedl": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "environment": local.describe(),
        "metric": dataclasses.asdict(recipe.task.metric),
        "baseline": dataclasses.asdict(baseline) if baseline else None,
        "parameters": {name: parameters(model, recipe) for name, model in variants.items()},
        "steps": [dict(record.step) | {"metrics": record.metrics} for record in list(variants.values())[-1].lineage],
        "rows": [],
        "ladder": [],
        "verdicts": [],
        "warnings": [],
    }


def add(report: dict[str, Any], run: Run, target: Target, entries: Sequence[Entry], verdict: Verdict | None) -> None:
    """Adds one target's rows, ladder and verdict, and writes each file's passport, measurement and reproduce.sh."""
    refused = verdict.refused if verdict else {}
    stood_in_for = len(entries) > 2 and any(entry.climb for entry in entries[1:])
    for entry in entries:
        row = _row(run, target, entry, refused.get(entry.variant))
        if row["status"] == "failed" and stood_in_for and entry.variant != "float":
            row["status"] = "refused"  # one form of several cannot be had here: another is
        report["rows"].append(row)
        if row["engine"] and row["engine"]["warning"]:
            report["warnings"].append(f"{entry.variant} on {target.label}: {row['engine']['warning']}")
        notes = entry.artifact.notes if entry.artifact else ()
        report["warnings"] += [f"{entry.variant} on {target.label}: {note}" for note in notes]
        if entry.climb is not None:
            report["ladder"].append(ladder.as_json(entry.climb, entry.variant, target))
        if entry.artifact is not None:
            _write_beside(run, target, entry, row)
    reference, *compressed = entries
    if verdict is None:
        failed = "; ".join(f"{entry.variant}: {entry.reason}" for entry in entries if entry.reason)
        verdict = Verdict("none", f"not judged, for there is no float file to judge against: {failed}", {})
        report["verdicts"].append(gate.as_json(verdict, target.label, local.name(), None, None))
        return
    judged = next((entry for entry in reversed(compressed) if entry.climb), reference)
    device = local.name() if judged.runs_here else _built_for(judged)
    candidates = (reference.candidate(), None if judged is reference else judged.candidate())
    report["verdicts"].append(gate.as_json(verdict, target.label, device, *candidates))


def judging_command(run: Run, entries: Sequence[Entry]) -> str:
    """What to type on the device once its engines are built there."""
    reference = entries[0]
    judged = next(entry for entry in reversed(entries) if entry.artifact is not None)
    assert reference.artifact is not None
    assert judged.artifact is not None
    folders = [_folder(entry.artifact).relative_to(run.folder) for entry in (judged, reference) if entry.artifact]
    if judged.artifact.graphs:
        scripts = [f"{folder}/{graph}/build.sh" for folder in folders for graph in judged.artifact.graphs]
        steps = [f"sh {shlex.quote(script)}" for script in scripts if (run.folder / script).is_file()]
        bench = f"edgedl bench {shlex.quote(str(folders[0]))} --vs {shlex.quote(str(folders[1]))} --recipe recipe.toml"
        return f"`{' && '.join([*steps, bench])}`"
    built_there = [f"{folder}/model.engine" for folder in folders]
    if judged.artifact.file.suffix == ".onnx":
        builds = " && ".join(f"sh {shlex.quote(f'{folder}/build.sh')}" for folder in folders)
        return f"`{builds} && edgedl bench {shlex.quote(built_there[0])} --vs {shlex.quote(built_there[1])}`"
    shipped = [str(entry.artifact.file.relative_to(run.folder)) for entry in (judged, reference) if entry.artifact]
    return f"`edgedl bench {shlex.quote(shipped[0])} --vs {shlex.quote(shipped[1])}`"


def parameters(model: Model, recipe: Recipe) -> dict[str, int]:
    """Number of parameters and, if it is sparse, of zeros; multiply-accumulates for one sample.

    Zeros are multiplied like all other weights.
    """
    from edgedl.analysis import counting
    from edgedl.onnx.export import example_inputs
    from edgedl.training import sparsity

    return {
        "count": counting.num_parameters(model.net),
        "zeros": sparsity.num_zeros(model.net) if model.sparse else 0,
        "macs": counting.macs(model.net, example_inputs(recipe.task, 1)),
    }


def _folder(artifact: Artifact) -> Path:
    """Where all that belongs to an artifact lies."""
    return artifact.file if artifact.graphs else artifact.file.parent


def widths(model: Model) -> list[int]:
    """Output channels of the network's weighted layers but the last, whose width the task sets."""
    weights = [value for name, value in model.net.named_parameters() if name.endswith("weight") and value.ndim > 1]
    return [int(weight.shape[0]) for weight in weights[:-1]]


def _row(run: Run, target: Target, entry: Entry, refusal: str | None) -> dict[str, Any]:
    artifact, climb, cold = entry.artifact, entry.climb, entry.cold_start
    status = artifact.status if artifact and climb else "failed"
    reason = entry.reason or refusal or (artifact.reason if artifact else None)
    latency = None
    if entry.latencies_ms:
        size = run.recipe.bench.batch_size
        latency = measure.latency_summary(entry.latencies_ms, size, getattr(target, "threads", None))
    return {
        "variant": entry.variant,
        "target": target.label,
        "precision": artifact.precision if artifact else entry.model.precision,
        "in_float": list(entry.model.quantization.blocks) if entry.model.quantization else [],
        "float_ops": _float_ops(target, entry),
        "rewrites": _rewrites(target, entry),
        "accelerators": _accelerators(target, entry),
        "device": None if artifact is None else local.name() if artifact.status == "ok" else _built_for(entry),
        "status": "refused" if refusal and status != "failed" else status,
        "reason": reason,
        "file": str(artifact.file.relative_to(run.folder)) if artifact else None,
        "graphs": _graphs(run, entry),
        "size_bytes": artifact.size_bytes if artifact else None,
        "gzip_bytes": sum(map(files.gzip_size, _files(artifact))) if artifact else None,
        "sha256": files.sha256(artifact.file) if artifact and not artifact.graphs else None,
        "score": climb.deployed.score if climb else None,
        "figures": _finite({**entry.figures, **_rates(run, entry)}),
        "samples": climb.deployed.samples if climb else None,
        "score_by": entry.session.runtime if climb and entry.session else None,
        "init_ms": cold.init_ms if cold else None,
        "peak_memory_bytes": cold.peak_memory_bytes if cold else None,
        "latency_ms": latency,
        "speedup": gate.speedup_as_json(entry.speedup),
        "validation_score": entry.validated,
        "operators": [dataclasses.asdict(operator) for operator in entry.operators],
        "engine": getattr(entry.session, "settings", None),
    }


def _float_ops(target: Target, entry: Entry) -> list[dict[str, Any]]:
    """Operators that the file has in float for want of an int8 form, with their share of the time where it is known."""
    if entry.artifact is None or entry.climb is None:
        return []
    found: dict[Origin, list[float | None]] = {}
    total = sum(operator.time_ms for operator in entry.operators)
    for graph, plan in _plans(entry):
        marked = plan.simulated(target.scheme).float_operators()
        prefix = f"{graph}/" if graph else ""
        own = [
            dataclasses.asdict(operator) | {"name": operator.name.removeprefix(prefix)}
            for operator in entry.operators
            if operator.name.startswith(prefix)
        ]
        weight = sum(operator["time_ms"] for operator in own) / total if total else 0.0
        shares = attribution.shares_of(own, entry.artifact.graphs.get(graph, entry.artifact.file), marked)
        for path, origin in marked.items():
            share = None if shares is None else weight * shares.get(path, 0.0)
            found.setdefault(replace(origin, layer=prefix + origin.layer), []).append(share)
    return [
        dataclasses.asdict(origin) | {"times": len(shares), "time_share": _sum(shares)}
        for origin, shares in found.items()
    ]


def _accelerators(target: Target, entry: Entry) -> list[dict[str, Any]]:
    """What a phone's GPU or a Jetson's DLA would leave to another processor."""
    if entry.artifact is None or entry.climb is None or target.use not in ("tflite", "tensorrt"):
        return []
    named = entry.artifact.graphs or {"": entry.artifact.file}
    return [found for graph, file in named.items() for found in inspecting.accelerators(file, target.use, graph)]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _rewrites(target: Target, entry: Entry) -> dict[str, int]:
    """What was rewritten into operators that the target has, in words, and in how many places."""
    if entry.artifact is None or entry.climb is None:
        return {}
    found = Counter(entry.artifact.rewrites)
    for _, plan in _plans(entry):
        found += Counter(plan.simulated(target.scheme).rewrites())
    return dict(found)


def _plans(entry: Entry) -> Sequence[tuple[str, Quantization]]:
    """The plan of each graph by its name, or of the only one, which has none."""
    plan = entry.model.quantization
    return [] if plan is None else list(plan.graphs.items()) or [("", plan)]


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """A figure that cannot be had of these samples is none, as the F1 of a class that is never there."""
    return {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}


def _files(artifact: Artifact) -> Sequence[Path]:
    return list(artifact.graphs.values()) or [artifact.file]


def _graphs(run: Run, entry: Entry) -> dict[str, Any]:
    """Of a network that is several graphs: each one's file, and the median latency of its calls in decoding."""
    medians, calls = (entry.replay.medians_ms(), entry.replay.num_calls()) if entry.replay else ({}, {})
    return {
        name: {
            "file": str(file.relative_to(run.folder)),
            "size_bytes": file.stat().st_size,
            "gzip_bytes": files.gzip_size(file),
            "sha256": files.sha256(file),
            "calls": calls.get(name),
            "latency_ms": medians.get(name),
        }
        for name, file in (entry.artifact.graphs if entry.artifact else {}).items()
    }


def _rates(run: Run, entry: Entry) -> Mapping[str, float]:
    if entry.replay is None:
        return {}
    size = run.recipe.bench.batch_size
    return run.recipe.task.rates({name: median / size for name, median in entry.replay.medians_ms().items()})


def _built_for(entry: Entry) -> str | None:
    return entry.artifact.built_for if entry.artifact else None


def _write_beside(run: Run, target: Target, entry: Entry, row: Mapping[str, Any]) -> None:
    """The passport, all samples, and the command that measures the file again."""
    artifact = entry.artifact
    assert artifact is not None
    folder = _folder(artifact)
    session = entry.session
    passport = {key: row[key] for key in ("precision", "size_bytes", "gzip_bytes", "sha256", "status", "reason")} | {
        "file": artifact.file.name if not artifact.graphs else None,
        "graphs": row["graphs"],
        "built_for": artifact.built_for,
        "versions": artifact.versions,
        "target": target.model_dump(),
        "inputs": {name: dataclasses.asdict(spec) for name, spec in session.inputs.items()} if session else None,
        "outputs": {name: dataclasses.asdict(spec) for name, spec in session.outputs.items()} if session else None,
        "preprocessing": run.recipe.task.preprocessing,
    }
    files.write_json(folder / "artifact.json", passport)
    if names := run.recipe.task.class_names:  # in the order of the outputs, for an app to show
        files.write_text(folder / "labels.txt", "".join(f"{' '.join(name.split())}\n" for name in names))
    blocks = [[round(float(sample), 6) for sample in block] for block in entry.latencies_ms or []]
    keys = ("score", "figures", "samples", "score_by", "init_ms", "peak_memory_bytes", "latency_ms", "operators")
    files.write_json(folder / "measurement.json", {key: row[key] for key in keys} | {"blocks_ms": blocks}, indent=None)
    scored = artifact.file if entry.runs_here else artifact.stand_in
    if scored is not None:
        name = "." if artifact.graphs else shlex.quote(scored.name)
        stand_in = " --target onnxruntime" if artifact.graphs and not entry.runs_here else ""
        files.write_text(folder / "reproduce.sh", _reproduce(name + stand_in, run))


def _reproduce(what: str, run: Run) -> str:
    bench = run.recipe.bench
    return (
        "#!/bin/sh\n"
        "# Scores this file over the whole test set of the run's recipe and measures it again, on this machine.\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f"exec edgedl bench {what} --recipe ../../../recipe.toml --seconds {bench.min_seconds:g}\n"
    )
