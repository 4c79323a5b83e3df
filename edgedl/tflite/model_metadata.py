"""The metadata that MediaPipe's and ML Kit's tasks read from a .tflite file: what its inputs and outputs stand for.

Written by the schema of TensorFlow Lite Support (metadata_schema.fbs, identifier M001), whose fields have numbers here.
The names of classes lie in a zip archive behind the file's own content, where such readers look for them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgedl.tflite.flatbuffer import Flatbuffer

if TYPE_CHECKING:
    import flatbuffers

    from edgedl.core import TensorSpec

NAME, IDENTIFIER, PARSER = "TFLITE_METADATA", b"M001", "1.0.0"
LABELS = "labels.txt"
AXIS_LABELS = 2
FEATURE, IMAGE = 1, 2
"""What a tensor holds."""
NORMALIZATION = 1
COLOURS = {3: 1, 1: 2}
"""By the number of channels: RGB, or shades of gray."""


class Byte(NamedTuple):
    """What a field holds that is one byte, beside those that are offsets."""

    number: int


def with_metadata(
    content: bytes,
    name: str,
    inputs: Mapping[str, TensorSpec],
    outputs: Sequence[str],
    preprocessing: Mapping[str, Any],
    classes: Sequence[str],
) -> bytes:
    """A file's content with metadata: images are those whose channels come last, `classes` what the first output says.

    `preprocessing` is the recorded contract (`core.Task.preprocessing`); shapes of `inputs` begin with the batch.
    """
    graph = Flatbuffer(content)
    entry = graph.schema.MetadataT()
    entry.name, entry.buffer = NAME, graph.new_buffer(described(name, inputs, outputs, preprocessing, bool(classes)))
    graph.model.metadata = [*(graph.model.metadata or []), entry]
    whole = io.BytesIO(graph.pack())
    if classes:
        with zipfile.ZipFile(whole, "a") as archive:
            lines = "".join(f"{' '.join(one.split())}\n" for one in classes)
            archive.writestr(zipfile.ZipInfo(LABELS), lines)  # of no date: the same file each time
    return whole.getvalue()


def described(
    name: str,
    inputs: Mapping[str, TensorSpec],
    outputs: Sequence[str],
    preprocessing: Mapping[str, Any],
    labelled: bool,
) -> bytes:
    """The metadata itself."""
    import flatbuffers

    builder = flatbuffers.Builder(256)
    contracts = preprocessing.get("inputs", {})
    taken = [_input(builder, one, spec.shape, contracts.get(one, {})) for one, spec in inputs.items()]
    given = [_output(builder, one, labelled and index == 0) for index, one in enumerate(outputs)]
    subgraph = _table(builder, {2: _vector(builder, taken), 3: _vector(builder, given)})
    texts = {0: builder.CreateString(name), 7: builder.CreateString(PARSER)}
    builder.Finish(_table(builder, texts | {3: _vector(builder, [subgraph])}), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _input(builder: flatbuffers.Builder, name: str, shape: Sequence[int], contract: Mapping[str, Any]) -> int:
    """An image with what is to be done to its pixels (0 to 255), or plain numbers."""
    if len(shape) != 4 or shape[3] not in COLOURS:
        return _tensor(builder, name, FEATURE, _table(builder, {}))
    image = _table(builder, {0: Byte(COLOURS[shape[3]])})
    units: list[int] = []
    if "in_file" in contract:
        units = [_normalization(builder, [0.0], [1.0])]
    elif "scale" in contract:
        scale = float(contract["scale"])
        mean, deviation = (np.asarray(contract[key], np.float64) / scale for key in ("mean", "std"))
        units = [_normalization(builder, mean, deviation)]
    return _tensor(builder, name, IMAGE, image, units=units)


def _output(builder: flatbuffers.Builder, name: str, labelled: bool) -> int:
    files = []
    if labelled:
        file = {0: builder.CreateString(LABELS), 1: builder.CreateString("names of the classes, in order")}
        files = [_table(builder, {**file, 2: Byte(AXIS_LABELS)})]
    return _tensor(builder, name, FEATURE, _table(builder, {}), files=files)


def _tensor(
    builder: flatbuffers.Builder,
    name: str,
    holds: int,
    properties: int,
    units: Sequence[int] = (),
    files: Sequence[int] = (),
) -> int:
    content = _table(builder, {0: Byte(holds), 1: properties})
    fields: dict[int, int | Byte] = {0: builder.CreateString(name), 3: content}
    if units:
        fields[4] = _vector(builder, units)
    if files:
        fields[6] = _vector(builder, files)
    return _table(builder, fields)


def _normalization(builder: flatbuffers.Builder, mean: Any, deviation: Any) -> int:
    """(x - mean) / deviation, for each channel or for all."""
    options = {
        field: builder.CreateNumpyVector(np.asarray(values, np.float32))
        for field, values in enumerate((mean, deviation))
    }
    return _table(builder, {0: Byte(NORMALIZATION), 1: _table(builder, options)})


def _table(builder: flatbuffers.Builder, fields: Mapping[int, int | Byte]) -> int:
    """A table: of each field by its number the offset of what it holds, or its byte."""
    builder.StartObject(max(fields, default=-1) + 1)
    for field, value in fields.items():
        if isinstance(value, Byte):
            builder.PrependUint8Slot(field, value.number, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(field, value, 0)
    found: int = builder.EndObject()
    return found


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    found: int = builder.EndVector()
    return found
