"""Measuring single files that need no run folder: what `edgedl bench` does, on a workstation or on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedl import files, graph_session, measure, plugins, progress, stats
from edgedl.core import Bench, ModelFileError, Session, Task
from edgedl.devices import local
from edgedl.graph_session import Replay


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
        if not file.exists():
            raise ModelFileError(f"no file {file}")
    targets = {file: plugins.target_for(graph_session.one_of(file), threads, use) for file in everything}
    with progress.stage("open", len(everything)) as step:
        sessions: dict[str, tuple[Session, Any]] = {}
        scores: dict[str, measure.Scored | None] = {}
        cold_starts: dict[str, measure.ColdStart] = {}
        for file, target in targets.items():
            cold_starts[str(file)] = measure.cold_start(target, file)  # first: it survives a file that crashes
            session = graph_session.open_files(target, file)
            if task is not None:
                measure.check_fits(file, session, task)
            calls = next((found.calls for found, _ in sessions.values() if isinstance(found, Replay)), ())
            random = session, measure.random_inputs(session.inputs)
            sessions[str(file)] = measure.timed(task, session, calls) if task else random
            scores[str(file)] = measure.evaluate(session, task, "test") if task else None
            step(1)
    with progress.stage("measure", len(everything)) as step:
        blocks = measure.interleave(sessions, Bench(min_seconds=seconds))
        step(len(everything))
    rows = []
    for file, target in targets.items():
        session, inputs = sessions[str(file)]
        cold, scored = cold_starts[str(file)], scores[str(file)]
        parts = graph_session.graph_files(file, target.suffixes).values() if file.is_dir() else [file]
        speedup = stats.compare(blocks[str(vs)], blocks[str(file)]) if vs and file != vs else None
        rows.append(
            {
                "file": str(file),
                "target": target.use,
                "runtime": session.runtime,
                "device": local.name(),
                "size_bytes": sum(part.stat().st_size for part in parts),
                "sha256": files.sha256(file) if file.is_file() else None,
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
                "engine": getattr(session, "settings", None),
                "operators": [dataclasses.asdict(item) for item in session.profile(inputs)] if operators else [],
            }
        )
        session.close()
    return rows
