"""Texts, ratings and tracks: recipes in a tiny form from end to end, and loaders on small files, sound and damaged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedl import pipeline, recipe
from edgedl.core import Bench, DataError, Limits
from edgedl.steps.quantize import Quantize
from edgedl.tasks.ratings import Ratings
from edgedl.tasks.text import GIVEAWAYS, PADDING, SUBJECTS, UNKNOWN, Text, _corpus, split_words

GOOD, BAD = "a fine film , truly moving and well played", "what a dull film : badly played and far too long"


def write_table(file: Path, rows: list[tuple[str, str]], columns: tuple[str, ...] = ("text", "label")) -> str:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return str(file)


@pytest.fixture
def table(tmp_path) -> str:
    rows = [(f"{text} {'very ' * (index % 3)}", text[0]) for index in range(40) for text in (GOOD, "W" + BAD[1:])]
    return write_table(tmp_path / "films.csv", rows)


def reviews(folder: Path, num: int = 20) -> Path:
    """A folder like aclImdb."""
    for part in ("train", "test"):
        for name, text in (("pos", GOOD), ("neg", BAD)):
            (folder / part / name).mkdir(parents=True)
            for index in range(num):
                (folder / part / name / f"{index}_7.txt").write_text(f"{text}<br /><br />No{'w' * index}.")
    return folder


def ratings(file: Path, num_users: int = 12, num_items: int = 15) -> str:
    """Like u.data: ids begin at 1, and some are missing."""
    lines = [
        f"{3 * user + 1}\t{item + 1}\t{1 + (user + item) % 5}\t88125{item}\n"
        for user in range(num_users)
        for item in range(num_items)
    ]
    file.write_text("".join(lines))
    return str(file)


def tiny(name: str, task, root: Path, targets: tuple[str, ...], **network):
    """The report of a shipped recipe, its parts made small: no time is judged, and no score."""
    shipped = recipe.load(name)
    train, quantize = shipped.steps
    small = shipped.model_copy(
        update={
            "task": task,
            "model": shipped.model.model_copy(update=network),
            "steps": (
                train.model_copy(update={"epochs": 1}),
                Quantize.model_validate({**quantize.model_dump(include={"precision"}), "method": "ptq",
                                         "calibrator": "min-max", "corrections": ()}),
            ),
            "targets": tuple(target for target in shipped.targets if target.use in targets),
            "limits": Limits(score_drop=10, slower="allow", unlearned="allow"),
            "bench": Bench(min_seconds=0, rounds=2),
        }
    )  # fmt: skip
    text = recipe.find(name).read_text(encoding="utf-8")
    run = pipeline.compress(small, text, root)
    return json.loads((run.folder / "report.json").read_text(encoding="utf-8"))


def check(report, targets: tuple[str, ...]) -> None:
    rows = report["ladder"]
    assert {(row["target"], row["variant"]) for row in rows} == {
        (target, variant) for target in targets for variant in ("float", "compressed")
    }
    for row in rows:
        assert row["agreement"]["sqnr_db"] > 35, row
        assert row["agreement"]["same_decision"] in (None, 1.0), row


@pytest.mark.parametrize("name", ["lstm-int8", "gru-int8", "bilstm-int8"])
def test_a_recurrent_classifier_of_a_csv_file_comes_out_as_files_that_answer_alike(name, table, tmp_path):
    targets = ("tflite", "onnxruntime")
    check(tiny(name, Text(csv=table, words=3, vocabulary=12), tmp_path, targets, embedding=8, hidden=8), targets)


@pytest.mark.parametrize("join", ["dot", "mlp"])
def test_collaborative_filtering_of_movielens_comes_out_as_files_that_answer_alike(join, tmp_path):
    targets = ("tflite", "onnxruntime", "tensorrt", "tensorrt-rtx")
    task = Ratings(file=ratings(tmp_path / "u.data"))
    check(tiny("ncf-int8", task, tmp_path, targets, join=join, size=8, widths=(8,)), targets)


def test_passages_are_of_all_subjects_and_no_word_gives_them_away():
    task = Text()
    assert task.classes == tuple(SUBJECTS)
    for split, most in (("test", 100), ("validation", 60), ("train", 2000)):
        counts = np.bincount(task.arrays(split)["label"])
        assert len(counts) == len(SUBJECTS)
        assert (counts <= most).all()
        assert (counts > most / 2).all()
    _, corpus = _corpus(None, None, task.words)
    words = {word for words, _ in corpus["train"] for word in words}
    assert {"matrix", "graph", "the"} <= words
    assert not words & GIVEAWAYS
    assert all(task.words // 2 <= len(words) <= task.words for words, _ in corpus["test"])


def test_tokens_are_numbered_by_how_common_words_are_and_padded_in_front(table):
    task = Text(csv=table, words=20, vocabulary=6)
    tokens = task.arrays("train")["tokens"]
    assert set(np.unique(tokens)) == {PADDING, UNKNOWN, 2, 3, 4, 5}
    counts = np.bincount(tokens.ravel())[2:]
    assert (np.diff(counts) <= 0).all()
    assert all((np.diff((row != PADDING).astype(int)) >= 0).all() for row in tokens)
    assert task.num_tokens == 6


def test_words_are_of_letters_in_any_script():
    assert split_words("Don't PANIC!<br />42 is Ünrelated, 3d") == ["don't", "panic", "is", "ünrelated", "d"]


def test_reviews_come_from_the_folders_of_the_movie_review_data(tmp_path):
    task = Text(folder=str(reviews(tmp_path / "aclImdb")), words=12)
    assert task.classes == ("neg", "pos")
    assert {split: len(task.arrays(split)["label"]) for split in ("train", "validation", "test")} == {
        "train": 36, "validation": 4, "test": 40,
    }  # fmt: skip
    _, corpus = _corpus(task.folder, None, 12)
    assert all(("dull" in words) == (label == 0) for passages in corpus.values() for words, label in passages)


def test_damaged_reviews_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent/train/neg: no such folder"):
        Text(folder=str(tmp_path / "absent")).arrays("train")
    folder = reviews(tmp_path / "latin")
    (folder / "test/pos/3_7.txt").write_bytes("un café".encode("latin-1"))
    with pytest.raises(DataError, match=r"test/pos/3_7\.txt:1: no UTF-8: byte 6 is 0xe9"):
        Text(folder=str(folder)).arrays("train")
    folder = reviews(tmp_path / "empty", num=0)
    with pytest.raises(DataError, match=r"the train split of .*empty is empty"):
        Text(folder=str(folder)).arrays("train")


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([(GOOD, "1")], ("review", "label"), r"films\.csv: no column text; it has review, label"),
        ([(GOOD, "1"), (BAD, "nan")], ("text", "label"), r"films\.csv: record 2 has label 'nan'"),
        ([(GOOD, "1"), (BAD, "")], ("text", "label"), r"films\.csv: record 2 has label ''"),
        ([(GOOD, "1"), (BAD, "0", "x")], ("text", "label"), r"films\.csv: record 2 has more or fewer values"),
        ([(GOOD, "1"), (BAD,)], ("text", "label"), r"films\.csv: record 2 has more or fewer values"),
        ([(GOOD, "1"), (BAD, "1")], ("text", "label"), r"films\.csv: 2 records with 1 different labels"),
        ([(GOOD, "1"), (BAD, "0")], ("text", "label"), r"the \w+ split of .*films\.csv is empty"),
    ],
)
def test_a_damaged_table_is_named_with_the_record(rows, columns, said, tmp_path):
    file = write_table(tmp_path / "films.csv", rows, columns)
    with pytest.raises(DataError, match=said):
        Text(csv=file).arrays("train")


def test_a_table_that_is_no_table_is_named(tmp_path, table):
    with pytest.raises(DataError, match="folder and csv are both given"):
        Text(csv=table, folder=str(tmp_path)).arrays("train")
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
        Text(csv=str(tmp_path / "none.csv")).arrays("train")
    file = tmp_path / "open.csv"
    file.write_text('text,label\n"never closed,1\n')
    with pytest.raises(DataError, match=r"open\.csv: what follows record 0 is no CSV: unexpected end"):
        Text(csv=str(file)).arrays("train")


def test_drawn_ratings_have_the_noise_that_they_say_and_no_pair_twice():
    task = Ratings()
    pairs = np.concatenate([task.arrays(split)["user"] * 1700 + task.arrays(split)["item"] for split in
                            ("train", "validation", "test")])  # fmt: skip
    assert len(np.unique(pairs)) == len(pairs) == 200_000
    test = task.arrays("test")
    assert task.score({"stars": np.full_like(test["stars"], 3.5)}, test) == pytest.approx(1.1, abs=0.05)
    assert task.score({"stars": test["stars"] + 0.5}, test) == pytest.approx(0.5)
    assert task.metric.drop(0.5, 0.6) == pytest.approx(0.1)


def test_both_files_of_movielens_say_the_same(tmp_path):
    tabs = Path(ratings(tmp_path / "u.data"))
    rows = [line.split("\t") for line in tabs.read_text().splitlines()]
    commas = tmp_path / "ratings.csv"
    commas.write_text("userId,movieId,rating,timestamp\n" + "".join(",".join(row) + "\n" for row in rows))
    first, second = Ratings(file=str(tabs)), Ratings(file=str(commas))
    assert (first.num_users, first.num_items) == (second.num_users, second.num_items) == (12, 15)
    for split in ("train", "calibration", "validation", "test"):
        for name, values in first.arrays(split).items():
            np.testing.assert_array_equal(values, second.arrays(split)[name])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1\t2\t3\t0\n1\t3\tnan\t0\n", r"u\.data:2: a rating of nan; stars go from 0 to 5"),
        (b"1\t2\t3\t0\n1\t3\t9\t0\n", r"u\.data:2: a rating of 9; stars go from 0 to 5"),
        (b"1\t2\t3\t0\n1\tx\t4\t0\n", r"u\.data:2: '1\\tx\\t4\\t0' is no user, item and rating"),
        (b"1\t2\t3\t0\n1\t3\n", r"u\.data:2: '1\\t3' is no user, item and rating"),
        (b"1\t2\t3\t0\n", r"u\.data: 1 ratings are too few"),
        (b"userId,rating\n1,2\n", r"u\.data: no column movieId, and no tabs"),
        (b"\xff\xfe", r"u\.data:1: no UTF-8: byte 0 is 0xff"),
    ],
)
def test_damaged_ratings_are_named_with_the_line(content, said, tmp_path):
    (tmp_path / "u.data").write_bytes(content)
    with pytest.raises(DataError, match=said):
        Ratings(file=str(tmp_path / "u.data")).arrays("train")


def test_a_classifier_reads_the_order_of_tokens():
    network = recipe.load("bilstm-int8").model
    torch.manual_seed(0)
    net = network.build(Text()).eval()
    tokens = torch.arange(2, 34, dtype=torch.int32)[None]
    assert (net(tokens) - net(tokens.flip(1))).abs().max() > 1e-5
