"""What a device answered, checked: it is not to be trusted. What is said of loads goes into rows as it is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from edgedl.links.said import plain
from edgedl.remote.benchmarked import Benchmarked
from edgedl.sessions import TargetError

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
    """Of one run, and of the machine meanwhile; `reason`, where no rail can be read."""

    rail: Said | None
    energy_mj: FiniteFloat | None
    above_idle_mj: FiniteFloat | None
    watts: FiniteFloat | None
    idle_watts: FiniteFloat | None
    runs: PositiveInt | None
    seconds: Time | None
    rails_w: dict[Said, FiniteFloat]
    temperature_c: dict[Said, FiniteFloat]
    clocks_mhz: dict[Said, FiniteFloat]
    reason: Said | None


class Answers(Checked):
    """What was asked of one file; `error`, where nothing came of it."""

    error: Said | None = None
    throughput: Throughput | None = None
    cold_start: ColdStart | None = None
    sustained: Sustained | None = None
    energy: Energy | None = None


class Built(BaseModel, strict=True):
    """Engines that the device made of a network's files."""

    by: Said
    built_for: Said | None
    power_mode: Said | None
    seconds: Time
    size_bytes: NonNegativeInt


class Found(BaseModel, strict=True):
    """What a device found of a network's files: an `error`, or the rest."""

    error: Said | None
    runtime: Said = ""
    init_ms: Time | None = None
    peak_memory_bytes: NonNegativeInt | None = None
    blocks_ms: Annotated[list[Block], Field(min_length=1)] | None = None
    calls_ms: dict[str, Time] = Field(default_factory=dict)
    """The median latency of a call of each graph, where there are several."""
    not_timed: Said | None = None
    """Why there are no latencies, where they were asked for."""
    built: Built | None = None
    benchmarked: Benchmarked | None = None
    """What `benchmark_model` printed of it, which answers no test set. No device can say so itself."""
    answers: Answers | None = None
    """To what else was asked."""


class Result(BaseModel, strict=True):
    """`result.json`, which a device wrote."""

    device: dict[Said, Said | int | FiniteFloat | dict[Said, Said] | None]
    networks: dict[str, Found]


def read(file: Path, device: str, names: Collection[str], rounds: int) -> Result:
    """The result that a device left for the networks of these names, timed in so many rounds.

    Raises `TargetError` for anything else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
        result = Result.model_validate(content)
    except FileNotFoundError as error:
        raise TargetError(f"{device}: the runner left no {file.name}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TargetError(f"{device}: {file.name} is none: {plain(where)}: {plain(first['msg'])}") from error
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{device}: {file.name} is no JSON: {plain(str(error))}") from error
    if lacking := [name for name in names if name not in result.networks]:
        raise TargetError(f"{device}: {file.name} lacks {', '.join(lacking)}")
    if any(found.blocks_ms and len(found.blocks_ms) != rounds for found in result.networks.values()):
        raise TargetError(f"{device}: {file.name} has other blocks of latencies than it was asked for")
    return result


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


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
    known = {_identity(row): row for row in earlier}
    made = []
    for row in rows:
        before = known.get(_identity(row), {})
        kept = {key: before[key] for key in (*KEYS, "energy_mj") if row[key] is None and before.get(key) is not None}
        made.append(row | kept)
    return made


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is the same of the same files on the same device."""
    digests = (row["sha256"], *(graph["sha256"] for graph in (row.get("graphs") or {}).values()))
    return row["variant"], row["target"], row["device"], digests
