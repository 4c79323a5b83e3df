"""What runs on a device: `python3 edgedl.pyz`, a zipapp of this module and what it imports, beside a `job.json`.

It needs Python 3.10, numpy and a runtime, and knows neither tasks nor targets: it opens files, answers what it is
given, times, and writes `result.json` and each network's answers. The host makes scores of them (`on_device.py`).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from edgedl import graph_session, measure
from edgedl.devices import local
from edgedl.graph_session import Replay
from edgedl.probes import jetson, loads
from edgedl.probes.loads import Asked
from edgedl.remote import calls
from edgedl.remote.calls import Calls
from edgedl.sessions import Batch, EdgedlError, Session

SCHEMA = 2
"""Of job and result: the two come from the same edgedl, unless somebody has kept an old one."""
OPENERS = {
    # what the job calls it -> what opens it, and the libraries of which the first that is there runs it
    "tflite": ("edgedl.tflite.litert:LiteRTSession", ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")),
    "onnxruntime": ("edgedl.onnx.session:OnnxRuntimeSession", ("onnxruntime",)),
    "tensorrt": ("edgedl.nvidia.engine_there:open_engine", ("tensorrt",)),
}
MAX_LINES = 3
"""Of what a process said before it died, the last."""


Entry: TypeAlias = Mapping[str, Any]
"""A network in the job: its `name`, what `opens` it with how many `threads` and which `settings`; by name its `graphs`,
each with the `file`, names of `inputs` and `outputs`, the `calls` to answer and what `builds` it, if anything; where
the `answers` go; and what is `timed`: the `order` in which graphs are called, with the first of which `calls`."""


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
    networks, pace, asked = job["networks"], job["pace"] and Pace(**job["pace"]), Asked(**job["asked"])
    found = {entry["name"]: _answered(entry) for entry in networks}
    for target in dict.fromkeys(entry["opens"] for entry in networks) if pace else ():
        sound = [entry for entry in networks if entry["opens"] == target and not found[entry["name"]]["error"]]
        timed = in_child(partial(measured, sound, pace))
        for name in (entry["name"] for entry in sound):
            found[name] |= timed.get(name, {}) | {"not_timed": timed["error"]}
    if pace and jetson.TEGRASTATS:  # what a Jetson is chosen for
        asked = asked._replace(energy=True)
    for entry in networks if any(asked) else ():
        if not found[entry["name"]]["error"]:
            found[entry["name"]]["answers"] = in_child(partial(answered, entry, asked, pace))
    content = {"schema": SCHEMA, "device": local.describe() | jetson.describe(), "networks": found}
    Path("result.json.partial").write_text(json.dumps(content), encoding="utf-8")
    Path("result.json.partial").replace("result.json")


def _answered(entry: Entry) -> dict[str, Any]:
    """What is found of a network, after it was built where that is to be done here; each in processes of its own."""
    built: dict[str, Any] = {}
    if any(graph["builds"] for graph in entry["graphs"].values()):
        from edgedl.nvidia import engine_there

        built = in_child(lambda: {"built": engine_there.build(entry["graphs"].values())})
    return built if built.get("error") else built | in_child(partial(answer, entry))


def answer(entry: Entry) -> dict[str, Any]:
    """Opens a network in a process that is still fresh, and keeps what its graphs answer to all calls."""
    _import_runtime(entry["opens"])
    session, cold = measure.first_run(lambda: _open(entry))
    arrays: list[np.ndarray] = []
    for name, graph in entry["graphs"].items():
        run = graph_session.parts(session)[name].run
        found = [run(call) for call in _calls(graph, graph["calls"])]
        arrays += [np.stack([batch[output] for batch in found]) for output in graph["outputs"]]
    np.savez(entry["answers"], *arrays)
    return {"runtime": session.runtime, **vars(cold)}


def measured(entries: Sequence[Entry], pace: Pace) -> dict[str, Any]:
    """Of each network latencies in ms, in blocks that were measured in turn, and the median of each graph's calls."""
    runs = {entry["name"]: _timed(entry) for entry in entries}
    blocks = measure.interleave(runs, pace)
    return {
        name: {
            "blocks_ms": [list(block) for block in blocks[name]],
            "calls_ms": session.medians_ms() if isinstance(session, Replay) else {},
        }
        for name, (session, _) in runs.items()
    }


def answered(entry: Entry, asked: Asked, pace: Pace) -> dict[str, Any]:
    """What else is asked of a network: nothing is timed in turn with others here."""
    cold = {"cold_start": loads.cold_starts(cold_command(entry), asked.cold)} if asked.cold else {}
    session, given = _timed(entry)
    session.close()
    return cold | loads.answer(asked, lambda threads: _timed(entry, threads)[0], given, entry["threads"], pace)


def cold_command(entry: Entry) -> list[str]:
    """What opens a network in a fresh process, with nothing loaded but its runtime, and runs each graph once.

    Of the entry, only what opens it is needed: `opens`, `threads`, `settings` if there are any, and files of `graphs`.
    """
    files = {name: {"file": graph["file"]} for name, graph in entry["graphs"].items()}
    how = {key: entry.get(key) for key in ("opens", "threads", "settings")}
    return loads.fresh("remote.runner", "first_answer", json.dumps(how | {"graphs": files}))


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


def _timed(entry: Entry, threads: int | None = None) -> tuple[Session, Batch]:
    """What is timed of a network, and what it is given: the calls that are timed of each other that it is held to."""
    timed = entry["timed"]
    given = {name: iter(_calls(entry["graphs"][name], file)) for name, file in timed["calls"].items()}
    session = _open(entry if threads is None else {**entry, "threads": threads})
    return graph_session.played(session, [(name, next(given[name])) for name in timed["order"]])


def _open(entry: Entry) -> Session:
    module, _, name = OPENERS[entry["opens"]][0].partition(":")
    opener = partial(getattr(importlib.import_module(module), name), **(entry.get("settings") or {}))
    graphs = {name: opener(Path(graph["file"]), entry["threads"]) for name, graph in entry["graphs"].items()}
    return graph_session.joined(graphs)


def _calls(graph: Mapping[str, Any], file: str) -> Calls:
    """What a graph is given, call by call."""
    return calls.read(Path(file), graph["inputs"])
