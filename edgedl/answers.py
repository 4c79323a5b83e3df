"""What a device answered to the questions of `loads.py`, checked, as it goes into rows: it is not to be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, NonNegativeInt, PositiveInt

from edgedl.devices import plain

KEYS = ("throughput", "cold_start", "sustained", "energy", "end_to_end")
"""Of a row: what was asked of its file, and answered; the last only by the host."""


Said: TypeAlias = Annotated[str, AfterValidator(plain)]
Time: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Block: TypeAlias = Annotated[list[Time], Field(min_length=1)]
Interval: TypeAlias = Annotated[list[Time], Field(min_length=2, max_length=2)]


class Checked(BaseModel, strict=True, extra="forbid"):
    """Whatever has another key, or a value of another kind, is not taken."""


class Latency(Checked):
    """As in a report's row."""

    median: Time
    ci95: Interval
    p90: Time
    p99: Time | None
    runs: PositiveInt
    batch_size: PositiveInt
    threads: PositiveInt | None = None


class Rate(Checked):
    """One size of batch and number of threads; `reason`, where the file does not take it."""

    batch_size: PositiveInt
    threads: PositiveInt
    per_second: Time | None
    latency_ms: Latency | None
    reason: Said | None


class Throughput(Checked):
    """All that were tried; `refused` says which could not be, for a file of one size of batch."""

    any_batch: bool
    refused: Said | None
    rows: list[Rate]


class Spread(Checked):
    """Of a few fresh processes."""

    median: Time
    min: Time
    max: Time


class ColdStart(Checked):
    """From the start of a process to its first answer, and the two parts of that which are the runtime's."""

    starts: NonNegativeInt
    first_answer_ms: Spread | None
    import_ms: Spread | None
    init_ms: Spread | None
    reason: Said | None


class Part(Checked):
    """A sixtieth of a sustained run."""

    seconds: Time
    median_ms: Time
    runs: PositiveInt
    temperature_c: FiniteFloat | None
    clock_mhz: FiniteFloat | None


class Sustained(Checked):
    """The end of a long run against its beginning."""

    seconds: Time
    compared_seconds: Time
    first_ms: Time
    last_ms: Time
    slowdown: Time
    ci95: Interval
    throttled: bool
    course: Annotated[list[Part], Field(min_length=1)]


class Energy(Checked):
    """Of one run; `reason`, where no rail can be read."""

    rail: Said | None
    energy_mj: FiniteFloat | None
    above_idle_mj: FiniteFloat | None
    watts: FiniteFloat | None
    idle_watts: FiniteFloat | None
    runs: PositiveInt | None
    reason: Said | None


class Answers(Checked):
    """What was asked of one file; `error`, where nothing came of it."""

    error: Said | None = None
    throughput: Throughput | None = None
    cold_start: ColdStart | None = None
    sustained: Sustained | None = None
    energy: Energy | None = None


def of_row(found: Answers | None) -> dict[str, Any]:
    """The keys of a row, all of them: null for what was not asked."""
    said = found.model_dump() if found else {}
    drawn = said.get("energy") or {}
    return {
        **{key: said.get(key) for key in KEYS},
        "unanswered": said.get("error"),
        "energy_mj": drawn.get("energy_mj"),
    }


def with_earlier(rows: Sequence[dict[str, Any]], earlier: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with what was answered before of the very same files on the device, where it was not asked again."""
    known = {(row["variant"], row["target"], row["sha256"], row["device"]): row for row in earlier}
    made = []
    for row in rows:
        before = known.get((row["variant"], row["target"], row["sha256"], row["device"]), {})
        kept = {key: before[key] for key in (*KEYS, "energy_mj") if row[key] is None and before.get(key) is not None}
        made.append(row | kept)
    return made
