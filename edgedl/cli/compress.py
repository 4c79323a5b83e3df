"""`edgedl compress`: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgedl.cli.show import JsonLines, Quiet

if TYPE_CHECKING:
    from edgedl.recipe import Recipe
    from edgedl.run import Run

REFUSED = 3
FAILED = 1
OWN = "Your own network"
OF_IMAGES = ("size", "mean", "std", "uint8_input", "channels_last")
IMAGES = "Images among your data"


def compress(
    recipe: Annotated[str | None, typer.Option(help="A recipe's name (edgedl recipes list) or a TOML file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Instead of a recipe, your network: package.module:name (which is imported and run), "
            "a file .pt2, .onnx or .keras, or a folder of transformers.",
            rich_help_panel=OWN,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights for it: a .safetensors file or a checkpoint of tensors.", rich_help_panel=OWN),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Your data: a file .npz, .csv, .parquet or .jsonl, a folder of images or of datasets, "
            "or package.module:function.",
            rich_help_panel=OWN,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help='The array or column to learn, by default "label"; without any, your network is the measure.',
            rich_help_panel=OWN,
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What to judge by; by default the label's type tells.", rich_help_panel=OWN)
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Resize image files to this height and width.", rich_help_panel=IMAGES),
    ] = None,
    mean: Annotated[
        list[float] | None,
        typer.Option(
            help="What the network takes off pixels from 0 to 1; give it once, or once a channel.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    std: Annotated[
        list[float] | None, typer.Option(help="What it then divides by, likewise.", rich_help_panel=IMAGES)
    ] = None,
    uint8_input: Annotated[
        bool,
        typer.Option(
            "--uint8-input", help="Files take pixels from 0 to 255, and do all this themselves.", rich_help_panel=IMAGES
        ),
    ] = False,
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last",
            help="Files take (height, width, channels), as phones have it, of a network that takes channels first.",
            rich_help_panel=IMAGES,
        ),
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="First train it for so many epochs.", rich_help_panel=OWN)] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantize to int8, in the form that serves best (default).", rich_help_panel=OWN),
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Store weights in half precision.", rich_help_panel=OWN)] = False,
    prune: Annotated[
        float | None, typer.Option(help="Remove this share of channels, and train on.", rich_help_panel=OWN)
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="May be given several times; by default tflite and onnxruntime (edgedl targets).", rich_help_panel=OWN
        ),
    ] = None,
    score_drop: Annotated[
        float | None, typer.Option(help="How much a file may lose and still ship.", rich_help_panel=OWN)
    ] = None,
    float_ops: Annotated[
        bool,
        typer.Option(
            "--float-ops", help="Keep operators without an int8 form in float, and tell which.", rich_help_panel=OWN
        ),
    ] = False,
    max_batch: Annotated[
        int | None,
        typer.Option(help="Files take batches of 1 to so many samples; by default of one.", rich_help_panel=OWN),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            help="A dimension of an input that files take in other sizes, too, and which: tokens.1=length:1-128.",
            rich_help_panel=OWN,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Take no finished step from earlier runs.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a target keeps float because files were refused.")
    ] = False,
    track: Annotated[
        str | None, typer.Option(help="Also write the finished run to a tracker of experiments: mlflow.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")] = False,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Train, compress, export, measure and judge: what a recipe says, or your own network with --model and --data."""
    from edgedl import plugins, progress, tracking
    from edgedl import recipe as recipes
    from edgedl.cli.show import check_one_form, print_json
    from edgedl.core import MissingPackage, UsageError

    own = {
        **{"--weights": weights, "--data": data, "--label": label, "--metric": metric, "--epochs": epochs},
        **{"--size": size, "--mean": mean, "--std": std},
        **{"--uint8-input": uint8_input, "--channels-last": channels_last},
        **{"--int8": int8, "--fp16": fp16, "--prune": prune, "--target": target, "--score-drop": score_drop},
        **{"--float-ops": float_ops, "--max-batch": max_batch, "--dynamic": dynamic},
    }
    check_one_form(as_json, json_lines)
    if recipe is not None:
        if given := [option for option, value in {"--model": model, **own}.items() if value not in (None, False, [])]:
            raise UsageError(f"a recipe says it all: leave out {' and '.join(given)}, or change its file")
        wanted, text = recipes.load(recipe), recipes.find(recipe).read_text(encoding="utf-8")
    elif model is None:
        raise UsageError("give a recipe (edgedl recipes list), or your own network with --model and --data")
    else:
        wanted, text = _own(model, own)
    plugins.require(wanted.targets)  # before the imports below, which need torch
    if track is not None:
        tracking.check(track)
    from edgedl import pipeline
    from edgedl.report import page, terminal
    from edgedl.run import read_report
    from edgedl.training import parallel

    if parallel.rank() > 0:
        return pipeline.help_train(wanted, text, out, fresh=fresh)
    try:
        with progress.display(quiet or json_lines):
            run = pipeline.compress(wanted, text, out, fresh=fresh)
    except OSError as error:
        error.filename = error.filename or str(out)  # a full disk does not say which it is
        raise
    report = read_report(run.folder)
    try:
        shown = f"report: {page.write_page(report, run.folder)}"
    except MissingPackage as error:
        shown = f"report: {run.report} (no HTML page: {error})"
    if track is not None:
        _track(run, report)
    status = _status(report, strict)
    progress.emit("finished", exit_status=status, folder=str(run.folder), report=str(run.report))
    if as_json:
        print_json(report)
    elif not json_lines:
        terminal.print_report(report)
        if status == FAILED:
            typer.echo(f"log: {run.log}")
        typer.echo(shown)
    if status:
        raise typer.Exit(status)


def _track(run: Run, report: Mapping[str, Any]) -> None:
    """The run is finished: what becomes of it elsewhere changes nothing about it."""
    from edgedl import progress, tracking
    from edgedl.core import EdgedlError

    try:
        with progress.diverted(run.log):
            said = tracking.track(run.folder, report)
        progress.emit("tracked", message=said)
    except EdgedlError as error:
        progress.emit("warning", message=str(error))
        typer.echo(f"edgedl: warning: {error}", err=True)


def _status(report: Mapping[str, Any], strict: bool) -> int:
    if any(row["status"] == "failed" for row in report["rows"]):
        return FAILED
    kept_float = {verdict["target"] for verdict in report["verdicts"] if verdict["ship"] in ("float", "none")}
    if strict and any(row["status"] == "refused" and row["target"] in kept_float for row in report["rows"]):
        return REFUSED
    return 0


def _own(model: str, options: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe that the options say, and its text."""
    from edgedl import own_recipe
    from edgedl.core import UsageError

    if options["--int8"] and options["--fp16"]:
        raise UsageError("--int8 and --fp16 are two ways to store weights: give one of them")
    steps: list[dict[str, Any]] = []
    if options["--epochs"] is not None:
        steps.append({"use": "train", "epochs": options["--epochs"]})
    if options["--prune"] is not None:
        steps.append({"use": "prune", "ratio": options["--prune"]})
    steps.append({"use": "quantize", "precision": "fp16" if options["--fp16"] else "int8"})
    images = {option: options[f"--{option.replace('_', '-')}"] for option in OF_IMAGES}
    limits = {"score_drop": options["--score-drop"], "float_ops": "allow" if options["--float-ops"] else None}
    return own_recipe.make(
        model,
        options["--data"],
        weights=options["--weights"],
        label=options["--label"],
        metric=options["--metric"],
        images={key: value for key, value in images.items() if value},
        steps=steps,
        targets=options["--target"] or own_recipe.TARGETS,
        limits={key: value for key, value in limits.items() if value is not None},
        max_batch=options["--max-batch"],
        dynamic=options["--dynamic"] or (),
    )
