"""Policies: the recipe in a small form, episodes that files play, learning by playing, environments of other names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgedl.core import DataError, Model, UsageError
from edgedl.measure import evaluate
from edgedl.models.policy import Policy
from edgedl.steps.reinforce import Reinforce
from edgedl.tasks.control import SEEDS, Control, environment
from edgedl.tasks.digits import Digits
from edgedl.torch_session import TorchSession
from tests.tiny import tiny_run, told


class Fixed(torch.nn.Module):
    """Pushes to where the pole leans, or always to the left."""

    def __init__(self, look: bool) -> None:
        super().__init__()
        self.look = look

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        leans = observation[:, 2:3] if self.look else -torch.ones_like(observation[:, :1])
        return torch.cat([-leans, leans], 1)


def test_the_recipe_runs(tmp_path):
    report = tiny_run("policy-int8", tmp_path, episodes=6)
    assert report["metric"]["name"] == "mean return"
    assert report["ladder"][0]["rungs"][0]["score"] >= 8
    told(report, tmp_path)


def test_a_file_plays_the_episode_of_each_seed():
    task = Control(episodes=5)
    for look, low, high in ((False, 8, 11), (True, 25, 70)):
        scored = evaluate(TorchSession(Fixed(look), task), task, "test")
        assert scored.outputs["return"].shape == (5,)
        assert low <= scored.score <= high
        assert task.figures(None, scored.outputs, {}) == {"worst return": scored.outputs["return"].min()}
    place = environment("CartPole-v1")
    place.reset(seed=SEEDS["test"] + 3)
    steps = next(count for count in range(1, 100) if place.step(0)[2])
    assert evaluate(TorchSession(Fixed(False), task), task, "test").outputs["return"][3] == steps


def test_episodes_do_not_depend_on_how_many_are_played_side_by_side():
    task = Control(episodes=5)
    alone, together = (evaluate(TorchSession(Fixed(True), task, size), task, "test") for size in (1, 64))
    np.testing.assert_array_equal(alone.outputs["return"], together.outputs["return"])


def test_recorded_observations_are_standardized_and_of_other_episodes_for_each_split():
    task = Control()
    train, test = task.arrays("train"), task.arrays("test")
    assert train["observation"].shape == (2000, 4)
    np.testing.assert_allclose(train["observation"].mean(0), 0, atol=0.1)
    np.testing.assert_allclose(train["observation"].std(0), 1, atol=0.1)
    assert len(test["seed"]) == 100
    assert not set(test["seed"]) & set(task.arrays("validation")["seed"])
    assert set(train["label"]) == {0, 1}
    np.testing.assert_array_equal(task.arrays("calibration")["observation"], train["observation"][:512])


def test_playing_teaches_to_do_what_paid():
    task = Control(episodes=10)
    torch.manual_seed(0)
    model = Model(net=Policy(widths=(16,)).build(task))
    before = evaluate(TorchSession(model.net, task), task, "test").score
    trained = Reinforce(epochs=20, episodes=8, lr=0.02).apply(model, task)
    epochs = trained.lineage[-1].metrics["epochs"]
    assert [entry["epoch"] for entry in epochs] == [10, 20]
    assert evaluate(TorchSession(trained.net, task), task, "test").score > max(60, 1.5 * before)


def test_a_task_without_episodes_cannot_be_played():
    with pytest.raises(UsageError, match="task digits has no episodes to play"):
        Reinforce().apply(Model(net=torch.nn.Identity()), Digits())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CartPoles-v1", "environment CartPoles-v1: .*CartPoles"),
        ("Pendulum-v1", r"environment Pendulum-v1: observations are Box.*actions Box.*; needed are Box and Discrete"),
        ("CliffWalking-v1", r"environment CliffWalking-v1: observations are Discrete\(48\)"),
    ],
)
def test_environments_that_will_not_do_are_named(name, said):
    with pytest.raises(DataError, match=said):
        Control(environment=name).arrays("train")


def test_other_environments_are_played_by_name():
    task = Control(environment="MountainCar-v0", episodes=2)
    assert (task.num_actions, task.inputs["observation"].shape) == (3, (2,))
    scored = evaluate(TorchSession(Policy(widths=(4,)).build(task), task), task, "test")
    assert -200 <= scored.score <= -50


def test_exhibits_are_the_worst_episodes():
    task = Control(episodes=10)
    batch = task.arrays("test")
    returns = np.arange(10, 0, -1.0)
    shown = task.exhibits({"float": {"return": returns}, "compressed": {"return": returns + 1}}, batch)
    assert len(shown) == 6
    assert shown[0].caption == "seed 10009"
    assert shown[0].panels["compressed"] == "return 2"
