"""From what a page holds to one HTML file that asks nobody for anything.

content.py   what a page holds          charts.py, svg.py   its drawings
templates/   its form and its CSS       text.py             how values are written
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import jinja2
import pyarrow as pa

from raysys.errors import RaysysError, told
from raysys.reports.html.content import Note, Page, Section
from raysys.store.builds import Workspace
from raysys.store.storage import join

log = logging.getLogger(__name__)

UNREADABLE = (
    RaysysError,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
    pa.ArrowException,
)
_TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page) -> str:
    """Return the page as HTML; all text in it is escaped, drawings are not."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return found.get_template("page.html").render(page=page) + "\n"


def publish(workspace: Workspace, name: str, page: Page) -> str:
    """Write a page into a run in one step; return its path or URI.

    Args:
        workspace: of the run.
        name: path of the page within the run.
        page: what it holds.
    """
    workspace.storage.write_atomic(name, render(page))
    where = join(workspace.run, name)
    log.info("page path=%s", where)
    return where


def guarded(title: str, make: Callable[[], Section | None]) -> Section:
    """Return a section, or one that says what of it cannot be read: a report never fails by it."""
    try:
        return make() or Section(title, ())
    except UNREADABLE as error:
        said = f"{type(error).__name__}: {told(error)}"
        log.warning("a part of the report cannot be read part=%r error=%s", title, said)
        return Section(title, [Note(f"This part cannot be shown, its data are damaged. {said}")])


def name_of_run(run: str) -> str:
    """Return what people call a run: the last part of its path, no keys of its URI."""
    place = told(ValueError(run)).partition("?")[0]
    return place.rstrip("/").rpartition("/")[2] or place


def command(words: str, run: str) -> str:
    """Return a command for a run, without what its URI may hold of keys."""
    return f"raysys {words} run={told(ValueError(run))}"
