"""LSTM and GRU: written out they compute the same, .tflite files loop, and onnxruntime gets whole layers in int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgedl import ladder, measure, stats
from edgedl.core import Model
from edgedl.nvidia.building import build_engine
from edgedl.quantize.recurrent import open_recurrent
from edgedl.quantize.schemes import Form
from edgedl.quantize.simulate import Quantization
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tensorrt import TensorRT
from edgedl.targets.tflite import TFLite
from edgedl.tflite import loops
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.tflite.litert import LiteRTSession
from edgedl.tflite.loops import with_loops
from edgedl.torch_session import TorchSession
from tests.toys import Noise

INPUTS, HIDDEN, STEPS = 6, 8, 10


@pytest.fixture(autouse=True)
def short_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops of so few steps that a file is converted quickly."""
    monkeypatch.setattr(loops, "MIN_REPETITIONS", 6)


class Classifier(nn.Module):
    """Reads a sequence, and looks at the last step, at all of them, or at the states that are left behind."""

    def __init__(self, rnn: nn.RNNBase, looks_at: str) -> None:
        super().__init__()
        self.rnn, self.looks_at = rnn, looks_at
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        outputs, state = self.rnn(x)
        if self.looks_at == "last":
            return self.head(outputs[:, -1])
        if self.looks_at == "states":
            h = state[0] if isinstance(state, tuple) else state
            return self.head(torch.cat([h[-2], h[-1]], 1) if self.rnn.bidirectional else h[-1])
        return self.head(outputs).mean(1)


def flat(results: tuple[Tensor, Tensor | tuple[Tensor, Tensor]]) -> list[Tensor]:
    outputs, state = results
    return [outputs, *(state if isinstance(state, tuple) else (state,))]


def operators(file: Path) -> list[str]:
    """Kinds of operators in a .tflite file's first subgraph."""
    graph = Flatbuffer(file.read_bytes())
    return [graph.kind(operator) for operator in graph.operators]


def built(net: nn.Module, shape: tuple[int, ...], folder: Path, batch_size: int = 1) -> LiteRTSession:
    folder.mkdir(exist_ok=True)
    task = Noise(shape=shape)
    artifact = TFLite().build(Model(net=net.eval()), task, folder, batch_size)
    return TFLite().open(artifact.file)


def assert_computes(session: LiteRTSession, net: nn.Module) -> None:
    """Twice over, since no state may be left behind from one run to the next."""
    for seed in (0, 1):
        x = np.random.default_rng(seed).standard_normal(session.inputs["x0"].shape).astype(np.float32)
        with torch.no_grad():
            wanted = net(torch.from_numpy(x)).numpy()
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(session.run({"x0": x})["y"], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "time-first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_written_out_it_computes_the_same(kind, num_layers, bidirectional, batch_first, bias):
    torch.manual_seed(0)
    layer = kind(
        INPUTS, HIDDEN, num_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias, dropout=0.5
    ).eval()
    opened, x = open_recurrent(layer), torch.randn(3, 7, INPUTS)
    h, c = torch.randn(2, num_layers * (1 + bidirectional), 3 if batch_first else 7, HIDDEN)
    for state in (None, (h, c) if kind is nn.LSTM else h):
        for wanted, found in zip(flat(layer(x, state)), flat(opened(x, state)), strict=True):
            assert wanted.shape == found.shape
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_an_lstm_with_projection_computes_the_same():
    torch.manual_seed(0)
    layer, x = nn.LSTM(INPUTS, HIDDEN, proj_size=3, batch_first=True).eval(), torch.randn(3, 7, INPUTS)
    for wanted, found in zip(flat(layer(x)), flat(open_recurrent(layer)(x)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_it_is_opened_wherever_it_stands_and_the_given_network_is_left_as_it_was():
    net = nn.ModuleDict({"deep": nn.ModuleList([nn.Linear(2, 2), nn.GRU(INPUTS, HIDDEN)])})
    opened = open_recurrent(net)
    assert not any(isinstance(module, nn.RNNBase) for module in opened.modules())
    assert isinstance(net["deep"][1], nn.GRU)
    assert opened["deep"][1].hidden_size == HIDDEN  # networks ask their layers for it
    plain = nn.Linear(2, 2)
    assert open_recurrent(plain) is plain


CASES = {
    "lstm-last": (nn.LSTM, {}, "last", 1),
    "lstm-both-all": (nn.LSTM, {"bidirectional": True}, "all", 1),
    "lstm-batch-of-2": (nn.LSTM, {}, "states", 2),
    "gru-last": (nn.GRU, {}, "last", 1),
    "gru-2-layers-both-states": (nn.GRU, {"bidirectional": True, "num_layers": 2}, "states", 1),
}


@pytest.mark.parametrize("name", CASES)
def test_its_tflite_file_loops_and_computes_the_same(name, tmp_path):
    kind, options, looks_at, batch_size = CASES[name]
    torch.manual_seed(0)
    net = Classifier(kind(INPUTS, HIDDEN, batch_first=True, **options), looks_at).eval()
    session = built(net, (STEPS, INPUTS), tmp_path, batch_size)
    assert_computes(session, net)
    directions = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    assert operators(session.file).count("WHILE") == directions


def test_the_values_inside_a_loop_are_seen(tmp_path):
    torch.manual_seed(0)
    net = Classifier(nn.LSTM(INPUTS, HIDDEN, batch_first=True, bidirectional=True), "all").eval()
    session = built(net, (STEPS, INPUTS), tmp_path)
    x = np.random.default_rng(0).standard_normal((1, STEPS, INPUTS)).astype(np.float32)
    seen = session.activations({"x0": x})
    with torch.no_grad():
        outputs, _ = net.rnn(torch.from_numpy(x))
    for step in range(STEPS):
        for half in outputs[0, step].split(HIDDEN):
            assert any(
                np.abs(one.values.ravel() - half.numpy()).max() < 1e-5 for one in seen if one.values.size == HIDDEN
            )
    np.testing.assert_array_equal(seen[-1].values.ravel(), session.run({"x0": x})["y"].ravel())


def test_the_file_does_not_grow_with_the_steps(tmp_path):
    torch.manual_seed(0)
    net = Classifier(nn.LSTM(INPUTS, 32, batch_first=True), "last")
    short, long = (built(net, (steps, INPUTS), tmp_path / str(steps)).file.stat().st_size for steps in (9, 17))
    weights = 4 * sum(value.numel() for value in net.parameters())
    assert abs(long - short) < 200
    assert weights < long < 2 * weights + 20_000


class Steps(nn.Module):
    """A recurrence of its own making: `step` gets the state, the inputs of this step, and the step's number."""

    def __init__(
        self, step: Callable[..., Tensor], collect: Callable[[list[Tensor]], Tensor], num_weights: int
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.collect = step, collect
        self.weights = nn.ModuleList(nn.Linear(INPUTS, INPUTS) for _ in range(num_weights))

    def forward(self, x: Tensor) -> Tensor:
        states = [x[:, 0], x[:, 1]]
        for index in range(2, x.shape[1]):
            states.append(self.step(self.weights, states, x[:, index], index))
        return self.collect(states)


def plain(weights, states, x, index):
    return torch.tanh(weights[0](states[-1]) + x)


# Recurrences that a loop can and cannot take: step, what is done with the states, number of weights, loops.
RECURRENCES = {
    "plain": (plain, lambda states: states[-1], 1, 1),
    "collected": (plain, lambda states: torch.stack(states, 1), 1, 1),
    "collected backwards": (plain, lambda states: torch.stack(states[::-1], 1), 1, 1),
    "two steps back": (lambda w, s, x, i: torch.tanh(w[0](s[-1]) + s[-2] * x), lambda states: states[-1], 1, 1),
    "every other one collected": (plain, lambda states: torch.stack(states[::2], 1), 1, None),
    "weights that differ": (lambda w, s, x, i: torch.tanh(w[i](s[-1]) + x), lambda states: states[-1], STEPS + 2, 0),
    "a state from the middle": (plain, lambda states: states[4] * states[-1], 1, None),
}


@pytest.mark.parametrize("name", RECURRENCES)
def test_other_recurrences_compute_the_same_looped_or_not(name, tmp_path):
    step, collect, num_weights, num_loops = RECURRENCES[name]
    net = Steps(step, collect, num_weights).eval()
    session = built(net, (STEPS + 2, INPUTS), tmp_path)  # it starts from the first two
    assert_computes(session, net)
    if num_loops is not None:
        assert operators(session.file).count("WHILE") == num_loops


def test_a_file_without_repetition_is_left_as_it_is(tmp_path):
    file = built(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,), tmp_path).file
    assert with_loops(file.read_bytes()) == file.read_bytes()


def test_few_steps_stay_in_a_row_with_one_copy_of_their_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "MIN_REPETITIONS", STEPS + 1)
    torch.manual_seed(0)
    net = Classifier(nn.LSTM(INPUTS, 32, batch_first=True), "last")
    session = built(net, (STEPS, INPUTS), tmp_path)
    assert_computes(session, net)
    assert "WHILE" not in operators(session.file)
    assert session.file.stat().st_size < 2 * 4 * 4 * 32 * (INPUTS + 32) + 100_000


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_int8_cells_loop_and_repeat_the_simulation_bit_for_bit(kind, tmp_path):
    torch.manual_seed(0)
    net, task = Classifier(kind(INPUTS, HIDDEN, batch_first=True), "last").eval(), Noise(shape=(STEPS, INPUTS))
    model = Model(net=net, quantization=Quantization(net, task, "min-max"))
    session = TFLite().open(TFLite().build(model, task, tmp_path, batch_size=1).file)
    assert operators(session.file).count("WHILE") == 1
    reference = measure.evaluate(TorchSession(net, task), task, "test")
    above = (ladder.rung("float", reference.score, (), task),)
    climb = ladder.climb(model, reference, above, TFLite(), session, task)
    assert climb.agreement.max_steps == 0 or climb.agreement.sqnr_db > 120  # outputs may be float
    assert climb.first_divergence is None
    assert climb.quantization_db is not None
    assert climb.quantization_db > 20


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_onnx_keeps_the_operator_and_both_forms_pass_nvidias_builder(kind, tmp_path):
    import tensorrt_rtx

    torch.manual_seed(0)
    task = Noise(shape=(6, INPUTS))
    net = Classifier(kind(INPUTS, HIDDEN, batch_first=True, bidirectional=True), "all").eval()
    for form, module in (("whole", net), ("opened", open_recurrent(net))):
        folder = tmp_path / form
        folder.mkdir()
        artifact = TensorRT().build(Model(net=module), task, folder, batch_size=1)
        assert artifact.stand_in is not None
        kinds = [node.op_type for node in onnx.load(str(artifact.stand_in)).graph.node]
        assert (kind.__name__ in kinds) == (form == "whole")
        assert len(build_engine(tensorrt_rtx, artifact.stand_in)) > 1000
        assert_computes(OnnxRuntime().open(artifact.stand_in), net)


class Started(nn.Module):
    """A recurrent layer that starts from states, which are inputs too, and whose last ones are outputs."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        rows = self.rnn.num_layers * (2 if self.rnn.bidirectional else 1)
        h = h[:, :rows].transpose(0, 1)
        values = x if self.rnn.batch_first else x.transpose(0, 1)
        outputs, state = self.rnn(values, (h, h.flip(2) * 3) if isinstance(self.rnn, nn.LSTM) else h)
        outputs = outputs if self.rnn.batch_first else outputs.transpose(0, 1)
        return torch.cat([outputs.flatten(1), *(part.transpose(0, 1).flatten(1) for part in flat((h, state))[1:])], 1)


def deployed(net: nn.Module, task: Noise, form: Form | None, folder: Path, target: OnnxRuntime | None = None):
    """An onnxruntime file in a form, or in float: the model, the file, its session and its ladder."""
    plan = None if form is None else Quantization(net.eval(), task, "auto", forms=(form,))
    model, target = Model(net=net.eval(), quantization=plan), target or OnnxRuntime()
    artifact = target.build(model, task, folder, batch_size=1)
    session = target.open(artifact.file)
    reference = measure.evaluate(TorchSession(net, task), task, "test")
    climb = ladder.climb(model, reference, (ladder.rung("float", reference.score, (), task),), target, session, task)
    return model, artifact.file, session, climb


WHOLE = {
    "lstm-deep-both": lambda: Started(nn.LSTM(HIDDEN, HIDDEN, 2, bidirectional=True)),
    "lstm-no-bias-both": lambda: Classifier(nn.LSTM(INPUTS, HIDDEN, 1, False, True, bidirectional=True), "states"),
    "lstm-wide": lambda: Classifier(nn.LSTM(INPUTS, 160, batch_first=True), "last"),  # too large to be folded
    "gru-deep-both": lambda: Started(nn.GRU(HIDDEN, HIDDEN, 2, bidirectional=True, batch_first=True)),
}
WHOLE_CASES = [
    *((name, "int8 dynamic") for name in WHOLE),
    *(("lstm-wide", form) for form in ("int8 weights", "fp16")),
]


@pytest.mark.parametrize(("name", "form"), WHOLE_CASES)
def test_onnxruntime_gets_whole_layers_with_weights_of_fewer_bits(name, form, tmp_path):
    torch.manual_seed(0)
    net = WHOLE[name]()
    started = isinstance(net, Started)
    task = Noise(shape=(HIDDEN, HIDDEN) if started else (8, INPUTS), num_inputs=1 + started)
    model, file, session, climb = deployed(net, task, form, tmp_path)
    content = onnx.load(str(file)).graph
    kinds = [node.op_type for node in content.node]
    operator = "GRU" if "gru" in name else "DynamicQuantizeLSTM" if form == "int8 dynamic" else "LSTM"
    assert [kind for kind in kinds if kind in ("LSTM", "GRU", "DynamicQuantizeLSTM")] == [operator] * net.rnn.num_layers
    assert not {"Sigmoid", "DequantizeLinear"} & set(kinds)
    held = [numpy_helper.to_array(tensor) for tensor in content.initializer]
    num_weights = sum(value.numel() for value in net.parameters() if value.ndim == 2)
    narrow = np.float16 if form == "fp16" else np.int8
    assert sum(values.size for values in held if values.dtype == narrow) >= num_weights
    assert sum(values.size for values in held if values.dtype == np.float32) < num_weights / 2  # biases and scales
    assert climb.breach is None
    assert climb.quantization_db > (60 if form == "fp16" else 34)
    margin = 20 if form == "int8 dynamic" else 60
    assert climb.agreement.sqnr_db > climb.quantization_db + margin
    batch = measure.sample(task, session)
    simulated = model.quantization.simulated(OnnxRuntime.scheme).activations(list(batch.values()))
    inside = [value for value in simulated if value.layer == "rnn"]
    assert inside
    assert ladder.first_divergence(inside, session.activations(batch), climb.quantization_db + 10) is None


def test_one_step_in_the_dynamic_form_is_repeated_to_the_last_bits(tmp_path):
    """Codes come from inputs alone here: none can tip over for a last bit of the step before."""
    torch.manual_seed(0)
    net = Started(nn.LSTM(32, 32, batch_first=True)).eval()
    task = Noise(shape=(1, 32), num_inputs=2)
    model, _, session, _ = deployed(net, task, "int8 dynamic", tmp_path)
    rng = np.random.default_rng(0)
    batch = {
        name: (values * rng.uniform(0.1, 3, (64, 1, 1))).astype(np.float32)
        for name, values in task.arrays("test").items()
    }
    simulated = model.quantization.simulated(OnnxRuntime.scheme).session().run(batch)["y"]
    found = [session.run({name: values[i : i + 1] for name, values in batch.items()})["y"] for i in range(64)]
    assert stats.sqnr_db(simulated, np.concatenate(found)) > 125


def test_an_lstm_with_projection_stays_written_out(tmp_path):
    torch.manual_seed(0)
    net = Classifier(nn.LSTM(INPUTS, 12, proj_size=HIDDEN, batch_first=True), "last")
    net.head = nn.Linear(HIDDEN, 5)
    _, file, _, climb = deployed(net, Noise(shape=(4, INPUTS)), "int8 dynamic", tmp_path)
    kinds = [node.op_type for node in onnx.load(str(file)).graph.node]
    assert "DynamicQuantizeLSTM" not in kinds
    assert kinds.count("MatMulInteger") == 1 + 3 + 4 + 1  # inputs, states, projections, head
    assert climb.breach is None


class HalvedStates(OnnxRuntime):
    """An exporter with a bug: the weights of an LSTM's states are half of what they should be."""

    def build(self, model, task, folder, batch_size):
        artifact = super().build(model, task, folder, batch_size)
        content = onnx.load(str(artifact.file))
        (lstm,) = (node for node in content.graph.node if node.op_type.endswith("LSTM"))
        name = lstm.input[2 if lstm.op_type == "LSTM" else 10]
        (tensor,) = (tensor for tensor in content.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 2, name))
        onnx.save(content, str(artifact.file))
        return artifact


@pytest.mark.parametrize("form", [None, "int8 dynamic"])
def test_the_ladder_names_a_whole_layer_that_differs(form, tmp_path):
    torch.manual_seed(0)
    net = Classifier(nn.LSTM(INPUTS, HIDDEN, batch_first=True), "last")
    climb = deployed(net, Noise(shape=(8, INPUTS)), form, tmp_path, HalvedStates())[3]
    assert climb.breach is not None
    assert climb.first_divergence.layer == "rnn"
    assert climb.first_divergence.sqnr_db > 0  # its outputs were found, and found to differ
