"""What LiteRT's GPU delegate takes of each operator: a function a kind, which says why it does not take one.

The rules are those of LiteRT's sources, in words of their own: what the delegate checks of each operator
(tflite/tools/versioning/gpu_compatibility.cc, commit 007226f) and of the types of its tensors
(tflite/delegates/gpu/common/model_builder.cc, commit 34ec5ba).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

FLOATS = {"FLOAT32", "FLOAT16"}
TYPES = FLOATS | {"INT8", "UINT8"}
"""Of tensors that are computed; int8 ones are made float on the GPU, where they are allowed, as they are by default."""
MORE_INPUTS = {
    "CAST": {"BOOL", "INT32"}, "ONE_HOT": {"INT32"}, "SELECT": {"BOOL"}, "SELECT_V2": {"BOOL"},
    "LOGICAL_AND": {"BOOL"}, "GATHER": {"INT32"},
}  # fmt: skip
MORE_OUTPUTS = {"CAST": {"BOOL", "INT32"}} | {
    name: {"BOOL"} for name in ("LOGICAL_AND", "EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL")
}
MAX_RANK = 4
CASTS = ({"BOOL"}, FLOATS), (FLOATS, {"BOOL"}), ({"FLOAT32", "INT32"}, {"FLOAT32", "INT32"})


@dataclass(frozen=True)
class Operator:
    """What the rules ask of an operator."""

    kind: str
    name: str
    types: Sequence[str]
    """Of its inputs; "" for one that is left out."""
    shapes: Sequence[tuple[int, ...]]
    constant: Sequence[bool]
    out_types: Sequence[str]
    out_shapes: Sequence[tuple[int, ...]]
    options: Any

    @property
    def num_computed(self) -> int:
        return sum(bool(kind) and not constant for kind, constant in zip(self.types, self.constant, strict=True))

    def option(self, name: str, default: Any = 0) -> Any:
        """A setting of the file's; `default` where the operator has none."""
        return default if self.options is None else getattr(self.options, name, default)


def why_not(operator: Operator) -> str | None:
    """Why the delegate does not take an operator; None if it does."""
    rule = RULES.get(operator.kind)
    if rule is None:
        return "the delegate does not have it"
    if (reason := rule(operator)) is not None:
        return reason
    computed = [
        *(
            (kind, shape, MORE_INPUTS)
            for kind, shape, constant in zip(operator.types, operator.shapes, operator.constant, strict=True)
            if kind and not constant
        ),
        *((kind, shape, MORE_OUTPUTS) for kind, shape in zip(operator.out_types, operator.out_shapes, strict=True)),
    ]
    for kind, shape, more in computed:
        if kind not in TYPES | more.get(operator.kind, set()):
            return f"it does not take {kind.lower()} there"
        if len(shape) > MAX_RANK:
            return f"it takes up to {MAX_RANK} dimensions, not {len(shape)}"
    return None


Rule = Callable[[Operator], str | None]


def _any(operator: Operator) -> str | None:
    return None


def _computed(*numbers: int) -> Rule:
    """So many of its inputs have to be computed, and not be constants."""

    def rule(operator: Operator) -> str | None:
        wanted = " or ".join(map(str, numbers))
        return None if operator.num_computed in numbers else f"it takes {wanted} computed inputs there"

    return rule


def _convolution(operator: Operator) -> str | None:
    return None if operator.num_computed <= 2 else "it takes no computed bias"


def _depthwise(operator: Operator) -> str | None:
    multiplied = operator.shapes[0][-1] * operator.option("depthMultiplier", 1) if operator.shapes[0] else 0
    fits = len(operator.shapes[0]) == 4 and operator.out_shapes[0][-1] == multiplied
    return _convolution(operator) or (None if fits else "its channels are no multiple of the input's")


def _broadcast(operator: Operator) -> str | None:
    if len(operator.shapes) != 2:
        return "it takes two inputs"
    short, long = sorted(operator.shapes, key=len)
    if len(short) < 2 or len(short) == len(long):
        return None
    fits = len(long) == 4 and (
        (len(short) == 3 and long[0] == 1)
        or (len(short) == 2 and long[0] == 1 and short == (1, 1))
        or (len(short) == 2 and (long[0], long[3]) == short)
    )
    return None if fits else f"it does not combine {_sizes(short)} with {_sizes(long)}"


def _axes(operator: Operator) -> str | None:
    constant = len(operator.constant) > 1 and operator.constant[1] and operator.types[1] == "INT32"
    return _computed(1)(operator) or (None if constant else "it wants constant int32 axes")


def _cast(operator: Operator) -> str | None:
    types = operator.types[0], operator.out_types[0]
    if any(types[0] in source and types[1] in result for source, result in CASTS):
        return None
    return f"it makes no {types[1].lower()} of {types[0].lower()}"


def _dequantize(operator: Operator) -> str | None:
    return "it does not take int16 there" if operator.types[0] == "INT16" else None


def _dense(operator: Operator) -> str | None:
    if operator.option("weightsFormat"):
        return "its weights are stored in another order"
    if operator.option("keepNumDims", False) and len(operator.shapes[0]) != len(operator.out_shapes[0]):
        return "it does not keep dimensions there"
    return _convolution(operator)


def _embedding(operator: Operator) -> str | None:
    right = len(operator.shapes[0]) == 1 and operator.types[1] in ("INT8", "INT4", "FLOAT32")
    return None if right else "it takes a row of numbers, and int8, int4 or float32 rows"


def _gather(operator: Operator) -> str | None:
    right = len(operator.shapes[1]) == 1 and operator.types[1] == "INT32"
    return _computed(1, 2)(operator) or (None if right else "it takes a row of int32 numbers")


def _one_hot(operator: Operator) -> str | None:
    scalars = all(operator.constant[index] and prod(operator.shapes[index]) == 1 for index in (2, 3))
    flat = all(size == 1 for size in operator.shapes[0][:-1])
    return None if operator.types[0] == "INT32" and scalars and flat else "it takes int32 numbers and constant values"


def _padding(operator: Operator) -> str | None:
    shape = operator.shapes[1] if len(operator.shapes) > 1 else ()
    return _computed(1)(operator) or (None if shape in ((3, 2), (4, 2)) else "it pads 3 or 4 dimensions")


def _reflection(operator: Operator) -> str | None:
    return "it reflects only" if operator.option("mode") else _padding(operator)


def _select(operator: Operator) -> str | None:
    whole = operator.out_shapes[0]
    right = all(shape == whole or prod(shape) == 1 for shape in operator.shapes[1:3])
    flat = any(
        constant and len(shape) == 2
        for constant, shape in zip(operator.constant[1:3], operator.shapes[1:3], strict=True)
    )
    return None if right and not flat else "it takes values of the output's shape, or single ones"


def _slice(operator: Operator) -> str | None:
    masks = any(operator.option(name) for name in ("ellipsisMask", "newAxisMask", "shrinkAxisMask"))
    if masks:
        return "it neither adds nor drops dimensions"
    rank = len(operator.shapes[0])
    return None if rank in (3, 4) else f"it takes 3 or 4 dimensions, not {rank}"


def _softmax(operator: Operator) -> str | None:
    return None if operator.option("beta", 1.0) == 1.0 else "its beta has to be 1"


def _blocks(operator: Operator) -> str | None:
    return None if operator.option("blockSize", 2) > 1 else "its blocks have to be larger than 1"


def _bilinear(operator: Operator) -> str | None:
    both = operator.option("alignCorners", False) and operator.option("halfPixelCenters", False)
    return "it takes aligned corners or half pixels, not both" if both else _computed(1)(operator)


def _sizes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("ADD", "MUL"), _broadcast),
    **dict.fromkeys(("CONV_2D", "TRANSPOSE_CONV"), _convolution),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D", "HARD_SWISH", "QUANTIZE", "RESHAPE", "TILE"), _computed(1)),
    **dict.fromkeys(("TOPK_V2", "TRANSPOSE", "RESIZE_NEAREST_NEIGHBOR"), _computed(1)),
    **dict.fromkeys(
        ("ABS", "CEIL", "COS", "ELU", "EXP", "FLOOR", "GELU", "LOG", "LOGICAL_NOT", "LOGISTIC", "NEG", "ROUND", "RSQRT",
         "SIGN", "SIN", "SQRT", "SQUARE", "TANH"), _computed(1),
    ),
    **dict.fromkeys(
        ("ATAN2", "DIV", "EQUAL", "FLOOR_DIV", "FLOOR_MOD", "GREATER", "GREATER_EQUAL", "LOGICAL_AND", "LOGICAL_OR",
         "LESS", "LESS_EQUAL", "MAXIMUM", "MINIMUM", "NOT_EQUAL", "POW", "RIGHT_SHIFT", "SQUARED_DIFFERENCE", "SUB"),
        _computed(1, 2),
    ),
    **dict.fromkeys(("MEAN", "REDUCE_ALL", "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "SUM"), _axes),
    **dict.fromkeys(("SELECT", "SELECT_V2"), _select),
    **dict.fromkeys(("SLICE", "STRIDED_SLICE"), _slice),
    **dict.fromkeys(("PAD", "PADV2"), _padding),
    **dict.fromkeys(("DEPTH_TO_SPACE", "SPACE_TO_DEPTH"), _blocks),
    **dict.fromkeys(("ADD_N", "BATCH_MATMUL", "CONCATENATION", "LEAKY_RELU", "LSTM", "PACK", "PRELU", "RELU"), _any),
    **dict.fromkeys(("RELU6", "RELU_N1_TO_1", "SPLIT", "SPLIT_V", "CUMSUM", "DYNAMIC_UPDATE_SLICE"), _any),
    "REVERSE_V2": _axes,
    "CAST": _cast,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEQUANTIZE": _dequantize,
    "EMBEDDING_LOOKUP": _embedding,
    "FULLY_CONNECTED": _dense,
    "GATHER": _gather,
    "MIRROR_PAD": _reflection,
    "ONE_HOT": _one_hot,
    "RESIZE_BILINEAR": _bilinear,
    "SOFTMAX": _softmax,
}  # fmt: skip
"""By operator. Of a few the delegate asks more, such as the kind of an LSTM: what none of our files has."""
