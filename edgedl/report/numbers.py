"""Figures as people read them: sizes, times, scores and shares, with as many digits as mean something."""

from __future__ import annotations

NONE = "–"


def size(num_bytes: int | None) -> str:
    """Bytes as people read them, in decimal units."""
    if num_bytes is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.{1 if unit == 'kB' else 2}f} {unit}"
    return f"{num_bytes} B"


def milliseconds(value: float | None) -> str:
    """A time with three significant digits, in µs below a tenth of a millisecond."""
    if value is None:
        return NONE
    return f"{three_digits(value * 1000)} µs" if value < 0.1 else f"{three_digits(value)} ms"


def three_digits(value: float) -> str:
    """Three significant digits, trailing zeros kept, so that columns can be compared at a glance."""
    return f"{value:#.3g}".removesuffix(".") if value < 1000 else f"{value:.0f}"


def four_digits(score: float | None) -> str:
    """A score as tables have it, whatever its unit."""
    return NONE if score is None else f"{score:.4f}"


def share(value: float | None) -> str:
    """A share of the time; none where a layer has no operator of its own."""
    return NONE if value is None else f"{100 * value:.1f} %"


def figure(value: float | None) -> str:
    """A further figure: four digits, and whole numbers from a thousand on."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
