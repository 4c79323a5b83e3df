"""The run folder: everything that a run made, readable without edgedl. Its presence of `report.json` means finished."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import __version__, files
from edgedl.core import Artifact, Model, Target, UsageError
from edgedl.pruning import structure
from edgedl.recipe import Recipe

if TYPE_CHECKING:
    import torch

try:
    import fcntl
except ModuleNotFoundError:  # Windows: a run that is under way looks like an interrupted one
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
"""Version of `report.json`; it rises when a key changes its meaning or goes."""
KEYS = {"edgedl", "recipe", "environment", "metric", "parameters", "steps", "rows", "ladder", "verdicts"}
"""What every report has besides `schema`."""
DEVICES_SCHEMA = 1
"""Version of `devices/*.json`; it rises when a key changes its meaning or goes."""
DEVICES_KEYS = {"device", "timed", "environment", "rows", "left_out", "warnings"}
RECIPE, BUILT = "recipe.toml", "built.json"
ARTIFACT_FACTS = ("precision", "status", "reason", "versions", "built_for", "rewrites", "notes")
"""What an artifact says besides where its files are."""


@dataclass(frozen=True)
class Run:
    """A folder `<root>/<recipe>/<time>/` on its way from `recipe.toml` to `report.json`."""

    folder: Path
    recipe: Recipe

    @classmethod
    def create(cls, recipe: Recipe, source: str, root: Path) -> Run:
        """A new folder with the recipe as read. Raises `UsageError` where it cannot be written."""
        parent = root / recipe.name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = _unused(parent / _now())
            folder.mkdir()
            run = cls(folder, recipe)
            files.write_text(folder / RECIPE, source)
            run.note_stage("created", _facts(recipe))
        except OSError as error:
            raise UsageError(
                f"{parent}: cannot write a run there: {error.strerror}; choose another with --out"
            ) from error
        return run

    @classmethod
    @contextmanager
    def started(cls, recipe: Recipe, source: str, root: Path, fresh: bool = False) -> Iterator[Run]:
        """The last run of this very recipe, if it was interrupted, under the time of now; else, or `fresh`, a new one.

        While the block runs the folder is locked, so that nobody else takes it for interrupted.
        Raises `UsageError` where it cannot be written.
        """
        with contextlib.ExitStack() as held:
            run = None if fresh else cls._resumed(recipe, source, root, held)
            if run is None:
                run = cls.create(recipe, source, root)
                held.enter_context(locked(run.folder))
            yield run

    @classmethod
    def _resumed(cls, recipe: Recipe, source: str, root: Path, held: contextlib.ExitStack) -> Run | None:
        newest = max((folder for folder in (root / recipe.name).glob("*") if is_run(folder)), default=None)
        if newest is None or any((newest / name).exists() for name in ("report.json", "analysis.json")):
            return None
        if (newest / RECIPE).read_bytes() != source.encode() or not held.enter_context(locked(newest)):
            return None
        folder = _unused(newest.with_name(_now()))
        try:
            newest.rename(folder)
            for partial in [*folder.rglob(".*.partial")]:  # what was being written when it was killed
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
            run = cls(folder, recipe)
            before = run.stages().get("created", {}).get("resumed", 0)
            run.note_stage("created", _facts(recipe) | {"resumed": before + 1 if isinstance(before, int) else 1})
        except OSError as error:
            raise UsageError(f"{newest}: cannot be gone on with: {error.strerror}; choose another --out") from error
        return run

    @property
    def log(self) -> Path:
        """What libraries said meanwhile."""
        return self.folder / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """What a stage that is under way has come to."""
        return self.folder / "checkpoints"

    def drop_checkpoints(self) -> None:
        """When the stage is done that they were kept for."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    def best(self, target: str | None = None) -> Path:
        """What ships for a target: a file or, of a network that is several graphs, the folder of theirs.

        `target` may be left out where there is but one. Raises `UsageError` where nothing may ship, with the reason.
        """
        report = read_report(self.folder)
        verdicts = {verdict["target"]: verdict for verdict in report["verdicts"]}
        names = {row["target"] for row in report["rows"]}
        if target is None and len(names) == 1:
            (target,) = names
        if target not in names:
            raise UsageError(f"{self.folder}: no target {target or 'named'}; there are: {', '.join(sorted(names))}")
        rows = {row["variant"]: row for row in report["rows"] if row["target"] == target}
        verdict = verdicts.get(target, {"ship": "none", "why": rows["float"]["reason"]})
        if verdict["ship"] not in rows:
            raise UsageError(f"{self.folder}: nothing ships for {target}: {verdict['why']}")
        return self.folder / str(rows[verdict["ship"]]["file"])

    def _repr_html_(self) -> str:
        """The tables of the report, for a notebook."""
        from edgedl.report.terminal import as_html

        return as_html(read_report(self.folder))

    def stages(self) -> dict[str, dict[str, Any]]:
        """What `run.json` says of each stage that has finished, in their order."""
        return read_stages(self.folder)

    def note_stage(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Adds a finished stage to `run.json`."""
        stages = self.stages()
        stages.pop(stage, None)
        stages[stage] = {"finished": datetime.now().isoformat(timespec="seconds"), **facts}
        files.write_json(self.folder / "run.json", stages)

    def save_step(self, index: int, model: Model, key: str) -> None:
        """Keeps what a step did, with the weights if it learned: safetensors and JSON, no pickle."""
        step = self.recipe.steps[index]
        final = self.folder / "steps" / f"{index:02}-{step.label}"
        if final.exists():  # an interrupted run goes on
            if files.sealed(final, structure.STEP, key) is not None:
                return
            shutil.rmtree(final)
        with files.filled_folder(final) as folder:
            files.write_json(folder / "metrics.json", model.lineage[-1].metrics)
            if step.learns:
                from safetensors.torch import save

                # Copies: tensors that share memory, as tied weights do, are refused.
                weights = {name: value.clone().contiguous() for name, value in model.net.state_dict().items()}
                (folder / "weights.safetensors").write_bytes(save(weights))
                made = {"model": self.recipe.network_after(index).model_dump(), "task": self.recipe.task.model_dump()}
                files.write_json(folder / "structure.json", made | {"shapes": structure.describe(model.net)})
            files.seal(folder, structure.STEP, {"step": step.model_dump(), "key": key})
        self.note_stage(f"steps/{index:02}-{step.label}", {})

    def save_quantization(self, model: Model) -> None:
        """Keeps the grids of every scheme that was used, and how each calibrator and correction did."""
        if model.quantization is None:
            return
        for graph, plan in (model.quantization.graphs or {"": model.quantization}).items():
            folder = self.folder / "quantization" / graph
            folder.mkdir(parents=True, exist_ok=True)
            for scheme, simulation in plan.calibrated.items():
                tried = {name: vars(trial) for name, trial in simulation.tried.items()}
                calibrator, *corrections = simulation.choice
                chosen = {"chosen": " + ".join(simulation.choice), "calibrator": calibrator, "corrections": corrections}
                content = {**chosen, "tried": tried, "grids": simulation.grids()}
                files.write_json(folder / f"{scheme}.json", content)

    @contextmanager
    def building(self, variant: str, target: Target) -> Iterator[Path]:
        """The folder to build one target's files in; it gets its name when all are written."""
        final = self.target_folder(variant, target)
        if final.exists():  # of an interrupted run, and not what is to be built now
            shutil.rmtree(final)
        with files.filled_folder(final) as folder:
            yield folder

    def built(self, variant: str, target: Target, key: str) -> Artifact | None:
        """What this run had built before it was interrupted, if it depends on the same and is as it was."""
        folder = self.target_folder(variant, target)
        found = files.sealed(folder, BUILT, key)
        return None if found is None else read_artifact(found, folder)

    def target_folder(self, variant: str, target: Target) -> Path:
        """`targets/<variant>/<target>`; of several alike, each has its place among them behind its name."""
        same = [other for other in self.recipe.targets if other.label == target.label]
        suffix = f"-{same.index(target)}" if len(same) > 1 else ""
        return self.folder / "targets" / variant / f"{target.label}{suffix}"

    def moved(self, artifact: Artifact, built_in: Path, variant: str, target: Target) -> Artifact:
        """The artifact under the folder's final name."""
        final = self.target_folder(variant, target)
        stand_in = final / artifact.stand_in.relative_to(built_in) if artifact.stand_in else None
        graphs = {name: final / file.relative_to(built_in) for name, file in artifact.graphs.items()}
        return replace(artifact, file=final / artifact.file.relative_to(built_in), stand_in=stand_in, graphs=graphs)

    def finish(self, report: dict[str, Any]) -> None:
        """Writes `report.json`, the last file: whoever finds it finds a finished run."""
        self.drop_checkpoints()
        files.write_json(self.report, report)


def write_artifact(artifact: Artifact, folder: Path, key: str) -> None:
    """Writes what was built into a folder, and what it depends on, so that an interrupted run knows it again."""
    inside = {name: getattr(artifact, name) for name in ("file", "stand_in")}
    content = {
        "key": key,
        **{name: None if path is None else str(path.relative_to(folder)) for name, path in inside.items()},
        **{name: getattr(artifact, name) for name in ARTIFACT_FACTS},
        "graphs": {name: str(file.relative_to(folder)) for name, file in artifact.graphs.items()},
    }
    files.seal(folder, BUILT, content)


def read_artifact(content: Mapping[str, Any], folder: Path) -> Artifact:
    """What `write_artifact` wrote."""
    return Artifact(
        file=folder / content["file"],
        stand_in=None if content["stand_in"] is None else folder / content["stand_in"],
        graphs={name: folder / file for name, file in content["graphs"].items()},
        **{name: content[name] for name in ARTIFACT_FACTS if name != "notes"},
        notes=tuple(content["notes"]),
    )


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keeps a run's folder from others meanwhile; yields False where another has it. The lock ends with the process."""
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(folder / RECIPE, os.O_RDONLY)
    except OSError:
        yield False
        return
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    except OSError:  # a file system without locks
        free = True
    try:
        yield free
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


_held: set[int] = set()
"""Descriptors that hold locks."""


def _let_go() -> None:
    """A child that outlives this process must not keep its runs locked."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return (folder / "run.json").is_file() and (folder / RECIPE).is_file()


def find_finished(name: str, root: Path) -> Path:
    """The folder of a finished run: a path, or a recipe's name for its latest. Raises `UsageError`."""
    given = Path(name)
    folder = given.parent if given.name == "report.json" else given
    if (folder / "report.json").is_file():
        return folder
    finished = [] if given.is_absolute() else sorted((root / name).glob("*/report.json"))
    if finished:
        return finished[-1].parent
    if folder.is_dir():
        raise UsageError(f"{folder}: no report.json there: the run did not finish, or it is no run folder")
    known = ", ".join(sorted({file.parent.parent.name for file in root.glob("*/*/report.json")})) or "none"
    raise UsageError(f'no run "{name}": give its folder, or a recipe that has finished under {root} ({known})')


def read_stages(folder: Path) -> dict[str, dict[str, Any]]:
    """What a run's `run.json` says of each stage; nothing where it is damaged, since no result hangs on it."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: facts for name, facts in found.items() if isinstance(facts, dict)} if isinstance(found, dict) else {}


@contextmanager
def looked_into(folder: Path, *others: type[Exception]) -> Iterator[None]:
    """Inside, a run's report is taken apart. Raises `UsageError` where it is not made as reports are.

    `others` are what is raised there of values that cannot be shown.
    """
    strange: tuple[type[Exception], ...] = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)
    try:
        yield
    except strange + others as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{folder / 'report.json'}: damaged, or a file of the run beside it: {type(error).__name__}: {said}"
        ) from error


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished run. Raises `UsageError` if it is damaged or of another schema."""
    file = folder / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        found = report.get("schema") if isinstance(report, dict) else None
        raise UsageError(f"{file}: schema {found}, but this edgedl reads schema {SCHEMA}")
    if lacking := KEYS - set(report):
        raise UsageError(f"{file}: damaged: it lacks {', '.join(sorted(lacking))}")
    return report


def read_devices(folder: Path) -> list[dict[str, Any]]:
    """What was found of a run's files on each device; what this version cannot read is left out."""
    found = []
    for file in sorted((folder / "devices").glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("schema") == DEVICES_SCHEMA and set(content) >= DEVICES_KEYS:
            found.append(content)
    return found


def find_weights(root: Path, key: str) -> Path | None:
    """The weights that an earlier run kept for the same step on the same data by the same code, if any."""
    for file in sorted(root.glob(f"*/*/steps/*/{structure.STEP}"), reverse=True):
        if files.sealed(file.parent, structure.STEP, key) is not None:
            return file.with_name("weights.safetensors")
    return None


def load_weights(net: torch.nn.Module, file: Path) -> None:
    """Gives a freshly built network the shapes and weights of one in a run folder, in place.

    Raises `UsageError` for one that is damaged.
    """
    from safetensors.torch import load_file

    structure.check_whole(file.parent)
    made = json.loads(file.with_name("structure.json").read_text(encoding="utf-8"))
    structure.reshape(net, made["shapes"])
    net.load_state_dict(load_file(file))


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%dT%H-%M-%S")


def _facts(recipe: Recipe) -> dict[str, Any]:
    return {"edgedl": __version__, "command": shlex.join(sys.argv), "seed": recipe.seed}


def _unused(folder: Path) -> Path:
    candidate, count = folder, 2
    while candidate.exists():
        candidate, count = Path(f"{folder}-{count}"), count + 1
    return candidate
