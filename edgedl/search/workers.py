"""Who runs the trials of a search: processes of this machine, or tasks on a Ray cluster."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgedl import plugins
from edgedl.core import MissingPackage, UsageError
from edgedl.search import artifacts

Job = Mapping[str, Any]
WORK = "import sys; sys.path.append(sys.path.pop(0)); from edgedl.search.trial import main; main(sys.argv[1:])"
"""What a worker runs. Modules of one's own are looked for in its folder last, as `edgedl` does."""
RAY_RETRIES = 3
"""How often Ray starts a task again whose node or process was lost."""
RAY_ATTEMPTS = 3
"""How often a cluster is asked to serve this client: what it forks for that is sometimes lost (gRPC beside threads)."""


@dataclass(frozen=True)
class Event:
    """Of the trial of this number: what it has done, its result, or why its worker was lost."""

    number: int
    doing: str | None = None
    result: Mapping[str, Any] | None = None
    lost: str | None = None


class Workers(Protocol):
    """Runs jobs, several at once, and tells what becomes of them."""

    @property
    def num(self) -> int:
        """How many jobs run at once."""
        ...

    def submit(self, number: int, job: Job) -> None:
        """Starts a trial."""
        ...

    def events(self, timeout: float) -> list[Event]:
        """What has happened, or nothing after so many seconds."""
        ...

    def stop(self) -> None:
        """Ends all that runs, at once."""
        ...


@dataclass(eq=False)
class _Process:
    """A worker, and the trial that it runs."""

    popen: subprocess.Popen[str]
    number: int | None = None


@dataclass(eq=False)
class Processes:
    """Processes of this machine, each on its own share of the cores, so that none times files on another's."""

    num: int
    log: Path
    """What libraries print in them."""
    _idle: list[tuple[list[int], _Process | None]] = field(init=False)
    _busy: list[tuple[list[int], _Process]] = field(init=False, default_factory=list)
    _said: queue.Queue[tuple[_Process, str | None]] = field(init=False, default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self._idle = [(cores, None) for cores in _shares(self.num)]

    def submit(self, number: int, job: Job) -> None:
        cores, worker = self._idle.pop(0)
        worker = worker or self._started(cores)
        worker.number = number
        self._busy.append((cores, worker))
        try:
            assert worker.popen.stdin is not None
            worker.popen.stdin.write(json.dumps(job) + "\n")
            worker.popen.stdin.flush()
        except BrokenPipeError:  # it died while it had nothing to do; its end is read as any other's
            pass

    def events(self, timeout: float) -> list[Event]:
        try:
            worker, line = self._said.get(timeout=timeout)
        except queue.Empty:
            return []
        number = worker.number
        if number is None:  # an idle one that has ended is started again when it is needed
            self._idle = [(cores, None if line is None and idle is worker else idle) for cores, idle in self._idle]
            return []
        if line is None:
            self._release(worker, None)
            return [Event(number, lost=_ending(worker.popen.wait()))]
        said = json.loads(line)
        if "result" in said:
            self._release(worker, worker)
            return [Event(number, result=said["result"])]
        return [Event(number, doing=said["doing"])] if "doing" in said else []

    def stop(self) -> None:
        workers = [worker for _, worker in (*self._busy, *self._idle) if worker is not None]
        for worker in workers:
            worker.popen.kill()
        for worker in workers:
            worker.popen.wait()

    def _started(self, cores: Sequence[int]) -> _Process:
        environment = dict(os.environ)
        if self.num > 1:
            environment["OMP_NUM_THREADS"] = str(max(len(cores), 1))
        with self.log.open("ab") as log:
            worker = _Process(
                subprocess.Popen(
                    [sys.executable, "-c", WORK, *map(str, cores)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    encoding="utf-8",
                    start_new_session=True,  # Ctrl-C is for the search, which then ends its workers
                )
            )
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Process) -> None:
        assert worker.popen.stdout is not None
        for line in worker.popen.stdout:
            if line.endswith("\n"):  # the last words of one that is killed may be half a line
                self._said.put((worker, line))
        self._said.put((worker, None))

    def _release(self, worker: _Process, again: _Process | None) -> None:
        worker.number = None
        cores = next(cores for cores, busy in self._busy if busy is worker)
        self._busy = [(other, busy) for other, busy in self._busy if busy is not worker]
        self._idle.append((cores, again))


def _shares(num: int) -> list[list[int]]:
    """The cores of each worker; none where there is one alone, or fewer cores than workers."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if num == 1 or len(cores) < num:
        return [[] for _ in range(num)]
    each = len(cores) // num
    return [cores[index * each : (index + 1) * each] for index in range(num)]


def _ending(status: int) -> str:
    if status >= 0:
        return f"its worker ended with exit status {status}"
    hint = ", as for want of memory" if -status == signal.SIGKILL else ""
    return f"its worker was ended by {signal.Signals(-status).name}{hint}"


class OnRay:
    """Tasks on a Ray cluster, a core each; a lost node's are started again, and run folders are brought here."""

    def __init__(self, address: str, num: int) -> None:
        if not plugins.installed("ray"):
            raise MissingPackage(f"--on ray needs ray: {plugins.pip_line('ray')}")
        import ray

        self.num = num
        self._ray = ray
        self._running: dict[Any, tuple[int, Path]] = {}
        self._first: dict[str, Any] = {}
        """The first trial's run, as Ray has it."""
        try:
            if not ray.is_initialized():
                self._connect(None if address == "ray" else address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first, *others = str(error).splitlines()
            said = f"{first} {others[-1].strip()}" if others and first.endswith(":") else first
            raise UsageError(f"--on {address}: {said}") from error
        self._remote = ray.remote(num_cpus=1, max_retries=RAY_RETRIES)(run_there)

    def _connect(self, address: str | None) -> None:
        for attempt in range(RAY_ATTEMPTS):
            try:
                self._ray.init(address=address, log_to_driver=False, configure_logging=False)
                return
            except ConnectionAbortedError:  # it is there, but what it started to serve this client died
                if attempt + 1 == RAY_ATTEMPTS:
                    raise

    def submit(self, number: int, job: Job) -> None:
        root, first = Path(job["root"]), job["first"]
        if first and not job["artifacts"] and first not in self._first and (root / first).is_dir():
            self._first[first] = self._ray.put(_packed(root / first))
        self._running[self._remote.remote(dict(job), self._first.get(first))] = (number, root)

    def events(self, timeout: float) -> list[Event]:
        found = []
        running = list(self._running)
        done, others = self._ray.wait(running, timeout=timeout)
        if done and others:  # what else has ended by now: with many workers one at a time is too slow
            done += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        for reference in done:
            number, root = self._running.pop(reference)
            try:
                result, packed = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                said = str(error).strip().splitlines()
                found.append(Event(number, lost=f"Ray lost it: {said[0] if said else type(error).__name__}"))
                continue
            if packed is not None:
                _unpack(packed, root / result["run"])
            found.append(Event(number, result=result))
        return found

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()


def run_there(job: Job, first: bytes | None) -> tuple[Mapping[str, Any], bytes | None]:
    """A task: the trial's result, and its run folder as a zip, where there is no storage to keep it in.

    What it has learned stays on its node for others, and so does the run of the first trial, which it is given.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from edgedl.search import trial

    root = Path.home() / ".cache" / "edgedl" / "searches" / job["study"]
    root.mkdir(parents=True, exist_ok=True)
    if first is not None:
        _unpack(first, root / job["first"])
    result = trial.run(job, root)
    return result, _packed(root / result["run"]) if "run" in result and not job["artifacts"] else None


def _packed(folder: Path) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return held.getvalue()


def _unpack(packed: bytes, folder: Path) -> None:
    if not folder.exists():
        with artifacts.arriving(folder) as arrived, zipfile.ZipFile(io.BytesIO(packed)) as archive:
            archive.extractall(arrived)
