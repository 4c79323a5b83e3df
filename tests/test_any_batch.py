"""Files that take batches of any size, in which each sample has the answer that it has alone, and samples of any."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache

import numpy as np
import onnx
import pytest
import tensorrt_rtx
import torch
from torch import nn

import edgedl
from edgedl import dimensions, ladder, measure, other_sizes, recipe
from edgedl.core import Model, RecipeError, TargetError, UsageError
from edgedl.nvidia import building
from edgedl.own import networks
from edgedl.quantize.simulate import Quantization
from edgedl.report.terminal import print_report
from edgedl.run import read_report
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tensorrt import TensorRT, build_script
from edgedl.targets.tensorrt_rtx import TensorRTRTX
from edgedl.targets.tflite import TFLite
from edgedl.tflite import any_batch
from edgedl.torch_session import TorchSession
from tests.toys import Noise

SIZES = (1, 3, 5)
NUM_SAMPLES = 6


class Conv(nn.Module):
    """Convolutions with a shortcut, pooling, and places in a row for a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), nn.Linear(4 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = nn.functional.max_pool2d(x + torch.relu(self.second(x)), 4)
        return self.head(torch.relu(self.up(x)).flatten(1))


class Attention(nn.Module):
    """A layer of a Transformer with two heads, behind positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.1 * torch.randn(12, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x + self.positions).mean(1))


class Recurrent(nn.Module):
    """An LSTM, opened into its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


NETWORKS = {"conv": (Conv, (3, 8, 8)), "attention": (Attention, (12, 16)), "recurrent": (Recurrent, (3, 6))}
CASES = [
    *(("conv", TFLite, form) for form in ("fp32", "int8")),
    ("conv", OnnxRuntime, "int8"),
    *(("attention", TFLite, form) for form in ("int8", "int8 dynamic")),
    *(("attention", OnnxRuntime, form) for form in ("fp32", "int8")),
    ("recurrent", TFLite, "fp32"),
    ("recurrent", OnnxRuntime, "fp16"),
]
ENGINES = [("conv", TensorRT, "fp32"), ("attention", TensorRTRTX, "int8"), ("recurrent", TensorRTRTX, "fp32")]


@cache
def network(name: str) -> tuple[Noise, nn.Module, Quantization]:
    torch.manual_seed(0)
    made, shape = NETWORKS[name]
    task, net = Noise(shape=shape, num_samples=NUM_SAMPLES), made().eval()
    return task, net, Quantization(net, task, "min-max")


@pytest.mark.parametrize(("name", "kind", "form"), CASES)
def test_each_sample_has_the_answer_that_it_has_alone(name, kind, form, tmp_path):
    task, net, plan = network(name)
    target = kind(max_batch=8)
    model = Model(net=net, quantization=None if form == "fp32" else plan.in_form(form))
    session = target.open(target.build(model, task, tmp_path, batch_size=2).file)
    assert measure.batch_size(session) == 2
    assert (session.inputs["x0"].shape, session.inputs["x0"].free) == ((2, *task.shape), (0,))
    assert session.outputs["y"].free == (0,)
    batch = task.arrays("test")
    alone = np.concatenate([session.run({"x0": batch["x0"][row : row + 1]})["y"] for row in range(NUM_SAMPLES)])
    for size in SIZES:
        found = session.run({"x0": batch["x0"][:size]})["y"]
        np.testing.assert_allclose(found, alone[:size], rtol=0, atol=2e-6)
    assert measure.evaluate(session, task, "test").outputs["y"].shape == alone.shape
    if form == "fp32":
        with torch.no_grad():
            expected = net(torch.from_numpy(batch["x0"])).numpy()
        tolerance = 2e-6
    else:
        simulation = model.quantization.simulated(kind.scheme)
        expected = simulation.session().run(batch)["y"]
        tolerance = max(simulation.output_scales().values(), default=0) + 2e-6  # kernels may turn a tie the other way
    np.testing.assert_allclose(alone, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "kind", "form"), ENGINES)
def test_nvidias_builder_takes_a_range_of_batches(name, kind, form, tmp_path):
    task, net, plan = network(name)
    model = Model(net=net, quantization=None if form == "fp32" else plan.in_form(form))
    artifact = kind(max_batch=8).build(model, task, tmp_path, batch_size=2)
    (given,) = onnx.load(str(artifact.stand_in)).graph.input
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    if kind is TensorRT:
        shape = "x".join(map(str, task.shape))
        assert f"\nleast=x0:1x{shape}\nusual=x0:2x{shape}\nmost=x0:8x{shape}\n" in (tmp_path / "build.sh").read_text()
    with pytest.raises(TargetError, match="cannot build an engine"):  # without sizes it cannot know them
        building.build_engine(tensorrt_rtx, artifact.stand_in)


def test_a_range_of_batches_goes_into_the_call_of_trtexec(tmp_path):
    script = build_script(sparse=False, shapes={"least": "a b:1x3", "usual": "a b:2x3", "most": "a b:8x3"})
    tool = tmp_path / "trtexec"
    tool.write_text(FAKE_TRTEXEC)
    tool.chmod(0o755)
    (tmp_path / "build.sh").write_text(script)
    (tmp_path / "model.onnx").touch()
    subprocess.run(["sh", str(tmp_path / "build.sh"), "--time"], env={"TRTEXEC": str(tool), **os.environ}, check=True)
    built, timed = (tmp_path / "calls").read_text().splitlines()
    assert "--minShapes=a b:1x3 --optShapes=a b:2x3 --maxShapes=a b:8x3 " in built
    assert "--shapes=a b:2x3 " in timed


FAKE_TRTEXEC = """\
#!/bin/sh
if [ "$1" = --help ]; then
    echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help"
    exit 0
fi
echo "$@" >>"$(dirname "$0")/calls"
for argument; do
    case $argument in --saveEngine=*) echo engine >"${argument#--saveEngine=}" ;; esac
done
"""


class Halved(nn.Module):
    """Takes everything for two samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1, 4).mean(1)


class Row(nn.Module):
    """Is for two samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 4)


class Noised(nn.Module):
    """Gives each sample a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * torch.arange(len(x)).float()[:, None])


@pytest.mark.parametrize(
    ("kind", "net", "said"),
    [
        (OnnxRuntime, Halved(), "max_batch: y is for 2 samples; reshape with"),
        (OnnxRuntime, Row(), "max_batch: the network is for a fixed number of samples; reshape with"),
        (TFLite, Row(), "cannot convert the network: shape"),
        (TFLite, Noised(), "max_batch: MUL of layer .* leave max_batch out for this target"),
    ],
)
def test_what_is_for_one_number_of_samples_is_refused(kind, net, said, tmp_path):
    with pytest.raises(TargetError, match=said) as error:
        kind(max_batch=8).build(Model(net=net.eval()), Noise(shape=(4,)), tmp_path, batch_size=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ('targets = [{ use = "tflite", max_batch = 0 }]', r"targets\[0\]\.max_batch: .*greater than 0"),
        (
            'targets = [{ use = "tflite", max_batch = 2 }]\nbench = { batch_size = 4 }',
            r"targets\[0\]\.max_batch: it is 2, and bench.batch_size 4: files",
        ),
        ('targets = [{ use = "onnxruntime", max_batch = 2 }]', "scales a whole batch at once, so max_batch cannot"),
    ],
)
def test_what_cannot_be_is_said_of_a_recipe(changed, said, tmp_path):
    steps = '{ use = "train" }, { use = "quantize", method = "dynamic" }'
    text = f'task = {{ use = "digits" }}\nmodel = {{ use = "mlp" }}\nsteps = [{steps}]\n{changed}\n'
    with pytest.raises(RecipeError, match=said):
        recipe.parse(text, tmp_path / "mine.toml")


class Named(nn.Module):
    """Answers by name."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, signal: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.head(torch.relu(self.hidden(signal)))}


def test_a_network_of_ones_own_is_for_any_batch(tmp_path):
    torch.manual_seed(0)
    net = Named().eval()
    signal = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    quick = {"min_seconds": 0.02, "rounds": 2, "batch_size": 2}
    steps = [{"use": "quantize", "precision": "int8", "method": "ptq", "calibrator": "min-max"}]
    limits = {"slower": "allow", "score_drop": 100.0}
    run = edgedl.compress(
        net, {"signal": signal}, steps=steps, max_batch=16, bench=quick, limits=limits, out=tmp_path, progress=False
    )
    assert [target.max_batch for target in run.recipe.targets] == [16, 16]
    for row in read_report(run.folder)["rows"]:
        assert (row["status"], row["latency_ms"]["batch_size"]) == ("ok", 2), row
        session = edgedl.open(run.folder / row["file"])
        passport = json.loads((run.folder / row["file"]).with_name("artifact.json").read_text())
        assert passport["inputs"]["signal"] == {"shape": [2, 8], "dtype": "float32", "free": [0]}
        whole = session.run({"signal": signal[:16]})["scores"]
        parts = [session.run({"signal": signal[row : row + 4]})["scores"] for row in range(0, 16, 4)]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=2e-6)
        with pytest.raises(UsageError, match=r"takes signal float32 \(any, such as \d+, 8\), and was given"):
            session.run({"signal": signal[:, :4]})
        np.testing.assert_allclose(session.run({"signal": signal[:2]})["scores"], whole[:2], rtol=0, atol=2e-6)


def test_a_prime_is_in_no_size_nor_in_what_padding_makes_of_one():
    assert any_batch.foreign_prime([]) == 11
    assert any_batch.foreign_prime([22, 3, 1]) == 17  # 22, and 22 + 4
    assert any_batch.foreign_prime([20, 130]) == 29


class Elastic(Noise):
    """Noise whose dimensions have names."""

    dynamic_names: tuple[str, ...] = ()

    @property
    def dynamic(self):
        return dimensions.read(self.dynamic_names, self.inputs, "noise")


class Pooled(nn.Module):
    """Convolutions of images, strided and with a shortcut, and the mean of all places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = nn.functional.max_pool2d(x + torch.relu(self.second(x)), 2)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Sequence(nn.Module):
    """A convolution over a sequence, attention over all of it, and the mean of all places."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.queries, self.keys = nn.Conv1d(16, 16, 3, padding=1), nn.Linear(16, 8), nn.Linear(16, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.near(x.transpose(1, 2)).transpose(1, 2))
        shares = torch.softmax(self.queries(x) @ self.keys(x).transpose(1, 2), -1)
        return self.head((shares @ x).mean(1))


class Placed(Sequence):
    """A sequence behind a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.1 * torch.randn(24, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.positions[: x.shape[1]])


IMAGE, LENGTH = ("x0.2=height:8-24", "x0.3=width:8-24"), ("x0.1=length:2-24",)
ELASTIC = {
    "pooled": (Pooled, (3, 16, 16), IMAGE),
    "sequence": (Sequence, (12, 16), LENGTH),
    "placed": (Placed, (12, 16), LENGTH),
}
ELASTIC_CASES = [
    *(("pooled", kind, "int8") for kind in (OnnxRuntime, TFLite)),
    ("sequence", OnnxRuntime, "int8 dynamic"),
    ("sequence", TFLite, "int8"),
    ("placed", OnnxRuntime, "int8"),
]


@cache
def elastic(name: str) -> tuple[Elastic, nn.Module, Quantization]:
    torch.manual_seed(0)
    made, shape, names = ELASTIC[name]
    task = Elastic(shape=shape, num_samples=NUM_SAMPLES, dynamic_names=names)
    net = networks.adapted(made().eval(), task)
    return task, net, Quantization(net, task, "min-max")


@pytest.mark.parametrize(("name", "kind", "form"), ELASTIC_CASES)
def test_a_file_answers_at_other_sizes_as_what_it_was_made_of(name, kind, form, tmp_path):
    task, net, plan = elastic(name)
    target, model = kind(), Model(net=net, quantization=None if form == "fp32" else plan.in_form(form))
    artifact = target.build(model, task, tmp_path, batch_size=1)
    session = target.open(artifact.file)
    (named,) = task.dynamic.values()
    assert (session.inputs["x0"].shape, session.inputs["x0"].free) == ((1, *task.shape), tuple(named))
    assert session.outputs["y"].shape == (1, 5 if name == "pooled" else 4)
    assert artifact.notes == ()
    found = other_sizes.tried(model, target, session, task)
    assert [one.sizes for one in found] == dimensions.to_try(task.dynamic)
    assert len(found) >= 3
    assert [other_sizes.why_not(one, None) for one in found] == [None] * len(found), found
    assert form == "fp32" or min(one.quantization_db for one in found) > 20, found


def test_a_table_of_positions_keeps_the_size_of_a_tflite_file_which_says_so(tmp_path):
    task, net, _ = elastic("placed")
    artifact = TFLite().build(Model(net=net), task, tmp_path, batch_size=1)
    (note,) = artifact.notes
    assert note.startswith("it takes length 12 alone, the size of the data: ADD"), note
    assert "such as a table of positions" in note
    session = TFLite().open(artifact.file)
    assert session.inputs["x0"].free == ()
    assert other_sizes.tried(Model(net=net), TFLite(), session, task) == ()


@pytest.mark.parametrize(("name", "kind", "form"), [("pooled", TensorRT, "int8"), ("placed", TensorRTRTX, "fp32")])
def test_nvidias_builder_takes_a_range_of_sizes(name, kind, form, tmp_path):
    task, net, plan = elastic(name)
    model = Model(net=net, quantization=None if form == "fp32" else plan.in_form(form))
    artifact = kind(max_batch=8).build(model, task, tmp_path, batch_size=2)
    (given,) = onnx.load(str(artifact.stand_in)).graph.input
    free = {axis: size.dim_param for axis, size in enumerate(given.type.tensor_type.shape.dim) if size.dim_param}
    assert free == {0: "batch"} | {axis: one.name for axis, one in task.dynamic["x0"].items()}
    if kind is TensorRT:
        script = (tmp_path / "build.sh").read_text()
        assert "\nleast=x0:1x3x8x8\nusual=x0:2x3x16x16\nmost=x0:8x3x24x24\n" in script
    assert dimensions.ranges(task, None, 2) == {
        one.name: (one.least, one.size, 24) for one in task.dynamic["x0"].values()
    }
    with pytest.raises(TargetError, match="cannot build an engine"):
        building.build_engine(tensorrt_rtx, artifact.stand_in)


class Words(nn.Module):
    """Means of embedded tokens, those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        counted = self.table(tokens) * mask[:, :, None]
        return self.head(counted.sum(1) / mask.sum(1, keepdim=True))


def test_a_network_of_ones_own_takes_padded_and_longer_samples(tmp_path, capsys):
    torch.manual_seed(0)
    net, rng = Words().eval(), np.random.default_rng(0)
    lengths = rng.integers(4, 13, (60, 1))
    arrays = {"tokens": rng.integers(0, 20, (60, 12)), "mask": (np.arange(12) < lengths).astype(np.float32)}
    run = edgedl.compress(
        net, arrays, steps=[{"use": "quantize", "precision": "fp16"}],
        dynamic=["tokens.1=length:4-40", "mask.1=length"], bench={"min_seconds": 0.02, "rounds": 2},
        limits={"slower": "allow"}, targets=["onnxruntime"], out=tmp_path, progress=False,
    )  # fmt: skip
    report = read_report(run.folder)
    assert report["warnings"] == []
    assert {row["status"] for row in report["rows"]} == {"ok"}, report["rows"]
    assert all([one["sizes"]["length"] for one in entry["other_sizes"]] == [4, 40, 24] for entry in report["ladder"])
    assert "at length 4; length 40; length 24: " in (run.folder / "report.html").read_text(encoding="utf-8")
    print_report(report)
    assert "; at length 4; length 40; length 24: " in " ".join(capsys.readouterr().out.split())
    longer = {"tokens": rng.integers(0, 20, (1, 31)), "mask": np.ones((1, 31), np.float32)}
    with torch.no_grad():
        expected = net(*map(torch.from_numpy, longer.values())).numpy()
    for row in report["rows"]:
        session = edgedl.open(run.folder / row["file"])
        assert [spec.free for spec in session.inputs.values()] == [(1,), (1,)]
        np.testing.assert_allclose(
            session.run(longer)["output"], expected, atol=1e-5 if row["variant"] == "float" else 1e-2
        )


class Reshaped(nn.Module):
    """Is for sequences of twelve."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 12, 16).mean(1)


class Stepping(nn.Module):
    """Goes step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(16, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0][:, -1]


class Otherwise(nn.Module):
    """Divides by the length, and when it is exported by twelve, as what is kept from an earlier call would be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) / (12 if torch.compiler.is_exporting() else x.shape[1])


class Places(nn.Module):
    """Has twelve positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(12, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.positions[: x.shape[1]]).mean(1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Reshaped, r"for any length: its forward takes that for a fixed 12 \(.*test_any_batch\.py:\d+: return x\.resh"),
        (Stepping, r"exports an LSTM or GRU for one number of steps, here 12 \(.*test_any_batch\.py:\d+: return self"),
        (Otherwise, r"Otherwise: exported, it answers otherwise at length 2 than by itself"),
        (Places, r"does not take x0 \(2, 24, 16\) float32: .*, at length 24: say in dynamic which sizes it takes"),
    ],
)
def test_a_network_that_keeps_a_size_is_refused_before_anything_is_done(kind, said, capfd):
    task = Elastic(shape=(12, 16), dynamic_names=LENGTH)
    with pytest.raises(UsageError, match=said) as error:
        networks.adapted(kind().eval(), task)
    assert "\n" not in str(error.value)
    assert "symbolic_shapes" not in capfd.readouterr().err


def test_a_file_that_strays_at_other_sizes_alone_is_refused(tmp_path):
    class Twelfths(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1) / 12

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    task, target = Elastic(shape=(12, 16), num_samples=NUM_SAMPLES, dynamic_names=LENGTH), OnnxRuntime()
    session = target.open(target.build(Model(net=Twelfths()), task, tmp_path, batch_size=1).file)
    model = Model(net=Mean())
    source = measure.evaluate(TorchSession(model.net, task), task, "test")
    climb = ladder.climb(model, source, (), target, session, task)
    assert climb.agreement.sqnr_db > 100
    assert climb.breach.startswith("at length 2 the file strays from what was exported: ")
    assert climb.breach.endswith(" dB are needed; say another range in dynamic")
    assert [one["sizes"] for one in ladder.as_json(climb, "float", target)["other_sizes"]] == [
        {"length": 2}, {"length": 24}, {"length": 14},
    ]  # fmt: skip


def test_sizes_between_have_the_factors_of_the_others():
    task = Elastic(shape=(3, 32, 48), dynamic_names=("x0.2=height:16-64", "x0.3=width"))
    assert dimensions.to_try(task.dynamic) == [
        {"height": 16, "width": 2}, {"height": 64, "width": 48}, {"height": 16, "width": 48},
        {"height": 48, "width": 26},
    ]  # fmt: skip
    batch = {"x0": np.arange(2 * 3 * 32 * 48).reshape(2, 3, 32, 48)}
    found = dimensions.resized(batch, task, {"height": 40, "width": 5})["x0"]
    assert found.shape == (2, 3, 40, 5)
    np.testing.assert_array_equal(found[:, :, 32:], batch["x0"][:, :, :8, :5])
