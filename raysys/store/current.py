"""Which builds are current: one small file a kind names the one, and those that were so before it.

    <run>/<kind>/current.json            the run's: what is served, and what the next stage reads
    <run>/<place>/<kind>/current.json    of work that is set aside in a place of its own

Builds are named by what they are made of, so work that is set aside writes ordinary builds into the
run. What it names current is for itself alone: a kind that it has not built is the run's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from raysys.errors import BuildError, CorruptBuildError
from raysys.store.leases import leased
from raysys.store.manifests import MANIFEST, Manifest
from raysys.store.storage import Storage

CURRENT = "current.json"
_KEPT = 100  # builds that are named as current before

_place: ContextVar[str] = ContextVar("place", default="")


@contextmanager
def aside(place: str) -> Iterator[None]:
    """Set the block's work aside: each `Workspace` that it makes names builds and reports there.

    Args:
        place: a folder of the run, such as `sweeps/trials/0123456789abcdef`.
    """
    token = _place.set(f"{place.strip('/')}/")
    try:
        yield
    finally:
        _place.reset(token)


class Current:
    """The names of a run's current builds, as seen from where the work is done.

    Args:
        storage: of the run.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._place = _place.get()

    def path(self, name: str) -> str:
        """Return where a file or folder of this work lies, one that is no build."""
        return f"{self._place}{name}"

    def read(self, kind: str) -> dict[str, Any] | None:
        """Return what names the current build of a kind: `build_id` and `before`; None: nothing.

        Raises:
            CorruptBuildError: the file is damaged.
        """
        own = self._storage.read_json(self._file(kind)) if self._place else None
        return own if own is not None else self._storage.read_json(f"{kind}/{CURRENT}")

    def name(self, manifest: Manifest) -> None:
        """Make a build current, unless it is so."""
        kind = manifest.kind
        named = {"build_id": manifest.build_id, "content_id": manifest.content_id}
        if named.items() <= self._own(kind).items():
            return
        with leased(self._storage, self.path(f"{kind}/current")):
            record = self._own(kind)
            present = [record["build_id"]] if "build_id" in record else []
            self._write(manifest, [*present, *record.get("before", ())])

    def go_back(self, manifest: Manifest, *, present: str | None) -> None:
        """Make a build current that was so before; those after it are no longer named.

        Raises:
            BuildError: another build than `present` is current by now.
        """
        kind, build_id = manifest.kind, manifest.build_id
        with leased(self._storage, self.path(f"{kind}/current")):
            record = self._own(kind)
            if present is not None and record.get("build_id") != present:
                raise BuildError(f"another {kind} is current by now: ask again")
            ids = list(record.get("before", ()))
            self._write(manifest, ids[ids.index(build_id) + 1 :] if build_id in ids else ids)

    def trim(self, kind: str, gone: Collection[str]) -> None:
        """Name builds that were removed no longer as current before."""
        with leased(self._storage, self.path(f"{kind}/current")):
            record = self._own(kind)
            before = record.get("before", ())
            left = [build_id for build_id in before if build_id not in gone]
            if len(left) < len(before):
                content = json.dumps(record | {"before": left}) + "\n"
                self._storage.write_atomic(self._file(kind), content)

    def _file(self, kind: str) -> str:
        return self.path(f"{kind}/{CURRENT}")

    def _own(self, kind: str) -> dict[str, Any]:
        """Return what names the current build here; nothing where the file is damaged."""
        try:
            return self._storage.read_json(self._file(kind)) or {}
        except CorruptBuildError:
            return {}

    def _write(self, manifest: Manifest, before: Sequence[str]) -> None:
        ids = [build_id for build_id in dict.fromkeys(before) if build_id != manifest.build_id]
        record = {"build_id": manifest.build_id, "content_id": manifest.content_id}
        content = json.dumps(record | {"before": ids[:_KEPT]}) + "\n"
        self._storage.write_atomic(self._file(manifest.kind), content)


def drop(storage: Storage, kind: str, build_id: str) -> None:
    """Name a build that is about to go no longer; the one before it is current where it was so."""
    with leased(storage, f"{kind}/current"):
        record = storage.read_json(f"{kind}/{CURRENT}") or {}
        ids = [record.get("build_id"), *record.get("before", ())]
        left = [each for each in ids if each != build_id]
        if left == ids:
            return
        if ids[0] != build_id:
            made = {**record, "before": left[1:]}
        else:
            manifests = {each: storage.read_json(f"{kind}/{each}/{MANIFEST}") for each in left}
            there = [each for each in left if manifests[each] is not None]
            if not there:
                storage.remove(f"{kind}/{CURRENT}")
                return
            content_id = (manifests[there[0]] or {}).get("content_id")
            made = {"build_id": there[0], "content_id": content_id, "before": there[1:]}
        storage.write_atomic(f"{kind}/{CURRENT}", json.dumps(made) + "\n")
