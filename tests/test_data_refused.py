"""Data of one's own that is none: every damage is refused in one line that names the file and the record."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedl import recipe
from edgedl.core import DataError, RecipeError
from edgedl.tasks.data import Data
from tests.test_data_task import CLASSES, X, of_labels, write_images


def lines(*rows: str) -> bytes:
    return "\n".join(rows).encode()


CHOSEN = {"metric": "accuracy"}
TABLE = [f"{index},{index % 2},{index % 3}.5" for index in range(20)]
ROWS = [json.dumps({"x": [index, 1], "label": index % 2}) for index in range(20)]


def saved(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def with_nan() -> np.ndarray:
    values = np.ones((20, 2, 3))
    values[7, 1, 2] = np.nan
    return values


@pytest.mark.parametrize(
    ("name", "content", "fields", "said"),
    [
        # arrays
        ("a.npz", saved(x=X, label=CLASSES[:19]), {}, "a.npz: every array needs as many records as the others, but"),
        ("a.npz", saved(x=with_nan(), label=CLASSES), {}, "a.npz: record 7: x holds nan, which is no finite float32"),
        ("a.npz", saved(x=X * 1e300, label=CLASSES), {}, "a.npz: record 0: x holds inf, which is no finite float32"),
        ("a.npz", saved(x=X * np.float64(1e300), label=CLASSES), {}, "record 0: x holds 1e+300, which is no finite"),
        ("a.npz", saved(x=X, label=np.array([{}] * 20)), {}, "a.npz: array label holds Python objects, which could"),
        ("a.npz", saved(x=X, label=CLASSES)[:-30], {}, "a.npz: cannot be read as an .npz file: File is not a zip"),
        ("a.npz", saved(x=X, label=CLASSES).replace(b"NUMPY", b"NUMPX"), {}, "a.npz: array x cannot be read: "),
        ("a.npz", b"", {}, "a.npz: cannot be read as an .npz file"),
        ("a.npz", saved(x=X, label=CLASSES - 1), {}, "a.npz: record 0: label is -1, but classes go from 0 on"),
        ("a.npz", saved(x=X, label=CLASSES * 0.5), CHOSEN, 'record 1: label is 0.5, which is no class'),
        ("a.npz", saved(x=X, label=CLASSES * 0), {}, "a.npz: every label is 0; two classes are needed at least"),
        ("a.npz", saved(x=X, y=CLASSES), {}, "a.npz: which of its columns is the label? Say label = one of x, y;"),
        ("a.npz", saved(x=X, label=CLASSES), {"label": "labels"}, "label: no column 'labels'; did you mean label?"),
        ("a.npz", saved(x=X, label=CLASSES), {"inputs": ("y",)}, "a.npz: inputs: no column 'y'; there are: x, label"),
        ("a.npz", saved(x=X, label=CLASSES), {"inputs": ("label",)}, "label is the label and cannot be an input, too"),
        ("a.npz", saved(x=X * 1j, label=CLASSES), {"inputs": ("x",)}, "a.npz: x holds complex64, but networks take"),
        ("a.npz", saved(label=CLASSES), {}, "a.npz: nothing is left for the network's input; it has label"),
        ("a.npz", saved(x=X[:0], label=CLASSES[:0]), {}, "a.npz: there are no records in it"),
        ("a.npz", saved(x=X[:2], label=CLASSES[:2]), {}, "a.npz: 2 samples are too few to train, validate and test on"),
        ("a.npz", saved(x=CLASSES + 2**40, label=CLASSES), {}, "x holds numbers beyond int32, which TFLite files"),
        ("a.npz", saved(x=np.float32(1), label=CLASSES), {}, "a.npz: x is a single value; the first axis of every"),
        ("a.npz", saved(**{"train/x": X, "test/x": X, "y": X}), {}, "a.npz: array y is in no part; name it train/y"),
        ("a.npz", saved(**{"validation/x": X, "test/x": X, "validation/label": CLASSES, "test/label": CLASSES}), {},
         'no part to train on; it has validation, test: say splits = { train = "..." }'),
        ("a.npz", saved(**{"train/x": X, "test/x": X[:, :1], "train/label": CLASSES, "test/label": CLASSES}), {},
         "part test: x is float32 (1,) in test, but float32 (2,) in train"),
        ("a.npz", saved(x=X, label=CLASSES), {"splits": {"test": "tests"}}, "splits.test: no part 'tests'; there are"),
        ("a.npz", saved(x=X, label=CLASSES), {"metric": "agreement"}, "agreement is with a teacher: say which network"),
        ("a.npz", saved(x=np.zeros((20, 4, 4, 3), np.uint8), label=CLASSES), {"mean": (0.5, 0.5)},
         "mean has 2 values, but x has 4 channels"),
        ("a.npz", saved(x=X, label=CLASSES), {"mean": (0.5,)}, "mean and std are for images of uint8, which no input"),
        ("a.npz", saved(x=X, label=CLASSES), {"standardize": True}, "standardize is for columns of a table, which no"),
        ("a.npz", saved(x=X, label=CLASSES), {"size": (8, 8)}, "size is for image files, which there are none of: x"),
        # tables
        ("a.csv", lines("x,label,y", *TABLE[:5], "6,0"), {}, "a.csv:7: 2 values, but the header names 3 columns"),
        ("a.csv", lines("x,label,y", *TABLE, "old,1,2"), {}, "a.csv:22: x holds 'old', which is no number"),
        ("a.csv", lines("x,label,y", *TABLE, ",1,2"), {}, "a.csv:22: x holds '', which is no number"),
        ("a.csv", lines("x,label,y", *TABLE, "nan,1,2"), {}, "a.csv:22: x holds nan, which is no finite"),
        ("a.csv", lines("x,label,y", *TABLE, "1,,2"), CHOSEN, "a.csv:22: label is '', which is no class"),
        ("a.csv", lines("x,label,x", *TABLE), {}, "a.csv: two columns are named 'x'"),
        ("a.csv", lines("x,label,y"), {}, "a.csv: has a header, but no rows"),
        ("a.csv", b"", {}, "a.csv: is empty"),
        ("a.csv", lines("x,label,y", '1,"a', *TABLE), {}, "a.csv:2: no CSV from here on: unexpected end of data"),
        ("a.csv", "x,label,größe\n1,1,1".encode("latin-1"), {}, "a.csv:1: no UTF-8: byte 10 is 0xf6; save it as UTF-8"),
        ("a.csv", lines("x,label,y", *TABLE), {"columns": ("x", "z")}, "a.csv: columns: no column 'z'; there are: x,"),
        ("a.csv", lines("x,label", *(f"a{row},{row % 2}" for row in range(9))), {"columns": ("x",)},
         "a.csv:2: x holds 'a0', but networks take numbers"),
        ("a.jsonl", lines(*ROWS, '{"x": [1, 2, 3], "label": 1}'), {},
         "a.jsonl:21: x has shape (3,), but that of the first record is (2,); pad or cut to one"),
        ("a.jsonl", lines(*ROWS, '{"x": [1, [2]], "label": 1}'), {}, "a.jsonl:21: x is no array: "),
        ("a.jsonl", lines(*ROWS, '{"x": [1, null], "label": 1}'), {}, "a.jsonl:21: x holds [1, None], but networks"),
        ("a.jsonl", lines(*ROWS, '{"x": [1, NaN], "label": 1}'), {}, "a.jsonl:21: x holds nan, which is no finite"),
        ("a.jsonl", lines(*ROWS, '{"x": [1, 2]}'), {}, "a.jsonl:21: key 'label' is missing"),
        ("a.jsonl", lines(*ROWS, '{"x": [1, 2'), {}, "a.jsonl:21: no JSON: Expecting ',' delimiter"),
        ("a.jsonl", lines(*ROWS, "[1]"), {}, "a.jsonl:21: a list, but every line has to be an object"),
        ("a.parquet", b"PAR1 and no more", {}, "a.parquet: cannot be read as Parquet: "),
        ("a.pkl", b"", {}, 'a.pkl: unknown ending ".pkl"; data can end in .npz, .csv, .tsv, .jsonl, .parquet'),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_place(tmp_path, name, content, fields, said):
    file = tmp_path / name
    file.write_bytes(content)
    task = Data(**{"source": str(file)} | fields)
    with pytest.raises(DataError) as caught:
        task.arrays("train")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_and_missing_values_are_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"x": float(index), "label": index % 2} for index in range(30)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "own.parquet")
    whole = (tmp_path / "own.parquet").read_bytes()
    for content in (whole[:-20], whole[: len(whole) // 2], whole[:4] + b"\0" * 60 + whole[64:]):
        (tmp_path / "own.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"own\.parquet: cannot be read as Parquet: .+"):
            Data(source=str(tmp_path / "own.parquet")).arrays("test")
    texts = pyarrow.array([b"a", b"\xe1"] * 15, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"x": texts, "label": [0, 1] * 15}), tmp_path / "own.parquet")
    with pytest.raises(DataError, match=r"own\.parquet: cannot be read as Parquet: .+"):
        Data(source=str(tmp_path / "own.parquet")).arrays("test")
    rows[11]["x"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "own.parquet")
    with pytest.raises(DataError, match=r"own\.parquet: record 11: x holds None, but networks take numbers"):
        Data(source=str(tmp_path / "own.parquet")).arrays("test")


def test_no_code_in_a_file_of_arrays_is_run(tmp_path):
    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "went-off",)

    np.savez(tmp_path / "bomb.npz", x=np.array([Bomb()], dtype=object), label=CLASSES[:1])
    with pytest.raises(DataError, match="array x holds Python objects, which could run code when read"):
        Data(source=str(tmp_path / "bomb.npz")).arrays("test")
    assert not (tmp_path / "went-off").exists()


def only_red(folder: Path) -> Path:
    shutil.rmtree(folder / "blue")
    return folder


def cut_off(folder: Path) -> Path:
    (folder / "red" / "05.png").write_bytes((folder / "red" / "05.png").read_bytes()[:60])
    return folder


def no_image(folder: Path) -> Path:
    (folder / "green").mkdir()
    return folder


def other_class_to_test(folder: Path) -> Path:
    for kind in ("blue", "red"):
        shutil.copytree(folder / kind, folder / "train" / kind)
    shutil.move(folder / "red", folder / "test" / "reds")
    return folder


@pytest.mark.parametrize(
    ("damage", "size", "said"),
    [
        (only_red, (8, 8), "own: needs a folder of images for each of two classes at least; there is red"),
        (cut_off, (8, 8), "05.png: cannot be read as an image: "),
        (no_image, (8, 8), "green: no images in it (files that end in "),
        (other_class_to_test, (8, 8), "reds: no class of that name among those to train on; did you mean red?"),
        (lambda folder: folder, None, "02.png: 12x12 pixels, but the first image has 12x10; say to what all are"),
        (lambda folder: folder / "gone", None, "gone: no such file or folder"),
    ],
)
def test_a_damaged_folder_of_images_is_refused_with_the_file(tmp_path, damage, size, said):
    folder = damage(write_images(tmp_path / "own"))
    with pytest.raises(DataError) as caught:
        Data(source=str(folder), size=size).arrays("test")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "the data given: a int; it has to be arrays by name, a torch Dataset or DataLoader"),
        ({}, "the data given: there is nothing in it"),
        ({"x": 3}, "the data given: x is a int, no array"),
        ({"x": torch.tensor(3.0)}, "the data given: x is a single value; the first axis of every array counts"),
        ({"x": [[1, 2], [3]], "label": [0, 1]}, "the data given: record 1: x has shape (1,), but that of the first"),
        ({"train": {"x": X}, "test": X}, "the data given, part train: which of its columns is the label"),
        ([], "the data given: there are no records in it"),
        ([(1.0, 0), (2.0,)], "the data given: item 1 holds input, but the first input, label"),
        ([(X, 0), (X[:3], 1)], "the data given: record 1: input has shape (3, 2), but that of the first record is"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_data_is_refused(given, said):
    with pytest.raises(DataError) as caught:
        Data.of(given).arrays("test")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) or "your code raised" in str(caught.value)


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        (["tokns.1=n"], "task data: dynamic: tokns.1=n: no input 'tokns'; did you mean tokens"),
        (["tokens.0=n"], "dimension 0 is that of samples, which max_batch is for; the others of tokens are 1 to 1"),
        (["tokens.2=n"], "the others of tokens are 1 to 1"),
        (["tokens.1=batch"], "batch is what the dimension of samples is called"),
        (["image.1=n"], "it is 1 in the data, which tells nothing of larger sizes"),
        (["tokens.1=n", "image.2=n"], "image.2=n: n is 4 here and 12 elsewhere in the data"),
        (["tokens.1=n:1-12", "mask.1=n:1-24"], "n has two ranges; say one"),
        (["tokens.1=n:1-8"], "the range has to hold 12, the size in the data"),
        (["tokens.1=n:0-24"], "and begin at 1 or above"),
    ],
)
def test_dimensions_that_are_not_there_are_refused(dynamic, said):
    arrays = {"tokens": np.ones((20, 12), np.int64), "mask": np.ones((20, 12), np.float32)}
    task = Data.of({**arrays, "image": np.ones((20, 1, 4, 4)), "label": np.arange(20) % 2}, dynamic=tuple(dynamic))
    with pytest.raises(DataError) as caught:
        assert task.dynamic
    assert said in str(caught.value)


def test_answers_that_do_not_go_with_the_labels_are_refused():
    task = of_labels(np.arange(100) % 5)
    batch = task.arrays("test")
    for shape, said in (
        ((20, 3), r"metric accuracy, output output, label: sample \d+ has label \d, but the network answers 3 classes"),
        ((20, 5, 2), r"answers \(N, 5, 2\) do not go with labels \(N\)"),
    ):
        with pytest.raises(DataError, match=said):
            task.score({"output": np.zeros(shape, np.float32)}, batch)
        with pytest.raises(DataError, match=said):
            task.loss(
                {"output": torch.zeros(shape)}, {name: torch.from_numpy(values) for name, values in batch.items()}
            )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('metric = "acuracy"', "task.metric: no metric named 'acuracy'; did you mean accuracy or auroc? One of"),
        ('lable = "y"', "task.lable: unknown key; did you mean label?"),
        ('teacher = { use = "mpl" }', "task.teacher.use: no models named 'mpl'; did you mean mlp?"),
        ('teacher = "mlp"', "task.teacher"),
        ('teacher = { use = "mlp", width = 3 }', "task.teacher.width: unknown key; did you mean widths?"),
        ("std = [0.0]", "task.std[0]: Input should be greater than 0"),
        ('splits = { text = "a" }', "task.splits.text: unknown key; did you mean test?"),
        ('dynamic = ["x1=n"]', "task.dynamic: 'x1=n' names no dimension of an input, such as tokens.1=length or"),
    ],
)
def test_a_wrong_key_of_a_recipe_is_named_as_it_is_written(tmp_path, keys, said):
    text = f"""
[task]
use = "data"
source = "own.npz"
{keys}
[model]
use = "mlp"
[[steps]]
use = "train"
[[targets]]
use = "tflite"
"""
    with pytest.raises(RecipeError) as caught:
        recipe.parse(text, tmp_path / "own.toml")
    assert said in str(caught.value)
