"""Builds: what a run holds, what each build was made from, and what keeps it.

Examples:
    raysys builds run=R
    raysys builds run=R pin=index/0123456789abcdef name=before-sale    kept with its lineage
    raysys builds run=R unpin=before-sale
"""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any

from raysys.config import JobConfig, require, require_run
from raysys.errors import BuildError, ConfigError
from raysys.reports.tables import aligned, size
from raysys.store.builds import StageResult, Workspace
from raysys.store.collect import Collector, Policy, Waste
from raysys.store.inventory import Inventory
from raysys.store.kinds import KINDS
from raysys.store.leases import LOCKS, Owner
from raysys.store.pins import pin, unpin
from raysys.store.storage import Storage
from raysys.store.uses import SERVE

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclasses.dataclass
class BuildsConfig(JobConfig):
    """What is shown, or pinned.

    Attributes:
        pin: a build that is kept with all it was made from: its id, or `kind/id`.
        name: of the pin: letters, digits and `._-`; the id where none is given.
        unpin: the name of a pin that is let go.
    """

    pin: str | None = None
    name: str | None = None
    unpin: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that mean nothing together."""
        if self.pin is not None and self.unpin is not None:
            raise ConfigError("builds takes pin= or unpin=, not both")
        if self.name is not None:
            require(self.pin is not None, "name", self.name, "only with pin=")
            fits = _NAME.fullmatch(self.name) is not None
            require(fits, "name", self.name, "up to 64 letters, digits and ._-")


def builds(cfg: BuildsConfig) -> StageResult:
    """Show what a run holds; set or take away a pin first if asked for.

    Raises:
        BuildError: the run is not there, or holds no such build or pin.
    """
    storage = storage_of(cfg)
    if cfg.unpin is not None:
        log.info("pin removed name=%s build=%s", cfg.unpin, unpin(storage, cfg.unpin))
    inventory = Inventory(storage)
    if cfg.pin is not None:
        place = place_of(inventory, "pin", cfg.pin)
        pin(storage, cfg.name or place.rpartition("/")[2], place)
        inventory = Inventory(storage)
    found = _record(storage, inventory)
    for line in _lines(found):
        log.info("%s", line)
    return StageResult(build_ids=_current_ids(inventory), extra=found)


def storage_of(cfg: JobConfig) -> Storage:
    """Return the storage of a run that is there.

    Raises:
        ConfigError: no run is named. BuildError: it is not there.
    """
    require_run(cfg)
    storage = Workspace(cfg.run, cache_dir=cfg.cache_dir).storage
    if not storage.is_there():
        raise BuildError(f"run={cfg.run} is not there")
    return storage


def place_of(inventory: Inventory, key: str, text: str) -> str:
    """Return the place of the build that `key=text` names, by its id or its place.

    Raises:
        ConfigError: none or several.
    """
    places = [p for p, b in inventory.builds.items() if text in (p, b.build_id)]
    require(len(places) == 1, key, text, "a build of the run: see `raysys builds`")
    return places[0]


def _current_ids(inventory: Inventory) -> dict[str, str]:
    return {kind: place.partition("/")[2] for place, kind in inventory.current().items()}


def _record(storage: Storage, inventory: Inventory) -> dict[str, Any]:
    try:
        now = storage.now()
    except OSError:  # a run that can only be read
        now = max((mark.mtime_ns for mark in inventory.files.values()), default=0) / 1e9
    current, before = inventory.current(), inventory.before()
    waste = _waste(storage, inventory)
    shown = []
    for place, build in inventory.builds.items():
        users = [u for u in inventory.used if u.lives and place in u.builds]
        shown.append(
            {
                "kind": build.kind,
                "build_id": build.build_id,
                "bytes": build.size_bytes,
                "age_s": round(max(now - build.created_s, 0.0), 1),
                "made_from": sorted(build.inputs),
                "current": place in current,
                "before": before.get(place),
                "pins": sorted(name for name, at in inventory.pins.items() if at == place),
                "served_by": [u.owner.name for u in users if u.what.startswith(SERVE)],
                "used_by": [
                    f"{u.what} {u.owner.name}" for u in users if not u.what.startswith(SERVE)
                ],
                "erased": len(build.erased),
            }
        )
    dead = {waste.place.rpartition("/")[0] for waste in waste if waste.what == "draft"}
    return {
        "builds": shown,
        "bytes": sum(mark.size_bytes for mark in inventory.files.values()),
        "drafts": [
            {"build": p, "writers": len(t), "dead": p in dead} for p, t in inventory.drafts.items()
        ],
        "scratch": {f: sum(m.size_bytes for m in s.values()) for f, s in _scratch(inventory)},
        "trials": sorted(inventory.trials()),
        "locks": _locks(storage, inventory),
        "left_over": [dataclasses.asdict(each) for each in waste],
    }


def _scratch(inventory: Inventory) -> list[tuple[str, Any]]:
    return sorted(inventory.scratch().items())


def _waste(storage: Storage, inventory: Inventory) -> list[Waste]:
    """Return what `gc` would remove whatever its policy for builds says; nothing if read-only."""
    try:
        found = Collector(storage, Policy(keep=len(KINDS), older_s=float("inf"))).found(inventory)
    except OSError:
        return []
    return [each for each in found if each.what != "build"]


def _locks(storage: Storage, inventory: Inventory) -> list[dict[str, Any]]:
    shown = []
    for name in inventory.below(LOCKS):
        if name.endswith(".json"):
            owner = Owner.read(storage, name)
            if owner is not None:
                gone = owner.is_gone()
                place = name.removeprefix(f"{LOCKS}/").rpartition("/")[0]
                shown.append({"of": place, "owner": owner.name, "dead": gone})
    return shown


def _lines(record: dict[str, Any]) -> list[str]:
    rows = [["kind", "build", "size", "age", "state", "made from"]]
    for build in record["builds"]:
        state = ["current"] if build["current"] else []
        state += [f"{build['before']} before"] if build["before"] is not None else []
        state += [f"pinned {name}" for name in build["pins"]]
        state += [f"served by {name}" for name in build["served_by"]]
        state += [f"used by {name}" for name in build["used_by"]]
        state += [f"{build['erased']} erased"] if build["erased"] else []
        rows.append(
            [
                build["kind"],
                build["build_id"],
                size(build["bytes"]),
                _age(build["age_s"]),
                ", ".join(state) or "-",
                " ".join(build["made_from"]) or "-",
            ]
        )
    lines = aligned(rows, left=(0, 1, 4, 5))
    for draft in record["drafts"]:
        lines.append(
            f"{'left by a dead job' if draft['dead'] else 'being written'}: {draft['build']}"
        )
    for folder, n_bytes in record["scratch"].items():
        lines.append(f"unfinished work: {folder} {size(n_bytes)}")
    for lock in record["locks"]:
        lines.append(f"lock: {lock['of']} {lock['owner']}{' (dead)' if lock['dead'] else ''}")
    lines += [f"sweep's work: {folder}" for folder in record["trials"]]
    for waste in record["left_over"]:
        what = f"{waste['what']} {waste['place']} {size(waste['size_bytes'])}"
        lines.append(f"left over: {what} ({waste['why']})")
    return lines


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
