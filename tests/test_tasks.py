"""What every task promises, and MNIST from files of every kind of damage."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedl import plugins
from edgedl.core import DataError, Task
from edgedl.images import Classification
from edgedl.tasks.mnist import FILES, MNIST
from edgedl.tasks.nodes import UNKNOWN, Nodes
from tests import test_cifar10
from tests.tiny import refusal

SPLITS = ("train", "calibration", "validation", "test")
TRAIN_IMAGES, TRAIN_LABELS = FILES["train"]
TEST_IMAGES, TEST_LABELS = FILES["test"]


def idx(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


def pictures(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, 28, 28), dtype=np.uint8), (np.arange(num) % 10).astype(np.uint8)


def write_mnist(folder: Path, suffix: str = "", num_train: int = 48, num_test: int = 20) -> Path:
    """The four IDX files with random images; labels count 0 to 9 and begin again."""
    folder.mkdir(exist_ok=True)
    for seed, (names, num) in enumerate(zip(FILES.values(), (num_train, num_test), strict=True)):
        for name, values in zip(names, pictures(num, seed), strict=True):
            content = idx(values)
            (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    return folder


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


@pytest.fixture(scope="module")
def cifar10_folder(tmp_path_factory) -> Path:
    return test_cifar10.write_files(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="module")
def tasks(mnist_folder, cifar10_folder, tmp_path_factory) -> dict[str, Task]:
    """One of every kind; those that need files get made ones."""
    table = tmp_path_factory.mktemp("data") / "table.csv"
    table.write_text("\n".join(["x,y,label", *(f"{index},{index / 7},{index % 3}" for index in range(200))]))
    fields = {"mnist": {"folder": str(mnist_folder)}, "cifar10": {"folder": str(cifar10_folder)}}
    fields["data"] = {"source": str(table)}
    return {name: plugins.load("tasks", name)(**fields.get(name, {})) for name in plugins.names("tasks")}


@pytest.fixture(params=plugins.names("tasks"))
def task(request, tasks) -> Task:
    return tasks[request.param]


def samples(task: Task, split) -> set[str]:
    """The inputs of a split, each by its content; of a graph, the nodes whose class is known."""
    arrays = task.arrays(split)
    if isinstance(task, Nodes):
        return {str(node) for node in np.flatnonzero(arrays["label"] != UNKNOWN)}
    rows = zip(*(arrays[name] for name in task.inputs), strict=True)
    return {hashlib.sha256(b"".join(values.tobytes() for values in row)).hexdigest() for row in rows}


def test_no_sample_is_in_two_splits_and_calibration_is_from_training(task):
    train, calibration, validation, test = (samples(task, split) for split in SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert calibration <= train
    assert all((calibration, validation, test))


@pytest.mark.parametrize("split", SPLITS)
def test_arrays_are_as_the_inputs_say(task, split):
    arrays = task.arrays(split)
    assert len({len(values) for values in arrays.values()}) == 1
    for name, spec in task.inputs.items():
        assert arrays[name].shape[1:] == spec.shape
        assert arrays[name].dtype == spec.dtype
        assert np.isfinite(arrays[name]).all()


DRAWN_ALIKE = {
    **dict.fromkeys(("detection", "keywords", "machine-sound", "transcription"), ("validation",)), "xray": ("test",),
}  # fmt: skip
"""Tasks that take long to draw, each split by the same function from a seed of its own: their smallest."""


def digest(task: Task) -> str:
    splits = DRAWN_ALIKE.get(task.use, SPLITS)
    parts = [values.tobytes() for split in splits for values in task.arrays(split).values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def elsewhere(tasks, tmp_path_factory) -> dict[str, str]:
    """The digest of each task's data in another process, which has to make it: nothing is in its cache."""
    program = (
        "import json, sys; from edgedl import plugins; from tests.test_tasks import digest\n"
        "for name, task in json.load(sys.stdin).items():\n"
        "    print(name, digest(plugins.load('tasks', name).model_validate(task)), flush=True)\n"
    )
    told = json.dumps({name: task.model_dump(mode="json") for name, task in tasks.items()})
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=told,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def test_another_process_has_the_same_data(task, elsewhere):
    assert elsewhere.get(task.use) == digest(task)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_batches_are_the_split_in_order(task, size):
    for split in ("validation", "test"):
        arrays, batches = task.arrays(split), list(task.batches(split, size))
        lengths = [len(next(iter(batch.values()))) for batch in batches]
        assert all(length == size for length in lengths[:-1])
        assert 0 < lengths[-1] <= size
        for name, values in arrays.items():
            np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), values)


def test_specs_with_a_batch_have_it_in_front(task):
    specs = task.input_specs(5)
    assert list(specs) == list(task.inputs)
    assert all(specs[name].shape == (5, *spec.shape) for name, spec in task.inputs.items())


@pytest.fixture
def classification(task) -> Classification:
    if not isinstance(task, Classification):
        pytest.skip("no classification")
    if task.metric.name != "accuracy":
        pytest.skip(f"judged by {task.metric.name}")
    return task


def test_every_class_is_in_every_split_that_is_scored(classification):
    for split in ("train", "test"):
        assert set(classification.arrays(split)["label"]) == set(range(classification.num_classes))


def test_the_right_answers_score_1_and_wrong_ones_0(classification):
    batch = classification.arrays("test")
    right = np.eye(classification.num_classes, dtype=np.float32)[batch["label"]]
    assert classification.score({"logits": right}, batch) == 1
    assert classification.score({"logits": np.roll(right, 1, axis=1)}, batch) == 0
    np.testing.assert_array_equal(classification.decisions({"logits": right}), batch["label"])


def test_any_answer_scores_the_share_of_right_decisions(classification):
    batch = classification.arrays("test")
    for seed in range(20):
        logits = np.random.default_rng(seed).standard_normal((len(batch["label"]), classification.num_classes))
        outputs = {"logits": logits.astype(np.float32)}
        decisions = classification.decisions(outputs)
        assert decisions.shape == batch["label"].shape
        assert np.issubdtype(decisions.dtype, np.integer)
        score = classification.score(outputs, batch)
        assert 0 <= score <= 1
        assert score == sum(decisions == batch["label"]) / len(decisions)


def test_the_loss_falls_towards_the_right_answers(classification):
    batch = {name: torch.from_numpy(values) for name, values in classification.arrays("test").items()}
    right = torch.eye(classification.num_classes)[batch["label"]]
    unsure = torch.zeros_like(right, requires_grad=True)
    losses = [classification.loss({"logits": logits}, batch) for logits in (9 * right, unsure, -9 * right)]
    assert losses[0] < losses[1] < losses[2]
    assert losses[1].item() == pytest.approx(np.log(classification.num_classes))
    losses[1].backward()
    assert (unsure.grad * right).sum() < 0


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_idx_files(tmp_path, suffix):
    task = MNIST(folder=str(write_mnist(tmp_path, suffix)))
    images, labels = pictures(48, seed=0)
    train, validation = task.arrays("train"), task.arrays("validation")
    np.testing.assert_array_equal(train["image"], images[:44, None].astype(np.float32) / 255)
    np.testing.assert_array_equal(validation["image"], images[44:, None].astype(np.float32) / 255)
    np.testing.assert_array_equal(np.concatenate([train["label"], validation["label"]]), labels)
    assert task.arrays("test")["label"].tolist() == [*range(10), *range(10)]
    assert train["image"].max() == 1
    assert train["label"].dtype == np.int64


def test_mnist_calibrates_on_at_most_512_images(tmp_path):
    task = MNIST(folder=str(write_mnist(tmp_path, num_train=720)))
    assert len(task.arrays("train")["image"]) == 660
    np.testing.assert_array_equal(task.arrays("calibration")["image"], task.arrays("train")["image"][:512])


def refused(folder: Path, split="train") -> str:
    return refusal(MNIST(folder=str(folder)), split)


IMAGES, LABELS = pictures(48, seed=0)
TOO_LARGE = LABELS.copy()
TOO_LARGE[31] = 10


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (TRAIN_IMAGES, b"", "begins with nothing"),
        (TRAIN_IMAGES, b"\x00\x00", "begins with 0000"),
        (TRAIN_IMAGES, b"PNG\x00" + bytes(100), "begins with 504e4700, not with 00000803"),
        (TRAIN_IMAGES, idx(LABELS), "begins with 00000801, not with 00000803"),
        (TRAIN_LABELS, idx(IMAGES), "begins with 00000803, not with 00000801"),
        (TRAIN_IMAGES, idx(IMAGES)[:10], "ends inside its header"),
        (TRAIN_IMAGES, idx(IMAGES)[:-1], "37631 bytes of data, but the header says (48, 28, 28)"),
        (TRAIN_IMAGES, idx(IMAGES) + b"\x00", "37633 bytes of data, but the header says (48, 28, 28)"),
        (TRAIN_IMAGES, bytes((0, 0, 8, 3)) + b"\xff" * 12, "0 bytes of data, but the header says (4294967295"),
        (TRAIN_IMAGES, idx(IMAGES[:, :14]), "images are (14, 28), not 28x28"),
        (TRAIN_IMAGES, idx(IMAGES[:47]), f"48 labels for 47 images in {TRAIN_IMAGES}"),
        (TRAIN_LABELS, idx(LABELS[:40]), f"40 labels for 48 images in {TRAIN_IMAGES}"),
        (TRAIN_LABELS, idx(TOO_LARGE), "record 31 has label 10, above 9"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, name, content, said, suffix):
    write_mnist(tmp_path, suffix)
    (tmp_path / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}/")
    assert name in message
    assert said in message
    assert len(MNIST(folder=str(tmp_path)).arrays("test")["image"]) == 20


def broken_gzip(content: bytes) -> bytes:
    whole = bytearray(gzip.compress(content))
    whole[len(whole) // 2] ^= 0xFF
    return bytes(whole)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip at all", gzip.compress(idx(IMAGES))[:-20], broken_gzip(idx(IMAGES)), b"\x1f\x8b\x08" + bytes(50)],
    ids=["empty", "text", "truncated", "flipped bits", "header alone"],
)
def test_a_corrupt_gzip_is_named(tmp_path, content):
    write_mnist(tmp_path, ".gz")
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    assert f"{tmp_path / TRAIN_IMAGES}.gz: " in refused(tmp_path)


@settings(deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4), cut=st.integers(0, 330))
def test_whatever_is_in_the_files_the_only_error_is_one_of_data(tmp_path_factory, flips, cut):
    folder = write_mnist(tmp_path_factory.mktemp("any"), ".gz", num_train=12, num_test=1)
    content = bytearray(gzip.compress(idx(np.zeros((12, 28, 28)))))
    for position, value in flips:
        content[position % len(content)] = value
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(content[:cut])
    try:
        images = MNIST(folder=str(folder)).arrays("train")["image"]
    except DataError as error:
        found = TRAIN_IMAGES in str(error)
    else:
        found = images.shape == (11, 1, 28, 28)
    assert found


@pytest.mark.parametrize("name", [name for names in FILES.values() for name in names])
def test_a_missing_file_is_named(tmp_path, name):
    write_mnist(tmp_path)
    (tmp_path / name).unlink()
    assert refused(tmp_path, "test" if name in FILES["test"] else "train").startswith(
        f"{tmp_path}: no {name} or {name}.gz"
    )


def test_a_folder_that_is_none_is_said_to_be_none(tmp_path):
    (tmp_path / "file").touch()
    for name in ("absent", "file"):
        assert f"{tmp_path / name}: no such folder" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("num_train", "num_test", "split"), [(0, 5, "train"), (0, 5, "calibration"), (11, 5, "validation"), (48, 0, "test")]
)
def test_an_empty_split_is_named(tmp_path, num_train, num_test, split):
    write_mnist(tmp_path, num_train=num_train, num_test=num_test)
    assert refused(tmp_path, split) == f"mnist: the {split} split of {tmp_path} is empty"


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """Hugging Face `datasets`, with its cache in the test's own folder."""
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return module


def write_parquet(datasets, folder: Path, images: list, labels: list, splits=("train", "test")) -> str:
    from PIL import Image

    folder.mkdir()
    kinds = {"image": datasets.Image(), "label": datasets.Value("string" if isinstance(labels[0], str) else "int64")}
    pictures = [image if image is None else Image.fromarray(image) for image in images]
    data = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=datasets.Features(kinds))
    for split in splits:
        data.to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


def test_mnist_reads_a_folder_of_parquet_as_the_hub_has_it(datasets, tmp_path):
    task = MNIST(hub=write_parquet(datasets, tmp_path / "data", IMAGES, LABELS.tolist()))
    np.testing.assert_array_equal(task.arrays("train")["image"], IMAGES[:44, None].astype(np.float32) / 255)
    np.testing.assert_array_equal(task.arrays("test")["label"], LABELS)
    assert task.arrays("test")["image"].dtype == np.float32


def test_mnist_reads_a_folder_of_pictures(datasets, tmp_path):
    from PIL import Image

    for split, names in (("train", range(24)), ("test", range(10))):
        for index in names:
            file = tmp_path / "data" / split / str(index % 10) / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(IMAGES[index]).save(file)
    task = MNIST(hub=str(tmp_path / "data"))
    test = task.arrays("test")
    assert test["label"].tolist() == list(range(10))
    np.testing.assert_array_equal(test["image"], IMAGES[:10, None].astype(np.float32) / 255)
    assert len(task.arrays("train")["image"]) == 22


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES[:3, :8, :8], [0, 1, 2], r"record 0 of .*image \(8, 8\)"),
        ([*IMAGES[:2], IMAGES[2, :1, :]], [0, 1, 2], r"record 2 of .*image \(28, 1\)"),
        ([*IMAGES[:2], None], [0, 1, 2], "record 2 of .*image None"),
        (IMAGES[:3], [0, 10, 2], "record 1 of .*label 10"),
        (IMAGES[:3], [0, 1, -1], "record 2 of .*label -1"),
        (IMAGES[:3], [0, 256, 2], "record 1 of .*label 256"),
        (IMAGES[:3], [0, None, 2], "record 1 of .*label None"),
        (IMAGES[:3], ["one", "two", "three"], "record 0 of .*label 'one'"),
    ],
)
def test_a_record_from_the_hub_that_is_none_of_mnist_is_named(datasets, tmp_path, images, labels, said):
    hub = write_parquet(datasets, tmp_path / "data", images, labels)
    with pytest.raises(DataError, match=said):
        MNIST(hub=hub).arrays("test")


@pytest.mark.parametrize(
    "columns",
    [{"picture": ["a"], "label": [1]}, {"image": ["not", "images"], "label": [1, 2]}, {"image": [1], "digit": [1]}],
)
def test_other_columns_than_mnist_has_are_shown(datasets, tmp_path, columns):
    folder = tmp_path / "data"
    folder.mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(str(folder / "test.parquet"))
    with pytest.raises(DataError, match="needs a column image of images and a column label; it has") as caught:
        MNIST(hub=str(folder)).arrays("test")
    assert all(f"'{column}'" in str(caught.value) for column in columns)


def test_a_folder_without_the_split_or_any_data_says_so(datasets, tmp_path):
    hub = write_parquet(datasets, tmp_path / "data", IMAGES[:3], [0, 1, 2], splits=("train",))
    with pytest.raises(DataError, match='Unknown split "test"'):
        MNIST(hub=hub).arrays("test")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "test.parquet").write_bytes(b"no parquet")
    for name in ("empty", "broken", "absent"):
        with pytest.raises(DataError, match=f"{tmp_path / name} cannot be had"):
            MNIST(hub=str(tmp_path / name)).arrays("test")


def test_without_a_network_it_says_where_to_put_the_files(datasets, tmp_path):
    program = "from edgedl.tasks.mnist import MNIST; MNIST().arrays('test')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("edgedl.sessions.DataError: mnist: ylecun/mnist cannot be had from the hub")
    assert 'task = { use = "mnist", folder = "..." }' in message


def test_without_the_package_it_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'edgedl\[hub\]'"):
        MNIST(hub="someone/mnist").arrays("test")
