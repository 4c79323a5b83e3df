"""Questions over OpenSSH's own client, and what comes back, which is not trusted: one connection, which may break.

The only text that a shell at the other end gets is `_command`; all else, names of files among it, goes through stdin.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shlex
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from edgedl import files
from edgedl.sessions import TargetError

OPTIONS = (
    *("BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no"),  # asks nothing, trusts known hosts alone
    *("ControlMaster=auto", "ControlPersist=60"),  # one connection for all
    *("ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=4"),
    *("ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no"),
    *("RemoteCommand=none", "RequestTTY=no", "LogLevel=ERROR"),
)
START = (
    'import sys;sys.version_info>=(3,10)or sys.exit("its Python is too old for edgedl: "+sys.version.split()[0]);'
    "exec(sys.stdin.buffer.read(int(sys.argv[1])))"
)
"""What Python is told there: without ', !, \\ or a newline, so that sh, csh and fish read it alike in quotes."""
FAR_END = Path(__file__).with_name("far_end.py")
SILENCE_S = 60.0
"""After which a connection is as good as broken: the far end says every few seconds that it is there."""
MAX_NOISE, MAX_LINE, MAX_PULLED = 1 << 16, 1 << 20, 1 << 34
"""Bytes that are read: before an answer, such as a shell's greeting; of an answer; and of a file."""

REFUSALS = {
    # What ssh says -> what to do
    "HOST IDENTIFICATION HAS CHANGED": "its host key is not the one that known_hosts has: either it was set up anew "
    "(then ssh-keygen -R {host}, and ssh there once), or another machine answers in its place",
    "Host key verification failed": "its host key is not in known_hosts: ssh there once, and compare the fingerprint",
    "Permission denied": "it refuses the keys that ssh has: ssh-copy-id to it, or ssh-add the right one",
}


class Lost(Exception):
    """The connection is not there, for this reason."""


class Connection:
    """A machine, a Python there, and a folder here for the socket that all questions share."""

    def __init__(self, address: str, to: Sequence[str], python: str, work: Path) -> None:
        self.address, self.python, self.work = address, python, work
        options = (part for option in OPTIONS for part in ("-o", option))
        self.ssh = ["ssh", "-T", "-S", str(work / "socket"), *options]
        self.to = to

    def close(self) -> None:
        """Ends the process that holds the connection; it would end itself a minute later."""
        leaving = [*self.ssh, "-O", "exit", *self.to]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(leaving, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)

    def ask(self, asked: dict[str, Any], payload: Sequence[Path] = (), into: Sequence[Path] = ()) -> dict[str, Any]:
        """One question, files that go with it, and its answer with those that come back, if they are there.

        Raises `Lost`, or `TargetError` for what is no matter of the connection.
        """
        mark, code = secrets.token_hex(8), FAR_END.read_bytes()
        head = code + json.dumps({**asked, "mark": mark}).encode() + b"\n"
        with (self.work / "said").open("w+b") as said:
            process = subprocess.Popen(
                [*self.ssh, *self.to, _command(self.python, len(code))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                start_new_session=True, env=os.environ | {"LC_ALL": "C"},
            )  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            threading.Thread(target=_feed, args=(process.stdin, head, payload), daemon=True).start()
            with process.stdout as stream:
                answers = Answers(stream, mark, self.address)
                try:
                    found = answers.next()
                    for file in into if found is not None and "error" not in found else ():
                        if (header := answers.next()) is None:
                            raise Lost(f"{file.name} did not come")
                        _receive(answers, header, file)
                    if found is not None:
                        return found
                    status = process.wait(timeout=SILENCE_S)
                except subprocess.TimeoutExpired as error:
                    raise Lost("it does not end") from error
                finally:
                    process.kill()
                    process.wait()
            said.seek(0)
            raise self._explained(status, answers.noise, said.read(MAX_NOISE))

    def _explained(self, status: int, noise: bytes, said: bytes) -> Exception:
        """Why there is no answer."""
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
        last = printable(lines[-1]) if lines else "it says nothing"
        known = (told for words, told in REFUSALS.items() if any(words in line for line in lines))
        told = next(known, "").format(host=self.to[-1]) or None
        if status == 255 and told is None:
            return Lost(last.removeprefix("ssh: "))
        if status in (126, 127):
            told = f"there is no {self.python} there: name its Python in devices.toml ({last})"
        if any("is too old for edgedl" in line for line in lines):
            told = last
        if told is None:
            greeting = [line for line in noise.decode(errors="replace").splitlines() if line.strip()]
            shown = f"; it said {printable(greeting[-1])!r}" if greeting else ""
            told = f"its {self.python} does not answer (status {status}): {last}{shown}"
        return TargetError(f"{self.address}: {told}")


class Answers:
    """What comes back: lines behind a mark, after whatever a shell there says first; and bytes of files."""

    def __init__(self, stream: IO[bytes], mark: str, address: str) -> None:
        self.noise = b""
        self._mark, self._address, self._rest, self._descriptor = f"{mark} ".encode(), address, b"", stream.fileno()
        self._ready = select.poll()
        self._ready.register(stream, select.POLLIN)

    def next(self) -> dict[str, Any] | None:
        """The next answer; None if there is none. Raises `Lost` for silence, `TargetError` for what is no answer."""
        while (line := self._line()) is not None:
            if not line.startswith(self._mark):
                self.noise += line
                if len(self.noise) > MAX_NOISE:
                    raise self._garbage(line)
                continue
            try:
                found = json.loads(line[len(self._mark) :])
            except (ValueError, RecursionError):
                found = False
            if isinstance(found, dict):
                return found
            if found is not None:  # which says that it is still at work
                raise self._garbage(line)
        return None

    def read(self, size: int) -> bytes:
        """At most so many bytes, none at the end."""
        if not self._rest:
            if not self._ready.poll(1000 * SILENCE_S):
                raise Lost(f"it has not said a word for {SILENCE_S:.0f} s")
            self._rest = os.read(self._descriptor, 1 << 16)
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _line(self) -> bytes | None:
        line = b""
        while chunk := self.read(1 << 16):
            head, newline, rest = chunk.partition(b"\n")
            line, self._rest = line + head + newline, rest + self._rest
            if newline:
                return line
            if len(line) > (MAX_LINE if line.startswith(self._mark) else MAX_NOISE):
                raise self._garbage(line)
        self.noise += line
        return None

    def _garbage(self, line: bytes) -> TargetError:
        return TargetError(f"{self._address}: answers garbage: {printable(line.decode(errors='replace'))!r}")


def _receive(answers: Answers, header: Mapping[str, Any], into: Path) -> None:
    """Writes a file that follows what is said of it, if there is one; there is never half of it."""
    if header.get("size") is None:
        return
    size, partial = header["size"], into.with_name(f".{into.name}.partial")
    if not isinstance(size, int) or not 0 <= size <= MAX_PULLED:
        raise TargetError(f"it has a file of {printable(str(size))} bytes")
    try:
        with partial.open("wb") as to:
            while size and (chunk := answers.read(size)):
                to.write(chunk)
                size -= len(chunk)
        if size:
            raise Lost(f"{into.name} broke off")
        if files.sha256(partial) != header.get("sha256"):
            raise TargetError(f"{into.name} arrived otherwise than it was said to be")
        partial.replace(into)
    finally:
        partial.unlink(missing_ok=True)


def _command(python: str, size: int) -> str:
    """What the shell there gets."""
    return f"{shlex.quote(python)} -c {shlex.quote(START)} {size:d}"


def _feed(stdin: IO[bytes], head: bytes, payload: Sequence[Path]) -> None:
    """Sends what is asked for, and the files that go with it; who does not read it to the end will say why."""
    with suppress(OSError), stdin:
        stdin.write(head)
        for file in payload:
            with file.open("rb") as stream:
                shutil.copyfileobj(stream, stdin, 1 << 16)


def printable(said: str) -> str:
    """Without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in said[:300]).strip()
