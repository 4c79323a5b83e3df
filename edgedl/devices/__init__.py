"""Devices that files are measured on: a module a kind, whose `connect` opens one. No framework, no shell.

A person's own have names in `devices.toml`: a table each, with its address and what else `connect` of its kind takes.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any, NamedTuple

from edgedl.sessions import UsageError


class Left(NamedTuple):
    """What was left on a device."""

    folder: str
    """Where it lies, as the device says it."""
    command: str
    """What to type here to run the example in it."""


class Device(ABC):
    """A folder on a machine, and the Python there; closing it leaves nothing behind."""

    name: str
    """What rows call it."""
    timed: bool = True
    """Whether how long something takes there means anything."""
    notes: Sequence[str] = ()
    """What a reader of its rows has to know."""
    threads: int | None = None
    """With how many threads files run there; None for as many as in the run."""
    program: str | None = None
    """Name and version of LiteRT's `benchmark_model`, where that is what `run` runs, and not Python."""
    delegate: str = ""
    """To what `benchmark_model` is to hand the network: "gpu", "nnapi", or nothing."""

    why_not: str = ""
    """Why `run` runs nothing, if there is neither Python nor `program`, and what to do."""
    builds_engines: bool = False
    """Whether the Python there has TensorRT."""
    is_phone: bool = False

    @property
    def runs_python(self) -> bool:
        """Whether it is Python that `run` runs."""
        return self.program is None and not self.why_not

    @abstractmethod
    def push(self, files: Mapping[str, Path]) -> None:
        """Puts files into the device's folder under the given names, which are plain. Raises `TargetError`."""

    @abstractmethod
    def run(self, arguments: Sequence[str], threads: int = 1) -> CompletedProcess[str]:
        """Runs Python (or `program`) with these arguments, in its folder, until it ends. Raises `TargetError`.

        A device that pins work to cores has room for so many `threads` then.
        """

    @abstractmethod
    def pull(self, names: Sequence[str], folder: Path) -> None:
        """Fetches files from the device's folder; those that are not there are left out. Raises `TargetError`."""

    def leave(self, files: Mapping[str, Path], name: str, to: str | None) -> Left:
        """Puts files, whose names are plain, into a folder that stays: `to`, or one of the device's own called `name`.

        A folder of files that were left earlier is replaced in one go. Raises `UsageError` where nothing can stay, and
        `TargetError`.
        """
        raise UsageError(f"nothing can be left on {self.name}")

    def describe(self) -> dict[str, Any]:
        """What can be told of it, after its work, beside what its Python tells. Raises `TargetError`."""
        return {}


def names() -> list[str]:
    """The kinds of devices, as `--on` spells them."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]


def configuration() -> Path:
    """Where devices are named, whether or not there is such a file."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "edgedl" / "devices.toml"


def configured() -> dict[str, dict[str, str]]:
    """The devices of the configuration file by name: of each its table, with at least an `address`.

    Raises `UsageError` for a file that is wrong, naming the table.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    file = configuration()
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    for name, table in tables.items():
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None or name in names():
            raise UsageError(
                f"{file}: [{name}]: a device needs a name of letters, digits, -, _ and ., other than a kind's"
            )
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise UsageError(f"{file}: [{name}]: a device is a table of texts")
        if "address" not in table:
            raise UsageError(f'{file}: [{name}]: it has no address, such as "ssh://user@host"')
        kind = _kind(table["address"], f"{file}: [{name}]: address")
        known = [*inspect.signature(kind.connect).parameters][1:]
        if unknown := sorted(table.keys() - {"address", *known}):
            raise UsageError(f"{file}: [{name}]: no key {unknown[0]}; there are: {', '.join(('address', *known))}")
    return tables


def connect(where: str) -> AbstractContextManager[Device]:
    """The device of `--on`: a name in the configuration file, a kind, or a kind and behind "://" which one.

    An address that the file has takes the rest of its table, too. Raises `UsageError`.
    """
    kind, which, settings = _found(where)
    connected: AbstractContextManager[Device] = kind.connect(which, **settings)
    return connected


def look(where: str) -> dict[str, Any] | None:
    """What a device is, where its kind can tell without connecting; else None. Raises `UsageError`, `TargetError`."""
    kind, which, settings = _found(where)
    found: dict[str, Any] | None = kind.look(which, **settings) if hasattr(kind, "look") else None
    return found


def check(where: str) -> None:
    """Raises `UsageError` if there is no such device in the configuration file, nor such a kind."""
    if where not in configured():
        _kind(where)


def _found(where: str) -> tuple[ModuleType, str | None, dict[str, str]]:
    """The kind, what stands behind "://", and the settings."""
    tables = configured()
    table = tables.get(where) or next((found for found in tables.values() if found["address"] == where), {})
    address = table.get("address", where)
    _, separator, which = address.partition("://")
    settings = {key: value for key, value in table.items() if key != "address"}
    return _kind(address), which if separator else None, settings


def _kind(address: str, source: str = "--on") -> ModuleType:
    kind = address.partition("://")[0]
    if kind not in names():
        known = ", ".join([*names(), *(configured() if source == "--on" else ())])
        raise UsageError(f"no kind of device {kind!r} in {source} {address!r}; there are: {known}")
    return importlib.import_module(f"edgedl.devices.{kind.replace('-', '_')}")
