"""Distillation: the student moves to its teacher, and what the loss is made of."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgedl import pipeline, recipe, stages, stats
from edgedl.core import Model, ModelFileError, UsageError
from edgedl.measure import evaluate
from edgedl.models.cnn import CNN
from edgedl.models.resnet import ResNet
from edgedl.run import read_report
from edgedl.steps.distill import Distill
from edgedl.steps.prune import Prune
from edgedl.tasks.digits import Digits
from edgedl.tasks.language import Language
from edgedl.tasks.translation import Translation
from edgedl.torch_session import TorchSession
from edgedl.training import imitation, learning, loop, teachers
from tests.toys import Noise


def small(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    loop.seed(0)
    task = Digits()
    options = {"batch_size": 32, "lr": 1e-3, "optimizer": "adam", "schedule": "cosine", "weight_decay": 0.0}
    return loop.fit(small(64), task, task.loss, epochs=4, label="teacher", **options)[0]


def agreement_db(net: nn.Module, teacher: nn.Module) -> float:
    outputs = [evaluate(TorchSession(each, Digits()), Digits(), "test").outputs["logits"] for each in (teacher, net)]
    return stats.sqnr_db(*(logits - logits.mean(axis=1, keepdims=True) for logits in outputs))


def test_a_student_of_pure_imitation_gets_its_teachers_outputs(teacher):
    loop.seed(1)
    student = small(64)
    before = copy.deepcopy(student.state_dict())
    model = Model(net=student, teacher=teacher)
    taught = Distill(epochs=6, lr=2e-3, weight=1.0, temperature=2.0).apply(model, Digits())
    assert agreement_db(taught.net, teacher) > agreement_db(student, teacher) + 6
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert taught.lineage[-1].step["use"] == "distill"
    assert len(taught.lineage[-1].metrics["epochs"]) == 6


def test_without_weight_it_is_training_on_the_labels(teacher):
    net = small(16)
    options = {"epochs": 1, "batch_size": 64, "lr": 1e-3, "optimizer": "adam", "schedule": "constant"}
    loop.seed(5)
    distilled = Distill(weight=0.0, **options).apply(Model(net=net, teacher=teacher), Digits()).net
    loop.seed(5)
    trained, _ = loop.fit(net, Digits(), Digits().loss, weight_decay=0.0, label="", **options)
    for name, value in trained.state_dict().items():
        assert torch.allclose(value, distilled.state_dict()[name], atol=1e-6)


@pytest.mark.parametrize("fits", [True, False])
def test_a_teacher_is_asked_once_unless_it_says_too_much(teacher, monkeypatch, fits):
    train, validation = (len(Digits().arrays(split)["label"]) for split in ("train", "validation"))
    monkeypatch.setattr(learning, "MAX_TOLD_BYTES", train * 10 * 4 - (not fits))
    asked = []
    handle = teacher.register_forward_hook(lambda net, inputs, outputs: asked.append(len(outputs)))
    loop.seed(3)
    step = Distill(epochs=3, batch_size=32, weight=0.5)
    try:
        net = step.apply(Model(net=small(16), teacher=teacher), Digits()).net
    finally:
        handle.remove()
    before = 2 + -(-validation // 64) * 64  # to see that it fits, and to score it in full batches
    assert sum(asked) == before + (train if fits else learning.ASKED_AT_ONCE + 3 * train)
    # What is learned is the same but for how samples were put together when the teacher was asked.
    loop.seed(3)
    loss = learning.imitation(teachers.answers_of(teacher, Digits()), Digits(), 4.0, 0.5)
    wanted, _ = step.fit(small(16), Digits(), loss)
    for name, value in wanted.state_dict().items():
        assert torch.allclose(value, net.state_dict()[name], atol=1e-4)


def test_pruning_has_a_teacher_between_its_rounds(teacher):
    """Pure imitation of one that knows another code: what is left learns that code, and not the labels."""
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other[3].weight.copy_(other[3].weight.roll(1, 0))
        other[3].bias.copy_(other[3].bias.roll(1, 0))
    options = {"ratio": 0.5, "iterations": 1, "epochs": 4, "lr": 2e-3}
    loop.seed(2)
    labelled, taught = (
        Prune(weight=weight, **options).apply(Model(net=teacher, teacher=other), Digits()).net for weight in (0.0, 1.0)
    )
    scores = [evaluate(TorchSession(net, Digits()), Digits(), "test").score for net in (labelled, taught)]
    assert scores[0] > 0.85 > 0.3 > scores[1]  # by the labels, of which the teacher calls each another
    assert agreement_db(taught, other) > agreement_db(labelled, other) + 3


def test_the_largest_seed_and_a_batch_beyond_all_samples_are_taken():
    loop.seed(2**32 + 1)
    nets = []
    for batch_size in (960, 10**30):
        torch.manual_seed(0)
        options = {"batch_size": batch_size, "lr": 1e-2, "optimizer": "sgd", "schedule": "cosine", "weight_decay": 0.0}
        task = Noise(shape=(784,), num_samples=960)
        nets.append(loop.fit(small(4), task, task.loss, epochs=1, label="", **options)[0])
    assert torch.equal(nets[0][1].weight, nets[1][1].weight)


def test_the_divergence_is_zero_from_oneself_and_positive_from_others():
    logits = torch.randn(8, 10)
    same, other = {"logits": logits}, {"logits": torch.randn(8, 10)}
    assert Digits().imitate(same, same, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert Digits().imitate(same, {"logits": logits + 3}, 4.0).item() == pytest.approx(
        0, abs=1e-5
    )  # a shift is nothing
    assert Digits().imitate(same, other, 4.0).item() > 0


def test_the_divergence_is_that_of_the_formula():
    student, taught = np.array([[1.0, 2.0, 0.5]]), np.array([[0.2, 1.5, 3.0]])

    def softened(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits / 3.0)
        return powers / powers.sum()

    p, q = softened(taught), softened(student)
    wanted = 9 * (p * np.log(p / q)).sum()
    found = Digits().imitate({"logits": torch.tensor(student)}, {"logits": torch.tensor(taught)}, 3.0)
    assert found.item() == pytest.approx(wanted)


def test_a_task_without_classes_imitates_by_squared_difference():
    task = Noise()
    assert task.imitate({"y": torch.zeros(2, 3)}, {"y": torch.full((2, 3), 2.0)}, 1.0).item() == 4


def test_without_a_teacher_it_says_what_is_missing():
    with pytest.raises(UsageError, match="train step has to come before"):
        Distill().apply(Model(net=small(8)), SimpleNamespace())


# The losses, from their formulas


def test_masked_positions_of_a_sequence_count_for_nothing():
    student, taught = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    mask = torch.rand(3, 5) > 0.4
    among = imitation.divergence(student, taught, 2.0, mask)
    alone = [imitation.divergence(student[i, t], taught[i, t], 2.0) for i, t in mask.nonzero().tolist()]
    assert among.item() == pytest.approx(float(torch.stack(alone).mean()), rel=1e-5)
    student[~mask] *= 1e3
    assert imitation.divergence(student, taught, 2.0, mask).item() == pytest.approx(among.item())
    assert imitation.divergence(student, taught, 2.0).item() > among.item()


@pytest.mark.parametrize(
    ("task", "counts"), [(Translation(), [[1, 1, 0, 0], [1, 1, 1, 1]]), (Language(), [[1] * 4] * 2)]
)
def test_sequences_are_imitated_at_every_place_up_to_their_end(task, counts):
    student, taught = (torch.randn(2, 4, 7, dtype=torch.float64) for _ in range(2))
    own, wanted = ((logits / 2).softmax(2) for logits in (student, taught))
    each = 4 * (wanted * (wanted / own).log()).sum(2)
    batch = {"target": torch.tensor([[5, 2, 0, 0], [5, 6, 5, 6]])}
    distance = task.imitate({"logits": student}, {"logits": taught}, 2.0, batch)
    assert distance.item() == pytest.approx(each[torch.tensor(counts, dtype=torch.bool)].mean().item())


def test_feature_distance_is_a_share_and_knows_no_scale():
    taught = torch.randn(4, 6, 6, 8)
    assert imitation.feature_distance(taught, taught).item() == 0
    assert imitation.feature_distance(torch.zeros_like(taught), taught).item() == pytest.approx(1)
    student = torch.randn(4, 6, 6, 8)
    near = imitation.feature_distance(student, taught).item()
    assert imitation.feature_distance(7 * student, 7 * taught).item() == pytest.approx(near, rel=1e-5)


def test_attention_is_about_places_and_not_about_channels():
    student, taught = torch.randn(2, 4, 4, 3), torch.randn(2, 4, 4, 5)
    own, wanted = ((value.numpy() ** 2).mean(axis=-1).reshape(2, 16) for value in (student, taught))
    own, wanted = (value / np.linalg.norm(value, axis=1, keepdims=True) for value in (own, wanted))
    found = imitation.attention_distance(student, taught).item()
    assert found == pytest.approx(((own - wanted) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert imitation.attention_distance(student, taught.flip(3) * -3).item() == pytest.approx(found, rel=1e-5)
    assert imitation.attention_distance(taught, taught).item() == 0


def test_different_resolutions_are_compared_at_the_lower():
    taught = torch.randn(2, 4, 4, 3)
    student = taught.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert imitation.feature_distance(student, taught).item() == pytest.approx(0, abs=1e-12)
    assert imitation.feature_distance(taught, student).item() == pytest.approx(0, abs=1e-12)


def test_relations_are_kept_by_turning_scaling_and_shifting_and_by_nothing_else():
    taught = torch.randn(6, 4, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q[:4]
    assert imitation.relational_distance(3 * taught @ turned + 5, taught).item() == pytest.approx(0, abs=1e-12)
    student = taught.clone().requires_grad_()
    distance = imitation.relational_distance(student * torch.tensor([5.0, 1.0, 1.0, 1.0]), taught)
    assert distance.item() > 0.01
    distance.backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0


def test_relations_are_those_of_the_formula():
    student, taught = np.array([[0.0, 0], [3, 4], [0, 4]]), np.array([[0.0, 0], [1, 0], [0, 1]])

    def huber(one: np.ndarray, other: np.ndarray) -> float:
        gap = np.abs(one - other)
        return float(np.where(gap < 1, gap**2 / 2, gap - 0.5).mean())

    def distances(points: np.ndarray) -> np.ndarray:
        found = np.linalg.norm(points[:, None] - points[None], axis=2)
        return found / found[found > 0].mean()

    def angles(points: np.ndarray) -> np.ndarray:
        ways = points[:, None] - points[None]
        ways = ways / np.maximum(np.linalg.norm(ways, axis=2, keepdims=True), 1e-12)
        return np.einsum("ijk,ilk->ijl", ways, ways)

    wanted = huber(distances(student), distances(taught)) + 2 * huber(angles(student), angles(taught))
    found = imitation.relational_distance(torch.tensor(student), torch.tensor(taught))
    assert found.item() == pytest.approx(wanted, rel=1e-5)


# Inside networks


class Heads(nn.Module):
    """Attention over positions (N, T, C), with its probabilities given by a module."""

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.heads, self.into, self.softmax = heads, nn.Linear(8, 3 * channels), nn.Softmax(dim=-1)
        self.out = nn.Linear(channels, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.into(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.softmax(query @ key.transpose(2, 3)) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


def images(count: int = 2) -> tuple[torch.Tensor, ...]:
    return (torch.from_numpy(Digits().arrays("train")["image"][:count].copy()),)


def test_the_last_modules_of_stages_of_equal_resolution_are_paired():
    task = Digits()
    student, teacher = CNN(widths=(8, 16), hidden=32).build(task), ResNet().build(task)
    assert imitation.match(student, teacher, images(), task) == [
        ("relu1", "stage1"), ("relu2", "stage2"), ("pool2", "stage3"), ("relu_dense1", "flatten")
    ]  # fmt: skip
    assert imitation.match(small(8), teacher, images(), task) == [("2", "flatten")]


def test_networks_that_have_nothing_in_common_are_told_what_they_have():
    student = nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 10, 1), nn.Flatten())
    with pytest.raises(UsageError, match=r"no stage of the network \(0 9x9\) is like one of .* \(2 flat\)"):
        imitation.match(student, small(8), images(), Digits())


def test_inner_values_have_their_channels_last_and_leave_no_hook():
    net = nn.Sequential(nn.Conv1d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    with imitation.watching(net, ["0", "3"]) as values:
        net(torch.randn(2, 8, 20))
    assert {path: tuple(value.shape) for path, value in values.items()} == {"0": (2, 18, 6), "3": (2, 4)}
    recurrent = nn.Sequential(nn.LSTM(8, 6, batch_first=True))
    with imitation.watching(recurrent, ["0"]) as values:
        recurrent(torch.randn(2, 20, 8))
    assert values["0"].shape == (2, 20, 6)
    assert not any(module._forward_hooks for each in (net, recurrent) for module in each.modules())


def test_attention_probabilities_are_compared_over_heads_of_any_number():
    task = Noise(shape=(5, 8))
    teacher, net = Heads(4, 8), Heads(2, 8)
    inputs = torch.from_numpy(task.arrays("test")["x0"])

    def distance(student: nn.Module) -> float:
        found = []
        for each in (student, teacher):
            with torch.no_grad(), imitation.watching(each, ["softmax"]) as values:
                each(inputs)
            found.append(values["softmax"])
        assert [value.shape[1] for value in found] == [2, 4]
        return imitation.probability_distance(*found).item()

    step = Distill(attention=10.0, weight=1.0, layers=(("softmax", "softmax"),), epochs=20, lr=1e-2)
    taught = step.apply(Model(net=net, teacher=teacher), task).net
    assert distance(taught) < 0.6 * distance(net)


@pytest.mark.parametrize(
    ("fields", "measured"),
    [
        ({"features": 3.0}, "feature_distance"),
        ({"attention": 30.0}, "attention_distance"),
        ({"relational": 30.0}, "relational_distance"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_imitated_inside_comes_nearer_than_by_outputs_alone(fields, measured):
    """The same widths on both sides, so that features need no projection to be compared."""
    task = Digits()
    loop.seed(3)
    teacher = CNN(widths=(8, 16), hidden=32).build(task)  # as it begins: what is imitated can be anything
    net = CNN(widths=(8, 16), hidden=32).build(task)

    def distance(student: nn.Module) -> float:
        found = []
        for each in (student, teacher):
            with torch.no_grad(), imitation.watching(each, ["relu2", "relu_dense1"]) as values:
                each(*images(64))
            found.append(values["relu2" if measured == "attention_distance" else "relu_dense1"])
        return getattr(imitation, measured)(*found).item()

    results = []
    for extra in ({}, fields):
        loop.seed(4)
        step = Distill(epochs=1, batch_size=64, lr=4e-3, weight=1.0, **extra)
        model = step.apply(Model(net=net, teacher=teacher), task)
        results.append(distance(model.net))
    assert results[1] < 0.7 * results[0]
    assert model.lineage[-1].metrics["layers"] == [
        ("relu1", "relu1"), ("relu2", "relu2"), ("pool2", "pool2"), ("relu_dense1", "relu_dense1")
    ]  # fmt: skip


def test_projections_learn_along_and_are_gone_afterwards():
    task = Digits()
    loop.seed(3)
    teacher, net = ResNet(widths=(4, 8, 8)).build(task), CNN(widths=(4, 8), hidden=16).build(task)
    inputs = images()
    pairs = imitation.compared(net, teacher, inputs, [("relu1", "stage2"), ("relu2", "stage3")])
    watched = imitation.Watched(net, task, pairs)
    assert [tuple(module.weight.shape) for module in watched.projections if isinstance(module, nn.Linear)] == [(8, 4)]
    seen = watched.train()(*inputs)
    torch.testing.assert_close(seen["projected.0"], watched.projections[0](seen["inner.0"]))
    assert torch.equal(seen["projected.1"], seen["inner.1"])
    assert torch.equal(watched.eval()(*inputs), net(*inputs))

    options = {"features": 1.0, "attention": 1.0, "relational": 1.0, "epochs": 1, "batch_size": 128}
    taught = Distill(**options).apply(Model(net=net, teacher=teacher), task).net
    assert taught.state_dict().keys() == net.state_dict().keys()
    assert type(taught) is type(net)
    assert not any(module._forward_hooks for module in [*taught.modules(), *teacher.modules()])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"features": 1.0, "layers": (("relu3", "relu1"),)}, "the network has no module 'relu3'; did you mean relu"),
        ({"features": 1.0, "layers": (("relu1", "relu9"),)}, "its teacher has no module 'relu9'"),
        ({"features": 1.0, "layers": (("relu1", "dense1"),)}, "relu1 and dense1 cannot be compared"),
        ({"features": 1.0, "layers": (("flatten", "softmax"),)}, "and one of them probabilities"),
        ({"attention": 1.0, "layers": (("dense1", "dense1"),)}, "attention needs values with positions"),
    ],
)
def test_layers_that_cannot_be_compared_are_named(fields, said):
    net = CNN(widths=(4, 8), hidden=16).build(Digits())
    teacher = copy.deepcopy(net)
    teacher.add_module("softmax", nn.Softmax(dim=-1))
    with pytest.raises(UsageError, match=said):
        Distill(**fields).apply(Model(net=net, teacher=teacher), Digits())


def test_layers_without_a_loss_on_them_are_an_error():
    with pytest.raises(ValidationError, match="no weight for features, attention or relational"):
        Distill(layers=(("a", "b"),))


def test_a_pruned_network_can_learn_from_what_it_was_between_and_after_rounds():
    task = Digits()
    loop.seed(3)
    net = CNN(widths=(16, 16), hidden=32).build(task)
    smaller = Prune(ratio=0.5, iterations=1, epochs=0, importance="l1").apply(Model(net=net, teacher=net), task)
    loss = learning.imitation(teachers.answers_of(net, task), task, temperature=2.0, weight=1.0)
    step = Prune(ratio=0.5, epochs=2, lr=2e-3)
    trained, _ = step.fit(smaller.net, task, loss)
    assert agreement_db(trained, net) > agreement_db(smaller.net, net) + 3
    model = Distill(features=1.0, epochs=1).apply(smaller, task)
    assert {name: value.shape for name, value in model.net.state_dict().items()} == {
        name: value.shape for name, value in smaller.net.state_dict().items()
    }


# Teachers from elsewhere

RECIPE = """
task = { use = "digits" }
model = { use = "cnn", widths = [8, 16], hidden = 32 }
steps = [
  { use = "train", epochs = 3, lr = 3e-3 },
  { use = "prune", ratio = 0.5, iterations = 1, epochs = 1, importance = "l1" },
]
targets = [ { use = "onnxruntime" } ]
limits = { score_drop = 1.0, slower = "allow" }
bench = { min_seconds = 0.1, rounds = 5 }
"""
STUDENT = """
task = { use = "digits" }
model = { use = "mlp", widths = [16] }
steps = [ { use = "train", epochs = 1 }, { use = "distill", epochs = 1, teacher = "TEACHER" } ]
targets = [ { use = "onnxruntime" } ]
limits = { score_drop = 1.0, slower = "allow" }
bench = { min_seconds = 0.1, rounds = 5 }
"""


@pytest.fixture(scope="module")
def taught_run(tmp_path_factory) -> Path:
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("runs")
    return pipeline.compress(recipe.parse(RECIPE, root / "teacher.toml"), RECIPE, root).folder


def test_another_run_a_step_of_it_and_its_recipe_are_teachers(taught_run):
    rows = read_report(taught_run)["rows"]
    for name, variant in ((taught_run, "compressed"), (taught_run.parent, "compressed"),
                          (taught_run / "steps/00-train", "float")):  # fmt: skip
        teacher = teachers.load(str(name), Digits())
        score = evaluate(TorchSession(teacher.net, Digits()), Digits(), "test").score
        assert score == next(row["score"] for row in rows if row["variant"] == variant)
    model = Distill(epochs=1, teacher=str(taught_run), features=1.0).apply(Model(net=small(8)), Digits())
    assert model.lineage[-1].metrics["layers"] == [("2", "relu_dense1")]
    assert model.lineage[-1].metrics["teacher"] == str(taught_run)


@pytest.mark.parametrize("relational", [0.0, 1.0])
def test_a_model_file_teaches_as_the_network_in_it_would(taught_run, relational):
    file = taught_run / "targets/float/onnxruntime/model.onnx"
    options = {"epochs": 2, "lr": 2e-3, "weight": 1.0, "relational": relational}
    net = small(32)
    loop.seed(1)
    student = Distill(teacher=str(file), **options).apply(Model(net=net), Digits())
    assert student.lineage[-1].metrics["teacher_score"] == pytest.approx(
        teachers.load(str(taught_run / "steps/00-train"), Digits()).score
    )
    teacher = teachers.load(str(taught_run / "steps/00-train"), Digits()).net
    assert agreement_db(student.net, teacher) > agreement_db(net, teacher) + 3
    if not relational:
        loop.seed(1)
        by_network = Distill(**options).apply(Model(net=net, teacher=teacher), Digits())
        assert agreement_db(student.net, by_network.net) > 40


def test_a_teacher_that_changed_is_not_taken_from_earlier_runs(taught_run, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    for name in ("weights.safetensors", "structure.json"):
        (folder / name).write_bytes((taught_run / "steps/00-train" / name).read_bytes())
    text = STUDENT.replace("TEACHER", str(folder))
    parsed = recipe.parse(text, tmp_path / "own.toml")
    before = [stages.stage_key(parsed, index) for index in (0, 1)]
    assert [stages.stage_key(parsed, index) for index in (0, 1)] == before
    for name in ("weights.safetensors", "structure.json"):
        (folder / name).write_bytes((taught_run / "steps/01-prune" / name).read_bytes())
    train, distill = (stages.stage_key(parsed, index) for index in (0, 1))
    assert train == before[0]
    assert distill != before[1]


def test_a_teacher_that_is_missing_is_named_before_anything_trains(taught_run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("it trains"))
    (tmp_path / "empty").mkdir()
    model = taught_run / "targets/float/onnxruntime/model.onnx"
    for name, extra, error, said in (
        ("nowhere", "", UsageError, "teacher nowhere: no such file or folder"),
        (tmp_path / "empty", "", UsageError, "there are no weights in it"),
        (taught_run / "recipe.toml", "", ModelFileError, 'unknown ending ".toml"'),
        (model, ", features = 1.0", UsageError, "only the outputs are seen"),
    ):
        text = STUDENT.replace('"TEACHER"', f'"{name}"{extra}')
        with pytest.raises(error, match=said):
            pipeline.compress(recipe.parse(text, tmp_path / "own.toml"), text, tmp_path)


def test_a_teacher_of_other_outputs_is_refused():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 12))
    with pytest.raises(UsageError, match=r"the teacher answers logits \(12,\) for each sample, the network \(10,\)"):
        Distill(epochs=1).apply(Model(net=small(8), teacher=teacher), Digits())
