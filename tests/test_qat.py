"""Quantization-aware training: what is trained is what is deployed, and it wins back what rounding costs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from edgedl import ladder, plugins, recipe, stages, stats
from edgedl.core import Model, RecipeError, UsageError
from edgedl.measure import evaluate
from edgedl.quantize import operators
from edgedl.quantize.folding import fold_batch_norms
from edgedl.quantize.operators import Operator, Role
from edgedl.quantize.qat import FakeQuantized, OnGrid
from edgedl.quantize.schemes import AFFINE, SYMMETRIC
from edgedl.quantize.simulate import Quantization, export_graph, simulate
from edgedl.run import Run
from edgedl.steps.quantize import Quantize
from edgedl.tasks.digits import Digits
from edgedl.torch_session import TorchSession
from edgedl.training import loop
from tests.toys import Noise, Places, Residual

OPTIONS = {"batch_size": 64, "optimizer": "adam", "schedule": "cosine", "weight_decay": 0.0}


def settled(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """In evaluation mode, its batch norms with statistics of their own."""
    with torch.no_grad():
        for _ in range(30):
            net.train()(torch.randn(64, *shape) + 0.3)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return net.eval()


def mixed() -> nn.Module:
    """Every place that a batch norm folds into, and a skip connection."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Residual(8)]
    layers += [nn.Conv2d(8, 8, 1, groups=8), nn.BatchNorm2d(8, affine=False), nn.ReLU6(), nn.Flatten()]
    layers += [nn.Linear(8 * 16, 5), nn.BatchNorm1d(5)]
    return settled(nn.Sequential(*layers), (8, 10, 10))


def depthwise() -> nn.Module:
    """A small network whose depthwise layers suffer from few bits."""
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    for channels, stride in ((8, 2), (16, 2), (16, 1), (16, 1)):
        layers += [nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """One of which rounding to four bits takes ten points: with two, few test samples decide what is recovered."""
    loop.seed(2)
    return loop.fit(depthwise(), Digits(), Digits().loss, epochs=10, lr=1e-2, label="train", **OPTIONS)[0]


@pytest.fixture(scope="module", params=["learned", "moving"])
def after(request, trained) -> Model:
    """The network after training for 4-bit weights."""
    loop.seed(1)
    step = Quantize(method="qat", weight_bits=4, epochs=6, batch_size=64, lr=2e-3, ranges=request.param)
    return step.apply(Model(net=trained, teacher=trained), Digits())


def fake(net: nn.Module, task: Noise, ranges: str, settling: int, scheme=AFFINE) -> FakeQuantized:
    return FakeQuantized(net, task, scheme, simulate(net, task, scheme, "min-max").chosen, ranges, settling)


@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("ranges", ["learned", "moving"])
def test_it_computes_what_is_simulated(ranges, scheme):
    net, task = mixed(), Noise()
    quantized = evaluate(TorchSession(fake(net, task, ranges, 0, scheme), task), task, "calibration").outputs["y"]
    simulation = simulate(net, task, scheme, "min-max")
    simulated = evaluate(simulation.session(), task, "calibration").outputs["y"]
    # Apart from the rounding of biases, and of sums near the middle between two codes.
    assert np.abs(quantized - simulated).max() < 2.01 * simulation.output_scales()["y"]
    assert (np.abs(quantized - simulated) < 1e-5).mean() > 0.9


@pytest.mark.parametrize("ranges", ["learned", "moving"])
def test_gradients_reach_every_weight(ranges):
    net = fake(mixed(), Noise(), ranges, settling=1).train()
    x = torch.randn(16, 8, 10, 10)
    for norms_live in (True, False):
        net.zero_grad()
        net(x).square().sum().backward()
        for name, parameter in net.named_parameters():
            # A batch norm of a batch's own statistics takes off whatever is added before it.
            if not (norms_live and name in ("net.5.bias", "net.9.bias")):
                assert parameter.grad is not None, name
                assert parameter.grad.abs().sum() > 0, name


@given(
    hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.integers(-160, 160).map(lambda sixteenth: sixteenth / 16)),
    st.sampled_from([(0, 7), (-7, 7), (-5, 2)]),
    st.booleans(),
)
def test_gradients_of_a_learned_scale_are_those_of_its_steps(values, ends, channels_last):
    """As autograd has them, also at the ends of the grid, and however values and gradients lie in memory."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    steps_apart, weights = 0.25, torch.linspace(-1, 1, 120).reshape(2, 3, 4, 5)
    found = []
    for compute in (OnGrid.apply, on_grid_by_steps):
        x = torch.from_numpy(values.copy()).contiguous(memory_format=layout).requires_grad_()
        scale = torch.tensor(steps_apart, requires_grad=True)
        y = compute(x, scale, *ends)
        y.backward(weights)
        found.append((y.detach(), x.grad, scale.grad))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def on_grid_by_steps(x, scale, lowest, highest):
    codes = (x / scale).clamp(lowest, highest)
    return (codes + (codes.round() - codes).detach()) * scale


@pytest.mark.parametrize("places", [False, True])
def test_batch_norms_learn_from_the_batch_until_they_settle(places):
    shape = (5, 8) if places else (8, 10, 10)
    net, x = settled(Places(), shape) if places else mixed(), torch.randn(64, *shape)
    quantized = fake(net, Noise(shape=shape), "moving", settling=1).train()
    plain = copy.deepcopy(net).train()
    outputs = quantized(x), plain(x)
    assert stats.sqnr_db(*(values.detach().numpy() for values in reversed(outputs))) > 20
    for name, buffer in plain.named_buffers():
        if name.endswith(("mean", "var")):
            assert torch.allclose(quantized.net.get_buffer(name), buffer, rtol=0.05, atol=0.02), name
    before = {name: value.clone() for name, value in quantized.named_buffers()}
    quantized(5 * x)
    changed = [name for name, value in quantized.named_buffers() if not torch.equal(before[name], value)]
    assert changed == ["num_batches"]  # that it has seen


class Shared(nn.Module):
    """One convolution before two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(self.conv(x)) + self.second(self.conv(x))


FOLDED = {
    "convolution": (nn.Sequential(nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12)), (8, 10, 10)),
    "1-D": (nn.Sequential(nn.Conv1d(8, 12, 3), nn.BatchNorm1d(12)), (8, 20)),
    "depthwise": (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)), (8, 10, 10)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(8, 12, 2), nn.BatchNorm2d(12)), (8, 10, 10)),
    "transposed in groups": (nn.Sequential(nn.ConvTranspose2d(8, 12, 2, groups=4), nn.BatchNorm2d(12)), (8, 10, 10)),
    "dense": (nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16)), (24,)),
    "dense at every place": (Places(), (5, 8)),
    "without scale": (nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False)), (8, 10, 10)),
    "shared": (Shared(), (8, 10, 10)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folding_is_exact(name, monkeypatch):
    transposed = Operator(Role.WEIGHTED, weight_axis=1)
    monkeypatch.setitem(operators.OPERATORS, "aten.conv_transpose2d.input", transposed)
    net, shape = FOLDED[name]
    net = settled(net, shape)
    graph = export_graph(net, Noise(shape=shape))
    folds = fold_batch_norms(graph)
    # A transposed convolution in groups is one for each group, and the norm stands behind what joins them.
    assert len(folds) == {"shared": 2, "transposed in groups": 0}.get(name, 1)
    assert not any(str(node.target).startswith("aten.batch_norm") for node in graph.graph.nodes)
    x = torch.randn(5, *shape)
    assert torch.allclose(graph(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_that_cannot_be_folded_stands_for_itself():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values = self.conv(x)
            return self.norm(values) + values

    net, task = Twice(), Noise()
    with torch.no_grad():  # statistics of its own
        net(torch.randn(32, *task.shape))
    reference = evaluate(TorchSession(net, task), task, "test").outputs["y"]
    simulated = simulate(net.eval(), task, AFFINE, "min-max").evaluated("test").outputs["y"]
    assert stats.sqnr_db(reference, simulated) > 25


def test_it_recovers_half_of_what_rounding_costs(trained, after):
    task = Digits()
    reference = evaluate(TorchSession(trained, task), task, "test").score
    rounded = Quantization(trained, task, "auto", weight_bits=4).simulated(AFFINE).evaluated("test").score
    recovered = after.quantization.simulated(AFFINE).evaluated("test").score
    assert reference - rounded > 0.05
    assert reference - recovered <= (reference - rounded) / 2


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
def test_the_deployed_file_repeats_the_simulation(after, use, tmp_path):
    task, target = Digits(), plugins.load("targets", use).model_validate({})
    session = target.open(target.build(after, task, tmp_path, batch_size=1).file)
    source = evaluate(TorchSession(after.net, task), task, "test")
    climb = ladder.climb(after, source, (ladder.rung("float", source.score, (), task),), target, session, task)
    session.close()
    assert climb.agreement.max_steps is None  # outputs are float
    assert climb.first_divergence is None
    assert climb.agreement.sqnr_db > 120


def test_grids_are_those_of_training_and_calibrated_for_another_scheme(after):
    grids = after.lineage[-1].metrics["grids"]["affine"]
    trained = after.quantization.simulated(AFFINE)
    assert trained.choice == ("qat",)
    assert {grid["scale"] for grid in trained.grids()} <= {np.float32(scale).item() for scale, _ in grids.values()}
    other = after.quantization.simulated(SYMMETRIC)
    assert set(other.tried) >= {"min-max", "percentile", "mse", "entropy"}
    assert all(grid["zero_point"] == 0 for grid in other.grids())
    weights = [value for name, value in other.graph.state_dict().items() if "folded_weight" in name]
    assert len(weights) == 9


def test_weights_have_as_few_codes_as_asked_for(after):
    graph = after.quantization.simulated(AFFINE).graph
    grids = [node for node in graph.graph.nodes if "quantize_per_channel" in str(node.target)]
    limits = {node.args[4:6] for node in grids if node.op == "call_function"}
    assert limits == {(-7, 7)}


def test_zeros_stay_zeros(trained):
    net = copy.deepcopy(trained)
    masks = {name: torch.rand_like(value) > 0.5 for name, value in net.named_parameters() if value.ndim > 1}
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
    step = Quantize(method="qat", epochs=2, batch_size=64, lr=2e-3, weight_decay=0.1, calibrator="min-max")
    result = step.apply(Model(net=net, teacher=trained), Digits()).net
    for name, mask in masks.items():
        value = result.get_parameter(name)
        assert not value[~mask].any()
        assert not torch.equal(value[mask], net.get_parameter(name)[mask])


def test_what_is_no_better_than_the_start_is_not_kept(trained):
    step = Quantize(method="qat", epochs=1, lr=1.0, optimizer="sgd", schedule="constant", weight_decay=1.0)
    model = step.apply(Model(net=trained), Digits())
    assert model.lineage[-1].metrics["epochs"][0]["score"] < model.lineage[-1].metrics["before"]
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.net.state_dict().items())
    calibrated = simulate(trained, Digits(), AFFINE).grids()
    assert model.quantization.simulated(AFFINE).grids() == calibrated


def test_a_weight_that_is_no_parameter_is_named():
    class Recurrent(nn.Module):  # its weights are written out for export, under other names
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    with pytest.raises(UsageError, match="no parameter of the network"):
        fake(Recurrent(), Noise(shape=(6, 4)), "learned", 0)


RECIPE = """
task = { use = "digits" }
model = { use = "cnn", widths = [8, 8], hidden = 16 }
steps = [
  { use = "train", epochs = 2, batch_size = 64, lr = 3e-3 },
  { use = "quantize", method = "qat", epochs = 1, batch_size = 64 },
]
targets = [ { use = "onnxruntime" } ]
"""


def test_a_reused_step_gives_the_same_file(tmp_path):
    parsed = recipe.parse(RECIPE, Path("reused.toml"))
    (target,) = parsed.targets
    contents = []
    for number in range(2):
        run = Run.create(parsed, RECIPE, tmp_path)
        *_, compressed = stages.apply_steps(parsed, run, tmp_path, fresh=False)
        assert [rung.name for rung in compressed.rungs] == ["float"]
        metrics = compressed.model.lineage[-1].metrics
        assert ("reused" in metrics) == (number == 1)
        assert compressed.model.quantization.simulated(AFFINE).choice == ("qat",)
        file = target.build(compressed.model, parsed.task, run.folder, batch_size=1).file
        contents.append(file.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ('[{ use = "quantize", epochs = 3 }]', r'method = "auto" has no epochs; its keys are: calibrator'),
        ('[{ use = "quantize", method = "ptq", ranges = "moving", lr = 0.1 }]', "has no lr, ranges"),
        ('[{ use = "quantize", method = "qat" }, { use = "train" }]', "train changes weights and has to stand before"),
        ('[{ use = "quantize", method = "qat", epoch = 3 }]', "did you mean epochs"),
    ],
)
def test_keys_and_places_that_do_not_fit_are_refused(steps, said):
    text = f'task = {{ use = "digits" }}\nmodel = {{ use = "mlp" }}\nsteps = {steps}\ntargets = [{{ use = "tflite" }}]'
    with pytest.raises(RecipeError, match=said):
        recipe.parse(text, Path("wrong.toml"))


def test_a_step_records_the_keys_of_its_method_alone():
    static = {"weight_bits", "granularity", "calibrator", "corrections"}
    assert set(Quantize().model_dump()) == {"use", "precision", "method"} | static
    assert {"epochs", "ranges", "settle", "scheme"} < set(Quantize(method="qat").model_dump())
