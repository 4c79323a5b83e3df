"""Weights that were set to zero: which they are, and keeping them zero while a network learns on.

What is zero is read from the weights themselves: nothing has to be stored beside them, and a weight that happens to
be exactly zero loses nothing by staying so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

AfterStep = Callable[[nn.Module, float], None]
"""`(network, epochs done)`, called after every step of the optimizer, without gradients."""


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    """What a network multiplies by, by parameter name: all of two dimensions and more that is no bias."""
    found = ((name, value.detach()) for name, value in net.named_parameters() if not name.endswith("bias"))
    return {name: value for name, value in found if value.ndim > 1}


def zeros(net: nn.Module) -> dict[str, torch.Tensor]:
    """Parameter name -> bool of its shape, true where the weight is zero; weights without any are left out."""
    found = {name: value == 0 for name, value in weights(net).items()}
    return {name: zero for name, zero in found.items() if zero.any()}


def num_zeros(net: nn.Module) -> int:
    """How many of all weights are zero."""
    return sum(int(zero.sum()) for zero in zeros(net).values())


def keep(zero: Mapping[str, torch.Tensor]) -> AfterStep:
    """Sets to zero again what `zeros` found of the network before, or of one with the same parameters."""

    def applied(net: nn.Module, epochs_done: float) -> None:
        for name, value in weights(net).items():
            if name in zero:
                value.masked_fill_(zero[name], 0)

    return applied


def num_lost(zero: Mapping[str, torch.Tensor], net: nn.Module) -> int:
    """How many of the weights that were zero no longer are, or are no longer there."""
    now, count = zeros(net), 0
    for name, before in zero.items():
        fits = name in now and now[name].shape == before.shape
        count += int((before & ~now[name]).sum() if fits else before.sum())
    return count
