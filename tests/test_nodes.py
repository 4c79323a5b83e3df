"""Classes of nodes: the recipe in a small form, networkx's graphs, edge lists and features whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgedl.core import DataError
from edgedl.models.gcn import GCN
from edgedl.tasks.nodes import Nodes
from tests.tiny import tiny_run

SPLITS = ("train", "validation", "test")


def write(folder: Path, nodes: list[str], edges: list[str]) -> Nodes:
    (folder / "nodes.txt").write_text("\n".join(nodes) + "\n")
    (folder / "edges.txt").write_text("\n".join(edges) + "\n")
    return Nodes(edges=str(folder / "edges.txt"), features=str(folder / "nodes.txt"))


def papers(num: int = 24) -> tuple[list[str], list[str]]:
    """Two rings of papers, each with its own word."""
    nodes = [f"p{index}\t{index % 2}\t{1 - index % 2}\t0.5\t{'odd' if index % 2 else 'even'}" for index in range(num)]
    return nodes, [f"p{index}\tp{(index + 2) % num}" for index in range(num)]


def test_the_recipe_runs(tmp_path):
    report = tiny_run("gcn-int8", tmp_path, graph="karate")
    assert report["metric"]["name"] == "accuracy"


@pytest.mark.parametrize("graph", ["blocks", "karate"])
def test_each_node_is_of_one_split_and_all_classes_train(graph):
    task = Nodes(graph=graph)
    labels = [task.arrays(split)["label"] for split in SPLITS]
    assert (np.sum([label >= 0 for label in labels], axis=0) == 1).all()
    assert set(labels[0][labels[0] >= 0]) == set(range(task.num_classes))
    np.testing.assert_array_equal(task.arrays("calibration")["label"], labels[0])


def test_the_adjacency_is_that_of_kipf_and_welling():
    task = Nodes(graph="karate")
    found, graph = task.adjacency(), task._graph()
    degree = 1 + np.bincount(graph.edges.ravel())
    assert len(graph.edges) == 78
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(np.diag(found), 1 / degree, rtol=1e-6)
    one, other = graph.edges[5]
    assert found[one, other] == pytest.approx((degree[one] * degree[other]) ** -0.5)
    assert np.count_nonzero(found) == 34 + 2 * 78


def test_a_node_takes_from_two_steps_away_and_no_further(tmp_path):
    task = write(tmp_path, *papers())
    torch.manual_seed(0)
    net = GCN(hidden=8).build(task).eval()
    features = torch.rand(1, 24, 3)
    changed = features.clone()
    changed[0, 0] += 1
    with torch.no_grad():
        moved = (net(changed) - net(features)).abs().amax((0, 2)) > 1e-7
    assert set(np.flatnonzero(moved.numpy())) == {20, 22, 0, 2, 4}


def test_only_nodes_of_the_split_are_scored():
    task = Nodes()
    batch = task.arrays("test")
    right = np.eye(5, dtype=np.float32)[np.maximum(batch["label"], 0)]
    assert task.score({"logits": right}, batch) == 1
    assert task.figures(None, {"logits": right}, batch) == {"F1": 1}
    wrong = np.roll(right, 1, axis=2)
    half = np.where((np.arange(800) < 400)[:, None], right, wrong)
    tested = batch["label"][0] >= 0
    assert task.score({"logits": half}, batch) == pytest.approx(tested[:400].sum() / tested.sum())


def test_exhibits_show_where_variants_differ_first():
    task = Nodes(graph="karate")
    batch = task.arrays("test")
    right = np.eye(2, dtype=np.float32)[np.maximum(batch["label"], 0)]
    other = right.copy()
    node = np.flatnonzero(batch["label"][0] >= 0)[3]
    other[0, node] = other[0, node, ::-1]
    shown = task.exhibits({"float": {"logits": right}, "compressed": {"logits": other}}, batch)
    assert len(shown) == 6
    assert shown[0].caption == f"node {node}"
    assert shown[0].panels["truth"] == shown[0].panels["float"] != shown[0].panels["compressed"]
    assert shown[0].panels["input"].startswith("joined to: ")


def test_files_of_an_edge_list_and_features_are_read(tmp_path):
    task = write(tmp_path, *papers())
    assert task.num_classes == 2
    assert task.inputs["features"].shape == (24, 3)
    assert {split: (task.arrays(split)["label"] >= 0).sum() for split in SPLITS} == {
        "train": 6, "validation": 6, "test": 12,
    }  # fmt: skip
    np.testing.assert_allclose(task.adjacency().sum(1), 1, rtol=1e-6)  # in rings all have as many
    np.testing.assert_array_equal(task.arrays("train")["features"][0, 1], [1, 0, 0.5])


@pytest.mark.parametrize(
    ("nodes", "edges", "said"),
    [
        ({2: "p2\t0\tnan\t1\teven"}, {}, r"nodes\.txt:3: needs a node, 3 finite numbers as in line 1, and a class"),
        ({2: "p2\t0\t1\teven"}, {}, r"nodes\.txt:3: needs a node, 3 finite numbers"),
        ({2: "p2"}, {}, r"nodes\.txt:3: needs a node, 3 finite numbers"),
        ({2: "p1\t0\t1\t1\teven"}, {}, r"nodes\.txt:3: node p1 is there twice"),
        ({2: "p2\t0\t1\t1\trare"}, {}, r"nodes\.txt: class rare has fewer than 4 nodes"),
        ({}, {4: "p4\tp99"}, r"edges\.txt:5: node p99 is none of .*nodes\.txt"),
        ({}, {4: "p4"}, r"edges\.txt:5: needs two nodes"),
        ({}, dict.fromkeys(range(24), ""), r"edges\.txt: no edges in it"),
    ],
)
def test_damaged_lines_are_named(nodes, edges, said, tmp_path):
    lines = papers()
    for index, changes in enumerate((nodes, edges)):
        for place, line in changes.items():
            lines[index][place] = line
    with pytest.raises(DataError, match=said):
        write(tmp_path, *lines).arrays("train")


def test_files_that_cannot_be_read_are_named(tmp_path):
    task = write(tmp_path, *papers())
    (tmp_path / "edges.txt").write_bytes(b"p0 p1\xff")
    with pytest.raises(DataError, match=r"edges\.txt:1: no UTF-8: byte 5 is 0xff"):
        task.arrays("train")
    (tmp_path / "nodes.txt").unlink()
    with pytest.raises(DataError, match=r"nodes\.txt: cannot be read"):
        task.arrays("train")
    with pytest.raises(ValidationError, match="edges and features need each other"):
        Nodes(edges="edges.txt")
