"""Exhibits: a few samples with what the deployed files answer, as pictures and text in the run folder."""

from __future__ import annotations

import base64
import json
import re
import struct
import traceback
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgedl import files
from edgedl.core import Batch, Exhibit, Task
from edgedl.run import Run

FOLDER = "exhibits"


@dataclass(frozen=True)
class Panel:
    """What a page shows of one panel: text, or a picture as a data URI and its size in pixels."""

    name: str
    text: str | None = None
    picture: str | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Shown:
    """The exhibits of a run, each a caption and its panels, and the target whose files answered."""

    target: str
    exhibits: Sequence[tuple[str, Sequence[Panel]]]


def save(run: Run, target: str, task: Task, answers: Mapping[str, Batch]) -> str | None:
    """Keeps what the task thinks worth looking at; returns why it could not, which must not cost anybody the run.

    `answers` are the outputs over the whole test split by variant, the float network's first.
    """
    try:
        found = task.exhibits(answers, task.arrays("test"))
        if found:
            with files.filled_folder(run.folder / FOLDER) as folder:
                content = [_written(exhibit, number, folder) for number, exhibit in enumerate(found)]
                files.write_json(folder / "exhibits.json", {"target": target, "exhibits": content})
    except Exception as error:  # the task is anybody's code, and all that matters more is done
        traceback.print_exc()  # into the run's log
        return f"task {task.label} could not show samples: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


def read(folder: Path) -> Shown | None:
    """What a run folder has to show; None if that is nothing, or damaged."""
    file = folder / FOLDER / "exhibits.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        exhibits = [
            (str(exhibit["caption"]), [_panel(panel, file.parent) for panel in exhibit["panels"]])
            for exhibit in content["exhibits"]
        ]
        return Shown(str(content["target"]), exhibits)
    except (OSError, ValueError, LookupError, TypeError, struct.error):
        return None  # the page is about the report; a damaged file beside it must not hide that


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of (H, W) or (H, W, 3) uint8. Raises `ValueError` for anything else."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"a picture is (H, W) or (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # 0 in front of each: no filter
    header = struct.pack(">2I5B", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _written(exhibit: Exhibit, number: int, folder: Path) -> dict[str, object]:
    """Its pictures as files; what is said of it, for `exhibits.json`."""
    panels: list[dict[str, str]] = []
    for name, content in exhibit.panels.items():
        if isinstance(content, np.ndarray):
            file = folder / f"{number:02}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.png"
            with file.open("xb") as stream:
                stream.write(png(content))
            panels.append({"name": name, "file": file.name})
        else:
            panels.append({"name": name, "text": str(content)})
    return {"caption": exhibit.caption, "panels": panels}


def _panel(panel: Mapping[str, str], folder: Path) -> Panel:
    if "file" not in panel:
        return Panel(str(panel["name"]), text=str(panel["text"]))
    content = (folder / Path(panel["file"]).name).read_bytes()
    if not content.startswith(SIGNATURE):
        raise ValueError(f"{panel['file']} is no PNG file")
    width, height = struct.unpack(">2I", content[16:24])
    picture = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Panel(str(panel["name"]), picture=picture, width=width, height=height)
