"""Files and folders that are whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedl import files

HALF_A_SURROGATE = "\ud800"  # no encoding has it: writing fails on the way


@pytest.fixture
def no_room(monkeypatch):
    """A disk that is full after ten characters."""
    written = Path.write_bytes

    def write_bytes(self: Path, content: bytes) -> int:
        written(self, content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_text_is_written_and_written_over(tmp_path):
    for text in ("first\n", "Größe: ½ Å\n", ""):
        files.write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_bytes() == text.encode()
        assert names(tmp_path) == ["a.txt"]


def test_a_failure_on_the_way_leaves_the_old_file_alone(tmp_path):
    file = tmp_path / "a.txt"
    with pytest.raises(UnicodeEncodeError):
        files.write_text(file, "new" * 10_000 + HALF_A_SURROGATE)
    assert names(tmp_path) == []
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(file, "new" * 10_000 + HALF_A_SURROGATE)
    assert names(tmp_path) == ["a.txt"]
    assert file.read_text() == "old"


def test_a_full_disk_leaves_the_old_file_alone(tmp_path, request):
    file = tmp_path / "a.txt"
    file.write_text("old")
    request.getfixturevalue("no_room")
    with pytest.raises(OSError, match="No space left"):
        files.write_text(file, "new" * 10_000)
    assert names(tmp_path) == ["a.txt"]
    assert file.read_text() == "old"


def test_a_folder_is_not_written_over(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.write_text(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_without_a_word_for_it_is_refused_and_the_old_file_stays(tmp_path, value):
    file = tmp_path / "a.json"
    files.write_json(file, {"score": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(file, {"rows": [{"score": value}]})
    assert json.loads(file.read_text()) == {"score": 0.5}
    assert names(tmp_path) == ["a.json"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSON, st.sampled_from([None, 2]))
def test_json_is_read_as_it_was_written(value, indent):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.json"
        files.write_json(file, value, indent)
        assert json.loads(file.read_text(encoding="utf-8")) == value
        assert file.read_text(encoding="utf-8").endswith("\n")


def test_json_spells_paths_as_text(tmp_path):
    files.write_json(tmp_path / "a.json", {"file": Path("runs") / "model.onnx"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"file": "runs/model.onnx"}


def test_a_folder_gets_its_name_when_it_is_full(tmp_path):
    final = tmp_path / "deep" / "steps"
    with files.filled_folder(final) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("a")
        assert not final.exists()
    assert (final / "inner" / "a.txt").read_text() == "a"
    assert names(tmp_path / "deep") == ["steps"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_folder_vanishes_when_filling_it_fails(tmp_path, error):
    def fill() -> None:
        with files.filled_folder(tmp_path / "steps") as folder:
            (folder / "a.txt").write_text("a")
            raise error

    with pytest.raises(error):
        fill()
    assert names(tmp_path) == []
    with files.filled_folder(tmp_path / "steps"):  # nothing of the failure is in the way
        pass
    assert names(tmp_path) == ["steps"]


def test_a_full_folder_is_not_written_over(tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "old.txt").write_text("old")

    def fill() -> None:
        with files.filled_folder(tmp_path / "steps") as folder:
            (folder / "new.txt").write_text("new")

    with pytest.raises(OSError, match="not empty"):
        fill()
    assert names(tmp_path) == ["steps"]
    assert names(tmp_path / "steps") == ["old.txt"]


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=1, max_size=64), st.integers(0, 100) | st.integers(-2, 2).map(lambda more: (1 << 20) + more))
def test_a_digest_is_that_of_the_whole_file(pattern, size):
    content = (pattern * size)[:size]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        file.write_bytes(content)
        assert files.sha256(file) == hashlib.sha256(content).hexdigest()


def test_a_sealed_folder_is_known_again_until_something_in_it_changes(tmp_path):
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs/weights").write_bytes(b"weights")
    files.seal(tmp_path, "step.json", {"key": "a", "numbers": (1, math.pi, None), "place": Path("x")})
    found = files.sealed(tmp_path, "step.json")
    assert found is not None
    assert (found["numbers"], found["place"], list(found["files"])) == ([1, math.pi, None], "x", ["graphs/weights"])
    assert files.sealed(tmp_path, "step.json", "a") == found
    assert files.sealed(tmp_path, "step.json", "b") is None
    (tmp_path / "more").write_bytes(b"")  # what is put there later is not its concern
    assert files.sealed(tmp_path, "step.json") == found
    content = (tmp_path / "step.json").read_bytes()
    for damaged in (
        b"",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        content[:-9],
        content.replace(b'"a"', b'"b"'),
        b'{"files": 3}',
    ):
        (tmp_path / "step.json").write_bytes(damaged)
        assert files.sealed(tmp_path, "step.json") is None
    (tmp_path / "step.json").write_bytes(content)
    for damage in (lambda file: file.write_bytes(b"weightS"), Path.unlink):
        assert files.sealed(tmp_path, "step.json") == found
        damage(tmp_path / "graphs/weights")
        assert files.sealed(tmp_path, "step.json") is None
        (tmp_path / "graphs/weights").write_bytes(b"weights")
