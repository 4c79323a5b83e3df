"""Data of one's own: arrays by name from a file, a folder, the Hugging Face hub or Python, scored by a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from edgedl import dimensions, plugins, stats
from edgedl.core import (
    Baseline,
    Batch,
    DataError,
    Dimension,
    Exhibit,
    Metric,
    Session,
    Split,
    Task,
    TensorSpec,
    UsageError,
)
from edgedl.data import given as data_given
from edgedl.data import metrics, samples
from edgedl.data import sources as data_sources
from edgedl.data.image_inputs import Treatment
from edgedl.data.images import Reading
from edgedl.data.prepared import Prepared, Wanted, prepare
from edgedl.data.records import Records
from edgedl.training import teachers

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
TAUGHT = "taught:"
"""Begins the names of the teacher's answers, beside those of inputs."""


class Parts(BaseModel):
    """Which part of the source each split is, where their names do not say it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    train: str | None = None
    """What the training split is called there."""
    validation: str | None = None
    """What the validation split is called there."""
    test: str | None = None
    """What the test split is called there."""


class _Given:
    """What came from Python, and what was made of it: it stays with the task that it was given to."""

    def __init__(self, value: object = None) -> None:
        self.value = value
        self.made: dict[str, tuple[object, Any]] = {}

    def once(self, what: str, key: object, make: Callable[[], T]) -> T:
        """What was made for this key the last time, or what is made now."""
        if what not in self.made or self.made[what][0] != key:
            self.made[what] = key, make()
        value: T = self.made[what][1]
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Given) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


class Data(Task):
    """Batches hold the inputs by name and, where there are labels, the label.

    `source` is a file of arrays (.npz), a table (.csv, .tsv, .jsonl, .parquet) or a folder of such files named train,
    validation and test; a folder of images with a folder for each class, in train and test or not; `hub:name`, a data
    set of the Hugging Face hub (with its `config`), or the folder of one that was saved to disk; or
    package.module:function, which returns any of what `Data.of` takes. What is not divided is, the same way every
    time; `splits` names parts that are not called train, validation and test. `inputs` names arrays or columns, without
    it all but the `label`; single numbers of a table are one input together, `features`, made of `columns` where these
    are named, and of mean 0 and deviation 1 with `standardize`. Labels that are text are classes in the order of their
    names. Images are resized to `size`, [height, width], put between 0 and 1, then less `mean` and divided by `std`,
    as is uint8 of four axes where these are given; `layout` says how they lie in arrays. With `uint8_input`, files take
    images of uint8 as they are and do that themselves; with `channels_last`, they take images so of a network that
    takes channels first. All data is held in memory, 8 GiB of it at most.

    A named `metric` looks at the first output; (outputs, batch) -> float can be one's own, package.module:function, and
    the `loss` is such a function or what goes with the metric, or the labels. Without labels it is agreement with the
    `teacher`, a float network: the share of same decisions where the first output is (N, classes), else "fidelity":
    1 - noise power / signal power, which can be asked for, too.

    `dynamic` names dimensions of inputs that files are to take in other sizes than the data's, where a target can:
    "tokens.1=length:1-128" is dimension 1 of the input tokens, 0 being that of samples. Without a range it is from 2 to
    the size of the data.
    """

    use: str = "data"
    source: str = ""
    input_names: tuple[str, ...] = Field(default=(), alias="inputs")
    columns: tuple[str, ...] = ()
    label_name: str | None = Field(default=None, alias="label")
    output_names: tuple[str, ...] = Field(default=("output",), alias="outputs", min_length=1)
    """What the network's outputs are called, in order."""
    metric_name: str | None = Field(default=None, alias="metric")
    higher_is_better: bool = True
    """Which way a metric of one's own goes."""
    loss_name: str | None = Field(default=None, alias="loss")
    teacher: plugins.InnerNetwork | None = None
    splits: Parts = Parts()
    config: str | None = None
    standardize: bool = False
    size: tuple[PositiveInt, PositiveInt] | None = None
    channels: Literal[1, 3] = 3
    """Of image files: 3 for colours, 1 for grey."""
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Field(gt=0)], ...] = ()
    layout: Literal["channels-first", "channels-last"] = "channels-first"
    uint8_input: bool = False
    channels_last: bool = False
    dynamic_names: tuple[str, ...] = Field(default=(), alias="dynamic")

    _is_inner: bool = PrivateAttr(default=False)
    _given: _Given = PrivateAttr(default_factory=_Given)

    @classmethod
    def of(cls, given: object, **fields: Any) -> Data:
        """The task of data from Python: arrays by name, or those of each split."""
        task = cls(**fields)
        task._given = _Given(given)
        return task

    @field_validator("metric_name")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and ":" not in value and value not in metrics.METRICS:
            hint = plugins.nearest(value, metrics.METRICS)
            raise ValueError(f"no metric named {value!r}; {hint} One of your own is package.module:function")
        return value

    @field_validator("dynamic_names")
    @classmethod
    def _spelled(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for said in value:
            dimensions.spelled(said)
        return value

    @model_validator(mode="after")
    def _one_truth(self) -> Data:
        named = self.metric_name
        labelled = self.label_name is not None if named is None else named not in metrics.UNLABELLED
        if self.teacher is not None and labelled:
            raise ValueError("the teacher stands in for labels, but the metric needs these; leave out one of the two")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Under the keys that a recipe has."""
        fields = type(self).model_fields
        return {fields[name].alias or name: value for name, value in handler(self).items()}

    @property
    def measured_by(self) -> str:
        """The metric's name. Without one, text and whole numbers are classes, told apart or found in pictures, and
        other numbers are values; where there is a teacher in their stead, agreement.
        """
        if self.metric_name is not None:
            return self.metric_name
        if self.teacher is not None and self.label_name is None:
            return "agreement"
        return self._by_labels

    @property
    def has_labels(self) -> bool:
        """Whether the data has what is to be learned: the column that `label` names, or one that is called so."""
        return self.label_name is not None or "label" in next(iter(self._records.values())).columns

    def example(self, size: int) -> Batch:
        """The inputs of the first training records, without labels and without asking a teacher."""
        return {name: self._prepared.arrays["train"][name][:size] for name in self.inputs}

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        name = self.measured_by
        if ":" in name:
            return Metric(name.rpartition(":")[2], "", self.higher_is_better)
        return metrics.METRICS[name]

    @property
    def outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.output_names

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._prepared.inner if self._is_inner else self._prepared.inputs

    @property
    def dynamic(self) -> Mapping[str, Mapping[int, Dimension]]:
        """Raises `DataError` for what the inputs do not have."""
        if not self.dynamic_names:
            return {}
        found = self._prepared
        said = dimensions.read(self.dynamic_names, found.inputs, "task data")
        if not (self._is_inner and self.channels_last):
            return said
        turned = {1: 2, 2: 3, 3: 1}
        return {
            name: {turned[axis]: one for axis, one in axes.items()} if len(found.inputs[name].shape) == 3 else axes
            for name, axes in said.items()
        }

    @property
    def inner(self) -> Data:
        inner = self.model_copy()
        inner._is_inner = True
        return inner

    def around(self, net: nn.Module) -> nn.Module:
        """Raises `DataError`."""
        if not (self.uint8_input or self.channels_last):
            return net
        from edgedl.own.entrance import Entrance, image

        found, images = self._prepared, {}
        for index, (name, spec) in enumerate(found.inputs.items()):
            normalization = found.images.get(name) if self.uint8_input else None
            turned = self.channels_last and len(spec.shape) == 3
            if normalization is not None or turned:
                width_varies = found.channels_last and 2 in self.dynamic.get(name, {})
                shape = (spec.shape[0], 1, *spec.shape[2:]) if width_varies else spec.shape
                images[index] = image(shape, normalization, found.channels_last, turned)
        return Entrance(net, images)

    @property
    def label_array(self) -> str | None:
        """The name of the labels in a batch; None where there are none."""
        return self._prepared.label

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none where the label is no class."""
        return self._prepared.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def num_classes(self) -> int:
        """How many numbers a plain answer has: one a class, or one a number of the label."""
        label = self._prepared.arrays["train"][self.label_array] if self.label_array else None
        marks = metrics.KINDS.get(self.measured_by) == "marks" and label is not None and label.ndim > 1
        if self.classes and not marks:
            return len(self.classes)
        return 1 if label is None else math.prod(label.shape[1:])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of the first input with three axes. Raises `UsageError` where there is none."""
        found = next((spec.shape for spec in self.inputs.values() if len(spec.shape) == 3), None)
        if found is None:
            raise UsageError(f"task data: no input is an image; there are {', '.join(self.inputs)}")
        return found

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What an application has to do to its data before it runs the network, as JSON."""
        return self._prepared.preprocessing

    def arrays(self, split: Split) -> Batch:
        """Inputs and label by name; of data without labels, the teacher's answers as `taught:` and an output's name."""
        found = self._prepared.arrays[split]
        return {**found, **self._taught[split]} if self.measured_by in metrics.UNLABELLED else found

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One's own, or that which goes with the metric or the labels: cross-entropy, squared error, or imitation."""
        if self.loss_name is not None:
            function = plugins.function(self.loss_name)
            value: torch.Tensor = plugins.called(f"loss {self.loss_name}", function, outputs, batch)
            if not hasattr(value, "backward") or value.ndim != 0:
                raise UsageError(f"loss {self.loss_name} returned a {type(value).__name__}, no scalar tensor")
            return value
        if self.measured_by in metrics.UNLABELLED:
            return self.imitate(outputs, {name: batch[TAUGHT + name] for name in self.outputs}, 1.0, batch)
        if self.label_array is None:
            raise UsageError(f'metric {self.measured_by} has no loss without labels: say loss = "package.module:f"')
        by = self.measured_by if self.measured_by in metrics.KINDS else self._by_labels
        try:
            return metrics.loss(by, outputs[self.outputs[0]], batch[self.label_array])
        except DataError as error:
            raise self._named(error) from error

    def imitate(
        self,
        outputs: Mapping[str, torch.Tensor],
        taught: Mapping[str, torch.Tensor],
        temperature: float,
        batch: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Divergence of the softened class probabilities where one of (N, classes) is chosen, else mean square."""
        from edgedl.training.imitation import divergence

        chooses = self.measured_by == "agreement" or metrics.KINDS.get(self.measured_by) in ("classes", "marks")
        plain = chooses and len(self.outputs) == 1
        answer = outputs[self.outputs[0]]
        if plain and answer.ndim == 2 and answer.shape[1] > 1:
            return divergence(answer, taught[self.outputs[0]], temperature)
        return super().imitate(outputs, taught, temperature, batch)

    def score(self, outputs: Batch, batch: Batch) -> float:
        """The metric over a whole split. Raises `DataError` where answers and labels do not go together."""
        name = self.measured_by
        if ":" in name:
            return metrics.own_score(name, outputs, batch)
        if name in metrics.UNLABELLED:
            pairs = [(outputs[output], batch[TAUGHT + output]) for output in self.outputs]
            if name == "agreement":
                return metrics.agreement(*zip(*pairs, strict=True))
            return min(metrics.fidelity(answer, taught) for answer, taught in pairs)
        assert self.label_array is not None
        try:
            return metrics.score(name, outputs[self.outputs[0]], batch[self.label_array])
        except DataError as error:
            raise self._named(error) from error

    def _named(self, error: DataError) -> DataError:
        return DataError(f"task data, metric {self.measured_by}, output {self.outputs[0]}, {self.label_array}: {error}")

    @property
    def baseline(self) -> Baseline | None:
        """The commonest class, the mean, or guessing; None for a metric of one's own."""
        name = self.measured_by
        if name not in metrics.KINDS or self.label_array is None:
            return None
        train, test = (self.arrays(split)[self.label_array] for split in ("train", "test"))
        try:
            return metrics.baseline(name, train, test, self.num_classes)
        except DataError as error:
            raise self._named(error) from error

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """Without labels, signal to noise in dB, the teacher's answers being the signal; the least of all outputs."""
        if self.measured_by not in metrics.UNLABELLED:
            return {}
        return {"signal to noise, dB": min(stats.sqnr_db(batch[TAUGHT + name], outputs[name]) for name in self.outputs)}

    def decisions(self, outputs: Batch) -> np.ndarray | None:
        """The class chosen for each label, or of (N, classes) where there are none; None for numbers."""
        answer, name = outputs[self.outputs[0]], self.measured_by
        if metrics.KINDS.get(name) == "numbers" or name == "fidelity":
            return None
        if not self.classes or self.label_array is None:
            return metrics.decided(answer, None)
        try:
            return metrics.decided(answer, (len(answer), *self._prepared.arrays["train"][self.label_array].shape[1:]))
        except DataError:
            if ":" in name:  # what the answers mean is its own affair
                return None
            raise

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Those of which the files think differently most: pictures of images, numbers and text of the rest."""
        return samples.exhibits(self._prepared, self.outputs[0], self.decisions, answers, batch)

    @property
    def _prepared(self) -> Prepared:
        wanted = self._wanted()
        return self._given.once("prepared", (self._reading, wanted), lambda: self._prepare(wanted))

    def _prepare(self, wanted: Wanted) -> Prepared:
        for source in (self.metric_name, self.loss_name):
            if source is not None and ":" in source:
                plugins.function(source)  # before anything is made that would need it in the end
        return prepare(self._records, wanted)

    @property
    def _records(self) -> Mapping[str, Records]:
        return self._given.once("records", self._reading, self._read)

    @property
    def _reading(self) -> tuple[object, ...]:
        """All that tells what is read, and how."""
        return self.source, self.config, self._how

    @property
    def _how(self) -> Reading:
        return Reading(self.input_names, self.label_name, self.size, self.channels)

    @property
    def _by_labels(self) -> str:
        return self._given.once("metric", self._reading, self._inferred)

    def _inferred(self) -> str:
        records = next(iter(self._records.values()))
        label = self.label_name or "label"
        if label not in records.columns or records.is_text(label):
            return "accuracy"
        values = records.array(label)
        if values.dtype.kind == "f":
            return "rmse"
        return "miou" if values.ndim > 2 else "accuracy"

    def _read(self) -> Mapping[str, Records]:
        if self._given.value is not None:
            if self.source:
                raise DataError(f"task data: source {self.source} and data from Python are both given; take one")
            return data_given.of_given(self._given.value, self._how)
        if not self.source:
            raise DataError('task data: source is missing: a file or folder of data, such as source = "data.npz"')
        return data_sources.read(self.source, self.config, self._how)

    def _wanted(self) -> Wanted:
        name = self.measured_by
        if name in metrics.UNLABELLED and self.teacher is None:
            raise DataError(f"task data: {name} is with a teacher: say which network, as under model")
        return Wanted(
            inputs=self.input_names,
            columns=self.columns,
            label=self.label_name,
            kind="any" if ":" in name else metrics.KINDS.get(name, "none"),
            others=":" in name or self.loss_name is not None,
            standardize=self.standardize,
            treatment=Treatment(
                self.mean, self.std, self.layout == "channels-last", self.uint8_input, self.channels_last
            ),
            resized=self.size is not None,
            parts=tuple(self.splits.model_dump(exclude_none=True).items()),
        )

    @property
    def _taught(self) -> Mapping[Split, Batch]:
        """What the teacher answers to every split; it is built and asked once."""
        return self._given.once("taught", (self._reading, self._wanted(), self.teacher, self.outputs), self._ask)

    def _ask(self) -> Mapping[Split, Batch]:
        assert self.teacher is not None
        answered = teachers.answers_over(self.teacher, self, self._prepared.arrays)
        return {
            split: {TAUGHT + name: values for name, values in answers.items()} for split, answers in answered.items()
        }
