"""What runs on a device: `python3 edgedl.pyz`, a zipapp of this module and what it imports, beside a `job.json`.

It needs Python 3.10, numpy and a runtime, and knows neither tasks nor targets: it opens files, answers what it is
given, times, and writes `result.json` and each file's answers. The host makes scores of them (`on_device.py`).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgedl import jetson, loads, measure
from edgedl.devices import local
from edgedl.loads import Asked
from edgedl.sessions import Batch, EdgedlError, Session

SCHEMA = 1
"""Of job and result: the two come from the same edgedl, unless somebody has kept an old one."""
OPENERS = {
    # what the job calls it -> what opens it, and the libraries of which the first that is there runs it
    "tflite": ("edgedl.litert:LiteRTSession", ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")),
    "onnxruntime": ("edgedl.onnx_session:OnnxRuntimeSession", ("onnxruntime",)),
    "tensorrt": ("edgedl.engine_there:open_engine", ("tensorrt",)),
}
MIN_POWER_SECONDS = 2.0
"""How long a file runs at least to see what it draws: sensors are slow."""
MAX_LINES = 3
"""Of what a process said before it died, the last."""


class Pace(NamedTuple):
    """How long files are measured."""

    min_seconds: float
    rounds: int


def main() -> None:
    """Does the job in this folder; a file that crashes its runtime takes nothing else with it.

    With `--describe`, it says what this device is instead.
    """
    if sys.argv[1:] == ["--describe"]:
        print(json.dumps(local.look(None)))
        return
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    if job["schema"] != SCHEMA:
        sys.exit(f"the job is of schema {job['schema']}, this runner of {SCHEMA}")
    found = {entry["file"]: _answered(entry) for entry in job["files"]}
    for target in dict.fromkeys(entry["opens"] for entry in job["files"]) if job["pace"] else ():
        sound = [entry for entry in job["files"] if entry["opens"] == target and not found[entry["file"]]["error"]]
        timed = in_child(partial(measured, sound, Pace(**job["pace"])))
        for name in (entry["file"] for entry in sound):
            found[name] |= {"blocks_ms": timed.get(name), "not_timed": timed["error"]}
        for entry in sound if jetson.TEGRASTATS else ():
            found[entry["file"]]["power"] = in_child(partial(powered, entry, Pace(**job["pace"]))).get("power")
    for entry in job["files"] if job.get("asked") else ():
        if not found[entry["file"]]["error"]:
            asked = partial(answered, entry, Asked(**job["asked"]), Pace(**job["pace"]))
            found[entry["file"]]["answers"] = in_child(asked)
    content = {"schema": SCHEMA, "device": local.describe() | jetson.describe(), "files": found}
    Path("result.json.partial").write_text(json.dumps(content), encoding="utf-8")
    Path("result.json.partial").replace("result.json")


def _answered(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is found of a file, after it was built where that is to be done here; each in a process of its own."""
    if not entry.get("builds"):
        return in_child(partial(answer, entry))
    from edgedl import engine_there

    built = in_child(lambda: {"built": engine_there.build(entry)})
    return built if built["error"] else built | in_child(partial(answer, entry))


def answer(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Opens a file in a process that is still fresh, and keeps what it answers to all calls."""
    _import_runtime(entry["opens"])
    session, cold = measure.first_run(lambda: _open(entry))
    answered = [session.run(call) for call in _calls(entry)]
    np.savez(entry["answers"], *(np.stack([batch[name] for batch in answered]) for name in entry["outputs"]))
    return {"runtime": session.runtime, **vars(cold)}


def measured(entries: Sequence[Mapping[str, Any]], pace: Pace) -> dict[str, Any]:
    """Latencies in ms by file, in blocks that were measured in turn."""
    runs = {entry["file"]: (_open(entry), next(_calls(entry))) for entry in entries}
    return {name: [list(block) for block in blocks] for name, blocks in measure.interleave(runs, pace).items()}


def powered(entry: Mapping[str, Any], pace: Pace) -> dict[str, Any]:
    """What is drawn and how warm it gets while a file runs without a pause; how often it ran, and for how long."""
    session, batch = _open(entry), next(_calls(entry))
    measure.warm_up(session, batch)
    num_runs, start = 0, time.perf_counter()
    with jetson.watched() as samples:
        while (seconds := time.perf_counter() - start) < max(pace.min_seconds, MIN_POWER_SECONDS):
            session.run(batch)
            num_runs += 1
    summary = jetson.summarize(samples)
    return {"power": summary and summary | {"runs": num_runs, "seconds": seconds}}


def answered(entry: Mapping[str, Any], asked: Asked, pace: Pace) -> dict[str, Any]:
    """What else is asked of a file: nothing is timed in turn with other files here."""
    cold = {"cold_start": loads.cold_starts(cold_command(entry), asked.cold)} if asked.cold else {}
    given = next(_calls(entry))
    return cold | loads.answer(asked, partial(_opened, entry), given, entry["threads"], pace)


def cold_command(entry: Mapping[str, Any]) -> list[str]:
    """What opens a file in a fresh process, with nothing loaded but its runtime, and runs it once."""
    return loads.fresh("runner", "first_answer", json.dumps(dict(entry)))


def first_answer(entry: str) -> None:
    """Prints how long loading the runtime took, and opening the file and running it once, as a line of JSON."""
    asked, answers = json.loads(entry), os.dup(1)
    os.dup2(2, 1)  # what a runtime prints goes elsewhere
    start = time.perf_counter()
    _import_runtime(asked["opens"])
    import_ms = (time.perf_counter() - start) * 1000
    try:
        _, cold = measure.first_run(lambda: _open(asked))
        said: dict[str, Any] = {"import_ms": import_ms, "init_ms": cold.init_ms}
    except EdgedlError as error:
        said = {"message": str(error)}
    os.write(answers, f"{json.dumps(said)}\n".encode())


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, done in a process of its own, and `error`: None, or why nothing came of it.

    A fork, since an emulator that runs this process cannot start another, and what is imported here need not be again.
    """
    returned, said = Path("returned.json"), Path("said.txt")
    returned.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        _child(work, returned, said)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status == 0:
        found: dict[str, Any] = json.loads(returned.read_text(encoding="utf-8"))
        return found
    lines = [line.strip() for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"ended by signal {_signal(-status)}" if status < 0 else f"ended with status {status}"
    return {"error": ": ".join([how, " | ".join(lines[-MAX_LINES:]) or "it said nothing"])}


def _child(work: Callable[[], dict[str, Any]], returned: Path, said: Path) -> None:
    """Never returns, and leaves nothing to clean up to what it has of the process that it was made from."""
    status = 1
    try:
        to = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(to, 1)
        os.dup2(to, 2)
        try:
            found = {"error": None, **work()}
        except EdgedlError as error:
            found = {"error": str(error)}
        returned.write_text(json.dumps(found), encoding="utf-8")
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _signal(number: int) -> str:
    known = {member.value: member.name for member in signal.Signals}
    return f"{number} ({known[number]})" if number in known else str(number)


def _import_runtime(opens: str) -> None:
    """Loading a library is no part of opening a file. Where there is none, opening says so."""
    for module in OPENERS[opens][1]:
        try:
            importlib.import_module(module)
            return
        except ModuleNotFoundError:
            continue


def _opened(entry: Mapping[str, Any], threads: int) -> Session:
    return _open({**entry, "threads": threads})


def _open(entry: Mapping[str, Any]) -> Session:
    module, _, name = OPENERS[entry["opens"]][0].partition(":")
    opener = getattr(importlib.import_module(module), name)
    session: Session = opener(Path(entry["file"]), entry["threads"], **(entry.get("settings") or {}))
    return session


def _calls(entry: Mapping[str, Any]) -> Iterator[Batch]:
    """What the file is given, call by call. Arrays lie in order: their names are a person's own and may be any."""
    with np.load(entry["calls"]) as arrays:
        stacked = list(arrays.values())
    for values in zip(*stacked, strict=True):
        yield dict(zip(entry["inputs"], values, strict=True))
