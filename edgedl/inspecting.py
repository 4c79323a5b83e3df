"""What a file is like before any device has seen it: its inputs and their layout, and what accelerators leave out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedl import files, graph_session, plugins
from edgedl.core import MissingPackage, ModelFileError, TensorSpec
from edgedl.nvidia import dla, passport
from edgedl.run import find_finished, looked_into, read_report
from edgedl.tflite import gpu_delegate
from edgedl.tflite.flatbuffer import Flatbuffer

GPU_DELEGATE, DLA = "LiteRT's GPU delegate", "NVIDIA's DLA"
COLOURS = (1, 3, 4)
MAX_LAYERS = 8
"""Names that are kept of the layers that leave for one reason."""
METADATA = b"TFLITE_METADATA"
SUFFIXES = (".tflite", ".onnx", ".engine", ".plan", ".rtx")
ENGINES = (".engine", ".plan", ".rtx")


def inspect(what: str, root: Path) -> list[dict[str, Any]]:
    """A row for each file: of a file its own, of a folder of graphs theirs, of a run those of its report.

    Raises `ModelFileError` for a file that is none, `MissingPackage` for what reading one takes.
    """
    path = Path(what)
    if (path.is_file() and path.name != "report.json") or path.suffix in SUFFIXES:
        return [of_file(path)]
    if path.is_dir() and not (path / "report.json").is_file() and any(path.glob("*/model.*")):
        return [of_file(file) for file in graph_session.graph_files(path, SUFFIXES).values()]
    folder = find_finished(what, root)
    found = []
    with looked_into(folder):
        for row in read_report(folder)["rows"]:
            graphs = [graph["file"] for graph in (row.get("graphs") or {}).values()] or [row["file"]]
            found += [(folder / file, str(file), str(row["target"]), str(row["variant"])) for file in graphs if file]
    return [of_file(path, target) | {"file": file, "variant": variant} for path, file, target, variant in found]


def of_file(file: Path, target: str | None = None) -> dict[str, Any]:
    """What is known of one file; `target` is what it was made for, where that is known."""
    if file.suffix not in SUFFIXES:
        raise ModelFileError(f'{file}: unknown ending "{file.suffix}"; there are: {", ".join(SUFFIXES)}')
    if not file.is_file():
        raise ModelFileError(f"no file {file}")
    labels, told = file.with_name("labels.txt"), _told(file)
    made_for = told.get("target")
    is_engine = file.suffix in ENGINES
    known = passport.read(file) if is_engine else None
    inputs, outputs = ({}, {}) if is_engine else _specs(file)
    return {
        "file": str(file),
        "variant": None,
        "target": target or (made_for.get("use") if isinstance(made_for, dict) else None),
        "size_bytes": file.stat().st_size,
        "inputs": [_spec(name, spec) for name, spec in inputs.items()],
        "outputs": [_spec(name, spec) for name, spec in outputs.items()],
        "accelerators": accelerators(file, target),
        "metadata": _metadata(file),
        "labels": len(files.read_text(labels).splitlines()) if labels.is_file() else None,
        "preprocessing": told.get("preprocessing") or None,
        "passport": None if known is None else vars(known) | {"built_for": known.built_for},
    }


def accelerators(file: Path, target: str | None, graph: str = "") -> list[dict[str, Any]]:
    """What an accelerator would leave out of a file: LiteRT's GPU delegate of .tflite, NVIDIA's DLA for TensorRT."""
    if file.suffix == ".tflite":
        found = gpu_delegate.delegated(_flatbuffer(file))
        leaving = [(left.kind, left.reason, left.names) for left in found.leaving]
        entry = {"accelerator": GPU_DELEGATE, "graph": graph, "operators": found.num_operators,
                 "stay": found.num_on_gpu, "parts": found.num_parts, "note": None}  # fmt: skip
        return [entry | {"leaving": _leaving(leaving)}]
    source = file if file.suffix == ".onnx" else file.with_name("model.onnx")
    if target not in (None, "tensorrt") or file.suffix == ".rtx" or not source.is_file():
        return []
    run = dla.on_dla(source)
    leaving = [(left.kind, left.reason, left.names) for left in run.falling]
    stay = 0 if run.note else run.num_layers - sum(len(names) for _, _, names in leaving)
    entry = {"accelerator": DLA, "graph": graph, "operators": run.num_layers, "stay": max(stay, 0), "parts": None,
             "note": run.note}  # fmt: skip
    return [entry | {"leaving": _leaving(leaving)}]


def layout(shape: Sequence[int]) -> str | None:
    """How an image lies in an input of four dimensions; None where the shape does not tell."""
    if len(shape) != 4 or (shape[1] in COLOURS) == (shape[3] in COLOURS):
        return None
    return "NCHW" if shape[1] in COLOURS else "NHWC"


def _leaving(found: Sequence[tuple[str, str, Sequence[str]]]) -> list[dict[str, Any]]:
    return [
        {"operator": kind, "reason": reason, "times": len(names), "layers": list(names[:MAX_LAYERS])}
        for kind, reason, names in found
    ]


def _specs(file: Path) -> tuple[Mapping[str, TensorSpec], Mapping[str, TensorSpec]]:
    session = plugins.target_for(file, 1).open(file)
    found = session.inputs, session.outputs
    session.close()
    return found


def _spec(name: str, spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "free": list(spec.free),
        "layout": layout(spec.shape),
    }


def _flatbuffer(file: Path) -> Flatbuffer:
    try:
        return Flatbuffer(file.read_bytes())
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "looking inside a .tflite file needs ai-edge-litert: pip install ai-edge-litert"
        ) from error


def _metadata(file: Path) -> bool | None:
    """Whether a .tflite file has the metadata that MediaPipe and ML Kit read; None of other files."""
    if file.suffix != ".tflite":
        return None
    return any(entry.name == METADATA for entry in _flatbuffer(file).model.metadata or [])


def _told(file: Path) -> dict[str, Any]:
    """The passport of the run that made the file; nothing where there is none."""
    try:
        found = json.loads(file.with_name("artifact.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
