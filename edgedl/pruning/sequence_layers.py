"""Recurrent layers, attention, GPT-2's dense layers: their widths, and what plain layers stand in for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

NUM_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}

NUM_HEADS = ("num_heads", "n_heads", "n_head", "heads", "num_attention_heads")
"""What attention written by hand calls the number of its heads."""
HEAD_WIDTH = ("head_dim", "head_size", "dim_head", "attention_head_size")
INNER_WIDTH = ("inner_dim", "attn_dim", "all_head_size")

Origins = dict[tuple[str, str], tuple[tuple[str, np.ndarray], ...]]
"""(layer in a stand-in, its width) -> for each width of the real layer that it stands for, the places, (width, n)."""


def is_recurrent(module: Any) -> bool:
    """Whether its hidden units can be pruned: those of a projected LSTM cannot."""
    return type(module) in (nn.LSTM, nn.GRU, nn.RNN) and module.proj_size == 0


def is_attention(module: Any) -> bool:
    """Whether its heads can be pruned: queries, keys and values in one matrix, and nothing appended to them."""
    known = type(module) is MultiheadAttention or (type(module) is nn.MultiheadAttention and module._qkv_same_embed_dim)
    return known and module.bias_k is None and not module.add_zero_attn


def counts_heads(module: Any) -> str:
    """The attribute in which attention written by hand keeps the number of its heads; "" for any other module."""
    if module._parameters or module._buffers or not any(isinstance(child, nn.Linear) for child in module.children()):
        return ""
    return next((name for name in NUM_HEADS if type(getattr(module, name, None)) is int), "")


def heads_in(module: Any, inner: int) -> int:
    """How many heads attention written by hand has if they are `inner` wide together; 0 if it doesn't say."""
    if name := counts_heads(module):
        heads = getattr(module, name)
    else:
        widths = [value for key in HEAD_WIDTH if type(value := getattr(module, key, None)) is int and value > 0]
        heads = inner // widths[0] if widths and inner % widths[0] == 0 else 0
    return heads if heads > 0 and inner % heads == 0 else 0


def axes(module: Any) -> dict[str, dict[str, int]]:
    """Widths that pruning can change, each with the tensors and dimensions that it sets; empty for other modules.

    A recurrent layer has units, and what it takes, for each of its lanes: a layer in one direction.
    """
    if is_recurrent(module):
        found = {}
        for lane in lanes(module):
            rows = (f"weight_ih_{lane}", f"weight_hh_{lane}", f"bias_ih_{lane}", f"bias_hh_{lane}")
            found[f"hidden_{lane}"] = {name: 0 for name in rows if name in module._parameters}
            found[f"recurrent_{lane}"] = {f"weight_hh_{lane}": 1}
            found[f"input_{lane}"] = {f"weight_ih_{lane}": 1}
        return found
    if is_attention(module):
        return {"heads": {"in_proj_weight": 0, "in_proj_bias": 0}, "embed_dim": {"in_proj_weight": 1}}
    return {"heads": {}} if counts_heads(module) else {}


def sizes(module: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """What a structure says of such a module if its tensors are those given; empty for other modules."""
    if is_recurrent(module):
        return {"input_size": tensors["weight_ih_l0"].shape[1], "hidden_size": tensors["weight_hh_l0"].shape[1]}
    if is_attention(module):
        rows, embed_dim = tensors["in_proj_weight"].shape
        return {"embed_dim": embed_dim, "num_heads": rows // (3 * module.head_dim), "head_dim": module.head_dim}
    name = counts_heads(module)
    return {name: getattr(module, name)} if name else {}


def resize(module: Any, wanted: Mapping[str, Any]) -> None:
    """Gives such a module other widths, in place, with zeros for weights."""
    if is_recurrent(module):
        hidden, gates = wanted["hidden_size"], NUM_GATES[module.mode]
        width = hidden * (2 if module.bidirectional else 1)
        for name in list(module._parameters):
            taken = wanted["input_size"] if name.startswith("weight_ih_l0") else width
            columns = hidden if "_hh_" in name else taken
            _zeros(module, name, (gates * hidden, columns) if name.startswith("weight") else (gates * hidden,))
        module.input_size, module.hidden_size = wanted["input_size"], hidden
    elif is_attention(module):
        if wanted["head_dim"] != module.head_dim:
            return
        inner = 3 * wanted["num_heads"] * wanted["head_dim"]
        _zeros(module, "in_proj_weight", (inner, wanted["embed_dim"]))
        if module.in_proj_bias is not None:
            _zeros(module, "in_proj_bias", (inner,))
        module.__class__ = MultiheadAttention
        module._qkv_same_embed_dim = False  # keeps PyTorch's fast path away, which counts heads in its own way
        module.embed_dim = module.kdim = module.vdim = wanted["embed_dim"]
        module.num_heads = wanted["num_heads"]
    else:
        name = counts_heads(module)
        for other in INNER_WIDTH:
            if (value := getattr(module, other, None)) is not None:
                setattr(module, other, value // getattr(module, name) * wanted[name])
        setattr(module, name, wanted[name])


def _zeros(module: Any, name: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(old.detach().new_zeros(shape), old.requires_grad))


def lanes(module: Any) -> list[str]:
    """Each layer in each direction, as PyTorch's parameters spell it: l0, l0_reverse, l1 ..."""
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [f"l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]


def stand_in(module: Any) -> tuple[nn.Module, Origins] | None:
    """Plain layers with the same dependencies among channels, and what each of them stands for; None if not needed."""
    if is_recurrent(module):
        hidden, gates = module.hidden_size, NUM_GATES[module.mode]
        origins: Origins = {}
        for lane in lanes(module):
            taken = getattr(module, f"weight_ih_{lane}").shape[1]
            rows = np.arange(gates * hidden).reshape(gates, hidden).T
            origins[lane, "out_features"] = (
                (f"hidden_{lane}", rows), (f"recurrent_{lane}", np.arange(hidden)[:, None]),
            )  # fmt: skip
            origins[lane, "in_features"] = ((f"input_{lane}", np.arange(taken)[:, None]),)
        return _Recurrent(module), origins
    if is_attention(module):
        inner = module.num_heads * module.head_dim
        return _Attention(module), {
            ("enter", "out_features"): (("heads", np.arange(3 * inner).reshape(3, inner).T),),
            ("enter", "in_features"): (("embed_dim", np.arange(module.embed_dim)[:, None]),),
        }
    if type(module).__name__ == "Conv1D" and module._parameters.keys() == {"weight", "bias"}:
        return nn.Linear(module.nx, module.nf), {
            ("", "out_features"): (("nf", np.arange(module.nf)[:, None]),),
            ("", "in_features"): (("nx", np.arange(module.nx)[:, None]),),
        }
    return None


class _Recurrent(nn.Module):
    """A linear layer for each lane; whatever its state begins with is coupled to its units."""

    def __init__(self, real: Any) -> None:
        super().__init__()
        for name in real.__constants__:  # a network may ask its layer for them
            setattr(self, name, getattr(real, name))
        self.names, self.num_directions = lanes(real), 2 if real.bidirectional else 1
        self.is_lstm = isinstance(real, nn.LSTM)
        for lane in self.names:
            setattr(self, lane, nn.Linear(getattr(real, f"weight_ih_{lane}").shape[1], real.hidden_size))

    def forward(self, x: torch.Tensor, hx: Any = None) -> tuple[torch.Tensor, Any]:
        steps = 1 if self.batch_first and x.ndim == 3 else 0
        states = [] if hx is None else list(hx) if self.is_lstm else [hx]
        last = []
        for first in range(0, len(self.names), self.num_directions):
            found = []
            for index, lane in enumerate(self.names[first : first + self.num_directions], start=first):
                units = getattr(self, lane)(x)
                for state in states:
                    units = units + state[index].unsqueeze(steps)
                found.append(units)
                last.append(units.select(steps, -1))
            # torch-pruning follows a concatenation along dimension 1 alone.
            parts = [units.transpose(1, -1) for units in found]
            x = found[0] if len(found) == 1 else torch.cat(parts, dim=1).transpose(1, -1)
        state = last[0].unsqueeze(0) if len(last) == 1 else torch.stack(last)
        return x, (state, state) if self.is_lstm else state


class _Attention(nn.Module):
    """Two linear layers, around what is inside the heads. What it lacks tells PyTorch not to take its fast path."""

    batch_first, in_proj_bias, _qkv_same_embed_dim = False, None, False

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.steps = 1 if real.batch_first else 0
        self.embed_dim, self.num_heads, self.head_dim = real.embed_dim, real.num_heads, real.head_dim
        self.enter = nn.Linear(real.embed_dim, real.num_heads * real.head_dim)
        self.out_proj = nn.Linear(real.num_heads * real.head_dim, real.out_proj.out_features)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, None]:
        steps = self.steps if query.ndim == 3 else 0
        # One matrix takes all three, so that they hang together.
        taken = query + key.mean(dim=steps, keepdim=True) + value.mean(dim=steps, keepdim=True)
        return self.out_proj(self.enter(taken)), None


class MultiheadAttention(nn.MultiheadAttention):
    """PyTorch's, with as many heads as are left, of the width that they had; made by `resize`."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As PyTorch's."""
        batched = query.ndim == 3
        given = [query, key, value]
        if not batched:
            given = [values.unsqueeze(0) for values in given]
        elif not self.batch_first:
            given = [values.transpose(0, 1) for values in given]
        weights = self.in_proj_weight.chunk(3)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        queries, keys, values = (
            functional.linear(taken, weight, bias)
            .reshape(*taken.shape[:2], self.num_heads, self.head_dim)
            .transpose(1, 2)
            for taken, weight, bias in zip(given, weights, biases, strict=True)
        )
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, queries)
            mask = mask.view(-1, self.num_heads, *mask.shape[1:]) if mask.ndim == 3 else mask
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask if batched else key_padding_mask.unsqueeze(0), queries)
            padding = padding[:, None, None, :]
            mask = padding if mask is None else mask + padding
        dropout = self.dropout if self.training else 0.0
        seen = None
        if need_weights:
            logits = queries @ keys.transpose(2, 3) * self.head_dim**-0.5
            seen = functional.dropout((logits if mask is None else logits + mask).softmax(dim=-1), dropout)
            mixed = seen @ values
            seen = seen.mean(dim=1) if average_attn_weights else seen
            seen = seen if batched else seen[0]
        else:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        answer = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return answer[0], seen
        return answer if self.batch_first else answer.transpose(0, 1), seen


def _additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask that is added: of a boolean one, minus infinity where nothing is to be seen."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


class Alone(nn.Module):
    """A layer by itself with one output: images are in the order in which runtimes keep them, channels last."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.kind = layer, type(layer)  # an export may write the layer out as another

    def forward(self, x: torch.Tensor) -> Any:
        if issubclass(self.kind, nn.MultiheadAttention):
            x = x if self.layer.batch_first else x.transpose(0, 1)
            return self.layer(x, x, x, need_weights=False)[0]
        if issubclass(self.kind, nn.RNNBase):
            return self.layer(x if self.layer.batch_first else x.transpose(0, 1))[0]
        if issubclass(self.kind, nn.Linear):
            return self.layer(x)
        return self.layer(x.movedim(-1, 1)).movedim(1, -1)
