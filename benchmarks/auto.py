"""What method "auto" ships, against the best file of AI Edge Quantizer, chosen by hand after measuring all of them.

    python -m benchmarks.auto --networks transformer --seeds 0

Each network goes through `edgedl compress` as it is: all forms are built, judged on validation data, measured, and one
is shipped or the float file kept. Then that file and all of AI Edge Quantizer's are timed in turn in one process.
Chosen by hand means with the test scores known: the fastest file whose test score is within the same limit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from benchmarks import networks
from benchmarks.networks import FLOAT_FILES, SUBJECTS
from benchmarks.quantization import compress, judge, kind, parser_of
from benchmarks.rows import Row, read, say, write
from edgedl import pipeline, recipe, run
from edgedl.core import Network, Task

RESULTS = Path(__file__).parent / "results" / "auto.json"
PEER = "ai_edge_quantizer"
LIMITS = {"generator": 0.0002}
"""By how much a score may drop: a point of accuracy, or a tenth of the generator's mean squared error."""


class Trained(Network):
    """A network that `networks.prepare` has trained."""

    use: str = "benchmarks.auto:Trained"
    name: str
    folder: str

    def build(self, task: Task) -> nn.Module:
        """The network with its weights."""
        return networks.load(SUBJECTS[self.name], Path(self.folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """Compresses and measures what is missing; the results are written after every network."""
    options = parser_of("auto", __doc__ or "", SUBJECTS, RESULTS).parse_args(arguments)
    for name in options.networks:
        for seed in options.seeds:
            rows = read(options.results)
            own = [row for row in rows if (row["network"], row["seed"]) == (name, seed)]
            if options.fresh or not own:
                rows = [row for row in rows if row not in own] + compare(name, seed, options.cache.resolve())
                write(
                    options.results, sorted(rows, key=lambda row: (list(SUBJECTS).index(row["network"]), row["seed"]))
                )


def compare(name: str, seed: int, cache: Path) -> list[Row]:
    """A row for every runtime: what is shipped there, and for LiteRT what the peer's best file is worth beside it."""
    source = networks.prepare(name, seed, cache / "networks" / f"{name}-{seed}")
    say(f"{source.name}: auto")
    text = recipe_of(name, source)
    finished = pipeline.compress(recipe.parse(text, source / "auto.toml"), text, cache / "auto")
    report = run.read_report(finished.folder)
    shipped = {verdict["target"]: shipped_row(report, verdict) for verdict in report["verdicts"]}
    rows = []
    for use, found in shipped.items():
        tried = [row["variant"] for row in report["rows"] if row["target"] == use and row["variant"] != "float"]
        facts = {key: found[key] for key in ("variant", "score", "size_bytes", "speedup")}
        rows.append({"network": name, "seed": seed, "runtime": use, "tried": tried, "auto": facts})
    rows[0]["limit"] = LIMITS.get(name, 0.01)
    return [beside_peer(rows[0], source, finished.folder / shipped["tflite"]["file"], cache), *rows[1:]]


def recipe_of(name: str, source: Path) -> str:
    """The whole recipe: method "auto" on the trained network."""
    model = json.dumps({"use": "benchmarks.auto:Trained", "name": name, "folder": str(source)})
    return f"""name = "{source.name}"
task = {{ use = "{_path(SUBJECTS[name].task)}" }}
model = {model.replace('": ', '" = ')}
steps = [{{ use = "quantize", precision = "int8", method = "auto" }}]
targets = [{{ use = "tflite" }}, {{ use = "onnxruntime" }}]
limits = {{ score_drop = {LIMITS.get(name, 0.01)} }}
"""


def shipped_row(report: Row, verdict: Row) -> Row:
    """The report's row of the file that a verdict ships."""
    (found,) = (
        row for row in report["rows"] if (row["target"], row["variant"]) == (verdict["target"], verdict["ship"])
    )
    return dict(found)


def beside_peer(row: Row, source: Path, file: Path, cache: Path) -> Row:
    """The row with `peer`: the best of the peer's files, and `auto` measured once more, in turn with them."""
    from benchmarks.peers.ai_edge_quantizer import FILES

    output = cache / "files" / source.name / PEER
    present = all((output / f"{name}.json").exists() for name in FILES)
    made = {name: json.loads((output / f"{name}.json").read_text()) for name in FILES} if present else None
    made = made or compress(PEER, source, output, list(FILES), cache)
    built: list[tuple[Row, Path]] = [({"peer": "float", "file": FLOAT_FILES["tflite"]}, source / FLOAT_FILES["tflite"])]
    built += [({"peer": "edgedl", "file": "auto.tflite"}, file)]
    built += [({"peer": PEER, "file": name} | facts, output / name) for name, facts in made.items()]
    subject = SUBJECTS[row["network"]]
    judge(subject.task, *networks.reference(subject, source), built)
    metric, reference = subject.task.metric, built[0][0]["reference_score"]
    sound = [
        own for own, _ in built[2:] if "failed" not in own and metric.drop(reference, own["score"]) <= row["limit"]
    ]
    best = max(sound, key=lambda own: own["speedup"]["median"], default=None)
    keys = ("score", "snr_db", "speedup", "size_bytes")
    ours = built[1][0]
    assert kind(ours) == "auto"
    return row | {
        "reference_score": reference,
        "auto": row["auto"] | {key: ours[key] for key in keys},
        "peer": None if best is None else {"file": best["file"]} | {key: best[key] for key in keys},
    }


def _path(task: Task) -> str:
    return f"{type(task).__module__}:{type(task).__name__}"


if __name__ == "__main__":
    main()
