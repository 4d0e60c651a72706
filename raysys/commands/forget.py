"""Forget: take users out of all that a run holds, and prove it by search.

Examples:
    raysys forget run=R user_id=42
    raysys forget run=R user_ids=[42,43]
    raysys forget run=R users_file=leavers.txt      an id a line

Rows go from builds, events, reports and lists, and do not come back from an old log. What was
learned from them stays until it is trained again: the answer names it.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raysys import progress
from raysys.commands.builds import storage_of
from raysys.commands.events import EraseConfig, erase_events
from raysys.commands.forget_search import Searched, search
from raysys.config import JobConfig, identifier, local, location
from raysys.data import interactions, profiles
from raysys.data.interactions import InteractionsFacts, keep_rows
from raysys.data.profiles import ProfilesFacts
from raysys.errors import BuildError, ConfigError, told
from raysys.events.fold import ERASED as ORDERS
from raysys.events.fold import SLACK_MS, remove_orders
from raysys.events.records import TABLES
from raysys.search.users import USER_NAMES, UserStore
from raysys.store import current
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.collect import Collector, Policy
from raysys.store.erasures import models_with_erased, remember, rewrite, stale_baselines
from raysys.store.inventory import Inventory
from raysys.store.leases import APPEND, REFRESH, holder, leased
from raysys.store.manifests import MANIFEST
from raysys.store.storage import Storage
from raysys.store.temporary import temporary
from raysys.store.uses import SERVE, uses

log = logging.getLogger(__name__)

_REWRITTEN = ("interactions", "profiles", "index")
_ALL = Policy(keep=0, older_s=float("inf"))


@dataclasses.dataclass
class ForgetConfig(JobConfig):
    """Who is forgotten.

    Attributes:
        user_id: of one user.
        user_ids: of several.
        users_file: a file with an id a line.
    """

    user_id: str | None = identifier()
    user_ids: list[str] = local(factory=list)
    users_file: str | None = location(None)

    def ids(self) -> list[str]:
        """Return the ids, each once.

        Raises:
            ConfigError: there is none, or the file cannot be read.
        """
        ids = [*self.user_ids, *([self.user_id] if self.user_id else [])]
        if self.users_file is not None:
            try:
                lines = Path(self.users_file).read_text().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"users_file={self.users_file} cannot be read: {error}"
                ) from error
            ids += [line for line in lines if line]
        if not ids:
            raise ConfigError("forget needs user_id=, that of a user, user_ids= or users_file=")
        return list(dict.fromkeys(ids))


def forget(cfg: ForgetConfig) -> StageResult:
    """Take users out of builds, events, reports and caches; search the run for them afterwards.

    Returns:
        `erased`: {place: users taken out}; `searched`: {sort of file: how many}; `retrain`: builds
        that were learned from what these users did.

    Raises:
        ConfigError: no one is named. BuildError: the run cannot be written, or still holds one.
    """
    ids = cfg.ids()
    storage = storage_of(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    with leased(storage, "forget"), leased(storage, REFRESH), leased(storage, APPEND):
        remember(storage, ids)
        if any(storage.files(place) for table in TABLES for place in (table.journal, table.name)):
            for user_id in ids:
                erase_events(EraseConfig(run=cfg.run, cache_dir=cfg.cache_dir, user_id=user_id))
        try:
            erased = _erased(workspace, set(ids))
        except OSError as error:
            raise BuildError(f"run={cfg.run} cannot be written: {told(error)}") from error
        found = search(storage, ids)
        _remove_orders(storage, ids)
    _check(found, cfg.run)
    models = models_with_erased(storage)
    log.info("forgotten users=%d places=%d", len(ids), len(erased))
    for kind, n_files in found.files.items():
        log.info("searched %s: %d files, nothing left", kind, n_files)
    if not erased:
        log.info("held nowhere; rows of an older log stay away all the same")
    for place in models:
        log.warning("trained with erased users: %s, until it is trained again", place)
    return StageResult(extra={"erased": erased, "searched": found.files, "retrain": models})


def _erased(workspace: Workspace, ids: Collection[str]) -> dict[str, int]:
    """Take users out of everything but events; return {place: how many there were}."""
    storage = workspace.storage
    inventory = Inventory(storage)
    inventory.refuse_damaged(inventory.lineage([*inventory.current(), *inventory.pins.values()]))
    _refuse_others(storage, inventory, ids)
    _remove_leftovers(storage)
    inventory = Inventory(storage)
    erased: dict[str, int] = {}
    with progress.stage("forget", total=len(inventory.builds), unit="builds") as work:
        for place, found in inventory.builds.items():
            if found.kind in _REWRITTEN:
                n_users = search(storage, ids, names=list(found.files)).users
                if n_users:
                    build = workspace.open(found.kind, found.build_id)
                    change = functools.partial(_change, build, ids=ids)
                    rewrite(workspace, build, change, users=n_users)
                    erased[place] = n_users
            work.add(1)
    for place in stale_baselines(storage):
        current.drop(storage, *place.split("/"))
        storage.remove(f"{place}/{MANIFEST}")  # evaluate makes it again
        storage.delete(place)
        erased[place] = 0
    for name in storage.files(""):
        outside = not any(name.startswith(f"{place}/") for place in inventory.builds)
        if outside and name.endswith(".parquet") and _table_erased(storage, name, ids):
            erased[name] = 1
    _remove_leftovers(storage)
    return erased


def _refuse_others(storage: Storage, inventory: Inventory, ids: Collection[str]) -> None:
    """Check that no job writes rows that it read before, and that users are where they can go.

    Raises:
        BuildError: naming the job or the file; nothing was taken out.
    """
    for place in inventory.drafts:
        owner = holder(storage, place) if place.split("/")[0] in _REWRITTEN else None
        if owner is not None:
            raise BuildError(
                f"{owner.name} writes {place} of {storage.run}, from rows that may be of a user "
                "who is to be forgotten: run forget again when it has ended"
            )
    others = [b for b in inventory.builds.values() if b.kind not in (*_REWRITTEN, "baselines")]
    held = search(storage, ids, names=[name for build in others for name in build.files]).held
    if held:
        raise BuildError(
            f"{storage.url(held[0])} holds a user, and forget cannot take one out of such a build: "
            "make it anew without the user, and remove this one"
        )


def _change(build: Build, folder: Path, *, ids: Collection[str]) -> dict[str, Any]:
    """Take users out of the files of a build; return its facts."""
    if build.kind == "interactions":
        return interactions.without_users(folder, ids, InteractionsFacts.of(build)).record()
    if build.kind == "profiles":
        return profiles.without_users(folder, ids, ProfilesFacts.of(build))[0].record()
    if (folder / f"{USER_NAMES}.arrow").exists():
        UserStore.without_users(folder, ids)
    return {}


def _table_erased(storage: Storage, name: str, ids: Collection[str]) -> bool:
    """Take users out of a Parquet file beside the builds; tell whether there were any."""
    content = storage.read(name)
    if content is None:
        return False
    with temporary("forget") as folder:
        path = folder / "table.parquet"
        path.write_bytes(content)
        if "user_id" not in pq.read_schema(io.BytesIO(content)).names:
            return False
        gone = keep_rows(path, functools.partial(interactions.of_others, user_ids=ids))
        if len(gone):
            storage.write_atomic(name, path.read_bytes())
        return len(gone) > 0


def _remove_leftovers(storage: Storage) -> None:
    """Remove what no manifest names, also where someone reads it still, and what is cached."""
    collector = Collector(storage, _ALL, spare_readers=False)
    for waste in collector.found(Inventory(storage)):
        if waste.what in ("orphan", "draft", "cache"):
            collector.remove(waste)


def _remove_orders(storage: Storage, ids: Collection[str]) -> None:
    """Remove the orders that events were erased by: they hold ids, as whoever folds needs them."""
    serves = any(each.lives and each.what.startswith(SERVE) for each in uses(storage))
    left = remove_orders(storage, [] if serves else ids)
    if left:
        log.warning(
            "%s holds %d orders with ids, for services that may hold events back still: the first "
            "fold after %d minutes removes them (raysys events fold)",
            ORDERS,
            left,
            round(SLACK_MS / 60_000),
        )


def _check(found: Searched, run: str) -> None:
    if found.held:
        name, others = found.held[0], len(found.held) - 1
        more = f" and {others} other files" if others else ""
        raise BuildError(
            f"run={run} still holds a user in {name}{more}: a job that was running may have "
            "written it; run forget again when it has ended, or delete the file"
        )
