"""What goes on meanwhile: stages tell whoever listens what they have done, and libraries' noise goes to a log."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeAlias

Event: TypeAlias = Mapping[str, Any]
"""What has happened: `event` says which kind, docs/run-folder.md what else it has."""
Listener: TypeAlias = Callable[[Event], None]

TOLD_SECONDS = 0.1
"""Between two events of one stage, but for those that have new figures."""

_listeners: list[Listener] = []
_numbers = itertools.count(1)
_interrupted = False
_failed_log: Path | None = None


def emit(event: str, **facts: Any) -> None:
    """Tells all who listen that something has happened."""
    for listener in tuple(_listeners):
        listener({"event": event, **facts})


def listen(listener: Listener) -> None:
    """Lets `listener` have every event from now on."""
    _listeners.append(listener)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Lets `listener` have every event that happens inside."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def display(quiet: bool = False) -> Iterator[None]:
    """Shows the stages that run inside, on stderr or in the notebook; without it, or with `quiet`, they run silently.

    A Ctrl-C meanwhile is heeded at the next unit of a stage at the latest: some libraries, while they
    load or convert, catch everything, and it with it.
    """
    from edgedl import display as shown

    with _heeding_interrupts():
        if quiet:
            yield
            return
        with shown.bars() as listener, heard_by(listener):
            yield


def hide() -> None:
    """Tells nobody any more: in a copy of the process that others listen to."""
    _listeners.clear()


def failed_log() -> Path | None:
    """The log file of the work that failed last in this process, if it kept one."""
    return _failed_log


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    global _interrupted
    _interrupted = False
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    usual = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        _interrupted = False


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _heed_interrupt() -> None:
    if _interrupted:
        raise KeyboardInterrupt


@contextmanager
def stage(label: str, total: int, after: float = 0.0, before: float = 0.0) -> Iterator[Callable[..., None]]:
    """A stage of `total` units; yields `step(units, figures="")`, where figures is text such as a loss.

    Units may be parts of one, so that a long one shows how far it is. `before` units were done by an earlier run: they
    tell nothing about how long the rest will take. A stage that takes less than `after` seconds is not told of: such
    stand inside others, and are worth a line only where they take long.
    """
    _heed_interrupt()
    started, done, told_at, said = time.monotonic(), before, 0.0, ""
    about: dict[str, Any] = {}

    def begin() -> None:
        about.update(stage=label, number=next(_numbers), total=total, inner=after > 0)
        emit("stage", **about)

    def seconds_since() -> float:
        return round(time.monotonic() - started, 3)

    def step(units: float, figures: str = "") -> None:
        nonlocal done, told_at, said
        done, said = min(done + units, total), figures or said
        seconds = seconds_since()
        if not about and seconds >= after:
            begin()
        if about and (figures or seconds - told_at >= TOLD_SECONDS or done > total - 1e-6):
            told_at = seconds
            known = done > before and total > 1
            left = round(seconds / (done - before) * (total - done), 3) if known else None
            emit("progress", **about, done=round(done, 6), seconds=seconds, left_seconds=left, figures=figures)
        _heed_interrupt()

    if after <= 0:
        begin()
    try:
        yield step
    except BaseException as error:
        if about:
            emit("stage failed", **about, seconds=seconds_since(), message=str(error) or type(error).__name__)
        raise
    if about:
        emit("stage done", **about, seconds=seconds_since(), figures=said)


@contextmanager
def diverted(log: Path) -> Iterator[None]:
    """Sends whatever is written to stdout and stderr inside, by native code too, to the end of a log file.

    The log also has the stages with their times, and what failed as its last line.
    """
    global _failed_log
    _failed_log = None
    sys.stdout.flush()
    sys.stderr.flush()
    python, saved = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    handlers = _handlers_of(sys.stderr)
    try:
        with log.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        # Writers of their own, so that what a full disk keeps out of the log is not left in the process's.
        sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False, buffering=1) for descriptor in (1, 2))  # noqa: SIM115
        for handler in handlers:
            handler.stream = sys.stderr
        if log.is_char_device():  # nobody reads what goes there
            yield
        else:
            with heard_by(_into(log)):
                yield
    except BaseException as error:
        if not log.is_char_device():
            _failed_log = log
            _write(log, f"failed: {str(error) or type(error).__name__}")
        raise
    finally:
        sys.stdout, sys.stderr = python
        for handler in handlers:
            handler.stream = sys.stderr
        for descriptor, original in enumerate(saved, start=1):
            os.dup2(original, descriptor)
            os.close(original)


def _into(log: Path) -> Listener:
    """A line for whatever a reader of the log will ask: what ran when, for how long, and what came of it."""

    def listen(event: Event) -> None:
        kind, label = event["event"], event.get("stage")
        if kind == "stage":
            _write(log, f"{label}")
        elif kind == "progress" and event["figures"]:
            _write(log, f"{label}: {event['done']:g}/{event['total']}  {event['figures']}")
        elif kind == "stage done":
            _write(log, f"{label}: done in {event['seconds']:.1f} s")
        elif kind == "stage failed":
            _write(log, f"{label}: failed after {event['seconds']:.1f} s: {event['message']}")
        elif kind == "row":
            row = event["row"]
            _write(log, ": ".join(filter(None, (f"{row['variant']} on {row['target']}", row["status"], row["reason"]))))
        elif kind == "verdict":
            verdict = event["verdict"]
            _write(log, f"{verdict['target']}: ship {verdict['ship']}: {verdict['why']}")

    return listen


def _write(log: Path, line: str) -> None:
    try:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"--- {datetime.now():%H:%M:%S} {line}\n")
    except OSError:
        pass  # a full disk: what cannot do without it will tell


def _handlers_of(stream: TextIO) -> list[logging.StreamHandler[TextIO]]:
    """Those that hold a stream themselves: that of a notebook leads elsewhere than its descriptor."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    held = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    streaming = [
        handler for handler in held if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler)
    ]
    return [handler for handler in streaming if handler.stream is stream]
