"""Plugins: a file in a folder of a kind is a plugin of that kind; the place that imports by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, SerializeAsAny, WithJsonSchema

from edgedl.core import EdgedlError, MissingPackage, ModelFileError, Network, Part, Step, Target, Task, UsageError

T = TypeVar("T")
Kind = Literal["tasks", "models", "steps", "targets"]

BASES: dict[Kind, type[Part]] = {"tasks": Task, "models": Network, "steps": Step, "targets": Target}

PACKAGES = {
    # import name -> what pip calls it, where they differ
    "sklearn": "scikit-learn",
    "ai_edge_litert": "ai-edge-litert",
    "litert_torch": "litert-torch",
    "tensorrt_rtx": "tensorrt-rtx",
    "torch_tensorrt": "torch-tensorrt",
    "cuda.bindings": "cuda-python",
}


def names(kind: Kind) -> list[str]:
    """All plugins of a kind as recipes spell them: edgedl's own and those of installed packages."""
    package = importlib.import_module(f"edgedl.{kind}")
    own = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted({name.replace("_", "-") for name in own} | _foreign(kind).keys())


def load(kind: Kind, name: str) -> type[Part]:
    """The class behind `use = name`: a plugin's name, or "package.module:Class" for one's own.

    Raises `UsageError` for an unknown name (with the nearest ones), or a class of another kind.
    """
    if ":" in name:
        return _checked(kind, name, named(name))
    foreign = _foreign(kind)
    if name in foreign:
        return _checked(kind, name, named(foreign[name]))
    if name not in names(kind):
        raise UsageError(f"no {kind} named {name!r}; {nearest(name, names(kind))}")
    module_name = name.replace("-", "_")
    module = importlib.import_module(f"edgedl.{kind}.{module_name}")
    wanted = module_name.replace("_", "")
    found = next(value for key, value in vars(module).items() if key.lower() == wanted and isinstance(value, type))
    return _checked(kind, name, found)


def _foreign(kind: Kind) -> dict[str, str]:
    """Where the plugins of installed packages are, by name."""
    return _foreign_on(tuple(sys.path), kind)


@cache
def _foreign_on(path: tuple[str, ...], kind: Kind) -> dict[str, str]:
    """Those of all packages on a path: reading their metadata takes longer than reading a recipe."""
    entries: Any = importlib.metadata.entry_points()  # whose type is not the same in all versions of Python
    return {
        entry.name.replace("_", "-"): f"{entry.module}:{entry.attr}" for entry in entries.select(group=f"edgedl.{kind}")
    }


def named(source: str) -> Any:
    """What "package.module:name" names; the name may have dots, too.

    That a person's own code runs is said on stderr before it is imported. Raises `UsageError`.
    """
    module_name, _, name = source.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise UsageError(f"{source!r} names nothing; write package.module:name")
    if module_name not in sys.modules and not module_name.startswith("edgedl."):
        print(f"edgedl: importing {module_name}, whose code runs with your rights", file=sys.stderr)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            why = f"{error}; is it on the Python path, or in the folder where you are?"
        else:
            why = f"it needs {error.name}, which is not there"
        raise UsageError(f"cannot import {module_name}: {why}") from error
    except Exception as error:  # it is a person's code, which may raise anything
        raise UsageError(_told(f"importing {module_name}", error)) from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"module {module_name} has no {name}; {nearest(part, _own_names(found))}")
        found = getattr(found, part)
    return found


def function(source: str) -> Callable[..., Any]:
    """What "package.module:function" names, imported and callable. Raises `UsageError`."""
    found: Callable[..., Any] = named(source)
    if not callable(found):
        raise UsageError(f"{source} is a {type(found).__name__}, no function")
    return found


def called(what: str, function: Callable[..., T], *given: Any, error: type[EdgedlError] = UsageError) -> T:
    """What a person's function returns. Raises `error` with their own traceback for whatever it raises."""
    try:
        return function(*given)
    except EdgedlError:
        raise
    except Exception as raised:
        raise error(_told(what, raised)) from raised


def _from_table(kind: Kind) -> BeforeValidator:
    def made(value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("use"), str):
            return value
        return load(kind, value["use"]).model_validate(value)

    return BeforeValidator(made)


def _table_of(what: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"description": what, "type": "object", "properties": {"use": {"type": "string"}}, "required": ["use"]}
    )


InnerNetwork: TypeAlias = Annotated[
    SerializeAsAny[Network], _from_table("models"), _table_of("A network with its own keys, as under model.")
]
"""A field of a part that is a network."""
InnerTarget: TypeAlias = Annotated[
    SerializeAsAny[Target], _from_table("targets"), _table_of("A target with its own keys, as under targets.")
]
"""A field of a part that is a target."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint: the valid names nearest to `name`, or all of them."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(valid) or 'none'}"


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it; "a|b" asks for one of the two."""
    return any(_exists(alternative) for alternative in module.split("|"))


def missing(target: Target, purpose: Literal["build", "open"]) -> list[str]:
    """Modules that a target lacks to build or to open its files."""
    return [module for module in target.requires[purpose] if not installed(module)]


def require(targets: Iterable[Target], purpose: Literal["build", "open"] = "build") -> None:
    """Raises `MissingPackage` naming all that is missing and the pip line, before anything expensive starts."""
    lacking = [target for target in targets if missing(target, purpose)]
    if lacking:
        lacks = [f"target {target.label} needs {', '.join(_packages(target, purpose))}" for target in lacking]
        raise MissingPackage(f"{'; '.join(lacks)}: {install_line(lacking, purpose)}")


def install_line(targets: Sequence[Target], purpose: Literal["build", "open"]) -> str:
    """What to type for targets to work: extras to build; to open files the runtimes alone, without a framework."""
    if purpose == "build":
        return pip_line(*dict.fromkeys(target.extra for target in targets))
    packages = [package for target in targets for package in _packages(target, purpose)]
    return f"pip install {' '.join(dict.fromkeys(packages))}"


def _packages(target: Target, purpose: Literal["build", "open"]) -> list[str]:
    """What pip calls the modules that a target lacks."""
    modules = [module.split("|")[0] for module in missing(target, purpose)]
    return [PACKAGES.get(module, module) for module in modules]


def stand_in() -> Target:
    """The target that scores the ONNX file behind an engine which cannot run here."""
    found = load("targets", "edgedl.targets.onnxruntime:StandIn").model_validate({})
    assert isinstance(found, Target)
    return found


def target_for(file: Path, threads: int, use: str | None = None) -> Target:
    """The target that opens a file: `use`, or the one that claims its ending.

    Raises `ModelFileError` for an unknown ending, `MissingPackage` for a runtime that is not installed.
    """
    claims: dict[str, type[Target]] = {}
    for name in names("targets"):
        found = load("targets", name)
        assert issubclass(found, Target)
        for suffix in found.suffixes:
            claims.setdefault(suffix, found)
    if use is None and file.suffix not in claims:
        raise ModelFileError(f'{file}: unknown ending "{file.suffix}"; there are: {", ".join(sorted(claims))}')
    chosen = load("targets", use) if use else claims[file.suffix]
    fields = _opened_with(file, chosen) | ({"threads": threads} if "threads" in chosen.model_fields else {})
    target = chosen.model_validate(fields)
    assert isinstance(target, Target)
    require([target], "open")
    return target


def _opened_with(file: Path, target: type[Part]) -> dict[str, Any]:
    """How the recipe says a run's engine is to be run, where `artifact.json` lies beside it, or above several."""
    for folder in (file.parent, file.parent.parent):
        try:
            told = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["target"]
            return {key: told[key] for key in ("cuda_graph", "spin_wait") if key in told and key in target.model_fields}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def pip_line(*extras: str) -> str:
    """What to type to install extras of this package."""
    return f"pip install 'edgedl[{','.join(extras)}]'"


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False


def _own_names(found: Any) -> list[str]:
    """What a module or class has itself, rather than from an import."""
    module = getattr(found, "__module__", None) or getattr(found, "__name__", None)
    return [
        key
        for key, value in getattr(found, "__dict__", {}).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == module
    ]


def _told(what: str, error: Exception) -> str:
    """A person's own error in one line, and below it the traceback from where their code begins."""
    here = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(here) and "importlib" not in frame.filename]
    said = " ".join(str(error).split())[:300]
    reason = f"{type(error).__name__}{f': {said}' if said else ''}"
    return f"{what}: your code raised {reason}\n{''.join(traceback.format_list(own))}".rstrip()


def _checked(kind: Kind, name: str, found: object) -> type[Part]:
    base = BASES[kind]
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{name} is no {base.__name__} and cannot stand under {kind}")
    return found
