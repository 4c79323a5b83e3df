"""What SECURITY.md promises of the code as a whole: no reader that runs what it reads, nothing for others to write."""

from __future__ import annotations

import ast
import functools
import os
from pathlib import Path

import pytest

from edgedl import files

SOURCES = sorted((Path(__file__).parents[1] / "edgedl").rglob("*.py"))
UNPICKLERS = {"pickle": {"load", "loads"}, "marshal": {"load", "loads"}, "joblib": {"load"}, "dill": {"load", "loads"}}
NEVER = {"yaml", "marshal", "joblib", "dill", "shelve", "cloudpickle"}


@functools.cache
def nodes() -> list[tuple[str, ast.AST]]:
    """The calls and imports of the package, each with where it stands."""
    return [
        (f"{file.name}:{node.lineno}", node)
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)
    ]


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Of each call where it stands, what is called, and the call."""
    return [(where, dotted(node.func), node) for where, node in nodes() if isinstance(node, ast.Call)]


def dotted(called: ast.expr) -> str:
    """A name, or names behind one another; what else is called has none."""
    if isinstance(called, ast.Attribute):
        return f"{dotted(called.value)}.{called.attr}"
    return called.id if isinstance(called, ast.Name) else ""


def imported(node: ast.AST) -> set[str]:
    """The packages that a statement imports."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return {name.partition(".")[0] for name in names}


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_nothing_is_evaluated_and_no_shell_is_asked():
    for where, name, call in calls():
        assert name not in ("eval", "exec", "os.system", "os.popen"), where
        assert keywords(call).get("shell", "False") == "False", where


def test_no_reader_unpickles_unless_the_recipe_says_so():
    seen = 0
    for where, name, call in calls():
        module, _, function = name.rpartition(".")
        assert function not in UNPICKLERS.get(module, ()), where
        assert keywords(call).get("allow_pickle", "False") == "False", where
        assert keywords(call).get("trust_remote_code", "False") == "False", where
        if name == "torch.load":
            seen += 1
            assert keywords(call).get("weights_only") in ("True", "not unpickle"), where
    assert seen >= 2


def test_no_format_is_read_that_can_hold_code():
    for where, node in nodes():
        assert not NEVER & imported(node), where


def test_no_archive_is_unpacked_to_where_it_says():
    """Of a zip file Python leaves out what leads elsewhere; of a tar file, only its later versions do."""
    tar = {where.partition(":")[0] for where, node in nodes() if "tarfile" in imported(node)}
    for where, name, _ in calls():
        assert not name.endswith("unpack_archive"), where
        if where.partition(":")[0] in tar:
            assert name.rpartition(".")[2] not in ("extractall", "extract"), where


@pytest.mark.parametrize(("umask", "allowed"), [(0o077, 0o700), (0o027, 0o750), (0o022, 0o755)])
def test_files_get_what_the_umask_allows_and_no_more(tmp_path, umask, allowed):
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "report.json", "{}")
        with files.filled_folder(tmp_path / "folder") as folder:
            (folder / "model.onnx").write_bytes(b"")
            script = folder / "build.sh"
            script.write_text("#!/bin/sh\n")
            files.make_executable(script)
    finally:
        os.umask(before)
    for file in (tmp_path / "report.json", tmp_path / "folder", *(tmp_path / "folder").iterdir()):
        assert file.stat().st_mode & 0o777 & ~allowed == 0, file
    assert (tmp_path / "folder" / "build.sh").stat().st_mode & 0o777 == allowed & ~umask & 0o777
