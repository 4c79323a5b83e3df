"""Devices that files are measured on: a module a kind, whose `connect` opens one. No framework, no shell."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import CompletedProcess

from edgedl.sessions import UsageError


class Device(ABC):
    """A folder on a machine, and the Python there; closing it leaves nothing behind."""

    name: str
    """What rows call it."""
    timed: bool = True
    """Whether how long something takes there means anything."""
    notes: Sequence[str] = ()
    """What a reader of its rows has to know."""

    @abstractmethod
    def push(self, files: Mapping[str, Path]) -> None:
        """Puts files into the device's folder under the given names, which are plain. Raises `TargetError`."""

    @abstractmethod
    def run(self, arguments: Sequence[str]) -> CompletedProcess[str]:
        """Runs Python there with these arguments, in the device's folder, until it ends. Raises `TargetError`."""

    @abstractmethod
    def pull(self, names: Sequence[str], folder: Path) -> None:
        """Fetches files from the device's folder; those that are not there are left out. Raises `TargetError`."""


def names() -> list[str]:
    """The kinds of devices, as `--on` spells them."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]


def connect(where: str) -> AbstractContextManager[Device]:
    """The device of `--on`: "local", "qemu-aarch64", or a kind and behind "://" which one. Raises `UsageError`."""
    kind, separator, which = where.partition("://")
    check(where)
    module = importlib.import_module(f"edgedl.devices.{kind.replace('-', '_')}")
    connected: AbstractContextManager[Device] = module.connect(which if separator else None)
    return connected


def check(where: str) -> None:
    """Raises `UsageError` if there is no such kind of device."""
    kind = where.partition("://")[0]
    if kind not in names():
        raise UsageError(f"no kind of device {kind!r} in --on {where!r}; there are: {', '.join(names())}")
