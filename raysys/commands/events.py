"""Events that services took, seen from the run.

Examples:
    raysys events fold run=R              what stands in the journal goes to R/events/*.parquet
    raysys events erase run=R user_id=42  what user 42 did is forgotten

    raysys prepare run=R mode=append source=R/events    then takes them into the log
"""

from __future__ import annotations

import dataclasses
import logging
import time

from raysys import progress
from raysys.config import JobConfig, require, require_run
from raysys.errors import BuildError, told
from raysys.events import fold as folding
from raysys.events.feed import now_ms
from raysys.events.records import TABLES
from raysys.store.builds import StageResult, Workspace
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

_WAIT_S = 90.0  # a service ends its segments within a fraction of it
_LOOK_S = 1.0


@dataclasses.dataclass
class FoldConfig(JobConfig):
    """Which run."""


@dataclasses.dataclass
class EraseConfig(JobConfig):
    """Whose events go.

    Attributes:
        user_id: of the user.
    """

    user_id: str = ""


def fold(cfg: FoldConfig) -> StageResult:
    """Put what stands in the journal now into Parquet; services go on meanwhile.

    Raises:
        BuildError: the run cannot be read or written, or a service does not end what it writes.
    """
    storage = _storage(cfg)
    return _result(_folded(storage, until_ms=now_ms()))


def erase(cfg: EraseConfig) -> StageResult:
    """Forget the events of a user that came until now, in memory and in files.

    Raises:
        ConfigError: no user is named.
        BuildError: as in `fold`; the order stands, and services carry it out.
    """
    require(bool(cfg.user_id), "user_id", cfg.user_id, "that of a user")
    result = erase_events(cfg)
    log.warning("builds of the run stay as they are: raysys forget takes users out of them too")
    return result


def erase_events(cfg: EraseConfig) -> StageResult:
    """Forget the events of a user, and nothing else; see `erase`."""
    storage = _storage(cfg)
    order = folding.Erasure(cfg.user_id, now_ms())
    try:
        order.order(storage)
    except OSError as error:
        raise _not_written(storage, error) from error
    return _result(_folded(storage, until_ms=order.at_ms))


def _storage(cfg: JobConfig) -> Storage:
    require_run(cfg)
    storage = Workspace(cfg.run, cache_dir=cfg.cache_dir).storage
    if not storage.is_there():
        raise BuildError(f"run={cfg.run} is not there")
    return storage


def _folded(storage: Storage, *, until_ms: int) -> dict[str, folding.Folded]:
    """Fold until nothing is left of what began by then; return what was done."""
    total = {table.name: folding.Folded() for table in TABLES}
    deadline = time.monotonic() + _WAIT_S
    waiting = -1
    with progress.stage("fold", total=None, unit="segments") as work:
        while True:
            done = _once(storage)
            total = {name: rows.plus(done[name]) for name, rows in total.items()}
            left = folding.began(storage, until_ms=until_ms)
            if not left:
                return total
            if time.monotonic() > deadline:
                raise BuildError(
                    f"{len(left)} segments of the journal are still being written, such as "
                    f"{left[0]}: run it again, or stop the service that does not end them"
                )
            if len(left) != waiting:
                waiting = len(left)
                work.say(f"waiting for {waiting} segments that were written just now")
            time.sleep(_LOOK_S)


def _once(storage: Storage) -> dict[str, folding.Folded]:
    try:
        return folding.fold(storage, settled_s=folding.SETTLED_S)
    except OSError as error:
        raise _not_written(storage, error) from error


def _not_written(storage: Storage, error: OSError) -> BuildError:
    return BuildError(f"run={storage.run} cannot be written: {told(error)}")


def _result(total: dict[str, folding.Folded]) -> StageResult:
    for name, rows in total.items():
        if rows != folding.Folded():
            counts = " ".join(f"{key}={n}" for key, n in dataclasses.asdict(rows).items())
            log.info("folded table=%s %s", name, counts)
    return StageResult(extra={name: dataclasses.asdict(rows) for name, rows in total.items()})
