"""Acting in an environment of gymnasium: the score is the mean return of episodes that the network itself plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveInt

from edgedl.classes import Classes
from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, MissingPackage, Session, Split, TensorSpec

SEEDS: dict[Split, int] = {"train": 30_000, "validation": 20_000, "test": 10_000}
"""Of the first episode; the next ones count up."""
NUM_VALIDATION, NUM_TRAIN, NUM_CALIBRATION = 40, 2000, 512
NUM_TRIED, NUM_KEPT, NUM_PLAYED = 64, 16, 4
"""Linear policies drawn by chance, those of them whose play is recorded, and episodes that each plays."""
MAX_STEPS = 1000
"""Of an episode in an environment that sets itself no limit."""


class Control(Classes):
    """Networks answer `logits` (N, actions) to `observation` (N, ...): the highest is the action.

    `predict` answers recorded observations, so that files can be compared, and beside that plays an episode for each
    sample's `seed`; its `return` is what is scored. What is recorded is the play of linear policies drawn by chance,
    of the best 16 of 64, and `label` is the action that they chose; their observations have mean 0 and deviation 1 in
    each number, here and in episodes. Any `environment` with observations in a Box and Discrete actions will do.
    Source: A. Barto, R. Sutton and C. Anderson, Neuronlike Adaptive Elements That Can Solve Difficult Learning Control
    Problems, 1983; M. Towers et al., Gymnasium, 2024.
    """

    use: str = "control"
    environment: str = "CartPole-v1"
    episodes: PositiveInt = 100
    """How many are played for a score."""
    metric: ClassVar[Metric] = Metric(name="mean return", unit="", higher_is_better=True)

    @property
    def num_actions(self) -> int:
        return int(environment(self.environment).action_space.n)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"observation": TensorSpec(tuple(environment(self.environment).observation_space.shape))}

    def arrays(self, split: Split) -> Batch:
        """`observation` (N, ...) float32, `label` and `seed` (N,) int64. Raises `DataError`."""
        sizes: dict[Split, int] = {"validation": NUM_VALIDATION, "test": self.episodes, "calibration": NUM_CALIBRATION}
        first = SEEDS["train" if split == "calibration" else split]
        observations, actions = _recorded(self.environment, first)
        size = sizes.get(split, NUM_TRAIN)
        chosen = np.arange(size) % len(actions)
        return {
            "observation": self.standardized(observations[chosen]),
            "label": actions[chosen],
            "seed": first + np.arange(size),
        }

    def episodes_from(self, first_seed: int, num: int) -> Episodes:
        """New episodes, one for each seed from the first on."""
        return Episodes(self, first_seed + np.arange(num))

    def standardized(self, observations: np.ndarray) -> np.ndarray:
        """Observations (N, ...) as networks see them, float32."""
        mean, deviation = _moments(self.environment)
        return np.asarray((observations - mean) / deviation, np.float32)

    def predict(self, session: Session, batch: Batch) -> Batch:
        """`logits` (N, actions) of the observations, and `return` (N,) of an episode that begins with each seed."""
        answered = session.run({"observation": batch["observation"]})
        episodes = Episodes(self, batch["seed"])
        while not episodes.over:
            logits = session.run({"observation": episodes.observations})["logits"]
            episodes.act(logits.argmax(axis=1))
        return {"logits": answered["logits"], "return": episodes.returns}

    def score(self, outputs: Batch, batch: Batch) -> float:
        return float(outputs["return"].mean())

    @property
    def baseline(self) -> Baseline:
        episodes, chance = Episodes(self, self.arrays("test")["seed"]), np.random.default_rng(0)
        while not episodes.over:
            episodes.act(chance.integers(self.num_actions, size=self.episodes))
        return Baseline(self.score({"return": episodes.returns}, {}), "acting by chance")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """The return of the worst episode."""
        return {"worst return": float(outputs["return"].min())}

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """The episodes that variants play worst."""
        returns = {name: found["return"] for name, found in answers.items()}
        shown = []
        for index in np.argsort(np.minimum.reduce(list(returns.values())), kind="stable")[:6]:
            panels: dict[str, str | np.ndarray] = {"input": f"the episode of seed {batch['seed'][index]}"}
            panels |= {name: f"return {found[index]:g}" for name, found in returns.items()}
            shown.append(Exhibit(f"seed {batch['seed'][index]}", panels))
        return shown


class Episodes:
    """Episodes side by side, from their seeds to their ends."""

    def __init__(self, task: Control, seeds: np.ndarray) -> None:
        self.task = task
        self.places = [environment(task.environment) for _ in seeds]
        self.limit = getattr(self.places[0].spec, "max_episode_steps", None) or MAX_STEPS
        self.raw = np.stack([place.reset(seed=int(seed))[0] for place, seed in zip(self.places, seeds, strict=True)])
        self.returns = np.zeros(len(seeds))
        self.alive = np.ones(len(seeds), bool)
        self.num_steps = 0

    @property
    def over(self) -> bool:
        return not self.alive.any()

    @property
    def observations(self) -> np.ndarray:
        """What networks see of each, (N, ...) float32; of an episode that is over, its last."""
        return self.task.standardized(self.raw)

    def act(self, actions: np.ndarray) -> np.ndarray:
        """One step in each that is not over; the rewards (N,)."""
        rewards = np.zeros(len(self.places))
        self.num_steps += 1
        for index in np.flatnonzero(self.alive):
            observation, reward, ended, cut_off, _ = self.places[index].step(int(actions[index]))
            self.raw[index], rewards[index] = observation, reward
            self.alive[index] = not (ended or cut_off or self.num_steps >= self.limit)
        self.returns += rewards
        return rewards


def environment(name: str) -> Any:
    """A new one. Raises `DataError` for a name that gymnasium does not know, or for other spaces."""
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise MissingPackage("task control needs gymnasium: pip install 'edgedl[train]'") from error
    try:
        made = gymnasium.make(name, disable_env_checker=True)
    except gymnasium.error.Error as error:
        raise DataError(f"environment {name}: {error}") from error
    seen, actions = made.observation_space, made.action_space
    if not (isinstance(seen, gymnasium.spaces.Box) and isinstance(actions, gymnasium.spaces.Discrete)):
        raise DataError(f"environment {name}: observations are {seen}, actions {actions}; needed are Box and Discrete")
    if actions.start != 0:
        raise DataError(f"environment {name}: its actions count from {actions.start}, not from 0")
    return made


@lru_cache(maxsize=8)
def _moments(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each number that is recorded to train on; 1 for one that never changes."""
    observations, _ = _recorded(name, SEEDS["train"])
    deviation = observations.std(0)
    return observations.mean(0), np.where(deviation > 1e-6, deviation, 1)


@lru_cache(maxsize=8)
def _recorded(name: str, first_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations (N, ...) and actions (N,) of linear policies drawn by chance, shuffled."""
    rng, place = np.random.default_rng(first_seed), environment(name)
    limit = getattr(place.spec, "max_episode_steps", None) or MAX_STEPS
    played = []
    for _ in range(NUM_TRIED):
        weights = rng.standard_normal((place.action_space.n, int(np.prod(place.observation_space.shape)) + 1))
        seen, done, total = [], [], 0.0
        for episode in range(NUM_PLAYED):
            observation, _ = place.reset(seed=first_seed + episode)
            for _ in range(limit):
                action = int((weights[:, :-1] @ np.ravel(observation) + weights[:, -1]).argmax())
                seen.append(observation)
                done.append(action)
                observation, reward, ended, cut_off, _ = place.step(action)
                total += float(reward)
                if ended or cut_off:
                    break
        played.append((total, np.stack(seen), np.array(done, np.int64)))
    best = sorted(played, key=lambda policy: -policy[0])[:NUM_KEPT]
    part = min(len(done) for _, _, done in best)
    order = [rng.permutation(len(done))[:part] for _, _, done in best]
    observations = np.concatenate([seen[some] for some, (_, seen, _) in zip(order, best, strict=True)])
    actions = np.concatenate([done[some] for some, (_, _, done) in zip(order, best, strict=True)])
    shuffled = rng.permutation(len(actions))
    return observations[shuffled], actions[shuffled]
