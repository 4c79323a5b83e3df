"""Which networks suit which tasks: every pair of a handful of tasks, and what is said of those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgedl import analyzing, pipeline, plugins, stages, suitability
from edgedl import recipe as recipes
from edgedl.core import DataError, Network, UsageError
from edgedl.tasks.digits import Digits
from edgedl.tasks.mnist import MNIST
from edgedl.training import teachers
from tests.test_plugins import FAMILIES
from tests.toys import Noise

TEXT = """
task = { use = "TASK" }
model = { MODEL }
steps = [{ use = "train", epochs = 1 }, STEP]
targets = [{ use = "onnxruntime" }]
"""
SUITED = {
    "control": {"policy"},
    "denoising": {"autoencoder", "dense-autoencoder", "stylizer"},
    "digits": {"cnn", "dscnn", "lenet", "mlp", "mobilenet", "resnet"},
    "masks": {"unet"},
    "nodes": {"gcn"},
    "ratings": {"ncf"},
    "regression": {"mlp"},
    "text": {"recurrent-classifier", "transformer"},
    "translation": {"seq2seq"},
    "variational": {"vae"},
}


def recipe(task: str, model: str, step: str = "") -> recipes.Recipe:
    text = TEXT.replace("TASK", task).replace("MODEL", model).replace("STEP", step)
    return recipes.parse(text, Path("own.toml"))


@pytest.mark.parametrize("task", SUITED)
def test_of_all_networks_those_suit_a_task_that_can_learn_it(task):
    used = plugins.load("tasks", task)()
    before = torch.get_rng_state()
    found = {}
    for model in FAMILIES:
        found[model] = suitability.why_unsuited(plugins.load("models", model)(), used)
    assert {model for model, why in found.items() if why is None} == SUITED[task]
    assert not any("\n" in why or not why for why in found.values() if why is not None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("task", "model", "said"),
    [
        ("translation", 'use = "cnn"', "model cnn does not suit task translation: it needs a task that has image_shape,"
         " and this one has none, only 2 inputs, source (16) int32 and before (16) int32; task translation goes with "
         "model seq2seq (recipe seq2seq-int8); model cnn with task digits (recipe cnn-fp16) or xray ("),
        ("digits", 'use = "path-predictor"', "model path-predictor does not suit task digits: it is not made for "
         "1 input, image (1, 28, 28) float32; task digits goes with model cnn (recipe cnn-fp16) or "),
        ("text", 'use = "mlp"', "it cannot take 1 input, tokens (32) int32 (mat1 and mat2 must have the same dtype"),
        ("ratings", 'use = "mlp"', "it takes 1 input, and the task has 2 inputs, user () int32 and item () int32; "),
        ("digits", 'use = "unet"', "it answers logits (10, 28, 28) for each sample, which the task has no loss for; "),
        ("control", 'use = "mlp"', "it answers logits (1) for each sample, and the task has 2 to choose from; "),
        ("regression", 'use = "dense-autoencoder"', "it answers prediction (10) for each sample, which the task has "),
        ("translation", 'use = "mlp"', "task translation decodes with the graphs encoder and decoder; the model has"),
        ("digits", 'use = "cnn", widths = [1, 1, 1, 1, 1, 1]', "model cnn does not suit task digits: 6 poolings leave "
         "nothing of a 28x28 image; take fewer widths; recipe cnn-fp16 has them together: compare its settings"),
        ("digits", 'use = "mlp", widths = [10000000000000]', "model mlp does not suit task digits: it is too large for "
         "the memory of this machine; take smaller widths"),
        ("text", 'use = "transformer", heads = 3', "model transformer does not suit task text: 3 heads cannot share"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_before_there_is_a_run(task, model, said, tmp_path):
    for start in (pipeline.compress, lambda made, text, root: analyzing.of_recipe(made, text, root, 0.5)):
        if start is not pipeline.compress and task == "translation":
            continue  # refused for its graphs
        with pytest.raises(UsageError) as caught:
            start(recipe(task, model), "", tmp_path / "runs")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_data_that_is_missing_is_told_as_such(tmp_path):
    with pytest.raises(DataError, match="gone"):
        suitability.why_unsuited(plugins.load("models", "vae")(), MNIST(folder=str(tmp_path / "gone")))


def test_a_task_without_a_recipe_has_the_advice_of_the_network_alone():
    assert stages._suited("vae", "cifar10") == "model vae with task variational (recipe vae-int8)"


def test_a_student_that_does_not_suit_is_told_before_its_teacher_learns():
    step = '{ use = "distill", student = { use = "transformer" } }'
    with pytest.raises(UsageError, match="model transformer does not suit task digits: it needs a task that has words"):
        stages.check(recipe("digits", 'use = "mlp"', step))
    stages.check(recipe("digits", 'use = "mlp"', step.replace("transformer", "cnn")))


def test_a_teacher_of_another_kind_of_task_is_named(tmp_path):
    made = {"model": {"use": "transformer"}, "shapes": {}, "task": {"use": "text"}}
    (tmp_path / "structure.json").write_text(json.dumps(made))
    (tmp_path / "weights.safetensors").touch()
    said = r"weights.safetensors: a network of task text that does not fit task digits: model transformer: it needs a t"
    with pytest.raises(UsageError, match=said):
        teachers.load(str(tmp_path), Digits())


def test_code_of_ones_own_is_not_tried_and_keeps_its_traceback():
    class Own(Network):
        use: str = "tests.test_suitability:Own"

        def build(self, task):
            return task.image_shape.there_is_no_such_thing

    assert suitability.why_unsuited(Own(), Digits()) is None
    assert suitability.why_unsuited(plugins.load("models", "cnn")(), Noise()) is None
    broken = recipe("digits", 'use = "mlp"').model_copy(update={"model": Own()})
    stages.check(broken)


def test_every_pair_of_the_recipes_is_known():
    pairs = recipes.pairs()
    assert pairs["digits", "mlp"] == "mlp-dynamic"
    assert pairs["text", "transformer"] == "transformer-kd-int8"
    assert {task for task, _ in pairs} >= set(SUITED)
