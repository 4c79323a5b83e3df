"""What tasks report besides their score: against formulas written out, and by the files themselves."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgedl.core import TensorSpec
from edgedl.measure import evaluate
from edgedl.tasks import ratings
from edgedl.tasks.denoising import Denoising
from edgedl.tasks.ratings import Ratings
from edgedl.tasks.text import Text
from edgedl.tasks.xray import Xray


def test_f1_is_the_mean_over_classes(tmp_path):
    file = tmp_path / "films.csv"
    file.write_text("text,label\n" + "".join(f"some words {index},{'abc'[index % 3]}\n" for index in range(60)))
    task = Text(csv=str(file), words=4, vocabulary=8)
    rng = np.random.default_rng(0)
    truth, logits = rng.integers(0, 3, 50), rng.normal(size=(50, 3)).astype(np.float32)
    found = logits.argmax(axis=1)
    shares = [
        2 * ((found == kind) & (truth == kind)).sum() / ((found == kind).sum() + (truth == kind).sum())
        for kind in range(3)
    ]
    assert task.figures(None, {"logits": logits}, {"label": truth}) == {
        "F1 (macro)": pytest.approx(np.mean(shares), abs=1e-6)
    }


def test_sensitivity_is_that_of_the_best_threshold_that_is_specific_enough():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200)
    excess = (rng.normal(size=200) + 1.5 * truth).astype(np.float32)
    best = max(
        ((excess >= threshold) & (truth == 1)).sum() / truth.sum()
        for threshold in excess
        if ((excess < threshold) & (truth == 0)).sum() / (truth == 0).sum() >= 0.95
    )
    for scale in (1, 1000):  # large logits, whose sigmoids are all alike, too
        logits = scale * np.stack([-excess, excess], axis=1)
        (found,) = Xray().figures(None, {"logits": logits}, {"label": truth}).values()
        assert found == pytest.approx(best, abs=1e-6)
    assert 0.1 < best < 0.9


def test_ssim_is_1_for_the_clean_image_and_less_for_others():
    task = Denoising()
    batch = {name: values[:40] for name, values in task.arrays("test").items()}
    assert task.figures(None, {"restored": batch["clean"]}, batch)["SSIM"] == pytest.approx(1, abs=1e-6)
    noisy = task.figures(None, {"restored": batch["image"]}, batch)["SSIM"]
    nearer = task.figures(None, {"restored": (batch["image"] + batch["clean"]) / 2}, batch)["SSIM"]
    assert 0.1 < noisy < nearer < 0.95


class Critic:
    """A file that gives stars by a function of user and item, and takes so many pairs at a time."""

    runtime = "none"

    def __init__(self, stars, batch_size: int) -> None:
        self.stars, self.batch_size, self.calls = stars, batch_size, 0
        self.inputs = {name: TensorSpec((batch_size,), "int32") for name in ("user", "item")}

    def run(self, batch):
        assert {name: (values.shape, values.dtype) for name, values in batch.items()} == dict.fromkeys(
            ("user", "item"), ((self.batch_size,), np.dtype("int32"))
        )
        self.calls += 1
        return {"stars": np.asarray(self.stars(batch["user"], batch["item"]), np.float32)}


@pytest.fixture
def task(tmp_path, monkeypatch) -> Ratings:
    """Ratings of 40 users, each of a quarter of 200 items; the last item of all is what everybody loves."""
    monkeypatch.setattr(ratings, "NUM_RANKED", 25)
    rng = np.random.default_rng(0)
    lines = [f"{user}\t{item}\t{rng.integers(1, 6)}\t0\n" for user in range(40) for item in rng.permutation(200)[:50]]
    file = tmp_path / "u.data"
    file.write_text("".join(lines))
    yield Ratings(file=str(file))
    ratings._rivals.cache_clear()


def test_rivals_are_items_that_the_user_has_not_rated(task):
    test, (held, rivals) = task.arrays("test"), ratings._rivals(task.file)
    assert 10 < len(held) <= 25
    assert rivals.shape == (len(held), 99)
    assert len(set(test["user"][held])) == len(held)
    assert (test["stars"][held] >= 4).all()
    rated = set()
    for split in ("train", "validation", "test"):
        batch = task.arrays(split)
        rated |= set(zip(batch["user"], batch["item"], strict=True))
    for user, items in zip(test["user"][held], rivals, strict=True):
        assert len(set(items)) == 99
        assert not rated & {(user, item) for item in items}


def figures_of(session, task):
    return task.figures(session, evaluate(session, task, "test").outputs, task.arrays("test"))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 128])
def test_hit_rate_and_ndcg_are_of_the_held_out_item_among_its_rivals(task, batch_size):
    test, (held, rivals) = task.arrays("test"), ratings._rivals(task.file)

    def stars(user, item):
        return (user * 31 + item * 17) % 101 / 20

    session = Critic(stars, batch_size)
    scored = evaluate(session, task, "test")
    assert session.calls == -(-len(test["user"]) // batch_size)  # rivals belong to the figures, not to the score
    np.testing.assert_allclose(scored.outputs["stars"], stars(test["user"], test["item"]), rtol=1e-6)
    found = task.figures(session, scored.outputs, test)
    ranks = []
    for user, item, items in zip(test["user"][held], test["item"][held], rivals, strict=True):
        own, others = np.float32(stars(user, item)), np.asarray(stars(user, items), np.float32)
        assert len(np.unique([own, *others])) > 50
        ranks.append(((others > own).sum(), (others == own).sum()))
    certain = [above for above, same in ranks if not same or above + same < 10 or above >= 10]
    assert len(certain) > 10
    low = sum(above + same < 10 for above, same in ranks) / len(ranks)
    high = sum(above < 10 for above, _ in ranks) / len(ranks)
    assert low <= found["HR@10"] <= high
    gains = [
        np.mean([1 / np.log2(2 + place) if place < 10 else 0 for place in range(above, above + same + 1)])
        for above, same in ranks
    ]
    assert found["NDCG@10"] == pytest.approx(np.mean(gains), abs=1e-6)


def test_an_item_that_is_no_better_than_its_rivals_is_among_the_best_by_chance_alone(task):
    found = figures_of(Critic(lambda user, item: np.full(len(user), 3.5), 1), task)
    assert 0 <= found["HR@10"] < 0.5
    assert found["NDCG@10"] == pytest.approx(0.0454, abs=1e-3)  # the mean over all places


def test_a_device_without_a_library_of_metrics_scores_all_the_same(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.retrieval", None)
    session = Critic(lambda user, item: user % 5, 1)
    scored = evaluate(session, task, "test")
    assert scored.score == task.score(scored.outputs, task.arrays("test"))


def test_where_all_is_rated_nothing_is_held_against_anything(tmp_path):
    file = tmp_path / "u.data"
    file.write_text("".join(f"{user}\t{item}\t5\t0\n" for user in range(10) for item in range(12)))
    assert figures_of(Critic(lambda user, item: user, 1), Ratings(file=str(file))) == {}


def test_the_embedded_ratings_have_rivals_for_200_users():
    held, rivals = ratings._rivals(None)
    assert (len(held), rivals.shape) == (200, (200, 99))
