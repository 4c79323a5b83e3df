"""The main job, whole and real, in a small form: trained, quantized, exported, measured, judged, reported."""

from __future__ import annotations

import ctypes
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgedl import checkpoint, child, files, measure, pipeline, progress, recipe
from edgedl.core import TargetError
from edgedl.run import Run, find_finished, read_report
from edgedl.steps.quantize import Quantize
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tflite import TFLite
from edgedl.tflite.flatbuffer import Flatbuffer

RECIPE = """
description = "A small network, briefly trained."
task = { use = "digits" }
model = { use = "cnn", widths = [8, 16], hidden = 32 }
steps = [
  { use = "train", epochs = 3, lr = 3e-3 },
  { use = "quantize", method = "ptq" },
]
targets = [ { use = "tflite" }, { use = "onnxruntime" }, { use = "tensorrt" }, { use = "tensorrt-rtx" } ]
limits = { score_drop = 0.05, slower = "allow" }
bench = { min_seconds = 0.1, rounds = 5 }
"""
TRAINED = RECIPE.replace('  { use = "quantize", method = "ptq" },\n', "")


def compress(root: Path, text: str = RECIPE, name: str = "small", fresh: bool = False, **changes) -> Run:
    parsed = recipe.parse(text, root / f"{name}.toml").model_copy(update=changes)
    return pipeline.compress(parsed, text, root, fresh=fresh)


@pytest.fixture(scope="module")
def events() -> list[progress.Event]:
    """What the run told while it ran."""
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory, events) -> Run:
    with progress.heard_by(events.append):
        return compress(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def report(run) -> dict:
    return read_report(run.folder)


def row(report: dict, variant: str, target: str) -> dict:
    (found,) = (row for row in report["rows"] if (row["variant"], row["target"]) == (variant, target))
    return found


def test_every_variant_and_target_has_a_row(report):
    found = {(row["variant"], row["target"], row["precision"], row["status"]) for row in report["rows"]}
    status = {"tflite": "ok", "onnxruntime": "ok", "tensorrt": "built", "tensorrt-rtx": "built"}
    wanted = {("float", target, "fp32", word) for target, word in status.items()}
    assert found == wanted | {("compressed", target, "int8", word) for target, word in status.items()}


def test_int8_repeats_the_simulation_and_keeps_the_score(report):
    for entry in report["ladder"]:
        if entry["variant"] == "compressed":
            assert [rung["name"] for rung in entry["rungs"]] == ["float", "simulated", "deployed"]
            assert entry["agreement"]["same_decision"] == 1.0
            assert abs(entry["rungs"][-1]["drop"]) <= 0.02
            assert entry["quantization"]["sqnr_db"] > 25
        if entry["variant"] == "compressed" and entry["target"] in ("tflite", "onnxruntime"):  # their outputs are float
            assert entry["agreement"]["sqnr_db"] > 120
            assert entry["agreement"]["max_steps"] is None
            assert entry["first_divergence"] is None
        if entry["variant"] == "float":
            assert entry["agreement"]["sqnr_db"] > 100


def test_int8_files_are_smaller(report):
    for target in ("tflite", "onnxruntime"):
        ratio = row(report, "float", target)["size_bytes"] / row(report, "compressed", target)["size_bytes"]
        assert ratio > 2


def test_rows_hold_what_was_measured_and_nothing_made_up(report):
    for found in report["rows"]:
        assert found["samples"] == 360
        assert 0.8 < found["score"] <= 1
        if found["status"] == "ok":
            latency = found["latency_ms"]
            assert 0 < latency["ci95"][0] <= latency["median"] <= latency["ci95"][1]
            assert latency["runs"] >= 100
            assert (latency["p99"] is not None) == (latency["runs"] >= 1000)
            assert found["init_ms"] > 0
            assert found["peak_memory_bytes"] > 0
            assert found["operators"]
            assert sum(item["time_ms"] for item in found["operators"]) > 0
        else:
            assert found["latency_ms"] is None
            assert found["operators"] == []
            assert "onnxruntime" in found["score_by"]
            assert "cannot run here" in found["reason"]


def test_verdicts_say_what_ships_and_where_to_judge(report):
    verdicts = {verdict["target"]: verdict for verdict in report["verdicts"]}
    for target in ("tflite", "onnxruntime"):
        assert verdicts[target]["ship"] == "compressed"
        assert verdicts[target]["speedup"]["ci95"][0] <= verdicts[target]["speedup"]["median"]
    assert verdicts["tensorrt"]["ship"] == "host only"
    assert verdicts["tensorrt"]["speedup"] is None
    assert "build.sh" in verdicts["tensorrt"]["why"]
    assert "edgedl bench" in verdicts["tensorrt"]["why"]


def test_rows_and_verdicts_are_told_as_they_come(report, events, run):
    told = {kind: [event for event in events if event["event"] == kind] for kind in ("run", "row", "verdict")}
    assert [event["folder"] for event in told["run"]] == [str(run.folder)]
    rows = [{key: value for key, value in row.items() if key != "operators"} for row in report["rows"]]
    assert [event["row"] for event in told["row"]] == rows
    assert [event["verdict"] for event in told["verdict"]] == report["verdicts"]
    stages = [event["stage"] for event in events if event["event"] == "stage done"]
    assert {"train", "tflite: build float", "onnxruntime: measure"} <= set(stages)
    log = run.log.read_text()
    assert all(f" {stage}: done in " in log for stage in stages)


def test_the_folder_is_whole_and_as_documented(run, report):
    names = {str(file.relative_to(run.folder)) for file in run.folder.rglob("*") if file.is_file()}
    assert {"recipe.toml", "run.json", "report.json", "log.txt"} <= names
    assert {f"steps/00-train/{name}" for name in ("weights.safetensors", "structure.json", "metrics.json")} <= names
    assert {"quantization/affine.json", "quantization/symmetric.json"} <= names
    for found in report["rows"]:
        folder = Path(found["file"]).parent
        assert {str(folder / name) for name in ("artifact.json", "measurement.json", "reproduce.sh")} <= names
        assert files.sha256(run.folder / found["file"]) == found["sha256"]
        assert (run.folder / found["file"]).stat().st_size == found["size_bytes"]
    assert (run.folder / "recipe.toml").read_text() == RECIPE
    assert {str(Path(row["file"]).with_name("labels.txt")) for row in report["rows"]} <= names
    assert {f"exhibits/{name}" for name in ("exhibits.json", "00-input.png", "05-input.png")} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth", ".partial"))]
    assert not list(run.folder.rglob(".*"))


def test_the_report_has_exactly_the_documented_keys(report):
    assert set(report) == {
        "schema", "edgedl", "recipe", "environment", "metric", "parameters", "steps", "rows", "ladder", "verdicts",
        "warnings", "baseline",
    }  # fmt: skip
    assert report["metric"] == {"name": "accuracy", "unit": "fraction", "higher_is_better": True}
    assert set(report["rows"][0]) == {
        "variant", "target", "precision", "in_float", "device", "status", "reason", "file", "size_bytes",
        "gzip_bytes", "sha256", "score", "samples", "score_by", "init_ms", "peak_memory_bytes", "latency_ms", "speedup",
        "validation_score", "operators", "figures", "graphs", "float_ops", "rewrites",
        "engine", "accelerators",
    }  # fmt: skip
    assert set(report["ladder"][0]) == {
        "variant", "target", "rungs", "quantization", "agreement", "first_divergence", "graphs",
        "other_sizes",
    }  # fmt: skip
    assert set(report["verdicts"][0]) == {
        "target", "ship", "device", "speedup", "size_ratio", "score_drop", "why",
    }  # fmt: skip
    assert set(report["parameters"]) == {"float", "compressed"}


def test_all_samples_are_kept(run, report):
    for found in report["rows"]:
        kept = json.loads((run.folder / Path(found["file"]).parent / "measurement.json").read_text())
        num_runs = sum(len(block) for block in kept["blocks_ms"])
        assert num_runs == (found["latency_ms"]["runs"] if found["latency_ms"] else 0)


def test_tensorrt_files_hold_what_nvidia_takes(run):
    from edgedl.targets.tensorrt import check_onnx

    for variant in ("float", "compressed"):
        folder = run.folder / "targets" / variant / "tensorrt"
        check_onnx(folder / "model.onnx")
        passport = json.loads((folder / "artifact.json").read_text())
        assert "TensorRT-RTX" in passport["versions"]["checked_by"]
        assert (run.folder / "targets" / variant / "tensorrt-rtx" / "model.rtx").stat().st_size > 10_000


def test_a_second_run_takes_the_trained_weights_and_gives_the_same_files(run, report):
    root = run.folder.parents[1]
    targets = tuple(target for target in run.recipe.targets if target.use != "tensorrt-rtx")  # no two engines are equal
    again = compress(root, targets=targets)
    trained = read_report(again.folder)["steps"][0]["metrics"]
    assert trained["reused"].endswith("00-train")
    for name in ("float", "compressed"):
        for target in ("tflite", "onnxruntime", "tensorrt"):
            assert row(read_report(again.folder), name, target)["sha256"] == row(report, name, target)["sha256"]


def test_an_interrupted_run_goes_on_in_its_folder_and_builds_nothing_twice(tmp_path, monkeypatch):
    targets, step = (OnnxRuntime(),), Quantize(method="ptq", corrections=())

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measure, "interleave", interrupted)
        patched.setattr(checkpoint, "EVERY_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            compress(tmp_path, targets=targets, steps=(step,))
    (folder,) = tmp_path.glob("small/*")
    assert list(folder.glob("checkpoints/*"))
    (folder / ".half.partial").mkdir()  # as a kill leaves it
    built = {file: file.stat().st_mtime_ns for file in folder.glob("targets/*/*/model.onnx")}
    assert len(built) == 2
    with monkeypatch.context() as patched:
        patched.setattr(child, "call", None)  # nothing is built
        patched.setattr("edgedl.quantize.simulate.choose", None)  # or chosen
        again = compress(tmp_path, targets=targets, steps=(step,))
    assert list(tmp_path.glob("small/*")) == [again.folder]
    assert again.stages()["created"]["resumed"] == 1
    kept = [again.folder / file.relative_to(folder) for file in built]
    assert [file.stat().st_mtime_ns for file in kept] == list(built.values())
    assert not [*again.folder.rglob(".*"), *again.folder.rglob("checkpoints")]
    fresh = compress(tmp_path, targets=targets, steps=(step,), fresh=True)
    assert fresh.folder != again.folder
    found, wanted = read_report(again.folder), read_report(fresh.folder)
    for name in ("float", "compressed"):
        for key in ("sha256", "score", "size_bytes"):
            assert row(found, name, "onnxruntime")[key] == row(wanted, name, "onnxruntime")[key]
    assert found["ladder"] == wanted["ladder"]


def test_files_that_were_changed_since_are_built_again(run, tmp_path):
    folder = tmp_path / "targets/float/onnxruntime"
    shutil.copytree(run.folder / "targets/float/onnxruntime", folder)
    copied, key = Run(tmp_path, run.recipe), json.loads((folder / "built.json").read_text())["key"]
    assert copied.built("float", OnnxRuntime(), key).file == folder / "model.onnx"
    assert copied.built("float", OnnxRuntime(), "another") is None
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert copied.built("float", OnnxRuntime(), key) is None


def test_a_fresh_run_trains_to_the_same_weights(run):
    root = run.folder.parents[1]
    again = compress(root, TRAINED, fresh=True, targets=(OnnxRuntime(),))
    assert "reused" not in read_report(again.folder)["steps"][0]["metrics"]
    first, second = (folder / "steps/00-train/weights.safetensors" for folder in (run.folder, again.folder))
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_or_step_is_not_taken_from_earlier_runs(run):
    root = run.folder.parents[1]
    for changed in (TRAINED.replace("lr = 3e-3", "lr = 2e-3"), "seed = 7\n" + TRAINED):
        again = compress(root, changed, targets=(OnnxRuntime(),))
        assert "reused" not in read_report(again.folder)["steps"][0]["metrics"]


def test_find_finished_takes_a_folder_or_a_recipe_name(run):
    root = run.folder.parents[1]
    assert find_finished(str(run.folder), root) == run.folder
    assert find_finished("small", root).parent == run.folder.parent


class Failing(OnnxRuntime):
    """A target that cannot build int8."""

    use: str = "failing"

    def build(self, model, task, folder, batch_size):
        (folder / "half.onnx").write_text("half")
        if model.quantization is not None:
            raise TargetError("this converter has no int8")
        return super().build(model, task, folder, batch_size)


class Crashing(OnnxRuntime):
    """A target whose converter's native code crashes on int8."""

    use: str = "crashing"

    def build(self, model, task, folder, batch_size):
        if model.quantization is not None:
            print("converting the last layer", flush=True)
            ctypes.string_at(0)
        return super().build(model, task, folder, batch_size)


def test_a_target_that_fails_is_a_row_with_its_reason_and_the_others_go_on(run, monkeypatch):
    monkeypatch.setattr(
        "edgedl.measure.cold_start", lambda target, file, *limits: None
    )  # a child knows no test's class
    root = run.folder.parents[1]
    again = compress(root, targets=(Failing(), Crashing(), OnnxRuntime()))
    report = read_report(again.folder)
    crashed = row(report, "compressed", "crashing")
    assert crashed["status"] == "failed"
    assert "crashed: it was ended by SIGSEGV; it said last: converting the last layer" in crashed["reason"]
    assert "converting the last layer" in again.log.read_text()
    failed = row(report, "compressed", "failing")
    assert (failed["status"], failed["reason"], failed["file"]) == ("failed", "this converter has no int8", None)
    assert row(report, "compressed", "onnxruntime")["status"] == "ok"
    assert {verdict["target"]: verdict["ship"] for verdict in report["verdicts"]} == {
        "failing": "float",
        "crashing": "float",
        "onnxruntime": "compressed",
    }
    assert not (again.folder / "targets/compressed/failing").exists()


class Slow:
    """A session that does its work five times over."""

    def __init__(self, session) -> None:
        self.session = session

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run(self, batch):
        for _ in range(4):
            self.session.run(batch)
        return self.session.run(batch)


class SlowInt8(OnnxRuntime):
    """A runtime on which int8 really is five times slower."""

    use: str = "slow-int8"

    def open(self, file):
        session = super().open(file)
        is_int8 = any(value.scale is not None for value in session.activations(_zeros(session)))
        return Slow(session) if is_int8 else session


def _zeros(session) -> dict[str, np.ndarray]:
    return {name: np.zeros(spec.shape, spec.dtype) for name, spec in session.inputs.items()}


def test_a_slower_int8_file_is_refused_and_float_ships(run, monkeypatch):
    monkeypatch.setattr("edgedl.measure.cold_start", lambda target, file, *limits: None)
    root = run.folder.parents[1]
    text = RECIPE.replace('slower = "allow"', 'slower = "refuse"')
    report = read_report(compress(root, text, targets=(SlowInt8(),)).folder)
    refused = row(report, "compressed", "slow-int8")
    assert refused["status"] == "refused"
    assert "slower than the fastest float" in refused["reason"]
    (verdict,) = report["verdicts"]
    assert verdict["ship"] == "float"
    assert verdict["speedup"]["verdict"] == "slower"


class OffByTwo(TFLite):
    """A converter that halves the scale of the last layer but one."""

    use: str = "off-by-two"

    def build(self, model, task, folder, batch_size):
        artifact = super().build(model, task, folder, batch_size)
        graph = Flatbuffer(artifact.file.read_bytes())
        if model.quantization is not None:
            made = [graph.tensors[operator.outputs[0]] for operator in graph.operators]
            last = [tensor for tensor in made if tensor.type == graph.schema.TensorType.INT8][-1]
            last.quantization.scale = [last.quantization.scale[0] / 2]
            artifact.file.write_bytes(graph.pack())
        return artifact


def test_a_broken_converter_is_caught_before_anything_ships(run, monkeypatch):
    monkeypatch.setattr("edgedl.measure.cold_start", lambda target, file, *limits: None)
    root = run.folder.parents[1]
    report = read_report(compress(root, targets=(OffByTwo(),)).folder)
    refused = row(report, "compressed", "off-by-two")
    assert refused["status"] == "refused"
    assert "layer dense1" in refused["reason"]
    entry = next(entry for entry in report["ladder"] if entry["variant"] == "compressed")
    assert entry["first_divergence"]["layer"] == "dense1"
    assert report["verdicts"][0]["ship"] == "float"


def test_a_recipe_without_compression_has_the_float_rows_alone(run):
    root = run.folder.parents[1]
    report = read_report(compress(root, TRAINED, targets=(OnnxRuntime(),)).folder)
    assert [found["variant"] for found in report["rows"]] == ["float"]
    assert report["verdicts"][0]["ship"] == "float"


def test_runs_started_in_the_same_second_get_folders_of_their_own(run):
    root = run.folder.parents[1]
    made = {Run.create(run.recipe, RECIPE, root).folder for _ in range(3)}
    assert len(made) == 3
