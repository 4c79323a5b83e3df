"""Pruning what torch-pruning cannot: hidden units, embeddings, heads. Cutting them has to equal silencing them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from edgedl.core import Batch, Model, Split, TensorSpec
from edgedl.pruning import prunable, structure
from edgedl.pruning.sequence_layers import MultiheadAttention
from edgedl.steps.prune import Prune, macs, sample
from edgedl.training import loop
from tests.toys import Noise

VOCABULARY = 11
STEPS = 6

examples = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Words(Noise):
    """Sequences of token numbers."""

    use: str = "words"
    shape: tuple[int, ...] = (STEPS,)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"tokens": TensorSpec(self.shape, "int64")}

    def arrays(self, split: Split) -> Batch:
        rng = np.random.default_rng(len(split))
        return {"tokens": rng.integers(0, VOCABULARY, (self.num_samples, *self.shape))}


FLOATS, TOKENS = Noise(shape=(STEPS, 8)), Words()


class Recurrent(nn.Module):
    """Embedding or floats in; one or two recurrent layers; what is read of them goes through a hidden layer."""

    def __init__(self, kind, hidden, layers, bidirectional, bias, tokens, reads, sequences_first=False):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 8) if tokens else nn.Identity()
        self.rnn = kind(8, hidden, layers, bias=bias, batch_first=not sequences_first, bidirectional=bidirectional)
        self.reads, self.sequences_first = reads, sequences_first
        width = hidden * (2 if bidirectional and reads != "state" else 1)
        self.head = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        y, state = self.rnn(x.transpose(0, 1) if self.sequences_first else x)
        state = state[0] if isinstance(state, tuple) else state
        y = y.transpose(0, 1) if self.sequences_first else y
        if self.reads == "state":
            return self.head(state[-1])
        if self.reads == "both states":
            return self.head(torch.cat([state[-2], state[-1]], dim=1) if self.rnn.bidirectional else state[-1])
        return self.head(y[:, -1] if self.reads == "last" else y.mean(dim=1))


class Encoded(nn.Module):
    """An encoder whose last state another recurrent layer begins with."""

    def __init__(self, kind):
        super().__init__()
        self.encoder, self.decoder = kind(8, 12, batch_first=True), kind(8, 12, batch_first=True)
        self.out = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(x)
        return self.out(self.decoder(x.flip(1), state)[0])


class Heads(nn.Module):
    """Attention by hand, as many write it."""

    def __init__(self, width, num_heads, head_dim, fused=False):
        super().__init__()
        self.num_heads, self.head_dim, self.inner_dim = num_heads, head_dim, num_heads * head_dim
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, 3 * self.inner_dim)
        else:
            self.query, self.key, self.value = (nn.Linear(width, self.inner_dim) for _ in range(3))
        self.out = nn.Linear(self.inner_dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, steps, _ = x.shape
        if self.fused:
            query, key, value = (
                self.qkv(x).view(size, steps, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            )
        else:
            query, key, value = (
                layer(x).view(size, steps, self.num_heads, self.head_dim).transpose(1, 2)
                for layer in (self.query, self.key, self.value)
            )
        weights = (query @ key.transpose(2, 3) / self.head_dim**0.5).softmax(dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(size, steps, self.inner_dim))


class Transformer(nn.Module):
    """Tokens, places, layers of one kind of attention, and a mean over time."""

    def __init__(self, kind, width=24, num_heads=4, layers=1, norm_first=False):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(STEPS, width)
        if kind == "pytorch":
            layer = nn.TransformerEncoderLayer(
                width, num_heads, 2 * width, 0.0, batch_first=True, norm_first=norm_first
            )
            self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        else:
            self.layers = nn.Sequential(*(Layer(width, num_heads, kind) for _ in range(layers)))
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.layers(x).mean(dim=1))


class Layer(nn.Module):
    """A pre-norm layer around attention by hand, or PyTorch's."""

    def __init__(self, width, num_heads, kind):
        super().__init__()
        self.kind = kind
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if kind == "module":
            self.attention = nn.MultiheadAttention(width, num_heads, bias=False)
        else:
            self.attention = Heads(width, num_heads, width // num_heads, fused=kind == "fused")
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        if self.kind == "module":
            normed = normed.transpose(0, 1)
            x = x + self.attention(normed, normed, normed)[0].transpose(0, 1)
        else:
            x = x + self.attention(normed)
        return x + self.hidden(self.norm2(x))


@st.composite
def recurrent(draw) -> tuple[nn.Module, Noise]:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    tokens = draw(st.booleans())
    reads = draw(st.sampled_from(["state", "both states", "last", "mean"]))
    kind, hidden = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN])), draw(st.sampled_from([8, 12, 16]))
    layers, bidirectional = draw(st.sampled_from([1, 1, 2])), draw(st.booleans())
    bias, first = draw(st.booleans()), draw(st.booleans())
    net = Recurrent(kind, hidden, layers, bidirectional, bias, tokens, reads, first)
    return net.eval(), TOKENS if tokens else FLOATS


@st.composite
def transformers(draw) -> tuple[nn.Module, Noise]:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    kind, num_heads = draw(st.sampled_from(["pytorch", "hand", "fused", "module"])), draw(st.sampled_from([2, 3, 4]))
    layers, first = draw(st.sampled_from([1, 2])), draw(st.booleans())
    return Transformer(kind, 24, num_heads, layers, first).eval(), TOKENS


def pruned(net: nn.Module, task, **fields) -> tuple[nn.Module, dict]:
    loop.seed(0)
    model = Prune(**({"iterations": 1, "epochs": 0, "round_to": 1} | fields)).apply(Model(net=net), task)
    return model.net, json.loads(json.dumps(model.lineage[-1].metrics))


def outputs(net: nn.Module, task) -> torch.Tensor:
    with torch.no_grad():
        return net(*(torch.from_numpy(task.arrays("test")[name]).clone() for name in task.inputs))


def rebuilt(net: nn.Module, smaller: nn.Module, task) -> None:
    """Builds the smaller network from the full one, JSON and safetensors: it must answer the same to the bit."""
    described = json.loads(json.dumps(structure.describe(smaller)))
    fresh = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    again = structure.reshape(fresh, described)
    again.load_state_dict(load(save(smaller.state_dict())), strict=True)
    assert torch.equal(outputs(again, task), outputs(smaller, task))
    assert structure.describe(again) == described
    assert str(again) == str(smaller)


def cut_equals_silenced(net: nn.Module, task, share: float, rng: np.random.Generator) -> nn.Module:
    """Cuts a random share of every block that norms don't count; the network with them silenced answers the same."""
    blocks, _ = prunable.prunable(net, sample(task))
    blocks = [block for block in blocks if not any(part.attribute == "normalized_shape" for part in block.slices)]
    assert blocks
    pieces = []
    for block in blocks:
        block = block.in_order([rng.permutation(block.num_channels) for _ in block.lanes])
        gone = min(block.num_channels - 1, max(1, round(share * block.num_channels)))
        pieces.append(prunable.Piece(block, range(gone), 0, 0))
    silent, smaller = copy.deepcopy(net), prunable.without(net, pieces)
    prunable.silence(silent, pieces)
    assert (outputs(net, task) - outputs(silent, task)).abs().max() > 1e-3
    torch.testing.assert_close(outputs(smaller, task), outputs(silent, task), rtol=1e-4, atol=1e-5)
    assert sum(map(torch.numel, smaller.parameters())) < sum(map(torch.numel, net.parameters()))
    return smaller


@given(case=recurrent(), share=st.sampled_from([0.25, 0.5, 0.75]), seed=st.integers(0, 99))
@settings(examples, max_examples=25)
def test_cutting_hidden_units_equals_silencing_them(case, share, seed):
    net, task = case
    smaller = cut_equals_silenced(net, task, share, np.random.default_rng(seed))
    assert smaller.rnn.hidden_size < net.rnn.hidden_size
    if isinstance(net.tokens, nn.Embedding):
        assert smaller.rnn.input_size == smaller.tokens.embedding_dim < 8
    rebuilt(net, smaller, task)


@given(case=transformers(), share=st.sampled_from([0.3, 0.6]), seed=st.integers(0, 99))
@examples
def test_cutting_heads_and_hidden_layers_equals_silencing_them(case, share, seed):
    net, task = case
    smaller = cut_equals_silenced(net, task, share, np.random.default_rng(seed))
    for layer, full in zip(smaller.modules(), net.modules(), strict=True):
        if hasattr(full, "num_heads"):
            assert 1 <= layer.num_heads < full.num_heads
    rebuilt(net, smaller, task)


@given(case=st.one_of(recurrent(), transformers()), importance=st.sampled_from(["taylor", "l1", "l2", "random"]),
       scope=st.sampled_from(["local", "global"]))  # fmt: skip
@examples
def test_the_step_prunes_them_by_every_importance(case, importance, scope):
    net, task = case
    smaller, metrics = pruned(net, task, ratio=0.5, importance=importance, scope=scope, iterations=2)
    assert outputs(smaller, task).shape == outputs(net, task).shape
    assert metrics["iterations"][-1]["macs"] < metrics["before"]["macs"]
    rebuilt(net, smaller, task)


class GPT2(nn.Module):
    """As the transformers library has it: its dense layers are of a kind of their own."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        self.body = GPT2Model(
            GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=STEPS, use_cache=False)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(tokens).last_hidden_state.mean(1))


def test_gpt2_loses_hidden_channels_and_is_rebuilt():
    torch.manual_seed(0)
    net = GPT2().eval()
    for parameter in net.body.h.parameters():  # trained ones are not as small as those it begins with
        nn.init.normal_(parameter, std=0.2)
    smaller = cut_equals_silenced(net, TOKENS, 0.5, np.random.default_rng(0))
    for layer, full in zip(smaller.body.h, net.body.h, strict=True):
        assert layer.mlp.c_fc.nf == layer.mlp.c_proj.nx < full.mlp.c_fc.nf
    rebuilt(net, smaller, TOKENS)
    smaller, metrics = pruned(net, TOKENS, ratio=0.5)
    assert metrics["iterations"][-1]["widths"]["body.h.0.mlp.c_fc"] == smaller.body.h[0].mlp.c_fc.nf < 64


def test_each_direction_and_layer_loses_its_own_units():
    torch.manual_seed(0)
    net = Recurrent(nn.LSTM, 8, 2, True, True, False, "mean").eval()
    dead = {"l0": [0, 1, 2, 3], "l0_reverse": [4, 5, 6, 7], "l1": [0, 2, 4, 6], "l1_reverse": [1, 3, 5, 7]}
    with torch.no_grad():
        for lane, units in dead.items():
            rows = [gate * 8 + unit for gate in range(4) for unit in units]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(net.rnn, f"{name}_{lane}")[rows] = 0
    for importance in ("l1", "l2", "taylor"):
        smaller, metrics = pruned(net, FLOATS, ratio=0.5, importance=importance, scope="local")
        assert metrics["iterations"][0]["widths"]["rnn"] == smaller.rnn.hidden_size == 4
        kept = [gate * 8 + unit for gate in range(4) for unit in (4, 5, 6, 7)]
        assert torch.equal(smaller.rnn.bias_hh_l0, net.rnn.bias_hh_l0[kept]), importance
        only = nn.Sequential(copy.deepcopy(net.rnn)), nn.Sequential(smaller.rnn)
        x = torch.from_numpy(FLOATS.arrays("test")["x0"]).clone()
        with torch.no_grad():
            full, left = (part(x)[0] for part in only)
        alive = [1, 3, 5, 7, 8, 10, 12, 14]
        torch.testing.assert_close(left, full[..., alive], rtol=1e-5, atol=1e-6)


def test_a_state_that_is_handed_on_ties_two_layers():
    torch.manual_seed(0)
    for kind in (nn.LSTM, nn.GRU):
        net = Encoded(kind).eval()
        blocks, _ = prunable.prunable(net, sample(FLOATS))
        assert [len(block.lanes) for block in blocks] == [1]
        smaller = cut_equals_silenced(net, FLOATS, 0.5, np.random.default_rng(0))
        assert smaller.encoder.hidden_size == smaller.decoder.hidden_size == 6
        rebuilt(net, smaller, FLOATS)


def test_units_that_go_to_the_outputs_keep_every_layer_whole():
    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.rnn = nn.Linear(8, 16), nn.GRU(16, 8, 2, batch_first=True)

        def forward(self, x):
            return self.rnn(torch.relu(self.hidden(x)))[0]

    blocks, whole = prunable.prunable(Open().eval(), sample(FLOATS))
    assert [block.name for block in blocks] == ["hidden"]
    assert "rnn" in whole


def test_heads_whose_number_stands_in_the_code_stay():
    class Four(Heads):
        def forward(self, x):
            query, key, value = (
                layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            return self.out(mixed.transpose(1, 2).flatten(2))

    net = nn.Sequential(nn.Linear(8, 24), Four(24, 4, 6), nn.Linear(24, 5)).eval()
    blocks, whole = prunable.prunable(net, sample(FLOATS))
    assert {block.name for block in blocks} == {"0", "1.out"}
    assert "1.query" in whole


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("masks", ["none", "causal", "padding", "both", "heads"])
def test_attention_with_fewer_heads_is_pytorchs_attention(first, masks):
    torch.manual_seed(0)
    full = nn.MultiheadAttention(24, 4, batch_first=first).eval()
    ours = copy.deepcopy(full)
    structure.reshape(nn.ModuleDict({"it": ours}), {
        "it": {"kind": "MultiheadAttention", "embed_dim": 24, "num_heads": 3, "head_dim": 6},
        "it.out_proj": {"kind": "NonDynamicallyQuantizableLinear", "out_features": 24, "in_features": 18},
    })  # fmt: skip
    assert type(ours) is MultiheadAttention
    rows = [part * 24 + row for part in range(3) for row in range(6, 24)]
    with torch.no_grad():
        ours.in_proj_weight.copy_(full.in_proj_weight[rows])
        ours.in_proj_bias.copy_(full.in_proj_bias[rows])
        ours.out_proj.weight.copy_(full.out_proj.weight[:, 6:])
        ours.out_proj.bias.copy_(full.out_proj.bias)
        full.out_proj.weight[:, :6] = 0
    query, key = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    given = {
        "causal": {"attn_mask": torch.ones(5, 5).triu(1).bool()},
        "padding": {"key_padding_mask": torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()},
        "both": {"attn_mask": torch.randn(5, 5), "key_padding_mask": torch.tensor([[0.0] * 4 + [-1e9]] * 2)},
        "none": {},
        "heads": {"attn_mask": torch.randn(2 * 3, 5, 5)},
    }[masks]
    theirs = given
    if masks == "heads":
        theirs = {
            "attn_mask": torch.cat([torch.zeros(2, 1, 5, 5), given["attn_mask"].unflatten(0, (2, 3))], 1).flatten(0, 1)
        }
    if not first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    for need in (True, False):
        with torch.no_grad():
            one, seen = ours(query, key, key, need_weights=need, average_attn_weights=False, **given)
            other, expected = full(query, key, key, need_weights=need, average_attn_weights=False, **theirs)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert (seen is None) == (not need)
        if need:
            torch.testing.assert_close(seen, expected[:, 1:], rtol=1e-5, atol=1e-6)
    if masks == "none":
        lone = ours(query[:, 0], key[:, 0], key[:, 0])[0]
        torch.testing.assert_close(lone, full(query[:, 0], key[:, 0], key[:, 0])[0], rtol=1e-5, atol=1e-6)


def test_macs_of_sequences_are_counted():
    lstm = nn.Sequential(nn.LSTM(8, 16, batch_first=True))
    assert macs(lstm, sample(FLOATS)) == STEPS * 4 * 16 * (8 + 16)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).eval()
    assert macs(layer, sample(FLOATS)) == STEPS * (4 * 8 * 8 + 2 * 8 * 16) + 2 * STEPS * STEPS * 8
