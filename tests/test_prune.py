"""Structured pruning: what goes, that the rest still computes the same, and that it is rebuilt from JSON."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import nn

from edgedl import plugins
from edgedl.core import MissingPackage, Model, UsageError
from edgedl.measure import evaluate
from edgedl.models.cnn import CNN
from edgedl.pruning import importance, structure
from edgedl.pruning.blocks import Block
from edgedl.pruning.prunable import prunable
from edgedl.quantize.simulate import Quantization
from edgedl.steps import prune
from edgedl.steps.prune import Prune
from edgedl.steps.train import Train
from edgedl.tasks.digits import Digits
from edgedl.torch_session import TorchSession
from edgedl.training import loop
from tests.test_quantize_operators import assert_repeats, deployed, target_of
from tests.toys import Apply, Noise, Residual

torch.manual_seed(0)  # for the weights of the networks below

IMAGE = Noise(shape=(8, 12, 12))
INFORMED = ["taylor", "l1", "l2", "bn"]
"""All importances but the control."""


class Branches(nn.Module):
    """Two convolutions side by side, and the input itself: concatenated."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, width, 3, padding=1)
        self.right = nn.Conv2d(channels, 2 * width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.left(x), x, torch.relu(self.right(x))], dim=1)


class Halves(nn.Module):
    """Cuts its input into two equal parts: channels cannot go as they like."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=1)
        return left * torch.sigmoid(right)


class Gated(nn.Module):
    """Focal modulation: of one layer queries, a context seen ever more widely, and a gate for each view."""

    def __init__(self, width: int, levels: int = 2) -> None:
        super().__init__()
        self.sizes = [width, width, levels + 1]
        self.all, self.context = nn.Conv2d(width, sum(self.sizes), 1), nn.Conv2d(width, width, 1)
        self.views = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(levels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, view, gates = self.all(x).split(self.sizes, 1)
        seen: torch.Tensor | float = 0.0
        for level, layer in enumerate(self.views):
            view = torch.relu(layer(view))
            seen = seen + view * gates[:, level : level + 1]
        seen = seen + view.mean((2, 3), keepdim=True) * gates[:, len(self.views) :]
        return queries * self.context(seen)


class Apart(nn.Module):
    """Takes the first of a sequence (N, T, C) apart, and puts it back before each thing it makes of the rest."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, others = x.split([1, x.shape[1] - 1], 1)
        made = [torch.cat([first, layer(others)], dim=1) for layer in (self.left, self.right)]
        return made[0] * torch.sigmoid(made[1])


class Attention(nn.Module):
    """A pre-norm block: four heads, then a hidden layer; sequences (N, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        query, key, value = (
            layer(normed).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.hidden(x)


def normed(conv: nn.Module, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(conv, norm(conv.out_channels), nn.ReLU())


def pooled(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def settled(net: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """With norms that have seen data and have scales of their own, in evaluation mode."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
        net.train()(*inputs)
    return net.eval()


@st.composite
def networks(draw, kinds=("plain", "norm", "residual", "depthwise", "grouped", "concat", "pool")) -> nn.Module:
    """Convolutional networks of one to five blocks and a head of one or two dense layers."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels, side = draw(st.sampled_from([16, 24, 32])), 12
    layers: list[nn.Module] = [normed(nn.Conv2d(8, channels, 3, padding=1))]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(kinds))
        width = draw(st.sampled_from([8, 16, 24, 32]))
        if kind in ("plain", "norm"):
            conv = nn.Conv2d(channels, width, draw(st.sampled_from([1, 3])), padding="same", bias=kind == "plain")
            layers.append(nn.Sequential(conv, nn.ReLU()) if kind == "plain" else normed(conv))
            channels = width
        elif kind == "residual":
            layers.append(Residual(channels))
        elif kind == "depthwise":
            layers.append(normed(nn.Conv2d(channels, channels, 3, padding=1, groups=channels)))
        elif kind == "grouped":
            layers.append(normed(nn.Conv2d(channels, width, 3, padding=1, groups=4)))
            channels = width
        elif kind == "concat":
            layers.append(Branches(channels, width))
            channels += 3 * width
        elif side > 3:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    if draw(st.booleans()):
        layers += pooled(channels)
    else:
        layers += [nn.Flatten(), nn.Linear(channels * side * side, 16), nn.ReLU(), nn.Linear(16, 10)]
    return settled(nn.Sequential(*layers), torch.randn(16, 8, 12, 12))


examples = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def pruned(net: nn.Module, task=IMAGE, seed: int = 0, **fields) -> tuple[nn.Module, dict]:
    """The network after one round without training, unless `fields` say otherwise, and the step's metrics."""
    loop.seed(seed)
    step = Prune(**({"iterations": 1, "epochs": 0} | fields))
    model = step.apply(Model(net=net), task)
    record = model.lineage[-1]
    assert record.step == step.model_dump()
    assert json.loads(json.dumps(record.metrics)) == record.metrics
    return model.net, dict(record.metrics)


def outputs(net: nn.Module, task=IMAGE) -> torch.Tensor:
    with torch.no_grad():  # cloned, since kernels round in another way where memory is aligned in another way
        return net(*(torch.from_numpy(task.arrays("test")[name]).clone() for name in task.inputs))


def widths(net: nn.Module) -> dict[str, int]:
    return {
        path: len(module.weight)
        for path, module in net.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    }


def blocks_of(net: nn.Module, task=IMAGE) -> list[Block]:
    return prune.prunable(net, prune.sample(task))[0]


def silence(net: nn.Module, blocks: list[Block], share: float, rng: np.random.Generator) -> None:
    """Makes a share of each block's channels do nothing: all that belongs to them becomes zero."""
    with torch.no_grad():
        for block in blocks:
            size = block.num_channels
            chosen = rng.choice(size, round(size * share), replace=False)
            for item in block.tensors(net):
                if isinstance(item.tensor, nn.Parameter):
                    item.tensor.index_fill_(item.dim, torch.from_numpy(item.places[chosen].ravel()), 0.0)


# What is left


@given(
    net=networks(),
    ratio=st.sampled_from([0.3, 0.5, 0.7]),
    round_to=st.sampled_from([1, 4, 8]),
    importance=st.sampled_from(["taylor", "l1", "l2", "random"]),
    scope=st.sampled_from(["local", "global"]),
)
@examples
def test_shapes_widths_and_sizes(net, ratio, round_to, importance, scope):
    before, weights = outputs(net), copy.deepcopy(net.state_dict())
    original = {block.name: block.width for block in blocks_of(net)}
    steps = {block.name: max(round_to, block.lockstep) for block in blocks_of(net)}
    smaller, metrics = pruned(net, ratio=ratio, round_to=round_to, importance=importance, scope=scope)

    assert outputs(smaller).shape == before.shape
    *inner, last = widths(smaller)
    assert widths(smaller)[last] == widths(net)[last] == 10
    assert all(widths(smaller)[path] % round_to == 0 for path in inner)
    assert all(widths(smaller)[path] >= round_to for path in inner)

    kept = {name: widths(smaller)[name] for name in original}
    if scope == "local":
        for name, width in original.items():
            wanted = max((1 - ratio) * width, steps[name])
            assert abs(kept[name] - wanted) <= steps[name] / 2 + 1e-9, name
    else:
        floor = {name: min(width, steps[name]) for name, width in original.items()}
        wanted = max((1 - ratio) * sum(original.values()), sum(floor.values()))
        assert abs(sum(kept.values()) - wanted) <= max(steps.values()) / 2

    (record,) = metrics["iterations"]
    assert record["widths"] == widths(smaller)
    assert metrics["before"]["widths"] == widths(net)
    for figures, of in ((metrics["before"], net), (record, smaller)):
        assert figures["parameters"] == sum(parameter.numel() for parameter in of.parameters())
        assert figures["score"] == pytest.approx(evaluate(TorchSession(of, IMAGE), IMAGE, "validation").score)
    assert record["parameters"] < metrics["before"]["parameters"]
    assert record["macs"] < metrics["before"]["macs"]

    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    assert torch.equal(outputs(net), before)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_halving_the_channels_quarters_the_inner_layers(ratio, scope):
    net = settled(
        nn.Sequential(*(normed(nn.Conv2d(64 if index else 8, 64, 3, padding=1)) for index in range(4)), *pooled(64)),
        torch.randn(8, 8, 12, 12),
    )
    _, metrics = pruned(net, ratio=ratio, importance="random", scope=scope)
    before, after = metrics["before"], metrics["iterations"][-1]
    for figure in ("parameters", "macs"):
        assert after[figure] / before[figure] == pytest.approx((1 - ratio) ** 2, abs=0.06)


@given(net=networks(), share=st.sampled_from([0.4, 0.6, 0.8]), scope=st.sampled_from(["local", "global"]))
@examples
def test_macs_are_kept_to_a_budget(net, share, scope):
    try:
        _, metrics = pruned(net, macs=share, round_to=1, scope=scope, importance="l1", iterations=2)
    except UsageError:
        reject()  # a network of few and narrow layers cannot get there
    first, last = (record["macs"] / metrics["before"]["macs"] for record in metrics["iterations"])
    assert first <= (1 + share) / 2
    assert share - 0.15 <= last <= share


def test_what_need_not_go_beside_a_large_piece_stays():
    """The channels that matter least are the last layer's, but they alone are too few; half of the middle is enough."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 1))
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)])
    with torch.no_grad():
        net[4].weight[8:] /= 100
        net[2].weight[8:] /= 10
    smaller, _ = pruned(net, macs=0.8, round_to=8, importance="l1", epochs=0)
    assert [smaller[index].out_channels for index in (0, 2, 4)] == [16, 8, 32]


def test_macs_counts_multiply_accumulates():
    net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 144, 10))
    assert prune.macs(net, prune.sample(IMAGE)) == 8 * 16 * 9 * 144 + 16 * 144 * 10


# What goes


@given(
    net=networks(),
    importance=st.sampled_from(["taylor", "l1", "l2"]),
    scope=st.sampled_from(["local", "global"]),
    seed=st.integers(0, 99),
)
@examples
def test_channels_that_do_nothing_go_first(net, importance, scope, seed):
    """Half of them do nothing, half of them go, and the network computes what it did."""
    silence(net, blocks_of(net), 0.5, np.random.default_rng(seed))
    smaller, _ = pruned(net, ratio=0.5, round_to=1, importance=importance, scope=scope)
    assert widths(smaller) != widths(net)
    torch.testing.assert_close(outputs(smaller), outputs(net), rtol=1e-4, atol=1e-4)


@given(net=networks(kinds=("norm", "depthwise", "pool")), seed=st.integers(0, 99))
@examples
def test_channels_that_do_nothing_go_first_by_batch_norm(net, seed):
    scored = [block for block in blocks_of(net) if any(item.is_scale for item in block.tensors(net))]
    silence(net, scored, 0.5, np.random.default_rng(seed))
    smaller, metrics = pruned(net, ratio=0.5, round_to=1, importance="bn")
    torch.testing.assert_close(outputs(smaller), outputs(net), rtol=1e-4, atol=1e-4)
    unscored = {block.name for block in blocks_of(net)} - {block.name for block in scored}
    assert unscored <= metrics["left_whole"].keys()


@pytest.mark.parametrize("importance", ["taylor", "l1", "l2", "bn", "random"])
def test_the_dead_channels_of_a_plain_network(importance):
    torch.manual_seed(0)
    net = settled(nn.Sequential(*normed(nn.Conv2d(8, 16, 3)), *normed(nn.Conv2d(16, 8, 3)), *pooled(8)),
                  torch.randn(8, 8, 12, 12))  # fmt: skip
    dead, alive = [0, 3, 4, 7, 8, 9, 14, 15], [1, 2, 5, 6, 10, 11, 12, 13]
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias):
            tensor[dead] = 0
        net[3].weight[:, dead] = 0
    smaller, _ = pruned(net, ratio=0.5, importance=importance, scope="local")
    right = torch.equal(smaller[0].weight, net[0].weight[alive]) and torch.equal(
        smaller[3].weight, net[3].weight[:, alive]
    )
    assert right == (importance != "random")
    assert torch.equal(smaller[1].running_var, net[1].running_var[alive]) == right


def test_taylor_sees_that_nobody_listens():
    """The channels have weights, but what they say is multiplied by zero."""
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), *pooled(8)).eval()
    with torch.no_grad():
        net[0].weight[:8] *= 100
        net[2].weight[:, :8] = 0
    smaller, _ = pruned(net, ratio=0.5, scope="local")
    assert torch.equal(smaller[0].weight, net[0].weight[8:])


def test_importances_by_hand():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    task = Noise(shape=(3,), num_samples=32)
    first, norm, last = net
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    (block,) = blocks_of(net, task)

    def magnitudes(of):
        return sum(of(part).sum(dim=1) for part in (first.weight, last.weight.T)) + sum(
            of(part) for part in (first.bias, norm.weight, norm.bias)
        )

    effects = []
    for batch in task.batches("calibration", importance.TAYLOR_BATCH):
        net.zero_grad()
        task.loss({"y": net(torch.from_numpy(batch["x0"]))}, {}).backward()
        effects.append(
            sum((part * part.grad).abs() for part in (first.bias, norm.weight, norm.bias))
            + (first.weight * first.weight.grad).sum(dim=1).abs()
            + (last.weight * last.weight.grad).sum(dim=0).abs()
        )
    assert len(effects) == 2
    by_hand = {
        "l1": magnitudes(torch.abs),
        "l2": magnitudes(torch.square).sqrt(),
        "bn": norm.weight.abs(),
        "taylor": sum(effects) / 2,
    }
    for name, wanted in by_hand.items():
        scores = importance.score(net, task, [block], importance.IMPORTANCES[name])[block.name][0]
        np.testing.assert_allclose(scores, wanted.detach().numpy(), rtol=1e-5, err_msg=name)


def test_global_scope_takes_from_the_layer_that_needs_it_less():
    net = nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), *pooled(32)).eval()
    silence(net, blocks_of(net)[:1], 0.75, np.random.default_rng(0))
    everywhere, _ = pruned(net, ratio=0.375, importance="l2")
    anywhere, _ = pruned(net, ratio=0.375, importance="l2", scope="local")
    assert widths(everywhere) == {"0": 8, "2": 32, "6": 10}
    assert widths(anywhere) == {"0": 24, "2": 24, "6": 10} or widths(anywhere) == {"0": 16, "2": 16, "6": 10}


def test_global_scope_minds_no_scale():
    net = nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), *pooled(64)).eval()
    with torch.no_grad():
        net[0].weight *= 1000
    smaller, _ = pruned(net, ratio=0.5, importance="l2")
    assert 16 <= widths(smaller)["0"] <= 48


# Layers that hang together, and those that must not be touched

NORMED = nn.Sequential(
    *normed(nn.Conv2d(8, 32, 3)), nn.Conv2d(32, 32, 1), nn.GroupNorm(4, 32), nn.PReLU(32), *pooled(32)
)
MULTIPLIED = nn.Sequential(normed(nn.Conv2d(8, 16, 1)), normed(nn.Conv2d(16, 32, 3, groups=16)), *pooled(32))
SEQUENCE = nn.Sequential(
    nn.Conv1d(8, 16, 3), nn.PReLU(), nn.Flatten(), nn.Linear(16 * 18, 24), nn.ReLU(), nn.Linear(24, 5)
)
STRANGE = {
    # name -> network, shape of its inputs, the layers that can be pruned, one that cannot and why
    "group norm": (NORMED, (8, 12, 12), {"0", "3"}, ("8", "outputs")),
    "depth multiplier": (MULTIPLIED, (8, 12, 12), {"0.0", "1.0"}, ("4", "outputs")),
    "sequence": (SEQUENCE, (8, 20), {"0", "3"}, ("5", "outputs")),
    "residual of the input": (
        nn.Sequential(Residual(8), normed(nn.Conv2d(8, 16, 3)), *pooled(16)),
        (8, 12, 12),
        {"0.conv1", "1.0"},
        ("0.conv2", "not interchangeable"),
    ),
    "equal halves": (
        nn.Sequential(nn.Conv2d(8, 16, 3), Halves(), normed(nn.Conv2d(8, 16, 3)), *pooled(16)),
        (8, 12, 12),
        {"2.0"},
        ("0[0]", "not interchangeable"),
    ),
    "channels last before flattening": (
        nn.Sequential(nn.Conv2d(8, 16, 3), Apply(lambda x: x.permute(0, 2, 3, 1).flatten(1)), nn.Linear(1600, 16),
                      nn.ReLU(), nn.Linear(16, 5)),
        (8, 12, 12),
        {"2"},
        ("0", "not interchangeable"),
    ),
    "a shape written into the code": (
        nn.Sequential(normed(nn.Conv2d(8, 16, 1)), Apply(lambda x: x.view(-1, 16, 144).mean(dim=2)), nn.Linear(16, 16),
                      nn.ReLU(), nn.Linear(16, 5)),
        (8, 12, 12),
        {"2"},
        ("0.0", "does not run with fewer channels"),
    ),
    "part of a group": (
        nn.Sequential(Branches(8, 8), normed(nn.Conv2d(32, 16, 3, groups=2)), *pooled(16)),
        (8, 12, 12),
        {"1.0"},
        ("0.left", "only a part of what 1.0 takes"),
    ),
    "attention": (
        nn.Sequential(nn.Linear(8, 32), Attention(32), Apply(lambda x: x.mean(dim=1)), nn.Linear(32, 5)),
        (6, 8),
        {"0", "1.hidden.0"},
        ("1.query", "not interchangeable"),
    ),
    "parts that are used twice": (
        nn.Sequential(nn.Linear(8, 16), Apart(16), Apply(lambda x: x.mean(dim=1)), nn.Linear(16, 32), nn.ReLU(),
                      nn.Linear(32, 5)),
        (6, 8),
        {"3"},
        ("0", "torch-pruning fails there"),
    ),
    "gates": (
        nn.Sequential(nn.Conv2d(8, 16, 1), Gated(16), normed(nn.Conv2d(16, 16, 3)), *pooled(16)),
        (8, 12, 12),
        {"0", "2.0"},
        ("1.all", "misjudges 1.context"),
    ),
    "recurrent": (
        nn.Sequential(nn.LSTM(8, 16, batch_first=True), Apply(lambda x: x[0][:, -1]), nn.Linear(16, 32), nn.ReLU(),
                      nn.Linear(32, 5)),
        (6, 8),
        {"0", "2"},
        ("4", "outputs"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_what_cannot_go_stays_and_what_goes_leaves_no_trace(name):
    net, shape, free, (layer, reason) = STRANGE[name]
    task = Noise(shape=shape)
    net = settled(copy.deepcopy(net), torch.randn(16, *shape))
    blocks, whole = prune.prunable(net, prune.sample(task))
    assert {block.name for block in blocks} == free
    assert reason in whole[layer]
    if not any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in net.modules()):  # these see how many
        silence(net, blocks, 0.5, np.random.default_rng(0))
        smaller, metrics = pruned(net, task, ratio=0.5, round_to=1, importance="l1", scope="local")
        assert metrics["left_whole"] == whole
        torch.testing.assert_close(outputs(smaller, task), outputs(net, task), rtol=1e-4, atol=1e-4)
    smaller, _ = pruned(net, task, ratio=0.5, round_to=8)
    assert outputs(smaller, task).shape == outputs(net, task).shape
    rebuilt(net, smaller, task)


@pytest.mark.parametrize("flat", [nn.Flatten(), Apply(lambda x: x.reshape(len(x), -1)), Apply(lambda x: x.flatten(1))])
def test_a_concatenation_that_is_flattened_can_be_pruned(flat):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 1), Branches(8, 8), flat, nn.Linear(32 * 144, 16), nn.ReLU(), nn.Linear(16, 5))
    assert {block.name for block in blocks_of(net.eval())} == {"0", "1.left", "1.right", "3"}
    silence(net, blocks_of(net), 0.5, np.random.default_rng(0))
    smaller, _ = pruned(net, ratio=0.5, round_to=1, importance="l1", scope="local")
    assert widths(smaller) == {"0": 4, "1.left": 4, "1.right": 8, "3": 8, "5": 5}
    torch.testing.assert_close(outputs(smaller), outputs(net), rtol=1e-4, atol=1e-4)
    rebuilt(net, smaller, IMAGE)


def test_a_shared_layer_and_shared_weights_stay_right():
    shared = nn.Linear(16, 16)
    tied = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    tied[4].weight = tied[2].weight
    for net in (nn.Sequential(nn.Linear(8, 16), shared, nn.ReLU(), shared, nn.Linear(16, 4)), tied):
        task = Noise(shape=(8,))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.abs_()
        try:
            smaller, _ = pruned(net.eval(), task, ratio=0.5)
        except UsageError:
            continue
        assert outputs(smaller, task).shape == (64, 4)
        assert len(list(smaller.parameters())) == len(list(net.parameters()))


# Rounds, and learning in between


def test_rounds_approach_the_goal_in_equal_strides():
    net = settled(nn.Sequential(*normed(nn.Conv2d(8, 64, 3)), *normed(nn.Conv2d(64, 64, 3)), *pooled(64)),
                  torch.randn(8, 8, 12, 12))  # fmt: skip
    _, metrics = pruned(net, ratio=0.5, iterations=4, scope="local")
    assert [record["widths"]["0"] for record in metrics["iterations"]] == [56, 48, 40, 32]
    assert all(record["training"] == [] for record in metrics["iterations"])


@pytest.mark.parametrize("importance", ["taylor", "random"])
def test_the_same_seed_gives_the_same_network(importance):
    loop.seed(3)
    net = CNN(widths=(16, 16), hidden=32).build(Digits()).eval()
    fields = {"ratio": 0.5, "importance": importance, "iterations": 2, "epochs": 1}
    one, two = (pruned(net, Digits(), **fields) for _ in range(2))
    assert one[1] == two[1]
    assert all(torch.equal(value, two[0].state_dict()[name]) for name, value in one[0].state_dict().items())
    assert [len(record["training"]) for record in one[1]["iterations"]] == [1, 1]
    if importance == "random":
        other = pruned(net, Digits(), seed=1, **fields)
        assert not torch.equal(one[0].conv1.weight, other[0].conv1.weight)


@pytest.fixture(scope="module")
def digits_net() -> nn.Module:
    loop.seed(0)
    net = CNN().build(Digits()).eval()
    return Train(epochs=4, lr=2e-3).apply(Model(net=net), Digits()).net


def accuracy(net: nn.Module) -> float:
    return evaluate(TorchSession(net, Digits()), Digits(), "test").score


def test_a_pruned_and_trained_network_keeps_its_score(digits_net):
    smaller, metrics = pruned(digits_net, Digits(), ratio=0.5, iterations=3, epochs=1)
    assert accuracy(digits_net) > 0.93
    assert accuracy(smaller) > accuracy(digits_net) - 0.03
    assert metrics["iterations"][-1]["macs"] < 0.5 * metrics["before"]["macs"]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_importance_beats_chance(digits_net, scope):
    def score(importance, seed=0):
        return accuracy(pruned(digits_net, Digits(), ratio=0.5, importance=importance, scope=scope, seed=seed)[0])

    chance = np.mean([score("random", seed) for seed in range(5)])
    for name in ("taylor", "l1", "l2"):
        assert score(name) > chance + 0.1, name


@given(net=networks(kinds=("plain", "norm", "depthwise", "pool")), use=st.sampled_from(["tflite", "onnxruntime"]))
@settings(examples, max_examples=6)
def test_int8_files_of_pruned_networks_repeat_the_simulation(net, use, tmp_path_factory):
    smaller, _ = pruned(net, ratio=0.4)
    assert_repeats(deployed(smaller, IMAGE, target_of(use), tmp_path_factory.mktemp("net")), exactly=True)


# Structure


def rebuilt(net: nn.Module, smaller: nn.Module, task) -> None:
    """Builds the smaller network from the full one, JSON and safetensors: it must answer the same to the bit."""
    described = json.loads(json.dumps(structure.describe(smaller)))
    fresh = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    again = structure.reshape(fresh, described)
    assert again is fresh
    again.load_state_dict(load(save(smaller.state_dict())), strict=True)
    assert torch.equal(outputs(again, task), outputs(smaller, task))
    assert structure.describe(again) == described
    assert str(again) == str(smaller)


@given(net=networks(), ratio=st.sampled_from([0.3, 0.6]), round_to=st.sampled_from([1, 8]))
@examples
def test_rebuilt_from_json_and_safetensors(net, ratio, round_to):
    rebuilt(net, pruned(net, ratio=ratio, round_to=round_to, iterations=2)[0], IMAGE)


def test_a_depth_multiplier_that_pruning_made_depthwise():
    net = settled(copy.deepcopy(MULTIPLIED), torch.randn(8, 8, 12, 12))
    smaller, _ = pruned(net, ratio=0.7, round_to=4, iterations=4, scope="local")
    assert smaller[1][0].groups == smaller[1][0].out_channels < 16
    rebuilt(net, smaller, IMAGE)


WIDE_AND_NARROW = {
    "linear": (nn.Linear(12, 8), nn.Linear(6, 4), (6,)),
    "no bias": (nn.Linear(12, 8, bias=False), nn.Linear(6, 4, bias=False), (6,)),
    "conv1d": (nn.Conv1d(4, 8, 3), nn.Conv1d(3, 5, 3), (3, 9)),
    "conv2d in groups": (nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 4, 3, groups=4), (8, 5, 5)),
    "conv3d": (nn.Conv3d(4, 8, 3), nn.Conv3d(3, 5, 3), (3, 5, 5, 5)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(5, 5, 3, groups=5), (5, 5, 5)),
    "depthwise of one": (nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(1, 1, 3), (1, 5, 5)),
    "transposed": (nn.ConvTranspose2d(8, 6, 3), nn.ConvTranspose2d(4, 2, 3), (4, 5, 5)),
    "transposed in groups": (
        nn.ConvTranspose2d(8, 4, 3, groups=2), nn.ConvTranspose2d(4, 2, 3, groups=2), (4, 5, 5),
    ),
    "transposed depthwise": (
        nn.ConvTranspose2d(8, 8, 3, groups=8), nn.ConvTranspose2d(4, 4, 3, groups=4), (4, 5, 5),
    ),
    "batch norm": (nn.BatchNorm2d(8), nn.BatchNorm2d(5), (5, 4, 4)),
    "batch norm without scale": (nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(5, affine=False), (5,)),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(5, affine=True), (5, 4, 4)),
    "group norm": (nn.GroupNorm(2, 8), nn.GroupNorm(2, 4), (4, 3, 3)),
    "layer norm": (nn.LayerNorm(8), nn.LayerNorm(5), (5,)),
    "layer norm without scale": (
        nn.LayerNorm(8, elementwise_affine=False), nn.LayerNorm(5, elementwise_affine=False), (5,),
    ),
    "embedding": (nn.Embedding(10, 8), nn.Embedding(10, 5), None),
    "prelu": (nn.PReLU(8), nn.PReLU(5), (5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE_AND_NARROW)
def test_every_kind_of_layer_takes_another_width(name):
    wide, narrow, shape = WIDE_AND_NARROW[name]
    net = structure.reshape(nn.Sequential(copy.deepcopy(wide)), structure.describe(nn.Sequential(narrow)))
    net.load_state_dict(nn.Sequential(narrow).state_dict(), strict=True)
    x = torch.randint(0, 10, (4, 3)) if shape is None else torch.randn(4, *shape)
    assert torch.equal(net.eval()(x), nn.Sequential(narrow).eval()(x))
    assert str(net[0]) == str(narrow)


def test_what_is_not_known_stays_as_it_is_or_is_an_error():
    class Scaled(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(width))

    same = nn.ModuleDict(
        {"rnn": nn.LSTM(4, 8, proj_size=2), "own": Scaled(3), "slope": nn.PReLU(), "norm": nn.LayerNorm((4, 5))}
    )
    described = structure.describe(same)
    assert described["own"] == {"kind": "Scaled", "shapes": {"scale": [3]}}
    structure.reshape(same, described)
    for path, other in {
        "rnn": nn.LSTM(4, 6, proj_size=2),
        "own": Scaled(2),
        "slope": nn.PReLU(2),
        "norm": nn.LayerNorm((4, 4)),
    }.items():
        wanted = structure.describe(nn.ModuleDict({**same, path: other}))
        with pytest.raises(UsageError, match=f"layer {path} is .*cannot become"):
            structure.reshape(copy.deepcopy(same), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0": None}, "layer 0 is not in it"),
        ({"7": {"kind": "Linear", "in_features": 1, "out_features": 1}}, "layer 7 is not in the network"),
        ({"0": {"kind": "Conv2d", "in_channels": 8, "out_channels": 8, "groups": 1}}, "layer 0 is .*cannot become"),
        ({"2": {"kind": "Conv2d", "in_channels": 7, "out_channels": 8, "groups": 2}}, "layer 2 is .*cannot become"),
        *(
            ({"0": {"kind": "Linear", "in_features": 8, "out_features": value}}, "layer 0 is .*cannot become")
            for value in (0, -8, 1.5, "8", True, None)
        ),
    ],
)
def test_a_structure_of_something_else_is_an_error_that_names_the_layer(change, message):
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2))
    wanted = structure.describe(net) | change
    with pytest.raises(UsageError, match=message):
        structure.reshape(net, {path: layer for path, layer in wanted.items() if layer is not None})


# Wrong use


@pytest.mark.parametrize(
    "fields",
    [{}, {"ratio": 0.5, "macs": 0.5}, {"ratio": 0.0}, {"ratio": 1.0}, {"macs": 1.5}, {"ratio": 0.5, "round_to": 0},
     {"ratio": 0.5, "iterations": 0}, {"ratio": 0.5, "epochs": -1}, {"ratio": 0.5, "importance": "l3"},
     {"ratio": 0.5, "scope": "all"}, {"ratio": 0.5, "widths": 3}],
)  # fmt: skip
def test_fields_are_checked(fields):
    with pytest.raises(ValidationError):
        Prune(**fields)


def refusal(net: nn.Module, task=IMAGE, **fields) -> str:
    with pytest.raises(UsageError) as caught:
        pruned(net.eval(), task, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals_say_what_and_where():
    small = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), *pooled(8))
    assert "round_to = 8 is too coarse: nothing is removed from widths [8]" in refusal(small, ratio=0.5)
    assert "macs = 0.01 cannot be reached, the least is 0.1" in refusal(small, macs=0.01, round_to=1)
    assert "0: the network's outputs depend on its width" in refusal(nn.Sequential(nn.Conv2d(8, 8, 3)), ratio=0.5)
    assert "0: no batch norm to score it by" in refusal(small, ratio=0.5, importance="bn")
    detached = nn.Sequential(nn.Conv2d(8, 16, 3), Apply(torch.Tensor.detach))
    assert "0: torch-pruning does not find it on the way to the outputs" in refusal(detached, ratio=0.5)
    silent = nn.Sequential(nn.Conv2d(8, 16, 3), Apply(lambda x: None))
    assert "torch-pruning cannot follow Sequential: TypeError" in refusal(silent, ratio=0.5)


def test_a_quantized_network_is_not_pruned():
    net = nn.Sequential(nn.Conv2d(8, 16, 3), *pooled(16)).eval()
    with pytest.raises(UsageError, match="before quantize"):
        Prune(ratio=0.5).apply(Model(net=net, quantization=Quantization(net, IMAGE, "min-max")), IMAGE)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(plugins, "installed", lambda module: module != "torch_pruning")
    with pytest.raises(MissingPackage, match=r"torch-pruning.*pip install 'edgedl\[train\]'"):
        Prune(ratio=0.5).apply(Model(net=nn.Sequential(nn.Conv2d(8, 16, 3))), IMAGE)


def test_reading_the_step_loads_no_framework():
    code = "import sys, edgedl.steps.prune; print({'torch', 'torch_pruning'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_channels_that_a_norm_takes_each_by_itself_do_not_stop_the_others():
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.GroupNorm(8, 8), nn.Conv2d(8, 4, 1)).eval()
    blocks, _ = prunable(net, (torch.randn(2, 3, 6, 6),))
    assert [(block.name, block.width, block.num_channels) for block in blocks] == [("0", 16, 16), ("1", 8, 1)]
