"""Drafts: builds that are being written, and what is left of those whose job died.

    <run>/drafts/<kind>-<build_id>-<token>.json    who writes a draft; gone when it is a build

So one listing, of a folder that is nearly always empty, tells a job what others left behind.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysys.config import digest
from raysys.errors import BuildError, CorruptBuildError
from raysys.store.kinds import Facts
from raysys.store.leases import LOCKS, Lease, Owner
from raysys.store.manifests import MANIFEST, Manifest, notes
from raysys.store.storage import Storage
from raysys.store.temporary import temporary_folder

log = logging.getLogger(__name__)

SCRATCH = "training"  # folder of a run for what unfinished work saves
DRAFTS = "drafts"  # folder of a run for what says who writes a draft
ABANDONED_S = 24 * 3600.0  # age of a draft of another host after which nobody writes it any more


class Draft:
    """A build being written, in a folder that no reader and no other job knows.

    Attributes:
        build_id: what it will be.
        staging: the local folder that `path` hands out; on object stores uploaded by `commit`.
        url: where workers on other nodes write: the same folder, or its URI.
    """

    def __init__(
        self, storage: Storage, header: dict[str, Any], leases: Sequence[Lease], *, anew: bool
    ) -> None:
        self._storage = storage
        self._header = header
        self._leases = leases
        self._token = leases[0].token
        self._left_out: tuple[str, ...] = ()
        self.kind: str = header["kind"]
        self.build_id: str = header["build_id"]
        self._place = f"{self.kind}/{self.build_id}"
        self._folder = _folder(storage, self.kind, self.build_id, self._token)
        self._owner = _owner(self.kind, self.build_id, self._token)
        self._published = False
        self._anew = anew
        self._scratch: str | None = None
        self._notes: dict[str, Any] = {}
        self.url = self._storage.url(self._folder)
        self._me = Owner.here()
        self._storage.write_atomic(self._owner, self._me.text())
        local = self._storage.is_local
        self.staging = Path(self.url) if local else temporary_folder("draft")
        self.staging.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Return the local path to write file `name` to; its folder exists."""
        target = self.staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def leave_out(self, *names: str) -> None:
        """Let files be no part of the build's content: they tell how it was made, not what it is.

        Builds that differ in them alone have one `content_id`. The manifest lists them all the
        same, so they are checked like the others.

        Args:
            names: of files, or of folders with a slash at the end.
        """
        self._left_out += names

    def note(self, **facts: Any) -> None:
        """Let the manifest's notes say how the build was made; they are part of no digest."""
        self._notes |= facts

    def scratch(self) -> str:
        """Return the name of a folder below `training/` from which a killed job's work goes on.

        It is emptied first where the build is made anew, and deleted once the build is there.
        """
        name = f"{self.kind}-{self.build_id}"
        self._scratch = f"{SCRATCH}/{name}"
        if self._anew:
            self._storage.delete(self._scratch)
        return name

    def commit(self, facts: Facts) -> Manifest:
        """Hash the files and publish them as the build by one write of its manifest.

        Raises:
            BuildError: another job took over while this one was asleep.
        """
        files = self._uploaded()
        content = {n: e["sha256"] for n, e in files.items() if not n.startswith(self._left_out)}
        manifest = Manifest(
            **self._header,
            folder=self._final(),
            content_id=digest([self.build_id, content]),
            files=files,
            facts=facts.record(),
            notes=notes() | self._notes,
        )
        self._publish(manifest)
        if self._scratch is not None:
            self._storage.delete(self._scratch)
        log.info("build committed kind=%s build_id=%s", self.kind, self.build_id)
        return manifest

    def replace(self, manifest: Manifest, **changes: Any) -> Manifest:
        """Publish the files as a build that has its ids already, such as a copy of one.

        Args:
            manifest: of the build.
            changes: of its fields.

        Raises:
            BuildError: another job took over while this one was asleep.
        """
        files = self._uploaded()
        made = dataclasses.replace(manifest, folder=self._final(), files=files, **changes)
        self._publish(made)
        return made

    def _uploaded(self) -> dict[str, dict[str, Any]]:
        """Return the hash and size of every file, where the build will read them."""
        if not self._storage.is_local:
            self._storage.upload(self.staging, self._folder)
        return {
            name: {"sha256": self._storage.sha256(f"{self._folder}/{name}"), "bytes": mark[0]}
            for name, mark in self._storage.files(self._folder).items()
        }

    def _final(self) -> str:
        """Return where the files will lie below the build's place; empty: in it."""
        first = self._storage.is_local and not self._storage.has_folder(self._place)
        return "" if first else self._token

    def _publish(self, manifest: Manifest) -> None:
        """Make the files the build, in one step: a rename, or one write of the manifest.

        The owner file of a draft goes after that, and the one that a killed job left of the build
        that is replaced goes before: only a folder that no manifest names is an abandoned draft.
        """
        for lease in self._leases:
            lease.confirm()
        if Owner.read(self._storage, self._owner) != self._me:
            raise BuildError(f"the draft of {self._place} was removed while it was written")
        self._published = True  # from here on they may be, whatever fails
        if manifest.folder:
            before = folder_of(self._storage, self._place)
            if before:
                self._storage.remove(_owner(self.kind, self.build_id, before))
            if self._storage.is_local:
                self._storage.rename(self._folder, f"{self._place}/{manifest.folder}")
            self._storage.write_atomic(f"{self._place}/{MANIFEST}", manifest.text())
        else:
            self._storage.write_atomic(f"{self._folder}/{MANIFEST}", manifest.text())
            self._storage.rename(self._folder, self._place)
        self._forget()

    def discard(self) -> None:
        """Delete what this draft wrote, unless it may be a build by now."""
        if not self._published:
            self._storage.delete(self._folder)
            self._storage.prune(self.kind)
            self._forget()

    def _forget(self) -> None:
        self._storage.remove(self._owner)
        self._storage.prune(DRAFTS)

    def close(self) -> None:
        """Delete what lies on this host alone."""
        if not self._storage.is_local:
            shutil.rmtree(self.staging, ignore_errors=True)


def folder_of(storage: Storage, place: str) -> str | None:
    """Return the folder below `place` that its manifest names; None where there is no manifest."""
    try:
        record = storage.read_json(f"{place}/{MANIFEST}")
    except CorruptBuildError:
        return None
    return (record or {}).get("folder")


def remove_abandoned(storage: Storage, *, after_s: float = ABANDONED_S) -> None:
    """Delete drafts that nobody writes any more: their job died, here or so long ago."""
    for kind, build_id, token in abandoned(storage, after_s=after_s):
        remove_draft(storage, kind, build_id, token)


def abandoned(storage: Storage, *, after_s: float = ABANDONED_S) -> list[tuple[str, str, str]]:
    """Return (kind, build_id, token) of the drafts that nobody writes any more."""
    owners = storage.files(DRAFTS)
    beats = storage.files(LOCKS) if owners else {}
    now = storage.now() if owners else 0.0  # the clocks of hosts differ
    fresh = {
        name.rpartition("-")[2].removesuffix(".json")
        for name, mark in beats.items()
        if now - mark.mtime_ns / 1e9 < after_s
    }
    found = []
    for name, mark in owners.items():
        words = name.removesuffix(".json").split("-")
        if len(words) != 3:
            continue
        kind, build_id, token = words
        owner = Owner.read(storage, f"{DRAFTS}/{name}")
        if owner is None or not owner.is_gone():
            marks = [mark, *(m for f in draft_folders(*words) for m in storage.files(f).values())]
            if token in fresh or now - max(m.mtime_ns for m in marks) / 1e9 < after_s:
                continue
        found.append((kind, build_id, token))
    return found


def draft_folders(kind: str, build_id: str, token: str) -> tuple[str, str]:
    """Return where the files of a draft may lie: before and after a rename."""
    return f"{kind}/.{build_id}.{token}", f"{kind}/{build_id}/{token}"


def remove_draft(storage: Storage, kind: str, build_id: str, token: str) -> None:
    """Delete a draft that is abandoned; what has become a build by now stays."""
    name = _owner(kind, build_id, token)
    # The draft becomes this job's, so that one that was only asleep does not publish it.
    storage.write_atomic(name, Owner.here().text())
    if folder_of(storage, f"{kind}/{build_id}") != token:
        log.warning("draft of a dead job removed kind=%s build_id=%s", kind, build_id)
        for folder in draft_folders(kind, build_id, token):
            storage.delete(folder)
        storage.prune(f"{kind}/{build_id}")
    storage.remove(name)
    storage.prune(DRAFTS)


def _folder(storage: Storage, kind: str, build_id: str, token: str) -> str:
    """Return where a draft lies: object stores cannot rename, so there below its build's place."""
    return draft_folders(kind, build_id, token)[0 if storage.is_local else 1]


def _owner(kind: str, build_id: str, token: str) -> str:
    return f"{DRAFTS}/{kind}-{build_id}-{token}.json"
