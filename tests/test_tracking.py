"""Tracking: what MLflow's own client reads back is what the report says, and a tracker that fails fails nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedl import files, recipe, tracking
from edgedl.cli import compress
from edgedl.core import EdgedlError, UsageError
from edgedl.run import Run, read_report
from tests import sample_report

mlflow = pytest.importorskip("mlflow", reason="the extra track is not installed")


@pytest.fixture
def run(tmp_path) -> Run:
    """A finished run, one of whose targets has failed."""
    folder = tmp_path / "runs" / "cnn-int8" / "2026-11-20T14-15-00"
    report = sample_report.sample_report()
    for row in report["rows"]:
        if row["file"]:
            (folder / row["file"]).parent.mkdir(parents=True)
            (folder / row["file"]).write_text(f"{row['variant']} for {row['target']}")
    sample_report.write_beside(folder)
    files.write_json(folder / "report.json", report)
    return Run(folder, recipe.load("cnn-int8"))


def test_mlflow_reads_back_what_the_report_says(run, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    report = read_report(run.folder)
    said = tracking.track(run.folder, report)
    assert said.endswith(f"in sqlite:///{tmp_path}/mlruns/mlflow.db")

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("cnn-int8").experiment_id
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    whole = found.pop(f"cnn-int8 {run.folder.name}")
    assert whole.info.run_id in said
    assert whole.info.status == "FAILED"  # as one of its files
    assert whole.data.params["limits.score_drop"] == "0.005"
    assert whole.data.params["task.use"] == "digits"
    for row in report["rows"]:
        wanted = {key: row[key] for key in ("score", "size_bytes", "init_ms")}
        wanted |= {key: row[key] and row[key]["median"] for key in ("latency_ms", "speedup")}
        names = {key: f"{row['target']}/{row['variant']}/{key}" for key in wanted}
        assert {key: whole.data.metrics.get(name) for key, name in names.items()} == wanted
    for verdict in report["verdicts"]:
        assert whole.data.tags[f"{verdict['target']}.ship"] == verdict["ship"]
        assert whole.data.metrics.get(f"{verdict['target']}/score_drop") == verdict["score_drop"]
    assert {"report.json", "recipe.toml"} <= {entry.path for entry in client.list_artifacts(whole.info.run_id)}
    shipped = {
        target: [Path(client.download_artifacts(whole.info.run_id, entry.path)).read_text() for entry in entries]
        for target in ("tflite", "onnxruntime", "tensorrt")
        if (entries := client.list_artifacts(whole.info.run_id, f"files/{target}"))
    }
    assert shipped == {"tflite": ["compressed for tflite"], "onnxruntime": ["float for onnxruntime"]}

    train = found.pop("00-train")
    assert set(found) == {"01-quantize"}
    assert train.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert train.data.params["lr"] == "0.001"
    for key in ("loss", "score"):
        course = [entry[key] for entry in report["steps"][0]["metrics"]["epochs"]]
        assert [metric.value for metric in client.get_metric_history(train.info.run_id, key)] == course


def test_a_tracker_that_cannot_be_reached_is_a_warning(run, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    report = read_report(run.folder)
    with pytest.raises(EdgedlError, match=r"^mlflow: the run was not tracked: .*127\.0\.0\.1"):
        tracking.track(run.folder, report)
    compress._track(run, report)
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("edgedl: warning: mlflow: the run was not tracked: ")
    assert "failed: mlflow: " in run.log.read_text()


def test_a_tracker_is_looked_for_before_anything_runs(monkeypatch):
    with pytest.raises(UsageError, match=r"^no tracker 'wandb'; there is: mlflow$"):
        tracking.check("wandb")
    monkeypatch.setattr(tracking.plugins, "installed", lambda module: False)
    with pytest.raises(EdgedlError, match=r"edgedl\[track\]"):
        tracking.check("mlflow")
