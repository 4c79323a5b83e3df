"""LSTM and GRU: written out they compute the same, and their .tflite files loop instead of growing with the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgedl import ladder, loops, measure
from edgedl.core import Model
from edgedl.engine import build_engine
from edgedl.flatbuffer import Flatbuffer
from edgedl.litert import LiteRTSession
from edgedl.loops import with_loops
from edgedl.quantize.simulate import Quantization
from edgedl.recurrent import open_recurrent
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tensorrt import TensorRT
from edgedl.targets.tflite import TFLite
from edgedl.torch_session import TorchSession
from tests.toys import Noise

INPUTS, HIDDEN = 6, 8


@pytest.fixture(autouse=True)
def short_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops of so few steps that a file is converted quickly."""
    monkeypatch.setattr(loops, "MIN_REPETITIONS", 12)


class Classifier(nn.Module):
    """Reads a sequence, and looks at the last step, at all of them, or at the states that are left behind."""

    def __init__(self, rnn: nn.RNNBase, looks_at: str) -> None:
        super().__init__()
        self.rnn, self.looks_at = rnn, looks_at
        self.head = nn.Linear(HIDDEN * (2 if rnn.bidirectional else 1), 5)

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
    session = built(net, (18, INPUTS), tmp_path, batch_size)
    assert_computes(session, net)
    directions = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    assert operators(session.file).count("WHILE") == directions


def test_the_values_inside_a_loop_are_seen(tmp_path):
    torch.manual_seed(0)
    net = Classifier(nn.LSTM(INPUTS, HIDDEN, batch_first=True, bidirectional=True), "all").eval()
    session = built(net, (18, INPUTS), tmp_path)
    x = np.random.default_rng(0).standard_normal((1, 18, INPUTS)).astype(np.float32)
    seen = session.activations({"x0": x})
    with torch.no_grad():
        outputs, _ = net.rnn(torch.from_numpy(x))
    for step in range(18):
        for half in outputs[0, step].split(HIDDEN):
            assert any(
                np.abs(one.values.ravel() - half.numpy()).max() < 1e-5 for one in seen if one.values.size == HIDDEN
            )
    np.testing.assert_array_equal(seen[-1].values.ravel(), session.run({"x0": x})["y"].ravel())


def test_the_file_does_not_grow_with_the_steps(tmp_path):
    torch.manual_seed(0)
    net = Classifier(nn.LSTM(INPUTS, 32, batch_first=True), "last")
    net.head = nn.Linear(32, 5)
    short, long = (built(net, (steps, INPUTS), tmp_path / str(steps)).file.stat().st_size for steps in (17, 33))
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
    "weights that differ": (lambda w, s, x, i: torch.tanh(w[i](s[-1]) + x), lambda states: states[-1], 18, 0),
    "a state from the middle": (plain, lambda states: states[7] * states[-1], 1, None),
}


@pytest.mark.parametrize("name", RECURRENCES)
def test_other_recurrences_compute_the_same_looped_or_not(name, tmp_path):
    step, collect, num_weights, num_loops = RECURRENCES[name]
    net = Steps(step, collect, num_weights).eval()
    session = built(net, (18, INPUTS), tmp_path)
    assert_computes(session, net)
    if num_loops is not None:
        assert operators(session.file).count("WHILE") == num_loops


def test_a_file_without_repetition_is_left_as_it_is(tmp_path):
    file = built(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,), tmp_path).file
    assert with_loops(file.read_bytes()) == file.read_bytes()


def test_few_steps_stay_in_a_row_with_one_copy_of_their_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "MIN_REPETITIONS", 19)
    torch.manual_seed(0)
    net = Classifier(nn.LSTM(INPUTS, 32, batch_first=True), "last")
    net.head = nn.Linear(32, 5)
    session = built(net, (18, INPUTS), tmp_path)
    assert_computes(session, net)
    assert "WHILE" not in operators(session.file)
    assert session.file.stat().st_size < 2 * 4 * 4 * 32 * (INPUTS + 32) + 100_000


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_int8_cells_loop_and_repeat_the_simulation_bit_for_bit(kind, tmp_path):
    torch.manual_seed(0)
    net, task = Classifier(kind(INPUTS, HIDDEN, batch_first=True), "last").eval(), Noise(shape=(16, INPUTS))
    model = Model(net=net, quantization=Quantization(net, task, "min-max"))
    session = TFLite().open(TFLite().build(model, task, tmp_path, batch_size=1).file)
    assert operators(session.file).count("WHILE") == 1
    reference = measure.evaluate(TorchSession(net, task), task, "test")
    above = (ladder.rung("float", reference.score, (), task),)
    climb = ladder.climb(model, reference, above, TFLite(), session, task)
    assert climb.agreement.max_steps == 0
    assert climb.quantization_db is not None
    assert climb.quantization_db > 20


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_onnx_keeps_the_operator_and_both_forms_pass_nvidias_builder(kind, tmp_path):
    import onnx
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
