"""Drafts: builds that are being written, and what is left of those whose job died."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysys.config import digest
from raysys.errors import BuildError, CorruptBuildError
from raysys.store.leases import LOCKS, Lease, Owner
from raysys.store.manifests import MANIFEST, Manifest, notes
from raysys.store.storage import Storage

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
        self, storage: Storage, header: dict[str, Any], leases: Sequence[Lease], *, anew: bool
    ) -> None:
        self._storage = storage
        self._header = header
        self._leases = leases
        self._token = leases[0].token
        self.kind: str = header["kind"]
        self.build_id: str = header["build_id"]
        self._place = f"{self.kind}/{self.build_id}"
        hidden = f"{self.kind}/.{self.build_id}.{self._token}"
        self._folder = hidden if storage.is_local else f"{self._place}/{self._token}"
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
            folder="" if first else self._token,
            content_id=digest([self.build_id, {n: e["sha256"] for n, e in files.items()}]),
            files=files,
            facts=json.loads(json.dumps(dict(facts), allow_nan=False)),
            notes=notes(),
        )
        for lease in self._leases:
            lease.confirm()
        if not self._storage.exists(f"{self._folder}/{_OWNER}"):
            raise BuildError(f"the draft of {self._place} was removed while it was written")
        self._publish(manifest)
        if self._scratch is not None:
            self._storage.delete(self._scratch)
        log.info("build committed kind=%s build_id=%s", self.kind, self.build_id)
        return manifest

    def _publish(self, manifest: Manifest) -> None:
        """Make the files the build, in one step: a rename, or one write of the manifest.

        The owner file of a draft goes after that, and the one that a killed job left in the build
        that is replaced goes before: only a folder that no manifest names is an abandoned draft.
        """
        self._published = True  # from here on they may be, whatever fails
        folder = f"{self._place}/{manifest.folder}" if manifest.folder else self._place
        if manifest.folder:
            before = folder_of(self._storage, self._place)
            if before is not None:
                self._storage.remove(f"{before}/{_OWNER}")
            if self._storage.is_local:
                self._storage.rename(self._folder, folder)
            self._storage.write_atomic(f"{self._place}/{MANIFEST}", manifest.text())
        else:
            self._storage.write_atomic(f"{self._folder}/{MANIFEST}", manifest.text())
            self._storage.rename(self._folder, folder)
        self._storage.remove(f"{folder}/{_OWNER}")

    def discard(self) -> None:
        """Delete what this draft wrote, unless it may be a build by now."""
        if not self._published:
            self._storage.delete(self._folder)
            self._storage.prune(self.kind)

    def close(self) -> None:
        """Delete what lies on this host alone."""
        if not self._storage.is_local:
            shutil.rmtree(self.staging, ignore_errors=True)


def folder_of(storage: Storage, place: str) -> str | None:
    """Return where the files of the build at `place` lie; None where its manifest says nothing."""
    try:
        record = storage.read_json(f"{place}/{MANIFEST}")
    except CorruptBuildError:
        return None
    folder = (record or {}).get("folder")
    return None if folder is None else f"{place}/{folder}".rstrip("/")


def remove_abandoned(storage: Storage, kind: str) -> None:
    """Delete drafts that nobody writes any more: their job died, here or a day ago."""
    marks = storage.files(kind)
    owners = [name for name in marks if name.endswith(f"/{_OWNER}")]
    beats = storage.files(LOCKS) if owners else {}
    now = time.time()
    fresh = {
        name.rpartition("-")[2].removesuffix(".json")
        for name, mark in beats.items()
        if now - mark.mtime_ns / 1e9 < _ABANDONED_S
    }
    for name in owners:
        folder = name.removesuffix(f"/{_OWNER}")
        token = re.split(r"[./]", folder)[-1]
        newest = max(m.mtime_ns for other, m in marks.items() if other.startswith(f"{folder}/"))
        old = now - newest / 1e9 > _ABANDONED_S and token not in fresh
        owner = Owner.read(storage, f"{kind}/{name}")
        place = f"{kind}/{folder.partition('/')[0]}"
        named = not folder.startswith(".") and folder_of(storage, place) == f"{kind}/{folder}"
        if not named and (old or (owner is not None and owner.is_gone())):
            log.warning("draft of a dead job removed path=%s/%s", kind, folder)
            storage.delete(f"{kind}/{folder}")
