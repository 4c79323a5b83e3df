"""Data of one's own: every source and metric, whole and damaged, and recipes on it from start to finished files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from edgedl import pipeline, recipe
from edgedl.core import DataError, MissingPackage, Network, Task, UsageError
from edgedl.run import read_report
from edgedl.tasks.data import Data

X = np.ones((20, 2), np.float32)
CLASSES = np.arange(20) % 2
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


def test_tables_of_json_lines_and_parquet_are_read_as_those_of_csv(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"age": index, "size": index / 2, "tokens": [index, 1, 2], "kind": "ab"[index % 2]} for index in range(50)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.csv").write_text(
        "\n".join(["age,size,kind", *(f"{row['age']},{row['size']},{row['kind']}" for row in rows)])
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "own.parquet")
    tables = [Data(source=str(tmp_path / f"own.{kind}"), label="kind") for kind in ("csv", "jsonl", "parquet")]
    for task in tables[1:]:
        assert task.inputs["features"].shape == (2,)
        assert (task.inputs["tokens"].shape, task.inputs["tokens"].dtype) == ((3,), "int64")
        for split in SPLITS:
            np.testing.assert_array_equal(task.arrays(split)["tokens"][:, 0], task.arrays(split)["features"][:, 0])
            for name, values in tables[0].arrays(split).items():
                np.testing.assert_array_equal(task.arrays(split)[name], values)


def test_parts_that_are_given_are_kept(tmp_path):
    x = np.arange(100, dtype=np.float32)
    part = lambda low, high: {"x": x[low:high], "label": np.arange(low, high) % 3}  # noqa: E731
    np.savez(tmp_path / "own.npz", **{f"train/{k}": v for k, v in part(0, 60).items()},
             **{f"test/{k}": v for k, v in part(60, 100).items()})  # fmt: skip
    (tmp_path / "own").mkdir()
    np.savez(tmp_path / "own" / "train.npz", **part(0, 60))
    np.savez(tmp_path / "own" / "val.npz", **part(60, 100))
    inside, apart = Data(source=str(tmp_path / "own.npz")), Data(source=str(tmp_path / "own"))
    given = Data.of({"train": part(0, 60), "test": part(60, 100)})
    for task in (inside, apart, given):
        np.testing.assert_array_equal(task.arrays("test")["x"], x[60:])
        assert [len(task.arrays(split)["x"]) for split in SPLITS] == [48, 48, 12, 40]
        learned = np.concatenate([task.arrays(split)["x"] for split in ("train", "validation")])
        np.testing.assert_array_equal(np.sort(learned), x[:60])
    assert "what was given to validate is what is tested on" in apart.preprocessing["splits"]["drawn"]
    other = Data.of({"mine": part(0, 60), "yours": part(60, 90), "his": part(90, 100)},
                    splits={"train": "mine", "validation": "yours", "test": "his"})  # fmt: skip
    assert [len(other.arrays(split)["x"]) for split in SPLITS] == [60, 60, 30, 10]


def write_images(folder: Path, num: int = 30) -> Path:
    """Red and blue pictures of different sizes."""
    for index in range(num):
        kind = ("blue", "red")[index % 2]
        pixels = rng().integers(0, 80, (10 + index % 3, 12, 3)).astype(np.uint8)
        pixels[..., 0 if kind == "red" else 2] = 150 + index
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{index:02}.png")
    return folder


def test_a_folder_of_images_is_resized_and_normalized(tmp_path):
    folder = write_images(tmp_path / "own")
    plain = Data(source=str(folder), size=(8, 8))
    task = Data(source=str(folder), size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2,))
    last = Data(source=str(folder), size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2,), layout="channels-last")
    assert (plain.classes, plain.image_shape, last.image_shape) == (("blue", "red"), (3, 8, 8), (8, 8, 3))
    for split in SPLITS:
        images = plain.arrays(split)["image"]
        assert images.min() >= 0
        assert 0.5 < images.max() <= 1
        np.testing.assert_array_equal(
            plain.arrays(split)["label"], images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2))
        )
        expected = (images - np.reshape([0.5, 0.4, 0.3], (1, 3, 1, 1))) / 0.2
        np.testing.assert_allclose(task.arrays(split)["image"], expected, atol=1e-5)
        np.testing.assert_array_equal(last.arrays(split)["image"], task.arrays(split)["image"].transpose(0, 2, 3, 1))
    said = json.loads(json.dumps(task.preprocessing))["inputs"]["image"]
    assert (said["size"], said["mean"], said["layout"]) == ([8, 8], pytest.approx([0.5, 0.4, 0.3]), "channels-first")
    test = task.arrays("test")
    answers = {"output": rng().normal(size=(len(test["label"]), 2)).astype(np.float32)}
    shown = task.exhibits({"float": answers, "int8": {"output": -answers["output"]}}, test)
    picture = shown[0].panels["input"]
    assert (picture.shape, picture.dtype) == ((8, 8, 3), np.uint8)
    index = int(shown[0].caption.split()[1].rstrip(":"))
    np.testing.assert_allclose(picture.transpose(2, 0, 1), plain.arrays("test")["image"][index] * 255, atol=0.6)


def test_data_sets_of_hugging_face_are_read_by_their_features(tmp_path):
    import datasets

    features = datasets.Features(
        image=datasets.Image(), note=datasets.Value("string"), size=datasets.Value("float64"),
        grid=datasets.Array2D((2, 3), "float32"), label=datasets.ClassLabel(names=["cat", "dog"]),
    )  # fmt: skip
    rows = [
        {"image": Image.fromarray(np.full((6, 6, 3), 5 * index, np.uint8)), "note": "a", "size": float(index),
         "grid": np.full((2, 3), index, np.float32), "label": index % 2}
        for index in range(40)
    ]  # fmt: skip
    data = datasets.Dataset.from_list(rows, features=features)
    data.save_to_disk(str(tmp_path / "whole"))
    datasets.DatasetDict(train=data.select(range(30)), test=data.select(range(30, 40))).save_to_disk(
        str(tmp_path / "divided")
    )
    whole, divided = (Data(source=str(tmp_path / name)) for name in ("whole", "divided"))
    given = Data.of(data.shuffle(seed=1))
    for task in (whole, divided, given):
        assert {name: spec.shape for name, spec in task.inputs.items()} == {
            "features": (1,), "image": (3, 6, 6), "grid": (2, 3),
        }  # fmt: skip
        assert task.classes == ("cat", "dog")
        for split in SPLITS:
            found = task.arrays(split)
            index = found["features"][:, 0]
            np.testing.assert_array_equal(found["grid"][:, 1, 2], index)
            np.testing.assert_allclose(found["image"][:, 0, 3, 3] * 51, index, atol=1e-4)
            np.testing.assert_array_equal(found["label"], index % 2)
    np.testing.assert_array_equal(divided.arrays("test")["features"][:, 0], np.arange(30, 40))


class TwoInputs(Network):
    """Numbers and a token, and two outputs."""

    use: str = "two-inputs"

    def build(self, task: Task) -> torch.nn.Module:
        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.dense = torch.nn.Embedding(5, 8), torch.nn.Linear(3, 8)
                self.logits, self.inner = torch.nn.Linear(8, 3), torch.nn.Linear(8, 2)

            def forward(self, x: torch.Tensor, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                hidden = torch.relu(self.dense(x) + self.words(token).mean(dim=1))
                return self.logits(hidden), self.inner(hidden)

        return Net()


class Chooses(Network):
    """Three classes from numbers."""

    use: str = "chooses"
    widths: tuple[int, ...] = (8,)

    def build(self, task: Task) -> torch.nn.Module:
        (spec,) = task.inputs.values()
        return torch.nn.Sequential(
            torch.nn.Linear(spec.shape[0], self.widths[0]), torch.nn.ReLU(), torch.nn.Linear(self.widths[0], 3)
        )


class TwoHeads(Network):
    """Classes and numbers."""

    use: str = "two-heads"

    def build(self, task: Task) -> torch.nn.Module:
        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.logits, self.box = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)

            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return self.logits(x), self.box(x)

        return Net()


class Squares(torch.utils.data.Dataset):
    """Items as most people write them: (x, y), or a mapping."""

    def __init__(self, named: bool = False, noise: bool = False) -> None:
        self.named, self.noise = named, noise

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> object:
        if index >= len(self):
            raise IndexError(index)
        x = torch.tensor([index, index**2], dtype=torch.float32)
        if self.noise:
            x[1] = torch.rand(())
        return {"pair": x, "parity": index % 2} if self.named else (x, index % 2)


def test_data_sets_and_loaders_of_torch_are_collected_in_one_order():
    def ids(task: Data, name: str) -> list[float]:
        return [value for split in ("train", "validation", "test") for value in task.arrays(split)[name][:, 0]]

    wanted = Data.of(Squares())
    assert sorted(ids(wanted, "input")) == list(range(40))
    named = Data.of(Squares(named=True), label="parity")
    loader = torch.utils.data.DataLoader(Squares(), batch_size=7, shuffle=True)
    for task, name in ((named, "pair"), (Data.of(loader), "input"), (Data.of(lambda: Squares()), "input")):
        assert ids(task, name) == ids(wanted, "input")
    before = torch.random.get_rng_state()
    noisy = [Data.of(Squares(noise=True)).arrays("test")["input"] for _ in range(2)]
    np.testing.assert_array_equal(*noisy)
    assert torch.equal(before, torch.random.get_rng_state())
    some = torch.utils.data.DataLoader(
        Squares(), batch_size=7, sampler=torch.utils.data.SubsetRandomSampler(range(5, 30))
    )
    assert sorted(ids(Data.of(some), "input")) == list(range(5, 30))
    parts = Data.of({"train": loader, "test": torch.utils.data.Subset(Squares(), range(10))}, inputs=("x",))
    np.testing.assert_array_equal(parts.arrays("test")["x"][:, 0], np.arange(10))


def of_labels(label: np.ndarray, **fields) -> Data:
    return Data.of({"x": np.zeros((len(label), 2), np.float32), "label": label}, **fields)


def test_named_metrics_are_those_of_scikit_learn():
    from sklearn import metrics

    draw = rng()
    classes, numbers, marks = draw.integers(0, 4, 200), draw.normal(size=200), draw.integers(0, 2, (200, 3))
    logits, values, scores = (draw.normal(size=(40, width)).astype(np.float32) for width in (4, 1, 3))
    by = of_labels(classes)
    truth = by.arrays("test")["label"]
    assert by.score({"output": logits}, by.arrays("test")) == metrics.accuracy_score(truth, logits.argmax(1))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    by = of_labels(classes, metric="auroc")
    expected = metrics.roc_auc_score(truth, shares / shares.sum(1, keepdims=True), multi_class="ovr")
    assert by.score({"output": logits}, by.arrays("test")) == pytest.approx(expected, abs=1e-6)
    for name, function in (
        ("rmse", metrics.root_mean_squared_error), ("mae", metrics.mean_absolute_error), ("r2", metrics.r2_score),
    ):  # fmt: skip
        by = of_labels(numbers, metric=name)
        batch = by.arrays("test")
        assert by.score({"output": values}, batch) == pytest.approx(function(batch["label"], values), abs=1e-6)
        constant = (np.median if name == "mae" else np.mean)(by.arrays("train")["label"])
        mean = np.full_like(batch["label"], constant)
        assert by.baseline.score == pytest.approx(function(batch["label"], mean), abs=1e-6)
    by = of_labels(marks, metric="auroc")
    batch = by.arrays("test")
    assert by.score({"output": scores}, batch) == pytest.approx(metrics.roc_auc_score(batch["label"], scores), abs=1e-6)
    by = of_labels(marks[:, 0], metric="auroc")
    batch = by.arrays("test")
    expected = pytest.approx(metrics.roc_auc_score(batch["label"], values[:, 0]), abs=1e-6)
    pair = np.concatenate([-values, values], axis=1)
    assert by.score({"output": values}, batch) == expected
    assert by.score({"output": pair}, batch) == expected
    masks = draw.integers(0, 3, (50, 4, 5))
    by = of_labels(masks, metric="miou")
    batch, found = by.arrays("test"), draw.normal(size=(10, 3, 4, 5)).astype(np.float32)
    expected = metrics.jaccard_score(batch["label"].ravel(), found.argmax(1).ravel(), average="macro")
    assert by.score({"output": found}, batch) == pytest.approx(expected, abs=1e-6)


def test_labels_of_positions_go_with_answers_in_either_layout():
    label = rng().integers(0, 3, (50, 6))
    label[:, -1] = -100
    by = of_labels(label)
    batch = by.arrays("test")
    right = np.eye(3, dtype=np.float32)[np.maximum(batch["label"], 0)]
    for answer in (right, right.transpose(0, 2, 1)):
        assert by.score({"output": answer}, batch) == 1
        tensors = {"output": torch.from_numpy(20 * answer)}
        assert float(by.loss(tensors, {"label": torch.from_numpy(batch["label"])})) < 1e-6
        assert by.decisions({"output": answer}).shape == (10, 6)


@pytest.mark.parametrize(
    ("label", "metric", "answer"),
    [
        (rng().integers(0, 2, 50), "accuracy", (10, 1)),
        (rng().integers(0, 3, 50), "accuracy", (10, 3)),
        (rng().normal(size=(50, 2)), "rmse", (10, 2)),
        (rng().normal(size=50), "mae", (10, 1)),
        (rng().integers(0, 2, (50, 4)), "auroc", (10, 4)),
        (rng().integers(0, 3, (50, 4, 4)), "miou", (10, 3, 4, 4)),
    ],
)
def test_the_loss_falls_as_the_metric_improves(label, metric, answer):
    task = of_labels(label, metric=metric)
    batch = {name: torch.from_numpy(values) for name, values in task.arrays("test").items()}
    output = torch.randn(answer, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rule = torch.optim.Adam([output], lr=0.1)
    losses = []
    for _ in range(60):
        rule.zero_grad()
        losses.append(task.loss({"output": output}, batch))
        losses[-1].backward()
        rule.step()
    assert losses[-1] < losses[0] / 3
    score = task.score({"output": output.detach().numpy()}, task.arrays("test"))
    assert task.metric.drop(task.baseline.score, score) < 0


OWN = """
import numpy as np
import torch


def arrays():
    x = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    return {"x": x, "y": 2 * x, "weight": np.arange(100.0)}


def worst(outputs, batch):
    return np.abs((outputs["output"] - batch["y"])[batch["weight"] >= 0]).max()


def cubed(outputs, batch):
    return (outputs["output"] - batch["y"]).abs().pow(3).mean()


def fails(outputs, batch):
    raise KeyError("no such\\nthing")


def nothing(outputs, batch):
    return float("nan")


def no_scalar(outputs, batch):
    return outputs["output"]


def no_data():
    return {"x": np.ones(3)}["z"]


PLAIN = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a person's functions, on the path."""
    (tmp_path / "own_code.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_code", None)


@pytest.mark.usefixtures("own")
def test_functions_of_ones_own_give_data_metric_and_loss():
    task = Data(source="own_code:arrays", label="y", inputs=("x",), metric="own_code:worst", loss="own_code:cubed",
                higher_is_better=False)  # fmt: skip
    batch = task.arrays("test")
    assert (task.metric.name, task.metric.higher_is_better, task.baseline) == ("worst", False, None)
    assert task.score({"output": batch["y"] + 0.5}, batch) == pytest.approx(0.5)
    loss = task.loss({"output": torch.ones(20, 1)}, {"y": torch.zeros(20, 1)})
    assert float(loss) == 1


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"metric": "own_code:fails"},
            r"own_code:fails: your code raised KeyError: 'no such\\nthing'\n.*own_code.py",
        ),
        ({"metric": "own_code:nothing"}, "metric own_code:nothing returned nan, which is no score"),
        ({"metric": "own_code:PLAIN"}, "own_code:PLAIN is a int, no function"),
        ({"metric": "own_code:wurst"}, "module own_code has no wurst"),
        ({"metric": "no_such_code:f"}, "cannot import no_such_code"),
        ({"metric": "own_code:worst", "label": None}, 'own_code:worst has no loss without labels: say loss = "package'),
        ({"metric": "rmse", "loss": "own_code:no_scalar"}, "loss own_code:no_scalar returned a Tensor, no scalar"),
        (
            {"metric": "rmse", "source": "own_code:no_data"},
            r"no_data: your code raised KeyError: 'z'\n.*own_code.py",
        ),
    ],
)
def test_functions_of_ones_own_that_fail_are_named(fields, said):
    def use(task: Data) -> None:
        batch = task.arrays("test")
        task.score({"output": batch["y"]}, batch)
        task.loss({"output": torch.ones(20, 1)}, {"y": torch.zeros(20, 1)})

    task = Data(**{"source": "own_code:arrays", "label": "y", "inputs": ("x",)} | fields)
    with pytest.raises(UsageError, match=said) as caught:
        use(task)
    assert "\n" not in str(caught.value) or "your code raised" in str(caught.value)


def test_a_network_of_two_inputs_and_outputs_is_compressed(tmp_path):
    draw = rng()
    x, token = draw.normal(size=(300, 3)), draw.integers(0, 5, (300, 2))
    label = (x[:, 0] > 0).astype(int) + (token.sum(axis=1) > 4)
    np.savez(tmp_path / "own.npz", x=x, token=token, label=label)
    report = finished(
        f"""
task = {{ use = "data", source = "{tmp_path}/own.npz", inputs = ["x", "token"], outputs = ["logits", "inner"] }}
model = {{ use = "tests.test_data_task:TwoInputs" }}
steps = [ {{ use = "train", epochs = 30, lr = 1e-2 }}, {PTQ} ]
""",
        tmp_path,
    )
    assert report["metric"]["name"] == "accuracy"
    assert all(row["score"] > report["baseline"]["score"] + 0.2 for row in report["rows"])


def test_a_folder_of_images_is_compressed_for(tmp_path):
    report = finished(
        f"""
task = {{ use = "data", source = "{write_images(tmp_path / "own", 40)}", size = [8, 8], mean = [0.5], std = [0.25] }}
model = {{ use = "cnn", widths = [4], hidden = 8 }}
steps = [ {{ use = "train", epochs = 10, lr = 1e-2 }}, {PTQ} ]
""",
        tmp_path,
    )
    assert all(row["score"] > report["baseline"]["score"] for row in report["rows"])
    assert len(list(next((tmp_path / "own").parent.glob("own/*/exhibits/*.png")).parent.iterdir())) > 6


@pytest.mark.parametrize("widths", [[], [4]], ids=["decisions", "numbers"])
def test_without_labels_a_network_is_held_against_its_teacher(tmp_path, widths):
    x = rng().normal(size=(200, 4))
    np.savez(tmp_path / "own.npz", x=x.astype(np.float32))
    network = f'{{ use = "{"tests.test_data_task:Chooses" if not widths else "mlp"}", widths = [8] }}'
    report = finished(
        f"""
task = {{ use = "data", source = "{tmp_path}/own.npz", teacher = {network} }}
model = {network}
steps = [ {PTQ} ]
""",
        tmp_path,
    )
    assert report["metric"]["name"] == "agreement"
    scores = {row["variant"]: row["score"] for row in report["rows"] if row["target"] == "tflite"}
    assert scores["float"] == pytest.approx(1, abs=1e-6)
    assert 0.9 < scores["compressed"] <= 1


def test_a_data_set_of_the_hub_is_taken_by_name_and_configuration(monkeypatch):
    import datasets

    def loaded(name: str, config: str | None) -> datasets.DatasetDict:
        if name != "somebody/numbers":
            raise ConnectionError("the hub is far away\nand more")
        assert config == "small"
        rows = {"a": [1.0, 2.0, 3.0, 4.0] * 5, "label": [0, 1] * 10}
        return datasets.DatasetDict(train=datasets.Dataset.from_dict(rows), dev=datasets.Dataset.from_dict(rows))

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    task = Data(source="hub:somebody/numbers", config="small", splits={"test": "dev"})
    assert [len(task.arrays(split)["label"]) for split in SPLITS] == [16, 16, 4, 20]
    with pytest.raises(DataError, match=r"hub:nobody/nothing: cannot be had: the hub is far away$"):
        Data(source="hub:nobody/nothing").arrays("test")


def test_inputs_may_be_nested_and_tables_of_pandas():
    import pandas

    pairs = [((np.float32([index]), index + 1), index % 2) for index in range(20)]
    task = Data.of(pairs, inputs=("x", "next"))
    assert {name: (spec.shape, spec.dtype) for name, spec in task.inputs.items()} == {
        "x": ((1,), "float32"), "next": ((), "int64"),
    }  # fmt: skip
    named = [({"x": np.float32([index]), "next": index + 1}, index % 2) for index in range(20)]
    for name, values in Data.of(named).arrays("test").items():
        np.testing.assert_array_equal(values, task.arrays("test")[name])
    frame = pandas.DataFrame({"a": np.arange(20.0), "kind": ["x", "y"] * 10, "note": ["-"] * 20})
    table = Data.of(frame, label="kind")
    assert (table.classes, table.inputs["features"].shape) == (("x", "y"), (1,))


def test_of_data_without_labels_the_teacher_answers(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in write_images(tmp_path / "own").glob("*/*.png"):
        file.rename(flat / file.name)
    teacher = Chooses()
    images = Data(source=str(flat), size=(4, 4), teacher={"use": "mlp"})
    assert set(images.arrays("test")) == {"image", "taught:output"}
    named = Data.of({"x": X * rng().normal(size=X.shape), "label": CLASSES, "y": CLASSES}, teacher=teacher)
    assert list(named.inputs) == ["x", "y"]
    assert named.metric.name == "agreement"
    task = Data.of({"x": rng().normal(size=(100, 2)), "y": CLASSES.repeat(5)}, label="y", metric="agreement",
                   teacher=teacher)  # fmt: skip
    batch = task.arrays("test")
    assert set(batch) == {"x", "taught:output"}
    taught = batch["taught:output"]
    assert task.score({"output": taught}, batch) == 1
    other = np.where(np.arange(20)[:, None] < 5, -taught, taught)
    assert task.score({"output": other}, batch) == np.mean(other.argmax(1) == taught.argmax(1))
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    near, far = (float(task.loss({"output": torch.from_numpy(values)}, tensors)) for values in (taught, -taught))
    assert abs(near) < 1e-6 < far
    pair = Data.of({"x": rng().normal(size=(100, 2))}, teacher=TwoHeads(), outputs=("logits", "box"))
    batch = pair.arrays("test")
    box = batch["taught:box"]
    assert pair.score({"logits": 3 * batch["taught:logits"], "box": 0.9 * box}, batch) == pytest.approx(0.99, abs=1e-6)
    close = pair.model_copy(update={"metric_name": "fidelity"})
    assert close.score({"logits": 1.2 * batch["taught:logits"], "box": box}, batch) == pytest.approx(0.96, abs=1e-6)
    assert close.decisions({"logits": taught}) is None
    figures = close.figures(None, {"logits": 1.1 * batch["taught:logits"], "box": box}, batch)
    assert figures == {"signal to noise, dB": pytest.approx(20, abs=1e-3)}
    plain = Data.of({"x": rng().normal(size=(100, 2))}, teacher={"use": "mlp"})
    batch = plain.arrays("test")
    noise = 0.1 * np.sqrt(np.square(batch["taught:output"]).mean()) * np.resize([1, -1], (20, 1))
    assert plain.score({"output": batch["taught:output"] + noise}, batch) == pytest.approx(0.99, abs=1e-4)
    assert plain.decisions({"output": taught[:, :1]}) is None
    with pytest.raises(ValidationError, match="the teacher stands in for labels, but the metric needs these"):
        Data(source="own.npz", label="y", teacher=teacher)


def test_a_teacher_that_answers_no_numbers_is_refused():
    class Broken(Chooses):
        def build(self, task: Task) -> torch.nn.Module:
            net = super().build(task)
            net[2].bias.data[1] = torch.nan
            return net

    with pytest.raises(DataError, match="the teacher answers NaN or infinity in output"):
        Data.of({"x": X}, teacher=Broken()).arrays("test")


def test_a_task_is_what_it_was_given(tmp_path):
    np.savez(tmp_path / "own.npz", x=X, y=CLASSES)
    task = Data(source=str(tmp_path / "own.npz"), label="y", std=(0.5,), teacher={"use": "mlp"}, metric="agreement")
    written = json.loads(task.model_dump_json())
    assert written["label"] == "y"
    assert Data.model_validate(written) == task
    assert hash(Data.model_validate(written)) == hash(task)
    arrays = {"x": X, "label": CLASSES}
    assert Data.of(arrays) == Data.of(arrays) != Data.of(dict(arrays))
    np.savez(tmp_path / "own.npz", x=2 * X, y=CLASSES)  # a new task reads it again
    assert Data(source=str(tmp_path / "own.npz"), label="y").arrays("test")["x"][0, 0] == 2
    with pytest.raises(DataError, match="are both given; take one"):
        Data.of(arrays, source="own.npz").arrays("test")
    with pytest.raises(DataError, match="source is missing"):
        Data().arrays("test")


@pytest.mark.parametrize(
    ("label", "answer", "truth", "said"),
    [
        (np.array(["no", "yes"] * 50), np.float32([[0, 2]] * 20), {"no", "yes"}, "yes (88%)"),
        (np.linspace(0, 1, 100), np.full((20, 1), 0.5, np.float32), None, "0.5"),
        (CLASSES.repeat(5), np.full((20, 1), 3, np.float32), {"0", "1"}, "1"),
        (rng().integers(0, 3, (100, 4)), np.ones((20, 4, 3), np.float32), None, "classes 0, 0, 0, 0"),
    ],
)
def test_samples_are_shown_as_text(label, answer, truth, said):
    table = {"a": np.arange(100.0), "tokens": np.arange(1200).reshape(100, 12), "label": label}
    task = Data.of(table, metric="rmse" if label.dtype.kind == "f" else "accuracy")
    shown = task.exhibits({"float": {"output": answer}, "int8": {"output": answer}}, task.arrays("test"))
    assert len(shown) == 6
    for exhibit in shown:
        assert exhibit.panels["float"] == exhibit.panels["int8"] == said
        assert exhibit.panels["input"].startswith("a ")
        assert exhibit.panels["input"].endswith(", ... (12)")
        assert truth is None or exhibit.panels["truth"] in truth


def test_a_device_scores_without_a_framework(tmp_path):
    np.savez(tmp_path / "own.npz", **numbers())
    program = f"""
import sys
for name in ("torch", "torchmetrics", "sklearn", "PIL", "datasets", "pyarrow"):
    sys.modules[name] = None
import numpy as np
from edgedl.tasks.data import Data
task = Data(source={str(tmp_path / "own.npz")!r})
batch = task.arrays("test")
print(task.score({{"output": np.eye(2, dtype=np.float32)[batch["label"]]}}, batch), task.baseline.answer)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1.0 always answering the commonest class\n", "")


@pytest.mark.parametrize(
    ("package", "name", "said"),
    [
        ("pyarrow", "own.parquet", r"needs pyarrow: pip install 'edgedl\[data\]'"),
        ("datasets", "hub:some/thing", r"needs the package datasets: pip install 'edgedl\[hub\]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, package, name, said):
    (tmp_path / "own.parquet").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=said):
        Data(source=name).arrays("test")
