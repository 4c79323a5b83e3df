"""What a person sees while work goes on: one line a stage on stderr, with the noise of libraries sent to a log file."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_display: Progress | None = None
_interrupted = False


@contextmanager
def display() -> Iterator[None]:
    """Shows the stages that run inside, on stderr or in the notebook; without it they run silently.

    A Ctrl-C meanwhile is heeded at the next unit of a stage at the latest: some libraries, while they
    load or convert, catch everything, and it with it.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    global _display
    # Its own descriptor: `diverted` points the process's stderr elsewhere meanwhile.
    with _heeding_interrupts(), os.fdopen(os.dup(sys.__stderr__.fileno()), "w") as stream:  # type: ignore[union-attr]
        console = _console(stream)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as _display:
            try:
                yield
            finally:
                _display_off()


def _console(stream: IO[str]) -> Console:
    """The notebook's, where there is one that can show what changes; else it shows what has come of all at the end."""
    from rich.console import Console

    if not Console().is_jupyter:
        return Console(file=stream)
    if importlib.util.find_spec("ipywidgets"):
        return Console()
    return Console(file=sys.stderr, force_jupyter=False, force_terminal=False)


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


def _display_off() -> None:
    global _display
    if _display is not None:
        _display.stop()
    _display = None


def hide() -> None:
    """Shows nothing any more: in a copy of the process that shows."""
    global _display
    _display = None


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _heed_interrupt() -> None:
    if _interrupted:
        raise KeyboardInterrupt


@contextmanager
def stage(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A stage of `total` units; yields `step(units, figures="")`, where figures is text such as a loss."""
    if _display is None:
        yield lambda units, figures="": None
        return
    _heed_interrupt()
    shown = _display
    task = shown.add_task(label, total=total, figures="")

    def step(units: int, figures: str = "") -> None:
        shown.update(task, advance=units)
        if figures:
            shown.update(task, figures=figures)
        _heed_interrupt()

    yield step
    shown.stop_task(task)


@contextmanager
def diverted(log: Path) -> Iterator[None]:
    """Sends whatever is written to stdout and stderr inside, by native code too, to the end of a log file."""
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
        yield
    finally:
        sys.stdout, sys.stderr = python
        for handler in handlers:
            handler.stream = sys.stderr
        for descriptor, original in enumerate(saved, start=1):
            os.dup2(original, descriptor)
            os.close(original)


def _handlers_of(stream: TextIO) -> list[logging.StreamHandler[TextIO]]:
    """Those that hold a stream themselves: that of a notebook leads elsewhere than its descriptor."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    held = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    streaming = [
        handler for handler in held if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler)
    ]
    return [handler for handler in streaming if handler.stream is stream]
