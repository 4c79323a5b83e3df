"""The nouns of edgedl, on one screen; light: no framework, no converter, no runtime.

Errors, and what an exported file is once it is opened, are in `sessions.py`, since a device needs them as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from edgedl.sessions import (  # noqa: F401 - all nouns can be had here
    BATCH,
    SIZES,
    Activation,
    Batch,
    DataError,
    EdgedlError,
    MissingPackage,
    ModelFileError,
    OperatorTime,
    RecipeError,
    Session,
    TargetError,
    TensorSpec,
    UnsupportedOperator,
    UsageError,
    in_batches,
    num_samples,
)

if TYPE_CHECKING:
    import torch

    from edgedl.quantize.schemes import Form, Scheme
    from edgedl.quantize.simulate import Quantization

Split = Literal["train", "calibration", "validation", "test"]


@dataclass(frozen=True)
class Graph:
    """One of the graphs that a network is exported as, where it is several: a module that shares its parameters."""

    module: torch.nn.Module
    inputs: Mapping[str, TensorSpec]
    """What the module takes, in order, without the batch dimension."""
    outputs: tuple[str, ...]
    """What it returns, under other names than the inputs: in a file both stand side by side."""

    def input_specs(self, batch_size: int) -> dict[str, TensorSpec]:
        """`inputs` with the batch dimension in front."""
        return with_batch(self.inputs, batch_size)


def with_batch(specs: Mapping[str, TensorSpec], batch_size: int) -> dict[str, TensorSpec]:
    """Specs with the batch dimension in front."""
    return {name: TensorSpec((batch_size, *spec.shape), spec.dtype) for name, spec in specs.items()}


def graphs_of(net: object) -> Mapping[str, Graph]:
    """The graphs that a module's method `graphs()` says it is exported as; none if it is a single one itself."""
    found: Mapping[str, Graph] = net.graphs() if hasattr(net, "graphs") else {}
    return found


@dataclass(frozen=True)
class Dimension:
    """A dimension of inputs, by a name of its own, that files take in sizes from `least` to `most`, where they can."""

    name: str
    least: int
    size: int
    """That of the data, at which files are scored and measured."""
    most: int


@dataclass(frozen=True)
class Metric:
    """What a score means. `unit` is "fraction" for values in [0, 1]."""

    name: str
    unit: str
    higher_is_better: bool

    def drop(self, reference: float, score: float) -> float:
        """How much worse `score` is than `reference`, in the metric's unit; negative when it is better."""
        return reference - score if self.higher_is_better else score - reference


@dataclass(frozen=True)
class Baseline:
    """The test score of an answer that takes no network, and what answer that is: "always answering the mean"."""

    score: float
    answer: str


@dataclass(frozen=True)
class Exhibit:
    """One sample as a person would look at it, float beside compressed.

    Panels are text or pictures, (H, W) or (H, W, 3) uint8, by what they show: "input", "truth", names of variants.
    """

    caption: str
    panels: Mapping[str, str | np.ndarray]


class Part(BaseModel):
    """Whatever a recipe names with `use = "..."`: its fields are the recipe's keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    use: str

    @property
    def label(self) -> str:
        """Its name in folders and tables: the plugin's, or for `use = "module:Class"` that of the class."""
        return self.use.rpartition(":")[2]


class Task(Part):
    """Data, loss and metric. Subclasses say what is learned; nothing here knows of classes or images."""

    outputs: ClassVar[tuple[str, ...]]
    metric: ClassVar[Metric]
    graphs: ClassVar[tuple[str, ...]] = ()
    """The graphs that `predict` runs, by name, where a network for this task is several."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Which of a batch's arrays the network takes, in order."""
        raise NotImplementedError

    def input_specs(self, batch_size: int) -> dict[str, TensorSpec]:
        """`inputs` with the batch dimension in front."""
        return with_batch(self.inputs, batch_size)

    @property
    def dynamic(self) -> Mapping[str, Mapping[int, Dimension]]:
        """Which dimensions of inputs may have other sizes, by input and axis; axis 0 is that of samples, and is not."""
        return {}

    def arrays(self, split: Split) -> Batch:
        """All samples of a split: inputs and labels by name. Raises `DataError` if they cannot be had."""
        raise NotImplementedError

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The training loss of one batch, a scalar."""
        raise NotImplementedError

    def imitate(
        self,
        outputs: Mapping[str, torch.Tensor],
        taught: Mapping[str, torch.Tensor],
        temperature: float,
        batch: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """How far outputs are from a teacher's, a scalar: their mean squared difference, which suits any output.

        `batch`, where it is given, tells a task of sequences which positions count.
        """
        distances = [(outputs[name] - taught[name]).square().mean() for name in self.outputs]
        return sum(distances[1:], start=distances[0])

    def retold(self, said: Batch, batch: Batch) -> Batch:
        """`batch` with what a teacher `said`, as `predict` answers, for its labels.

        Only tasks that decode sequences have it: their students learn from it by `distill` with `sequences = true`.
        """
        raise NotImplementedError

    def score(self, outputs: Batch, batch: Batch) -> float:
        """The metric over a whole split, in its unit."""
        raise NotImplementedError

    @property
    def inner(self) -> Task:
        """This task as the network alone sees it: with the inputs that it takes behind what `around` puts before it."""
        return self

    def around(self, net: torch.nn.Module) -> torch.nn.Module:
        """A network of `inner` with what its files do to `inputs` by themselves put before it."""
        return net

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes that outputs stand for are called, in their order; empty where there are none."""
        return ()

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What an application has to do to its data before it runs the network, as JSON; empty: nothing at all."""
        return {}

    @property
    def baseline(self) -> Baseline | None:
        """What a network has to beat to have learned anything; None where that is not known."""
        return None

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """What else the field reports of the test split, by name; the score alone decides what ships.

        Asked once of each deployed file: `outputs` are what `session` answered to `batch`, the whole split.
        """
        return {}

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """A few samples worth looking at. `answers`: the outputs for all of `batch` by variant, float first."""
        return ()

    def decisions(self, outputs: Batch) -> np.ndarray | None:
        """What an application would act on, (N, ...), to count equal decisions; None where nothing is decided."""
        return None

    def rates(self, latency_ms: Mapping[str, float]) -> Mapping[str, float]:
        """Figures of speed that the field reports, by name, from what a call of each graph takes for one sample."""
        return {}

    def predict(self, session: Session, batch: Batch) -> Batch:
        """Outputs for one batch; a task whose decoding takes several calls, of `session.graphs` too, overrides it."""
        return session.run({name: batch[name] for name in self.inputs})

    def batches(self, split: Split, size: int) -> Iterator[Batch]:
        """A split in order, in batches of `size`; the last may be smaller."""
        return in_batches(self.arrays(split), size)


class Network(Part):
    """A network family: its fields are widths and depths."""

    def build(self, task: Task) -> torch.nn.Module:
        """A freshly initialised module that takes the task's inputs in order and returns its outputs.

        If it is to be exported as several graphs, such as an encoder and a decoder, it has a method `graphs()`, which
        returns each as a `Graph` by name; it is trained, pruned and taught as a whole all the same.
        """
        raise NotImplementedError

    def built(self, task: Task) -> torch.nn.Module:
        """What `build` gives, with what the task has files do to its inputs by themselves."""
        return task.around(self.build(task.inner))


class Step(Part):
    """Model in, model out; the step is its configuration."""

    compresses: ClassVar[bool] = True
    """False for a step that only makes the float reference."""
    sparsifies: ClassVar[bool] = False
    """True for a step that sets weights to zero for good: those after it have to keep them (`Model.sparse`)."""
    cuts: ClassVar[bool] = False
    """True for a step that removes channels, and with them the pattern of zeros that a sparse network has."""
    final: ClassVar[bool] = False
    """True for a step after which no other may change the weights."""

    @property
    def learns(self) -> bool:
        """False for a step that leaves the weights alone and costs nothing to apply again."""
        return True

    def refusal(self, graphs: Mapping[str, Graph]) -> str | None:
        """Why it cannot take a network that is exported as these graphs; None if it can, as any if it is one graph."""
        return None

    def unsuited(self, task: Task) -> str | None:
        """Why it is not for such a task, and what to change; None if it is."""
        return None

    def sources(self) -> tuple[Path, ...]:
        """Files besides recipe and data that its result depends on. Raises `UsageError` if one is missing."""
        return ()

    @property
    def form(self) -> Form | None:
        """The form that it gives the network; None for a step that leaves it as it is, or chooses it later."""
        return None

    def refused_by(self, target: Target) -> str | None:
        """Why a target has no files of the form that it gives; None if it has."""
        return None if self.form is None else target.refusal(self.form)

    @property
    def measures_on(self) -> Target | None:
        """The target whose files it measures while it works, if there is one."""
        return None

    def network(self, before: Network) -> Network:
        """What builds the network that it leaves: the one that was given, but for a step that starts another."""
        return before

    def apply(self, model: Model, task: Task) -> Model:
        """A new model; the given one is left as it was."""
        raise NotImplementedError

    def restored(self, model: Model, task: Task, net: torch.nn.Module, metrics: Mapping[str, Any]) -> Model:
        """What `apply` made of the model in an earlier run, from the weights and figures kept there."""
        return model.after(self, metrics, net=net)


@dataclass(frozen=True)
class StepRecord:
    """What a step did: its configuration and figures, as they go into the run folder."""

    step: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A network along its way through the steps; immutable, a step returns a new one."""

    net: torch.nn.Module
    teacher: torch.nn.Module | None = None
    """The float network as the last step that does not compress left it."""
    quantization: Quantization | None = None
    sparse: bool = False
    """Whether the weights that are zero have to stay so."""
    float_ops: bool = False
    """Whether operators without an int8 form may stay in float."""
    lineage: tuple[StepRecord, ...] = ()

    @property
    def precision(self) -> str:
        return "fp32" if self.quantization is None else self.quantization.precision

    def graph(self, scheme: Scheme) -> torch.nn.Module:
        """What a target exports: the simulated graph of its scheme, or the float module."""
        return self.net if self.quantization is None else self.quantization.simulated(scheme).graph

    def after(self, step: Step, metrics: Mapping[str, Any], **changes: Any) -> Model:
        """This model with `changes`, and the step that made them on record."""
        record = StepRecord(step.model_dump(), metrics)
        sparse = self.sparse or step.sparsifies
        return replace(self, lineage=(*self.lineage, record), sparse=sparse, **changes)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The files that one target built from one model, and what they were built with."""

    file: Path
    precision: str
    status: Literal["ok", "built"] = "ok"
    """`built`: made and checked by the vendor's builder, but it cannot run here."""
    reason: str | None = None
    """Why it cannot run here."""
    stand_in: Path | None = None
    """The ONNX file that an engine was built from; onnxruntime scores it where the engine cannot run."""
    versions: Mapping[str, str] = field(default_factory=dict)
    built_for: str = "any device with the runtime"
    graphs: Mapping[str, Path] = field(default_factory=dict)
    """Where the network is several graphs: the file of each; `file` and `stand_in` are then the folder of all."""
    rewrites: Mapping[str, int] = field(default_factory=dict)
    """What the target has rewritten in words, and in how many places."""
    notes: tuple[str, ...] = ()
    """What it lacks of what was asked for, and why, for the report to say."""

    @property
    def size_bytes(self) -> int:
        """Of all that ships."""
        return sum(file.stat().st_size for file in self.graphs.values() or [self.file])


class Target(Part):
    """Turns a model into files for one runtime, and opens them."""

    scheme: ClassVar[Scheme]
    forms: ClassVar[tuple[Form, ...]] = ("int8",)
    """What a quantized network may be for it; any other is an error, never silently float."""
    suffixes: ClassVar[tuple[str, ...]]
    """File endings that `open` takes; the first target by name to claim one opens it by default."""
    requires: ClassVar[Mapping[str, tuple[str, ...]]]
    """What `build` and `open` need: {"build": (modules...), "open": (modules...)}; "a|b" means one of them."""
    needs_gpu: ClassVar[bool] = False
    """Whether its files run on an NVIDIA GPU alone."""
    extra: ClassVar[str]
    """The extra of this package that installs what `build` needs."""

    def refusal(self, form: Form, group_size: int | None = None) -> str | None:
        """Why it has no files of a form, or none with 4-bit weights in groups of that size; None if it has."""
        if form not in self.forms:
            return f"target {self.label} has no form {form!r}, only {', '.join(self.forms)}"
        least = self.scheme.smallest_group
        if group_size is not None and group_size < least and form in self.scheme.grouped:
            return (
                f"target {self.label} has no fast kernel for groups of {group_size}; set group_size to {least} or more"
            )
        return None

    @property
    def builds_apart(self) -> bool:
        """Whether `build` may run in a copy of the process, which can crash without harm; CUDA cannot be copied."""
        return True

    def graph(self, model: Model) -> torch.nn.Module:
        """What `build` exports. Raises `TargetError` for a form that the runtime does not have."""
        plan = model.quantization
        if plan is not None and (refusal := self.refusal(plan.form, plan.group_size)):
            raise TargetError(refusal)
        return model.graph(self.scheme)

    def prepare(self, model: Model, task: Task, batch_size: int) -> None:
        """Makes what `build` needs and other files or the ladder need, too: `build` runs in a copy of the process.

        Raises what `build` does.
        """
        self.graph(model)

    def build(self, model: Model, task: Task, folder: Path, batch_size: int) -> Artifact:
        """Writes the files into `folder`. Raises `TargetError` or `UnsupportedOperator`."""
        raise NotImplementedError

    def open(self, file: Path) -> Session:
        """Loads a file that this target built, or any other of its format. Raises `ModelFileError`, `TargetError`."""
        raise NotImplementedError


class Limits(BaseModel):
    """What may ship, and what it may take to build a file and to open it first."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    score_drop: NonNegativeFloat = 0.01
    """How much worse than the float network a file may score, in the metric's unit."""
    slower: Literal["refuse", "allow"] = "refuse"
    """A file that is slower than the fastest float file on its runtime."""
    unlearned: Literal["refuse", "allow"] = "refuse"
    """A float network that does no better than the task's baseline."""
    float_ops: Literal["refuse", "allow"] = "refuse"
    """Operators without an int8 form: with "allow" just those compute in float, between int8 ones."""
    build_minutes: PositiveFloat = 30.0
    """A converter or builder that takes longer is ended, and the file has failed; so with a file's first run."""
    build_memory_gb: PositiveFloat | None = None
    """What it may take; by default as much as the machine has."""


class Bench(BaseModel):
    """How latency is measured: at least 100 runs and `min_seconds` a file, in `rounds` interleaved blocks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    batch_size: PositiveInt = 1
    """Samples of one run."""
    min_seconds: NonNegativeFloat = 3.0
    """How long each file runs at least."""
    rounds: PositiveInt = 100
    """In so many blocks, in which files take turns."""
