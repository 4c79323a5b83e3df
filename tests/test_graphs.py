"""Networks that are several graphs: each quantized on what it is given in decoding, exported, checked and measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from edgedl import benching, devices, graphs, measure, pipeline, recipe, stats
from edgedl.core import Graph, Metric, Model, ModelFileError, Network, TargetError, Task, TensorSpec, UsageError
from edgedl.devices.local import Local
from edgedl.graph_session import GraphSession, open_files
from edgedl.links import arm64
from edgedl.nvidia import gpu
from edgedl.probes.loads import Asked
from edgedl.quantize.simulate import Quantization
from edgedl.remote import deploying, on_device, recordings
from edgedl.report import page, terminal
from edgedl.run import read_devices
from edgedl.steps.distill import Distill
from edgedl.steps.prune import Prune
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tflite import TFLite
from edgedl.torch_session import TorchSession
from tests.test_deploy import STANDS_IN, sums_agree

LENGTH, SYMBOLS = 3, 6


class Reversing(Task):
    """To say symbols backwards; decoding is greedy, from a first symbol 0."""

    use: str = "reversing"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    metric: ClassVar[Metric] = Metric("right symbols", "fraction", True)
    graphs: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    @property
    def inputs(self):
        return {name: TensorSpec((LENGTH,), "int32") for name in ("source", "before")}

    def arrays(self, split):
        seed, num = {"train": (0, 256), "calibration": (0, 40), "validation": (1, 40), "test": (2, 30)}[split]
        source = np.random.default_rng(seed).integers(1, SYMBOLS, (num, LENGTH)).astype(np.int32)
        before = np.concatenate([np.zeros((num, 1), np.int32), source[:, :0:-1]], 1)
        return {"source": source, "before": before, "target": source[:, ::-1].copy()}

    def loss(self, outputs, batch):
        return torch.nn.functional.cross_entropy(outputs["logits"].transpose(1, 2), batch["target"].long())

    def predict(self, session, batch):
        state = session.graphs["encoder"].run({"source": batch["source"]})["state"]
        symbol, said = np.zeros((len(state), 1), np.int32), []
        for _ in range(LENGTH):
            found = session.graphs["decoder"].run({"symbol": symbol, "state": state})
            symbol, state = found["logits"].argmax(-1).astype(np.int32), found["next_state"]
            said.append(symbol)
        return {"decoded": np.concatenate(said, 1)}

    def score(self, outputs, batch):
        return float((outputs["decoded"] == batch["target"]).mean())

    def decisions(self, outputs):
        return outputs["decoded"]

    def rates(self, latency_ms):
        return {"symbols/s": 1000 / latency_ms["decoder"]}


class Halves(Network):
    """A GRU that reads and one that writes."""

    use: str = "halves"
    hidden: int = 16

    def build(self, task):
        return Whole(self.hidden)


class Reader(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.embedding = torch.nn.Embedding(SYMBOLS, 8)
        self.gru = torch.nn.GRU(8, hidden, batch_first=True)

    def forward(self, source):
        return self.gru(self.embedding(source))[1].transpose(0, 1)


class Writer(Reader):
    def __init__(self, hidden):
        super().__init__(hidden)
        self.dense = torch.nn.Linear(hidden, SYMBOLS)

    def forward(self, symbols, state):
        outputs, state = self.gru(self.embedding(symbols), state.transpose(0, 1))
        return self.dense(outputs), state.transpose(0, 1)


class Whole(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.encoder, self.decoder = Reader(hidden), Writer(hidden)

    def forward(self, source, before):
        return self.decoder(before, self.encoder(source))[0]

    def graphs(self):
        state = TensorSpec((1, self.decoder.gru.hidden_size))
        return {
            "encoder": Graph(self.encoder, {"source": TensorSpec((LENGTH,), "int32")}, ("state",)),
            "decoder": Graph(
                self.decoder, {"symbol": TensorSpec((1,), "int32"), "state": state}, ("logits", "next_state")
            ),
        }


HERE = f"{__name__}:"
RECIPE = f"""
task = {{ use = "{HERE}Reversing" }}
model = {{ use = "{HERE}Halves" }}
steps = [
  {{ use = "train", epochs = 20, lr = 0.02 }},
  {{ use = "quantize", method = "ptq", calibrator = "min-max", corrections = [] }},
]
targets = [ {{ use = "tflite" }}, {{ use = "tensorrt" }} ]
limits = {{ score_drop = 1.0, slower = "allow" }}
bench = {{ min_seconds = 0.05, rounds = 2 }}
"""


def compressed(text: str, root: Path):
    run = pipeline.compress(recipe.parse(text, Path("several.toml")), text, root)
    return run, json.loads(run.report.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return compressed(RECIPE, tmp_path_factory.mktemp("runs"))


def test_every_graph_becomes_a_file_that_repeats_its_simulation_and_the_whole_decodes_alike(finished):
    run, report = finished
    assert len(report["rows"]) == 4
    for row in report["rows"]:
        assert row["status"] == ("built" if row["target"].startswith("tensorrt") else "ok"), row["reason"]
        files = {name: run.folder / graph["file"] for name, graph in row["graphs"].items()}
        assert [file.parent.name for file in files.values()] == ["encoder", "decoder"]
        assert row["size_bytes"] == sum(file.stat().st_size for file in files.values())
        assert run.folder / row["file"] == files["encoder"].parents[1]
        assert row["score"] > 0.5
    for entry in report["ladder"]:
        assert entry["agreement"]["same_decision"] > 0.99
        assert set(entry["graphs"]) == {"encoder", "decoder"}
        for found in entry["graphs"].values():
            assert found["agreement"]["sqnr_db"] > (100 if found["quantization"] is None else 45)
        assert entry["agreement"]["sqnr_db"] == min(found["agreement"]["sqnr_db"] for found in entry["graphs"].values())
    float_row, int8_row = report["rows"][:2]
    assert (float_row["precision"], int8_row["precision"]) == ("fp32", "int8")
    assert float_row["score"] == report["ladder"][0]["rungs"][0]["score"]
    assert (
        sorted(file.parent.name for file in run.folder.glob("quantization/*/*.json"))
        == ["decoder"] * 2 + ["encoder"] * 2
    )


def test_a_whole_decoding_is_timed_and_every_call_in_it(finished):
    _, report = finished
    for row in report["rows"]:
        if row["status"] == "ok":
            (encoder, decoder), whole = row["graphs"].values(), row["latency_ms"]
            assert (encoder["calls"], decoder["calls"]) == (1, LENGTH)
            assert encoder["latency_ms"] + decoder["latency_ms"] < whole["median"]
            assert row["figures"]["symbols/s"] == pytest.approx(1000 / decoder["latency_ms"])
            assert {operator["name"].partition("/")[0] for operator in row["operators"]} == {"encoder", "decoder"}
        else:
            assert row["latency_ms"] is None
            assert all(graph["latency_ms"] is None for graph in row["graphs"].values())


def test_the_page_names_the_file_and_time_of_each_graph(finished):
    run, report = finished
    html = page.write_page(report, run.folder).read_text()
    for row in report["rows"]:
        for graph in row["graphs"].values():
            assert graph["file"] in html
            assert graph["sha256"] in html
    assert f"{LENGTH} calls of" in html


def test_the_files_are_scored_and_measured_again_by_their_folder(finished, monkeypatch):
    run, report = finished
    task = recipe.parse(RECIPE, Path("several.toml")).task
    paths = [run.folder / report["rows"][index]["file"] for index in (0, 1)]
    rows = benching.bench(paths[1:], paths[0], task, None, 1, 0.05, True, Asked(cold=1))
    for row, known in zip(rows, (report["rows"][1], report["rows"][0]), strict=True):
        assert (row["score"], row["size_bytes"]) == (known["score"], known["size_bytes"])
        assert row["operators"]
        assert row["cold_start"]["first_answer_ms"]["median"] > row["cold_start"]["import_ms"]["median"] > 0
    assert benching.bench(paths[:1], None, None, None, 1, 0.05, operators=False)[0]["latency_ms"]["median"] > 0
    monkeypatch.chdir(run.folder / report["rows"][2]["file"])  # made for TensorRT, and scored by onnxruntime
    assert report["rows"][2]["score"] == benching.bench([Path()], None, task, "onnxruntime", 1, 0.05, False)[0]["score"]
    assert "edgedl bench . --target onnxruntime --recipe" in Path("reproduce.sh").read_text()
    script = (paths[0] / "reproduce.sh").read_text()
    assert "edgedl bench . --recipe ../../../recipe.toml" in script
    with pytest.raises(UsageError, match="needs a folder with the graphs encoder and decoder; it has none"):
        benching.bench([paths[0] / "encoder/model.tflite"], None, task, None, 1, 0.05, operators=False)
    with pytest.raises(ModelFileError, match="is a folder: name the file in it"):
        benching.bench([paths[0].parent], None, None, None, 1, 0.05, operators=False)


def test_each_graph_is_calibrated_on_what_decoding_gives_it():
    task, net = Reversing(), Halves().build(None).eval()
    encoder, decoder = graphs.tasks(net, task).values()
    source = encoder.arrays("calibration")["source"]
    assert {tuple(row) for row in source} == {tuple(row) for row in task.arrays("calibration")["source"]}
    given = decoder.arrays("calibration")
    states = {tuple(row) for row in encoder.arrays("calibration")["answered:state"].reshape(len(source), -1)}
    first = given["symbol"][:, 0] == 0
    assert first.any()
    assert not first.all()
    assert {tuple(row) for row in given["state"][:, 0]} & states
    assert decoder.score({name: given["answered:" + name] for name in decoder.outputs}, given) == 240


def test_forms_that_are_left_open_are_tried_for_all_graphs_together(tmp_path):
    start, end = RECIPE.index('  { use = "quantize"'), RECIPE.index("limits")
    text = (
        RECIPE[:start]
        + '  { use = "quantize", precision = "int4" } ]\ntargets = [ { use = "tflite" } ]\n'
        + RECIPE[end:]
    )
    _, report = compressed(text.replace("epochs = 20", "epochs = 1"), tmp_path)
    found = {row["variant"]: row for row in report["rows"]}
    assert set(found) == {"float", "int4-dynamic", "int4-weights"}
    assert all(row["status"] in ("ok", "refused") and len(row["graphs"]) == 2 for row in found.values())
    plan = Quantization(Halves().build(None), Reversing(), forms=("int8", "int8 weights")).in_form("int8 weights")
    assert {graph.form for graph in plan.graphs.values()} == {"int8 weights"}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ('{ use = "quantize", method = "qat" }', 'method = "qat" trains the graph that is exported'),
        ('{ use = "quantize", precision = "mixed" }', 'precision = "mixed" measures the blocks of one graph'),
        ('{ use = "prune", latency_ms = 1.0, target = { use = "tflite" } }', "latency_ms is that of one file"),
    ],
)
def test_what_knows_one_graph_only_is_refused_before_anything_trains(step, said, tmp_path):
    text = RECIPE[: RECIPE.index('  { use = "quantize"')] + f"  {step}\n]\n" + RECIPE[RECIPE.index("targets") :]
    with pytest.raises(UsageError, match=f"{said}.*the model is the graphs encoder and decoder"):
        compressed(text, tmp_path)
    assert not list(tmp_path.glob("**/weights.safetensors"))


def test_a_network_without_the_graphs_of_the_task_is_refused(tmp_path):
    text = RECIPE.replace(f'model = {{ use = "{HERE}Halves" }}', 'model = { use = "mlp" }')
    with pytest.raises(UsageError, match="decodes with the graphs encoder and decoder; the model has none"):
        graphs.check(torch.nn.Linear(1, 1), Reversing())
    with pytest.raises(UsageError):
        compressed(text, tmp_path)


def test_graphs_decode_as_the_network_that_is_trained_as_a_whole(tmp_path):
    task, net = Reversing(), Halves().build(None).eval()
    batch = {name: values[:4] for name, values in task.arrays("test").items()}
    said = task.predict(TorchSession(net, task), batch)["decoded"]
    before = np.concatenate([np.zeros((4, 1), np.int32), said[:, :-1]], 1)
    whole = TorchSession(net, task).run({"source": batch["source"], "before": before})["logits"]
    np.testing.assert_array_equal(whole.argmax(-1), said)
    (tmp_path / "files").mkdir()
    artifact = graphs.build(OnnxRuntime(), Model(net=net), task, tmp_path / "files", batch_size=4)
    session = open_files(OnnxRuntime(), artifact.file)
    assert isinstance(session, GraphSession)
    assert measure.batch_size(session) == 4
    np.testing.assert_array_equal(task.predict(session, batch)["decoded"], said)
    random = measure.random_inputs(session.inputs)
    assert {name: values.shape for name, values in session.run(random).items()} == {
        "encoder/state": (4, 1, 16), "decoder/logits": (4, 1, SYMBOLS), "decoder/next_state": (4, 1, 16),
    }  # fmt: skip


def test_a_narrower_network_is_timed_by_the_same_calls_with_states_of_its_own():
    task = Reversing()
    wide, narrow = (TorchSession(Whole(hidden), task, batch_size=1) for hidden in (16, 12))
    recorded, batch = measure.timed(task, wide)
    again, _ = measure.timed(task, narrow, recorded.calls)
    for replay in (recorded, again):
        replay.run(batch)
    assert again.num_calls() == recorded.num_calls() == {"encoder": 1, "decoder": LENGTH}
    for (name, given), (_, before) in zip(again.calls, recorded.calls, strict=True):
        for key, values in given.items():
            if key == "state":
                assert (values.shape, values.dtype) == ((1, 1, 12), np.float32)
                np.testing.assert_array_equal(values, before[key][:, :, :12])
            else:
                np.testing.assert_array_equal(values, before[key], err_msg=name)


def test_one_graph_has_no_parts():
    task = recipe.load("cnn-int8").task
    net = recipe.load("cnn-int8").model.build(task)
    assert graphs.parts(Model(net=net), task) == {}
    assert Quantization(net, task).graphs == {}
    assert TorchSession(net, task).graphs == {}


def test_steps_that_learn_see_the_whole_and_what_graphs_hand_on_shrinks_with_it():
    task, net = Reversing(), Halves().build(None)
    pruned = Prune(ratio=0.3, scope="local", iterations=1, epochs=1, round_to=4).apply(
        Model(net=net, teacher=net), task
    )
    state = pruned.net.graphs()["decoder"].inputs["state"]
    assert state == TensorSpec((1, 12))
    encoder, decoder = graphs.parts(pruned, task).values()
    assert encoder.task.arrays("test")["answered:state"].shape[1:] == decoder.task.inputs["state"].shape == (1, 12)
    taught = Distill(epochs=2, lr=0.01, batch_size=16).apply(pruned, task)
    scores = [measure.evaluate(TorchSession(model.net, task), task, "test").score for model in (pruned, taught)]
    assert all(0 <= score <= 1 for score in scores)
    assert len(taught.lineage) == 2
    inside = Distill(epochs=1, features=1.0, layers=(("encoder.gru", "encoder.gru"),)).apply(pruned, task)
    assert graphs.parts(inside, task).keys() == {"encoder", "decoder"}


# On devices: the whole run is made once, and copied for each test


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished[0].folder, tmp_path / "run")


class Changing(Local):
    """Changes what it has answered for the float file, call by call, to each graph's outputs in order."""

    change: Callable[[list[np.ndarray]], Any] = staticmethod(lambda arrays: None)

    def run(self, arguments, threads=1):
        done: CompletedProcess[str] = super().run(arguments, threads)
        with np.load(self.folder / "answers-0.npz") as found:
            arrays = list(found.values())
        self.change(arrays)
        np.savez(self.folder / "answers-0.npz", *arrays)
        return done


@pytest.fixture
def device(monkeypatch, tmp_path):
    """Makes what `--on local` then is."""

    def made(**environment: str) -> Changing:
        folder = tmp_path / "device"
        folder.mkdir(exist_ok=True)
        found = Changing(folder, **environment)
        monkeypatch.setattr(devices, "connect", lambda where: nullcontext(found))
        return found

    return made


def test_several_graphs_answer_and_are_timed_on_a_device_like_one(run, finished, capsys):
    """Which plays the decoding of the float files in every row, and is asked all that a file is asked."""
    asked = Asked(batches=(1, 3), cold=1, sustained=0.05, energy=True, end_to_end=True)
    content = on_device.bench(run, "local", 0.02, asked)
    assert [entry["target"] for entry in content["left_out"]] == ["tensorrt"] * 2
    for row, known in zip(content["rows"], finished[1]["rows"], strict=False):
        assert (row["status"], row["score"], row["samples"]) == ("ok", known["score"], 30)
        assert row["reason"] == "scored call by call, each from this machine's states"
        assert (row["agreement"]["sqnr_db"], row["agreement"]["same_decision"]) == (stats.EXACT_DB, 1.0)
        encoder, decoder = row["graphs"].values()
        assert (encoder["calls"], decoder["calls"]) == (1, LENGTH)
        assert 0 < encoder["latency_ms"] + decoder["latency_ms"] < row["latency_ms"]["median"]
        assert row["figures"]["symbols/s"] == pytest.approx(1000 / decoder["latency_ms"])
        assert row["unanswered"] is None
        assert [entry["batch_size"] for entry in row["throughput"]["rows"]] == [1]
        assert row["cold_start"]["first_answer_ms"]["median"] > row["cold_start"]["init_ms"]["median"] > 0
        assert row["sustained"]["first_ms"] > encoder["latency_ms"] + decoder["latency_ms"]
        assert row["end_to_end"]["parts_ms"]["run"] > 0
    terminal.print_devices(read_devices(run))
    html = page.write_page(finished[1], run).read_text()
    for said in (capsys.readouterr().out, html):
        assert "symbols/s" in said
        assert "scored call by call" in said
    assert "Energy: no rail" in html or "mJ a run" in html
    again = on_device.bench(run, "local", 0.01)
    assert [row["sustained"] for row in again["rows"]] == [row["sustained"] for row in content["rows"]]


def test_a_token_that_differs_leaves_no_score_and_states_that_differ_a_little_do(run, device):
    there = device()

    def shifted(arrays):
        arrays[2] = arrays[2] * np.float32(1 + 1e-4)  # the decoder's states: 80 dB

    there.change = shifted
    row = on_device.bench(run, "local", 0.01)["rows"][0]
    assert (row["status"], row["score"]) == ("ok", row["score_here"])
    assert 75 < row["agreement"]["sqnr_db"] < 85

    def wrong(arrays):
        arrays[1][4] = -arrays[1][4]  # one of the decoder's answers

    there.change = wrong
    content = on_device.bench(run, "local", 0.01)
    row, other = content["rows"]
    assert (row["status"], row["score"], row["agreement"]["same_decision"]) == ("refused", None, None)
    assert row["reason"].startswith("graph decoder: ")
    assert row["reason"].endswith("no score: from what the device answers, the task goes on otherwise than here")
    assert row["latency_ms"]["median"] > 0
    assert (other["status"], other["score"]) == ("ok", other["score_here"])

    def cut(arrays):
        arrays[2] = arrays[2][:-1]

    there.change = cut
    row = on_device.bench(run, "local", 0.01)["rows"][0]
    assert (
        row["reason"] == "it answered float32 (89, 1, 1, 16) for next_state of decoder, which is float32 (90, 1, 1, 16)"
    )


def test_states_that_drift_are_no_score_even_where_all_symbols_are_the_same(finished):
    run, report = finished
    task = recipe.parse(RECIPE, Path("several.toml")).task
    folder = run.folder / report["rows"][0]["file"]
    recording = recordings.record(open_files(TFLite(), folder), task)
    assert recording.scored.score == report["rows"][0]["score"]
    answers = {
        name: {key: np.stack([found[key] for found in recording.answered[name]]) for key in graph.outputs}
        for name, graph in recording.graphs.items()
    }
    assert recordings.Played(recording, answers).evaluate(task, 240.0).score == recording.scored.score
    answers["encoder"]["state"] = answers["encoder"]["state"] * np.float32(1.01)  # 40 dB
    assert recordings.Played(recording, answers).evaluate(task, 30.0).score == recording.scored.score
    with pytest.raises(TargetError, match="goes on otherwise"):
        recordings.Played(recording, answers).evaluate(task, 50.0)


def test_of_calls_that_are_too_large_the_first_samples_are_scored(run, device, monkeypatch):
    monkeypatch.setattr(recordings, "MOST_BYTES", 1000)
    device()
    row = on_device.bench(run, "local", 0.01)["rows"][0]
    assert 0 < row["samples"] < 30
    assert row["score"] == row["score_here"]
    assert f"the first {row['samples']} of 30 samples: the calls for more are too large to send" in row["reason"]


@pytest.mark.skipif(not arm64.home().is_dir(), reason=f"no emulated arm64 here: `{arm64.SETUP}` makes it")
def test_an_arm64_program_decodes_as_the_one_here(run):
    report = json.loads((run / "report.json").read_text())
    report["rows"] = [row for row in report["rows"] if (row["target"], row["variant"]) == ("tflite", "compressed")]
    (run / "report.json").write_text(json.dumps(report))
    (row,) = on_device.bench(run, "qemu-aarch64", 1.0)["rows"]
    assert (row["status"], row["score"]) == ("ok", row["score_here"]), row["reason"]
    assert row["agreement"]["sqnr_db"] > 100
    assert row["graphs"]["decoder"]["latency_ms"] is row["latency_ms"] is None


def test_benchmark_model_knows_one_file_alone(run, device, monkeypatch):
    monkeypatch.setattr(devices.Device, "program", "benchmark_model 1")
    device()
    with pytest.raises(UsageError, match="benchmark_model runs one file, and knows no decoding of several graphs"):
        on_device.bench(run, "local", 0.01)


def test_several_graphs_are_deployed_with_an_example_of_each(run, tmp_path):
    found = deploying.deploy(run, "local", "tflite", "compressed", str(tmp_path / "left"))
    assert found["files"] == [
        "SHA256SUMS", "artifact.json", "decoder.tflite", "encoder.tflite", "example.npz", "example.py",
    ]  # fmt: skip
    assert found["example"].splitlines()[0].startswith("encoder.tflite: state (1, 1, 16): at most 0 off")
    assert found["example"].splitlines()[-1] == "right"
    assert sums_agree(tmp_path / "left")
    known = json.loads((tmp_path / "left" / "artifact.json").read_text())["graphs"]["decoder"]
    assert known["file"] == "decoder.tflite"
    assert known["inputs"]["symbol"]["dtype"] == "int32"
    with np.load(tmp_path / "left" / "example.npz") as arrays:
        kept = list(arrays.values())
    np.savez(tmp_path / "left" / "example.npz", *kept[:-1], -kept[-1])
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "left" / "example.py")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "wrong answers in next_state of decoder.tflite: do not ship" in ran.stderr


@pytest.mark.skipif(gpu.find_gpu() is not None, reason="what is said on a machine without a GPU")
def test_the_engine_of_each_graph_is_built_there(run, device, tmp_path, monkeypatch):
    """With TensorRT-RTX in TensorRT's place."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "tensorrt.py").write_text(STANDS_IN)
    there = device(PYTHONPATH=str(tmp_path / "packages"))
    there.builds_engines = True
    monkeypatch.setattr(Changing, "run", Local.run)
    report = json.loads((run / "report.json").read_text())
    report["rows"] = [row for row in report["rows"] if row["target"] == "tensorrt"]
    (run / "report.json").write_text(json.dumps(report))
    for row in on_device.bench(run, "jetson", 0.01)["rows"]:
        assert row["built"]["by"].startswith("TensorRT-RTX")
        assert row["built"]["size_bytes"] > 2000
        assert (row["status"], row["score_here_by"][:11]) == ("failed", "onnxruntime")
        assert "cannot run here" in row["reason"]
    assert len(list(there.folder.glob("*.engine"))) == 4
    monkeypatch.setattr(deploying, "_tried", lambda device, found: "not tried: it needs a GPU")
    found = deploying.deploy(run, "jetson", "tensorrt", "compressed", str(tmp_path / "left"))
    for graph in ("encoder", "decoder"):
        beside = {f"{graph}.{ending}" for ending in ("onnx", "engine", "engine.json", "build.sh")}
        assert beside < set(found["files"])
        script = (tmp_path / "left" / f"{graph}.build.sh").read_text()
        assert f"engine=$here/{graph}.engine" in script
        assert "model." not in script
    known = json.loads((tmp_path / "left" / "artifact.json").read_text())
    assert known["graphs"]["encoder"]["file"] == "encoder.engine"
    assert sums_agree(tmp_path / "left")
