"""What holds for all tests."""

from __future__ import annotations

import gc
import sys

import pytest

gc.set_threshold(100_000, 20, 20)  # as the program does


@pytest.fixture(autouse=True)
def _same_weights_in_any_order():
    """Networks that a test makes by chance are the same, whichever tests ran before it in its process."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
