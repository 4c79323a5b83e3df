"""A recipe at a glance: what its last finished run measured, on the target that gains most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedl.core import UsageError
from edgedl.recipe import Recipe
from edgedl.run import read_report


def of_recipe(recipe: Recipe, root: Path) -> dict[str, Any] | None:
    """The `gains` of the last finished run of just this recipe under `root`, and its folder; None without one."""
    wanted = _decides(recipe.model_dump(mode="json"))
    for file in sorted(root.glob(f"{recipe.name}/*/report.json"), reverse=True):
        try:
            report = read_report(file.parent)
        except UsageError:
            continue  # a damaged one is no finished run
        if _decides(report["recipe"]) == wanted:  # else a recipe of that name as it was, or of one's own
            return {"run": str(file.parent)} | gains(report)
    return None


def gains(report: Mapping[str, Any]) -> dict[str, Any]:
    """Scores, speed-up and size of one target: of those that ship a compressed file, else of all, the fastest."""

    def worth(verdict: Mapping[str, Any]) -> tuple[bool, float, float]:
        ships = verdict["ship"] not in ("float", "none", "host only")
        return ships, (verdict["speedup"] or {}).get("median", 0.0), verdict["size_ratio"] or 0.0

    best = max(report["verdicts"], key=worth)
    scored = [row for row in report["rows"] if row["target"] == best["target"] and row["score"] is not None]
    compressed = [row["score"] for row in scored if row["variant"] != "float"]
    return {
        "target": best["target"],
        "ship": best["ship"],
        "float": next((row["score"] for row in scored if row["variant"] == "float"), None),
        "compressed": compressed[-1] if compressed else None,
        "speedup": (best["speedup"] or {}).get("median"),
        "size_ratio": best["size_ratio"],
    }


def _decides(content: Mapping[str, Any]) -> list[Any]:
    """The part of a recipe on which its files depend."""
    return [content[key] for key in ("seed", "task", "model", "steps")]
