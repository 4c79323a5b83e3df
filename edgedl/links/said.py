"""What a device says, made fit to be shown."""

from __future__ import annotations

MAX_SAID = 500
"""Characters that are kept of a device's word."""


def plain(said: str) -> str:
    """Without what could steer a terminal, and not too long: a device is not to be trusted."""
    return "".join(letter if letter.isprintable() else " " for letter in said[:MAX_SAID])
