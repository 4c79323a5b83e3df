"""The calls that a task makes of a network's files, recorded, and played again with another machine's answers.

What a file is given is this machine's: where a task feeds states back, as in decoding, each call begins from the states
that were found here. So errors of another machine do not add up from call to call, and its score is that of its steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedl import graph_session, measure
from edgedl.core import Batch, Session, TargetError, Task, UsageError, in_batches, num_samples
from edgedl.graph_session import Recorder
from edgedl.measure import Scored
from edgedl.remote.calls import Calls

MOST_BYTES = 128 << 20
"""Of calls beyond the samples themselves, kept as changes: those of `gpt-int8` take 75 MB, and 1.8 GB written out."""


@dataclass(frozen=True)
class Recording:
    """What a task asked of a file over the test split, or its first samples, and what it made of the answers."""

    session: Session
    """Closed: what it takes and answers is still to be seen."""
    order: Sequence[str]
    """Which graph is called, call by call."""
    given: Mapping[str, Calls]
    """By graph, as all that follows."""
    answered: Mapping[str, Sequence[Batch]]
    num_first: int
    """Calls for the first batch."""
    left_out: int
    """Samples of the split that were not run."""
    scored: Scored

    @property
    def graphs(self) -> Mapping[str, Session]:
        return graph_session.parts(self.session)

    @property
    def batch_size(self) -> int:
        return measure.batch_size(self.session)

    @property
    def timed(self) -> Sequence[str]:
        """The calls that are timed: a whole decoding of several graphs, or the first of all."""
        return self.order[: self.num_first if self.session.graphs else 1]


def record(session: Session, task: Task) -> Recording:
    """Runs the test split until all of it, or as much as may be kept, is recorded.

    Raises `UsageError` where the task leaves a graph uncalled.
    """
    recorder, arrays, order, ends = Recorder(session), task.arrays("test"), list[str](), list[int]()
    graphs = graph_session.parts(session)
    given = {name: Calls(list(graph.inputs)) for name, graph in graphs.items()}
    answered: dict[str, list[Batch]] = {name: [] for name in graphs}
    most = sum(arrays[name].nbytes for name in task.inputs) + MOST_BYTES

    def batches() -> Iterator[Batch]:
        for batch in in_batches(arrays, measure.batch_size(session)):
            if sum(calls.num_bytes for calls in given.values()) > most:
                return
            yield batch
            for (name, call), found in zip(recorder.calls, recorder.answered, strict=True):
                order.append(name)
                given[name].append(call)
                answered[name].append(found)
            recorder.calls.clear()
            recorder.answered.clear()
            ends.append(len(order))

    outputs = measure.answers(recorder, task, batches())
    num, total = num_samples(outputs), num_samples(arrays)
    if idle := graphs.keys() - {*order}:
        raise UsageError(
            f"task {task.use} never calls graph {min(idle)} for {num} test samples: nothing can be said of it"
        )
    scored = measure.scored(outputs, task, {name: values[:num] for name, values in arrays.items()})
    return Recording(session, order, given, answered, ends[0], total - num, scored)


class Played:
    """Another machine's answers, (calls, ...) by graph and output, for a task that makes the recorded calls again."""

    def __init__(self, recording: Recording, answers: Mapping[str, Batch]) -> None:
        self.recording, self.answers, self.place = recording, answers, 0
        self.graphs = {name: _Graph(name, graph, self) for name, graph in recording.session.graphs.items()}
        self.run = _Graph("", recording.session, self).run
        self._given = {name: enumerate(calls) for name, calls in recording.given.items()}
        self._signal, self._noise = (
            defaultdict[tuple[str, str], float](float),
            defaultdict[tuple[str, str], float](float),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recording.session, name)

    def evaluate(self, task: Task, needed_db: float) -> Scored:
        """The score of these answers, over the recorded samples.

        Raises `TargetError` where the task goes on otherwise from them than it did from those of this machine: where it
        asks for something else, or where what it feeds back is further from that than `needed_db`.
        """
        scored = measure.evaluate(self, task, "test", self.recording.scored.samples)
        if not all(noise * 10 ** (needed_db / 10) <= self._signal[key] for key, noise in self._noise.items()):
            raise _otherwise()
        return scored

    def answer(self, graph: str, batch: Batch) -> Batch:
        """What the other machine answered to this call, which was recorded; floats are compared when all is played."""
        if self.recording.order[self.place : self.place + 1] != [graph]:
            raise _otherwise()
        self.place += 1
        place, recorded = next(self._given[graph])
        for key, given in batch.items():
            before = recorded[key]
            if before.shape != given.shape or before.dtype != given.dtype:
                raise _otherwise()
            if before.tobytes() == given.tobytes():
                continue
            if not np.issubdtype(given.dtype, np.floating):
                raise _otherwise()
            self._noise[graph, key] += float(np.square(before.astype(np.float64) - given).sum())
        for key, before in recorded.items():
            if np.issubdtype(before.dtype, np.floating):
                self._signal[graph, key] += float(np.square(before, dtype=np.float64).sum())
        return {key: values[place] for key, values in self.answers[graph].items()}


class _Graph:
    """One of the graphs of `Played`, or the only one."""

    def __init__(self, name: str, graph: Session, whole: Played) -> None:
        self.name, self.graph, self.whole = name, graph, whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)

    def run(self, batch: Batch) -> Batch:
        return self.whole.answer(self.name, batch)


def _otherwise() -> TargetError:
    return TargetError("no score: from what the device answers, the task goes on otherwise than here")
