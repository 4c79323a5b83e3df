"""What an NVIDIA engine was built by and for, in a file beside it; where that is not what is here, it is not opened."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from edgedl.nvidia import gpu
from edgedl.nvidia.gpu import Gpu
from edgedl.sessions import ModelFileError

SCHEMA = 1
FIRST_OF_RTX = "8.0"
"""TensorRT-RTX builds for this compute capability and later ones, if it is told none."""
NUM_COMPARED = 3
"""Parts of a version: trtexec tells no more, and engines of one build of a release open in another."""


@dataclass(frozen=True, kw_only=True)
class Passport:
    """`<engine>.json`; None for what is not known. `build.sh` writes the same keys (`targets/tensorrt.py`)."""

    library: str
    """"TensorRT" or "TensorRT-RTX", and its `version`."""
    version: str
    gpu: str | None = None
    """The one that it was built for; None of TensorRT-RTX, which builds for `compute_capabilities`."""
    compute_capability: str | None = None
    multiprocessors: int | None = None
    compute_capabilities: tuple[str, ...] | None = None
    cuda: str | None = None
    """The newest version that the driver serves."""
    driver: str | None = None
    power_mode: str | None = None
    """Kernels were timed in it, so another may choose others."""
    built: str | None = None
    engine_sha256: str
    source_sha256: str | None = None
    """Of the ONNX file."""

    @property
    def built_for(self) -> str:
        """The GPUs, in words."""
        if self.compute_capabilities is not None:
            return f"GPUs of compute capability {', '.join(self.compute_capabilities) or f'{FIRST_OF_RTX} and later'}"
        return _gpu_in_words(self.gpu, self.compute_capability, self.multiprocessors)


def file_beside(engine: Path) -> Path:
    """`model.engine.json` of `model.engine`."""
    return engine.with_name(f"{engine.name}.json")


def make(
    library: str, version: str, plan: bytes, source: bytes, here: Gpu | None, capabilities: Sequence[str] | None
) -> Passport:
    """That of an engine which was built just now: for the GPU here or, if they are given, for `capabilities`."""
    built_here = here if capabilities is None else None
    return Passport(
        library=library,
        version=version,
        gpu=built_here.name if built_here else None,
        compute_capability=built_here.compute_capability if built_here else None,
        multiprocessors=built_here.multiprocessors if built_here else None,
        compute_capabilities=None if capabilities is None else tuple(capabilities),
        cuda=here.driver if here else None,
        driver=gpu.driver_version(),
        power_mode=gpu.power_mode() if here else None,
        built=datetime.now().astimezone().isoformat(timespec="seconds"),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        source_sha256=hashlib.sha256(source).hexdigest(),
    )


def of(known: Mapping[str, Any]) -> Passport:
    """The passport with these values, as JSON has them."""
    several = known["compute_capabilities"]
    return Passport(**{**known, "compute_capabilities": None if several is None else tuple(several)})


def write(engine: Path, passport: Passport) -> None:
    """Puts it beside the engine."""
    file = file_beside(engine)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps({"schema": SCHEMA, **dataclasses.asdict(passport)}, indent=2) + "\n")
    partial.replace(file)


def read(engine: Path) -> Passport | None:
    """That beside an engine; None where there is none. Raises `ModelFileError` for what is no passport."""
    file = file_beside(engine)
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ModelFileError(f"{file}: schema {content['schema']!r}; this edgedl reads {SCHEMA}; {remedy(engine)}")
        known = {field.name: content.get(field.name) for field in dataclasses.fields(Passport)}
        several, number = known.pop("compute_capabilities"), known.pop("multiprocessors")
        if not all(isinstance(known[name], str) for name in ("library", "version", "engine_sha256")):
            raise TypeError("library, version and engine_sha256 have to be there")
        if not all(value is None or isinstance(value, str) for value in (*known.values(), *(several or ()))):
            raise TypeError("its values have to be text")
        return Passport(
            **known,
            multiprocessors=None if number is None else int(number),
            compute_capabilities=None if several is None else tuple(several),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{file}: no passport of an engine ({error}); {remedy(engine)}") from error


def check(engine: Path, passport: Passport, plan: bytes, library: str, version: str, here: Gpu | None) -> None:
    """Raises `ModelFileError` for an engine that is not the one of its passport, or not for what is here.

    Without a GPU `here`, only what is known without one is checked.
    """
    if hashlib.sha256(plan).hexdigest() != passport.engine_sha256:
        raise ModelFileError(
            f"{engine} is not the engine that {file_beside(engine).name} tells of: one of them was replaced; "
            f"{remedy(engine)}"
        )
    same_version = _parts(version) == _parts(passport.version)
    if library == passport.library and same_version and (here is None or _serves(passport, here)):
        return
    found = f" and {_gpu_in_words(here.name, here.compute_capability, here.multiprocessors)}" if here else ""
    raise ModelFileError(
        f"{engine} was built by {passport.library} {passport.version} for {passport.built_for}; "
        f"here is {library} {version}{found}: {remedy(engine)}"
    )


def other_power_mode(passport: Passport, now: str | None) -> str | None:
    """That an engine was built in another power mode than it runs in, as a sentence; None if not, or if unknown."""
    if passport.power_mode in (None, now) or now is None:
        return None
    return f"its kernels were chosen in power mode {passport.power_mode}, and it runs in {now}: build it again for it"


def _serves(passport: Passport, here: Gpu) -> bool:
    if passport.compute_capabilities is None and passport.gpu is None:
        return True  # not known: TensorRT's own checks have to do
    if passport.compute_capabilities is not None:
        listed = passport.compute_capabilities
        return here.compute_capability in listed if listed else _parts(here.compute_capability) >= _parts(FIRST_OF_RTX)
    same_size = None in (passport.multiprocessors, here.multiprocessors) or (
        passport.multiprocessors == here.multiprocessors
    )
    return same_size and (passport.gpu, passport.compute_capability) == (here.name, here.compute_capability)


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:NUM_COMPARED] if part.isdigit()]


def _gpu_in_words(name: str | None, capability: str | None, multiprocessors: int | None) -> str:
    size = "" if multiprocessors is None else f", {multiprocessors} multiprocessors"
    return f"{name}, compute capability {capability}{size}"


def remedy(engine: Path) -> str:
    """What to do about an engine that cannot be opened here."""
    script = engine.with_name("build.sh")
    how = f": `sh {shlex.quote(str(script))}`" if script.is_file() else ", from its ONNX file"
    return f"build it again on this device{how}"
