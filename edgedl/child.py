"""Work that may crash, hang or eat all memory, in a process of its own: a copy of this one with all it has loaded,
or one that has loaded nothing.

Converters and runtimes are native code of others, and what ends them must not end a run of hours.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from edgedl import progress, sessions
from edgedl.sessions import EdgedlError, TargetError

PR_SET_PDEATHSIG = 1
LOOKED_SECONDS = 0.1
"""How often time and memory are looked at."""
NUM_LINES, MAX_LENGTH = 3, 300
"""Of what was said last, what a reason repeats."""


@dataclass(frozen=True)
class Bounds:
    """What a process may take."""

    seconds: float
    num_bytes: int | None = None
    """Of memory, besides what this process has already; None: what the machine has."""


def call(what: str, function: Callable[[], Any], bounds: Bounds) -> Any:
    """What a function returns, which has to be JSON, from a copy of this process; its changes are lost, files stay.

    What it says goes where this process's stderr goes. `what` is said of it where it fails: "the converter".

    Raises what it raises, if that is an `EdgedlError` or the machine's refusal, and `TargetError` with the last lines
    that were said where it is ended by a signal, or takes more than it may. Where processes cannot be copied (anywhere
    but on Linux) the function is simply called.
    """
    if sys.platform != "linux":
        return function()
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        with warnings.catch_warnings():  # of threads, of which the copy needs none
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            os.close(reader)
            _work(function, writer, said, parent)
        os.close(writer)
        return _outcome(what, pid, reader, said, bounds)


def fresh(what: str, function: Callable[[Any], Any], argument: Any, bounds: Bounds) -> Any:
    """As `call`, in a process that has nothing loaded yet: for what cannot be copied once it is in use, as CUDA is.

    The function is that of a module, and what it is given has to be JSON, too.
    """
    if sys.platform != "linux":
        return function(argument)
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as said:
        where = [function.__module__, function.__qualname__, json.dumps(argument), str(writer), str(os.getpid())]
        begin = [sys.executable, "-c", "from edgedl.child import main; main()", *where]
        process = subprocess.Popen(begin, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[writer])
        os.close(writer)
        process.returncode = 0  # it is waited for here
        return _outcome(what, process.pid, reader, said, bounds)


def main() -> None:
    """The fresh process."""
    module, name, argument, writer, parent = sys.argv[1:]

    def function() -> Any:
        return getattr(importlib.import_module(module), name)(json.loads(argument))

    with open(1, "wb", closefd=False) as said:
        _work(function, int(writer), said, int(parent))


def _outcome(what: str, pid: int, reader: int, said: BinaryIO, bounds: Bounds) -> Any:
    """What a process answers, once it has ended or was ended."""
    why, answer = "", b""
    try:
        why, answer = _awaited(pid, reader, bounds)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # which may not have come to be a group
        _, status = os.waitpid(pid, 0)
        lines = _passed_on(said)
    if why or not answer:
        raise TargetError(f"{what} {why or _how_it_ended(status)}{_last(lines)}")
    return _told(what, json.loads(answer), lines)


def _work(function: Callable[[], Any], writer: int, said: BinaryIO, parent: int) -> NoReturn:
    """The child's part; it never returns, whatever happens."""
    try:
        _prepare(said, parent)
        try:
            outcome = {"value": function()}
        except EdgedlError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            traceback.print_exc()
            outcome = {"errno": error.errno, "strerror": error.strerror or str(error), "filename": error.filename}
        except MemoryError as error:
            outcome = {"failed": f"ran out of memory: {error}"}
        except BaseException as error:
            traceback.print_exc()
            outcome = {"failed": f"raised {type(error).__name__}: {' '.join(str(error).split())[:MAX_LENGTH]}"}
        sys.stdout.flush()
        sys.stderr.flush()
        content = memoryview(json.dumps(outcome, default=str).encode())
        while content:
            content = content[os.write(writer, content) :]
    finally:
        os._exit(0)


def _prepare(said: BinaryIO, parent: int) -> None:
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # so that what it starts ends with it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent heeds it
    with contextlib.suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as score:
        score.write("1000")  # who eats the memory is ended, and not the run
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False, buffering=1) for descriptor in (1, 2))  # noqa: SIM115
    faulthandler.disable()  # it would say much after the last words
    progress.hide()
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # the threads of the parent are not here, and OpenMP would wait for them for ever


def _awaited(pid: int, reader: int, bounds: Bounds) -> tuple[str, bytes]:
    """Why the child was given up, else nothing; and its answer."""
    end, before, parts = time.monotonic() + bounds.seconds, _resident(pid), list[bytes]()
    most = bounds.num_bytes or _all_memory()
    while time.monotonic() < end:
        if not select.select([reader], [], [], LOOKED_SECONDS)[0]:
            taken = _resident(pid) - before
            if taken > most:
                return f"took more than {most / 1e9:.1f} GB of memory and was ended", b""
            continue
        if not (part := os.read(reader, 1 << 16)):
            return "", b"".join(parts)
        parts.append(part)
    return f"had not ended after {bounds.seconds:g} s and was ended", b""


def _resident(pid: int) -> int:
    """Bytes of memory that a process and those that it has started hold; 0 once it has ended."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
    try:
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # not every kernel tells
        return own
    return own + sum(_resident(int(other)) for other in started)


def _all_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _passed_on(said: BinaryIO) -> list[str]:
    """What the child said, as lines, once it stands where this process's stderr goes."""
    said.seek(0)
    content = said.read()
    with contextlib.suppress(OSError):  # a full disk
        os.write(2, content)
    return [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"crashed: it was ended by {signal.Signals(number).name}"
    return f"ended with status {os.WEXITSTATUS(status)} and no answer"


def _last(lines: list[str]) -> str:
    return f"; it said last: {' | '.join(lines[-NUM_LINES:])[-MAX_LENGTH:]}" if lines else "; it said nothing"


def _told(what: str, outcome: dict[str, Any], lines: list[str]) -> Any:
    if "value" in outcome:
        return outcome["value"]
    if "errno" in outcome:
        raise OSError(outcome["errno"], outcome["strerror"], outcome["filename"])
    if "failed" in outcome:
        raise TargetError(f"{what} {outcome['failed']}")
    kind = vars(sessions).get(outcome["error"], TargetError)
    error = kind.__new__(kind)
    EdgedlError.__init__(error, outcome["message"])  # some make their message of other arguments
    raise error
