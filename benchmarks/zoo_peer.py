"""AI Edge Quantizer on the public architectures that `benchmarks.zoo` has trained, beside what edgedl made of them.

    python -m benchmarks.zoo_peer --architectures resnet bert

It needs the run folders of `benchmarks.zoo`. Every tool's files for LiteRT are judged and timed in turn, in one
process; the rows of the architectures get a `peer` each, and their table a part of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import networks, zoo
from benchmarks.quantization import compress, judge
from benchmarks.rows import CACHE, Row, read, say
from edgedl import api, measure
from edgedl import run as runs
from edgedl.core import UsageError
from edgedl.run import Run
from edgedl.torch_session import TorchSession

PEER = "ai_edge_quantizer"
FILES = ("static-minmax.tflite", "static-extremes.tflite", "dynamic.tflite")
"""As the tool comes, calibrated by the extremes of all samples, and with ranges found at run time."""
KEPT = ("peer", "file", "ships", "score", "snr_db", "speedup", "size_bytes", "failed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Adds what is missing; the results are written after every architecture."""
    parser = zoo.parser_of("zoo_peer", __doc__ or "")
    parser.add_argument("--cache", type=Path, default=CACHE, help="environments and the peer's files")
    options = parser.parse_args(arguments)
    for name in options.architectures:
        rows = read(options.results)
        row = next((row for row in rows if row["architecture"] == name and "targets" in row["stages"]["int8"]), None)
        if row is None or ("peer" in row and not options.fresh):
            continue
        say(f"{name} ...")
        row["peer"] = beside(name, newest(options.runs, name), options.cache.resolve())
        zoo.publish(options.results, rows)


def newest(folder: Path, name: str) -> Run:
    """The last finished run of an architecture. Raises `UsageError` without one."""
    found = sorted(folder.glob(f"{name}-int8/*/report.json"))
    if not found:
        raise UsageError(f"{folder}: no finished run of {name}-int8; `python -m benchmarks.zoo` makes it")
    return api.load_run(found[-1].parent)


def beside(name: str, run: Run, cache: Path) -> list[Row]:
    """What each file is worth: edgedl's float one, all of its compressed ones, and the peer's."""
    task, net = run.recipe.task, zoo.source_of(run)
    source, output = cache / "zoo" / name / "source", cache / "zoo" / name / PEER
    source.mkdir(parents=True, exist_ok=True)
    networks.save_calibration(task, source / "calibration.npz")
    networks.convert(net, task, source / networks.CONVERTED)
    made = compress(PEER, source, output, FILES, cache)
    report = runs.read_report(run.folder)
    shipped = next(verdict["ship"] for verdict in report["verdicts"] if verdict["target"] == "tflite")
    built: list[tuple[Row, Path]] = []
    for row in report["rows"]:
        if row["target"] != "tflite" or not row["file"]:
            continue
        if row["variant"] == "float":
            built.append(({"peer": "float", "file": networks.FLOAT_FILES["tflite"]}, run.folder / row["file"]))
        elif row["variant"] == shipped or row["precision"] == "int8":
            facts = {"peer": "edgedl", "file": row["variant"], "ships": row["variant"] == shipped}
            built.append((facts, run.folder / row["file"]))
    built += [({"peer": PEER, "file": file} | facts, output / file) for file, facts in made.items()]
    scored = measure.evaluate(TorchSession(net, task), task, "test")
    judge(task, scored.outputs, scored.score, built)
    return [{key: row[key] for key in KEPT if key in row} for row, _ in built]


if __name__ == "__main__":
    main()
