"""What long work has reached, kept in the run from time to time, so that a run that was ended goes on from there."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from edgedl import files

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

EVERY_SECONDS = 30.0
"""How much work a kill may cost, and how often states are written at most."""
SHARE = 0.05
"""Of the time at most what writing states may take."""
SHORT_SECONDS = 2.0
"""Work that is done in less is not kept: it is done again."""


@dataclass(frozen=True)
class Place:
    """Where states are kept, and what all that is kept there depends on."""

    folder: Path
    root: Path | None
    """Where runs are, whose states are taken as well; None to take none at all, not even those in `folder`."""
    key: str


_place: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def at(folder: Path, root: Path | None, key: str) -> Iterator[None]:
    """Work inside is kept in that folder of a run; `key` stands for recipe, data and code. Without `root`, none is
    taken.

    Outside of it nothing is kept.
    """
    token = _place.set(Place(folder, root, key))
    try:
        yield
    finally:
        _place.reset(token)


class Course:
    """A piece of work, known again by the place it is in, all that it begins with, and the random streams then.

    States are any nesting of mappings, lists and tuples of tensors, numbers and text; others are not kept.
    """

    def __init__(self, label: str, *begins: Any) -> None:
        self.place = _place.get()
        self.begun = self.kept = time.monotonic()
        self.cost = 0.0
        if self.place is not None:
            self.name = f"{_digest([self.place.key, label, _streams(), *begins])}.safetensors"

    def reached(self) -> Any | None:
        """The state that an earlier run of the same work came to, with the random streams as they then were."""
        if self.place is None or self.place.root is None:
            return None
        elsewhere = sorted(self.place.root.glob(f"*/*/{self.place.folder.name}/{self.name}"), reverse=True)
        for file in [self.place.folder / self.name, *elsewhere]:
            if (found := _read(file)) is not None:
                _set_streams(found["streams"])
                return found["state"]
        return None

    def keep(self, state: Callable[[], Any]) -> None:
        """Writes the state, if there is somewhere to, and the last time is long enough ago."""
        since = time.monotonic() - self.kept
        if since >= max(EVERY_SECONDS, self.cost / SHARE):
            self._write(state())

    def finish(self, state: Callable[[], Any]) -> None:
        """Writes the last state, unless the work took so little time that it can be done again."""
        if time.monotonic() - self.begun >= min(SHORT_SECONDS, EVERY_SECONDS):
            self._write(state())

    def _write(self, state: Any) -> None:
        if self.place is None:
            return
        start = time.monotonic()
        try:
            _write(self.place.folder / self.name, {"state": state, "streams": _streams()})
        except (OSError, TypeError) as error:  # a full disk: the work may be done before it matters
            print(f"a state is not kept: {error}", file=sys.stderr)
        self.kept = time.monotonic()
        self.cost = self.kept - start


def remembered(label: str, begins: Any, compute: Callable[[], T], again: Callable[[T], Any] = lambda found: None) -> T:
    """What `compute` gives, or gave to the same in an earlier run: as a state may be.

    `again` is what has then to be done again of it; the random streams are in either case as `compute` left them.
    """
    course = Course(label, begins)
    if (found := course.reached()) is not None:
        streams = _streams()
        again(found[0])
        _set_streams(streams)
        return found[0]  # type: ignore[no-any-return]
    result = compute()
    course.finish(lambda: (result,))
    return result


def _streams() -> dict[str, Any]:
    """What the random streams that training draws from are at."""
    import numpy as np
    import torch

    kind, keys, *rest = cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())
    return {"torch": torch.get_rng_state(), "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest)}


def _set_streams(found: Mapping[str, Any]) -> None:
    import numpy as np
    import torch

    torch.set_rng_state(found["torch"])
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def _write(file: Path, value: Any) -> None:
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_taken_apart(value, tensors))
    file.parent.mkdir(exist_ok=True)
    files.write_bytes(file, save(tensors, metadata={"state": skeleton, "digest": _digest_of(skeleton, tensors)}))


def _read(file: Path) -> Any | None:
    """What `_write` wrote; None for a file that is not there or damaged, whose work is done again."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as content:
            known = content.metadata()
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            whole = known["digest"] == _digest_of(known["state"], tensors)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        return None
    return _put_together(json.loads(known["state"]), tensors) if whole else None


def _taken_apart(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A state as JSON, with its tensors taken out."""
    import torch

    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone().contiguous()  # no two may share memory
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": [[key, _taken_apart(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_taken_apart(item, tensors) for item in value]}
    return value.item() if hasattr(value, "item") else value  # NumPy's numbers


def _put_together(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: _put_together(item, tensors) for key, item in content}
    items = [_put_together(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _digest(value: Any) -> str:
    tensors: dict[str, torch.Tensor] = {}
    return _digest_of(json.dumps(_taken_apart(value, tensors), default=str), tensors)


def _digest_of(skeleton: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Of a state that is taken apart."""
    digest = hashlib.sha256(skeleton.encode())
    for name, tensor in sorted(tensors.items()):
        import torch

        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
