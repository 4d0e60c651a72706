"""What a page holds: sections of notes, tables and figures. The templates give them their form."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

GOOD, EVEN, BAD = "good", "even", "bad"
_HALF = 62  # letters


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text.

    Attributes:
        text: what stands there.
        strong: whether it is the best of its column.
        share: 0 to 1, how much of it is filled; None: no ground.
        href: where it leads, relative to the page; empty: nowhere.
    """

    text: str
    strong: bool = False
    share: float | None = None
    href: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows below a head.

    Attributes:
        caption: what the rows are, also for those who cannot see them.
        head: names of the columns.
        rows: cells, as many as the head has.
        left: numbers of the columns of words; others are set to the right, as numbers are.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    left: Collection[int] = (0,)

    @property
    def is_narrow(self) -> bool:
        """Whether it fits in half the width of a wide screen."""
        widths = [
            max(len(cell if isinstance(cell, str) else cell.text) for cell in column)
            for column in zip(self.head, *self.rows, strict=True)
        ]
        return sum(widths) + 3 * len(widths) <= _HALF


@dataclasses.dataclass(frozen=True)
class Mark:
    """One thing in a legend: colour number or None for grey, marker and style of its line."""

    name: str
    colour: int | None
    marker: str = ""
    style: str = "-"


@dataclasses.dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        title: above it.
        wide: an SVG of a wide screen or of paper.
        narrow: an SVG of a narrow screen; empty: `wide` is small enough.
        description: what it shows, in a sentence, for those who cannot see it.
    """

    title: str
    wide: str
    description: str
    narrow: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """Panels with one legend, and the same figures as a table.

    Attributes:
        title: of all panels.
        panels: the drawings.
        table: what they show.
        legend: what their colours and marks mean.
        note: how to read it; empty: it speaks for itself.
    """

    title: str
    panels: Sequence[Panel]
    table: Table
    legend: Sequence[Mark] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Note:
    """A sentence.

    Attributes:
        text: the sentence.
        code: a command that follows it; empty: none.
    """

    text: str
    code: str = ""


@dataclasses.dataclass(frozen=True)
class Folded:
    """Blocks that are shown when asked for, and in print."""

    title: str
    blocks: Sequence[Table | Figure | Note]


Block = Table | Figure | Note | Folded


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page with a title.

    Attributes:
        title: stands in the table of contents too.
        blocks: what it holds, top to bottom.
        lead: the sentence that the section comes down to; empty: none.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """The fragment that leads here."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        kicker: what sort of page it is, above the title.
        title: names what the page is about.
        verdict: the answer, first.
        tone: good, even or bad, how the verdict is shown.
        key_figures: {name: (value, what it means or its interval)}.
        sections: top to bottom; those without blocks are left out.
        missing: {what is not there: the command that would make it}.
        foot: settings, builds, versions.
    """

    kicker: str
    title: str
    verdict: str
    tone: str
    key_figures: Mapping[str, tuple[str, str]]
    sections: Sequence[Section]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    foot: Sequence[Section] = ()

    @property
    def shown(self) -> list[Section]:
        """The sections that hold something."""
        return [section for section in self.sections if section.blocks]
