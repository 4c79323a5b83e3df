"""Learned rounding: up or down is decided for all weights of a layer together, by what the layer then gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgedl.quantize.corrections import Layer

NUM_STEPS = 400
BATCH_SIZE = 32
LEARNING_RATE = 0.1
STRETCH = 0.1
"""How far the sigmoid is stretched beyond 0 and 1, so that it reaches both."""
UNFORCED = 0.2
"""Share of the steps before weights are urged to either side."""
URGENCY = 10.0
"""How much being undecided costs, in units of the error of rounding to nearest."""
SHARPNESS = (20.0, 2.0)
"""First and last exponent of what urges them: at first it only acts near the ends."""


def learned_rounding(layer: Layer) -> None:
    """Rounds each weight up or down so that the layer's outputs come nearest to the float ones.

    M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020, with the quantized inputs
    (asymmetric reconstruction). The rounding stays nearest if what was learned is no better.
    """
    scale = layer.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    floor = (layer.weight / scale).floor()
    rest = layer.weight / scale - floor
    before = (layer.outputs() - layer.wanted).square().mean()
    if before == 0:
        return
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        # Starts where the soft rounding is the weight itself.
        start = ((rest + STRETCH) / (1 + 2 * STRETCH)).clamp(1e-3, 1 - 1e-3).logit()
        learned = start.clone().requires_grad_()
        rule = torch.optim.Adam([learned], lr=LEARNING_RATE)
        for step in range(NUM_STEPS):
            rows = torch.randint(len(layer.inputs), (BATCH_SIZE,), generator=generator)
            up = (learned.sigmoid() * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
            weight = (floor + up).clamp(-layer.highest, layer.highest) * scale
            loss = (layer.compute(layer.inputs[rows], weight, layer.bias) - layer.wanted[rows]).square().mean() / before
            done = (step / NUM_STEPS - UNFORCED) / (1 - UNFORCED)
            if done > 0:
                exponent = SHARPNESS[0] + done * (SHARPNESS[1] - SHARPNESS[0])
                loss = loss + URGENCY * (1 - (2 * up - 1).abs().pow(exponent)).mean()
            rule.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            rule.step()
    given = layer.weight
    layer.weight = (floor + (learned.detach() > 0)).clamp(-layer.highest, layer.highest) * scale
    if (layer.outputs() - layer.wanted).square().mean() >= before:
        layer.weight = given
