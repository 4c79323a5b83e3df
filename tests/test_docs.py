"""The documents' commands run, in order, one temporary folder a document."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgedl.run import read_report
from tests import quick

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOT_RUN = "<!-- not run:"
BLOCK = re.compile(r"^```(?P<language>\w*)(?: (?P<file>\S+))?\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path) -> list[re.Match]:
    text = document.read_text(encoding="utf-8")
    return [
        match for match in BLOCK.finditer(text) if NOT_RUN not in text[: match.start()].rstrip().rpartition("\n")[2]
    ]


def commands(document: Path) -> list[str]:
    return [
        line.removeprefix("$ ")
        for block in blocks(document)
        if block["language"] == "console"
        for line in block["content"].splitlines()
        if line.startswith("$ ")
    ]


WITH_COMMANDS = [document for document in DOCUMENTS if commands(document)]


def test_the_documents_show_commands():
    assert {document.name for document in WITH_COMMANDS} >= {"quickstart.md", "add-a-step.md", "add-a-target.md"}


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=lambda document: document.name)
def test_the_commands_run(document, tmp_path):
    for block in blocks(document):
        if block["file"]:
            (tmp_path / block["file"]).write_text(block["content"], encoding="utf-8")
    script = "set -ex\n" + "\n".join(commands(document))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=quick.measuring_briefly(os.environ) | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    if document.name == "own-model.md":
        (made,) = tmp_path.glob("my-project/runs/my-project/*")  # of what `edgedl init` has written
        (verdict,) = read_report(made)["verdicts"]
        assert verdict["target"] == "tflite"
        assert verdict["ship"] not in ("none", "host only")
    if document.name == "add-a-target.md":
        assert re.search("^PlainOnnx: ship ", done.stdout, re.MULTILINE)  # the gate has spoken, whichever way


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
