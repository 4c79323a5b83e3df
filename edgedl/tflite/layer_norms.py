"""Layer norms in eight operators instead of the converter's twelve, which is what small ones spend their time on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """As `torch.nn.functional.layer_norm`: x (..., *normalized_shape) -> the same shape.

    No mean is reshaped, as both keep their dimensions.
    """
    dims = list(range(-len(normalized_shape), 0))
    centered = x - x.mean(dims, keepdim=True)
    made = centered * torch.rsqrt((centered * centered).mean(dims, keepdim=True) + eps)
    made = made if weight is None else made * weight
    return made if bias is None else made + bias


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {torch.ops.aten.layer_norm: layer_norm}
