"""Carries log lines and progress from workers to the job, which alone writes to the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import ray

from raysys import progress

log = logging.getLogger(__name__)

_POLL_S = 0.5
_TELL_EVERY_S = 0.2


@dataclasses.dataclass(frozen=True)
class LogLine:
    """A worker's log record."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Opened:
    """A stage of a worker begins; `number` is the worker's own."""

    number: int
    name: str
    unit: str
    total: float | None
    lines: str


@dataclasses.dataclass(frozen=True)
class Changed:
    """A stage goes on: `done` and `before` units and `rows`, all since the last change."""

    number: int
    done: float
    before: float
    rows: int | None
    line: str
    note: str


@dataclasses.dataclass(frozen=True)
class Closed:
    """A stage ends, by an error if not `finished`."""

    number: int
    finished: bool


@dataclasses.dataclass(frozen=True)
class Started:
    """A worker starts, perhaps in place of one that was lost: no stage is open."""


Letter = LogLine | Started | Opened | Changed | Closed


class Mailbox:
    """Letters of workers to the job, in order; an actor."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []

    def put(self, letter: Letter) -> None:
        """Add a letter."""
        self._letters.append(letter)

    def take(self) -> list[Letter]:
        """Return the letters since the last call."""
        letters, self._letters = self._letters, []
        return letters


class _LogSender(logging.Handler):
    def __init__(self, mailbox: Any) -> None:
        super().__init__()
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        self._mailbox.put.remote(LogLine(record.levelno, record.getMessage()))


class _StageSender:
    """Sends a worker's stages; many small steps are one letter."""

    def __init__(self, mailbox: Any) -> None:
        self._put = mailbox.put.remote
        self._sent: dict[progress.Stage, tuple[int, progress.Stage]] = {}
        self._count = 0
        self._last = 0.0

    def opened(self, stage: progress.Stage) -> None:
        self._count += 1
        self._sent[stage] = (self._count, dataclasses.replace(stage))
        self._put(Opened(self._count, stage.name, stage.unit, stage.total, stage.lines))

    def changed(self, stage: progress.Stage, line: str) -> None:
        now = time.perf_counter()
        if line or now - self._last > _TELL_EVERY_S:
            self._last = now
            self._send(stage, line)

    def closed(self, stage: progress.Stage, *, finished: bool) -> None:
        self._send(stage, "")
        self._put(Closed(self._sent.pop(stage)[0], finished))

    def _send(self, stage: progress.Stage, line: str) -> None:
        number, old = self._sent[stage]
        before = stage.before - old.before
        done = stage.done - old.done - before
        rows = None if stage.rows is None else stage.rows - (old.rows or 0)
        self._put(Changed(number, done, before, rows, line, stage.note))
        self._sent[stage] = (number, dataclasses.replace(stage))


@contextlib.contextmanager
def told(mailbox: Any, rank: int) -> Iterator[None]:
    """In a worker: let rank 0 tell its stages and log lines, and every rank its errors."""
    root = logging.getLogger("raysys")
    root.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    root.handlers = [_LogSender(mailbox)]
    if rank == 0:
        mailbox.put.remote(Started())
    with progress.shown_on(_StageSender(mailbox) if rank == 0 else progress.Nowhere()):
        yield


@contextlib.contextmanager
def emptied(mailbox: Any) -> Iterator[None]:
    """In the job: log and show what arrives in the mailbox while the block runs."""
    done = threading.Event()
    reader = Reader()

    def read() -> None:
        try:
            while not done.wait(_POLL_S):
                reader.read(ray.get(mailbox.take.remote()))
        except ray.exceptions.RayError as error:
            _warn(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        try:
            reader.read(ray.get(mailbox.take.remote()))
        except ray.exceptions.RayError as error:  # the result of the block counts, not its news
            _warn(error)
        finally:
            reader.forget()


def _warn(error: Exception) -> None:
    log.warning("progress is no longer shown error=%s", type(error).__name__)


class Reader:
    """Shows a worker's stages where the job's own are shown.

    Letters of a lost worker may arrive after its successor has started: those of stages that are
    not open are passed over.
    """

    def __init__(self) -> None:
        self._open: dict[int, progress.Stage] = {}

    def read(self, letters: Iterable[Letter]) -> None:
        """Do what letters say."""
        for letter in letters:
            match letter:
                case LogLine():
                    log.log(letter.level, "%s", letter.text)
                case Started():
                    self.forget()
                case Opened(number, name, unit, total, lines):
                    self._open[number] = progress.Stage(name, unit, total, lines).begin()
                case Changed(number, done, before, rows, line, note):
                    stage = self._open.get(number)
                    if stage is None:
                        continue
                    stage.skip(before)
                    stage.add(done, rows=rows)
                    if line:
                        stage.say(line, note=note)
                case Closed(number, finished):
                    if number in self._open:
                        self._open.pop(number).end(finished=finished)

    def forget(self) -> None:
        """End the stages of a worker that is gone."""
        while self._open:
            self._open.popitem()[1].end(finished=False)
