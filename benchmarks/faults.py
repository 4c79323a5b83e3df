"""Whether a run that is killed goes on to the same results: kills at random moments, each followed by a resume.

    taskset -c 1 python -m benchmarks.faults            # 200 kills; about half an hour of a core
    taskset -c 1 python -m benchmarks.faults --kills 20
    taskset -c 1 python -m benchmarks.faults --more     # goes on to 200

A small recipe trains, prunes, trains its quantization, and is exported, measured and judged, over and over: each time
it is killed (SIGKILL, no chance to tidy up) at a moment drawn evenly over the time that an unbroken run takes, then
started again and left alone. The report that comes out is held against that of the unbroken run: every value in it but
times, and the digest of every file. States of training are kept after every batch, so that kills fall between them.
Every run is a copy of one process that has all packages loaded: loading them takes longer than the recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, say

RESULTS = Path(__file__).parent / "results" / "faults.json"
RECIPE = """
description = "A small network through steps of every kind."
task = { use = "digits" }
model = { use = "mlp", widths = [24, 16] }
steps = [
  { use = "train", epochs = 2, lr = 3e-3, batch_size = 64 },
  { use = "prune", ratio = 0.3, round_to = 4, iterations = 2, epochs = 1, batch_size = 64 },
  { use = "quantize", method = "ptq" },
]
targets = [ { use = "onnxruntime" } ]
limits = { score_drop = 1.0, slower = "allow", unlearned = "allow" }
bench = { min_seconds = 0.02, rounds = 2 }
"""
OF_TIME = {"latency_ms", "speedup", "init_ms", "peak_memory_bytes", "operators", "environment", "why", "finished"}
OF_TIME |= {"latency", "reused", "accelerators", "time_share"}
"""Keys of a report that say how long something took, or where a step was taken from."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Kills and resumes, and writes the results after every kill."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=None, help="begin no further kill after that")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--more", action="store_true", help="add to the results that are there, up to --kills")
    options = parser.parse_args(arguments)
    rows: list[Row] = json.loads(options.results.read_text())["rows"] if options.more else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _load()
        lengths = []
        for _ in range(2):  # the first also loads what is left to be loaded from the disk
            shutil.rmtree(folder / "whole", ignore_errors=True)
            start = time.perf_counter()
            _ended(_started(folder / "whole"))
            lengths.append(time.perf_counter() - start)
        whole, length = _values(folder / "whole"), lengths[-1]
        say(f"unbroken: {length:.1f} s")
        dice, begun = random.Random(options.seed + len(rows)), time.monotonic()
        for number in range(len(rows), options.kills):
            if options.minutes is not None and time.monotonic() - begun > 60 * options.minutes:
                break
            row = None
            while row is None:  # where a run was faster than the unbroken one, and had ended by then
                shutil.rmtree(folder / str(number), ignore_errors=True)
                row = _killed(folder / str(number), dice.uniform(0, length), whole)
            rows.append(row)
            say(f"{number + 1}: {row}")
            shutil.rmtree(folder / str(number))
            summary = {"unbroken_seconds": round(length, 2), "seed": options.seed, "values": len(whole)}
            content = {**summary, "rows": rows}
            options.results.parent.mkdir(exist_ok=True)
            options.results.write_text(json.dumps(content, indent=1) + "\n")
    options.results.with_suffix(".md").write_text(as_table(json.loads(options.results.read_text())))


def _killed(root: Path, seconds: float, whole: dict[str, Any]) -> Row | None:
    """One kill, what it hit, and what came of the run that went on; None if the run had ended."""
    root.mkdir()
    pid = _started(root)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
        return None
    hit = _stage(root)
    start = time.perf_counter()
    status = _ended(_started(root))
    resumed = time.perf_counter() - start
    found = _values(root) if status == 0 else {}
    differing = sorted(key for key in whole.keys() | found.keys() if whole.get(key) != found.get(key))
    return {
        "after_seconds": round(seconds, 2),
        "hit": hit,
        "resumed_seconds": round(resumed, 2),
        "status": status,
        "runs": len(list(root.glob("*/*/run.json"))),
        "differing": differing[:5],
    }


def _load() -> None:
    """All that a run loads, so that its copies have it."""
    import onnx
    import onnxruntime
    import onnxscript
    import torch

    from edgedl import checkpoint, pipeline, recipe
    from edgedl.models.mlp import MLP
    from edgedl.tasks.digits import Digits

    del onnx, onnxruntime, onnxscript, pipeline
    recipe.parse(RECIPE, Path("faults.toml"))
    torch.set_num_threads(1)
    task = Digits()
    task.arrays("train")
    # The exporter loads most of its parts when it is first used.
    from edgedl.onnx.export import exported
    from edgedl.quantize.simulate import export_graph

    net = MLP(widths=(4,)).build(task).eval()
    exported(net, task, 1)
    export_graph(net, task)
    checkpoint.EVERY_SECONDS, checkpoint.SHARE = 0.0, float("inf")


def _started(root: Path) -> int:
    """A copy of this process that runs the recipe, and nothing else."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        from edgedl import pipeline, recipe

        pipeline.compress(recipe.parse(RECIPE, Path("faults.toml")), RECIPE, root)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _stage(root: Path) -> str:
    """What was under way when it was killed, as far as the folder tells."""
    folders = list(root.glob("*/*"))
    if not folders:
        return "before the run"
    (folder,) = folders
    for partial in folder.rglob(".*.partial"):
        if partial.parent != folder:
            return f"writing {partial.parent.relative_to(folder).parts[0]}"
    if any((folder / "checkpoints").glob("*")):
        steps = len(list(folder.glob("steps/*")))
        return "quantizing" if steps == 3 else ("training", "pruning", "pruning")[min(steps, 2)]
    try:
        stages = list(json.loads((folder / "run.json").read_text()))
    except (OSError, ValueError):
        return "before the run"
    if (folder / "report.json").exists():
        return "at the very end"
    built = len(list(folder.glob("targets/*/*/built.json")))
    return f"after {stages[-1]}" + (f", {built} files built" if built else "")


def _values(root: Path) -> dict[str, Any]:
    """Every value of the only finished run's report but times, by its path, and the digest of every file."""
    from edgedl import files

    report = max(root.glob("*/*/report.json"))  # one that was killed at its very end is not gone on with
    found: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key not in OF_TIME:
                    walk(f"{path}/{key}", inner)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(f"{path}/{index}", inner)
        else:
            found[path] = value

    walk("", json.loads(report.read_text()))
    for pattern in ("steps/*/weights.safetensors", "targets/*/*/model.*", "quantization/*.json"):
        for file in report.parent.glob(pattern):
            found[str(file.relative_to(report.parent))] = files.sha256(file)
    return found


def as_table(results: dict[str, Any]) -> str:
    """Where kills fell, and what became of them."""
    rows: list[Row] = results["rows"]
    same = [row for row in rows if row["status"] == 0 and not row["differing"]]
    fell = Counter(row["hit"] for row in rows)
    good = Counter(row["hit"] for row in same)
    lines = [
        "# Kills and resumes",
        "",
        f"{len(rows)} runs were killed at moments drawn evenly over the time that an unbroken one takes, which was "
        f"{results['unbroken_seconds']} s when last taken, and started again: {len(same)} of {len(rows)} came to the "
        f"same {results['values']} values and digests of files. Written by `python -m benchmarks.faults`.",
        "",
        "| killed | times | the same report after a resume |",
        "|---|---|---|",
        *(f"| {hit} | {times} | {good[hit]} |" for hit, times in fell.most_common()),
    ]
    for row in rows:
        if row not in same:
            lines += [
                "",
                f"Not so after {row['after_seconds']} s ({row['hit']}): status {row['status']}, {row['differing']}",
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
