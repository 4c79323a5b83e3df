"""Several exported files of one network behind the interface of one: opened, recorded, played again. No torch here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.sessions import Activation, Batch, ModelFileError, OperatorTime, Session, TensorSpec, UsageError

if TYPE_CHECKING:
    from edgedl.core import Target

Call = tuple[str, Batch]
"""The name of a graph, and what it was given."""


class GraphSession:
    """The graphs of a network, which tasks call by name; `run` calls each once, its arrays named `graph/array`."""

    def __init__(self, graphs: Mapping[str, Session]) -> None:
        self.graphs = graphs
        first = next(iter(graphs.values()))
        self.runtime, self.settings = first.runtime, getattr(first, "settings", None)
        self.inputs = self._named({name: graph.inputs for name, graph in graphs.items()})
        self.outputs = self._named({name: graph.outputs for name, graph in graphs.items()})

    @staticmethod
    def _named(specs: Mapping[str, Mapping[str, TensorSpec]]) -> dict[str, TensorSpec]:
        return {f"{graph}/{name}": spec for graph, found in specs.items() for name, spec in found.items()}

    def run(self, batch: Batch) -> Batch:
        found: dict[str, np.ndarray] = {}
        for name, graph in self.graphs.items():
            answers = graph.run({key: batch[f"{name}/{key}"] for key in graph.inputs})
            found |= {f"{name}/{key}": values for key, values in answers.items()}
        return found

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Operators of all graphs, each called once."""
        return [
            dataclasses.replace(operator, name=f"{name}/{operator.name}")
            for name, graph in self.graphs.items()
            for operator in graph.profile({key: batch[f"{name}/{key}"] for key in graph.inputs})
        ]

    def activations(self, batch: Batch) -> Sequence[Activation]:
        """Nothing: each graph shows its own."""
        return ()

    def close(self) -> None:
        for graph in self.graphs.values():
            graph.close()


class Checked:
    """A session for hands, not for measuring: `run` says what is wrong with what it is given."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, batch: Batch) -> Batch:
        """Raises `UsageError` for arrays of other names, shapes or types than the file takes."""
        arrays = {name: np.asarray(values) for name, values in batch.items()}
        try:
            return self.session.run(arrays)
        except Exception as error:  # each runtime has its own
            takes = ", ".join(f"{name} {spec}" for name, spec in self.inputs.items())
            given = ", ".join(f"{name} {values.dtype.name} {values.shape}" for name, values in arrays.items())
            raise UsageError(f"the file takes {takes}, and was given {given or 'nothing'}: {error}") from error


def open_files(target: Target, path: Path) -> Session:
    """The session of a file or, of a folder, that of the files in its folders, one a graph. Raises `ModelFileError`."""
    if not path.is_dir():
        return target.open(path)
    return GraphSession({name: target.open(file) for name, file in graph_files(path, target.suffixes).items()})


def graph_files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The file of each graph, by the name of the folder that it is in. Raises `ModelFileError` where there is none."""
    files = (file for suffix in suffixes for file in sorted(folder.glob(f"*/model{suffix}")))
    found = {file.parent.name: file for file in files if not file.parent.name.startswith(".")}
    if not found:
        raise ModelFileError(f"{folder} is a folder: name the file in it")
    return found


def one_of(path: Path) -> Path:
    """A file or, of a folder of graphs, one of their files: an engine before what it is made from.

    Raises `ModelFileError` for a folder of anything else.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob("*/model.*"), key=lambda file: (file.suffix == ".onnx", file))
    if not found:
        raise ModelFileError(f"{path} is a folder: name the file in it")
    return found[0]


class Recorder:
    """A session that notes what its graphs are given, and what they answer; a network's only graph has no name."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.calls: list[Call] = []
        self.answered: list[Batch] = []
        self.graphs = {name: _Recorded(name, graph, self) for name, graph in session.graphs.items()}
        self.run = _Recorded("", session, self).run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


class _Recorded:
    def __init__(self, name: str, graph: Session, notes: Recorder) -> None:
        self.name, self.graph, self.notes = name, graph, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)

    def run(self, batch: Batch) -> Batch:
        given = {name: np.array(values) for name, values in batch.items()}  # the task may go on in the same arrays
        answers = self.graph.run(batch)
        self.notes.calls.append((self.name, given))
        self.notes.answered.append({name: np.array(values) for name, values in answers.items()})
        return answers


class Replay(GraphSession):
    """Graphs that play recorded calls again at every `run`, whatever it is given: the same work for every file.

    What each call takes is noted, by graph.
    """

    def __init__(self, session: Session, calls: Sequence[Call]) -> None:
        super().__init__(session.graphs)
        self.calls = [(name, fitted(given, self.graphs[name])) for name, given in calls]
        self.latencies_ms: dict[str, list[float]] = {name: [] for name in self.graphs}

    def run(self, batch: Batch) -> Batch:
        for name, given in self.calls:
            run = self.graphs[name].run
            start = time.perf_counter_ns()
            run(given)
            self.latencies_ms[name].append((time.perf_counter_ns() - start) / 1e6)
        return {}

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Operators of all graphs, each as it was called first."""
        first = {f"{name}/{key}": values for name, given in reversed(self.calls) for key, values in given.items()}
        return super().profile(first)

    def medians_ms(self) -> dict[str, float]:
        """The median latency of one call of each graph that was called."""
        return {name: float(np.median(samples)) for name, samples in self.latencies_ms.items() if samples}

    def num_calls(self) -> dict[str, int]:
        """How often each graph is called in one `run`."""
        return {name: sum(called == name for called, _ in self.calls) for name in self.graphs}


def played(session: Session, calls: Sequence[Call]) -> tuple[Session, Batch]:
    """What is timed of a session, and what it is given: the first call or, of several graphs, all calls again."""
    return (Replay(session, calls), {}) if session.graphs else (session, fitted(calls[0][1], session))


def joined(graphs: Mapping[str, Session]) -> Session:
    """The session of a network's graphs by name; a network's only graph, which has no name, is that session itself."""
    return graphs[""] if "" in graphs else GraphSession(graphs)


def parts(session: Session) -> Mapping[str, Session]:
    """What `joined` was given."""
    return session.graphs or {"": session}


def fitted(given: Batch, session: Session) -> Batch:
    """A call in the shapes and types that a file takes: a session would have to narrow int64 at every run.

    States that are of another width here, as in a pruned network, are filled with the values that there are.
    """
    return {name: _fitted(given[name], spec) for name, spec in session.inputs.items()}


def _fitted(values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Values in the shape that a file takes; a dimension of 1 may be one of any size."""
    wanted = tuple(now if size == 1 else size for now, size in zip(values.shape, spec.shape, strict=True))
    shaped = values if values.shape == wanted else np.resize(values, wanted)
    return np.ascontiguousarray(shaped, spec.dtype)
