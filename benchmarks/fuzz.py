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

from benchmarks.fuzz_samples import ODD, TEXTS, Reader, Sample, samples
from benchmarks.rows import say
from edgedl import refusals
from edgedl.core import EdgedlError

RESULTS = Path(__file__).parent / "results" / "fuzz.json"


def damaged(sample: Sample, name: str, dice: random.Random) -> bytes:
    """A file as chance leaves it: cut short, with bits flipped (mostly where it begins), or values put for others.

    Texts also come in other encodings, or with letters that no encoding has.
    """
    content = sample.content if sample.made is None else sample.made(dice)
    kind = dice.random()
    if sample.made is not None and kind < 0.8:  # it is hostile as it is
        return content
    ending = name.rpartition(".")[2]
    if ending == "toml" and kind < 0.8:
        return _with_odd_values(content.decode(), dice).encode()
    if ending in TEXTS and kind < 0.4:
        return _encoded(content.decode(), dice)
    if ending == "json" and kind < 0.8:
        return _with_odd_parts(content, dice)
    if dice.random() < 0.2:
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


def _encoded(text: str, dice: random.Random) -> bytes:
    place = dice.randrange(len(text))
    odd = dice.choice(
        ("\x00", "\ufeff", "\x1b[31m", "ü", "\u202e", "\\ud800", "\udcff", '"', "\r", "," * 300, "9" * 5000)
    )
    text = text[:place] + odd + text[place + dice.choice((0, 1)) :]
    encoding = dice.choice(
        ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-7", "latin-1", "cp037", "shift-jis")
    )
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def _with_odd_parts(content: bytes, dice: random.Random) -> bytes:
    """JSON of which something is gone, or is something else."""
    value = json.loads(content)
    for _ in range(dice.choice((1, 1, 3))):
        here, key = [value], 0
        while isinstance(here[key], dict | list) and here[key] and (here[key] is value or dice.random() < 0.8):
            here = here[key]
            key = dice.choice(list(here)) if isinstance(here, dict) else dice.randrange(len(here))
        if dice.random() < 0.3 and here[key] is not value:
            del here[key]
        else:
            here[key] = dice.choice(
                (None, True, -1, 0, 1e308, "", "ü" * 300, "../../etc", [], {}, [[]], {"use": []}, "nan")
            )
    return json.dumps(value).encode()


def outcome(reader: Reader, file: Path) -> str:
    """ "read", "refused", or what is wrong with what came of it.

    What is written has to be where runs are, beside the folder of the file.
    """
    before = _files(file.parent)
    try:
        reader(file)
        said = "read"
    except EdgedlError as error:
        said = "refused" if "\n" not in str(error) else f"several lines: {str(error)[:200]!r}"
    except OSError as error:  # what the machine refuses, which the program says in a line
        said = "refused" if error.errno in refusals.OF_THE_MACHINE else _finding(error)
    except Exception as error:
        said = _finding(error)
    written = _files(file.parent) - before
    return f"wrote {sorted(written)}" if written else said


def _finding(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


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
    files: Mapping[str, Sample], cases: int, seed: int, shown: Callable[[str], None] = lambda text: None
) -> dict[str, Counter[str]]:
    """So many cases, in turn of every kind, of those that take long every fourth time: how often each came to what."""
    found: dict[str, Counter[str]] = {}
    dice = random.Random(seed)
    turns = [kind for turn in range(4) for kind, sample in files.items() if turn == 0 or not sample.is_slow]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "given"
        place.mkdir()
        started = time.monotonic()
        for number in range(cases):
            kind = turns[number % len(turns)]
            file = place / kind
            file.write_bytes(damaged(files[kind], kind, dice))
            came = outcome(files[kind].reader, file)
            found.setdefault(kind, Counter())[came] += 1
            if came not in ("read", "refused"):
                shown(f"case {number}, {kind}: {came}")
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
