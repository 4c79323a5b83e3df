"""Finished runs for a tracker of experiments: a run of MLflow for each, with one inside it for each of its steps."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import plugins
from edgedl.core import EdgedlError, MissingPackage, UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKERS = ("mlflow",)
LOCAL = Path("mlruns")
"""Where runs go if `MLFLOW_TRACKING_URI` says nothing: below the current folder."""
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Unless they are set: MLflow tries for minutes to reach a server that is not there, and reports home."""
MOST_CHARACTERS = 500
"""Of a parameter."""
AT_ONCE = 100
"""Parameters and metrics in one request."""
BESIDE = ("report.json", "report.html", "recipe.toml", "run.json", "log.txt")
FIGURES = ("score", "size_bytes", "gzip_bytes", "init_ms", "peak_memory_bytes", "validation_score")


def check(tracker: str) -> None:
    """Raises `UsageError` for a tracker that is not known, and `MissingPackage` for one that is not installed."""
    if tracker not in TRACKERS:
        raise UsageError(f"no tracker {tracker!r}; there is: {', '.join(TRACKERS)}")
    if not plugins.installed("mlflow"):
        raise MissingPackage(f"--track mlflow needs mlflow-skinny: {plugins.pip_line('track')}")


def track(folder: Path, report: Mapping[str, Any]) -> str:
    """Writes a finished run to MLflow; returns what was made there, in words. Raises `EdgedlError`."""
    for key, value in PATIENCE.items():
        os.environ.setdefault(key, value)
    try:
        return _written(folder, report)
    # It raises what its servers, data bases and file systems raise; the run is finished, whatever that is.
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise EdgedlError(f"mlflow: the run was not tracked: {said}") from error


def _written(folder: Path, report: Mapping[str, Any]) -> str:
    from mlflow import MlflowClient

    name = report["recipe"]["name"]
    uri, kept = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        LOCAL.mkdir(exist_ok=True)
        uri, kept = f"sqlite:///{LOCAL.absolute() / 'mlflow.db'}", (LOCAL.absolute() / "artifacts").as_uri()
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=kept)
    tags = {"edgedl.folder": str(folder), "edgedl.version": report["edgedl"]}
    for verdict in report["verdicts"]:
        tags |= {f"{verdict['target']}.ship": verdict["ship"], f"{verdict['target']}.why": verdict["why"]}
    whole = client.create_run(experiment, run_name=f"{name} {folder.name}", tags=tags).info.run_id
    _log(client, whole, dict(_flat(report["recipe"])), {key: [value] for key, value in _of_rows(report).items()})
    for place, step in enumerate(report["steps"]):
        inner = {"mlflow.parentRunId": whole}
        made = client.create_run(experiment, run_name=f"{place:02}-{step['use'].rpartition(':')[2]}", tags=inner)
        settings = {key: value for key, value in step.items() if key != "metrics"}
        _log(client, made.info.run_id, dict(_flat(settings)), _courses(step["metrics"]))
        client.set_terminated(made.info.run_id)
    for file in (folder / beside for beside in BESIDE):
        if file.is_file():
            client.log_artifact(whole, str(file))
    for target, shipped in _shipped(folder, report):
        (client.log_artifacts if shipped.is_dir() else client.log_artifact)(whole, str(shipped), f"files/{target}")
    client.set_terminated(whole, "FAILED" if any(row["status"] == "failed" for row in report["rows"]) else "FINISHED")
    return f"mlflow: experiment {name}, run {whole}, in {uri}"


def _log(client: MlflowClient, run: str, settings: Mapping[str, Any], courses: Mapping[str, Sequence[float]]) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    params = [Param(_named(key), str(value)[:MOST_CHARACTERS]) for key, value in settings.items()]
    metrics = [
        Metric(_named(key), float(value), now, place)
        for key, values in courses.items()
        for place, value in enumerate(values)
    ]
    for first in range(0, max(len(params), len(metrics)), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        client.log_batch(run, metrics=metrics[part], params=params[part])


def _named(key: str) -> str:
    """With the characters alone that MLflow allows."""
    return re.sub(r"[^\w\-./ ]", "-", key)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Single values by path: `steps.0.epochs`."""
    inner: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        inner = iter(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        inner = enumerate(value)
    if inner is None:
        yield key, value
        return
    for name, entry in inner:
        yield from _flat(entry, f"{key}.{name}" if key else str(name))


def _of_rows(report: Mapping[str, Any]) -> dict[str, float]:
    """What was measured of each file, as `tflite/compressed/latency_ms`."""
    found: dict[str, float] = {}
    for row in report["rows"]:
        values = {key: row.get(key) for key in FIGURES} | row["figures"]
        values["latency_ms"] = row["latency_ms"] and row["latency_ms"]["median"]
        values["speedup"] = row["speedup"] and row["speedup"]["median"]
        known = {key: value for key, value in values.items() if value is not None}
        found |= {f"{_target(row)}/{row['variant']}/{key}": value for key, value in known.items()}
    for verdict in report["verdicts"]:
        if verdict.get("score_drop") is not None:
            found[f"{verdict['target']}/score_drop"] = verdict["score_drop"]
    return found


def _target(row: Mapping[str, Any]) -> str:
    """The target's folder, which tells several of one kind apart."""
    return Path(row["file"]).parts[2] if row["file"] else str(row["target"])


def _courses(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """The numbers among a step's metrics; those of each epoch or round one after another."""
    found: dict[str, list[float]] = {}
    for key, value in metrics.items():
        if _is_number(value):
            found[key] = [value]
        elif isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
            for entry in value:
                for inner, number in entry.items():
                    if _is_number(number) and inner != "epoch":
                        found.setdefault(inner if key == "epochs" else f"{key}/{inner}", []).append(number)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shipped(folder: Path, report: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The file, or the folder of a network's graphs, that each verdict ships."""
    ships = {(verdict["target"], verdict["ship"]) for verdict in report["verdicts"]}
    for row in report["rows"]:
        if (row["target"], row["variant"]) in ships and row["file"]:
            yield _target(row), folder / row["file"]
