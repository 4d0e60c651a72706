"""Gc: remove what no one needs; first say what that is.

Examples:
    raysys gc run=R                                 says what would go, and how large it is
    raysys gc run=R dry_run=false                   removes it
    raysys gc run=R keep=0 older_days=0 dry_run=false   leaves what is current, pinned or in use
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from raysys import progress
from raysys.commands.builds import storage_of
from raysys.config import JobConfig, local, require
from raysys.errors import BuildError, told
from raysys.reports.tables import size
from raysys.store.builds import StageResult
from raysys.store.collect import Collector, Policy, Waste
from raysys.store.inventory import Inventory
from raysys.store.leases import leased
from raysys.store.storage import Storage
from raysys.store.uploads import abort, open_uploads

log = logging.getLogger(__name__)

_DAY_S = 86_400.0


@dataclasses.dataclass
class GcConfig(JobConfig):
    """What is kept.

    Never removed: what is current, pinned, served, read or written by a job that lives, and all
    that such builds were made from.

    Attributes:
        keep: builds of each kind that were current right before the present one, and can be gone
            back to.
        older_days: builds and unfinished work that are younger stay.
        dry_run: say what would be removed, and remove nothing.
    """

    keep: int = local(3)
    older_days: float = local(7.0)
    dry_run: bool = local(True)

    def __post_init__(self) -> None:
        """Raise ConfigError for what is less than nothing."""
        require(self.keep >= 0, "keep", self.keep, "0 or more builds")
        require(self.older_days >= 0, "older_days", self.older_days, "0 or more days")


def gc(cfg: GcConfig) -> StageResult:
    """Remove what no one needs, or say what that is.

    Returns:
        `removed` (`would_remove` of a dry run): what, where, why and how large; `bytes` of all of
        it; `left`: what someone needs by now, or what cannot be deleted.

    Raises:
        BuildError: the run is not there, or cannot be written, or a file is damaged that may
        keep builds.
    """
    storage = storage_of(cfg)
    collector = Collector(storage, Policy(keep=cfg.keep, older_s=cfg.older_days * _DAY_S))
    try:
        if cfg.dry_run:
            return _said(cfg, storage, collector)
        with leased(storage, "gc"):
            return _removed(storage, collector)
    except OSError as error:
        raise BuildError(f"run={cfg.run} cannot be written: {told(error)}") from error


def _said(cfg: GcConfig, storage: Storage, collector: Collector) -> StageResult:
    inventory = Inventory(storage)
    collector.refuse_damaged(inventory)
    found = collector.found(inventory)
    uploads, note = open_uploads(storage)
    found += uploads
    for waste in found:
        log.info("would remove %s", _line(waste))
    total = sum(waste.size_bytes for waste in found)
    words = f"dry_run=false removes {len(found)} findings, {size(total)}"
    log.info("%s", words if found else "nothing to remove")
    return _result("would_remove", found, [], note)


def _removed(storage: Storage, collector: Collector) -> StageResult:
    done: list[Waste] = []
    left: list[Waste] = []
    tried: set[tuple[str, str]] = set()  # each once: what cannot be deleted is found again
    while True:  # what goes may lay bare what is left over
        inventory = Inventory(storage)
        collector.refuse_damaged(inventory)
        found = [w for w in collector.found(inventory) if (w.what, w.place) not in tried]
        if not found:
            break
        with progress.stage("gc", total=len(found), unit="findings") as work:
            for waste in found:
                tried.add((waste.what, waste.place))
                removed = collector.remove(waste)
                (done if removed else left).append(waste)
                log.info("%s %s", "removed" if removed else "left", _line(waste))
                work.add()
    uploads, note = open_uploads(storage)
    for upload in uploads:
        abort(storage, upload)
        log.info("removed %s", _line(upload))
    done += uploads
    storage.prune("locks")
    log.info("removed %d findings, %s", len(done), size(sum(w.size_bytes for w in done)))
    return _result("removed", done, left, note)


def _result(name: str, found: list[Waste], left: list[Waste], note: str | None) -> StageResult:
    extra: dict[str, Any] = {
        name: [dataclasses.asdict(waste) for waste in found],
        "bytes": sum(waste.size_bytes for waste in found),
        "left": [dataclasses.asdict(waste) for waste in left],
    }
    if note is not None:
        log.info("%s", note)
        extra["uploads"] = note
    return StageResult(extra=extra)


def _line(waste: Waste) -> str:
    return f"{waste.what} {waste.place} {size(waste.size_bytes)}: {waste.why}"
