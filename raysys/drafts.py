"""Drafts: builds that are being written, and what is left of those whose job died."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysys.config import digest
from raysys.leases import LOCKS, Lease, Owner
from raysys.manifests import MANIFEST, Manifest, notes
from raysys.storage import Storage

log = logging.getLogger(__name__)

SCRATCH = "training"  # folder of a run for what unfinished work saves
_OWNER = ".owner.json"  # in the folder of a draft: who writes it
_ABANDONED_S = 24 * 3600.0  # age of a draft of another host after which nobody writes it any more


class Draft:
    """A build being written, in a folder that no reader and no other job knows.

    Attributes:
        build_id: what it will be.
        staging: the local folder that `path` hands out; on object stores uploaded by `commit`.
        url: where workers on other nodes write: the same folder, or its URI.
    """

    def __init__(
        self, storage: Storage, header: dict[str, Any], lease: Lease, *, anew: bool
    ) -> None:
        self._storage = storage
        self._header = header
        self._lease = lease
        self.kind: str = header["kind"]
        self.build_id: str = header["build_id"]
        self._place = f"{self.kind}/{self.build_id}"
        hidden = f"{self.kind}/.{self.build_id}.{lease.token}"
        self._folder = hidden if storage.is_local else f"{self._place}/{lease.token}"
        self._published = False
        self._anew = anew
        self._scratch: str | None = None
        self.url = self._storage.url(self._folder)
        self._storage.write_atomic(f"{self._folder}/{_OWNER}", Owner.here().text())
        local = self._storage.is_local
        self.staging = Path(self.url if local else tempfile.mkdtemp(prefix="raysys-"))

    def path(self, name: str) -> Path:
        """Return the local path to write file `name` to; its folder exists."""
        target = self.staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def scratch(self) -> str:
        """Return the name of a folder below `training/` from which a killed job's work goes on.

        It is emptied first where the build is made anew, and deleted once the build is there.
        """
        name = f"{self.kind}-{self.build_id}"
        self._scratch = f"{SCRATCH}/{name}"
        if self._anew:
            self._storage.delete(self._scratch)
        return name

    def commit(self, facts: Mapping[str, Any]) -> Manifest:
        """Hash the files and publish them as the build by one write of its manifest.

        Raises:
            BuildError: another job took over while this one was asleep.
        """
        if not self._storage.is_local:
            self._storage.upload(self.staging, self._folder)
        files = {
            name: {"sha256": self._storage.sha256(f"{self._folder}/{name}"), "bytes": mark[0]}
            for name, mark in self._storage.files(self._folder).items()
            if name != _OWNER
        }
        first = self._storage.is_local and not self._storage.has_folder(self._place)
        manifest = Manifest(
            **self._header,
            folder="" if first else self._lease.token,
            content_id=digest([self.build_id, {n: e["sha256"] for n, e in files.items()}]),
            files=files,
            facts=json.loads(json.dumps(dict(facts), allow_nan=False)),
            notes=notes(),
        )
        self._storage.remove(f"{self._folder}/{_OWNER}")
        self._lease.confirm()
        self._publish(manifest)
        if self._scratch is not None:
            self._storage.delete(self._scratch)
        log.info("build committed kind=%s build_id=%s", self.kind, self.build_id)
        return manifest

    def _publish(self, manifest: Manifest) -> None:
        """Make the files the build, in one step: a rename, or one write of the manifest."""
        self._published = True  # from here on they may be, whatever fails
        if not manifest.folder:
            self._storage.write_atomic(f"{self._folder}/{MANIFEST}", manifest.text())
            self._storage.rename(self._folder, self._place)
            return
        if self._storage.is_local:
            self._storage.rename(self._folder, f"{self._place}/{manifest.folder}")
        self._storage.write_atomic(f"{self._place}/{MANIFEST}", manifest.text())

    def discard(self) -> None:
        """Delete what this draft wrote, unless it may be a build by now."""
        if not self._published:
            self._storage.delete(self._folder)
            self._storage.prune(self.kind)

    def close(self) -> None:
        """Delete what lies on this host alone."""
        if not self._storage.is_local:
            shutil.rmtree(self.staging, ignore_errors=True)


def remove_abandoned(storage: Storage, kind: str) -> None:
    """Delete drafts that nobody writes any more: their job died, here or a day ago."""
    marks = storage.files(kind)
    waiting = {name.rpartition("-")[2] for name in storage.files(LOCKS)}
    for name in (name for name in marks if name.endswith(f"/{_OWNER}")):
        folder = name.removesuffix(f"/{_OWNER}")
        newest = max(mark.mtime_ns for other, mark in marks.items() if other.startswith(folder))
        old = time.time() - newest / 1e9 > _ABANDONED_S
        held = f"{folder.rpartition('/')[2]}.json" in waiting
        owner = Owner.read(storage, f"{kind}/{name}")
        if owner is not None and (owner.is_gone() or (old and not held)):
            log.warning("draft of a dead job removed path=%s owner=%s", folder, owner.name)
            storage.delete(f"{kind}/{folder}")
