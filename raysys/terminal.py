"""A terminal whose last line is drawn anew while other lines are written above it.

The live line has no colours and moves the cursor to its start alone, so a job that is killed leaves
no terminal to repair.
"""

from __future__ import annotations

import os
import threading
from typing import Any, TextIO

_WIDTH = 80  # of a terminal that does not tell


class Terminal:
    """A text stream that keeps one live line below everything that is written to it.

    Args:
        stream: of the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._live = ""
        self._drawn = 0  # columns
        self._midline = False

    def write(self, text: str) -> int:
        """Write text above the live line."""
        with self._lock:
            self._draw("")
            self._stream.write(text)
            self._midline = not text.endswith("\n") if text else self._midline
            self._draw(self._live)
            self._stream.flush()
        return len(text)

    def show(self, line: str) -> None:
        """Replace the live line; "" takes it away."""
        with self._lock:
            self._live = line
            self._draw(line)
            self._stream.flush()

    def isatty(self) -> bool:
        """Return False: libraries that write here add no colours."""
        return False

    @property
    def columns(self) -> int:
        """Columns that a line may take: the last one stays free, so that none wraps."""
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            width = 0
        return (width or _WIDTH) - 1

    @property
    def ascii(self) -> bool:
        """Whether the stream takes no block characters."""
        return "utf" not in (self._stream.encoding or "").lower()

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all other things."""
        return getattr(self._stream, name)

    def _draw(self, line: str) -> None:
        if self._midline:  # somebody else's line is not finished
            return
        rest = " " * (self._drawn - len(line))
        if line or rest:
            self._stream.write(f"\r{line}{rest}" if line else f"\r{rest}\r")
        self._drawn = len(line)
