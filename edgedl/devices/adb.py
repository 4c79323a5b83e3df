"""A phone behind adb: a folder there, and Python or LiteRT's `benchmark_model`, on the cores that are fastest."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from edgedl.devices import Device, Left
from edgedl.links import phone_python
from edgedl.links.android import ASK_SECONDS, BROKEN, Shell, find, last_line, passport, state
from edgedl.links.said import plain
from edgedl.sessions import TargetError, UsageError

FOLDERS = "/data/local/tmp"
"""Where the user that adb is there may write, and run what it wrote."""
PROGRAMS = ("benchmark_model", "android_aarch64_benchmark_model")
"""Names under which `benchmark_model` is looked for in `FOLDERS`."""
DELEGATES = ("", "gpu", "nnapi")
FIRST_API = 24
TRIES = 3
"""Of work in which the connection breaks."""


class Phone(Device):
    """A folder on a phone, and the command that runs files there."""

    def __init__(self, shell: Shell, folder: str, passport: Mapping[str, Any], cores: str) -> None:
        self.shell, self.folder, self.cores = shell, folder, cores
        self.command: Sequence[str] = ()
        self.passport = dict(passport)
        self.name = passport["name"]
        self.before = state(shell)
        self.is_phone = True
        self.pinned: Sequence[int] = ()
        """The cores that the last work ran on; empty for any."""
        if cores != "all" and shell.script("command -v taskset").returncode != 0:
            self.cores, self.notes = "all", ("there is no taskset on it: files ran on any of its cores",)

    def push(self, files: Mapping[str, Path]) -> None:
        self._push(files, self.folder)

    def run(self, arguments: Sequence[str], threads: int = 1) -> CompletedProcess[str]:
        """In the folder, on the cores that are fastest; a signal's number is then part of the status, as in a shell."""
        self.pinned = self._fastest(threads)
        pinned = ("taskset", f"{sum(1 << core for core in self.pinned):x}") if self.pinned else ()
        words = ("env", f"TMPDIR={self.folder}", *pinned, *self.command, *arguments)
        script = f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"
        for _ in range(TRIES - 1):
            done = self.shell.script(script, seconds=None)
            if done.returncode != BROKEN or self.shell.is_there():
                return done
            self.shell.wait()  # what was pushed is still there: the work begins anew
        return self.shell.script(script, seconds=None)

    def pull(self, names: Sequence[str], folder: Path) -> None:
        """By `cat`, since `adb pull` would take a folder's files under names that the phone gives."""
        for known_as in names:
            path = f"{self.folder}/{known_as}"
            if self._is("-f", path) and (trouble := self.shell.fetch(path, folder / known_as)):
                raise TargetError(f"{self.name}: cannot read {known_as}: {trouble}")

    def leave(self, files: Mapping[str, Path], name: str, to: str | None) -> Left:
        """As `Device.leave`: by default in a folder `name` beside those that go."""
        folder = to or f"{FOLDERS}/{name}"
        if not re.fullmatch(r"(?:/[^/\0]+)+", folder) or {"..", "."} & {*folder.split("/")}:
            raise UsageError(f"{self.name}: {plain(folder)} is no folder to leave files in: it has to begin with a /")
        partial, old = f"{folder}.partial", f"{folder}.old"
        if self._is("-e", folder) and not self._is("-f", f"{folder}/SHA256SUMS"):
            raise UsageError(
                f"{self.name}: {plain(folder)} is there, and holds no files that were left: choose another"
            )
        try:
            self._do("rm", "-rf", partial)
            self._do("mkdir", "-p", partial)
            self._push(files, partial)
            if self._is("-f", f"{partial}/SHA256SUMS"):
                checked = self.shell.script(f"cd {shlex.quote(partial)} && sha256sum -c SHA256SUMS", seconds=None)
                if checked.returncode != 0:
                    raise TargetError(f"{self.name}: what arrived is not what was sent: {last_line(checked)}")
            self._do("rm", "-rf", old)
            if self._is("-e", folder):
                self._do("mv", folder, old)
            self._do("mv", partial, folder)
        finally:
            self.shell.run("rm", "-rf", partial, old)
        example = f"cd {shlex.quote(folder)} && {shlex.join((*self.command, 'example.py'))}"
        there = example if self.runs_python else shlex.join(("ls", folder))
        return Left(folder, shlex.join(("adb", "-s", self.shell.serial, "shell", there)))

    def describe(self) -> dict[str, Any]:
        """Its passport, the cores that files ran on, and heat and battery before and after."""
        try:
            after = state(self.shell)
        except TargetError as error:  # all else is known by then
            self.notes = (*self.notes, f"how it is after the work is not known: {error}")
            return self.passport | {"pinned_to": list(self.pinned) or None, "before": self.before, "after": None}
        level = after["thermal_status"]
        if level not in (None, "none"):
            self.notes = (*self.notes, f"it was hot (thermal status {level}): times of a cool phone may be shorter")
        return self.passport | {"pinned_to": list(self.pinned) or None, "before": self.before, "after": after}

    def _push(self, files: Mapping[str, Path], folder: str) -> None:
        for known_as, file in files.items():
            done = self.shell.adb("push", str(file.resolve()), f"{folder}/{known_as}")
            if done.returncode != 0:
                raise TargetError(f"{self.name}: cannot write {known_as}: {last_line(done)}")

    def _is(self, kind: str, path: str) -> bool:
        return self.shell.run("test", kind, path).returncode == 0

    def _do(self, *words: str) -> None:
        done = self.shell.run(*words)
        if done.returncode != 0:
            raise TargetError(f"{self.name}: {words[0]}: {last_line(done)}")

    def _fastest(self, threads: int) -> list[int]:
        """The fastest cores, cluster by cluster, until there is one for each thread; none where all are alike."""
        if self.cores == "all":
            return []
        clocks = {int(core): clock for core, clock in self.passport["clocks_khz"].items()}
        if self.cores != "big":
            return [core for core in range(64) if int(self.cores, 16) >> core & 1]
        chosen: list[int] = []
        for clock in sorted({*clocks.values()}, reverse=True):
            if len(chosen) < threads:
                chosen += [core for core, found in clocks.items() if found == clock]
        return sorted(chosen) if len(chosen) < len(clocks) else []


@contextmanager
def connect(
    which: str | None,
    *,
    python: str = "",
    benchmark_model: str = "",
    delegate: str = "",
    threads: str = "",
    cores: str = "big",
) -> Iterator[Device]:
    """The phone of this serial number, or the only one, with a folder of its own that goes when the block ends.

    `python` is a command there, `benchmark_model` a file here or there; what is not given is looked for. Raises
    `UsageError` for a phone that is not there or has neither, and for settings that are none.
    """
    if delegate not in DELEGATES:
        raise UsageError(f"adb: no delegate {delegate!r}; there are: gpu, nnapi")
    if threads and not re.fullmatch(r"[1-9]\d?", threads):
        raise UsageError(f"adb: threads = {threads!r} is no number from 1 to 99")
    if not re.fullmatch(r"big|all|[0-9a-f]{1,16}", cores):
        raise UsageError(f'adb: cores = {cores!r} is neither "big" nor "all" nor a mask such as "f0"')
    shell = Shell(find(which))
    folder = f"{FOLDERS}/edgedl-{secrets.token_hex(8)}"
    made = shell.run("mkdir", "-m", "700", folder)
    if made.returncode != 0:
        raise TargetError(f"adb: {plain(shell.serial)}: cannot make {folder}: {last_line(made)}")
    phone = None
    try:
        phone = Phone(shell, folder, passport(shell), cores)
        if (api := phone.passport["api"]) is not None and api < FIRST_API:
            raise UsageError(f"{phone.name}: its adb tells no exit status: Android 7 or later is needed")
        phone.threads = int(threads) if threads else None
        _equip(phone, python, benchmark_model, delegate)
        yield phone
    finally:
        if (kept := _remove(shell, folder)) and phone is not None:
            phone.notes = (*phone.notes, f"{folder} is left on it: {kept}")


def look(which: str | None, *, python: str = "", benchmark_model: str = "", **_: str) -> dict[str, Any]:
    """What a phone is, how it is, and what `runs_with`. Raises `UsageError`, `TargetError`."""
    shell = Shell(find(which))
    found = passport(shell) | state(shell)
    command, has = ([], []) if benchmark_model else phone_python.find(shell, python)
    if command:
        return found | {"runs_with": f"Python {has[0]}: {', '.join(has[1:])}"}
    if benchmark_model and Path(benchmark_model).expanduser().is_file():
        return found | {"runs_with": "benchmark_model, of this machine"}
    return found | {"runs_with": plain(_program(shell, benchmark_model)) or None}


def _equip(phone: Phone, python: str, benchmark_model: str, delegate: str) -> None:
    """Finds what is to run files there: what the settings say, else what is there, if anything. Raises `UsageError`."""
    if python and (benchmark_model or delegate):
        raise UsageError("adb: either python or benchmark_model runs the files, and delegates need the latter")
    command, has = ([], []) if benchmark_model or delegate else phone_python.find(phone.shell, python)
    if command:
        phone.command = command
        return
    if python:
        lacks = "it needs numpy and a runtime" if has else "it does not run for adb's user there"
        raise UsageError(f"{phone.name}: python = {python!r} is of no use: {lacks}")
    if benchmark_model and (local := Path(benchmark_model).expanduser()).is_file():
        phone.push({"benchmark_model": local})
        program = f"{phone.folder}/benchmark_model"
        phone.shell.run("chmod", "700", program)
    else:
        program = _program(phone.shell, benchmark_model)
    if not program and (benchmark_model or delegate):
        wanted = benchmark_model or "benchmark_model, which delegates need,"
        raise UsageError(f"{phone.name}: {wanted} is a file neither here nor, to be executed, there")
    if not program:
        phone.why_not = (
            f"{phone.name}: there is neither a Python with numpy and a runtime nor LiteRT's benchmark_model to run "
            "files with: `edgedl devices setup adb` puts a Python there (docs/devices.md)"
        )
        return
    phone.command, phone.program, phone.delegate = (program,), _called(phone.shell, program), delegate
    if delegate:
        phone.name += f", {delegate.upper()} delegate"


def _program(shell: Shell, named: str) -> str:
    """Where `benchmark_model` is on the phone, at the named place or where it may be; or nothing."""
    places = [named] if named else [f"{FOLDERS}/{name}" for name in PROGRAMS]
    return next((place for place in places if shell.run("test", "-x", place).returncode == 0), "")


def _called(shell: Shell, program: str) -> str:
    """`benchmark_model` and the beginning of its checksum, since it tells no version."""
    found = re.match(r"[0-9a-f]{64}", shell.run("sha256sum", program, seconds=3 * ASK_SECONDS).stdout)
    return f"benchmark_model {found[0][:12] if found else '(unknown)'}"


def _remove(shell: Shell, folder: str) -> str | None:
    """Why the folder could not be removed."""
    try:
        done = shell.run("rm", "-rf", folder, seconds=3 * ASK_SECONDS)
        return last_line(done) if done.returncode != 0 else None
    except TargetError as error:
        return str(error)
