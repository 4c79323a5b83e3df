"""What public architectures survive: each trained on a made-up task, quantized, cut by half and quantized, and judged.

    python -m benchmarks.zoo --architectures resnet bert

Each goes through the whole program in a process of its own, as a person's own network does. What the results hold
already is left as it is, so that a run that was interrupted goes on where it stopped. After every architecture the
rows and their table beside them are written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks import table
from benchmarks.architectures import ARCHITECTURES, Public
from benchmarks.rows import CACHE, Row, cpu_seconds, read, same_file, say, write
from edgedl import measure, pipeline, plugins, recipe, stats
from edgedl import run as runs
from edgedl.core import Batch, EdgedlError, Target
from edgedl.graph_session import open_files
from edgedl.recipe import Recipe
from edgedl.run import Run
from edgedl.torch_session import TorchSession

RESULTS = Path(__file__).parent / "results" / "zoo.json"
STAGES = {"int8": "", "half": '{ use = "prune", ratio = 0.5, iterations = 2, epochs = 4, lr = 1e-3 }, '}
"""What comes between training and int8."""
METHODS = {"auto": 'method = "auto"', "ptq": 'method = "ptq", calibrator = "min-max", corrections = []'}
"""How int8 is made; "ptq" tells in a quarter of the time what is not taken, or not repeated."""
MAX_SECONDS = 900
"""For one architecture."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing or has failed; the results are written after every architecture."""
    parser = parser_of("zoo", __doc__ or "")
    parser.add_argument("--limit", type=float, default=MAX_SECONDS, help="seconds for one architecture")
    parser.add_argument("--method", choices=METHODS, default="auto")
    parser.add_argument("--here", type=Path, help="run one in this process, and write its row to this file")
    options = parser.parse_args(arguments)
    if options.here is not None:
        judge(options.architectures[0], options.method, options.runs, options.here)
        return
    for name in options.architectures:
        rows = {row["architecture"]: row for row in read(options.results)}
        if options.fresh or not is_done(rows.get(name), options.method):
            say(f"{name} ...")
            rows[name] = measured(name, options.method, options.runs, options.limit)
            say(f"{name}: {verdict(rows[name])}, {rows[name]['seconds']:.0f} s")
        publish(options.results, [rows[name] for name in ARCHITECTURES if name in rows])


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """What concerns all architectures on the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    names = list(ARCHITECTURES)
    parser.add_argument("--architectures", nargs="+", choices=names, default=names, metavar="ARCHITECTURE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=CACHE / "zoo", help="where run folders go")
    parser.add_argument("--fresh", action="store_true", help="repeat what the results hold already")
    return parser


def publish(results: Path, rows: Sequence[Row]) -> None:
    """Writes the rows, and their table beside them."""
    write(results, rows)
    results.with_suffix(".md").write_text(table.zoo(json.loads(results.read_text())), encoding="utf-8")


def is_done(row: Mapping[str, Any] | None, method: str) -> bool:
    """Whether all stages of an architecture came to an end, by this method."""
    return (
        row is not None
        and row["method"] == method
        and all("failed" not in row["stages"].get(stage, {"failed": ""}) for stage in STAGES)
    )


def verdict(row: Row) -> str:
    """What became of an architecture, in a few words."""
    return "; ".join(f"{stage}: {found.get('failed', 'done')}" for stage, found in row["stages"].items())


def measured(name: str, method: str, folder: Path, limit: float) -> Row:
    """The row of one architecture; a stage that was never reached, or broke the process, says so."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.json"
    part.unlink(missing_ok=True)
    call = [sys.executable, "-m", "benchmarks.zoo", "--architectures", name, "--method", method]
    call += ["--here", str(part), "--runs", str(folder)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started, before = time.monotonic(), cpu_seconds()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(call, stdout=log, stderr=log, env=variables, start_new_session=True)
        try:
            status = process.wait(limit)
            failed = f"the process was ended by signal {-status}" if status < 0 else f"the process ended with {status}"
        except subprocess.TimeoutExpired:
            failed = f"not done after {limit:g} s"
        finally:
            if process.poll() is None:  # with whatever it has started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    row: Row = json.loads(part.read_text()) if part.exists() else {"architecture": name, "stages": {}}
    row |= {"method": method, "kind": ARCHITECTURES[name].kind, "class": ARCHITECTURES[name].name}
    for stage in STAGES:
        row["stages"].setdefault(stage, {"failed": failed})
    return row | {"seconds": time.monotonic() - started, "cpu_seconds": cpu_seconds() - before}


def judge(name: str, method: str, folder: Path, file: Path) -> None:
    """Takes one architecture through all stages; its row is written after each."""
    row: Row = {"architecture": name, "stages": {}}
    for stage, steps in STAGES.items():
        text = recipe_of(name, stage, steps, method)
        made = recipe.parse(text, folder / f"{name}-{stage}.toml")
        try:
            found = figures(pipeline.compress(made, text, folder))
        except EdgedlError as error:
            found = {"failed": one_line(error)}
        except Exception as error:  # whatever it is, it is what a person would see
            found = {"failed": f"{type(error).__name__}: {one_line(error)}", "traceback": True}
            sys.excepthook(type(error), error, error.__traceback__)
        row["stages"][stage] = found
        file.write_text(json.dumps(row, indent=1) + "\n")


def one_line(error: Exception) -> str:
    """What was said, short enough for a table."""
    return " ".join(str(error).split())[:400] or "(it said nothing)"


def recipe_of(name: str, stage: str, steps: str, method: str) -> str:
    """The whole recipe of a stage."""
    architecture = ARCHITECTURES[name]
    train = f"epochs = {architecture.epochs}, lr = {architecture.lr}"
    task = ", ".join(f"{key} = {json.dumps(value)}" for key, value in architecture.task.model_dump().items())
    return f"""name = "{name}-{stage}"
task = {{ {task} }}
model = {{ use = "{Public(name=name).use}", name = "{name}" }}
steps = [
  {{ use = "train", {train} }},
  {steps}{{ use = "quantize", precision = "int8", {METHODS[method]} }},
]
targets = [{{ use = "tflite" }}, {{ use = "onnxruntime" }}, {{ use = "tensorrt-rtx" }}]
limits = {{ score_drop = 0.02 }}
bench = {{ min_seconds = 1, rounds = 50 }}
"""


def figures(run: Run) -> Row:
    """What is kept of a run: every file, and what ships of each target."""
    report = runs.read_report(run.folder)
    task = run.recipe.task
    source = measure.evaluate(TorchSession(source_of(run), task), task, "test").outputs
    targets = []
    for verdict, target in zip(report["verdicts"], run.recipe.targets, strict=True):
        files = []
        for row in report["rows"]:
            if row["target"] != target.label:
                continue
            ladder = next((found for found in report["ladder"] if same_file(found, row)), None)
            file: Row = {key: row[key] for key in ("variant", "precision", "status", "reason", "score", "size_bytes")}
            file["speedup"] = row["speedup"]
            if ladder is not None:
                file |= {key: ladder[key] for key in ("quantization", "agreement", "first_divergence")}
                answers = _answers(target, run.folder / row["file"], run.recipe)
                if row["variant"] != "float":  # after pruning, that is another network
                    file["snr_db"] = min(stats.sqnr_db(source[key], answers[key]) for key in task.outputs)
            files.append(file)
        shipped = {key: verdict[key] for key in ("ship", "why", "speedup", "size_ratio", "score_drop")}
        targets.append({"target": target.label, **shipped, "files": files})
    facts = {"score": report["rows"][0]["score"], "parameters": report["parameters"], "warnings": report["warnings"]}
    return facts | {"targets": targets}


def source_of(run: Run) -> nn.Module:
    """The float network that was quantized: as trained, or what pruning left of it."""
    weights = sorted(run.folder.glob("steps/*/weights.safetensors"))[-1]
    net: nn.Module = run.recipe.model.build(run.recipe.task)
    runs.load_weights(net, weights)
    return net.eval()


def _answers(target: Target, file: Path, of: Recipe) -> Batch:
    """What a file answers to the test split; an engine's by the ONNX file that it was built from."""
    if target.needs_gpu:
        target, file = plugins.stand_in(), file.with_name("model.onnx")
    session = open_files(target, file)
    outputs = measure.evaluate(session, of.task, "test").outputs
    session.close()
    return outputs


if __name__ == "__main__":
    main()
