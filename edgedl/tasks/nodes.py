"""The classes of a graph's nodes, of which few are known: social graphs of networkx, or an edge list and features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import PositiveInt, model_validator

from edgedl import files
from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, MissingPackage, Session, Split, Task, TensorSpec

if TYPE_CHECKING:
    import torch

GROUPS, MEMBERS, FRIENDS_INSIDE, FRIENDS_OUTSIDE = 5, 160, 4.5, 2.5
"""Of the drawn graph: how many nodes, and how many edges each has on average to its own group and to others."""
NUM_INTERESTS, OFTEN, SELDOM = 64, 0.28, 0.1
"""Yes or no each; a quarter of them is shared `OFTEN` within a group, others `SELDOM`."""
UNKNOWN = -1


class LabelledGraph(NamedTuple):
    """Nodes, what is known of each, and who is joined to whom."""

    names: tuple[str, ...]
    features: np.ndarray
    """(n, F) float32"""
    labels: np.ndarray
    """(n,) int64"""
    classes: tuple[str, ...]
    edges: np.ndarray
    """(E, 2) int64, each once"""


class Nodes(Task):
    """Networks answer `logits` (1, n, classes) to `features` (1, n, F): one sample is the whole graph.

    `label` (1, n) is -1 for nodes of other splits: `labels` nodes of each class train, a third of the others
    validates, the rest tests. Graph "blocks" is a stochastic block graph of 800 people in five groups, with as many
    friends elsewhere as nearly to mislead, and interests that groups share. Graph "karate" is Zachary's club, where
    nothing is known of members but who they are. With `edges` and `features`, files as those of Cora: two nodes a line;
    a node, its numbers and its class a line.
    Sources: T. Kipf and M. Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017; W. Zachary,
    An Information Flow Model for Conflict and Fission in Small Groups, 1977.
    """

    use: str = "nodes"
    graph: Literal["blocks", "karate"] = "blocks"
    """The one to take without a folder: drawn by chance in blocks, or Zachary's karate club."""
    edges: str | None = None
    features: str | None = None
    labels: PositiveInt = 20
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    metric: ClassVar[Metric] = Metric(name="accuracy", unit="fraction", higher_is_better=True)

    @model_validator(mode="after")
    def _both_files(self) -> Nodes:
        if (self.edges is None) != (self.features is None):
            raise ValueError("edges and features need each other: name both files, or none")
        return self

    @property
    def num_classes(self) -> int:
        return len(self._graph().classes)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"features": TensorSpec(self._graph().features.shape)}

    def arrays(self, split: Split) -> Batch:
        """`features` (1, n, F) float32 and `label` (1, n) int64. Raises `DataError`."""
        graph = self._graph()
        chosen = _chosen(graph, "train" if split == "calibration" else split, self.labels)
        return {"features": graph.features[None], "label": np.where(chosen, graph.labels, UNKNOWN)[None]}

    def adjacency(self) -> np.ndarray:
        """Who takes how much from whom, (n, n) float32: D^-½ (A + I) D^-½, Kipf and Welling's."""
        graph = self._graph()
        joined = np.eye(len(graph.names), dtype=np.float32)
        joined[graph.edges[:, 0], graph.edges[:, 1]] = joined[graph.edges[:, 1], graph.edges[:, 0]] = 1
        degree = joined.sum(1)
        return np.asarray(joined / np.sqrt(degree[:, None] * degree))

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy of the nodes that are known."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs["logits"].flatten(0, 1), batch["label"].flatten(), ignore_index=UNKNOWN)

    def score(self, outputs: Batch, batch: Batch) -> float:
        known = batch["label"] != UNKNOWN
        return float((self.decisions(outputs) == batch["label"])[known].mean())

    @property
    def baseline(self) -> Baseline:
        labels = self.arrays("test")["label"]
        counts = np.bincount(labels[labels != UNKNOWN])
        return Baseline(float(counts.max() / counts.sum()), "always answering the commonest class")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """The F1 score of each class, their mean."""
        import torch
        from torchmetrics.functional.classification import multiclass_f1_score

        known = batch["label"] != UNKNOWN
        found, label = (torch.from_numpy(values[known]) for values in (self.decisions(outputs), batch["label"]))
        return {"F1": float(multiclass_f1_score(found, label, self.num_classes, average="macro"))}

    def decisions(self, outputs: Batch) -> np.ndarray:
        """The class of each node, (N, n) int64."""
        return np.asarray(outputs["logits"].argmax(axis=-1))

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Nodes on which variants differ, then those of which none is right, with the classes next to them."""
        graph, label = self._graph(), batch["label"][0]
        found = {name: self.decisions(outputs)[0] for name, outputs in answers.items()}
        first, *others = found.values()
        differ = np.any([first != other for other in others] or [first != first], axis=0)
        wrong = np.all([other != label for other in found.values()], axis=0)
        known = np.flatnonzero(label != UNKNOWN)
        shown = []
        for node in sorted(known, key=lambda node: (not differ[node], not wrong[node]))[:6]:
            pairs = graph.edges[(graph.edges == node).any(1)]
            near = sorted(graph.classes[graph.labels[pair[pair != node][0]]] for pair in pairs)
            panels = {"input": f"joined to: {', '.join(near) or 'none'}", "truth": graph.classes[label[node]]}
            panels |= {name: graph.classes[classes[node]] for name, classes in found.items()}
            shown.append(Exhibit(f"node {graph.names[node]}", panels))
        return shown

    def _graph(self) -> LabelledGraph:
        if self.edges is not None and self.features is not None:
            return _read(self.edges, self.features)
        return _karate() if self.graph == "karate" else _blocks()


def _chosen(graph: LabelledGraph, split: Split, num_known: int) -> np.ndarray:
    """Whether each node is of a split, (n,) bool."""
    chosen = np.zeros(len(graph.names), bool)
    for label in range(len(graph.classes)):
        members = np.flatnonzero(graph.labels == label)
        members = members[np.argsort(np.random.PCG64(label).random_raw(len(members)), kind="stable")]
        known = min(num_known, len(members) // 4)
        third = known + (len(members) - known) // 3
        parts: dict[Split, np.ndarray] = {
            "train": members[:known], "validation": members[known:third], "test": members[third:],
        }  # fmt: skip
        chosen[parts[split]] = True
    return chosen


@lru_cache(maxsize=1)
def _blocks() -> LabelledGraph:
    rng, num = np.random.default_rng(0), GROUPS * MEMBERS
    inside, outside = FRIENDS_INSIDE / (MEMBERS - 1), FRIENDS_OUTSIDE / (num - MEMBERS)
    chances = np.full((GROUPS, GROUPS), outside)
    np.fill_diagonal(chances, inside)
    edges = _networkx().stochastic_block_model([MEMBERS] * GROUPS, chances, seed=0).edges
    labels = np.arange(num) // MEMBERS
    shared = rng.random((GROUPS, NUM_INTERESTS)) < 1 / 4
    features = rng.random((num, NUM_INTERESTS)) < np.where(shared[labels], OFTEN, SELDOM)
    names, classes = (tuple(map(str, range(count))) for count in (num, GROUPS))
    return LabelledGraph(names, features.astype(np.float32), labels, classes, np.array(list(edges)))


@lru_cache(maxsize=1)
def _karate() -> LabelledGraph:
    graph = _networkx().karate_club_graph()
    clubs = [graph.nodes[node]["club"] for node in graph]
    classes, labels = np.unique(clubs, return_inverse=True)
    names = tuple(map(str, graph))
    return LabelledGraph(
        names, np.eye(len(names), dtype=np.float32), labels, tuple(classes), np.array(list(graph.edges))
    )


def _networkx() -> Any:
    try:
        import networkx
    except ModuleNotFoundError as error:
        raise MissingPackage("task nodes needs networkx: pip install 'edgedl[train]'") from error
    return networkx


@lru_cache(maxsize=2)
def _read(edges: str, features: str) -> LabelledGraph:
    records: dict[str, tuple[list[float], str]] = {}
    for line, values in _lines(Path(features)):
        name, *numbers, label = values if len(values) > 2 else ["", "", ""]
        try:
            found = [float(number) for number in numbers]
        except ValueError:
            found = [np.nan]
        width = len(next(iter(records.values()))[0]) if records else len(found)
        if not np.isfinite(found).all() or len(found) != width:
            raise DataError(f"{features}:{line}: needs a node, {width} finite numbers as in line 1, and a class")
        if name in records:
            raise DataError(f"{features}:{line}: node {name} is there twice")
        records[name] = found, label
    classes, labels = np.unique([label for _, label in records.values()], return_inverse=True)
    place = {name: index for index, name in enumerate(records)}
    pairs = set()
    for line, values in _lines(Path(edges)):
        if len(values) != 2 or (unknown := [name for name in values if name not in place]):
            said = f"node {unknown[0]} is none of {features}" if len(values) == 2 else "needs two nodes"
            raise DataError(f"{edges}:{line}: {said}")
        if values[0] != values[1]:
            pairs.add(tuple(sorted(place[name] for name in values)))
    if len(classes) < 2 or (few := [name for label, name in enumerate(classes) if (labels == label).sum() < 4]):
        said = f"class {few[0]} has fewer than 4 nodes" if len(classes) > 1 else f"{len(classes)} classes"
        raise DataError(f"{features}: {said}; that is too few to train, validate and test on")
    if not pairs:
        raise DataError(f"{edges}: no edges in it")
    table = np.array([numbers for numbers, _ in records.values()], np.float32)
    return LabelledGraph(tuple(records), table, labels, tuple(map(str, classes)), np.array(sorted(pairs)))


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each line that is not empty, and its words."""
    lines = files.read_text(file).splitlines()
    return ((number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())
