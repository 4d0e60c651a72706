"""What a person sees of long work: one live line on a terminal, log lines elsewhere.

    with progress.stage("read log", total=n_rows, unit="rows") as work:
        work.add(n)

Whoever does the work tells its stages and knows no terminal. The entry point chooses where they are
shown (`shown`); until then, in a library's use, they are log lines:

    bar   the innermost stage is one line that is drawn anew; whatever else is written goes above it
    log   a line every few seconds, or one per step where steps bring their own
    off   nothing

With `bar` and `log` a finished stage leaves one log line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from tqdm import tqdm

from raysys.config import require
from raysys.terminal import Terminal

log = logging.getLogger(__name__)

MODES = ("auto", "bar", "log", "off")
CLOCK, STEPS, NONE = "clock", "steps", "none"  # what log lines a stage has

_LOG_EVERY_S = 5.0
_DRAW_EVERY_S = 0.1
_TICK_S = 1.0  # a line without news is drawn anew, so that its clock goes on
_BAR = (6, 24)  # columns at least and at most
_ROUNDING = 1e-6  # of fractions that add up to whole units


@dataclasses.dataclass(eq=False)
class Stage:
    """Work that is going on.

    Attributes:
        name: what is done.
        unit: what is counted, in the plural.
        total: units to do; None where that is not known.
        lines: in a log. `CLOCK`: every few seconds and at the end; `STEPS`: those of `say`, and at
            the end; `NONE`: the stage around it says enough.
        done: units finished; parts of a unit count.
        before: of them, those of an earlier run that was interrupted.
        rows: rows behind them; None where they are not counted.
        note: the best value so far, or whatever else matters.
        started: time.perf_counter() at the start.
    """

    name: str
    unit: str
    total: float | None
    lines: str = CLOCK
    done: float = 0.0
    before: float = 0.0
    rows: int | None = None
    note: str = ""
    started: float = dataclasses.field(default_factory=time.perf_counter)
    _screen: Screen = dataclasses.field(default_factory=lambda: _screen)

    def begin(self) -> Stage:
        """Show the stage; `stage` does both for a block."""
        self._screen.opened(self)
        return self

    def end(self, *, finished: bool) -> None:
        """Show it no more; not `finished`: by an error, and no log line speaks of it."""
        self._screen.closed(self, finished=finished)

    def add(self, n: float = 1, *, rows: int | None = None) -> None:
        """Count finished units, and the rows behind them."""
        self.done += n
        if rows is not None:
            self.rows = rows + (self.rows or 0)
        self._screen.changed(self, "")

    def skip(self, n: float) -> None:
        """Count units that an earlier run finished."""
        self.before += n
        self.add(n)

    def say(self, line: str, *, note: str = "") -> None:
        """Tell what a step came to.

        Args:
            line: for logs, in full.
            note: for the live line and the line that the stage leaves, in a few words.
        """
        self.note = note
        self._screen.changed(self, line)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.started

    @property
    def rate(self) -> float | None:
        """Rows per second; None where no rows are counted."""
        rows = self.done if self.unit == "rows" else self.rows
        return None if rows is None else rows / max(self.seconds, 1e-9)


class Screen(Protocol):
    """Where stages are shown."""

    def opened(self, stage: Stage) -> None:
        """Learn of a stage that begins, inside those that are open."""

    def changed(self, stage: Stage, line: str) -> None:
        """Learn of progress; `line` is what a log should say of it, if anything."""

    def closed(self, stage: Stage, *, finished: bool) -> None:
        """Learn of a stage's end; not `finished`: by an error."""


class LogLines:
    """Stages as log lines."""

    def __init__(self) -> None:
        self._logged: dict[Stage, float] = {}

    def opened(self, stage: Stage) -> None:
        """Start the clock."""
        self._logged[stage] = stage.started

    def changed(self, stage: Stage, line: str) -> None:
        """Log the step's own line, else every few seconds how far the stage is."""
        now = time.perf_counter()
        if line:
            self._logged[stage] = now
            log.info("%s", line)
        elif stage.total is not None and stage.done >= stage.total:
            return  # the line at the end says it
        elif stage.lines == CLOCK and now - self._logged.get(stage, now) > _LOG_EVERY_S:
            self._logged[stage] = now
            log.info("%s", summary(stage))

    def closed(self, stage: Stage, *, finished: bool) -> None:
        """Log what the stage came to."""
        self._logged.pop(stage, None)
        if finished and stage.lines != NONE:
            log.info("%s", summary(stage))


class Nowhere:
    """Stages are not shown."""

    def opened(self, stage: Stage) -> None:
        """Do nothing."""

    def changed(self, stage: Stage, line: str) -> None:
        """Do nothing."""

    def closed(self, stage: Stage, *, finished: bool) -> None:
        """Do nothing."""


class LiveLine:
    """The innermost open stage as the live line of a terminal; a clock keeps it going."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._open: list[Stage] = []
        self._lock = threading.RLock()
        self._drawn = 0.0
        self._rest = threading.Event()

    def opened(self, stage: Stage) -> None:
        """Show the stage in place of the one around it."""
        with self._lock:
            self._open.append(stage)
            self._show()
            if len(self._open) == 1:
                self._rest = threading.Event()
                threading.Thread(target=self._tick, args=(self._rest,), daemon=True).start()

    def changed(self, stage: Stage, line: str) -> None:
        """Draw the line anew, unless that has just been done."""
        if line or time.perf_counter() - self._drawn > _DRAW_EVERY_S:
            self._show()

    def closed(self, stage: Stage, *, finished: bool) -> None:
        """Show the stage around it again, and log what this one came to."""
        with self._lock:
            if stage in self._open:
                self._open.remove(stage)
            if not self._open:
                self._rest.set()
            self._show()
        if finished and stage.lines != NONE:
            log.info("%s", summary(stage))

    def close(self) -> None:
        """Take the line away."""
        with self._lock:
            self._open.clear()
            self._rest.set()
            self._show()

    def _show(self) -> None:
        with self._lock:
            self._drawn = time.perf_counter()
            stage = self._open[-1] if self._open else None
            terminal = self._terminal
            line = live_line(stage, terminal.columns, ascii=terminal.ascii) if stage else ""
            terminal.show(line)

    def _tick(self, rest: threading.Event) -> None:
        while not rest.wait(_TICK_S):
            self._show()


_screen: Screen = LogLines()


@contextlib.contextmanager
def stage(
    name: str, *, total: float | None = None, unit: str = "steps", lines: str = CLOCK
) -> Iterator[Stage]:
    """Show the block as a stage of work; see `Stage` for the arguments."""
    work = Stage(name, unit, total, lines).begin()
    finished = False
    try:
        yield work
        finished = True
    finally:
        work.end(finished=finished)


@contextlib.contextmanager
def shown(mode: str) -> Iterator[None]:
    """Choose where the stages of the block are shown: this process's standard error.

    Args:
        mode: one of `MODES`; `auto` is `bar` on a terminal, else `log`.

    Raises:
        ConfigError: there is no such mode.
    """
    require(mode in MODES, "progress", mode, ", ".join(MODES))
    if mode == "auto":
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        mode = "bar" if sys.stderr.isatty() and not dumb else "log"
    if mode != "bar":
        with shown_on(LogLines() if mode == "log" else Nowhere()):
            yield
        return
    terminal: Any = Terminal(sys.stderr)
    live = LiveLine(terminal)
    with (
        contextlib.redirect_stderr(terminal),
        contextlib.redirect_stdout(terminal),  # commands leave it alone: what comes is noise
        contextlib.closing(live),
        shown_on(live),
    ):
        yield


@contextlib.contextmanager
def shown_on(screen: Screen) -> Iterator[None]:
    """Show the stages of the block on a screen."""
    global _screen
    before, _screen = _screen, screen
    try:
        yield
    finally:
        _screen = before


def summary(stage: Stage) -> str:
    """Return how far a stage is as a log line."""
    done = f"{int(stage.done + _ROUNDING)}"
    parts = [stage.name, f"{stage.unit}={done}" + (f"/{stage.total:.0f}" if stage.total else "")]
    if stage.rows is not None:
        parts.append(f"rows={stage.rows}")
    if stage.rate is not None:
        parts.append(f"rows_per_s={stage.rate:.0f}")
    return " ".join([*parts, *([stage.note] if stage.note else []), f"seconds={stage.seconds:.1f}"])


def live_line(stage: Stage, columns: int, *, ascii: bool = False) -> str:
    """Return a stage as one line of at most `columns` characters.

    What does not fit is left out: first the rows and their rate, then the note, then the bar.
    """
    head = stage.name
    count = f"{_short(int(stage.done + _ROUNDING))}"
    if stage.total:
        head += f" {min(stage.done / stage.total, 1):4.0%}"
        count += f"/{_short(int(stage.total))}"
    parts = [f"{count} {stage.unit}"] if stage.done or stage.total else []
    parts += [_time(stage), stage.note]
    if stage.rows is not None:
        parts.append(f"{_short(stage.rows)} rows")
    if stage.rate is not None:
        parts.append(f"{_short(stage.rate)} rows/s")
    text = ""
    for part in parts:
        longer = f"{text}, {part}" if text else part
        if part and len(head) + 1 + len(longer) <= columns:
            text = longer
    room = min(columns - len(head) - len(text) - 4, _BAR[1])
    if not stage.total or room < _BAR[0]:
        return f"{head} {text}"[:columns].rstrip()
    bar: str = tqdm.format_meter(
        min(stage.done, stage.total),
        stage.total,
        stage.seconds,
        ascii=ascii,
        bar_format=f"{{bar:{room}}}",  # a format: names and notes may hold braces
    )
    return f"{head} |{bar}| {text}"


def _time(stage: Stage) -> str:
    """Return the time left where it can be told, else the time gone."""
    seconds = stage.seconds
    new = stage.done - stage.before
    if not stage.total or not new:
        return str(tqdm.format_interval(seconds))
    left = seconds * max(stage.total - stage.done, 0) / new
    return f"{tqdm.format_interval(left)} left"


def _short(number: float) -> str:
    """Return a count in at most five characters."""
    return f"{number:.0f}" if number < 10_000 else str(tqdm.format_sizeof(number))
