"""Corrections: what each leaves as it was, what each makes better, and that deployed files repeat the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgedl import ladder, measure, plugins, stats
from edgedl.core import Model, UsageError
from edgedl.quantize.adaround import learned_rounding
from edgedl.quantize.corrections import CORRECTIONS, HEADROOM, Layer, bias_correction, re_estimation
from edgedl.quantize.equalization import equalize
from edgedl.quantize.integer import DEQUANTIZE, IntegerInterpreter
from edgedl.quantize.quantizer import TableQuantizer
from edgedl.quantize.schemes import AFFINE, SYMMETRIC
from edgedl.quantize.simulate import Quantization, export_graph, simulate
from edgedl.recipe import Recipe, parse
from edgedl.torch_session import TorchSession
from tests.toys import Noise, Residual

IMAGE = (8, 10, 10)


class Halves(nn.Module):
    """A value that is read twice: by a convolution, and by an addition behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return torch.relu(x + self.second(x))


def uneven(net: nn.Module) -> nn.Module:
    """Gives layers channels of very different ranges, as training with batch norms may."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.weight is not None:
            module.weight.data *= (
                torch.randn(len(module.weight)).mul(1.5).exp2().reshape(-1, *[1] * (module.weight.ndim - 1))
            )
    return net


@st.composite
def networks(draw) -> nn.Sequential:
    """Networks with all that equalization goes through, and with what it must stop at."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels, side, layers = 8, 10, []
    activations = st.sampled_from([nn.ReLU, nn.ReLU6, nn.Identity])
    for _ in range(draw(st.integers(2, 5))):
        kind = draw(st.sampled_from(["conv", "norm", "depthwise", "grouped", "residual", "halves", "max", "mean"]))
        if kind in ("conv", "norm"):
            width = draw(st.sampled_from([4, 8, 12]))
            layers += [nn.Conv2d(channels, width, draw(st.sampled_from([1, 3])), padding="same")]
            layers += [nn.BatchNorm2d(width)] if kind == "norm" else []
            layers += [draw(activations)()]
            channels = width
        elif kind in ("depthwise", "grouped"):
            groups = channels if kind == "depthwise" else 2
            multiple = draw(st.sampled_from([1, 2]))
            layers += [nn.Conv2d(channels, channels * multiple, 3, padding=1, groups=groups), draw(activations)()]
            channels *= multiple
        elif kind in ("residual", "halves"):
            layers.append((Residual if kind == "residual" else Halves)(channels))
        elif side >= 4:
            layers.append((nn.MaxPool2d if kind == "max" else nn.Dropout)(2 if kind == "max" else 0.5))
            side //= 2 if kind == "max" else 1
    if draw(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(1))
        side = 1
    hidden = draw(st.sampled_from([5, 16]))
    layers += [nn.Flatten(), nn.Linear(channels * side * side, hidden), draw(activations)(), nn.Linear(hidden, 3)]
    net = uneven(nn.Sequential(*layers))
    with torch.no_grad():  # batch norms with statistics of their own
        net.train()(torch.randn(32, *IMAGE))
    return net.eval()


@given(net=networks(), observed=st.booleans())
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_equalization_leaves_what_the_network_computes(net, observed):
    inputs = torch.randn(8, *IMAGE)
    graph = export_graph(net, Noise(shape=IMAGE))
    if observed:  # as it is used: batch norms folded, and an observer behind every operator
        graph = prepare_pt2e(graph, TableQuantizer(AFFINE))
    equalize(graph, [torch.randn(16, *IMAGE)])
    with torch.no_grad():
        wanted, given_now = net(inputs), graph(inputs)
    assert (wanted - given_now).abs().max() <= 1e-5 * wanted.abs().max()


def test_equalization_evens_out_channels_through_a_depthwise_layer_and_a_flattening():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.LeakyReLU(), nn.Flatten(), nn.Linear(512, 4)
    )
    with torch.no_grad():
        net[0].weight[0] *= 100
        net[2].weight[1] *= 100
    inputs = torch.randn(16, *IMAGE)
    graph = export_graph(net, Noise(shape=IMAGE))
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    equalize(graph, [inputs], balance=1.0)
    changed = {name: value / before[name] for name, value in graph.state_dict().items()}
    first = torch.relu(nn.functional.conv2d(inputs, graph.state_dict()["0.weight"], graph.state_dict()["0.bias"]))
    reach = first.amax((0, 2, 3))
    assert reach.max() / reach.min() < 1.001
    assert changed["5.weight"].reshape(4, 8, 64).std((0, 2)).max() < 1e-4  # one factor for all pixels of a channel
    assert changed["5.weight"].std() > 0.1
    with torch.no_grad():
        assert torch.allclose(graph(inputs), net(inputs), rtol=1e-4, atol=1e-4)


def test_what_does_not_scale_stops_equalization():
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 1)).eval()
    graph = export_graph(uneven(net), Noise(shape=IMAGE))
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    equalize(graph, [torch.randn(16, *IMAGE)])
    assert all(torch.equal(before[name], value) for name, value in graph.state_dict().items())


def test_a_weight_that_two_layers_share_is_left_alone():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.conv(torch.relu(self.conv(x)))))

    torch.manual_seed(0)
    net, inputs = uneven(Twice()).eval(), torch.randn(4, *IMAGE)
    graph = export_graph(net, Noise(shape=IMAGE))
    equalize(graph, [inputs])
    with torch.no_grad():
        assert torch.allclose(graph(inputs), net(inputs), rtol=1e-5, atol=1e-5)
    simulate(net, Noise(shape=IMAGE), AFFINE, "mse", CORRECTIONS)


def layer(highest: int, inputs: torch.Tensor, wanted_inputs: torch.Tensor) -> Layer:
    """A dense layer of 32 inputs and 8 outputs on a grid of `highest` codes to either side."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(8, 32, generator=generator), torch.randn(8, generator=generator)
    return Layer(
        compute=nn.functional.linear,
        weight=weight,
        scale=weight.abs().amax(1) / highest,
        bias=bias,
        highest=highest,
        inputs=inputs,
        wanted=nn.functional.linear(wanted_inputs, weight, bias),
        channel=1,
    )


def correlated(num: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num)
    mixed = torch.randn(num, 6, generator=generator) @ torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    return torch.relu(mixed + 0.1 * torch.randn(num, 32, generator=generator))


def error(one: Layer) -> float:
    return float((one.outputs() - one.wanted).square().mean())


def test_bias_correction_removes_the_mean_error():
    inputs = correlated(256)
    one = layer(7, inputs, inputs)
    assert (one.outputs() - one.wanted).mean(0).abs().max() > 0.05
    bias_correction(one)
    assert (one.outputs() - one.wanted).mean(0).abs().max() < 1e-5


def test_re_estimation_undoes_a_gain_and_an_offset_and_keeps_the_codes():
    wanted = correlated(256)
    one = layer(127, 0.8 * wanted, wanted)
    codes = (one.rounded() / one.scale[:, None]).round()
    before = error(one)
    re_estimation(one)
    assert error(one) < 0.01 * before
    assert torch.equal((one.rounded() / one.scale[:, None]).round(), codes)


@pytest.mark.parametrize("highest", [7, 127])
def test_learned_rounding_beats_rounding_to_nearest_on_unseen_inputs_too(highest):
    seen, unseen = correlated(256), correlated(300)
    one = layer(highest, seen, seen)
    nearest, nearest_unseen = error(one), error(layer(highest, unseen, unseen))
    steps = (one.weight / one.scale[:, None]).clone()
    learned_rounding(one)
    assert error(one) < 0.5 * nearest
    other = layer(highest, unseen, unseen)
    other.weight = one.weight
    assert error(other) < 0.6 * nearest_unseen
    assert ((one.weight / one.scale[:, None]) - steps).abs().max() < 1.001  # up or down, nothing else


@pytest.fixture(scope="module")
def uneven_net() -> nn.Module:
    torch.manual_seed(3)
    body = [nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU()]
    net = uneven(nn.Sequential(*body, nn.Conv2d(16, 12, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 5)))
    with torch.no_grad():
        net.train()(torch.randn(32, *IMAGE))
    return net.eval()


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
@pytest.mark.parametrize("names", [*((name,) for name in CORRECTIONS), CORRECTIONS], ids="-".join)
def test_deployed_repeats_simulated_bit_for_bit(uneven_net, names, use, tmp_path):
    task = Noise(shape=IMAGE)
    quantization = Quantization(uneven_net, task, "mse", names)
    model = Model(net=uneven_net, quantization=quantization)
    target = plugins.load("targets", use).model_validate({})
    session = target.open(target.build(model, task, tmp_path, batch_size=1).file)
    reference = measure.evaluate(TorchSession(uneven_net, task), task, "test")
    rungs = (ladder.rung("float", reference.score, (), task),)
    climb = ladder.climb(model, reference, rungs, target, session, task)
    session.close()
    # Where the last layer's outputs are float, in all but the last bits of a float32 product.
    assert climb.agreement.max_steps == (None if target.scheme.float_outputs == "sums" else 0), climb.first_divergence
    assert climb.agreement.sqnr_db > 120
    assert climb.quantization_db > 20
    assert quantization.simulated(AFFINE).choice == ("mse", *names)


def test_the_mean_error_of_a_network_goes_but_for_what_its_output_grid_leaves(uneven_net):
    task = Noise(shape=IMAGE)
    wanted = measure.evaluate(TorchSession(uneven_net, task), task, "calibration").outputs["y"]

    def worst(*names: str) -> float:
        simulation = simulate(uneven_net, task, AFFINE, "min-max", names)
        (scale,) = simulation.output_scales().values()
        return float(np.abs((simulation.evaluated("calibration").outputs["y"] - wanted).mean(0)).max() / scale)

    assert worst("bias-correction") < 0.25
    assert worst("bias-correction") < 0.5 * worst()


@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC], ids=lambda scheme: scheme.name)
def test_auto_is_less_noisy_than_every_calibrator_alone(uneven_net, scheme):
    task = Noise(shape=IMAGE)
    simulation = simulate(uneven_net, task, scheme, "auto", "auto")
    alone = simulate(uneven_net, task, scheme, "auto", ())
    wanted = measure.evaluate(TorchSession(uneven_net, task), task, "validation").outputs["y"]

    def noise(one) -> float:
        return stats.sqnr_db(wanted, one.evaluated("validation").outputs["y"])

    assert len(alone.choice) == 1
    assert len(simulation.choice) > 1
    assert noise(simulation) > noise(alone)
    assert set(alone.tried) < set(simulation.tried)
    chosen = simulation.tried[" + ".join(simulation.choice)]
    assert chosen.samples == 64
    assert chosen.sqnr_db == pytest.approx(noise(simulation), abs=0.1)


def test_headroom_widens_the_outputs_alone(uneven_net):
    plain = simulate(uneven_net, Noise(shape=IMAGE), AFFINE, "min-max")
    wider = simulate(uneven_net, Noise(shape=IMAGE), AFFINE, "min-max", ("headroom",))
    ratios = [after["scale"] / before["scale"] for before, after in zip(plain.grids(), wider.grids(), strict=True)]
    assert ratios == pytest.approx([1.0] * (len(ratios) - 1) + [HEADROOM])
    assert wider.output_scales()["y"] == pytest.approx(HEADROOM * plain.output_scales()["y"])
    assert isinstance(IntegerInterpreter(wider.graph).run(torch.zeros(1, *IMAGE)), torch.Tensor)
    assert any(node.target == DEQUANTIZE for node in wider.graph.graph.nodes)


def test_recipes_take_the_names_of_the_corrections_and_name_the_nearest():
    from edgedl.steps.quantize import Correction, Quantize

    assert set(get_args(Correction)) == set(CORRECTIONS)
    assert Quantize().corrections == "auto"
    lines = (
        'task = {{ use = "digits" }}\nmodel = {{ use = "mlp" }}\nsteps = [ {{ use = "quantize", corrections = {} }} ]\n'
    )

    def written(text: str) -> Recipe:
        return parse(text, Path("own.toml"))

    text = lines + 'targets = [ {{ use = "onnxruntime" }} ]\n'
    assert written(text.format('["headroom"]')).steps[0].corrections == ("headroom",)
    assert written(text.format("[]")).steps[0].corrections == ()
    for wrong, said in (
        ('["equalisation"]', "steps[0].corrections: no correction named 'equalisation'; did you mean equalization?"),
        ('"atuo"', 'steps[0].corrections: needs "auto" or an array of names out of equalization, '),
        ("[1]", "steps[0].corrections: no correction named 1; there are: "),
    ):
        with pytest.raises(UsageError) as refused:
            written(text.format(wrong))
        assert said in str(refused.value)
