"""Plans the quantization of the network; a target's scheme turns the plan into a graph when it asks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import field_validator

from edgedl import plugins
from edgedl.core import Model, Step, Task

Correction = Literal["equalization", "adaround", "bias-correction", "re-estimation", "headroom"]


class Quantize(Step):
    """Static int8 after training: ranges from the calibration split, by one calibrator or the best of all.

    `corrections` make good some of what it costs: none, those that are named, or with "auto" those that help.
    """

    use: str = "quantize"
    precision: Literal["int8"] = "int8"
    method: Literal["ptq"] = "ptq"
    calibrator: Literal["auto", "min-max", "percentile", "mse", "entropy"] = "auto"
    corrections: Literal["auto"] | tuple[Correction, ...] = "auto"

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

    def apply(self, model: Model, task: Task) -> Model:
        """Costs nothing: the work is done when a target asks for the graph."""
        from edgedl.quantize.simulate import Quantization

        return model.after(self, {}, quantization=Quantization(model.net, task, self.calibrator, self.corrections))
