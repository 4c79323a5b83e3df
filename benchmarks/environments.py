"""A virtual environment for each peer, made when first asked for; pip's own configuration says where packages are."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

from edgedl.core import UsageError

REPOSITORY = Path(__file__).parents[1]
PEERS = REPOSITORY / "benchmarks" / "peers"


def python(peer: str, cache: Path) -> Path:
    """The Python that runs a peer: this one for a peer without requirements. Raises `UsageError` if pip fails."""
    requirements = PEERS / f"{peer}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    key = hashlib.sha256(requirements.read_bytes() + platform.python_version().encode()).hexdigest()[:8]
    folder = cache / "venvs" / f"{peer}-{key}"
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(interpreter), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])
        (folder / "complete").touch()
    return interpreter


def variables() -> dict[str, str]:
    """This process's, but for what leads to its own packages; one thread, and no GPU that a peer alone would use."""
    hidden = ("PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, env=variables(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise UsageError(f"{' '.join(command)}: {said[-1] if said else f'status {done.returncode}'}")
