"""Factors that go into the weights beside them: the graph computes the same, and they are gone from it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgedl.quantize.folding import fold_batch_norms, fold_factors
from edgedl.quantize.simulate import export_graph
from tests.toys import Noise, Places


class Attention(nn.Module):
    """A norm before three dense layers, of which one has no bias, and attention over what they make."""

    def __init__(self, scaled: str = "query") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(8)
        nn.init.normal_(self.norm.weight, 1, 0.3)
        nn.init.normal_(self.norm.bias)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.scaled = scaled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        query, key, value = (
            layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return attended + 0.5 * query if self.scaled == "nothing" else attended


def folded(net: nn.Module, shape: tuple[int, ...]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """The operators that are left, what the graph computes, and what the network does."""
    task = Noise(shape=shape)
    x = torch.from_numpy(task.arrays("test")["x0"])
    graph = export_graph(net.eval(), task)
    fold_batch_norms(graph)
    fold_factors(graph)
    with torch.no_grad():
        return [str(node.target) for node in graph.graph.nodes], graph(x), net(x)


def test_norms_and_scales_of_attention_go_into_the_layers_beside_them():
    net = Attention()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    operators, found, wanted = folded(net, (5, 8))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert "aten.mul.Tensor" not in operators
    assert not any(name.startswith("norm") for name in operators)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_batch_norm_over_places_goes_into_the_dense_layer():
    net = Places()
    with torch.no_grad():
        net.train()(torch.randn(64, 5, 8))
    operators, found, wanted = folded(net, (5, 8))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not {"aten.mul.Tensor", "aten.add.Tensor"} & set(operators)


def test_a_query_that_something_else_needs_is_scaled_by_itself():
    operators, found, wanted = folded(Attention("nothing"), (5, 8))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert operators.count("aten.mul.Tensor") == 2


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)),
        nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 4)),
        nn.Sequential(nn.LayerNorm((5, 8)), nn.Linear(8, 4)),
        nn.Sequential(nn.LayerNorm(8, bias=False), nn.Linear(8, 4, bias=False)),
        nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 4)),
        nn.Sequential(nn.RMSNorm(8, elementwise_affine=False), nn.Linear(8, 4)),
    ],
    ids=["no dense layer behind", "nothing to fold", "two dimensions", "no offsets", "roots", "only roots"],
)
def test_other_norms_compute_the_same(net):
    for value in net.parameters():
        nn.init.normal_(value)
    _, found, wanted = folded(net, (5, 8))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_number_does_not_pass_by_what_is_padded_beside_it():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3.0 * nn.functional.pad(self.layer(x), (1, 1), value=1.0)

    operators, found, wanted = folded(Padded(), (5, 8))
    torch.testing.assert_close(found, wanted)
    assert "aten.mul.Tensor" in operators
