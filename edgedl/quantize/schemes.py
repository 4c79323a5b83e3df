"""Quantization schemes: what grid a runtime's int8 kernels compute on. A target names its scheme."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The int8 grid of activations and weights.

    Weights are symmetric int8 in [-127, 127] with one scale an output channel, biases lie on the
    int32 grid of input scale x weight scale (stored as float32), in every scheme; activations are
    int8 with one scale a tensor and, in an asymmetric scheme, a zero point.
    """

    name: str
    """Of the static grid: runtimes that share it share one graph."""
    symmetric_activations: bool
    runtime: str = ""
    """Whose kernels are imitated where runtimes compute differently on the same grid."""

    activation_min: int = -128
    """Also on a symmetric grid, whose scale is that of 127: runtimes saturate at the type's lowest code."""
    activation_max: int = 127
    weight_min: int = -127
    weight_max: int = 127


AFFINE = Scheme(name="affine", symmetric_activations=False)
"""LiteRT and onnxruntime: asymmetric activations, one bit more precise after a ReLU."""

LITERT = replace(AFFINE, runtime="litert")
ONNXRUNTIME = replace(AFFINE, runtime="onnxruntime")

SYMMETRIC = Scheme(name="symmetric", symmetric_activations=True)
"""TensorRT: its parser refuses a zero point other than 0."""
