"""`edgedl doctor` and `edgedl targets`: what this machine has, and what it lacks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def targets(as_json: Json = False) -> None:
    """List targets: what each needs to build and to run its files, and the pip line for what is missing."""
    from edgedl.cli.show import print_json
    from edgedl.report import terminal

    found = _targets()
    if as_json:
        print_json(found)
    else:
        terminal.print_targets(found)


def doctor(as_json: Json = False) -> None:
    """Say what is installed, what each target lacks, and what this machine is."""
    from edgedl.cli.show import print_json
    from edgedl.devices import local
    from edgedl.report import terminal

    found: dict[str, Any] = {"device": local.describe(), "targets": _targets()}
    if as_json:
        print_json(found)
    else:
        terminal.print_device(found["device"])
        terminal.print_targets(found["targets"])


def _targets() -> list[dict[str, Any]]:
    from edgedl import plugins
    from edgedl.core import Target
    from edgedl.nvidia import gpu

    rows = []
    for name in plugins.names("targets"):
        target = plugins.load("targets", name).model_validate({})
        assert isinstance(target, Target)
        lacking = {"build": plugins.missing(target, "build"), "open": plugins.missing(target, "open")}
        hint = plugins.install_line([target], "build") if lacking["build"] else None
        if hint is None and lacking["open"]:
            hint = plugins.install_line([target], "open")
        no_gpu = gpu.why_no_gpu() if target.needs_gpu and not lacking["open"] else None
        rows.append(
            {
                "target": name,
                "scheme": target.scheme.name,
                "files": list(target.suffixes),
                "build_lacks": lacking["build"],
                "run_lacks": lacking["open"] + ([no_gpu] if no_gpu else []),
                "install": hint,
            }
        )
    return rows
