"""The site of the documents: it builds without a warning, needs no network to be read, and tells of every option."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgedl import recipe
from tests.test_cli import ALL_OPTIONS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_document_is_a_page_and_no_page_loads_anything_from_elsewhere(site):
    pages = {str(page.relative_to(site)): page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert {file.with_suffix(".html").name for file in (ROOT / "docs").glob("*.md")} <= set(pages)
    assert {"index.html", "changelog.html", "contributing.html", "security.html", "results/about.html"} <= set(pages)
    for name, page in pages.items():
        loaded = re.findall(
            r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)", page
        )
        assert loaded == [], name
        assert "fonts.g" not in page


def test_every_command_and_option_has_its_line(site):
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for path, options in ALL_OPTIONS.items():
        if path not in ("", "recipes", "devices", "runs"):
            section = re.search(rf"<h2 id=\"edgedl-{path.replace(' ', '-')}\">(.*?)(?=<h2|</article)", page, re.DOTALL)
            assert section, path
            for option in options - {"--help", "-h"}:
                assert f"<code>{option}</code>" in section[1], (path, option)


def test_every_key_of_a_recipe_has_a_type_and_a_meaning(site):
    page = (site / "reference" / "recipe.html").read_text(encoding="utf-8")
    schema = recipe.schema()
    for name, found in ({"": schema} | schema["$defs"]).items():
        for key, about in found.get("properties", {}).items():
            if key == "use":
                continue
            assert about.get("description"), (name, key)
            assert f"<td><code>{key}</code></td>" in page, (name, key)
    assert "<td></td>" not in re.sub(r"<td></td>\n<td>[^<]", "", page)  # but for defaults
    for key, kind in recipe.PARTS.items():
        for name in recipe.plugins.names(kind):
            assert f'id="{key}-{name}"' in page


def test_examples_name_their_files_and_code_that_is_no_page_is_not_linked(site):
    assert 'class="filename">my_model.py' in (site / "own-model.html").read_text(encoding="utf-8")
    assert "language.py" not in "".join(
        re.findall(r"href=\"?([^\">]+)", (site / "devices.html").read_text(encoding="utf-8"))
    )
