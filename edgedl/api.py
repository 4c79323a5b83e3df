"""The Python interface: what the commands do, for a module and data that a person has in hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgedl import benching, comparison, own_recipe, plugins, recipe, run
from edgedl import progress as stages
from edgedl.core import EdgedlError, ModelFileError, Session, UsageError
from edgedl.run import Run

if TYPE_CHECKING:
    from torch import nn

    from edgedl.core import Batch, Bench, Limits, Network, Step, Target, Task

__all__ = ["EdgedlError", "Run", "bench", "compare", "compress", "load_run", "open"]

Table: TypeAlias = Mapping[str, Any]
"""A part as in a recipe's file: `{"use": "prune", "ratio": 0.5}`."""


def compress(
    model: nn.Module | Network | Table | str | Path,
    data: Any = None,
    *,
    task: Task | Table | str | None = None,
    label: str | None = None,
    metric: str | Callable[[Batch, Batch], float] | None = None,
    images: Table | None = None,
    steps: Sequence[Step | Table | str] = ("quantize",),
    targets: Sequence[Target | Table | str] = ("tflite", "onnxruntime"),
    limits: Limits | Table | None = None,
    bench: Bench | Table | None = None,
    max_batch: int | None = None,
    dynamic: Sequence[str] = (),
    name: str | None = None,
    seed: int = 0,
    out: str | Path = "runs",
    fresh: bool = False,
    progress: bool = True,
) -> Run:
    """Compresses a network, exports it for every target, and measures the files; the module is never changed.

    `model`: a module, the name of a family of edgedl's, "my_package.my_module:build", or a file: .pt2, .onnx, .keras,
    a folder of transformers. `data`: arrays, (inputs, labels), by name, a torch data set or loader, a file or folder;
    or else a `task`, one of edgedl's or of one's own. Without labels, files are held against the float network.
    `metric`: a name, or a function of outputs and batch by name whose score is the better the larger it is.
    `images` says what is done to images among the data, and which the files take: `size`, `mean`, `std`, `layout`, and
    with `uint8_input` pixels from 0 to 255, which they normalize themselves, with `channels_last` (H, W, C).
    With `max_batch`, files take batches of 1 to so many samples, and not only those of `bench`'s size.
    `dynamic` names dimensions that files take in other sizes, too, where a target can: "tokens.1=length:1-128" is
    dimension 1 of the input tokens; without a range it is from 2 to the size of the data.
    `steps`, `targets`, `limits` and `bench` are those of a recipe. With `fresh`, no step is taken from earlier runs.

    Raises `EdgedlError`, whose text says what to do.
    """
    wanted, text = own_recipe.make(
        model, data, task=task, label=label, metric=metric, images=images, steps=steps, targets=targets, limits=limits,
        bench=bench, name=name, seed=seed, max_batch=max_batch, dynamic=dynamic,
    )  # fmt: skip
    plugins.require(wanted.needed_targets)
    from edgedl import pipeline
    from edgedl.report import page

    with stages.display() if progress else nullcontext():
        made = pipeline.compress(wanted, text, Path(out), fresh=fresh)
    if plugins.installed("jinja2") and plugins.installed("plotly"):
        page.write_page(run.read_report(made.folder), made.folder)
    return made


def load_run(folder: str | Path, root: str | Path = "runs") -> Run:
    """A finished run: its folder, or a recipe's name for its latest under `root`. Raises `UsageError`."""
    found = run.find_finished(str(folder), Path(root))
    run.read_report(found)
    return Run(found, recipe.load(str(found / "recipe.toml")))


def bench(*paths: str | Path, vs: str | Path | None = None, threads: int = 1, seconds: float = 3.0) -> list[Table]:
    """Measures exported files in turn, each against `vs` if given: a row a file, as `edgedl bench --json` prints them.

    Raises `ModelFileError` for a file that cannot be opened.
    """
    if not paths:
        raise UsageError("bench needs at least one file")
    return list(benching.bench([*map(Path, paths)], Path(vs) if vs else None, None, None, threads, seconds, False))


def compare(*runs: str | Path, root: str | Path = "runs") -> list[dict[str, Any]]:
    """The files of finished runs side by side: a row a file, as `edgedl compare --json` prints them.

    `front` in a row says that no other file that may ship, of those it can be compared with, is as good in score,
    latency and size and better in one of them. Runs are named by folder, or by recipe for the latest under `root`.
    Raises `UsageError`.
    """
    if not runs:
        raise UsageError("compare needs at least one run")
    files = comparison.read(map(str, runs), Path(root))
    return comparison.as_rows(comparison.groups(files), files)


def open(path: str | Path, threads: int = 1) -> Session:
    """An exported file as a session: `open(path).run({"image": image})` gives named arrays. Raises `ModelFileError`.

    Arrays have to be as its `inputs` say, the batch dimension included; others raise `UsageError`.

    A folder is that of a network which is several graphs; `session.graphs` then has each by its name.
    The file is first opened and run in a process of its own, since runtimes crash on some that are damaged: not in a
    copy of this one, which may be a notebook's, with threads and CUDA in use.
    """
    from edgedl import graph_session, measure

    file = Path(path)
    if not file.exists():
        raise ModelFileError(f"no file {file}")
    target = plugins.target_for(graph_session.one_of(file), threads)
    if not target.needs_gpu:
        measure.cold_start(target, file)
    return graph_session.Checked(graph_session.open_files(target, file))
