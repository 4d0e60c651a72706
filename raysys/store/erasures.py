"""Erasures: users whose rows are in no build any more, and do not come back from an old log.

    <run>/erased.json    a salt, and for each user a hash and the moment, in UTC seconds; `merged`:
                         the same of runs that were exported into this one, by their own salts

An erased build keeps its ids, so what was made from it still belongs to it: its files are written
anew beside it, one write of the manifest makes them its files, and then the earlier ones go. The
manifest lists its erasures: when, and of how many users.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysys.config import digest
from raysys.errors import BuildError
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft
from raysys.store.inventory import Inventory
from raysys.store.leases import leased
from raysys.store.storage import Storage

ERASED = "erased.json"
LEARNED = ("autoencoder", "embeddings", "compressor", "codes", "index", "baselines")


class Erasures:
    """The users of a run that were erased.

    Args:
        parts: {salt of the hashes: {hash of an id: UTC second up to which rows stay away}}.
    """

    def __init__(self, parts: dict[str, dict[str, int]]) -> None:
        self._parts = parts

    @classmethod
    def of(cls, storage: Storage) -> Erasures | None:
        """Read those of a run; None where there are none.

        Raises:
            CorruptBuildError: the file is damaged.
        """
        record = storage.read_json(ERASED)
        return None if record is None else cls(_parts(record))

    @property
    def identity(self) -> str:
        """What tells these erasures from others; part of the id of what is read beside them."""
        return digest([each for part in self._parts.items() for each in part])

    def moment(self, user_id: str) -> int | None:
        """Return until when rows of a user stay away; None: they do not."""
        found = [moments.get(_hash(salt, user_id), -1) for salt, moments in self._parts.items()]
        return max(found) if max(found) >= 0 else None

    def forbidden(self, users: pa.Array, seconds: pa.Array) -> Any:
        """Return which rows [M] stay away, a mask of NumPy.

        Args:
            users: [M] ids, dictionary-encoded, or null.
            seconds: [M] UTC seconds; rows without a time stay away whatever the moment.
        """
        import numpy as np

        moments = [self.moment(user) for user in users.dictionary.to_pylist()]
        until = np.array([-1 if m is None else m for m in moments] + [-1], dtype=np.int64)
        codes = users.indices.fill_null(len(moments)).to_numpy(zero_copy_only=False)
        rows = until[codes]
        return (rows >= 0) & (seconds.fill_null(0).to_numpy(zero_copy_only=False) <= rows)


def remember(storage: Storage, user_ids: Iterable[str]) -> int:
    """Let rows of users that are older than now never come back; return the moment.

    Raises:
        BuildError: the run cannot be written.
    """
    moment = int(time.time()) + 1
    with leased(storage, "erased"):
        record = storage.read_json(ERASED) or {"salt": secrets.token_hex(16), "users": {}}
        record["users"] |= {_hash(record["salt"], user_id): moment for user_id in user_ids}
        _write(storage, record)
    return moment


def merge(source: Storage, target: Storage) -> None:
    """Let users who were erased in one run stay away from another one too.

    Raises:
        BuildError: the other run cannot be written.
    """
    new = source.read_json(ERASED)
    if new is None:
        return
    with leased(target, "erased"):
        record = target.read_json(ERASED)
        parts = {} if record is None else _parts(record)
        for salt, moments in _parts(new).items():
            own = parts.setdefault(salt, {})
            parts[salt] = {u: max(own.get(u, 0), moments.get(u, 0)) for u in own.keys() | moments}
        (salt, users), *others = parts.items()
        made: dict[str, Any] = {"salt": salt, "users": users}
        if others:
            made["merged"] = [{"salt": salt, "users": users} for salt, users in others]
        if made != record:
            _write(target, made)


def rewrite(
    workspace: Workspace, build: Build, change: Callable[[Path], dict[str, Any]], *, users: int
) -> None:
    """Let a build have other files under the same ids; the earlier ones are deleted.

    Args:
        workspace: of the run.
        build: that is there.
        change: changes files in a folder that holds them all; returns the facts that changed.
        users: how many are erased.

    Raises:
        BuildError: the run cannot be written, or another job took over.
    """
    storage = workspace.storage
    with leased(storage, build.place) as lease:
        build = workspace.open(build.kind, build.build_id)
        header = {"kind": build.kind, "build_id": build.build_id}
        draft = Draft(storage, header, [lease], anew=False)
        try:
            for name in build.files():
                shutil.copyfile(build.path(name), draft.path(name))
            facts = build.record() | change(draft.staging)
            erased = {"at": _now(), "users": users}
            draft.replace(build.manifest, facts=facts, erased=[*build.manifest.erased, erased])
        except OSError as error:
            draft.discard()
            raise BuildError(f"cannot write {build.place} of {workspace.run}: {error}") from error
        except BaseException:
            draft.discard()
            raise
        finally:
            draft.close()
        for name in build.files():
            storage.remove(f"{build.folder}/{name}")
            storage.prune(f"{build.folder}/{name}".rpartition("/")[0])


def models_with_erased(storage: Storage) -> list[str]:
    """Return the places of builds that were learned from rows of users who were erased later.

    They hold no rows, but what was learned from them: trained again, from profiles without these
    users, they do not. A build says how often users had been taken out of what it was made from
    when that was opened: what was taken out since, during its work too, it learned from.
    """
    return _learned_before(Inventory(storage), LEARNED)


def stale_baselines(storage: Storage) -> list[str]:
    """Return the places of baselines that were fitted to users who were erased later.

    Some keep users by their numbers, so they are not only named but deleted.
    """
    return _learned_before(Inventory(storage), ("baselines",))


def _learned_before(inventory: Inventory, kinds: Collection[str]) -> list[str]:
    builds = inventory.builds
    found: list[str] = []
    for place, build in builds.items():  # in the order of kinds: what it was made from comes first
        if build.kind in kinds:
            times = {each: len(builds[each].erased) for each in build.inputs if each in builds}
            if any(each in found or n > build.inputs[each] for each, n in times.items()):
                found.append(place)
    return found


def _parts(record: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {each["salt"]: each["users"] for each in (record, *record.get("merged", ()))}


def _write(storage: Storage, record: dict[str, Any]) -> None:
    try:
        storage.write_atomic(ERASED, json.dumps(record, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise BuildError(f"run={storage.run} cannot be written: {error}") from error


def _hash(salt: str, user_id: str) -> str:
    return hashlib.sha256(f"{salt}{user_id}".encode()).hexdigest()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
