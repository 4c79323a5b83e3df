"""The joint recipe against its parts: pruned, taught and quantized ResNet-8s out of one float network, in one table.

    python -m benchmarks.joint --seeds 0 1 2

Runs what has not finished under `--runs` yet, as `edgedl compress --recipe` would, keeps figures of the reports in
`results/joint.json`, and writes their table into `docs/joint.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.rows import Row
from edgedl import pipeline, recipe, run
from edgedl.devices import local
from edgedl.recipe import Recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "joint.json"
DOCUMENT = HERE.parent / "docs" / "joint.md"
START, END = "<!-- table of benchmarks/joint.py -->\n", "<!-- end of table -->\n"
RUNTIMES = ("tflite", "onnxruntime")
FLOAT = "as trained, float"
FORMS = {
    "PTQ alone": str(HERE / "recipes" / "resnet8-ptq.toml"),
    "pruned, PTQ": str(HERE / "recipes" / "resnet8-p50-ptq.toml"),
    "pruned, trained on, PTQ": str(HERE / "recipes" / "resnet8-p50-ft-ptq.toml"),
    "pruned, trained on, QAT": str(HERE / "recipes" / "resnet8-p50-ft-qat.toml"),
    "pruned, taught, PTQ": str(HERE / "recipes" / "resnet8-p50-kd-ptq.toml"),
    "pruned, taught as long, PTQ": str(HERE / "recipes" / "resnet8-p50-kd26-ptq.toml"),
    "**joint: pruned, taught, QAT**": "resnet8-p50-kd-qat",
}
"""What a network is made by; the float one is that of the last, and the same in all."""


def main() -> None:
    """Makes what is missing, one seed after the other, and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint", description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders lie")
    options = parser.parse_args()
    rows: list[Row] = []
    for seed in options.seeds:
        for form, name in FORMS.items():
            rows += figures(form, seed, finished(name, seed, options.runs))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"device": local.describe(), "rows": rows}, indent=1) + "\n")
    write_table(DOCUMENT, markdown(rows))


def finished(name: str, seed: int, root: Path) -> Mapping[str, Any]:
    """The report of the latest finished run of a recipe with this seed and these steps, made if there is none."""
    file = recipe.find(name)
    source = seeded(file.read_text(encoding="utf-8"), seed)
    wanted = recipe.parse(source, file)
    for report in sorted(root.glob(f"{wanted.name}/*/report.json"), reverse=True):
        found = run.read_report(report.parent)
        if _decides(found["recipe"]) == _decides(wanted.model_dump(mode="json")):
            return found
    return run.read_report(pipeline.compress(wanted, source, root).folder)


def seeded(source: str, seed: int) -> str:
    """A recipe's text with another seed."""
    changed = source.replace("\nseed = 0\n", f"\nseed = {seed}\n")
    assert recipe.tomllib.loads(changed)["seed"] == seed
    return changed


def _decides(content: Mapping[str, Any]) -> list[Any]:
    """The part of a recipe on which its files depend."""
    return [content[key] for key in Recipe.model_fields if key in ("seed", "task", "model", "steps")]


def figures(form: str, seed: int, report: Mapping[str, Any]) -> list[Row]:
    """What the table needs of a run: each deployed file that was measured; the float ones of the joint recipe alone."""
    rows = []
    for found in report["rows"]:
        is_float = found["variant"] == "float"
        if found["latency_ms"] is None or (is_float and form != list(FORMS)[-1]):
            continue
        row = {"form": FLOAT if is_float else form, "seed": seed, "speedup": found["speedup"]}
        keys = ("target", "variant", "score", "size_bytes", "latency_ms")
        rows.append(row | {key: found[key] for key in keys})
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """One line a form and runtime: means over the seeds, medians for times."""
    lines = ["| runtime | network | score | change | bytes | smaller | latency | faster |", f"|{' --- |' * 8}"]
    for runtime in RUNTIMES:
        whole = [row for row in rows if (row["target"], row["form"]) == (runtime, FLOAT)]
        for form in (FLOAT, *FORMS):
            done = [row for row in rows if (row["target"], row["form"]) == (runtime, form)]
            assert [row["seed"] for row in done] == [row["seed"] for row in whole]
            scores, sizes = [row["score"] for row in done], [row["size_bytes"] for row in done]
            drops = [own - row["score"] for own, row in zip(scores, whole, strict=True)]
            ratios = [row["size_bytes"] / own for own, row in zip(sizes, whole, strict=True)]
            speedups = [row["speedup"]["median"] if row["speedup"] else 1.0 for row in done]
            cells = [
                runtime,
                form,
                _spread(scores),
                f"{mean(drops):+.4f}",
                f"{mean(sizes):,.0f}",
                f"{mean(ratios):.2f}×",
                f"{median(row['latency_ms']['median'] for row in done) * 1000:.1f} µs",
                f"{median(speedups):.2f}×",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table(document: Path, table: str) -> None:
    """Puts the table between its two marks."""
    head, _, rest = document.read_text(encoding="utf-8").partition(START)
    _, _, tail = rest.partition(END)
    document.write_text(f"{head}{START}\n{table}\n{END}{tail}", encoding="utf-8")


def _spread(values: Sequence[float]) -> str:
    ends = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{mean(values):.4f}{ends}"


if __name__ == "__main__":
    main()
