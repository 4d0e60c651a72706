"""A pseudo-terminal: what a job writes to it, and what then stands on the screen."""

import contextlib
import dataclasses
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Screen:
    """Lines that a terminal shows; `drawn` are all that it ever showed, `wraps` those too long."""

    lines: list
    drawn: list
    wraps: int


def screen(text, *, columns):
    """Return what a terminal makes of characters, carriage returns and line ends."""
    lines, drawn, column, wraps = [[]], [], 0, 0
    for letter in text:
        if letter in "\r\n":
            line = "".join(lines[-1]).rstrip()
            if line and (not drawn or drawn[-1] != line):
                drawn.append(line)
            column = 0
            if letter == "\n":
                lines.append([])
            continue
        if column == columns:
            lines.append([])
            column, wraps = 0, wraps + 1
        row = lines[-1]
        row[column : column + 1] = [letter]
        column += 1
    return Screen(["".join(line).rstrip() for line in lines], drawn, wraps)


class Terminal:
    """A pseudo-terminal of a width; `text` is all that was written to it."""

    def __init__(self, *, columns):
        self._reader, self.writer = pty.openpty()
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self.writer, termios.TIOCSWINSZ, size)
        self.columns = columns
        self.modes = termios.tcgetattr(self.writer)
        self._bytes = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        with contextlib.suppress(OSError):  # the last writer has gone
            while chunk := os.read(self._reader, 4096):
                self._bytes += chunk

    @property
    def so_far(self):
        return self._bytes.decode(errors="replace")

    def stream(self):
        return open(self.writer, "w", encoding="utf-8", closefd=False)

    def close(self):
        """Hang up, and return all that was written."""
        os.close(self.writer)
        self._thread.join(10)
        os.close(self._reader)
        return self._bytes.decode()


def start(words, *, terminal, module="raysys.cli", **settings):
    """Start `python -m module words` with its standard error on the terminal."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONUTF8": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdout=subprocess.PIPE,
        stderr=terminal.writer,
        env=env,
        text=True,
        **settings,
    )
