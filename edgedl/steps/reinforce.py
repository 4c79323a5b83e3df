"""Trains a policy by playing: what led to more than usual is done more often."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from edgedl.core import Model, Step, Task, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

FIRST_SEED = 100_000


class Playing(Protocol):
    """Episodes side by side, as task `control` has them."""

    alive: np.ndarray
    returns: np.ndarray

    @property
    def over(self) -> bool: ...
    @property
    def observations(self) -> np.ndarray: ...
    def act(self, actions: np.ndarray) -> np.ndarray: ...


class Reinforce(Step):
    """Policy gradient: in each of `epochs`, `episodes` are played with actions drawn by the network's probabilities.

    The gradient is weighted by the discounted return from an action on, against the mean of all episodes at that
    step. The weights that validate best are kept, of every tenth epoch. Source: R. Williams, Simple Statistical
    Gradient-Following Algorithms for Connectionist Reinforcement Learning, 1992.
    """

    use: str = "reinforce"
    epochs: PositiveInt = 150
    """How many steps of learning, each after `episodes` were played."""
    episodes: PositiveInt = 16
    lr: PositiveFloat = 1e-2
    """The learning rate."""
    discount: Annotated[float, Field(gt=0, le=1)] = 0.99
    """What a reward is worth a move later."""
    entropy: NonNegativeFloat = 0.0
    """How much the loss rewards not to be sure."""

    compresses: ClassVar[bool] = False

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `UsageError` for a task that has no episodes to play, or if the loss diverges."""
        import torch

        from edgedl import checkpoint, progress
        from edgedl.measure import evaluate
        from edgedl.torch_session import TorchSession

        if not hasattr(task, "episodes_from"):
            raise UsageError(f"reinforce: task {task.use} has no episodes to play; task control has")
        course = checkpoint.Course(self.label, model.net.state_dict())
        net = copy.deepcopy(model.net)
        rule = torch.optim.Adam(net.parameters(), lr=self.lr)
        done, best, kept = 0, -float("inf"), copy.deepcopy(net.state_dict())
        history: list[dict[str, Any]] = []
        if (reached := course.reached()) is not None:
            done, best, kept, history = (reached[name] for name in ("done", "best", "kept", "history"))
            net.load_state_dict(reached["net"])
            rule.load_state_dict(reached["rule"])

        def state() -> dict[str, Any]:
            parts = {"net": net.state_dict(), "rule": rule.state_dict()}
            return parts | {"done": done, "best": best, "kept": kept, "history": history}

        with progress.stage(self.label, self.epochs, before=done) as advance:
            for epoch in range(done + 1, self.epochs + 1):
                played = task.episodes_from(FIRST_SEED + (epoch - 1) * self.episodes, self.episodes)
                loss = self._loss(net.train(), played)
                if not loss.isfinite():
                    raise UsageError(f"reinforce: the loss became {loss.item()}; try a smaller lr than {self.lr}")
                rule.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                rule.step()
                entry = {"epoch": epoch, "loss": loss.item(), "played": float(played.returns.mean())}
                if epoch % 10 == 0 or epoch == self.epochs:
                    entry["score"] = evaluate(TorchSession(net, task), task, "validation").score
                    if entry["score"] >= best:
                        best, kept = entry["score"], copy.deepcopy(net.state_dict())
                    history.append(entry)
                done = epoch
                course.keep(state)
                advance(1, f"return {entry['played']:.1f}, validated {best:.1f}")
        net.load_state_dict(kept)
        return model.after(self, {"epochs": history}, net=net.eval())

    def _loss(self, net: torch.nn.Module, played: Playing) -> torch.Tensor:
        import numpy as np
        import torch

        chances, taken, rewards, alive = [], [], [], []
        while not played.over:
            alive.append(played.alive.copy())
            spread = torch.distributions.Categorical(logits=net(torch.from_numpy(played.observations)))
            actions = spread.sample()  # type: ignore[no-untyped-call]
            chances.append(spread.entropy())  # type: ignore[no-untyped-call]
            taken.append(spread.log_prob(actions))  # type: ignore[no-untyped-call]
            rewards.append(played.act(actions.numpy()))
        to_come = np.stack(rewards)
        for step in range(len(to_come) - 2, -1, -1):
            to_come[step] += self.discount * to_come[step + 1]
        there = np.stack(alive)
        better = np.where(there, to_come - to_come.mean(1, keepdims=True), 0)
        weights = torch.from_numpy((better / max(better[there].std(), 1e-6)).astype(np.float32))
        mask = torch.from_numpy(there)
        gain = (torch.stack(taken) * weights)[mask].mean()
        return -gain - self.entropy * torch.stack(chances)[mask].mean()
