"""Collecting garbage: what nobody needs any more is removed, and nothing else.

A build is removed under its lease, so that nobody writes it meanwhile:

    mark it condemned -> look again at what is current, pinned, in use -> manifest -> files -> mark

A process that opens a build writes down that it does, and then looks for the mark; see `uses`. One
that is killed between any two deletions leaves a whole build, or files that no manifest names,
which the next collection removes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from raysys.store import drafts, temporary
from raysys.store.current import Current
from raysys.store.inventory import TRIALS, WORK, Inventory
from raysys.store.leases import LOCKS, REFRESH, Owner, holder, leased_if_free
from raysys.store.manifests import CONDEMNED, MANIFEST
from raysys.store.storage import FileMark, Storage

log = logging.getLogger(__name__)

SWEEPS = "sweeps"
_SETTLED_S = 600.0  # without a beat a job of another host writes no draft any more
_YOUNG_S = 600.0  # what was fetched since may be of a build that was not there when we looked
_PARTIAL_S = 60.0  # the longest that a small write may take


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is kept although nobody uses it.

    Attributes:
        keep: builds of each kind that were current right before the present one.
        older_s: builds and unfinished work that are younger, in seconds.
    """

    keep: int
    older_s: float


@dataclasses.dataclass(frozen=True)
class Waste:
    """Something that nobody needs.

    Attributes:
        what: build, draft, orphan, scratch, trial, work (of a refresh), lock, use, partial,
            temporary or cache.
        place: where it lies, in the run or on this host.
        why: it is not needed, in words.
        files: how many.
        size_bytes: of all of them.
    """

    what: str
    place: str
    why: str
    files: int
    size_bytes: int


class Collector:
    """Finds and removes what nobody needs in a run; one at a time, see `commands/gc.py`.

    Args:
        storage: of the run.
        policy: what is kept all the same.
        spare_readers: leave files that no manifest names to whoever reads their build.
    """

    def __init__(self, storage: Storage, policy: Policy, *, spare_readers: bool = True) -> None:
        self._storage, self._policy = storage, policy
        self._spare_readers = spare_readers
        self._seen: Inventory | None = None

    def found(self, inventory: Inventory) -> list[Waste]:
        """Return what nobody needs, without removing any of it."""
        self._seen = inventory
        now = self._storage.now() if self._storage.is_there() else 0.0
        parts = [
            self._drafts(inventory),
            self._trials(inventory, now),
            self._builds(inventory, now),
            self._orphans(inventory),
            self._scratch(inventory, now),
            self._locks(inventory, now),
            (
                _of("use", u.file, f"{u.owner.name} ended", {})
                for u in inventory.used
                if not u.lives
            ),
            (
                _of("partial", name, "its writer was killed", {name: mark})
                for name, mark in inventory.partials(before_s=now - _PARTIAL_S).items()
            ),
            _temporary(),
            self._cache(inventory),
        ]
        return [waste for part in parts for waste in part]

    def remove(self, waste: Waste) -> bool:
        """Remove one finding; False where somebody needs it by now, or it cannot be deleted.

        Raises:
            CorruptBuildError: a file is damaged that may keep a build.
        """
        removers: dict[str, Callable[[str], bool]] = {
            "build": self._remove_build,
            "orphan": self._remove_orphan,
            "draft": self._remove_draft,
            "scratch": self._remove_scratch,
            "trial": self._remove_trial,
            "work": self._remove_work,
        }
        if waste.what in ("temporary", "cache"):
            return temporary.remove(Path(waste.place))
        if waste.what in removers:
            return removers[waste.what](waste.place)
        self._storage.remove(waste.place)
        self._storage.prune(waste.place.rpartition("/")[0])
        return True

    def kept(self, inventory: Inventory) -> dict[str, str]:
        """Return {place: why} of the builds that stay whatever their age, lineage included."""
        reasons: dict[str, str] = {}
        groups: list[tuple[str, Iterable[str]]] = [("current", inventory.current())]
        groups += [
            (f"{each.what} by {each.owner.name}", each.builds)
            for each in inventory.used
            if each.lives
        ]
        groups += [(f"pin {name}", [place]) for name, place in inventory.pins.items()]
        ago = {p: n for p, n in inventory.before().items() if n <= self._policy.keep}
        groups += [(f"current {n} before", [place]) for place, n in ago.items()]
        trials = inventory.trials()
        if trials and self._sweeps_run():
            groups += [(f"trial {folder}", places) for folder, places in trials.items()]
        publishing = inventory.publishing()
        groups += [(f"of {decision}", places) for decision, places in publishing.items()]
        work = inventory.work()
        if work and self._refresh_runs():
            groups.append(("a refresh's work", work))
        for reason, places in groups:
            for place in inventory.lineage(places):
                own = reason if place in places else f"made into what is {reason}"
                reasons.setdefault(place, own)
        return reasons

    def refuse_damaged(self, inventory: Inventory) -> None:
        """Check that nothing that may keep a build is damaged.

        Raises:
            CorruptBuildError: naming the file.
        """
        inventory.refuse_damaged(self.kept(inventory))

    # -- what is found ---------------------------------------------------------------------

    def _builds(self, inventory: Inventory, now: float) -> Iterator[Waste]:
        kept = self.kept(inventory)
        young = [
            place
            for place, build in inventory.builds.items()
            if now - build.created_s < self._policy.older_s
        ]
        kept |= dict.fromkeys(inventory.lineage(young), "young")
        for place, build in inventory.builds.items():
            if place not in kept:
                age = (now - build.created_s) / 86_400
                yield _of("build", place, f"{age:.1f} days old, not current", build.files)

    def _drafts(self, inventory: Inventory) -> Iterator[Waste]:
        for kind, build_id, token in self._dead_drafts():
            folders = drafts.draft_folders(kind, build_id, token)
            files = inventory.below(folders[0]) | inventory.below(folders[1])
            yield _of("draft", f"{kind}/{build_id}/{token}", "its job died", files)

    def _dead_drafts(self) -> list[tuple[str, str, str]]:
        after_s = min(drafts.ABANDONED_S, max(self._policy.older_s, _SETTLED_S))
        return drafts.abandoned(self._storage, after_s=after_s)

    def _orphans(self, inventory: Inventory) -> Iterator[Waste]:
        used = self._in_use(inventory)
        for place, files in inventory.orphans().items():
            if place not in inventory.builds:
                yield _of("orphan", place, "no manifest", files)
            elif place not in used:  # whoever reads it may have opened what it was before
                yield _of("orphan", place, "files that its manifest does not name", files)

    def _trials(self, inventory: Inventory, now: float) -> Iterator[Waste]:
        """Yield the folders of trials once no sweep runs; their records are files beside them."""
        names = [name for name in inventory.below(TRIALS) if name.count("/") > 2]
        folders = {"/".join(name.split("/")[:3]) for name in names}
        older_s = max(self._policy.older_s, _SETTLED_S)
        for folder in sorted(folders) if folders and not self._sweeps_run() else ():
            files = inventory.below(folder)
            if _is_old(files, now, older_s):
                yield _of("trial", folder, "no sweep runs", files)
        files = inventory.below(WORK)
        is_old = files and _is_old(files, now, older_s)
        if is_old and not inventory.publishing() and not self._refresh_runs():
            yield _of("work", WORK, "no refresh runs", files)

    def _scratch(self, inventory: Inventory, now: float) -> Iterator[Waste]:
        for folder, files in inventory.scratch().items():
            kind, _, build_id = folder.partition("/")[2].rpartition("-")
            if f"{kind}/{build_id}" in inventory.builds:
                yield _of("scratch", folder, "its build is there", files)
            elif _is_old(files, now, self._policy.older_s):
                yield _of("scratch", folder, "its job did not go on", files)

    def _locks(self, inventory: Inventory, now: float) -> Iterator[Waste]:
        files = inventory.below(LOCKS)
        beats = {name.rpartition("beat-")[2] for name in files if "/beat-" in name}
        dead = set()
        for name, mark in files.items():
            if not name.endswith(".json"):
                continue
            owner = Owner.read(self._storage, name)
            token = name.removesuffix(".json").rpartition("-")[2]
            beat = files.get(f"{name.rpartition('/')[0]}/beat-{token}", mark)
            stands = now - beat.mtime_ns / 1e9 > _SETTLED_S
            if owner.is_gone() if owner is not None and owner.is_here() else stands:
                dead.add(token)
                yield _of("lock", name, "its job died", {name: mark})
        tickets = {n.removesuffix(".json").rpartition("-")[2] for n in files if n.endswith(".json")}
        for token in sorted(beats):
            if token in dead or token not in tickets:
                for name in (n for n in files if n.endswith(f"/beat-{token}")):
                    yield _of("lock", name, "its job died", {name: files[name]})

    def _cache(self, inventory: Inventory) -> Iterator[Waste]:
        """Yield what this host fetched of builds that are not in the run as they were."""
        root = self._storage.cache
        if self._storage.is_local or not root.is_dir():
            return
        folders = {f"{path.parent.name}/{path.name}": path for path in sorted(root.glob("*/*"))}
        left = folders.keys() - inventory.cache_keys()
        if left and self._spare_readers:  # one that was made meanwhile may be of a newer build
            young_s = time.time() - _YOUNG_S
            left = {key for key in left if temporary.newest(folders[key]) < young_s}
        for key, folder in folders.items():
            if key in left:
                size = temporary.size_of(folder)
                yield Waste("cache", str(folder), "no such build in the run", 1, size)

    def _sweeps_run(self) -> bool:
        names = self._storage.files(f"{LOCKS}/{SWEEPS}")
        sweeps = {name.rpartition("/")[0] for name in names}
        return any(holder(self._storage, f"{SWEEPS}/{name}") is not None for name in sweeps)

    def _refresh_runs(self) -> bool:
        return holder(self._storage, REFRESH) is not None

    # -- how it is removed -----------------------------------------------------------------

    def _remove_build(self, place: str) -> bool:
        with leased_if_free(self._storage, place) as lease:
            if lease is None:
                return False
            mark = f"{place}/{CONDEMNED}"
            self._storage.write_atomic(mark, "{}\n")
            try:
                seen = (self._seen or Inventory(self._storage)).again()
                kept = self.kept(seen)
                seen.refuse_damaged(kept)
            except BaseException:
                self._storage.remove(mark)
                raise
            if place in kept:
                self._storage.remove(mark)
                return False
            kind, build_id = place.split("/")
            lease.confirm()
            self._storage.remove(f"{place}/{MANIFEST}")
            self._delete_files(place)
            Current(self._storage).trim(kind, [build_id])
        return True

    def _remove_orphan(self, place: str) -> bool:
        with leased_if_free(self._storage, place) as lease:
            if lease is None:
                return False
            inventory = Inventory(self._storage, only=place)
            files = inventory.orphans().get(place)
            if files is None:
                return False
            if place not in inventory.builds:
                self._delete_files(place)
                return True
            if place in self._in_use(inventory):
                return False
            for name in files:
                self._storage.remove(name)
                self._storage.prune(name.rpartition("/")[0])
        return True

    def _delete_files(self, place: str) -> None:
        """Delete all that belongs to a build that has no manifest; its mark goes last."""
        kind, build_id = place.split("/")
        names = self._storage.files(place)
        for name in sorted(names, key=lambda n: n == CONDEMNED):
            self._storage.remove(f"{place}/{name}")
        self._storage.delete(place)
        for folder in self._storage.folders(kind):
            if folder.startswith(f".{build_id}."):
                self._storage.delete(f"{kind}/{folder}")
        self._storage.prune(kind)

    def _remove_draft(self, place: str) -> bool:
        kind, build_id, token = place.split("/")
        if (kind, build_id, token) not in self._dead_drafts():
            return False
        drafts.remove_draft(self._storage, kind, build_id, token)
        return True

    def _remove_scratch(self, folder: str) -> bool:
        kind, _, build_id = folder.partition("/")[2].rpartition("-")
        with leased_if_free(self._storage, f"{kind}/{build_id}" if kind else folder) as lease:
            if lease is None or (kind == "trial" and self._sweeps_run()):
                return False
            return self._deleted(folder)

    def _remove_trial(self, folder: str) -> bool:
        return not self._sweeps_run() and self._deleted(folder)

    def _remove_work(self, folder: str) -> bool:
        with leased_if_free(self._storage, REFRESH) as lease:
            if lease is None or (self._seen or Inventory(self._storage)).again().publishing():
                return False
            return self._deleted(folder)

    def _deleted(self, folder: str) -> bool:
        self._storage.delete(folder)
        self._storage.prune(folder.rpartition("/")[0])
        return not self._storage.files(folder)

    def _in_use(self, inventory: Inventory) -> set[str]:
        if not self._spare_readers:
            return set()
        return {place for each in inventory.used if each.lives for place in each.builds}


def _of(what: str, place: str, why: str, files: dict[str, FileMark]) -> Waste:
    return Waste(what, place, why, len(files), sum(m.size_bytes for m in files.values()))


def _temporary() -> Iterator[Waste]:
    for path, size in temporary.left_behind():
        yield Waste("temporary", str(path), "its process ended", 1, size)


def _is_old(files: dict[str, FileMark], now: float, older_s: float) -> bool:
    return all(now - mark.mtime_ns / 1e9 >= older_s for mark in files.values())
