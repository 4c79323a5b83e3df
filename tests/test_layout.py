"""Networks that train with the channels of images last, and those that cannot."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgedl.training import layout, loop
from tests.toys import Noise

LAST = torch.channels_last


class Viewed(nn.Module):
    """Takes its memory for what it usually is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = nn.Conv2d(8, 4, 3), nn.Linear(256, 8)

    def forward(self, x):
        return self.dense(torch.relu(self.conv(x)).view(len(x), 256))


class Flattened(Viewed):
    """The same, with an operator for any memory, and a random one."""

    def forward(self, x):
        return self.dense(torch.dropout(torch.relu(self.conv(x)).flatten(1), 0.5, self.training))


class ViewedInUse(Flattened):
    """Does so only when it does not train."""

    def forward(self, x):
        return super().forward(x) if self.training else Viewed.forward(self, x)


class Volume(nn.Module):
    """Weights of five dimensions beside those of four, which channels last does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(8, 4, 3), nn.Conv3d(4, 4, 1)

    def forward(self, x):
        return self.deep(self.flat(x)[:, :, None])


def trained(net, monkeypatch=None):
    if monkeypatch is not None:
        monkeypatch.setattr(layout, "fastest", lambda *given: torch.contiguous_format)
    loop.seed(0)
    options = {"batch_size": 16, "lr": 1e-2, "optimizer": "adam", "schedule": "cosine", "weight_decay": 0.0}
    return loop.fit(net, Noise(), Noise().loss, epochs=3, label="train", **options)


def answer(net, batch):
    return {"y": net(batch["x0"])}


def loss(outputs, batch):
    return outputs["y"].square().mean() + 0 * np.random.random()


def batch():
    return {"x0": torch.randn(4, 8, 10, 10)}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (Flattened, LAST),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), LAST),
        (lambda: nn.Sequential(nn.Conv2d(8, 4, 3), nn.ConvTranspose2d(4, 2, 2)), LAST),
        (Viewed, torch.contiguous_format),
        (ViewedInUse, torch.contiguous_format),
        (Volume, torch.contiguous_format),
        (lambda: nn.Linear(10, 2), torch.contiguous_format),
    ],
)
def test_the_layout_is_one_that_the_network_learns_with(made, expected):
    net = made()
    before = copy.deepcopy(net.state_dict())
    assert layout.fastest(net, batch(), answer, loss) == expected
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.is_contiguous()


def test_trying_draws_no_random_number():
    net, given = Flattened(), batch()
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)
    assert layout.fastest(net, given, answer, loss) == LAST
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


@pytest.mark.parametrize("made", [Flattened, Viewed, ViewedInUse, Volume])
def test_what_is_learned_is_the_same_in_either_but_for_the_order_of_sums(made, monkeypatch):
    torch.manual_seed(0)
    net = made().eval()
    ours, figures = trained(net)
    usual, expected = trained(net, monkeypatch)
    assert [entry["loss"] for entry in figures] == pytest.approx([entry["loss"] for entry in expected], rel=1e-4)
    for name, value in usual.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-2, atol=1e-3)
        assert ours.state_dict()[name].is_contiguous()


def test_an_error_that_has_nothing_to_do_with_it_is_raised_by_training():
    class Broken(Flattened):
        def forward(self, x):
            raise ZeroDivisionError("of its own")

    with pytest.raises(ZeroDivisionError, match="of its own"):
        trained(Broken())


def test_what_a_rule_knows_is_laid_as_its_weights():
    net, given = Flattened().to(memory_format=LAST), batch()
    rule = torch.optim.AdamW(net.parameters())
    loss(answer(net, given), given).backward()
    rule.step()
    kept = copy.deepcopy(rule.state_dict())
    for known in kept["state"].values():  # as a file has it
        known.update({name: value.contiguous() for name, value in known.items()})
    rule.load_state_dict(kept)
    assert not rule.state[net.conv.weight]["exp_avg"].is_contiguous(memory_format=LAST)
    layout.put_rule(rule)
    for weight, known in rule.state.items():
        assert known["exp_avg"].stride() == weight.stride()
        assert known["exp_avg_sq"].stride() == weight.stride()
        assert known["step"].shape == ()
