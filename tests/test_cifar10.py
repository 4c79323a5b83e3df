"""CIFAR-10 from files of both versions, from archives and from the hub; damaged files, and pickles that would run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedl.core import DataError
from edgedl.tasks import cifar10
from edgedl.tasks.cifar10 import FILES, Cifar10
from tests.tiny import refusal

NUM_PER_FILE = 12
SPLITS = ("train", "calibration", "validation", "test")
FIRST = FILES["train"][0]


def pictures(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,), uint8; labels count 0 to 9 and begin again."""
    images = np.random.default_rng(seed).integers(0, 256, (num, 3, 32, 32), dtype=np.uint8)
    return images, (np.arange(num) % 10).astype(np.uint8)


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1).tobytes()


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def int32(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2(images: np.ndarray, labels: np.ndarray, by_columns: bool = False) -> bytes:
    """What Python 2 and NumPy 1 pickled; Python 3 would write other opcodes."""
    shape = int32(len(images)) + int32(3072) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01" + b"cnumpy\nndarray\nq\x02" + b"K\x00\x85" + text(b"b")
    kind = b"cnumpy\ndtype\nq\x03" + text(b"u1") + b"K\x00K\x01\x87R" + b"(K\x03" + text(b"|") + b"NNN"
    kind += int32(-1) + int32(-1) + b"K\x00tb"
    values = images.reshape(len(images), 3072).tobytes("F" if by_columns else "C")
    flag = b"\x88" if by_columns else b"\x89"
    array += b"\x87R(K\x01" + shape + kind + flag + b"T" + struct.pack("<i", len(values)) + values + b"tb"
    said = b"](" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
    names = b"](" + b"".join(text(b"%d.png" % index) for index in range(len(images))) + b"e"
    items = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + said
    return b"\x80\x02}q\x00(" + items + text(b"data") + array + text(b"filenames") + names + b"u."


VERSIONS = {"binary": (binary, ".bin"), "python": (python2, "")}


def contents(version: str, num: int = NUM_PER_FILE) -> dict[str, bytes]:
    """All six files by name."""
    write, suffix = VERSIONS[version]
    return {name + suffix: write(*pictures(num, seed)) for seed, name in enumerate([*FILES["train"], *FILES["test"]])}


def write_files(folder: Path, version: str = "binary", num: int = NUM_PER_FILE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents(version, num).items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def everything(folder: Path) -> dict[str, np.ndarray]:
    task = Cifar10(folder=str(folder))
    return {f"{split} {name}": values for split in SPLITS for name, values in task.arrays(split).items()}


def refused(folder: Path, split: str = "train") -> str:
    said = refusal(Cifar10(folder=str(folder)), split)
    assert str(folder) in said
    return said


def test_the_pickles_of_this_test_are_what_numpy_pickles():
    images, labels = pictures(NUM_PER_FILE, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # today's NumPy on yesterday's names
        read = pickle.loads(python2(images, labels), encoding="bytes")
    np.testing.assert_array_equal(read[b"data"], images.reshape(len(images), -1))
    assert read[b"labels"] == labels.tolist()


@pytest.mark.parametrize("version", VERSIONS)
def test_files_in_a_folder(tmp_path, version):
    found = everything(write_files(tmp_path, version))
    images = np.concatenate([pictures(NUM_PER_FILE, seed)[0] for seed in range(5)]).astype(np.float32) / 255
    np.testing.assert_array_equal(found["train image"], images[:54])
    np.testing.assert_array_equal(found["calibration image"], images[:54])
    np.testing.assert_array_equal(found["validation image"], images[54:])
    np.testing.assert_array_equal(found["test image"], pictures(NUM_PER_FILE, seed=5)[0].astype(np.float32) / 255)
    assert found["test label"].tolist() == [*range(10), 0, 1]
    assert found["train image"].dtype == np.float32
    assert found["train label"].dtype == np.int64
    assert found["train image"].max() == 1


def test_both_versions_and_their_archives_give_the_same(tmp_path):
    folders = [write_files(tmp_path / "binary"), write_files(tmp_path / "python", "python")]
    for version in VERSIONS:
        (tmp_path / f"{version} archive").mkdir()
        inside = {f"cifar-10-batches/{name}": content for name, content in contents(version).items()}
        archive = write_archive(tmp_path / f"{version} archive" / f"cifar-10-{version}.tar.gz", inside)
        folders += [archive, archive.parent]
    first, *others = (everything(folder) for folder in folders)
    for other in others:
        for name, values in first.items():
            np.testing.assert_array_equal(other[name], values)


@pytest.mark.parametrize("version", VERSIONS)
def test_files_where_the_archive_puts_them(tmp_path, version):
    write_files(tmp_path / {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}[version], version)
    assert len(Cifar10(folder=str(tmp_path)).arrays("train")["image"]) == 54


def test_of_both_versions_the_binary_one_is_read(tmp_path):
    for name in contents("python"):
        (tmp_path / name).write_bytes(b"not read")
    write_files(tmp_path)
    assert len(everything(tmp_path)["test image"]) == NUM_PER_FILE


def test_calibration_takes_at_most_512_images(tmp_path):
    task = Cifar10(folder=str(write_files(tmp_path, num=120)))
    np.testing.assert_array_equal(task.arrays("calibration")["image"], task.arrays("train")["image"][:512])
    assert len(task.arrays("validation")["image"]) == 60


def test_arrays_that_lie_column_by_column_are_read_as_they_are_meant(tmp_path):
    write_files(tmp_path, "python")
    images, labels = pictures(NUM_PER_FILE, seed=5)
    (tmp_path / "test_batch").write_bytes(python2(images, labels, by_columns=True))
    np.testing.assert_array_equal(Cifar10(folder=str(tmp_path)).arrays("test")["image"], images / np.float32(255))


IMAGES, LABELS = pictures(NUM_PER_FILE, seed=0)
TOO_LARGE = LABELS.copy()
TOO_LARGE[7] = 10
WHOLE = {version: write(IMAGES, LABELS) for version, (write, _) in VERSIONS.items()}


@pytest.mark.parametrize(
    ("version", "content", "said"),
    [
        ("binary", b"", "holds no images"),
        ("binary", WHOLE["binary"][:-1], "ends inside record 11, after 3072 of 3073 bytes"),
        ("binary", WHOLE["binary"] + b"\x00", "ends inside record 12, after 1 of 3073 bytes"),
        ("binary", binary(IMAGES, TOO_LARGE), "record 7 has a label 10, not from 0 to 9"),
        ("python", b"", "no pickle of CIFAR-10"),
        ("python", b"PNG", "no pickle of CIFAR-10"),
        ("python", WHOLE["python"][:-30], "no pickle of CIFAR-10"),
        ("python", WHOLE["python"][:3000], "no pickle of CIFAR-10"),
        ("python", python2(IMAGES, TOO_LARGE), "record 7 has a label 10, not from 0 to 9"),
        ("python", python2(IMAGES, LABELS[:11]), "data is no array of 3072 bytes for each of the 11 labels"),
        ("python", python2(IMAGES[:0], LABELS[:0]), "holds no images"),
        ("python", python2(IMAGES, LABELS).replace(text(b"u1"), text(b"f4")), "data is no array of 3072 bytes"),
        ("python", python2(IMAGES, LABELS).replace(b"U\x06labels", b"U\x06colour"), "no pickle of CIFAR-10: b'labels'"),
        ("python", pickle.dumps({b"labels": [1], b"data": [2]}, 3), "no pickle of CIFAR-10"),
        ("python", pickle.dumps({b"labels": [1], b"data": IMAGES}, 2), "asks for '"),
        ("python", pickle.dumps([1, 2], 2), "no pickle of CIFAR-10"),
        ("python", b"\x80\x02}r\xff\xff\xff\x7f.", "a value is stored under 2147483647"),
        ("python", b"\x80\x02\x8b\xff\xff\xff\x7f.", "no pickle of CIFAR-10"),
        ("python", b"\x80\x02\x82\x01.", "no pickle of CIFAR-10"),
        ("python", b"\x80\x02U\x01aQ.", "no pickle of CIFAR-10"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, version, content, said):
    write_files(tmp_path, version)
    file = tmp_path / (FIRST + VERSIONS[version][1])
    file.write_bytes(content)
    message = refused(tmp_path)
    assert message.startswith(f"{file}: ")
    assert said in message
    assert len(Cifar10(folder=str(tmp_path)).arrays("test")["image"]) == NUM_PER_FILE


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_file_is_named(tmp_path, version):
    write_files(tmp_path, version)
    file = tmp_path / (FILES["train"][3] + VERSIONS[version][1])
    file.unlink()
    assert refused(tmp_path) == f"{file}: cannot be read: No such file or directory"


def test_a_folder_without_the_files_says_which_to_put_there(tmp_path):
    assert f"{tmp_path}: no data_batch_1.bin, data_batch_1 or cifar-10-binary.tar.gz" in refused(tmp_path)
    assert f"{tmp_path}: no test_batch.bin, test_batch or cifar-10-binary.tar.gz" in refused(tmp_path, "test")
    assert refused(tmp_path / "absent").startswith(f"{tmp_path / 'absent'}: no such folder")


class Bomb:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, call, *arguments) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def bombs(file: Path) -> dict[str, Bomb]:
    """What would write `file`, by the name that its pickle asks for."""
    program = f"open({str(file)!r}, 'w').close()"
    return {
        f"{os.system.__module__}.system": Bomb(os.system, f"touch {file}"),
        "builtins.eval": Bomb(eval, program),
        "builtins.exec": Bomb(exec, program),
    }


def test_the_bombs_of_this_test_would_go_off(tmp_path):
    pickle.loads(pickle.dumps(bombs(tmp_path / "bang")["builtins.exec"]))
    assert (tmp_path / "bang").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_program_runs_nothing(tmp_path, protocol):
    write_files(tmp_path, "python")
    for asked, bomb in bombs(tmp_path / "bang").items():
        (tmp_path / FIRST).write_bytes(pickle.dumps({"labels": [0], "data": bomb}, protocol))
        name = asked.replace("builtins", "__builtin__") if protocol < 3 else asked
        assert f"asks for '{name}', which no file of CIFAR-10 does; nothing of it was run" in refused(tmp_path)
        assert not (tmp_path / "bang").exists()


def test_a_pickle_cannot_reach_further_through_the_names_that_it_may_use(tmp_path):
    write_files(tmp_path, "python")
    names = [b"numpy\ndtype.__class__", b"numpy.core.multiarray\nfromfile", b"numpy\nload", b"numpy.core\nmultiarray",
             b"edgedl.tasks.cifar10\n_Call", b"numpy\nndarray\x00"]  # fmt: skip
    for name in names:
        (tmp_path / FIRST).write_bytes(b"\x80\x02c" + name + b"\n)R.")
        assert "asks for" in refused(tmp_path)
    for name in cifar10.GLOBALS:  # even those are only noted down: nothing of NumPy's is called or changed
        module, _, attribute = name.rpartition(".")
        asked = f"c{module}\n{attribute}\n".encode()
        for call in (b"(U\x01atR", b")R}b", b"}b", b")\x81", b"N}U\x04argsK\x01s\x86b"):
            (tmp_path / FIRST).write_bytes(b"\x80\x02" + asked + call + b".")
            assert "no pickle of CIFAR-10" in refused(tmp_path)
    assert len(everything(write_files(tmp_path, "python"))["train image"]) == 54


@settings(deadline=None, max_examples=300)
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), cut=st.integers(0, 400) | st.none()
)
def test_whatever_is_in_a_pickle_the_only_error_is_one_of_data(flips, cut):
    content = bytearray(python2(IMAGES[:1], LABELS[:1]))
    head = content.index(IMAGES[0].tobytes()[:8])  # flips fall on opcodes, before the image and behind it
    for position, value in flips:
        content[position if position < head else position - head - 200] = value
    try:
        images, labels = cifar10._pickled("data_batch_1", bytes(content[:cut]))
    except DataError as error:
        found = "data_batch_1: " in str(error)
    else:
        found = (images.shape, images.dtype, len(labels)) == ((1, 3072), np.uint8, 1)
    assert found


def test_an_archive_is_read_in_memory_wherever_its_members_say_they_belong(tmp_path):
    places = ["../../outside", str(tmp_path / "absolute"), "a/b/c", ".", "..", "x/../y"]
    named = zip(places, contents("binary").items(), strict=True)
    archive = write_archive(tmp_path / "any.tar.gz", {f"{place}/{name}": content for place, (name, content) in named})
    assert len(Cifar10(folder=str(archive)).arrays("train")["image"]) == 54
    assert list(tmp_path.rglob("*")) == [archive]


def test_an_archive_may_hold_more_than_the_files(tmp_path):
    more = {"cifar-10-batches-bin/readme.html": b"...", "cifar-10-batches-bin/._data_batch_1.bin": b"of another system"}
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", contents("binary") | more)
    assert len(Cifar10(folder=str(archive)).arrays("train")["image"]) == 54


@pytest.mark.parametrize("link", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_file_is_none_of_the_files(tmp_path, link):
    (tmp_path / "secret").write_bytes(binary(IMAGES, LABELS))
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        for name, content in contents("binary").items():
            member = tarfile.TarInfo(name)
            if name.startswith("data_batch_2"):
                member.type, member.linkname, content = link, str(tmp_path / "secret"), b""
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    assert refused(tmp_path) == f"{archive}: no data_batch_2.bin in it"


def test_a_file_twice_in_an_archive_is_refused(tmp_path):
    archive = write_archive(
        tmp_path / "cifar-10-python.tar.gz", contents("python") | {"other/data_batch_2": WHOLE["python"]}
    )
    assert refused(tmp_path) == f"{archive}: data_batch_2 is in it twice"


def test_a_member_larger_than_any_file_is_not_unpacked(tmp_path):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    member = tarfile.TarInfo("data_batch_1.bin")
    member.size = 1 << 40
    archive.write_bytes(gzip.compress(member.tobuf()))
    said = f"{archive}: data_batch_1.bin has 1099511627776 bytes, more than any file of CIFAR-10"
    assert refused(tmp_path) == said


def test_a_damaged_member_is_named(tmp_path):
    archive = write_archive(
        tmp_path / "cifar-10-python.tar.gz", contents("python") | {"data_batch_5": python2(IMAGES, TOO_LARGE)}
    )
    assert refused(tmp_path) == f"{archive}/data_batch_5: record 7 has a label 10, not from 0 to 9"


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped", "no tar"])
def test_a_corrupt_archive_is_named(tmp_path, damage):
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", contents("binary"))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(
        {
            "empty": b"",
            "text": b"not gzip at all",
            "truncated": archive.read_bytes()[:-5000],
            "flipped": bytes(content),
            "no tar": gzip.compress(b"no tar" * 1000),
        }[damage]
    )
    assert refused(tmp_path).startswith(f"{archive}: ")


@settings(deadline=None, max_examples=200)
@given(flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6), cut=st.integers(0, 4000))
def test_whatever_is_in_an_archive_the_only_error_is_one_of_data(tmp_path_factory, flips, cut):
    archive = write_archive(tmp_path_factory.mktemp("any") / "cifar-10-binary.tar.gz", {"test_batch.bin": bytes(3073)})
    content = bytearray(gzip.decompress(archive.read_bytes()))
    for position, value in flips:
        content[position] = value
    archive.write_bytes(gzip.compress(content[:cut] if cut > 2000 else content, compresslevel=1))
    try:
        images, _ = cifar10._from_folder(str(archive), "test")
    except DataError as error:
        found = str(archive) in str(error)
    else:
        found = images.shape == (1, 3, 32, 32)
    assert found


def write_parquet(tmp_path: Path, monkeypatch, column: str, images: list, labels: list) -> str:
    """A folder as the hub has it."""
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    kinds = datasets.Features({column: datasets.Image(), "label": datasets.Value("int64")})
    shown = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    for split in ("train", "test"):
        data = datasets.Dataset.from_dict({column: shown, "label": labels}, features=kinds)
        data.to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


@pytest.mark.parametrize("column", ["img", "image"])
def test_data_as_the_hub_has_it(tmp_path, monkeypatch, column):
    task = Cifar10(hub=write_parquet(tmp_path, monkeypatch, column, list(IMAGES), LABELS.tolist()))
    np.testing.assert_array_equal(task.arrays("test")["image"], IMAGES.astype(np.float32) / 255)
    np.testing.assert_array_equal(task.arrays("test")["label"], LABELS)
    assert len(task.arrays("train")["image"]) == 11


def test_a_record_from_the_hub_that_is_none_of_cifar10_is_named(tmp_path, monkeypatch):
    hub = write_parquet(tmp_path, monkeypatch, "img", [*IMAGES[:2], IMAGES[2, :, :8]], [0, 1, 2])
    with pytest.raises(DataError, match=r"record 2 of .*, split test, is no 32x32 image .*: image \(32, 8\), label 2"):
        Cifar10(hub=hub).arrays("test")


def test_other_columns_than_those_of_cifar10_are_shown(tmp_path, monkeypatch):
    hub = write_parquet(tmp_path, monkeypatch, "picture", list(IMAGES[:2]), [0, 1])
    with pytest.raises(
        DataError, match=r"needs a column img or image of images and a column label; it has .*'picture'"
    ):
        Cifar10(hub=hub).arrays("test")


def test_without_a_network_it_says_where_to_put_the_files(tmp_path):
    pytest.importorskip("datasets")
    program = "from edgedl.tasks.cifar10 import Cifar10; Cifar10().arrays('test')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    message = done.stderr.splitlines()[-1]
    assert message.startswith("edgedl.sessions.DataError: cifar10: uoft-cs/cifar10 cannot be had from the hub")
    assert "cifar-10-binary.tar.gz into a folder" in message
    assert 'task = { use = "cifar10", folder = "..." }' in message


def test_without_the_package_it_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"cifar10: without `folder`, .* pip install 'edgedl\[hub\]'"):
        Cifar10(hub="someone/cifar10").arrays("test")
