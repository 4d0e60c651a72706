"""The pages: links lead somewhere, commands and keys are those of the code, the site builds."""

import re
import shlex
import subprocess
import sys

import pytest

from raysys import cli, reference
from raysys.config import load
from tests.support.markdown import blocks, unclear
from tests.support.wheels import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDES = [
    page for page in PAGES if page.parent == ROOT or page.parent.name in ("guides", "runbooks")
]
NAMES = {page: str(page.relative_to(ROOT)) for page in PAGES}
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
CODE = re.compile(r"`([^`\n]+)`")
KEY = re.compile(r"([a-z_]+(?:\.[a-z_]+)*)=")
PLACE = re.compile(r"`(raysys/[^`]+)`")
ROOM = re.compile(r"^\| `(\w+/)` \| (.*) \|$", re.MULTILINE)
FILE = re.compile(r"`(\w+\.py)`")
OTHERS = {"event"}  # a folder's column
NEWS = "CHANGELOG.md"  # names keys that have gone

pages = pytest.mark.parametrize("page", PAGES, ids=NAMES.values())
guides = pytest.mark.parametrize("page", GUIDES, ids=[NAMES[page] for page in GUIDES])


def known_keys():
    schemas = [schema for name in cli.COMMANDS for schema in cli.schemas(name).values()]
    sections = [section for schema in schemas for section in reference.sections(schema)]
    return {key.name for section in sections for key in section.keys}


@pages
def test_links_lead_somewhere(page):
    targets = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    dead = [link for link in targets if not (page.parent / link).exists()]
    assert dead == []


def test_readme_is_read_in_one_go():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pages
def test_lines_are_short(page):
    lines = page.read_text().splitlines()
    long = [line for line in lines if len(line) > 100 and not line.startswith(("|", "curl"))]
    text = [line for block in blocks(page.read_text()) for line in block.text.splitlines()]
    assert [line for line in long if line not in text] == []


@guides
def test_every_block_is_text_or_commands(page):
    assert unclear(page.read_text()) == []


@guides
def test_commands_are_those_of_the_code(page, caplog):
    shells = [block for block in blocks(page.read_text()) if block.info == "sh"]
    words = [shlex.split(line, comments=True) for block in shells for line in block.commands]
    for line in (line for line in words if line[0] == "raysys"):
        name, rest = cli.command_of(line[1:])
        if "--config" in rest:
            del rest[rest.index("--config") :][:2]
        _, schema = cli.resolve(name, rest)
        load(schema, [word for word in rest if "=" in word and not word.startswith("--")])
    assert caplog.messages == []  # a key of yesterday is accepted with a warning


@guides
def test_keys_are_those_of_the_code(page):
    if page.name == NEWS:
        pytest.skip("names keys of earlier versions")
    text = page.read_text()
    for block in blocks(text):
        text = text.replace(block.text, "")
    words = [word for code in CODE.findall(text) for word in code.split()]
    keys = {match.group(1) for word in words if (match := KEY.match(word))}
    known = known_keys() | OTHERS
    assert sorted(keys - known) == []


def test_files_that_pages_name_are_there():
    places = set(PLACE.findall((ROOT / "CONTRIBUTING.md").read_text()))
    for room, files in ROOM.findall((ROOT / "docs" / "architecture.md").read_text()):
        places |= {f"raysys/{room}{name}" for name in FILE.findall(files)}
    assert len(places) > 50
    assert sorted(place for place in places if not (ROOT / place).exists()) == []


def test_the_guide_names_every_check_of_doctor():
    source = "".join(path.read_text() for path in (ROOT / "raysys/commands").glob("doctor*.py"))
    checks = set(re.findall(r"""\b_?[Cc]heck\(\s*"([^"]+)""", source))
    guide = (ROOT / "docs" / "guides" / "cluster.md").read_text()
    rows = guide.split("| check |")[1].split("\n\n")[0].splitlines()[2:]
    named = {name for row in rows for name in CODE.findall(row.split("|")[1])}
    assert (len(checks) > 15, named) == (True, checks)


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "commands" / "raysys-train.html").read_text()
    keys = reference.sections(cli.resolve("train")[1])
    assert [key.name for part in keys for key in part.keys if f">{key.name}<" not in page] == []
