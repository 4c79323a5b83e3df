"""The variational autoencoder: an image to the mean and spread of a code, and a code drawn from these to an image."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

from pydantic import PositiveInt

from edgedl.core import Network, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn


class Noisy(Protocol):
    """What is asked of a task: an image (C, H, W), and as many numbers of noise (Z,) as the code is to have."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...


class VAE(Network):
    """Dense layers: `hidden` units with ReLU on either side of the code, which is mean + softplus(spread) · noise.

    Source: D. Kingma and M. Welling, Auto-Encoding Variational Bayes, 2014; the softplus is here for their exponential,
    which int8 would have too few steps for.
    """

    use: str = "vae"
    hidden: PositiveInt = 256

    def build(self, task: Noisy) -> nn.Module:
        """A module (N, C, H, W), (N, Z) float32 -> image (N, C, H, W) in [0, 1], mean (N, Z), spread (N, Z)."""
        image, noise = (spec.shape for spec in task.inputs.values())
        return _vae()(image, noise[0], self.hidden)


@cache
def _vae() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    from math import prod

    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, shape: tuple[int, ...], size: int, hidden: int) -> None:
            super().__init__()
            self.encode1, self.encode2 = nn.Linear(prod(shape), hidden), nn.Linear(hidden, hidden)
            self.mean, self.spread = nn.Linear(hidden, size), nn.Linear(hidden, size)
            self.decode1, self.decode2 = nn.Linear(size, hidden), nn.Linear(hidden, hidden)
            self.draw = nn.Linear(hidden, prod(shape))
            self.relu, self.softplus, self.sigmoid = nn.ReLU(), nn.Softplus(), nn.Sigmoid()
            self.unflatten = nn.Unflatten(1, shape)

        def forward(self, image: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            seen = self.relu(self.encode2(self.relu(self.encode1(image.flatten(1)))))
            mean, spread = self.mean(seen), self.spread(seen)
            if self.training:  # else it would learn by heart which noise belongs to which image
                noise = torch.randn_like(noise)
            code = mean + self.softplus(spread) * noise
            drawn = self.draw(self.relu(self.decode2(self.relu(self.decode1(code)))))
            return self.unflatten(self.sigmoid(drawn)), mean, spread

    return Net
