"""The file in which a person names devices: what it may say, and what is said of it if it is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgedl import devices
from edgedl.devices import local
from edgedl.sessions import UsageError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "edgedl").mkdir()
    return tmp_path / "edgedl" / "devices.toml"


@contextmanager
def connect(which: str | None, *, python: str = "python3") -> Iterator[tuple[str | None, str]]:
    """A kind of device that takes a setting, and gives back what it was given."""
    yield which, python


def test_without_the_file_there_are_kinds_alone(file):
    assert devices.configured() == {}
    devices.check("local")
    with pytest.raises(UsageError, match=r"no kind of device 'jetson' in --on 'jetson'; there are: .*local"):
        devices.check("jetson")


def test_a_name_stands_for_its_table_and_so_does_its_address(file, monkeypatch):
    monkeypatch.setattr(local, "connect", connect)
    file.write_text('[here]\naddress = "local://x"\npython = "/opt/python"\n')
    devices.check("here")
    for where, found in {"here": ("x", "/opt/python"), "local://x": ("x", "/opt/python")}.items():
        with devices.connect(where) as given:
            assert given == found
    with devices.connect("local") as given:
        assert given == (None, "python3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("here = ]\n", r"devices\.toml: cannot be read: .*line 1"),
        ("[here]\n", r"\[here\]: it has no address"),
        ('[here]\naddress = "toaster"\n', r"no kind of device 'toaster' in .*\[here\]: address 'toaster'"),
        ('[local]\naddress = "local"\n', r"\[local\]: a device needs a name"),
        ('["-x"]\naddress = "local"\n', r"\[-x\]: a device needs a name"),
        ("[here]\naddress = 5\n", r"\[here\]: a device is a table of texts"),
        ('address = "local"\n', r"\[address\]: a device is a table of texts"),
        ('[here]\naddress = "local"\npyhton = "x"\n', r"\[here\]: no key pyhton; there are: address$"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_table(text, said, file):
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        devices.check("here")
    assert re.fullmatch(r"[^\n]*", str(caught.value))
