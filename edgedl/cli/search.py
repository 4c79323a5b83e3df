"""`edgedl search`: the recipes that serve best, found by trying."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgedl.search.study import Study

NONE_MET = 1
UNITS = {"h": 3600, "m": 60, "s": 1}


def search(
    recipe: Annotated[str, typer.Argument(help="A recipe with a table search: its name or a TOML file.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Until so many have finished, those of earlier calls among them.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Until so much time has passed: 2h, 1h30m, 90s.")] = None,
    objective: Annotated[
        str, typer.Option(help="What is to be made as good as possible: of score, latency, size, energy.")
    ] = "score, latency",
    limit: Annotated[
        str | None,
        typer.Option(
            help='What files have to keep to, such as "score_drop<=0.01, size<200kB"; the drop is counted from the '
            "float network of the recipe as it is written. By default the recipe's own score_drop."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Whose files count, and alone are made; by default the recipe's first target.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many trials run at once.")] = 1,
    on: Annotated[
        str | None, typer.Option(help="Run trials on Ray: ray, for this machine, or ray://HOST:PORT, a cluster.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="The database, such as postgresql://HOST/NAME; by default a file in the search's folder."),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            help="Where trials leave their run folders, reached by all workers: s3://BUCKET/DIR, gs://..., file://..."
        ),
    ] = None,
    measure_all: Annotated[
        bool, typer.Option("--measure-all", help="Stop no trial of which cheap figures say that it is hopeless.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where run folders go; a search's is RECIPE-search.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print search.json instead of the table.")] = False,
) -> None:
    """Vary a recipe within its table search, and keep the recipes that no other beats. Run again to go on."""
    from edgedl import plugins
    from edgedl.cli.show import print_json
    from edgedl.core import UsageError
    from edgedl.search import searching

    if trials is None and budget is None:
        raise UsageError("give --trials or --budget: when is it to end?")
    seconds = None if budget is None else _seconds(budget)
    goal = searching.goal(recipe, target, objective, limit)
    plugins.require(target for target in goal.space.recipe.needed_targets if target.label == goal.target)
    from edgedl.search import artifacts as kept
    from edgedl.search.study import Study, database
    from edgedl.search.workers import OnRay, Processes, Workers

    folder = out / f"{goal.space.recipe.name}-search"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}; choose another with --out") from error
    if artifacts is not None:
        kept.check(artifacts)
    study = Study(goal, storage or database(folder))
    team: Workers = Processes(workers, folder / "workers.log") if on is None else OnRay(on, workers)
    try:
        with _shown(study) as show:
            why = searching.search(study, folder, team, trials, seconds, measure_all, show, artifacts)
    except KeyboardInterrupt:
        _conclude(study, folder, "interrupted; run the same command to go on", as_json, artifacts)
        raise
    if as_json:
        print_json(searching.findings(study))
    _conclude(study, folder, why, as_json, artifacts)
    if not study.front():
        raise typer.Exit(NONE_MET)


def _conclude(study: Study, folder: Path, why: str, as_json: bool, artifacts: str | None) -> None:
    from edgedl.report import searched
    from edgedl.report.terminal import open_console

    if as_json:
        return
    console = open_console()
    front = study.front()
    if front:
        console.print(searched.table(study, front))
    for line in searched.notes(study):
        console.print(line)
    if not front:
        console.print("no trial meets all limits")
    console.print(f"ended: {why}")
    if front:
        console.print(f"recipes: {folder / 'front'}; edgedl compress --recipe {folder / 'front' / front[0].name}.toml")
    console.print(f"page: {_page(study, folder, artifacts)}")


def _page(study: Study, folder: Path, artifacts: str | None) -> str:
    from edgedl import comparison
    from edgedl.core import MissingPackage
    from edgedl.report import compared
    from edgedl.search import searching

    files = searching.compared(study, folder, artifacts)
    if not files:
        return "none, no trial was measured"
    try:
        compared.write_page(comparison.groups(files), [], folder / "search.html")
    except MissingPackage as error:
        return f"none: {error}"
    return str(folder / "search.html")


@contextmanager
def _shown(study: Study) -> Iterator[Callable[[Study, Mapping[int, str]], None]]:
    """On a terminal a table that is always up to date; else a line for each trial that has finished, on stderr."""
    from rich.console import Console
    from rich.live import Live

    from edgedl.report import searched

    console = Console(stderr=True, markup=False)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as shown:
            yield lambda study, running: shown.update(searched.live(study, running), refresh=True)
        return
    told = {trial.number for trial in study.trials() if trial.is_finished}

    def tell(study: Study, running: Mapping[int, str]) -> None:
        for trial in study.trials():
            if trial.is_finished and trial.number not in told:
                typer.echo(searched.line(study, trial), err=True)
                told.add(trial.number)

    yield tell


def _seconds(budget: str) -> float:
    """A time such as "1h30m" in seconds. Raises `UsageError`."""
    from edgedl.core import UsageError

    found = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", budget)
    seconds = (
        sum(int(part or 0) * factor for part, factor in zip(found.groups(), UNITS.values(), strict=True))
        if found
        else 0
    )
    if not seconds:
        raise UsageError(f"--budget {budget}: give a time such as 2h, 1h30m or 90s")
    return seconds
