"""A machine that OpenSSH's own client reaches, such as a Jetson: keys, agent, configuration and known hosts are its.

A connection that breaks is made anew: what has arrived is not sent again, what runs there goes on
(`links/far_end.py`).
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, TypeVar

from edgedl import files as on_disk
from edgedl.devices import Device, Left
from edgedl.links.ssh import Connection, Lost, printable
from edgedl.sessions import TargetError, UsageError

T = TypeVar("T")
ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
"""No name of a user or host is an option, nor anything to a shell."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Before each try to reach again what was reached before."""


@contextmanager
def connect(which: str | None, *, python: str = "python3", folder: str = "") -> Iterator[Device]:
    """The machine `[user@]host[:port]`, and a fresh folder in `folder` there, else where temporary files are.

    `host` may be one of ~/.ssh/config. Raises `UsageError` for an address that is none, `TargetError` for a machine
    that cannot be reached, or has no such Python.
    """
    address = ADDRESS.fullmatch(which or "")
    if address is None:
        raise UsageError(f"--on ssh://{which or ''}: no address of a machine: write ssh://user@host or ssh://host:port")
    if shutil.which("ssh") is None:
        raise UsageError("--on ssh:// needs OpenSSH's client: sudo apt install openssh-client")
    # A socket's path is short, whatever TMPDIR is.
    with tempfile.TemporaryDirectory(prefix="edgedl-", dir="/tmp") as work:
        device = Ssh(address, python, folder, Path(work))
        try:
            device.open()
            yield device
        finally:
            device.close()


class Ssh(Device):
    """A Python at the other end, and a folder that goes with the connection or, if that breaks, a while later."""

    def __init__(self, address: re.Match[str], python: str, folder: str, work: Path) -> None:
        user, host, port = address["user"], address["host"].strip("[]"), address["port"]
        self.address, self.python = f"ssh://{address[0]}", python
        self._to = [*(("-l", user) if user else ()), *(("-p", port) if port else ())]
        self._host = host
        self._link = Connection(self.address, [*self._to, "--", host], python, work)
        self._asked = {"token": secrets.token_hex(8), "folder": folder}
        self._reached, self._runs = False, 0

    def open(self) -> None:
        found = self._ask("open")
        self.name = _text(found, "name", self)
        has = found.get("has")
        if not isinstance(has, dict) or not has.get("numpy"):
            raise TargetError(
                f"{self.address}: there is no numpy for {self.python}: sudo apt install python3-numpy there, or name "
                "another Python in devices.toml"
            )
        self.builds_engines = bool(has.get("tensorrt"))

    def close(self) -> None:
        """Ends what still runs there and removes the folder; says nothing of a machine that is gone."""
        if self._reached:
            with suppress(TargetError):
                self._ask("end", PAUSES_S[:1])
        self._link.close()

    def push(self, files: Mapping[str, Path]) -> None:
        """As `Device.push`; what is there already, by its checksum, is not sent."""
        digests = {name: on_disk.sha256(file) for name, file in files.items()}

        def send() -> None:
            there = self._once("have", names=list(files)).get("sha256")
            known = there if isinstance(there, dict) else {}
            lacking = {name: file for name, file in files.items() if known.get(name) != digests[name]}
            told = [(name, file.stat().st_size, digests[name]) for name, file in lacking.items()]
            self._once("push", payload=list(lacking.values()), files=told)

        self._again(send)

    def run(self, arguments: Sequence[str], threads: int = 1) -> CompletedProcess[str]:
        """As `Device.run`; it goes on there while the connection is made anew."""
        number, self._runs = self._runs, self._runs + 1
        found = self._ask("run", number=number, command=[self.python, *arguments])
        status = found.get("status")
        if not isinstance(status, int):
            raise TargetError(f"{self.address}: it does not say how {arguments[0]} ended")
        out, err = (_text(found, key, self, "\n") for key in ("out", "err"))
        return CompletedProcess(arguments, status, out, err)

    def pull(self, names: Sequence[str], folder: Path) -> None:
        """As `Device.pull`."""
        self._again(lambda: self._once("pull", into=[folder / name for name in names], names=names))

    def leave(self, files: Mapping[str, Path], name: str, to: str | None) -> Left:
        """As `Device.leave`: by default in `edgedl/NAME` in the home folder there."""
        self.push(files)
        digests = {known_as: on_disk.sha256(file) for known_as, file in files.items()}
        folder = _text(self._ask("leave", files=digests, to=to or f"edgedl/{name}"), "folder", self)
        there = f"cd {shlex.quote(folder)} && {shlex.quote(self.python)} example.py"
        return Left(folder, shlex.join(["ssh", *self._to, self._host, there]))

    def _ask(self, do: str, pauses_s: Sequence[float] | None = None, **details: Any) -> dict[str, Any]:
        return self._again(lambda: self._once(do, **details), pauses_s)

    def _once(self, do: str, payload: Sequence[Path] = (), into: Sequence[Path] = (), **details: Any) -> dict[str, Any]:
        """Has something done there. Raises `Lost`, and `TargetError` where it cannot be done."""
        found = self._link.ask({**self._asked, **details, "do": do}, payload, into)
        self._reached = True
        if (error := found.get("error")) is not None:
            raise TargetError(f"{self.address}: {printable(str(error))}")
        return found

    def _again(self, work: Callable[[], T], pauses_s: Sequence[float] | None = None) -> T:
        """Does what does no harm twice, and again after a break. Raises `TargetError` when that does not help."""
        pauses_s = PAUSES_S if pauses_s is None else pauses_s
        for pause_s in (*pauses_s, None):
            try:
                return work()
            except Lost as lost:
                if not self._reached:
                    raise TargetError(f"{self.address}: {lost}") from lost
                if pause_s is None:
                    raise TargetError(
                        f"{self.address}: the connection broke, and {len(pauses_s)} more tries did not mend it: {lost};"
                        " what was sent there removes itself a quarter of an hour from now"
                    ) from lost
                time.sleep(pause_s)
        raise AssertionError


def _text(found: Mapping[str, Any], key: str, device: Ssh, allowed: str = "") -> str:
    """A text of an answer, without what could steer a terminal but for the characters `allowed`."""
    text = found.get(key)
    if not isinstance(text, str):
        raise TargetError(f"{device.address}: answers garbage: no {key}")
    return "".join(letter if letter.isprintable() or letter in allowed else " " for letter in text)
