"""Plans the quantization of the network; a target's scheme turns the plan into a graph when it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import field_validator, model_validator

from edgedl import plugins
from edgedl.core import Model, Step, Task

if TYPE_CHECKING:
    from edgedl.quantize.schemes import Form

FORMS: dict[tuple[str, str], Form] = {
    ("int8", "ptq"): "int8",
    ("int8", "dynamic"): "int8 dynamic",
    ("int8", "weight-only"): "int8 weights",
    ("int4", "dynamic"): "int4 dynamic",
    ("int4", "weight-only"): "int4 weights",
    ("fp16", "ptq"): "fp16",
}
"""What precision and method make."""


Correction = Literal["equalization", "adaround", "bias-correction", "re-estimation", "headroom"]


class Quantize(Step):
    """Fewer bits after training.

    `ptq` with int8: static, ranges from the calibration split, by one calibrator or the best of all, and
    `corrections` that make good some of what it costs: those named, or with "auto" those that help. `dynamic`:
    activations get their ranges at run time. `weight-only`: activations stay float. With int4, linear layers have
    4-bit weights, where a runtime has groups with a scale for each `group_size` inputs, and all others 8-bit ones.
    """

    use: str = "quantize"
    precision: Literal["int8", "int4", "fp16"] = "int8"
    method: Literal["ptq", "dynamic", "weight-only"] = "ptq"
    calibrator: Literal["auto", "min-max", "percentile", "mse", "entropy"] = "auto"
    corrections: Literal["auto"] | tuple[Correction, ...] = "auto"

    group_size: Literal[16, 32, 64, 128] = 32

    learns: ClassVar[bool] = False

    @field_validator("corrections", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Names the nearest correction, which an error about one of two types would not."""
        names = get_args(Correction)
        if value != "auto" and not isinstance(value, list | tuple):
            raise ValueError(f'needs "auto" or an array of names out of {", ".join(names)}')
        unknown = [name for name in value if name not in names] if value != "auto" else []
        if unknown:
            raise ValueError(f"no correction named {unknown[0]!r}; {plugins.nearest(str(unknown[0]), names)}")
        return value if value == "auto" else tuple(value)

    @property
    def form(self) -> Form:
        return FORMS[self.precision, self.method]

    @model_validator(mode="after")
    def _makes_sense(self) -> Quantize:
        if (self.precision, self.method) not in FORMS:
            methods = [method for precision, method in FORMS if precision == self.precision]
            raise ValueError(f"{self.precision} has no method {self.method!r}; it has {' and '.join(methods)}")
        if self.calibrator != "auto" and self.form != "int8":
            raise ValueError(
                f"{self.form} is not calibrated: calibrator = {self.calibrator!r} belongs to int8 with ptq"
            )
        if self.group_size != 32 and self.precision != "int4":
            raise ValueError(f"group_size belongs to int4, not to {self.precision}")
        return self

    def apply(self, model: Model, task: Task) -> Model:
        """Costs nothing: the work is done when a target asks for the graph."""
        from edgedl.quantize.simulate import Quantization

        plan = Quantization(
            model.net, task, self.calibrator, self.corrections, form=self.form, group_size=self.group_size
        )
        return model.after(self, {}, quantization=plan)
