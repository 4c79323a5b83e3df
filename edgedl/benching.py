"""Measuring single files that need no run folder: what `edgedl bench` does, on a workstation or on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedl import files, measure, plugins, progress, stats
from edgedl.core import Bench, ModelFileError, Session, Target, Task, UsageError
from edgedl.devices import local


def target_for(file: Path, threads: int, use: str | None = None) -> Target:
    """The target that opens a file: `use`, or the one that claims its ending.

    Raises `ModelFileError` for an unknown ending, `MissingPackage` for a runtime that is not installed.
    """
    claims: dict[str, type[Target]] = {}
    for name in plugins.names("targets"):
        found = plugins.load("targets", name)
        assert issubclass(found, Target)
        for suffix in found.suffixes:
            claims.setdefault(suffix, found)
    if use is None and file.suffix not in claims:
        raise ModelFileError(f'{file}: unknown ending "{file.suffix}"; there are: {", ".join(sorted(claims))}')
    chosen = plugins.load("targets", use) if use else claims[file.suffix]
    fields = {"threads": threads} if "threads" in chosen.model_fields else {}
    target = chosen.model_validate(fields)
    assert isinstance(target, Target)
    plugins.require([target], "open")
    return target


def bench(
    paths: Sequence[Path],
    vs: Path | None,
    task: Task | None,
    use: str | None,
    threads: int,
    seconds: float,
    operators: bool,
) -> list[dict[str, Any]]:
    """Measures files in turn, each against `vs` if given; returns a row a file, with the keys of a report's rows.

    Raises `ModelFileError` for a file that cannot be opened, `UsageError` if the task does not fit it.
    """
    everything = list(dict.fromkeys([*paths, *([vs] if vs else [])]))
    for file in everything:
        if not file.is_file():
            raise ModelFileError(f"{file} is a folder: name the file in it" if file.is_dir() else f"no file {file}")
    targets = {file: target_for(file, threads, use) for file in everything}
    with progress.stage("open", len(everything)) as step:
        sessions: dict[str, tuple[Session, Any]] = {}
        scores: dict[str, measure.Scored | None] = {}
        cold_starts: dict[str, measure.ColdStart] = {}
        for file, target in targets.items():
            cold_starts[str(file)] = measure.cold_start(target, file)  # first: it survives a file that crashes
            session = target.open(file)
            if task is not None:
                _check_fits(file, session, task)
            inputs = measure.sample(task, session) if task else measure.random_inputs(session.inputs)
            sessions[str(file)] = session, inputs
            scores[str(file)] = measure.evaluate(session, task, "test") if task else None
            step(1)
    with progress.stage("measure", len(everything)) as step:
        blocks = measure.interleave(sessions, Bench(min_seconds=seconds))
        step(len(everything))
    rows = []
    for file, target in targets.items():
        session, inputs = sessions[str(file)]
        cold, scored = cold_starts[str(file)], scores[str(file)]
        speedup = stats.compare(blocks[str(vs)], blocks[str(file)]) if vs and file != vs else None
        rows.append(
            {
                "file": str(file),
                "target": target.use,
                "runtime": session.runtime,
                "device": local.name(),
                "size_bytes": file.stat().st_size,
                "sha256": files.sha256(file),
                "score": scored.score if scored else None,
                "metric": task.metric.name if task else None,
                "samples": scored.samples if scored else None,
                "init_ms": cold.init_ms,
                "peak_memory_bytes": cold.peak_memory_bytes,
                "latency_ms": measure.latency_summary(
                    blocks[str(file)], measure.batch_size(session), getattr(target, "threads", None)
                ),
                "vs": str(vs) if speedup else None,
                "speedup": dataclasses.asdict(speedup) if speedup else None,
                "operators": [dataclasses.asdict(item) for item in session.profile(inputs)] if operators else [],
            }
        )
        session.close()
    return rows


def _check_fits(file: Path, session: Session, task: Task) -> None:
    """Raises `UsageError` for a file that takes something else than the task feeds, or lacks what it scores."""
    for kind, wanted, found in (("input", task.inputs, session.inputs), ("output", task.outputs, session.outputs)):
        for name in wanted:
            if name not in found:
                raise UsageError(f"{file}: no {kind} named {name}, as task {task.use} has; it has {', '.join(found)}")
    for name, given in session.inputs.items():
        if name not in task.inputs:
            raise UsageError(f"{file}: input {name} is nothing that task {task.use} feeds")
        spec = task.inputs[name]
        if given.shape[1:] != spec.shape or given.dtype != spec.dtype:
            shape = ", ".join(map(str, ("N", *spec.shape)))
            raise UsageError(
                f"{file}: input {name} is {given.dtype} {given.shape}, but task {task.use} feeds {spec.dtype} ({shape})"
            )
