"""Fenced blocks of a Markdown page."""

import dataclasses
import re

_FENCE = re.compile(r"```(\S*)\s*")
_EXCERPT = re.compile(r"<!-- excerpt: \S.* -->")


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: number of its opening fence, from 1.
        info: the word behind that fence.
        excerpt: a comment before the fence says that, and why, it is not to be run.
        text: what stands inside.
    """

    line: int
    info: str
    excerpt: bool
    text: str

    @property
    def commands(self):
        """Return the commands of a shell block; a backslash at a line's end carries one on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks(page):
    """Return the fenced blocks of a page in order."""
    result, start = [], None
    lines = page.splitlines()
    for number, line in enumerate(lines):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            continue
        if start is None:
            start, info = number, fence.group(1)
            continue
        excerpt = start > 0 and _EXCERPT.fullmatch(lines[start - 1]) is not None
        result.append(Block(start + 1, info, excerpt, "\n".join(lines[start + 1 : number])))
        start = None
    assert start is None, f"the block of line {start + 1} is not closed"
    return result


def unclear(page):
    """Return the lines of blocks that are neither text, nor commands, nor marked as an excerpt."""
    clear = ("sh", "text")
    return [block.line for block in blocks(page) if block.info not in clear]
