"""Measuring single files that need no run folder: what `edgedl bench` does, on a workstation or on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedl import files, graph_session, measure, plugins, progress, stats
from edgedl.core import Batch, Bench, ModelFileError, Session, Target, Task, UsageError
from edgedl.devices import local
from edgedl.graph_session import Replay
from edgedl.probes import end_to_end, loads
from edgedl.probes.loads import NOTHING, Asked
from edgedl.remote import answers, runner


def bench(
    paths: Sequence[Path],
    vs: Path | None,
    task: Task | None,
    use: str | None,
    threads: int,
    seconds: float,
    operators: bool,
    asked: Asked = NOTHING,
) -> list[dict[str, Any]]:
    """Measures files in turn, each against `vs` if given; returns a row a file, with the keys of a report's rows.

    What else is asked is answered for one file after another. Raises `ModelFileError` for a file that cannot be opened,
    `UsageError` if the task does not fit it, or there is none and it is needed.
    """
    if asked.end_to_end and task is None:
        raise UsageError("--end-to-end needs the task that prepares and decides: give its --recipe, or a run")
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
        if asked != NOTHING:
            with progress.stage(f"{file.name}: what else is asked", 1) as step:
                rows[-1] |= _answered(file, target, session, inputs, task, asked, Bench(min_seconds=seconds))
                step(1)
        session.close()
        progress.emit("row", row={key: value for key, value in rows[-1].items() if key != "operators"})
    return rows


def _answered(
    file: Path, target: Target, session: Session, inputs: Batch, task: Task | None, asked: Asked, pace: Bench
) -> dict[str, Any]:
    """The further keys of a row."""
    count = getattr(target, "threads", None)

    def opened(threads: int) -> Session:
        same = target.model_copy(update={"threads": threads}) if count else target
        found = graph_session.open_files(same, file)
        return Replay(found, session.calls) if isinstance(session, Replay) else found

    found = loads.answer(asked, opened, inputs, count or 1, pace)
    if asked.cold:
        if target.use in runner.OPENERS and not target.needs_gpu:
            parts = graph_session.graph_files(file, target.suffixes) if file.is_dir() else {"": file}
            graphs = {name: {"file": str(part.absolute())} for name, part in parts.items()}
            command = runner.cold_command({"opens": target.use, "threads": count, "graphs": graphs})
        else:
            command = measure.fresh_command(target, file)
        found["cold_start"] = loads.cold_starts(command, asked.cold)
    if asked.end_to_end and task is not None:
        plain = session if not isinstance(session, Replay) else graph_session.open_files(target, file)
        found["end_to_end"] = end_to_end.measured(plain, task, pace.min_seconds, pace.rounds)
    drawn = found.get("energy") or {}
    return dict.fromkeys(answers.KEYS) | {"energy_mj": drawn.get("energy_mj")} | found
