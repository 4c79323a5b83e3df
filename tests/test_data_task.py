"""Data of one's own: every source and metric, whole and damaged, and recipes on it from start to finished files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgedl import pipeline, recipe
from edgedl.run import read_report
from edgedl.tasks.data import Data

SPLITS = ("train", "calibration", "validation", "test")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def numbers(num: int = 100) -> dict[str, np.ndarray]:
    """An input of three numbers and the class that their sum says."""
    x = rng().normal(size=(num, 3))
    return {"x": x, "label": (x.sum(axis=1) > 0).astype(np.int64)}


def finished(text: str, root: Path) -> dict:
    """The report of a recipe with this task and network, on two targets."""
    rest = """
targets = [ { use = "tflite" }, { use = "onnxruntime" } ]
limits = { score_drop = 100.0, slower = "allow", unlearned = "allow" }
bench = { min_seconds = 0.02, rounds = 2 }
"""
    report = read_report(pipeline.compress(recipe.parse(text + rest, root / "own.toml"), text, root).folder)
    assert sorted((row["target"], row["variant"], row["status"]) for row in report["rows"]) == [
        (target, variant, "ok") for target in ("onnxruntime", "tflite") for variant in ("compressed", "float")
    ]
    return report


PTQ = '{ use = "quantize", method = "ptq", calibrator = "min-max", corrections = [] }'


def test_arrays_by_name_are_inputs_and_a_label(tmp_path):
    file = tmp_path / "own.npz"
    np.savez(
        file, **numbers(), tokens=rng().integers(0, 9, (100, 5)), image=rng().integers(0, 255, (100, 4, 4, 3), np.uint8)
    )
    task = Data(source=str(file))
    assert {name: (spec.shape, spec.dtype) for name, spec in task.inputs.items()} == {
        "x": ((3,), "float32"), "tokens": ((5,), "int64"), "image": ((4, 4, 3), "uint8"),
    }  # fmt: skip
    assert [len(task.arrays(split)["label"]) for split in SPLITS] == [64, 64, 16, 20]
    assert task.preprocessing["inputs"]["x"]["converted"] == "float64 to float32"
    given, found = numbers(), [task.arrays(split) for split in ("train", "validation", "test")]
    order = np.concatenate([part["x"] for part in found])[:, 0].argsort()
    np.testing.assert_array_equal(
        np.concatenate([part["label"] for part in found])[order], given["label"][given["x"][:, 0].argsort()]
    )


def test_columns_of_a_table_are_one_input_and_texts_are_classes(tmp_path):
    file = tmp_path / "own.csv"
    rows = [f"{index},{index / 2},note {index},{('yes', 'no')[index % 2]}" for index in range(50)]
    file.write_text("\n".join(["age,size,remark,answer", *rows]))
    task = Data(source=str(file), label="answer", standardize=True)
    assert task.inputs["features"].shape == (2,)
    assert task.classes == ("no", "yes")
    assert task.preprocessing["inputs"]["features"]["columns"] == ["age", "size"]
    assert task.preprocessing["left_out"] == ["remark"]
    np.testing.assert_allclose(task.arrays("train")["features"].mean(axis=0), 0, atol=1e-6)
    some = Data(source=str(file), label="answer", inputs=("years",), columns=("age",))
    assert {name: spec.shape for name, spec in some.inputs.items()} == {"years": (1,)}
    single = Data(source=str(file), label="answer", inputs=("size", "age"))
    assert {name: (spec.shape, spec.dtype) for name, spec in single.inputs.items()} == {
        "size": ((), "float32"), "age": ((), "int64"),
    }  # fmt: skip


def test_a_recipe_on_a_table_is_compressed(tmp_path):
    x = rng().normal(size=(200, 3))
    rows = [f"{a},{b},{c},{2 * a - b}" for a, b, c in x]
    (tmp_path / "own.csv").write_text("\n".join(["a,b,c,price", *rows]))
    report = finished(
        f"""
task = {{ use = "data", source = "{tmp_path}/own.csv", label = "price", metric = "rmse", standardize = true }}
model = {{ use = "mlp", widths = [16] }}
steps = [ {{ use = "train", epochs = 40, lr = 1e-2 }}, {PTQ} ]
""",
        tmp_path,
    )
    assert report["metric"]["name"] == "RMSE"
    assert all(row["score"] < report["baseline"]["score"] / 2 for row in report["rows"])
