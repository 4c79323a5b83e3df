"""The gate: what may ship, and in words why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgedl.core import Baseline, Limits, Metric, OperatorTime
from edgedl.ladder import Climb
from edgedl.stats import Speedup

CONVERSIONS = frozenset(
    [
        *("QUANTIZE", "DEQUANTIZE", "TRANSPOSE", "CAST"),  # LiteRT
        *("QuantizeLinear", "DequantizeLinear", "Transpose", "Cast", "ReorderInput", "ReorderOutput"),  # onnxruntime
    ]
)
FLOAT_KERNELS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
"""onnxruntime's float kernels; in an int8 file they are operators that did not fuse."""
WIDTH_GRID = 8


@dataclass(frozen=True)
class Candidate:
    """One variant on one target, as far as it came."""

    variant: str
    size_bytes: int
    climb: Climb
    speedup: Speedup | None
    """Against the fastest float file on the same runtime and device; None for that file, or where nothing can run."""
    operators: Sequence[OperatorTime] = ()
    channels: Sequence[int] = ()
    """Output channels of the weighted layers."""


@dataclass(frozen=True)
class Verdict:
    """What to ship for one target, on the device that it was measured on."""

    ship: str
    """A variant's name; "none" if no file is sound; "host only" if speed can't be judged here."""
    why: str
    refused: dict[str, str]
    """Variants that may not ship, each with its reason."""


def judge(
    reference: Candidate,
    candidates: Sequence[Candidate],
    failures: Mapping[str, str],
    limits: Limits,
    metric: Metric,
    device: str,
    judge_there: str | None,
    unlearned: str | None = None,
) -> Verdict:
    """Judges the compressed files of one target, best last, against the float file.

    `failures` are variants of which there is no file, with the reason; `judge_there` is the command
    that judges on the device itself, given where nothing could run here; `unlearned` says why the float
    network itself is worth nothing, so that what keeps its score is not, either.
    """
    if unlearned is not None:
        everything = dict.fromkeys((reference.variant, *(candidate.variant for candidate in candidates)), unlearned)
        return Verdict("none", f"nothing is worth shipping: {unlearned}", everything | dict(failures))
    refused = {
        candidate.variant: reason for candidate in candidates if (reason := objection(candidate, limits, metric))
    } | dict(failures)
    if reference.climb.breach:
        refused[reference.variant] = reference.climb.breach
    sound = [candidate for candidate in candidates if candidate.variant not in refused]
    if not sound:
        if reference.variant in refused:
            return Verdict("none", f"no file is sound: {refused[reference.variant]}", refused)
        why = "; ".join(f"{name} is refused: {reason}" for name, reason in refused.items())
        return Verdict(reference.variant, why or "there is nothing but the float network", refused)
    best = sound[-1]
    if judge_there is not None:
        why = f"{_gains(best, reference, metric)}; its speed is not known here: on the device run {judge_there}"
        return Verdict("host only", why, refused)
    return Verdict(best.variant, f"{_gains(best, reference, metric)}, measured on {device}", refused)


def why_unlearned(score: float, metric: Metric, baseline: Baseline | None) -> str | None:
    """Why a float network with this test score has learned nothing; None if it has, or if that is not known."""
    if baseline is None or metric.drop(baseline.score, score) < 0:
        return None
    said = f"{metric.name} {score:.4f} against {baseline.score:.4f}"
    return f"the float network does no better than {baseline.answer}: {said}"


def objection(candidate: Candidate, limits: Limits, metric: Metric) -> str | None:
    """Why a candidate may not ship; None if it may."""
    if candidate.climb.breach:
        return candidate.climb.breach
    deployed = candidate.climb.rungs[-1]
    if lost := loss(deployed.score, deployed.drop, limits.score_drop, metric.name):
        return lost
    slower = slowness(candidate.speedup, limits.slower)
    return f"{slower}{_explain(candidate)}" if slower else None


def loss(score: float, drop: float, most: float, metric: str) -> str | None:
    """Why a file with this score may not ship; None if it may."""
    if drop <= most:
        return None
    return f"its {metric} is {score:.4f}, {drop:.4f} worse than the float network's; the recipe allows {most}"


def slowness(speedup: Speedup | None, slower: str) -> str | None:
    """Why a file with this speed-up may not ship where the recipe says `slower`; None if it may."""
    if speedup is None or speedup.verdict != "slower" or slower == "allow":
        return None
    low, high = speedup.ci95
    return f"it is slower than the fastest float file on this runtime: {speedup.median:.2f}x ({low:.2f} to {high:.2f})"


def _explain(candidate: Candidate) -> str:
    """What of a file costs time, as far as its profile and its widths tell."""
    reasons = []
    total = sum(operator.time_ms for operator in candidate.operators)
    if total > 0:
        conversions = sum(operator.time_ms for operator in candidate.operators if operator.kind in CONVERSIONS) / total
        if conversions >= 0.05:
            reasons.append(f"{conversions:.0%} of its time goes into conversions")
        floats = sum(operator.kind in FLOAT_KERNELS for operator in candidate.operators)
        if floats:
            reasons.append("1 operator runs in float" if floats == 1 else f"{floats} operators run in float")
    odd = sorted({width for width in candidate.channels if width % WIDTH_GRID})
    if odd:
        reasons.append(f"{', '.join(map(str, odd))} channels are no multiple of {WIDTH_GRID}")
    return f"; {', '.join(reasons)}" if reasons else ""


def _gains(candidate: Candidate, reference: Candidate, metric: Metric) -> str:
    drop = candidate.climb.rungs[-1].drop
    direction = "lower" if (drop > 0) == metric.higher_is_better else "higher"
    change = "the same" if drop == 0 else f"{abs(drop):.4f} {direction}"
    speed = "" if candidate.speedup is None else f"{_speed(candidate.speedup)}, "
    ratio = reference.size_bytes / candidate.size_bytes
    size = f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"
    return f"{candidate.variant}: {speed}{size}, {metric.name} {change}"


def _speed(speedup: Speedup) -> str:
    return f"{speedup.median:.2f}x {speedup.verdict}" if speedup.verdict == "faster" else f"{speedup.verdict} in speed"


def speedup_as_json(speedup: Speedup | None) -> dict[str, Any] | None:
    """A speed-up as reports hold it."""
    return None if speedup is None else {**vars(speedup), "ci95": list(speedup.ci95)}


def as_json(
    verdict: Verdict, target: str, device: str | None, reference: Candidate | None, judged: Candidate | None
) -> dict[str, Any]:
    """The entry of a report's `verdicts`; ratios are float ÷ compressed, of the variant `judged`."""
    speedup = judged.speedup if judged else None
    return {
        "target": target,
        "ship": verdict.ship,
        "device": device,
        "speedup": speedup_as_json(speedup),
        "size_ratio": reference.size_bytes / judged.size_bytes if reference and judged else None,
        "score_drop": judged.climb.rungs[-1].drop if judged else None,
        "why": verdict.why,
    }
