"""Plans the quantization of the network; a target's scheme turns the plan into a graph when it asks."""

from __future__ import annotations

from typing import ClassVar, Literal

from edgedl.core import Model, Step, Task


class Quantize(Step):
    """Static int8 after training: ranges from the calibration split, by one calibrator or the best of all."""

    use: str = "quantize"
    precision: Literal["int8"] = "int8"
    method: Literal["ptq"] = "ptq"
    calibrator: Literal["auto", "min-max", "percentile", "mse", "entropy"] = "auto"

    learns: ClassVar[bool] = False

    def apply(self, model: Model, task: Task) -> Model:
        """Costs nothing: the work is done when a target asks for the graph."""
        from edgedl.quantize.simulate import Quantization

        return model.after(self, {}, quantization=Quantization(model.net, task, self.calibrator))
