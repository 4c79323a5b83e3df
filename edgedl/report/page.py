"""`report.html`: the report as one page that needs no network, to be read, printed and passed on."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import files, gate, plugins
from edgedl.analysis import by_layer
from edgedl.core import MissingPackage
from edgedl.report import answered, exhibits, lines, words
from edgedl.report.numbers import figure, milliseconds, share, size
from edgedl.run import read_devices, read_report

if TYPE_CHECKING:
    from edgedl.report.figures import Figure
    from edgedl.report.trade_off import Point

NUM_COLOURS = 6
"""Of --series-0, --series-1 ... in page.css."""
SHIPS = {
    # verdict -> its class in page.css and its icon, and what it says; any other is a variant to ship
    "float": ("keep", "Keep float"),
    "host only": ("wait", "Judge on the device"),
    "none": ("bad", "Nothing to ship"),
}
STATUSES = {"ok": "good", "built": "wait", "refused": "keep", "failed": "bad"}


@dataclass(frozen=True)
class Line:
    """A row of the report with its ladder, and in words its speed-up with the interval, if that is known."""

    row: Mapping[str, Any]
    climb: Mapping[str, Any] | None
    speedup: tuple[str, str | None] | None

    @property
    def variant(self) -> str:
        return str(self.row["variant"])


@dataclass(frozen=True)
class Group:
    """One target of the run: its rows, the float file first and the judged one last, and its verdict."""

    label: str
    colour: str
    lines: Sequence[Line]
    verdict: Mapping[str, Any] | None

    @property
    def reference(self) -> Mapping[str, Any]:
        return self.lines[0].row

    @property
    def judged(self) -> Mapping[str, Any]:
        return self.lines[-1].row

    @property
    def further(self) -> Mapping[str, str]:
        """What the task reports besides the score, float → judged."""
        return lines.figure_changes(self.reference, self.judged)

    @property
    def shipped_file(self) -> str | None:
        """What the verdict is about; on a device elsewhere that is the compressed file, until it is judged there."""
        ship = self.verdict["ship"] if self.verdict else None
        if ship == "host only":
            return str(self.judged["file"])
        return next((line.row["file"] for line in self.lines if line.variant == ship), None)


def write_page(report: dict[str, Any], folder: Path) -> Path:
    """Writes `report.html` into a run's folder and returns it. Raises `MissingPackage`."""
    require()
    file = folder / "report.html"
    files.write_text(file, _rendered(report, folder))
    return file


def write_analysis(found: Mapping[str, Any], folder: Path) -> Path:
    """Shows an analysis in the page of the run that it is of, or in `analysis.html` where none has finished."""
    if (folder / "report.json").is_file():
        return write_page(read_report(folder), folder)
    require()
    file = folder / "analysis.html"
    files.write_text(file, filled("analysis.html.jinja", {}, found["metric"], folder, found))
    return file


def require() -> None:
    """Raises `MissingPackage` where no page can be made."""
    lacking = [package for package in ("jinja2", "plotly") if not plugins.installed(package)]
    if lacking:
        raise MissingPackage(f"the HTML page needs {' and '.join(lacking)}: {plugins.pip_line('report')}")


def _rendered(report: Mapping[str, Any], folder: Path) -> str:
    from edgedl.report.trade_off import symbols_of

    groups = _groups(report)
    return filled(
        "page.html.jinja",
        _figures(report, groups),
        report["metric"],
        folder,
        by_layer.read(folder),
        report=report,
        groups=groups,
        pairs=[(group, line) for group in groups for line in group.lines],
        ships={name: ("good", f"Ship {name}") for name in _variants(report)} | SHIPS,
        statuses=STATUSES,
        symbols=symbols_of(_points(groups)),
        conversions=gate.CONVERSIONS,
        baseline=report.get("baseline"),
        warnings=report.get("warnings", ()),  # which older runs lack
        exhibits=exhibits.read(folder),
        devices=read_devices(folder),
        sparsity=lines.sparsity(report),
        missed=lines.missed_goals(report),
        calibrations=list(_calibrations(folder)),
        recipe_text=_recipe_text(folder),
    )


def filled(
    template: str,
    figures: dict[str, Figure],
    metric: Mapping[str, Any],
    folder: Path,
    found: Mapping[str, Any] | None,
    **more: Any,
) -> str:
    """A page from its template, with the plots of an analysis behind its own.

    Raises `LookupError` for what a damaged report lacks.
    """
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from edgedl.report import layer_figures

    figures = figures | (layer_figures.figures(found) if found else {})
    scripts = [get_plotlyjs(), _asset("page.js")]
    # Every string of a report is untrusted and escaped; undefined names are bugs of the template.
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )
    environment.filters |= {
        "score": partial(words.score, metric=metric),
        "change": partial(words.change, metric=metric),
        "size": size,
        "ms": milliseconds,
        "figure": figure,
        "heading": words.heading,
        "interval": words.interval,
        "agreement": words.agreement,
        "conditions_in_words": lines.conditions,
        "device_agreement": lines.device_agreement,
        "other_sizes": lines.other_sizes,
        "settings": words.settings,
        "summary": words.summary,
        "share": share,
        "graphs": lines.graphs,
        "decoding": lines.decoding,
        "answers": answered.lines,
        "float_ops": lines.float_ops,
        "rewrites": lines.rewrites,
        "accelerators": lines.accelerators,
        "engine": lines.engine,
        "largest": lines.largest,
    }
    try:
        return environment.get_template(template).render(
            **more,
            analysis=found,
            analysis_series=layer_figures.series(found) if found else {},
            analysis_missing=lines.missing_figures(found) if found else [],
            figures=figures,
            contents={name: figure.content for name, figure in figures.items()},
            date=words.date(folder),
            style=Markup(_asset("page.css")),
            scripts=[Markup(script) for script in scripts],
            # Even a string that slipped through unescaped could neither run nor fetch anything.
            policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {_hashes(scripts)}; "
            "base-uri 'none'; form-action 'none'",
        )
    except jinja2.UndefinedError as error:  # as a function would say of what is not in a mapping
        raise LookupError(str(error)) from error


def _groups(report: Mapping[str, Any]) -> list[Group]:
    """Rows target by target; a target that a recipe names twice is told apart by a number."""
    climbs, verdicts = list(report["ladder"]), list(report["verdicts"])
    gathered: list[list[Mapping[str, Any]]] = []
    for row in report["rows"]:
        last = gathered[-1] if gathered else []
        if not last or last[0]["target"] != row["target"] or row["variant"] in {other["variant"] for other in last}:
            gathered.append([])
        gathered[-1].append(row)
    names = [rows[0]["target"] for rows in gathered]
    groups = []
    for index, rows in enumerate(gathered):
        name = names[index]
        label = f"{name} {names[: index + 1].count(name)}" if names.count(name) > 1 else name
        verdict = _take(verdicts, target=name)
        lines = [
            # Rows without a score never came to the ladder.
            Line(
                row, None if row["score"] is None else _take(climbs, target=name, variant=row["variant"]), _speedup(row)
            )
            for row in rows
        ]
        groups.append(Group(label, f"var(--series-{index % NUM_COLOURS})", lines, verdict))
    return groups


def _variants(report: Mapping[str, Any]) -> list[str]:
    return [row["variant"] for row in report["rows"]]


def _take(entries: list[Mapping[str, Any]], **wanted: str) -> Mapping[str, Any] | None:
    """Removes and returns the first entry with the wanted values."""
    for index, entry in enumerate(entries):
        if all(entry[key] == value for key, value in wanted.items()):
            return entries.pop(index)
    return None


def _speedup(row: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Against the float file, and its interval."""
    if row["latency_ms"] and row["variant"] == "float":
        return "reference", None
    if not row["speedup"]:
        return None
    low, high = row["speedup"]["ci95"]
    return f"{row['speedup']['median']:.2f}×", f"{low:.2f} to {high:.2f}"


def _figures(report: Mapping[str, Any], groups: Sequence[Group]) -> dict[str, Figure]:
    """All plots by the names that the template calls them."""
    from edgedl.report import figures
    from edgedl.report.trade_off import trade_off

    metric = report["metric"]
    drawn = {}
    if points := _points(groups):
        drawn["trade-off"] = trade_off(points, metric, _lowest(report))
    for index, group in enumerate(groups):
        profiled = [line for line in group.lines if line.row["operators"]]
        longest = figures.longest_bar([line.row for line in profiled])
        for line in profiled:
            title = f"{group.label} {line.variant}"
            drawn[f"operators-{index}-{line.variant}"] = figures.operators(line.row, title, longest)
    for index, step in enumerate(report["steps"]):
        if epochs := step["metrics"].get("epochs"):
            drawn[f"loss-{index}"] = figures.history(epochs, "loss", f"Loss of step {step['use']}", None)
            title = f"{metric['name']} after step {step['use']}"
            drawn[f"score-{index}"] = figures.history(epochs, "score", title, metric)
    return drawn


def _points(groups: Sequence[Group]) -> list[Point]:
    from edgedl.report.trade_off import Point

    return [
        Point(group.label, line.variant, group.colour, line.row)
        for group in groups
        for line in group.lines
        if line.row["latency_ms"] and line.row["score"] is not None
    ]


def _lowest(report: Mapping[str, Any]) -> float | None:
    """The worst score that the gate lets pass."""
    reference = next((entry["rungs"][0]["score"] for entry in report["ladder"]), None)
    if reference is None:
        return None
    allowed = float(report["recipe"]["limits"]["score_drop"])
    return float(reference - allowed if report["metric"]["higher_is_better"] else reference + allowed)


def _calibrations(folder: Path) -> Iterator[dict[str, Any]]:
    """How calibrators and corrections did on validation data, one scheme after another, as far as the folder tells."""
    for file in sorted((folder / "quantization").rglob("*.json")):  # several graphs have each a folder
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # the page is about the report; a damaged file beside it must not hide that
        if isinstance(content, dict) and "calibrator" in content and content.get("tried"):
            yield {
                "scheme": file.relative_to(folder / "quantization").with_suffix("").as_posix(),
                "chosen": content.get("chosen", content["calibrator"]),
                "tried": content["tried"],
            }


def _recipe_text(folder: Path) -> str | None:
    try:
        return (folder / "recipe.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None  # a report that was copied alone


def _asset(name: str) -> str:
    return resources.files("edgedl.report").joinpath(name).read_text(encoding="utf-8")


def _hashes(scripts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
