"""Whether bad input is told in a line: files and recipes with flipped bits, cut short, or with odd values in them.

    taskset -c 1 python -m benchmarks.fuzz              # 10,000 cases; about half an hour of a core

Each case is one that a person could come by: a model file, weights, data or a recipe, damaged by chance, given to what
reads it. It has to be read, or refused by an `EdgedlError` of one line; anything else, such as a crash of this process,
another exception, or a file that was written, is a finding. What holds code gets a case of its own: it must not run.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import say
from edgedl.core import EdgedlError

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
RECIPE = """\
description = "A small network."
seed = 0
task = { use = "digits" }
model = { use = "cnn", widths = [8, 16], hidden = 32 }
steps = [
  { use = "train", epochs = 3, lr = 3e-3, optimizer = "adam" },
  { use = "prune", ratio = 0.4, round_to = 8 },
  { use = "distill", student = { use = "cnn", widths = [4] }, epochs = 1 },
  { use = "quantize", precision = "int8", method = "ptq", corrections = ["headroom"] },
]
targets = [ { use = "tflite", threads = 1 }, { use = "onnxruntime", max_batch = 4 }, { use = "tensorrt" } ]
limits = { score_drop = 0.05, slower = "allow", build_minutes = 2.5 }
bench = { batch_size = 1, min_seconds = 0.1, rounds = 5 }
"""
ODD = (
    *("-1", "0", "1e400", "nan", "-inf", "9" * 400, "true", '""', "[]", "{}", "[[[]]]", '"\\u0000"', "1979-05-27"),
    *('"../../../../etc/passwd"', f'"{"a" * 5000}"', '"ı̈😀\\u202e"', "[" * 500 + "]" * 500, "0x7fffffffffffffff"),
)
"""Values that may stand for any other in a recipe."""

Reader = Callable[[Path], object]


def samples(folder: Path) -> dict[str, tuple[bytes, Reader]]:
    """Sound files by name, and what reads each."""
    import numpy as np
    import torch
    from safetensors.torch import save

    from edgedl import api, measure, recipe, weights
    from edgedl.core import Model
    from edgedl.models.exported import Exported
    from edgedl.models.mlp import MLP
    from edgedl.models.onnx_file import OnnxFile
    from edgedl.targets.onnxruntime import OnnxRuntime
    from edgedl.targets.tflite import TFLite
    from edgedl.tasks.data import Data
    from edgedl.tasks.digits import Digits

    task = Digits()
    net = MLP(widths=(8,)).build(task).eval()
    for target in (OnnxRuntime(), TFLite()):
        target.build(Model(net=net), task, folder, 1)
    torch.save(net.state_dict(), folder / "weights.pt")
    example = (torch.zeros(2, *next(iter(task.inputs.values())).shape),)
    torch.export.save(torch.export.export(net, example), folder / "model.pt2")
    table = np.random.default_rng(0).normal(size=(40, 3)).round(3)
    np.savez(folder / "data.npz", x=table.astype(np.float32), label=np.arange(40) % 3)
    lines = [",".join(map(str, row)) + f",{index % 3}" for index, row in enumerate(table)]
    (folder / "data.csv").write_text("\n".join(["a,b,c,label", *lines]) + "\n")
    rows = [{"a": row[0], "b": row[1], "label": index % 3} for index, row in enumerate(table)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")

    def opened(file: Path) -> None:
        session = api.open(file)
        session.run(measure.random_inputs(session.inputs))

    def read_data(file: Path) -> None:
        found = Data(source=str(file))
        for split in ("train", "test"):
            found.arrays(split)

    def parsed(file: Path) -> None:
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:  # told where the file is read
            return
        recipe.parse(text, file)

    readers: dict[str, Reader] = {
        "model.onnx": opened,
        "model.tflite": opened,
        "network.onnx": lambda file: OnnxFile(source=str(file)).build(task),
        "model.pt2": lambda file: Exported(source=str(file)).build(task),
        "weights.pt": lambda file: weights.read(str(file)),
        "weights.safetensors": lambda file: weights.read(str(file)),
        "data.npz": read_data,
        "data.csv": read_data,
        "data.jsonl": read_data,
        "recipe.toml": parsed,
    }
    contents = {
        "network.onnx": (folder / "model.onnx").read_bytes(),
        "weights.safetensors": save(net.state_dict()),
        "recipe.toml": RECIPE.encode(),
    }
    return {name: (contents.get(name) or (folder / name).read_bytes(), reader) for name, reader in readers.items()}


def damaged(content: bytes, name: str, dice: random.Random) -> bytes:
    """A file as chance leaves it: cut short, with bits flipped (mostly where it begins), or values put for others."""
    kind = dice.random()
    if name == "recipe.toml" and kind < 0.8:
        return _with_odd_values(content.decode(), dice).encode()
    if kind < 0.2:
        return content[: dice.randrange(len(content))]
    changed = bytearray(content)
    reach = min(len(content), dice.choice((256, 4096, len(content))))
    for _ in range(dice.choice((1, 1, 2, 8, 64))):
        changed[dice.randrange(reach)] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _with_odd_values(text: str, dice: random.Random) -> str:
    import re

    for _ in range(dice.choice((1, 1, 2, 4))):
        values = list(re.finditer(r'"[^"\n]*"|(?<=[ \[])[\d.e-]+|\b(?:use|epochs|widths|ratio|model|task)\b', text))
        if values:
            found = dice.choice(values)
            text = text[: found.start()] + dice.choice(ODD) + text[found.end() :]
    return text


def outcome(reader: Reader, file: Path) -> str:
    """ "read", "refused", or what is wrong with what came of it."""
    before = _files(file.parent)
    try:
        reader(file)
        said = "read"
    except EdgedlError as error:
        said = "refused" if "\n" not in str(error) else f"several lines: {str(error)[:200]!r}"
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    written = _files(file.parent) - before
    return f"wrote {sorted(written)}" if written else said


def _files(folder: Path) -> set[str]:
    return {str(file) for place in (folder, folder.parent) for file in place.iterdir()}


class Code:
    """What, unpickled, makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.made),)


def with_code(folder: Path, made: Path) -> list[Path]:
    """Files that would make `made`, if what is in them ran."""
    import zipfile

    import numpy as np

    (folder / "code.pt").write_bytes(pickle.dumps(Code(made)))
    np.savez(folder / "code.npz", x=np.array([Code(made)], dtype=object), label=np.zeros(1))
    for name, inside in (("zip.pt", "archive/data.pkl"), ("code.pt2", "archive/data/sample_inputs/model.pt")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr(inside, pickle.dumps(Code(made)))
            archive.writestr("../outside", "x")
    return [folder / name for name in ("code.pt", "code.npz", "zip.pt", "code.pt2")]


def run(
    files: Mapping[str, tuple[bytes, Reader]], cases: int, seed: int, shown: Callable[[str], None] = lambda text: None
) -> dict[str, Counter[str]]:
    """So many cases, in turn of every kind of file: how often each came to what, by file."""
    found: dict[str, Counter[str]] = {}
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "given"
        place.mkdir()
        started = time.monotonic()
        for number in range(cases):
            kind = list(files)[number % len(files)]
            content, reader = files[kind]
            file = place / kind
            file.write_bytes(damaged(content, kind, dice))
            came = outcome(reader, file)
            found.setdefault(kind, Counter())[came] += 1
            if came not in ("read", "refused"):
                shown(f"{kind}: {came}")
            file.unlink()
            if number % 500 == 499:
                shown(f"{number + 1} cases, {time.monotonic() - started:.0f} s")
    return found


def code_run(reader_of: Mapping[str, Reader]) -> dict[str, str]:
    """What came of files with code in them: whether it ran, else as `outcome` says."""
    with tempfile.TemporaryDirectory() as name:
        folder, made = Path(name) / "given", Path(name) / "made"
        folder.mkdir()
        told = {}
        for file in with_code(folder, made):
            came = outcome(reader_of[file.suffix], file)
            told[file.name] = "its code ran" if made.exists() else came
        return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cases, and writes how many came to what."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        found = run(samples(Path(name)), options.cases, options.seed, say)
    content = {"cases": options.cases, "seed": options.seed, "found": found}
    options.results.write_text(json.dumps(content, indent=1) + "\n")
    options.results.with_suffix(".md").write_text(as_table(content))


def as_table(content: Mapping[str, Any]) -> str:
    """A line for each kind of file."""
    lines = [
        "# Bad input",
        "",
        f"{content['cases']} damaged files and recipes: each is read, or refused in a line; else it is a finding. "
        "Written by `python -m benchmarks.fuzz`.",
        "",
        "| file | read | refused | findings |",
        "|---|---|---|---|",
    ]
    for kind, came in content["found"].items():
        bad = [f"{times}: {said}" for said, times in came.items() if said not in ("read", "refused")]
        lines.append(f"| {kind} | {came.get('read', 0)} | {came.get('refused', 0)} | {'; '.join(bad) or 'none'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
