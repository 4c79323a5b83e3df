"""onnxruntime's LSTM with int8 weights, whose inputs and states are quantized at run time, as its kernel computes it.

The inputs of all steps share a scale, and each step's state has its own; in a file of batch size 1 that is one scale
for each sample. Products are exact, all else is float32 in the kernel's order: products of inputs, of states, biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class QuantizedWeight(NamedTuple):
    """Symmetric int8 `codes` (outputs, inputs) and a scale for each output."""

    codes: Tensor
    scales: Tensor


Weights: TypeAlias = tuple[QuantizedWeight, QuantizedWeight, Tensor]
"""One layer in one direction: for its inputs, for its states, and the sum of both biases."""


def dynamic_lstm(
    x: Tensor, initial: Sequence[Tensor], directions: Sequence[Weights], both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, N, C), initial outputs and memories (layers x directions, N, H) -> all outputs, and both states at the end.

    `directions` are those of one layer after another; with `both`, every other one goes backwards.
    """
    ends, found = [], []
    for index, weights in enumerate(directions):
        h, c = (state[index] for state in initial)
        outputs, end = _one_direction(x, h, c, weights, backwards=both and index % 2 == 1)
        ends.append(end)
        found.append(outputs)
        if len(found) == 1 + both:
            x, found = torch.cat(found, 2), []
    h, c = (torch.stack(states) for states in zip(*ends, strict=True))
    return x, h, c


def _one_direction(
    x: Tensor, h: Tensor, c: Tensor, weights: Weights, backwards: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    of_inputs, of_states, bias = weights
    projected = _product(x, of_inputs, (0, 2))
    outputs = []
    for inputs in projected.flip(0) if backwards else projected:
        i, f, g, o = (inputs + _product(h, of_states, (1,)) + bias).chunk(4, 1)
        c = c * torch.sigmoid(f) + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs[::-1] if backwards else outputs), (h, c)


def _product(values: Tensor, weight: QuantizedWeight, shared: tuple[int, ...]) -> Tensor:
    codes, unit = onnxruntime_codes(values, shared)
    return (codes @ weight.codes.double().T).float() * (unit * weight.scales)


def onnxruntime_codes(values: Tensor, shared: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The uint8 codes of DynamicQuantizeLinear, less their zero point, as float64, and the size of their unit."""
    low = values.amin(tuple(shared), keepdim=True).clamp(max=0)
    high = values.amax(tuple(shared), keepdim=True).clamp(min=0)
    scale = torch.where(low == high, torch.ones_like(low), (high - low) / 255)
    zero_point = torch.round((-low / scale).clamp(0, 255))
    codes = (torch.round(values / scale) + zero_point).clamp(0, 255) - zero_point
    return codes.double(), scale
