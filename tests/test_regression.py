"""A number from numbers: the diabetes table, CSV files whole and damaged, and the recipe in a small form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedl.core import DataError
from edgedl.tasks.regression import Regression
from tests.tiny import refusal, tiny_run, told

SPLITS = ("train", "calibration", "validation", "test")


def write_csv(file: Path, rows: list[list], header: str = "age,price,size") -> str:
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return str(file)


def rows_of(num: int) -> list[list[float]]:
    rng = np.random.default_rng(0)
    ages, sizes = rng.normal(40, 9, num), rng.normal(5, 1, num)
    return [[age, 3 * age - 20 * size, size] for age, size in zip(ages, sizes, strict=True)]


def test_training_rows_have_mean_0_and_deviation_1():
    task = Regression()
    assert task.inputs["features"].shape == (10,)
    train = task.arrays("train")
    for values in train.values():
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-6)
    assert [len(task.arrays(split)["target"]) for split in SPLITS] == [283, 283, 71, 88]


def test_the_score_is_in_the_unit_of_the_target():
    task = Regression()
    train, test = task.arrays("train"), task.arrays("test")
    assert task.score({"prediction": test["target"]}, test) == 0
    assert task.score({"prediction": np.zeros_like(test["target"])}, test) == pytest.approx(78.3, abs=0.05)
    columns = np.c_[train["features"], np.ones(len(train["target"]))]
    weights = np.linalg.lstsq(columns, train["target"], rcond=None)[0]
    linear = np.c_[test["features"], np.ones(len(test["target"]))] @ weights
    assert task.score({"prediction": linear}, test) == pytest.approx(56.6, abs=0.05)


def test_a_csv_file_is_read_by_the_names_of_its_columns(tmp_path):
    rows = rows_of(50)
    task = Regression(file=write_csv(tmp_path / "homes.csv", rows), column="price")
    assert task.inputs["features"].shape == (2,)
    parts = [task.arrays(split) for split in ("train", "validation", "test")]
    assert [len(part["target"]) for part in parts] == [32, 8, 10]
    features, target = (np.concatenate([part[name] for part in parts]) for name in ("features", "target"))
    given = np.array(rows)
    # Standardizing keeps the order, so that a row is known by the rank of its age.
    rows_in_order = given[given[:, 0].argsort()][features[:, 0].argsort().argsort()]
    np.testing.assert_array_equal(rows_in_order[:, 1].argsort(), target[:, 0].argsort())
    deviation = rows_in_order[:32, 1].std()
    assert task.score({"prediction": parts[2]["target"] + 1}, parts[2]) == pytest.approx(deviation, rel=1e-5)


def test_a_column_that_never_changes_is_0(tmp_path):
    rows = [[7, price, size] for _, price, size in rows_of(50)]
    task = Regression(file=write_csv(tmp_path / "same.csv", rows), column="price")
    assert not task.arrays("test")["features"][:, 0].any()


@pytest.mark.parametrize(
    ("damage", "target", "said"),
    [
        (lambda rows: rows, "cost", "needs one column named 'cost'; it has age, price, size"),
        (lambda rows: [*rows[:3], [1, "nan", 2], *rows[3:]], "price", ":5: column 'price' holds 'nan', which is no"),
        (lambda rows: [*rows[:7], [1, 2, ""]], "price", ":9: column 'size' holds '', which is no finite number"),
        (lambda rows: [["old", 2, 3], *rows], "price", ":2: column 'age' holds 'old', which is no finite number"),
        (lambda rows: [*rows[:2], [1, 2], *rows], "price", ":4: 2 values, but the header names 3 columns"),
        (lambda rows: [], "price", "has a header, but no rows"),
        (lambda rows: rows[:2], "price", "2 samples are too few to train, validate and test on"),
    ],
)
def test_a_bad_csv_file_is_refused_with_its_line(tmp_path, damage, target, said):
    file = write_csv(tmp_path / "bad.csv", damage(rows_of(20)))
    task = Regression(file=file, column=target)
    message = refusal(task)
    assert message.startswith(file)
    assert said in message


def test_a_csv_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read as CSV"):
        Regression(file=str(tmp_path / "gone.csv")).arrays("train")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("größe,target\n1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv: cannot be read as CSV in UTF-8"):
        Regression(file=str(latin)).arrays("train")


def test_the_recipe_runs_and_is_reported_as_what_it_is(tmp_path, monkeypatch):
    asked, figures = [], Regression.figures
    monkeypatch.setattr(Regression, "figures", lambda *given: asked.append(given[1].runtime) or figures(*given))
    report = tiny_run("mlp-regression", tmp_path)
    assert report["metric"]["name"] == "RMSE"
    assert all(row["figures"].keys() == {"R²"} for row in report["rows"])
    assert asked == [row["score_by"] for row in report["rows"]]  # once of each file, never of the network in training
    assert "RMSE" in told(report, tmp_path)
