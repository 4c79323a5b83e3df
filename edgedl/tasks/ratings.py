"""What users think of items, in stars: drawn from a latent model whose noise is known, or MovieLens from a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgedl import files, measure
from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Session, Split, Task, TensorSpec

if TYPE_CHECKING:
    import torch

NUM_USERS, NUM_ITEMS, NUM_RATINGS, NUM_TRAITS = 1000, 1700, 200_000, 2
"""As many users and items as in MovieLens 100K, and twice as many ratings."""
NOISE = 0.5
"""The standard deviation, in stars, of what no model can foresee."""
NUM_RANKED, NUM_RIVALS, LIKED = 200, 99, 4.0
"""Users for whom an item that they gave so many stars at least is held against others, and how many others."""
NUM_EXHIBITS = 6
COLUMNS = ("userId", "movieId", "rating")


class Ratings(Task):
    """Batches hold `user`, `item` (N,) int32 and `stars` (N,) float32; networks answer `stars` (N,).

    Without `file`: 200,000 pairs of 1,000 users and 1,700 items, of 1.7 million. A rating is 3.5, what is special about
    the user and about the item (0.3 stars each, standard deviation), how well they match in two traits (0.9 stars), and
    noise of 0.5 stars, which is the least root-mean-square error that can be reached. `file` is u.data or ratings.csv
    of MovieLens; users and items are numbered in the order of their ids. A twentieth of the pairs tests, another
    validates.

    Beside the error there are hit rate and NDCG of the best ten: for up to 200 users, one test item that they gave
    four stars or more is put in order with 99 that they have not rated. By chance one in ten is among the best ten.
    Source: F. Harper and J. Konstan, The MovieLens Datasets: History and Context, 2015.
    """

    use: str = "ratings"
    file: str | None = None
    outputs: ClassVar[tuple[str, ...]] = ("stars",)
    metric: ClassVar[Metric] = Metric(name="RMSE", unit="stars", higher_is_better=False)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"user": TensorSpec((), "int32"), "item": TensorSpec((), "int32")}

    @property
    def num_users(self) -> int:
        return NUM_USERS if self.file is None else int(_read(self.file)[0].max()) + 1

    @property
    def num_items(self) -> int:
        return NUM_ITEMS if self.file is None else int(_read(self.file)[1].max()) + 1

    def arrays(self, split: Split) -> Batch:
        """`user`, `item` (N,) int32 and `stars` (N,) float32. Raises `DataError`."""
        users, items, stars = _drawn() if self.file is None else _read(self.file)
        twentieth = len(stars) // 20
        slices: dict[Split, slice] = {
            "test": slice(0, twentieth),
            "validation": slice(twentieth, 2 * twentieth),
            "train": slice(2 * twentieth, None),
            "calibration": slice(2 * twentieth, 2 * twentieth + 512),
        }
        chosen = np.random.default_rng(0).permutation(len(stars))[slices[split]]
        return {"user": users[chosen], "item": items[chosen], "stars": stars[chosen]}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error."""
        return (outputs["stars"] - batch["stars"]).square().mean()

    def score(self, outputs: Batch, batch: Batch) -> float:
        return math.sqrt(float(np.square(outputs["stars"] - batch["stars"]).mean()))

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """How often the held-out item is among the best ten, and how high it stands there."""
        import torch
        from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg

        held, rivals = _rivals(self.file)
        if len(held) == 0:
            return {}
        others = self._stars(session, np.repeat(batch["user"][held], NUM_RIVALS), rivals.ravel())
        found: dict[str, list[float]] = {"HR@10": [], "NDCG@10": []}
        for place, (own, row) in enumerate(zip(outputs["stars"][held], others.reshape(rivals.shape), strict=True)):
            # In another place each time: where int8 gives several items the same stars, none may gain by its place.
            place %= NUM_RIVALS + 1
            asked = torch.from_numpy(np.insert(row, place, own)), torch.arange(NUM_RIVALS + 1) == place
            found["HR@10"].append(float(retrieval_hit_rate(*asked, top_k=10)))
            found["NDCG@10"].append(float(retrieval_normalized_dcg(*asked, top_k=10)))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _stars(self, session: Session, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """What a file answers to pairs (N,), as many at a time as it takes."""
        size = measure.batch_size(session)
        pairs = ({"user": users[at : at + size], "item": items[at : at + size]} for at in range(0, len(users), size))
        return measure.answers(session, self, pairs)["stars"]

    @property
    def baseline(self) -> Baseline:
        mean, batch = self.arrays("train")["stars"].mean(), self.arrays("test")
        return Baseline(self.score({"stars": mean}, batch), "always answering the mean")

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """The pairs on which the files differ most."""
        predicted = {name: outputs["stars"] for name, outputs in answers.items()}
        order = np.argsort(-np.ptp(list(predicted.values()), axis=0), kind="stable")[:NUM_EXHIBITS]
        stars = {"truth": batch["stars"], **predicted}
        return [
            Exhibit(
                f"user {batch['user'][index]}, item {batch['item'][index]}",
                {name: f"{values[index]:.2f} stars" for name, values in stars.items()},
            )
            for index in order
        ]


@lru_cache(maxsize=2)
def _rivals(file: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The places (n,) of test pairs, at most one of a user, and for each (n, 99) items that the user has not rated."""
    users, items, stars = _drawn() if file is None else _read(file)
    num_items = int(items.max()) + 1
    test = np.random.default_rng(0).permutation(len(stars))[: len(stars) // 20]
    liked = np.flatnonzero(stars[test] >= LIKED)
    _, first = np.unique(users[test[liked]], return_index=True)
    chance, held, rivals = np.random.default_rng(1), [], []
    for row in liked[np.sort(first)[:NUM_RANKED]]:
        unrated = np.setdiff1d(np.arange(num_items, dtype=np.int32), items[users == users[test[row]]])
        if len(unrated) >= NUM_RIVALS:
            held.append(row)
            rivals.append(chance.permutation(unrated)[:NUM_RIVALS])
    return np.array(held, int), np.array(rivals, np.int32).reshape(-1, NUM_RIVALS)


@lru_cache(maxsize=1)
def _drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and stars of different pairs."""
    rng = np.random.default_rng(0)
    pairs = rng.permutation(NUM_USERS * NUM_ITEMS)[:NUM_RATINGS]
    users, items = pairs // NUM_ITEMS, pairs % NUM_ITEMS
    about_users, about_items = (0.3 * rng.standard_normal(size) for size in (NUM_USERS, NUM_ITEMS))
    traits = (rng.standard_normal((size, NUM_TRAITS)) for size in (NUM_USERS, NUM_ITEMS))
    of_users, of_items = traits
    match = 0.9 / math.sqrt(NUM_TRAITS) * (of_users[users] * of_items[items]).sum(1)
    stars = 3.5 + about_users[users] + about_items[items] + match + NOISE * rng.standard_normal(NUM_RATINGS)
    return users.astype(np.int32), items.astype(np.int32), stars.astype(np.float32)


@lru_cache(maxsize=2)
def _read(file: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = list(_records(Path(file)))
    if len(rows) < 20:
        raise DataError(f"{file}: {len(rows)} ratings are too few: a twentieth of them is to test on")
    _, users = np.unique([user for user, _, _ in rows], return_inverse=True)
    _, items = np.unique([item for _, item, _ in rows], return_inverse=True)
    return users.astype(np.int32), items.astype(np.int32), np.array([stars for *_, stars in rows], np.float32)


def _records(file: Path) -> Iterator[tuple[int, int, float]]:
    """User, item and stars, line by line: with tabs between them, or with commas under a header."""
    lines = files.read_text(file).splitlines()
    separator, places = "\t", [0, 1, 2]
    if lines and "\t" not in lines[0]:
        header, separator = lines[0].split(","), ","
        if lacking := [name for name in COLUMNS if name not in header]:
            raise DataError(f"{file}: no column {', '.join(lacking)}, and no tabs as in u.data; line 1 is {lines[0]!r}")
        places = [header.index(name) for name in COLUMNS]
    for number, line in enumerate(lines, start=1):
        if number == 1 and separator == ",":
            continue
        try:
            user, item, stars = (line.split(separator)[place] for place in places)
            record = int(user), int(item), float(stars)
        except (IndexError, ValueError) as error:
            raise DataError(f"{file}:{number}: {line!r} is no user, item and rating") from error
        if not 0 <= record[2] <= 5:  # which no NaN is, either
            raise DataError(f"{file}:{number}: a rating of {stars}; stars go from 0 to 5")
        yield record
