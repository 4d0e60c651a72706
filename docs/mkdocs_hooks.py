"""What `make docs` adds to the pages of this folder.

Pages of the root folder (README, CONTRIBUTING, ...) join the site under names of their own, links
between the two follow, and the command reference is written from the configuration classes.
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mkdocs.structure.files import File, Files

from raysys import cli, reference

ROOT = Path(__file__).resolve().parents[1]
# page of the repository -> page of the site; pages of docs/ keep their place
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
_PLOTS = "benchmarks/plots"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_HEADER = "| key | default | what | type and range |\n|---|---|---|---|\n"

log = logging.getLogger("mkdocs.hooks.pages")


def on_config(config: Any) -> Any:
    """Fill the navigation: decisions by their numbers, then the commands."""
    decisions = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    commands = [_place(name) for name in cli.COMMANDS]
    for entry in config.nav:
        if "Decisions" in entry:
            names = [f"decisions/{path.name}" for path in decisions]
            entry["Decisions"] = ["decisions/index.md", *names]
        if "Guides" in entry:
            after = config.nav.index(entry) + 1
    config.nav.insert(after, {"Commands": ["commands.md", *commands]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root folder, the plots, and the reference."""
    for source, page in ROOT_PAGES.items():
        if (ROOT / source).exists():
            text = (ROOT / source).read_text()
            files.append(File.generated(config, page, content=text))
    for plot in sorted((ROOT / _PLOTS).glob("*.*")):
        files.append(File.generated(config, f"plots/{plot.name}", abs_src_path=str(plot)))
    files.append(File.generated(config, "commands.md", content=_commands_page()))
    for name in cli.COMMANDS:
        files.append(File.generated(config, _place(name), content=_command_page(name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    on_site = {site: source for source, site in ROOT_PAGES.items()}
    here = page.file.src_uri
    source = on_site.get(here, f"docs/{here}")
    return _LINK.sub(lambda link: _followed(link, source, here), markdown)


def _followed(link: re.Match[str], source: str, here: str) -> str:
    """Return a link as the site has it; what the site does not show keeps its text alone."""
    image, text, target, anchor = link.groups()
    if "://" in target or target.startswith("mailto:"):
        return link.group()
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    folder, name = posixpath.split(path)
    if path in ROOT_PAGES:
        site = ROOT_PAGES[path]
    elif folder == _PLOTS:
        site = f"plots/{name}"
    elif path.startswith("docs/"):
        site = path.removeprefix("docs/")
    else:
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", source, target)
        return text
    start = posixpath.dirname(here) or "."
    return f"{image}[{text}]({posixpath.relpath(site, start)}{anchor or ''})"


def _place(name: str) -> str:
    """Return the page of a command, whose name may have two words."""
    return f"commands/raysys-{name.replace(' ', '-')}.md"


def _commands_page() -> str:
    lines = ["# Commands", "", "`raysys X --help` prints what these pages say.", ""]
    lines += ["| command | does |", "|---|---|"]
    for name, command in cli.COMMANDS.items():
        lines.append(f"| [`{name}`]({_place(name)}) | {command.summary} |")
    return "\n".join(lines) + "\n"


def _command_page(name: str) -> str:
    """Return the page of a command: every key with default, sentence, type and range."""
    lines = [f"# raysys {name}", "", f"{cli.COMMANDS[name].summary}.", ""]
    schemas = cli.schemas(name)
    for title, schema in schemas.items():
        if len(schemas) > 1:
            lines += [f"## {title}", ""]
        for section in reference.sections(schema):
            lines += _section_lines(section, depth=2 + (len(schemas) > 1))
    lines.append("Keys with ° say where or how fast: they do not change what is built.")
    return "\n".join(lines) + "\n"


def _section_lines(section: reference.Section, *, depth: int) -> list[str]:
    lines = [f"{'#' * depth} `{section.name}.*`", ""] if section.name else []
    lines += [_cell(section.sentence), "", *_HEADER.splitlines()]
    for key in section.keys:
        about = "; ".join(filter(None, (key.type, key.accepted)))
        name = f"`{key.name}`" + ("" if key.decides else " °")
        default = f"`{key.default}`" if key.default else ""
        lines.append(f"| {name} | {_cell(default)} | {_cell(key.sentence)} | {_cell(about)} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    """Return text as a cell of a table shows it; what stands between backticks stays as it is."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)
