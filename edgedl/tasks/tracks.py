"""Where something will go, from where it came and a map of what is around it: simulated traffic, or a CSV file."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from pydantic import PositiveFloat

from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.data import splits

if TYPE_CHECKING:
    import torch

PAST, FUTURE = 8, 12
"""Positions that are known, and that are to be found; as many as on the ETH and UCY tracks."""
CELLS = 32
"""The map's, each way; who it is of stands in the middle row, at a quarter of its width, and looks to the right."""
NUM_TRACKS: dict[Split, int] = {"train": 4000, "validation": 500, "test": 1000}
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
SECONDS = 0.4
"""Between two positions of simulated traffic."""
COLUMNS = ("frame", "agent", "x", "y")
EVERY = 4
"""Positions between the beginnings of two samples of one track."""


class Samples(NamedTuple):
    """Tracks, each seen from its own position at the present, looking to the right; (N, ...) float32."""

    past: np.ndarray
    """(N, 8, 2)"""
    future: np.ndarray
    """(N, 12, 2)"""
    map: np.ndarray
    """(N, 1, 32, 32), 0 or 1"""


class Tracks(Task):
    """Networks answer `deviation` (N, 12, 2) to `past` (N, 8, 2) and `map` (N, 1, 32, 32).

    Past positions are seen from the last one, its direction to the right, in units of 10 cells. The deviation is
    that of the future positions from going straight on as fast as in the last three steps.

    Without `file`, vehicles follow the bends of a road, more slowly where they are sharp, and are located within 0.1 m;
    the map shows the road, and another one that crosses it. With `file`, a CSV file with columns frame, agent, x and y;
    a fifth of the agents tests. Its map shows where other agents went, of those that train. A cell of the map is `cell`
    wide, in the unit of the tracks.
    Source of the measures and numbers: S. Pellegrini et al., You'll Never Walk Alone, 2009.
    """

    use: str = "tracks"
    file: str | None = None
    cell: PositiveFloat = 1.5
    outputs: ClassVar[tuple[str, ...]] = ("deviation",)

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        unit = "m" if self.file is None else ""  # whatever the file's is
        return Metric(name="ADE", unit=unit, higher_is_better=False)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"past": TensorSpec((PAST, 2)), "map": TensorSpec((1, CELLS, CELLS))}

    @property
    def num_future(self) -> int:
        """How many positions are to be found."""
        return FUTURE

    def arrays(self, split: Split) -> Batch:
        """`past` (N, 8, 2), `map` (N, 1, 32, 32) and `deviation` (N, 12, 2), float32. Raises `DataError`."""
        if split == "calibration":
            return {name: values[: splits.NUM_CALIBRATION] for name, values in self.arrays("train").items()}
        found = _simulated(split, self.cell) if self.file is None else _read(self.file, split, self.cell)
        past = found.past / np.float32(10 * self.cell)
        return {"past": past, "map": found.map, "deviation": found.future - _straight_on(found.past)}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean distance, the metric itself."""
        difference = outputs["deviation"] - batch["deviation"]
        return (difference.square().sum(-1) + 1e-6).sqrt().mean()

    def score(self, outputs: Batch, batch: Batch) -> float:
        """The average displacement error: the mean distance from the true positions."""
        return float(_distances(outputs, batch).mean())

    @property
    def baseline(self) -> Baseline:
        batch = self.arrays("test")
        return Baseline(self.score({"deviation": np.zeros_like(batch["deviation"])}, batch), "going straight on")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """The final displacement error: the mean distance at the last position."""
        return {"FDE": float(_distances(outputs, batch)[:, -1].mean())}

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Tracks from the farthest from straight on to the middle one."""
        bends = np.linalg.norm(batch["deviation"][:, -1], axis=1)
        shown = []
        for index in np.argsort(-bends, kind="stable")[:: max(1, len(bends) // 10)][:6]:
            past = batch["past"][index] * 10 * self.cell
            straight = _straight_on(past[None])[0]
            errors = {name: _distances(found, batch)[index].mean() for name, found in answers.items()}

            def drawn(deviation: np.ndarray | None, past: np.ndarray = past, index: int = index) -> np.ndarray:
                ahead = past[:0] if deviation is None else deviation + _straight_on(past[None])[0]
                return _picture(batch["map"][index, 0], past / self.cell, ahead / self.cell)

            panels = {"input": drawn(None), "truth": drawn(batch["deviation"][index])}
            panels |= {name: drawn(found["deviation"][index]) for name, found in answers.items()}
            said = ", ".join(f"{name} {error:.2f} m" for name, error in errors.items())
            far = np.linalg.norm(batch["deviation"][index] + straight, axis=1)[-1]
            shown.append(Exhibit(f"{far:.0f} m ahead, ADE: {said}", panels))
        return shown


def _distances(outputs: Batch, batch: Batch) -> np.ndarray:
    """(N, 12) float64"""
    return np.asarray(np.linalg.norm(outputs["deviation"].astype(np.float64) - batch["deviation"], axis=-1))


def _straight_on(past: np.ndarray) -> np.ndarray:
    """Positions (N, 12, 2) at the velocity of the last three steps."""
    velocity = (past[:, -1] - past[:, -4]) / 3
    return np.asarray(past[:, -1:] + velocity[:, None] * np.arange(1, FUTURE + 1, dtype=np.float32)[:, None])


def _seen_from(positions: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`points` (N, M, 2) as seen from the present of `positions` (N, 20, 2), the last three steps going right."""
    here, ahead = positions[:, PAST - 1], positions[:, PAST - 1] - positions[:, PAST - 4]
    length = np.linalg.norm(ahead, axis=1, keepdims=True)
    unit = np.where(length > 1e-9, ahead / np.maximum(length, 1e-9), [1.0, 0.0])  # who stands still looks to the right
    turn = np.stack([unit, np.stack([-unit[:, 1], unit[:, 0]], 1)], 2)
    return np.asarray((points - here[:, None]) @ turn)


def _map(points: np.ndarray, cell: float) -> np.ndarray:
    """Which cells hold points (M, 2): (1, 32, 32) float32."""
    column = np.floor(points[:, 0] / cell + CELLS / 4).astype(int)
    row = np.floor(points[:, 1] / cell + CELLS / 2).astype(int)
    inside = (column >= 0) & (column < CELLS) & (row >= 0) & (row < CELLS)
    cells = np.zeros((1, CELLS, CELLS), np.float32)
    cells[0, row[inside], column[inside]] = 1
    return cells


def _picture(cells: np.ndarray, past: np.ndarray, ahead: np.ndarray, zoom: int = 6) -> np.ndarray:
    """The map in grey, the past in blue, what is ahead in red; positions in cells."""
    grey = (40 + 80 * cells).repeat(zoom, 0).repeat(zoom, 1).astype(np.uint8)
    picture = np.repeat(grey[:, :, None], 3, 2)
    for positions, colour in ((past, (90, 160, 255)), (ahead, (255, 80, 60))):
        for x, y in positions:
            column, row = int((x + CELLS / 4) * zoom), int((y + CELLS / 2) * zoom)
            picture[max(row - 1, 0) : max(row + 2, 0), max(column - 1, 0) : max(column + 2, 0)] = colour
    return picture[::-1]


@lru_cache(maxsize=4)
def _simulated(split: Split, cell: float) -> Samples:
    rng, num = np.random.default_rng(SEEDS[split]), NUM_TRACKS[split]
    along = np.arange(0, 160, 0.5)
    bend = np.zeros((num, len(along)))
    for _ in range(4):
        middle, width, sharp = (
            rng.uniform(0, 140, (num, 1)),
            rng.uniform(6, 15, (num, 1)),
            rng.normal(0, 0.04, (num, 1)),
        )
        bend += sharp * np.exp(-np.square((along - middle) / width))
    heading = np.cumsum(bend, 1) * 0.5
    road = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 2), 1) * 0.5
    right = np.stack([np.sin(heading), -np.cos(heading)], 2)
    speed = np.minimum(rng.uniform(4, 12, (num, 1)), np.sqrt(3.0 / np.maximum(np.abs(bend), 1e-3)))
    rows, distance, offset = np.arange(num), rng.uniform(0, 10, num), rng.uniform(-1, 1, (num, 1))
    positions = []
    for _ in range(PAST + FUTURE):
        place = np.minimum((distance / 0.5).astype(int), len(along) - 1)
        part = (distance / 0.5 - place)[:, None]
        following = np.minimum(place + 1, len(along) - 1)
        middle = road[rows, place] * (1 - part) + road[rows, following] * part
        positions.append(middle + offset * right[rows, place])
        for _ in range(4):
            here = np.minimum((distance / 0.5).astype(int), len(along) - 1)
            distance = distance + speed[rows, here] * SECONDS / 4
    true = np.stack(positions, 1)
    located = true + np.r_[np.full(PAST, 0.1), np.zeros(FUTURE)][:, None] * rng.standard_normal(true.shape)
    across = np.linspace(-3, 3, 9)[:, None, None, None]
    wide = (road + across * right).transpose(1, 0, 2, 3).reshape(num, -1, 2)
    angle, step = rng.uniform(0, np.pi, (num, 1)), np.arange(-60, 60, 0.5)
    other = np.stack([np.cos(angle) * step, np.sin(angle) * step], 2)
    aside = np.stack([-np.sin(angle), np.cos(angle)], 2)
    crossing = road[rows, rng.integers(60, 260, num)][:, None] + other
    wider = (crossing + across * aside).transpose(1, 0, 2, 3).reshape(num, -1, 2)
    seen, around = _seen_from(located, located), _seen_from(located, np.concatenate([wide, wider], 1))
    return _samples(seen, [_map(points, cell) for points in around])


def _samples(seen: np.ndarray, maps: Sequence[np.ndarray]) -> Samples:
    positions = seen.astype(np.float32)
    return Samples(positions[:, :PAST], positions[:, PAST:], np.stack(maps))


@lru_cache(maxsize=4)
def _read(file: str, split: Split, cell: float) -> Samples:
    tracks = _tracks(file)
    chosen, training = (
        [tracks[index] for index in splits.chosen(len(tracks), part, f"{file}: tracks of {PAST + FUTURE} positions")]
        for part in (split, "train")
    )
    length = PAST + FUTURE
    seen, maps = [], []
    for track in chosen:
        others = np.concatenate([other for other in training if other is not track] or [track[:0]])
        for start in range(0, len(track) - length + 1, EVERY):
            positions = track[None, start : start + length]
            seen.append(_seen_from(positions, positions)[0])
            maps.append(_map(_seen_from(positions, others[None])[0], cell))
    return _samples(np.stack(seen), maps)


@lru_cache(maxsize=2)
def _tracks(file: str) -> list[np.ndarray]:
    """Positions (n, 2) of agents that are long enough in sight, at equal times one after another."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for line, agent, frame, position in _records(Path(file)):
        if frame in found.setdefault(agent, {}):
            raise DataError(f"{file}:{line}: agent {agent} is there twice in frame {frame}")
        found[agent][frame] = position
    gaps = Counter(gap for track in found.values() for gap in np.diff(sorted(track)).tolist())
    usual = gaps.most_common(1)[0][0] if gaps else 1
    tracks = []
    for track in found.values():
        frames = np.array(sorted(track))
        for part in np.split(frames, np.flatnonzero(np.diff(frames) != usual) + 1):
            if len(part) >= PAST + FUTURE:
                tracks.append(np.array([track[frame] for frame in part.tolist()]))
    return tracks


def _records(file: Path) -> Iterator[tuple[int, str, int, tuple[float, float]]]:
    """Line, agent, frame and position."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            if lacking := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise DataError(f"{file}: no column {', '.join(lacking)}; it has {', '.join(rows.fieldnames or ())}")
            for row in rows:
                try:
                    frame, x, y = int(float(row["frame"])), float(row["x"]), float(row["y"])
                except (TypeError, ValueError, OverflowError):
                    frame, x, y = 0, math.nan, math.nan
                if not (math.isfinite(x) and math.isfinite(y)):
                    values = ", ".join(str(row[name]) for name in COLUMNS)
                    raise DataError(f"{file}:{rows.line_num}: {values} is no frame, agent and position")
                yield rows.line_num, row["agent"], frame, (x, y)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV in UTF-8: {error}") from error
