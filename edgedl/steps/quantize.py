"""Plans the quantization of the network, or trains it for one; a target's scheme turns the plan into a graph."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from edgedl import plugins
from edgedl.core import Graph, Model, Target, Task, graphs_of
from edgedl.training.learning import Share, TaughtStep

if TYPE_CHECKING:
    import torch

    from edgedl.quantize.schemes import Form

Correction = Literal["equalization", "adaround", "bias-correction", "re-estimation", "headroom"]
Untrained = Literal["ptq", "dynamic", "weight-only"]
"""Methods of which several can be tried."""

FORMS: Mapping[tuple[str, str], tuple[Form, ...]] = {
    ("int8", "auto"): ("int8", "int8 dynamic", "int8 weights", "int8 layers", "mixed"),
    ("int8", "ptq"): ("int8",),
    ("int8", "qat"): ("int8",),
    ("int8", "dynamic"): ("int8 dynamic",),
    ("int8", "weight-only"): ("int8 weights",),
    ("int4", "auto"): ("int4 dynamic", "int4 weights"),
    ("int4", "dynamic"): ("int4 dynamic",),
    ("int4", "weight-only"): ("int4 weights",),
    ("fp16", "auto"): ("fp16",),
    ("mixed", "auto"): ("mixed",),
}
"""What precision and method make; of several forms, the best for each target is kept."""

OF_ALL = {"use", "precision", "method"}
OF_EIGHT_BITS = OF_ALL | {"granularity"}
OF_STATIC = OF_EIGHT_BITS | {"weight_bits", "calibrator", "corrections"}
OF_TRAINING = {*TaughtStep.model_fields, "ranges", "settle", "scheme"}
KEYS = {
    "qat": OF_STATIC | OF_TRAINING,
    "ptq": OF_STATIC,
    "auto": OF_STATIC,
    "dynamic": OF_EIGHT_BITS,
    "weight-only": OF_EIGHT_BITS,
}
"""What a method can be told."""


class Quantize(TaughtStep):
    """Fewer bits. With method "auto", every target gets the form that is fastest on it within the recipe's limits, and
    of forms that are as fast the smallest; with several methods, such as `["ptq", "dynamic"]`, the best of theirs.

    `ptq`, static int8 after training: ranges from the calibration split, by one calibrator or the best of all, and
    `corrections` that make good some of what it costs: those named, or with "auto" those that help. `dynamic`:
    activations get their ranges at run time. `weight-only`: activations stay float. With int4, linear layers have
    4-bit weights with a scale for each `group_size` inputs, and all other layers 8-bit ones. Where the number of inputs
    is no multiple of it, weights have 8 bits, or on TFLite 4 and a scale for each output, as all have in `weight-only`.
    With "mixed", the blocks that int8 harms most stay in float, with weights of half precision; TensorRT computes them
    in half precision.

    `qat` trains the network as it will be quantized, from the ranges of `ptq`, against the labels and, for the share
    `weight` of the loss, against its teacher, the float network as the last `train` step left it. Ranges are learned
    or move with the data; batch norms and moving ranges settle within the share `settle` of the training. They are
    those of one `scheme`: a target with another gets the trained weights with ranges from the calibration split.

    With `granularity = "tensor"`, all outputs of a dense layer share a scale, and all rows of an embedding: a TFLite
    file holds up to 16 bytes for the grids of each output, much where it has few weights. Convolutions keep theirs.
    With `weight_bits = 4`, static weights of 4 bits are stored as int8: files are only smaller once compressed.
    """

    use: str = "quantize"
    precision: Literal["int8", "int4", "fp16", "mixed"] = "int8"
    """Bits of weights; `mixed` leaves the blocks in float that int8 harms most."""
    method: Literal["auto", "qat"] | Untrained | tuple[Untrained, ...] = "auto"
    """How: of several, or with `auto` of all that the target has, the fastest that holds the score is kept."""
    weight_bits: Literal[8, 4] = 8
    """Of static weights."""
    granularity: Literal["channel", "tensor"] = "channel"
    """What has a scale of its own of the 8-bit weights of dense layers and embeddings."""
    calibrator: Literal["auto", "min-max", "percentile", "mse", "entropy"] = "auto"
    """How ranges are found from histograms of activations; `auto` takes the best of all."""
    corrections: Literal["auto"] | tuple[Correction, ...] = "auto"
    group_size: Literal[16, 32, 64, 128] = 32
    epochs: PositiveInt = 5
    lr: PositiveFloat = 5e-4
    weight: Share = 0.7
    ranges: Literal["learned", "moving"] = "learned"
    """Of `qat`: whether they are learned, or move with the data."""
    settle: Annotated[float, Field(ge=0, le=1)] = 0.5
    scheme: Literal["affine", "symmetric"] = "affine"

    final: ClassVar[bool] = True

    @property
    def learns(self) -> bool:
        return self.method == "qat"

    @property
    def methods(self) -> tuple[str, ...]:
        """All that are tried; "auto" is one."""
        return (self.method,) if isinstance(self.method, str) else self.method

    @property
    def form(self) -> Form | None:
        forms = self._forms({})
        return forms[0] if len(forms) == 1 else None

    def refused_by(self, target: Target) -> str | None:
        refusals = [target.refusal(form, self.group_size) for form in self._forms({})]
        return None if None in refusals else refusals[0]

    def refusal(self, graphs: Mapping[str, Graph]) -> str | None:
        if self.method == "qat":
            return 'method = "qat" trains the graph that is exported, and knows only one'
        return None if self._forms(graphs) else 'precision = "mixed" measures the blocks of one graph'

    def _forms(self, graphs: Mapping[str, Graph]) -> tuple[Form, ...]:
        """Several graphs have one form together, and no mixture."""
        named = dict.fromkeys(form for method in self.methods for form in FORMS[self.precision, method])
        return tuple(form for form in named if not graphs or form != "mixed")

    @field_validator("method", mode="before")
    @classmethod
    def _known_methods(cls, value: Any) -> Any:
        """One alone is that one, whether or not it stands in an array."""
        if not isinstance(value, list | tuple):
            return _known("method", value, ("auto", "qat", *get_args(Untrained)))
        if not value:
            raise ValueError("needs a method, or several to try")
        if alone := [name for name in value if name in ("auto", "qat")]:
            raise ValueError(f'"{alone[0]}" stands alone; several to try are out of {", ".join(get_args(Untrained))}')
        methods = tuple(dict.fromkeys(_known("method", name, get_args(Untrained)) for name in value))
        return methods if len(methods) > 1 else methods[0]

    @field_validator("corrections", mode="before")
    @classmethod
    def _known_corrections(cls, value: Any) -> Any:
        names = get_args(Correction)
        if value != "auto" and not isinstance(value, list | tuple):
            raise ValueError(f'needs "auto" or an array of names out of {", ".join(names)}')
        return value if value == "auto" else tuple(_known("correction", name, names) for name in value)

    @model_validator(mode="after")
    def _makes_sense(self) -> Quantize:
        if unknown := [method for method in self.methods if (self.precision, method) not in FORMS]:
            methods = [method for precision, method in FORMS if precision == self.precision]
            raise ValueError(f"{self.precision} has no method {unknown[0]!r}; it has {' and '.join(methods)}")
        if foreign := sorted(self.model_fields_set - self._keys()):
            valid = ", ".join(sorted(self._keys() - {"use"}))
            method = json.dumps(self.method)
            raise ValueError(
                f"{self.precision} with method = {method} has no {', '.join(foreign)}; its keys are: {valid}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_other_methods(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self._keys()}

    def _keys(self) -> set[str]:
        if self.precision == "int4":
            return OF_ALL | {"group_size"}
        return OF_ALL if self.precision == "fp16" else set[str]().union(*(KEYS[method] for method in self.methods))

    def apply(self, model: Model, task: Task) -> Model:
        """Free but for `qat`: the work is done when a target asks for the graph. Raises `UsageError`."""
        if self.method == "qat":
            return self._trained(model, task)
        return self.restored(model, task, model.net, {})

    def restored(self, model: Model, task: Task, net: torch.nn.Module, metrics: Mapping[str, Any]) -> Model:
        from edgedl.quantize.simulate import Quantization

        plan = Quantization(
            net,
            task,
            self.calibrator,
            self.corrections,
            forms=self._forms(graphs_of(net)),
            group_size=self.group_size,
            weight_bits=self.weight_bits,
            granularity=self.granularity,
            grids=metrics.get("grids", {}),
            float_ops=model.float_ops,
        )
        return model.after(self, metrics, net=net, quantization=plan)

    def _trained(self, model: Model, task: Task) -> Model:
        """Raises `UsageError` if the loss diverges."""
        from edgedl.measure import evaluate
        from edgedl.quantize import qat, schemes
        from edgedl.quantize.simulate import simulate
        from edgedl.torch_session import TorchSession
        from edgedl.training.teachers import answers_of

        scheme = {"affine": schemes.AFFINE, "symmetric": schemes.SYMMETRIC}[self.scheme]
        scheme = scheme.with_weights(self.weight_bits, self.granularity)
        grids = simulate(model.net, task, scheme, self.calibrator, float_ops=model.float_ops).chosen
        num_batches = self.epochs * math.ceil(len(next(iter(task.arrays("train").values()))) / self.batch_size)
        settling = round(self.settle * num_batches)
        start = qat.FakeQuantized(model.net, task, scheme, grids, self.ranges, settling, model.float_ops)
        before = evaluate(TorchSession(start, task), task, "validation").score
        loss, samples = self.lesson(answers_of(model.teacher or model.net, task), task)
        trained, history = self.fit(start, task, loss, samples=samples)
        sign = 1 if task.metric.higher_is_better else -1
        if max(sign * epoch["score"] for epoch in history) < sign * before:
            trained = start  # what it began with was better than all that it found
        assert isinstance(trained, qat.FakeQuantized)
        metrics = {"before": before, "epochs": history, "grids": {self.scheme: trained.grids()}}
        return self.restored(model, task, trained.net, metrics)


def _known(kind: str, name: Any, names: Sequence[str]) -> Any:
    """A name out of several; raises `ValueError` with the nearest, which an error about one of two types lacks."""
    if name not in names:
        raise ValueError(f"no {kind} named {name!r}; {plugins.nearest(str(name), names)}")
    return name
