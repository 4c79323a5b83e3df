"""Damaged files and odd recipes are read or refused in a line, and what holds code does not run it."""

from __future__ import annotations

import gzip
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.fuzz_samples import ODD, RECIPE, Sample, by_ending, samples
from edgedl import inspecting, recipe
from edgedl.core import SIZES, EdgedlError
from edgedl.tasks import mnist
from edgedl.tflite.flatbuffer import Flatbuffer

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=20), st.sampled_from(ODD)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def as_toml(value: object) -> str:
    """As far as TOML has a word for it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{as_toml(key)} = {as_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    return repr(value)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("sound"), whole=False)


def test_sound_files_are_read(files, tmp_path):
    for kind, sample in files.items():
        if sample.made is None and not kind.startswith("model.rtx"):  # which needs a GPU
            (tmp_path / kind).write_bytes(sample.content)
            sample.reader(tmp_path / kind)


def test_damaged_files_and_hostile_archives_are_read_or_refused_in_a_line(files):
    found = fuzz.run(files, 3 * len(files), seed=1)
    assert len(found) == len(files) > 20
    for kind, came in found.items():
        assert set(came) <= {"read", "refused"}, kind
    assert sum(came["refused"] for came in found.values()) > len(files)


@given(
    key=st.sampled_from(["seed", "task", "model", "steps", "targets", "limits", "bench", "epochs", "widths", "use"]),
    value=VALUES,
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_recipe_of_any_values_is_read_or_refused_in_a_line(key, value):
    text = recipe_with(key, as_toml(value))
    said = ""
    try:
        recipe.parse(text, Path("odd.toml"))
    except EdgedlError as error:
        said = str(error)
    assert "\n" not in said


def recipe_with(key: str, value: str) -> str:
    """The recipe with another value under a key, wherever that stands first."""
    start = RECIPE.index(f"{key} = ") + len(key) + 3
    depth, end = 0, start
    while depth or RECIPE[end] not in ",\n}]":
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(RECIPE[end], 0)
        end += 1
    return RECIPE[:start] + value + RECIPE[end:]


def test_code_in_files_does_not_run(files):
    assert fuzz.code_run(by_ending(files)) == dict.fromkeys(("code.pt", "code.npz", "zip.pt", "code.pt2"), "refused")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "nowhere/" * 600], ids=["long", "with a zero", "deep"])
def test_names_that_no_file_can_have_are_told(name, files, tmp_path):
    for kind in ("model.onnx", "model.tflite", "network.onnx", "model.pt2", "weights.pt", "data.npz", "data.csv"):
        with pytest.raises((EdgedlError, OSError)):  # the system's own words, which the program says in a line
            files[kind].reader(tmp_path / f"{name}.{kind.rpartition('.')[2]}")


def test_a_file_that_grows_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "MAX_FILE_BYTES", 1000)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(EdgedlError, match=r"train-images-idx3-ubyte\.gz: holds more than 1000 bytes"):
        mnist.MNIST(folder=str(tmp_path)).arrays("train")


def test_a_tflite_file_may_leave_names_of_tensors_out(files, tmp_path):
    graph = Flatbuffer(files["model.tflite"].content)
    for operator in graph.operators:
        for index in operator.outputs:
            graph.tensors[index].name = None
    (tmp_path / "model.tflite").write_bytes(graph.pack())
    assert inspecting.of_file(tmp_path / "model.tflite")["outputs"]


def test_a_tflite_file_whose_names_lead_nowhere_is_refused(files, tmp_path):
    graph = Flatbuffer(files["model.tflite"].content)
    graph.model.signatureDefs[0].outputs[0].tensorIndex = 40
    (tmp_path / "model.tflite").write_bytes(graph.pack())
    with pytest.raises(EdgedlError, match=r"model\.tflite: damaged"):
        inspecting.of_file(tmp_path / "model.tflite")


def test_notes_of_sizes_in_an_onnx_file_are_numbers_or_refused(files, tmp_path):
    for noted in ("[]", "{", '{"batch": []}', '{"batch": "x"}'):
        model = onnx.load_from_string(files["model.onnx"].content)
        model.metadata_props.add(key=SIZES, value=noted)
        onnx.save(model, tmp_path / "model.onnx")
        with pytest.raises(EdgedlError, match=r"model\.onnx: damaged: its edgedl\.sizes are"):
            inspecting.of_file(tmp_path / "model.onnx")
