"""Drafts: builds that are being written, and what is left of those whose job died.

    <run>/drafts/<kind>-<build_id>-<token>.json    who writes a draft; gone when it is a build

So one listing, of a folder that is nearly always empty, tells a job what others left behind.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysys.config import digest
from raysys.errors import BuildError, CorruptBuildError
from raysys.store.kinds import Facts
from raysys.store.leases import LOCKS, Lease, Owner
from raysys.store.manifests import MANIFEST, Manifest, notes
from raysys.store.storage import FileMark, Storage

log = logging.getLogger(__name__)

SCRATCH = "training"  # folder of a run for what unfinished work saves
DRAFTS = "drafts"  # folder of a run for what says who writes a draft
_ABANDONED_S = 24 * 3600.0  # age of a draft of another host after which nobody writes it any more


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
        self.staging = Path(self.url if local else tempfile.mkdtemp(prefix="raysys-"))
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
        if not self._storage.is_local:
            self._storage.upload(self.staging, self._folder)
        files = {
            name: {"sha256": self._storage.sha256(f"{self._folder}/{name}"), "bytes": mark[0]}
            for name, mark in self._storage.files(self._folder).items()
        }
        content = {n: e["sha256"] for n, e in files.items() if not n.startswith(self._left_out)}
        first = self._storage.is_local and not self._storage.has_folder(self._place)
        manifest = Manifest(
            **self._header,
            folder="" if first else self._token,
            content_id=digest([self.build_id, content]),
            files=files,
            facts=facts.record(),
            notes=notes() | self._notes,
        )
        for lease in self._leases:
            lease.confirm()
        if Owner.read(self._storage, self._owner) != self._me:
            raise BuildError(f"the draft of {self._place} was removed while it was written")
        self._publish(manifest)
        if self._scratch is not None:
            self._storage.delete(self._scratch)
        log.info("build committed kind=%s build_id=%s", self.kind, self.build_id)
        return manifest

    def _publish(self, manifest: Manifest) -> None:
        """Make the files the build, in one step: a rename, or one write of the manifest.

        The owner file of a draft goes after that, and the one that a killed job left of the build
        that is replaced goes before: only a folder that no manifest names is an abandoned draft.
        """
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


def remove_abandoned(storage: Storage) -> None:
    """Delete drafts that nobody writes any more: their job died, here or a day ago."""
    owners = storage.files(DRAFTS)
    beats = storage.files(LOCKS) if owners else {}
    now = time.time()
    fresh = {
        name.rpartition("-")[2].removesuffix(".json")
        for name, mark in beats.items()
        if now - mark.mtime_ns / 1e9 < _ABANDONED_S
    }
    for name, mark in owners.items():
        draft = name.removesuffix(".json").split("-")
        if len(draft) == 3:
            _remove_if_abandoned(storage, name, draft, mark, beats_now=draft[-1] in fresh)
    if owners:
        storage.prune(DRAFTS)


def _remove_if_abandoned(
    storage: Storage, name: str, draft: Sequence[str], mark: FileMark, *, beats_now: bool
) -> None:
    kind, build_id, token = draft
    folders = {_folder(storage, *draft), f"{kind}/{build_id}/{token}"}  # before and after a rename
    owner = Owner.read(storage, f"{DRAFTS}/{name}")
    if owner is None or not owner.is_gone():
        if beats_now:
            return
        marks = [mark, *(m for folder in folders for m in storage.files(folder).values())]
        if time.time() - max(m.mtime_ns for m in marks) / 1e9 < _ABANDONED_S:
            return
    # The draft becomes this job's, so that one that was only asleep does not publish it.
    storage.write_atomic(f"{DRAFTS}/{name}", Owner.here().text())
    if folder_of(storage, f"{kind}/{build_id}") != token:
        log.warning("draft of a dead job removed kind=%s build_id=%s", kind, build_id)
        for folder in folders:
            storage.delete(folder)
        storage.prune(f"{kind}/{build_id}")
    storage.remove(f"{DRAFTS}/{name}")


def _folder(storage: Storage, kind: str, build_id: str, token: str) -> str:
    """Return where a draft lies: object stores cannot rename, so there below its build's place."""
    return f"{kind}/.{build_id}.{token}" if storage.is_local else f"{kind}/{build_id}/{token}"


def _owner(kind: str, build_id: str, token: str) -> str:
    return f"{DRAFTS}/{kind}-{build_id}-{token}.json"
