"""Carries log lines and progress from workers to the job, which alone writes to the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysys import progress
from raysys.cluster.connect import asked

log = logging.getLogger(__name__)

_POLL_S = 0.5
_TELL_EVERY_S = 0.2
_WAIT_S = 20.0  # without workers until the job says so, then again and again


@dataclasses.dataclass(frozen=True)
class LogLine:
    """A log record of a worker; `worker` is "" where that is not rank 0."""

    worker: str
    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Opened:
    """A stage of a worker begins; `number` is the worker's own."""

    worker: str
    number: int
    name: str
    unit: str
    total: float | None
    lines: str


@dataclasses.dataclass(frozen=True)
class Changed:
    """A stage goes on: it has come to `done` units, `before` of them earlier, and `rows`.

    `stage` is how it began: the mailbox may have lost that letter, and those between.
    """

    worker: str
    stage: Opened
    done: float
    before: float
    rows: int | None
    line: str
    note: str


@dataclasses.dataclass(frozen=True)
class Closed:
    """A stage ends, by an error if not `finished`."""

    worker: str
    number: int
    finished: bool


@dataclasses.dataclass(frozen=True)
class Started:
    """A worker starts, perhaps in place of one that was lost: no stage is open."""

    worker: str


@dataclasses.dataclass(frozen=True)
class Lost:
    """Workers stopped; `reason` is what became of rank `rank`."""

    rank: int
    reason: str


Letter = LogLine | Started | Lost | Opened | Changed | Closed


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


def opened() -> Any:
    """Return a mailbox in the job's own node: whatever host is lost, it is there for the others."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox)
    return actor.options(scheduling_strategy=here).remote()


class Losses(ray.train.UserCallback):  # type: ignore[misc]
    """Tells the job that workers are lost, from the process that watches them."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell of the first rank's error."""
        rank = min(worker_exceptions)
        reason = type(worker_exceptions[rank]).__name__
        self._mailbox.put.remote(Lost(rank, reason))


class _LogSender(logging.Handler):
    def __init__(self, mailbox: Any, worker: str) -> None:
        super().__init__()
        self._mailbox = mailbox
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._mailbox.put.remote(LogLine(self._worker, record.levelno, record.getMessage()))


class _StageSender:
    """Sends a worker's stages; many small steps are one letter."""

    def __init__(self, mailbox: Any, worker: str) -> None:
        self._put = mailbox.put.remote
        self._worker = worker
        self._open: dict[progress.Stage, Opened] = {}
        self._count = 0
        self._last = 0.0

    def opened(self, stage: progress.Stage) -> None:
        self._count += 1
        letter = Opened(self._worker, self._count, stage.name, stage.unit, stage.total, stage.lines)
        self._open[stage] = letter
        self._put(letter)

    def changed(self, stage: progress.Stage, line: str) -> None:
        now = time.perf_counter()
        if line or now - self._last > _TELL_EVERY_S:
            self._last = now
            self._send(stage, line)

    def closed(self, stage: progress.Stage, *, finished: bool) -> None:
        self._send(stage, "")
        self._put(Closed(self._worker, self._open.pop(stage).number, finished))

    def _send(self, stage: progress.Stage, line: str) -> None:
        how_far = (stage.done, stage.before, stage.rows)
        self._put(Changed(self._worker, self._open[stage], *how_far, line, stage.note))


@contextlib.contextmanager
def told(mailbox: Any, rank: int) -> Iterator[None]:
    """In a worker: let rank 0 tell its stages and log lines, and every rank its errors."""
    root = logging.getLogger("raysys")
    root.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    worker = secrets.token_hex(8) if rank == 0 else ""
    root.handlers = [_LogSender(mailbox, worker)]
    if rank == 0:
        mailbox.put.remote(Started(worker))
    with progress.shown_on(_StageSender(mailbox, worker) if rank == 0 else progress.Nowhere()):
        yield


@contextlib.contextmanager
def emptied(mailbox: Any, *, waiting: Callable[[], str] = lambda: "") -> Iterator[None]:
    """In the job: log and show what arrives in the mailbox while the block runs.

    Args:
        mailbox: of `opened`.
        waiting: says what is waited for; logged again and again while there are no workers.
    """
    done = threading.Event()
    reader = Reader()

    def read() -> None:
        said = time.monotonic()
        while not done.wait(_POLL_S):
            try:
                reader.read(ray.get(mailbox.take.remote()))
            except ray.exceptions.ActorUnavailableError:  # it starts anew, without its letters
                continue
            except ray.exceptions.RayError as error:
                _warn(error)
                return
            now = time.monotonic()
            if reader.absent_s() < _WAIT_S:
                said = now - _WAIT_S
            elif now - said >= _WAIT_S:
                said = now
                log.info("waiting for workers seconds=%.0f %s", reader.absent_s(), asked(waiting))

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

    Letters of a lost worker that arrive after its successor has started are passed over. Any other
    letter of a rank 0 says that workers are there: the mailbox may have lost earlier ones.
    """

    def __init__(self) -> None:
        self._worker = ""
        self._gone: set[str] = set()
        self._open: dict[int, progress.Stage] = {}
        self._absent: float | None = time.monotonic()
        self._lost: tuple[str, float] | None = None  # the stage of lost workers, how far it was

    def absent_s(self) -> float:
        """Return for how long there have been no workers, 0 where there are."""
        return 0.0 if self._absent is None else time.monotonic() - self._absent

    def read(self, letters: Iterable[Letter]) -> None:
        """Do what letters say."""
        for letter in letters:
            if isinstance(letter, Lost):
                self._lose(letter)
                continue
            is_present = self._is_present(letter.worker)
            match letter:
                case LogLine(_, level, text):
                    log.log(level, "%s", text)
                case Opened() if is_present:
                    self._stage(letter)
                case Changed() if is_present:
                    self._change(letter)
                case Closed(_, number, finished) if is_present and number in self._open:
                    self._open.pop(number).end(finished=finished)

    def _is_present(self, worker: str) -> bool:
        """Tell whether a letter's worker is that of now, which one that was unknown becomes."""
        if not worker or worker in self._gone:
            return False
        if worker != self._worker:
            self._gone.add(self._worker)
            self._stop()
            self._worker, self._absent = worker, None
        return True

    def _stage(self, letter: Opened) -> progress.Stage:
        if letter.number not in self._open:
            stage = progress.Stage(letter.name, letter.unit, letter.total, letter.lines)
            self._open[letter.number] = stage.begin()
        return self._open[letter.number]

    def _change(self, letter: Changed) -> None:
        stage = self._stage(letter.stage)
        stage.skip(letter.before - stage.before)
        done = letter.done - stage.done
        stage.add(done, rows=None if letter.rows is None else letter.rows - (stage.rows or 0))
        if done:
            self._found(stage)
        if letter.line:
            stage.say(letter.line, note=letter.note)

    def _lose(self, letter: Lost) -> None:
        if self._absent is not None:
            return
        self._gone.add(self._worker)
        self._worker, self._absent = "", time.monotonic()
        log.warning("workers stopped rank=%d reason=%s", letter.rank, letter.reason)
        self._stop()

    def _stop(self) -> None:
        """Keep in mind how far workers were that were lost, or that others take the place of."""
        if self._open:
            stage = list(self._open.values())[-1]
            self._lost = (stage.name, stage.done)
        self.forget()

    def _found(self, stage: progress.Stage) -> None:
        """Say what the loss of workers has cost, once their stage goes on."""
        if self._lost is None or self._lost[0] != stage.name:
            return
        was, self._lost = self._lost[1], None
        log.info("%s goes on from=%.2f was=%.2f %s", stage.name, stage.before, was, stage.unit)

    def forget(self) -> None:
        """End the stages of a worker that is gone."""
        while self._open:
            self._open.popitem()[1].end(finished=False)
