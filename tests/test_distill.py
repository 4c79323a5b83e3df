"""Distillation: the student moves to its teacher, and what the loss is made of."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from edgedl import stats, training
from edgedl.core import Model, UsageError
from edgedl.measure import evaluate
from edgedl.steps.distill import Distill
from edgedl.tasks.digits import Digits
from edgedl.torch_session import TorchSession
from tests.toys import Noise


def small(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    training.seed(0)
    task = Digits()
    options = {"batch_size": 32, "lr": 1e-3, "optimizer": "adam", "schedule": "cosine", "weight_decay": 0.0}
    return training.fit(small(64), task, task.loss, epochs=4, label="teacher", **options)[0]


def agreement_db(net: nn.Module, teacher: nn.Module) -> float:
    outputs = [evaluate(TorchSession(each, Digits()), Digits(), "test").outputs["logits"] for each in (teacher, net)]
    return stats.sqnr_db(*(logits - logits.mean(axis=1, keepdims=True) for logits in outputs))


def test_a_student_of_pure_imitation_gets_its_teachers_outputs(teacher):
    training.seed(1)
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
    training.seed(5)
    distilled = Distill(weight=0.0, **options).apply(Model(net=net, teacher=teacher), Digits()).net
    training.seed(5)
    trained, _ = training.fit(net, Digits(), Digits().loss, weight_decay=0.0, label="", **options)
    for name, value in trained.state_dict().items():
        assert torch.allclose(value, distilled.state_dict()[name], atol=1e-6)


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
