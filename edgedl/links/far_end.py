"""The far end of an ssh connection: one operation a call, sent as text to a Python that has nothing but its library.

It reads a line of JSON from stdin, what to do, then whatever is to be written; and answers a line of JSON behind the
mark that it was given, then whatever was asked for. All that is kept lies in one folder, which a process of its own
removes if nobody has asked for anything for `LEASE_S`: so whatever happens to the connection, nothing stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from io import BufferedReader

LEASE_S = 900
LOOKS_S = 10
BEAT_S = 5
"""How often it says that it is still there, while nothing else is to be said."""
CHUNK = 1 << 16
MAX_SAID = 8192
"""Characters that are kept of what a program said, the last."""
RESERVED = 1 << 17
"""Bytes for how a program ended, taken before it starts: it may fill the disk."""
KEEPER, LEASE, GROUP = ".keeper", ".lease", ".group"


class Refused(Exception):
    """What cannot be done here, and why, in words."""


def main() -> None:
    """Does what the first line of stdin says, and answers."""
    asked = json.loads(sys.stdin.buffer.readline())
    folder = Path(asked["folder"] or tempfile.gettempdir()).expanduser() / f"edgedl-{asked['token']}"
    link = Link(asked["mark"], folder)
    try:
        if asked["do"] != "open":
            if not folder.is_dir():
                raise Refused(f"the folder {folder} is gone")
            link.renew()
        DOES[asked["do"]](folder, asked, link)
    except Refused as refused:
        link.answer({"error": str(refused)})
    except OSError as error:
        link.answer({"error": _in_words(error, folder)})


class Link:
    """Both directions of the connection; every line that means something begins with the mark."""

    def __init__(self, mark: str, folder: Path) -> None:
        self.mark, self.folder, self.beaten = mark, folder, time.monotonic()
        self.given, self.said = cast("BufferedReader", sys.stdin.buffer), sys.stdout.buffer

    def answer(self, content: dict[str, Any] | None) -> None:
        self.said.write(f"{self.mark} {json.dumps(content)}\n".encode())
        self.said.flush()

    def beat(self, every_s: float = BEAT_S) -> None:
        """Says that it is still there; ends this process where nobody hears it any more."""
        if time.monotonic() - self.beaten >= every_s:
            self.beaten = time.monotonic()
            self.renew()
            self.answer(None)

    def renew(self) -> None:
        """Somebody has asked for something."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / LEASE)

    def chunks(self, size: int) -> Iterator[bytes]:
        """What is given next, so many bytes. Raises `EOFError` if there are fewer, as where the connection broke."""
        while size:
            chunk = self.given.read1(min(size, CHUNK))
            if not chunk:
                raise EOFError
            size -= len(chunk)
            self.beat(1)
            yield chunk


def begin(folder: Path, asked: dict[str, Any], link: Link) -> None:
    """Makes the folder, and says what is here; a second time, as after an answer that got lost, makes no other."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise Refused(f"{folder} belongs to somebody else") from None
    (folder / LEASE).touch()
    if not (folder / KEEPER).exists():
        _apart(lambda: _keep_watch(folder))
    model = _read("/proc/device-tree/model") or next(
        (line.partition(":")[2] for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")), ""
    )
    has = {name: importlib.util.find_spec(name) is not None for name in ("numpy", "tensorrt")}
    model = model.strip("\0 ") or platform.processor() or "unknown processor"
    link.answer({"name": f"{model} ({platform.machine()})", "has": has})


def have(folder: Path, asked: dict[str, Any], link: Link) -> None:
    """Says the checksums of those of these files that are here."""
    found = {}
    for name in asked["names"]:
        if (file := folder / name).is_file():
            found[name] = _sha256(file, link)
    link.answer({"sha256": found})


def push(folder: Path, asked: dict[str, Any], link: Link) -> None:
    """Writes files, one behind the other; under its name there is never half of one."""
    partial = folder / ".partial"
    for name, size, sha256 in asked["files"]:
        digest = hashlib.sha256()
        with partial.open("wb") as to:
            for chunk in link.chunks(size):
                to.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise Refused(f"{name} arrived damaged")
        partial.replace(folder / name)
    link.answer({})


def run(folder: Path, asked: dict[str, Any], link: Link) -> None:
    """Runs a program, or waits for the one with this number, which goes on whatever becomes of the connection."""
    file = folder / f".run-{asked['number']}"
    if not file.exists():
        made = file.with_suffix(".partial")
        made.write_bytes(b" " * RESERVED)
        descriptor = os.open(made, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        made.rename(file)
        _apart(lambda: _supervise(folder, asked["command"], descriptor))
        os.close(descriptor)
    with file.open("rb") as status:
        pause_s = 0.02
        while not _is_free(status):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)
            link.beat()
        said = status.read().strip()
    if not said:
        raise Refused("somebody ended the runner, and what watched over it")
    link.answer(json.loads(said))


def pull(folder: Path, asked: dict[str, Any], link: Link) -> None:
    """Sends files, each behind its size and checksum, or behind word that there is none of this name."""
    link.answer({})
    for file in (folder / name for name in asked["names"]):
        if not file.is_file() or file.is_symlink():
            link.answer({"size": None})
            continue
        digest = _sha256(file, link)
        link.answer({"size": file.stat().st_size, "sha256": digest})
        with file.open("rb") as stream:
            shutil.copyfileobj(stream, link.said, CHUNK)
        link.said.flush()


def leave(folder: Path, asked: dict[str, Any], link: Link) -> None:
    """Copies files that are here into a folder that stays."""
    for name, sha256 in asked["files"].items():
        if not (folder / name).is_file() or _sha256(folder / name, link) != sha256:
            raise Refused(f"{folder / name} is not what was sent")
    to = Path.home() / Path(asked["to"]).expanduser()
    put({name: folder / name for name in asked["files"]}, to)
    link.answer({"folder": str(to)})


def put(files: Mapping[str, Path], to: Path) -> None:
    """Copies files into a folder, in one go; one that is there already has to be of such files, and is replaced."""
    if to.exists() and not (to / "SHA256SUMS").is_file():
        raise Refused(f"{to} is there already, and no folder of deployed files: choose another, or remove it")
    partial, old = to.with_name(f".{to.name}.partial"), to.with_name(f".{to.name}.old")
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, file in files.items():
            shutil.copyfile(file, partial / name)
        shutil.rmtree(old, ignore_errors=True)
        if to.exists():
            to.rename(old)
        try:
            partial.rename(to)
        except OSError:
            if old.exists():
                old.rename(to)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def end(folder: Path, asked: dict[str, Any], link: Link) -> None:
    """Ends what still runs, and removes the folder."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((folder / KEEPER).read_text()), signal.SIGTERM)
    _remove(folder)
    link.answer({})


DOES: dict[str, Callable[[Path, dict[str, Any], Link], None]] = {
    "open": begin, "have": have, "push": push, "run": run, "pull": pull, "leave": leave, "end": end,
}  # fmt: skip


def _supervise(folder: Path, command: list[str], status: int) -> None:
    """Runs a program to its end and writes how it ended; holds the lock on that file meanwhile, and is its group."""
    try:
        (folder / GROUP).write_text(str(os.getpid()))
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", check=False
        )
        content: dict[str, Any] = {
            "status": done.returncode,
            "out": done.stdout[-MAX_SAID:],
            "err": done.stderr[-MAX_SAID:],
        }
    except OSError as error:
        content = {"error": _in_words(error, folder)}
    os.pwrite(status, json.dumps(content).encode(), 0)


def _keep_watch(folder: Path) -> None:
    """Removes the folder when nobody has asked for anything for long; by its own clock, as the other may be set."""
    (folder / KEEPER).write_text(str(os.getpid()))
    last, since = 0.0, time.monotonic()
    while folder.is_dir():
        with contextlib.suppress(OSError):
            if (touched := (folder / LEASE).stat().st_mtime) != last:
                last, since = touched, time.monotonic()
        if time.monotonic() - since > LEASE_S:
            _remove(folder)
        time.sleep(LOOKS_S)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((folder / GROUP).read_text()), signal.SIGKILL)
    for _ in range(50):  # what was ended may still be writing
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _apart(work: Callable[[], None]) -> None:
    """Does something in a process and session of its own that holds on to nothing of this connection's."""
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)
        return
    status = 1
    try:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(3):
                os.dup2(nowhere, descriptor)
            work()
        status = 0
    finally:
        os._exit(status)


def _is_free(status: IO[bytes]) -> bool:
    try:
        fcntl.flock(status, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sha256(file: Path, link: Link) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            link.beat()
    return digest.hexdigest()


def _in_words(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
            return f"{folder}: {os.strerror(error.errno)} ({free / 1e6:.1f} MB free)"
    return f"{error.filename or folder}: {error.strerror or error}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, EOFError):  # nobody is at the other end any more
        os._exit(1)
