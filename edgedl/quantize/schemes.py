"""Quantization schemes: what grid a runtime's kernels compute on, and how in each form. A target names its scheme."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgedl.tflite import wide_kernels

Form = Literal["int8", "int8 layers", "mixed", "int8 dynamic", "int8 weights", "int4 dynamic", "int4 weights", "fp16"]
"""The ways to store and compute a network in fewer bits, by the names that reports use.

`int8` is static: activations on grids from calibration. In `int8 layers` only layers with weights are, and what is
between them stays float; in `mixed`, some blocks stay float. In `dynamic` forms their grids are made at run time, in
`weights` forms they stay float: only weights are stored in fewer bits. In int4 forms, linear layers have 4-bit
weights and all others 8-bit ones. In `fp16` weights are half-precision numbers; a runtime that can computes so, too.
"""

Granularity = Literal["channel", "tensor"]

STATIC_FORMS: tuple[Form, ...] = ("int8", "int8 layers", "mixed")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The int8 grid of activations and weights.

    Weights are symmetric int8 in [-127, 127] with one scale an output channel or, with granularity
    "tensor", one for all of a dense layer; biases lie on the int32 grid of input scale x weight scale
    (stored as float32), in every scheme; activations are int8 with one scale a tensor and, in an
    asymmetric scheme, a zero point.
    """

    name: str
    """Of the static grid: runtimes that share it share one graph."""
    symmetric_activations: bool
    runtime: str = ""
    """Whose kernels are imitated where runtimes compute differently; "" for none in particular."""

    run_time_scales: Literal["row", "tensor"] | None = None
    """What shares a scale that is made at run time: a row of a dense layer's input and an image of a convolution's,
    or the whole tensor."""
    float_outputs: Literal["sums", "kernel", "none"] = "none"
    """How dense layers can give float numbers, so that a network that ends in one loses nothing to a grid: the int32
    sums of their int8 kernel, or only what a float kernel computes, on int8 weights; that is slower, so it is used
    for layers that are a small part of their network."""
    grouped: tuple[Form, ...] = ()
    """Forms in which 4-bit weights have a scale for each group of inputs; in others they have one for each output."""
    smallest_group: int = 16
    """The fewest inputs of a group that it has a fast kernel for."""
    half_group_scales: bool = False
    """Whether scales of groups are numbers that both bfloat16 and float16 hold."""
    whole_rows: bool = False
    """Whether layers whose inputs do not divide into groups may have 4-bit weights, with a scale for each output."""
    int8_transposed: Literal["fast", "slow", "none"] = "fast"
    """How good its int8 kernel for transposed convolutions is: that of ordinary ones does their work where there is
    none, and where it is slow and this takes no more products."""
    most_depthwise_taps: int | None = None
    """Of a depthwise kernel in int8; one with more computes in float, where it can be made of narrower ones."""
    whole_recurrent: tuple[Form, ...] = ()
    """Forms in which it has an operator for a whole LSTM or GRU layer, which is faster than cells written out."""
    computes_in_half: bool = False
    """Whether the form fp16 also computes in half precision, not only stores weights so."""

    granularity: Granularity = "channel"
    """What has a scale of its own of the weights of dense layers and embeddings; others have one an output channel."""
    activation_min: int = -128
    """Also on a symmetric grid, whose scale is that of 127: runtimes saturate at the type's lowest code."""
    activation_max: int = 127
    weight_min: int = -127
    weight_max: int = 127

    def with_weights(self, bits: int, granularity: Granularity) -> Scheme:
        """The same with weights of fewer bits, in int8 all the same, or with fewer scales."""
        limit = 2 ** (bits - 1) - 1
        return replace(self, weight_min=-limit, weight_max=limit, granularity=granularity)


AFFINE = Scheme(name="affine", symmetric_activations=False)
"""LiteRT and onnxruntime: asymmetric activations, one bit more precise after a ReLU."""

LITERT = replace(
    AFFINE,
    runtime="litert",
    run_time_scales="row",
    float_outputs="kernel",
    grouped=("int4 dynamic",),
    smallest_group=32,
    half_group_scales=True,
    whole_rows=True,
    int8_transposed="slow",
    most_depthwise_taps=wide_kernels.MOST_TAPS,
)
ONNXRUNTIME = replace(
    AFFINE,
    runtime="onnxruntime",
    run_time_scales="tensor",
    float_outputs="sums",
    grouped=("int4 dynamic", "int4 weights"),
    int8_transposed="none",
    whole_recurrent=("int8 dynamic", "int8 weights", "fp16"),
)

SYMMETRIC = Scheme(name="symmetric", symmetric_activations=True)
"""TensorRT: its parser refuses a zero point other than 0."""

TENSORRT = replace(SYMMETRIC, runtime="tensorrt", grouped=("int4 weights",), computes_in_half=True)
