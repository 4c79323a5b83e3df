"""What is published: the source archive makes the very wheel that the repository does, and that does the whole job."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import quick, venvs
from tests.test_light_install import REPOSITORY, build_wheel

DOCUMENTS = ("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "SECURITY.md")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with the source archive, and the wheel that was built of it."""
    folder = tmp_path_factory.mktemp("published")
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.pyc", "runs", "site", ".*_cache", "shared")
    shutil.copytree(REPOSITORY, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "source")]
    done = subprocess.run(command, env=venvs.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_the_source_archive_makes_the_wheel_of_the_repository(published, tmp_path_factory):
    (of_archive,) = published.glob("*.whl")
    of_repository = build_wheel(tmp_path_factory.mktemp("wheel"))
    assert contents(of_archive) == contents(of_repository)


def test_the_source_archive_has_tests_and_documents_and_nothing_that_came_by_chance(published):
    (archive,) = published.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    tracked = {"tests/test_package.py", "docs/quickstart.md", "recipes/cnn-int8.toml", "mkdocs.yml", "Makefile"}
    assert {*DOCUMENTS, *tracked} <= names
    known = {"edgedl", "recipes", "tests", "docs", "benchmarks", ".ci", *DOCUMENTS}
    assert {name.partition("/")[0] for name in names} <= known | {
        "mkdocs.yml", "Makefile", "pyproject.toml", "PKG-INFO", ".gitignore",
    }  # fmt: skip


def test_the_wheel_by_itself_does_the_whole_job(published, tmp_path):
    """In an environment of its own that borrows all other packages, and far from the repository."""
    (wheel,) = published.glob("*.whl")
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # A path alone: what is installed there for the repository itself is not looked at.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([*pip, "--ignore-installed"], env=venvs.environment(), check=True)

    def run(*command: str) -> str:
        environment = quick.measuring_briefly(venvs.environment()) | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=500
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(str(python), "-c", "import edgedl; print(edgedl.__file__)").strip()
    assert Path(where).is_relative_to(folder)
    report = json.loads(run(str(folder / "bin" / "edgedl"), "compress", "--recipe", "mlp-dynamic", "--json", "--quiet"))
    assert {row["status"] for row in report["rows"]} <= {"ok", "built", "refused"}
    assert {"float", "compressed"} <= {row["variant"] for row in report["rows"]}
    (page,) = tmp_path.glob("runs/mlp-dynamic/*/report.html")
    assert "plotly" in page.read_text(encoding="utf-8")


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
