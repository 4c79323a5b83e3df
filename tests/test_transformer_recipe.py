"""The Transformer of texts and what teaches it: the recipe in a tiny form, and a student that begins anew."""

from __future__ import annotations

import json

import pytest
import torch

from edgedl import pipeline, plugins, recipe
from edgedl.core import Bench, Limits, UsageError
from edgedl.models.cnn import CNN
from edgedl.models.transformer import Transformer
from edgedl.run import read_report
from edgedl.steps.distill import Distill
from edgedl.steps.quantize import Quantize
from edgedl.tasks.text import Text
from edgedl.training import teachers
from tests.test_sequence_recipes import BAD, GOOD, write_table

SMALL, SMALLER = Transformer(width=16, heads=2, blocks=2), Transformer(width=8, heads=2, blocks=1)


@pytest.fixture
def tiny(tmp_path) -> recipe.Recipe:
    rows = [(f"{text} {'very ' * (index % 3)}", text[0]) for index in range(40) for text in (GOOD, "W" + BAD[1:])]
    shipped = recipe.load("transformer-kd-int8")
    train, distill, _ = shipped.steps
    return shipped.model_copy(
        update={
            "task": Text(csv=write_table(tmp_path / "films.csv", rows), words=6, vocabulary=20),
            "model": SMALL,
            "steps": (
                train.model_copy(update={"epochs": 1}),
                distill.model_copy(update={"epochs": 1, "student": SMALLER}),
                Quantize(method="ptq", calibrator="min-max", corrections=()),
            ),
            "limits": Limits(score_drop=10, slower="allow", unlearned="allow"),
            "bench": Bench(min_seconds=0, rounds=2),
        }
    )


def test_the_recipe_makes_files_of_a_student_that_answer_as_it_does(tiny, tmp_path):
    targets = {target.use: target for target in tiny.targets}
    some = tiny.model_copy(update={"targets": (targets["tflite"], targets["tensorrt-rtx"])})
    first = pipeline.compress(some, "", tmp_path / "runs")
    report = read_report(first.folder)
    num = {name: sum(value.numel() for value in network.build(tiny.task).parameters()) for name, network in
           (("float", SMALL), ("compressed", SMALLER))}  # fmt: skip
    assert {name: counted["count"] for name, counted in report["parameters"].items()} == num
    assert {(row["target"], row["variant"], row["status"]) for row in report["rows"]} == {
        (target, variant, status)
        for target, status in (("tflite", "ok"), ("tensorrt-rtx", "built"))
        for variant in ("float", "compressed")
    }
    _check_teacher(first.folder, tiny)
    others = tiny.model_copy(update={"targets": (targets["onnxruntime"],)})
    again = read_report(pipeline.compress(others, "", tmp_path / "runs").folder)
    assert all("reused" in step["metrics"] for step in again["steps"][:2])
    for row in (*report["ladder"], *again["ladder"]):
        assert row["agreement"]["sqnr_db"] > 35, row
    rungs = [{rung["name"]: rung["score"] for rung in found["ladder"][-1]["rungs"]} for found in (report, again)]
    assert rungs[0]["distill"] == rungs[1]["distill"]


def _check_teacher(folder, tiny) -> None:
    """The student can itself be looked up as a teacher."""
    step = folder / "steps" / "01-distill"
    assert json.loads((step / "structure.json").read_text())["model"] == SMALLER.model_dump()
    net = teachers.load(str(step), tiny.task).net
    assert net is not None
    assert net.dense.in_features == SMALLER.width


def test_a_student_is_a_network_of_any_family():
    made = Distill.model_validate({"student": {"use": "cnn", "widths": [4, 8], "hidden": 8}})
    assert made.student == CNN(widths=(4, 8), hidden=8)
    assert Distill.model_validate(made.model_dump()) == made
    assert made.network(CNN()) == made.student
    assert Distill().network(CNN()) == CNN()
    with pytest.raises(UsageError, match=r"no models named 'cnm'; did you mean .*cnn"):
        Distill.model_validate({"student": {"use": "cnm"}})


def test_heads_share_the_width_evenly():
    with pytest.raises(UsageError, match="3 heads cannot share a width of 64 evenly"):
        Transformer(heads=3).build(Text())


def test_every_word_sees_every_other_and_where_it_stands():
    torch.manual_seed(0)
    net = plugins.load("models", "transformer")().build(Text()).eval()
    tokens = torch.arange(2, 34, dtype=torch.int32)[None]
    assert (net(tokens) - net(tokens.flip(1))).abs().max() > 1e-5
    seen = net.blocks(net.norm(net.embedding(tokens)))[0, -1]
    other = tokens.clone()
    other[0, 0] = 99
    assert (net.blocks(net.norm(net.embedding(other)))[0, -1] - seen).abs().max() > 1e-5
