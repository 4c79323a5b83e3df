"""The benchmarks' own code: what makes rows of files and a table of rows. The peers themselves are not run here."""

from __future__ import annotations

import importlib
import json
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import (
    auto,
    catalogue,
    environments,
    families,
    latency,
    networks,
    pruning,
    quantization,
    scaling,
    search,
    table,
    zoo,
)
from benchmarks.architectures import ARCHITECTURES
from benchmarks.networks import LSTM, SUBJECTS, DigitRows, Subject
from benchmarks.peers import edgedl as ours
from benchmarks.rows import write
from edgedl import files, recipe
from edgedl.core import TensorSpec
from edgedl.devices import local
from edgedl.measure import evaluate
from edgedl.models.cnn import CNN
from edgedl.steps.prune import macs, sample
from edgedl.steps.quantize import Quantize
from edgedl.steps.train import Train
from edgedl.tasks.digits import Digits
from edgedl.torch_session import TorchSession, named_outputs
from edgedl.training import loop
from tests.sample_report import sample_report


def row(peer: str, file: str, seed: int = 0, network: str = "cnn", **facts) -> dict:
    runtime = quantization.RUNTIMES[file[file.index(".") :]]
    found = {"network": network, "seed": seed, "peer": peer, "file": file, "runtime": runtime} | facts
    return found | {"kind": quantization.kind(found), "metric": "accuracy", "reference_score": 0.95}


def done(snr_db: float, seconds: float = 2.0, speedup: float = 2.0) -> dict:
    return {
        "score": 0.9,
        "snr_db": snr_db,
        "seconds": seconds,
        "size_bytes": 5000,
        "speedup": {"median": speedup, "ci95": [speedup, speedup]},
    }


def test_the_table_holds_ours_against_the_best_and_the_median_of_the_peers():
    rows = [
        row("float", "float.tflite", **done(120)),
        row("edgedl", "static.tflite", 0, **done(40)),
        row("edgedl", "static.tflite", 1, **done(42, seconds=4.0)),
        row("edgedl", "mixed.tflite", **done(60, speedup=1.2)),
        row("torchao", "static.tflite", **done(30, seconds=1.0)),
        row("ai_edge_quantizer", "static-a.tflite", export_seconds=0.5, **done(20)),
        row("ai_edge_quantizer", "static-b.tflite", export_seconds=0.5, **done(36, speedup=1.5)),
        row("ai_edge_quantizer", "dynamic.tflite", **done(90)),
    ]
    text = table.markdown({"device": {"name": "a machine"}, "rows": rows})
    best = "ai_edge_quantizer static-b, 1.50×, 5 kB"
    assert (
        f"| cnn | tflite | 41.0 | static, 2.00×, 5 kB | 36.0 | {best} | 33.0 | 3.0 | 1.8 | 60.0 | 1.20×, 5 kB |" in text
    )
    assert "| tflite | edgedl | static | 0.9000 | 41.0 (40.0 to 42.0) | 2.00× | 5 | 3.0 |" in text
    assert "| tflite | ai_edge_quantizer | dynamic | 0.9000 | 90.0 | 2.00× | 5 | 2.0 |" in text


def test_what_auto_ships_stands_beside_the_peer_s_best():
    speedup = {"median": 1.5, "ci95": [1.4, 1.6]}
    ours = {"variant": "int8-layers", "score": 0.9, "size_bytes": 2000, "speedup": speedup, "snr_db": 40.0}
    rows = [
        {"network": "cnn", "seed": 0, "runtime": "tflite", "auto": ours, "peer": ours | {"file": "dynamic.tflite"}},
        {"network": "cnn", "seed": 0, "runtime": "onnxruntime", "auto": ours | {"variant": "float", "speedup": None}},
    ]
    text = table.auto({"device": {"name": "a machine"}, "rows": rows})
    worth = "0.9000 | 40.0 | 2 | 1.50× (1.40 to 1.60)"
    assert f"| cnn | 0 | tflite | int8-layers | {worth} | dynamic | {worth} |" in text
    assert "| cnn | 0 | onnxruntime | float | 0.9000 | 40.0 | 2 | 1.00× | – | – | – | – | – |" in text
    assert "Of 1 such pairs what `auto` ships is faster in 0 and slower in 0" in text


@pytest.mark.parametrize(("interval", "found"), [((1.0, 1.39), "faster in 1 and slower in 0"),
                                                ((1.61, 2.0), "faster in 0 and slower in 1")])  # fmt: skip
def test_who_is_faster_is_said_where_intervals_do_not_meet(interval, found):
    ours = {"variant": "int8", "score": 0.9, "size_bytes": 2, "speedup": {"median": 1.5, "ci95": [1.4, 1.6]}}
    peer = ours | {"file": "static.tflite", "snr_db": 40.0, "speedup": {"median": 1.0, "ci95": interval}}
    row = {"network": "cnn", "seed": 0, "runtime": "tflite", "auto": ours | {"snr_db": 39.9}, "peer": peer}
    text = table.auto({"device": {"name": "a machine"}, "rows": [row]})
    assert f"Of 1 such pairs what `auto` ships is {found} by intervals that do not meet, and has as many dB" in text
    assert text.count("or more in 0.") == 1


def test_auto_s_recipes_are_whole_and_build_the_trained_network(tmp_path, monkeypatch):
    monkeypatch.setitem(SUBJECTS, "tiny", Subject(DigitRows(), LSTM(hidden=4), Train(epochs=1)))
    net = SUBJECTS["tiny"].network.build(DigitRows())
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    made = recipe.parse(auto.recipe_of("tiny", tmp_path), tmp_path / "auto.toml")
    assert isinstance(made.task, DigitRows)
    built = made.model.build(made.task)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in built.state_dict().items())


def test_failures_are_in_the_table_with_their_reason():
    rows = [
        row("float", "float.onnx", network="lstm", **done(120)),
        row("edgedl", "static.onnx", network="lstm", failed="UnsupportedOperator: aten.lstm"),
        row("nncf", "static.onnx", 0, network="lstm", **done(30)),
        row("nncf", "static.onnx", 1, network="lstm", failed="ended by signal 11"),
    ]
    text = table.markdown({"device": {"name": "a machine"}, "rows": rows})
    assert "| lstm | onnxruntime | failed | – | – | – | – | – |" in text  # nncf did not make it at every seed
    assert "| onnxruntime | edgedl | static (failed 1 of 1) | – | – | – | – | – |" in text
    assert "| onnxruntime | nncf | static (failed 1 of 2) | 0.9000 | 30.0 | 2.00× | 5 | 2.0 |" in text
    assert "- edgedl static.onnx: UnsupportedOperator: aten.lstm" in text


def test_the_table_of_pruning_averages_over_seeds():
    facts = {"network": "cnn", "share": 0.5, "method": "a", "parameters": 2000, "seconds": 3.0}
    facts |= {"macs": 0.4, "tflite_speedup": 2.0, "onnxruntime_speedup": 1.5}
    rows = [facts | {"seed": 0, "score": 0.9}, facts | {"seed": 1, "score": 0.8, "macs": 0.5}]
    text = table.pruning({"device": {"name": "a machine"}, "rows": rows})
    assert "| cnn | 50% | a | 45.0% | 2.0 | 0.8500 (0.8000 to 0.9000) | 2.00× | 1.50× | 3 |" in text


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_network_learns_one_step(name):
    task = SUBJECTS[name].task
    net = SUBJECTS[name].network.build(task)
    torch.manual_seed(0)
    batch = {key: torch.rand(8, *spec.shape) for key, spec in task.inputs.items()}
    batch["label"] = torch.randint(10, (8,))
    rule = torch.optim.Adam(net.parameters(), lr=1e-3)

    def loss() -> torch.Tensor:
        return task.loss(named_outputs(net(*(batch[key] for key in task.inputs)), task), batch)

    before = loss()
    before.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    rule.step()
    assert loss() < before


@pytest.mark.parametrize("name", ["lstm", "transformer", "generator"])
def test_the_tasks_of_the_benchmarks_have_what_their_networks_take(name):
    task = SUBJECTS[name].task
    arrays = task.arrays("test")
    assert all(arrays[key].shape[1:] == spec.shape for key, spec in task.inputs.items())
    net = SUBJECTS[name].network.build(task).eval()
    with torch.no_grad():
        outputs = named_outputs(net(*(torch.from_numpy(arrays[key]) for key in task.inputs)), task)
    assert np.isfinite(task.score({key: value.numpy() for key, value in outputs.items()}, arrays))


def test_our_own_row_of_a_small_network(tmp_path, monkeypatch):
    tiny = Subject(Digits(), CNN(widths=(4,), hidden=8), Train(epochs=2, lr=1e-2))
    monkeypatch.setitem(SUBJECTS, "tiny", tiny)
    monkeypatch.setitem(ours.STEPS, "static", Quantize(calibrator="min-max"))
    source = networks.prepare("tiny", 0, tmp_path / "tiny-0")
    files = {"tflite": tmp_path / "static.tflite", "onnxruntime": tmp_path / "static.onnx"}
    rows = []
    for use, file in files.items():
        rows.append({"peer": "float", "file": networks.FLOAT_FILES[use]})
        rows.append({"peer": "edgedl", "file": file.name} | ours.write("static", use, source, file))
    rows.append({"peer": "nncf", "file": "static-x.onnx", "failed": "no"})
    (tmp_path / "static-broken.tflite").write_bytes(b"nothing")
    rows.append({"peer": "torchao", "file": "static-broken.tflite", "seconds": 1.0})
    folders = {"float": source, "edgedl": tmp_path, "nncf": tmp_path, "torchao": tmp_path}
    monkeypatch.setattr(quantization, "BENCH", quantization.BENCH.model_copy(update={"min_seconds": 0.01}))
    quantization.judge(
        tiny.task, *networks.reference(tiny, source), [(each, folders[each["peer"]] / each["file"]) for each in rows]
    )
    exported_tflite, our_tflite, exported_onnx, our_onnx, failed, broken = rows
    for exact in (exported_tflite, exported_onnx):
        assert exact["snr_db"] > 100
        assert exact["speedup"]["median"] == 1.0
    for int8, exact in ((our_tflite, exported_tflite), (our_onnx, exported_onnx)):
        assert 20 < int8["snr_db"] < 70
        assert int8["agreement"]["sqnr_db"] > 120  # on onnxruntime, outputs are float
        assert int8["size_bytes"] < exact["size_bytes"]
        assert int8["kind"] == "static"
        assert int8["seconds"] > 0
        assert int8["score"] == pytest.approx(exact["score"], abs=0.05)
    assert failed["failed"] == "no"
    assert "score" not in failed
    assert broken["failed"].startswith("static-broken.tflite: no TFLite file")
    assert networks.prepare("tiny", 0, source) == source  # trained once
    seconds = json.loads((source / "source.json").read_text())["export_seconds"]
    assert seconds.keys() == {"tflite", "onnxruntime", "converted", "pt2"}


def test_a_peer_that_crashes_fails_at_one_file_alone(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'{"seconds": 1.0}\' > "$4/$5.json"\nkill -SEGV $$\n')
    python.chmod(0o755)
    monkeypatch.setattr(environments, "python", lambda peer, cache: python)
    found = quantization.compress("nncf", tmp_path, tmp_path / "out", ["a.onnx", "b.onnx", "c.onnx"], tmp_path)
    assert found == {"a.onnx": {"seconds": 1.0}, "b.onnx": {"failed": "ended by signal 11"}, "c.onnx": {"seconds": 1.0}}


def test_what_the_results_hold_is_not_made_again():
    rows = [row("onnxruntime", "dynamic.onnx"), row("onnxruntime", "static-minmax.onnx", seed=1)]
    wanted = quantization.missing(rows, "cnn", 0, ["onnxruntime"], fresh=False)
    everything = quantization.missing(rows, "cnn", 0, ["onnxruntime"], fresh=True)
    assert set(everything["onnxruntime"]) - set(wanted["onnxruntime"]) == {"dynamic.onnx"}
    replaced = quantization.merged(rows, [row("onnxruntime", "dynamic.onnx", failed="now"), row("float", "float.onnx")])
    assert [each["file"] for each in replaced] == ["float.onnx", "dynamic.onnx", "static-minmax.onnx"]
    assert replaced[1]["failed"] == "now"


@pytest.mark.parametrize("peer", quantization.PEERS)
def test_a_peer_says_what_it_writes_before_its_packages_are_there(peer):
    files = importlib.import_module(f"benchmarks.peers.{peer}").FILES
    assert files
    assert all(file[file.index(".") :] in quantization.RUNTIMES for file in files)
    assert (environments.PEERS / f"{peer}.txt").exists() == (peer != "edgedl")


def test_a_file_of_int8_inputs_and_outputs_is_fed_and_read_in_its_codes(monkeypatch):
    class Identity:
        runtime = "none"
        inputs = {"a": TensorSpec((1, 1, 28, 28), "int8")}  # noqa: RUF012
        outputs = {"b": TensorSpec((1, 1, 28, 28), "int8")}  # noqa: RUF012

        def run(self, batch):
            assert batch["a"].dtype == np.int8
            return {"b": batch["a"]}

    monkeypatch.setattr(quantization, "_grids", lambda session: {"a": (1 / 255, -128), "b": (1 / 255, -128)})
    image = Digits().arrays("test")["image"][:1]
    (answer,) = quantization.Adapted(Identity(), SUBJECTS["generator"].task).run({"image": image}).values()
    assert np.abs(answer - image).max() <= 0.5 / 255 + 1e-6
    assert not np.array_equal(answer, image)


@pytest.mark.parametrize("method", ["torch-pruning magnitude", "torch-pruning taylor"])
def test_torch_pruning_reaches_the_goal_in_multiples_and_learns(method, monkeypatch):
    monkeypatch.setattr(pruning, "EPOCHS", 2)
    monkeypatch.setattr(pruning, "LR", 1e-2)
    loop.seed(0)
    net = CNN(widths=(16, 32), hidden=32).build(Digits())
    found = pruning.METHODS[method](net, Digits(), 0.5)
    inputs = sample(Digits())
    assert 0.1 < macs(found, inputs) / macs(net, inputs) <= 0.5
    assert all(module.out_channels % pruning.ROUND_TO == 0 for module in found if hasattr(module, "out_channels"))
    assert evaluate(TorchSession(found, Digits()), Digits(), "test").score > 0.5
    assert net.conv1.out_channels == 16


def family(name: str = "mlp-int8", **facts) -> dict:
    row = {"recipe": name, "sha256": files.sha256(recipe.find(name)), "seconds": 70.2, "cpu_seconds": 65.0}
    return row | families.figures(sample_report()) | facts


def test_the_row_of_a_recipe_holds_the_judged_file_of_every_target():
    row = family()
    tflite, onnx, tensorrt, rtx = row["targets"]
    assert (tflite["variant"], tflite["float"], tflite["score"], tflite["ship"]) == (
        "compressed",
        0.975,
        0.9722,
        "compressed",
    )
    assert tflite["agreement"] == {"sqnr_db": 240.0, "same_decision": 1.0, "max_steps": 0}
    assert (tflite["drop"], tflite["size_ratio"], tflite["speedup"]["verdict"]) == (0.0028, 3.91, "faster")
    assert (onnx["status"], onnx["ship"]) == ("refused", "float")
    assert (tensorrt["status"], tensorrt["speedup"]) == ("built", None)
    assert (rtx["variant"], rtx["score"], rtx["ship"]) == ("compressed", None, "none")
    assert row["gains"] == {"target": "tflite", "ship": "compressed", "float": 0.975, "compressed": 0.9722,
                            "speedup": 2.827, "size_ratio": 3.91}  # fmt: skip


def test_the_table_of_families_says_what_ships_and_why_not():
    failed = {"recipe": "lstm-int8", "sha256": "", "seconds": 1800.4, "cpu_seconds": 3.0, "failed": "did not end"}
    text = table.families({"device": {"name": "a machine"}, "rows": [family(), failed]})
    worth = "0.1056 | 0.9750 | 0.9722 | +0.0028 (+0.29%) | 3.91× | 2.83× faster | bit for bit | compressed |"
    assert f"| mlp-int8 | tflite | compressed, int8 | accuracy | {worth}" in text
    same = "0.1056 | 0.9750 | 0.9750 | +0.0000 (+0.00%) | 3.91× | – |"
    assert f"| mlp-int8 | tensorrt | compressed, int8, built | accuracy | {same}" in text
    assert "- mlp-int8, onnxruntime ships float: compressed is refused: it is slower" in text
    assert "- mlp-int8, tensorrt-rtx ships none: not judged" in text
    assert "tensorrt ships" not in text
    assert "| lstm-int8 | 1800 | 3 |" in text
    assert "- lstm-int8: did not end" in text


def test_a_recipe_is_run_again_only_if_it_failed_or_changed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(families, "measured", lambda name, *_: asked.append(name) or family(name) | {"seconds": 1})
    paths = {"--results": tmp_path / "families.json", "--document": tmp_path / "recipes.md", "--runs": tmp_path}
    options = [str(part) for pair in paths.items() for part in pair]
    names = ["cnn-int8", "mlp-int8", "lstm-int8"]
    rows = [family(), family("cnn-int8") | {"sha256": "of another text"}, family("lstm-int8") | {"failed": "why"}]
    rows.append(family("gru-int8"))
    paths["--results"].write_text(json.dumps({"device": {"name": "old"}, "rows": [*rows, {"recipe": "gone"}]}))
    families.main(["--recipes", *names, *options])
    assert asked == ["cnn-int8", "lstm-int8"]
    kept = json.loads(paths["--results"].read_text())["rows"]
    assert [row["recipe"] for row in kept] == ["cnn-int8", "gru-int8", "lstm-int8", "mlp-int8"]
    assert not any("failed" in row for row in kept)
    assert [row.get("on") for row in kept] == [local.name(), None, local.name(), None]
    told = f"Measured on old and cnn-int8, lstm-int8 on {local.name()}, one thread"
    assert told in paths["--results"].with_suffix(".md").read_text()
    assert "| mlp-int8 | tflite |" in paths["--results"].with_suffix(".md").read_text()
    assert "97.50% → 97.22%" in paths["--document"].read_text()
    families.main(["--recipes", *names, *options, "--fresh"])
    assert asked[2:] == names
    results = json.loads(paths["--results"].read_text())
    assert [row.get("on") for row in results["rows"]] == [local.name(), None, local.name(), local.name()]
    write(paths["--results"], [row for row in results["rows"] if "on" in row])
    results = json.loads(paths["--results"].read_text())
    assert (results["device"]["name"], ["on" in row for row in results["rows"]]) == (local.name(), [False] * 3)


def test_a_recipe_that_takes_too_long_is_ended_and_one_that_fails_says_why(tmp_path):
    row = families.measured("mlp-int8", tmp_path, limit=0.05)
    assert row["failed"] == "did not end within 0.05 s"
    (tmp_path / "file").write_text("")
    row = families.measured("mlp-int8", tmp_path / "file", limit=300)
    assert "cannot write a run there" in row["failed"]


def test_the_document_of_recipes_is_what_the_results_and_recipes_say():
    """If this fails, `python -m benchmarks.catalogue` writes it anew."""
    results = json.loads(catalogue.RESULTS.read_text(encoding="utf-8"))
    assert catalogue.DOCUMENT.read_text(encoding="utf-8") == catalogue.document(results)
    assert catalogue.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == table.families(results)


def test_the_document_tells_how_to_take_real_data():
    text = catalogue.document({"device": {"name": "a machine"}, "rows": []})
    assert all(f"\n### {name}\n" in text for name in recipe.names())
    assert '`task = { use = "mnist", folder = "..." }` or `task = { use = "mnist", hub = "..." }`' in text
    assert '`task = { use = "text", folder = "..." }` or `task = { use = "text", csv = "..." }`' in text
    assert "Real data: none" not in text
    assert "not measured yet" in text


@pytest.mark.parametrize("name", ["resnet", "gpt2", "whisper-encoder"])
def test_public_architectures_answer_their_tasks(name):
    task = ARCHITECTURES[name].task
    for stage, steps in zoo.STAGES.items():
        made = recipe.parse(zoo.recipe_of(name, stage, steps, "auto"), zoo.CACHE / f"{name}.toml")
        assert made.task == task
    net = made.model.build(task).eval()
    batch = next(task.batches("train", 4))
    inputs = {key: torch.from_numpy(batch[key]) for key in task.inputs}
    outputs = named_outputs(net(*inputs.values()), task)
    assert outputs["logits"].shape == (4, task.num_classes)
    assert torch.isfinite(task.loss(outputs, {"label": torch.from_numpy(batch["label"])}))


def test_no_two_splits_of_the_made_up_tasks_share_a_sample():
    for task in {type(found.task): found.task for found in ARCHITECTURES.values()}.values():
        rows = {
            split: {row.tobytes() for row in task.arrays(split)[next(iter(task.inputs))]}
            for split in ("train", "calibration", "validation", "test")
        }
        assert rows["calibration"] <= rows["train"]
        assert not rows["test"] & (rows["train"] | rows["validation"])


def test_an_architecture_that_breaks_its_process_says_so_in_the_table(tmp_path):
    row = zoo.measured("resnet", "ptq", tmp_path, limit=0.05)
    assert row["stages"] == {stage: {"failed": "not done after 0.05 s"} for stage in zoo.STAGES}
    assert not zoo.is_done(row, "ptq")
    text = table.zoo({"device": {"name": "a machine"}, "rows": [row]})
    assert "1 architectures" in text
    assert "0 go through every stage to files of every target" in text
    assert "- resnet, cut by half, int8: not done after 0.05 s" in text


def test_the_table_of_architectures_says_what_ships_and_where_int8_parts():
    agreement = {"sqnr_db": 75.0, "same_decision": 1.0, "max_steps": None}
    parting = {"layer": "norm", "max_steps": 1, "deployed_tensor": "norm;1", "sqnr_db": 60.0}
    static = {"variant": "int8", "precision": "int8", "status": "ok", "reason": None, "score": 0.94, "snr_db": 33.2}
    static |= {"agreement": agreement, "first_divergence": parting, "quantization": {"sqnr_db": 33.3}}
    floats = {"variant": "float", "precision": "fp32", "status": "ok", "reason": None, "score": 0.95}
    speedup = {"median": 1.5, "ci95": [1.4, 1.6], "verdict": "faster"}
    target = {"target": "tflite", "ship": "int8", "speedup": speedup, "size_ratio": 3.0, "files": [floats, static]}
    row = {
        "architecture": "bert",
        "kind": "encoder",
        "method": "auto",
        "stages": {"int8": {"targets": [target]}, "half": {"failed": "x"}},
    }
    text = table.zoo({"device": {"name": "a machine"}, "rows": [row]})
    assert "| bert | encoder | int8 | tflite | int8 | 1.50× | 3.00× | 0.950 | 0.940 | 33.2 |" in text
    assert "0 of 1 static int8 files" in text
    assert "- bert, int8, tflite: layer norm by up to 1 steps, tensor norm;1" in text


def test_the_table_of_architectures_has_the_peer_beside():
    def file(peer, name, noise, pace, **facts):
        return {"peer": peer, "file": name, "snr_db": noise, "speedup": {"median": pace}, **facts}

    peer = [
        file("float", "float.tflite", 130.0, 1.0),
        file("edgedl", "int8-dynamic", 45.0, 1.4, ships=True),
        file("edgedl", "int8", 40.0, 0.9, ships=False),
        file("ai_edge_quantizer", "static-minmax.tflite", 12.0, 0.3),
        file("ai_edge_quantizer", "static-extremes.tflite", 39.0, 0.2),
        {"peer": "ai_edge_quantizer", "file": "dynamic.tflite", "failed": "it cannot be loaded"},
    ]
    row = {"architecture": "bert", "kind": "encoder", "method": "auto", "stages": {"int8": {"targets": []}}}
    text = table.zoo({"device": {"name": "a machine"}, "rows": [row | {"peer": peer}]})
    cells = "40.0 dB, 0.90× | 39.0 dB, 0.20× | failed: it cannot be loaded | 45.0 dB, 1.40× | int8-dynamic"
    assert f"| bert | {cells} |" in text
    assert "as many dB or more on 1 of 1; in the median 40.0 dB and 0.90× against 39.0 dB and 0.20×." in text


def test_files_that_take_shorter_integers_are_fed_them():
    task = ARCHITECTURES["bert"].task

    class Shorter:
        runtime = "made up"
        inputs: ClassVar = {"ids": TensorSpec((1, 24), "int32")}
        outputs: ClassVar = {"logits": TensorSpec((1, 8))}

        def run(self, batch):
            assert batch["ids"].dtype == np.int32
            return {"logits": batch["ids"][:, :8].astype(np.float32)}

    answered = quantization.Adapted(Shorter(), task).run(next(task.batches("test", 1)))
    assert answered["logits"].shape == (1, 8)


def trial(itself: tuple[float, str], slowed: tuple[float, str]) -> dict:
    found = {
        name: {"median": ratio, "ci95": [ratio - 0.005, ratio + 0.005], "verdict": verdict}
        for name, (ratio, verdict) in (("itself", itself), ("slowed", slowed))
    }
    return {"part": "try", "file": "float.onnx", "core_share": 0.5, **found}


def test_the_tables_of_latency_count_what_verdicts_said():
    program = {"part": "program", "file": "float.onnx", "program": "benchmark_helper", "core_share": 0.7, "rounds": 2}
    rows = [
        program | {"edgedl_ms": 1.04, "program_ms": 1.0, "ratio": 1.04, "ci95": [1.03, 1.05]},
        trial((1.0, "no difference"), (0.971, "slower")),
        trial((1.03, "faster"), (0.99, "no difference")),
    ]
    text = latency.markdown({"device": {"name": "a machine"}, "rows": rows})
    assert "| float.onnx | benchmark_helper | 1.040 | 1.000 | 1.040 | 1.030 to 1.050 | no | 70% |" in text
    assert "| itself | no difference | 1 of 2 | 95% | 1.0150 | 1 of 2 |" in text
    assert "| itself, slowed by 3 % | slower | 1 of 2 | 80% | 0.9805 | 1 of 2 |" in text
    assert "with 57% of one core" in text


def test_a_file_is_slowed_by_as_much_as_is_said():
    class Session:
        inputs: ClassVar = {}

        def run(self, batch):
            end = time.perf_counter_ns() + 100_000
            while time.perf_counter_ns() < end:
                pass
            return {"y": batch["x"]}

    slowed = latency.Slowed(Session(), {"x": 3})
    assert slowed.wait_ns >= 100_000 * latency.SLOWED
    start = time.perf_counter_ns()
    assert slowed.run({"x": 3}) == {"y": 3}
    assert time.perf_counter_ns() - start >= 100_000 + slowed.wait_ns


def test_a_search_s_table_says_how_many_trials_dominate_the_recipe_as_it_is_written():
    point = {"trial": 0, "values": {}, "score": 0.9, "latency": 0.05}
    found = {"recipe": "small", "workers": 2, "seconds": 3600.0, "trials": {"done": 5, "stopped": 2, "failed": 1}}
    text = search.table(
        [found | {"per_hour": 7.0, "written": point, "front": [point | {"trial": 4}], "dominates": [4]}]
    )
    assert "| small | 2 | 5, 2, 1 | 7.0 | 0.9000, 50.0 µs | 1 |" in text
    assert "- trial 4: 0.9000, 50.0 µs" in text


def test_what_a_search_costs_is_measured_without_waiting(monkeypatch):
    monkeypatch.setattr(scaling, "LEAST", 4)
    began = time.monotonic()
    row = scaling.simulated(2, 3600.0, None)
    assert time.monotonic() - began < 3600
    assert (row["storage"], row["trials"]) == ("sqlite", 1 + 2 * scaling.ROUNDS)
    assert 0 < row["idle"] < 0.5
    team = scaling.Waiting(1, 10.0)
    team.submit(0, {"name": "x"})
    assert team.events(1.0) == []  # it takes five seconds at least
    (event,) = team.events(60.0)
    assert (event.number, event.result["state"]) == (0, "done")
    text = scaling.table(
        [
            {"part": "simulated", "workers": 2, **row, "ms_a_trial": 20.0, "idle": 0.0125},
            {"part": "search", "workers": 2, "trials": 9, "per_hour": 950.0},
            {"part": "search", "workers": 1, "trials": 5, "per_hour": 500.0},
        ]
    )
    assert "| 2 | 7 | 20.0 ms | 1.25% |" in text
    assert "| 1 | 500 | 1.00× |\n| 2 | 950 | 1.90× |" in text
    assert "training" not in text
