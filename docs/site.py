"""What the site has besides this folder: the README and other documents, and reference pages from the code itself."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from edgedl import recipe
from edgedl.cli.main import app

ROOT = Path(__file__).parents[1]
SHOWN = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "results/about.md": "benchmarks/README.md",
    **{f"results/{file.name}": f"benchmarks/results/{file.name}" for file in ROOT.glob("benchmarks/results/*.md")},
}
"""Pages of the site that lie elsewhere in the repository, from where their links are."""
PYTHON = {
    "What the commands do": "edgedl.api",
    "A run": "edgedl.run.Run",
    "The nouns": "edgedl.core",
    "Errors, and files that are open": "edgedl.sessions",
}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
KINDS = {"task": "Tasks", "model": "Networks", "steps": "Steps", "targets": "Targets"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are no files of this folder."""
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in SHOWN.items()}
    pages |= {"reference/cli.md": cli(), "reference/recipe.md": recipes(), "reference/python.md": python()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to pages where there are such; names of files in fences become their titles."""
    source = SHOWN.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    markdown = re.sub(r"^```(\w+) (\S+)$", r'```\1 title="\2"', markdown, flags=re.MULTILINE)
    return _linked(markdown, source, page.file.src_uri)


def _linked(markdown: str, source: str, page: str) -> str:
    pages = {shown: at for at, shown in SHOWN.items()}

    def led(match: re.Match[str]) -> str:
        there = os.path.normpath(PurePosixPath(source).parent / match[1])
        in_docs = there.startswith("docs/") and not there.endswith(".py")
        found = pages.get(there) or (there.removeprefix("docs/") if in_docs else None)
        if found is None:
            return f'](# "{there}")' if (ROOT / there).exists() else match[0]
        return f"]({os.path.relpath(found, PurePosixPath(page).parent)}{match[2] or ''})"

    if source.startswith("docs/reference/"):
        return markdown
    # What no page shows, such as a file of code, keeps its name alone.
    return re.sub(r"\[([^\]]+)\]\(# \"[^\"]*\"\)", r"\1", LINK.sub(led, markdown))


def cli() -> str:
    """Every command with its options, as the program itself declares them."""
    said = ["# Command line", str(typer.main.get_command(app).help), str(typer.main.get_command(app).epilog)]
    for path, command in _commands("edgedl", typer.main.get_command(app)):
        said += [f"## {path}", command.help or ""]
        context = command.make_context(path, [], resilient_parsing=True)
        rows = []
        for parameter in command.get_params(context):
            is_argument = parameter.param_type_name == "argument"
            names = [parameter.name.upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
            if "--help" in names:
                continue
            default = "" if parameter.default in (None, False, ()) or callable(parameter.default) else parameter.default
            meaning = getattr(parameter, "help", None) or ""
            rows.append((", ".join(f"`{name}`" for name in names), _code(default), meaning))
        said.append(_table(("option", "default", "meaning"), rows) if rows else "")
    return "\n\n".join(said) + "\n"


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, found in inner.items():
        yield from _commands(f"{path} {name}", found)


def recipes() -> str:
    """Every table of a recipe file with its keys, from its JSON Schema."""
    schema = recipe.schema()
    definitions = schema["$defs"]
    said = [
        "# Recipe files",
        "A recipe is a TOML file, whole and flat: no inheritance, no imports, no expressions. `edgedl recipes schema` "
        "prints its JSON Schema, from which this page is made; `edgedl recipes show cnn-int8` prints an example. "
        '`use` names what a table is for, or, as `use = "package.module:Class"`, a class of your own, which is '
        "imported; its keys are the class's fields.",
        "## The file",
        _keys(schema, schema.get("required", ())),
    ]
    for key in ("limits", "bench"):
        found = definitions[schema["properties"][key]["$ref"].rpartition("/")[2]]
        said += [f"## {key}", found["description"], _keys(found)]
    for key, title in KINDS.items():
        said.append(f"## {title}")
        for name, found in definitions.items():
            if name.startswith(recipe.PARTS[key] + "."):
                short = name.partition(".")[2]
                said += [f"### {short} {{ #{key}-{short} }}", found.get("description", ""), _keys(found)]
                for inner, about in found["properties"].items():
                    if "$ref" in about:
                        table = definitions[about["$ref"].rpartition("/")[2]]
                        said += [f"`{inner}` is a table itself. {table.get('description', '')}", _keys(table)]
    return "\n\n".join(said) + "\n"


def _keys(found: Mapping[str, Any], required: Any = None) -> str:
    required = found.get("required", ()) if required is None else required
    rows = [
        (
            f"`{key}`",
            _type(about),
            "required" if key in required else _code(json.dumps(about.get("default"))) if "default" in about else "",
            about.get("description", ""),
        )
        for key, about in found["properties"].items()
        if key != "use"
    ]
    return _table(("key", "type", "default", "meaning"), rows) if rows else "It has no keys."


def _type(about: Mapping[str, Any]) -> str:
    """In words: "number above 0", `"a"` or `"b"`."""
    if "enum" in about:
        return " or ".join(_code(json.dumps(value)) for value in about["enum"])
    if "const" in about:
        return _code(json.dumps(about["const"]))
    for several in ("anyOf", "oneOf"):
        if several in about:
            found = [_type(one) for one in about[several] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(found)) if len(found) < 5 else "table"
    if "$ref" in about or about.get("type") == "object":
        return "table"
    if about.get("type") == "array":
        places = about.get("prefixItems")
        inner = ", ".join(map(_type, places)) if places else _type(about.get("items", {}))
        return f"list of {inner or 'values'}"
    bounds = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
    limits = [said.format(about[bound]) for bound, said in bounds.items() if bound in about]
    return " ".join([about.get("type", "any"), *limits])


def python() -> str:
    """What can be imported, from its docstrings."""
    said = ["# Python", "`import edgedl` has what the first section shows; the rest is for tasks, steps and targets."]
    for title, name in PYTHON.items():
        said += [f"## {title}", f"::: {name}"]
    return "\n\n".join(said) + "\n"


def _code(value: Any) -> str:
    return f"`{value}`" if value != "" else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
