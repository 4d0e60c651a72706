"""What lies in a run: its builds and what keeps them, what is being written, and what is left over.

One listing of the run and one small file a build; nothing is written. A file that is damaged and
may keep builds is remembered: whoever removes builds refuses then, whoever shows them goes on.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from raysys.errors import CorruptBuildError
from raysys.store.current import CURRENT
from raysys.store.drafts import DRAFTS, SCRATCH
from raysys.store.kinds import KINDS
from raysys.store.manifests import MANIFEST, files_id
from raysys.store.pins import pins
from raysys.store.storage import FileMark, Storage
from raysys.store.uses import Used, uses

TRIALS = "sweeps/trials"
WORK = "refresh/work"  # what a refresh that is not decided yet names current
LEDGER = "refresh/ledger"
_PUBLISHING = "publishing"  # state of a decision whose builds are becoming current
_PLACE = re.compile(r"([a-z]+)/\.?([0-9a-f]{16})(?:\.[0-9a-f]{8})?/.+")
_FOLDER = re.compile(r"\.?([0-9a-f]{16})(?:\.[0-9a-f]{8})?")
_CURRENT = re.compile(rf"(?:(.+)/)?([a-z]+)/{re.escape(CURRENT)}")
_PARTIAL = re.compile(r"(?:.*/)?\.[^/]+\.[0-9a-f]{8}")


@dataclasses.dataclass(frozen=True)
class Found:
    """A build that is there.

    Attributes:
        place: `<kind>/<build_id>`.
        created_s: when its manifest was written, by the storage's clock.
        inputs: {place of what it was made from: how often users were taken out of that before}.
        files: {path in the run: mark}, of all that its manifest names, and of the manifest.
        erased: when users were taken out of it, ISO 8601.
        files_id: names its folder in caches.
    """

    place: str
    created_s: float
    inputs: dict[str, int]
    files: dict[str, FileMark]
    erased: tuple[str, ...] = ()
    files_id: str = ""

    @property
    def kind(self) -> str:
        """Its kind."""
        return self.place.split("/")[0]

    @property
    def build_id(self) -> str:
        """Its id."""
        return self.place.split("/")[1]

    @property
    def size_bytes(self) -> int:
        """The size of its files."""
        return sum(mark.size_bytes for mark in self.files.values())


class Inventory:
    """A run, looked at once.

    Args:
        storage: of the run.
        only: a place: look at the files of this build alone.

    Attributes:
        files: all of them.
        builds: {place: build}, in the order of kinds, oldest first.
        drafts: {place of the build: tokens of those who write it}.
        used: by processes.
        pins: {name: place}.
    """

    def __init__(self, storage: Storage, *, only: str | None = None) -> None:
        self._storage = storage
        self._damaged: set[str] = set()
        self._read_once: dict[str, dict[str, Any] | None] = {}
        self.files = storage.files("") if only is None else _files_of(storage, only)
        owners = storage.files(DRAFTS)  # after the files: a draft names itself before it has any
        self.drafts: dict[str, list[str]] = {}
        for name in owners:
            words = name.removesuffix(".json").split("-")
            if len(words) == 3:
                self.drafts.setdefault("/".join(words[:2]), []).append(words[2])
        self.used: list[Used] = uses(storage)
        self.pins = pins(storage)
        self._records: dict[str, dict[str, Any] | None] = {}
        self._names: list[str] = []
        self._names_of: dict[str, FileMark] | None = None
        self._below: dict[str, dict[str, FileMark]] = {}
        for name, mark in self.files.items():
            match = _PLACE.fullmatch(name)
            if match is not None and match.group(1) in KINDS:
                place = f"{match.group(1)}/{match.group(2)}"
                self._below.setdefault(place, {})[name] = mark
        if storage.is_local:  # which has empty folders
            for kind in KINDS if only is None else [only.split("/")[0]]:
                for folder in storage.folders(kind):
                    match = _FOLDER.fullmatch(folder)
                    if match is not None and only in (None, f"{kind}/{match.group(1)}"):
                        self._below.setdefault(f"{kind}/{match.group(1)}", {})
        found = [build for place in self._below if (build := self._found(place)) is not None]
        order = list(KINDS)
        found.sort(key=lambda build: (order.index(build.kind), build.created_s))
        self.builds = {build.place: build for build in found}

    def again(self) -> Inventory:
        """Look again at what keeps builds, and at nothing else: what a manifest says stays so."""
        fresh = copy.copy(self)
        fresh._damaged, fresh._read_once = set(), {}
        fresh._records = {p: record for p, record in self._records.items() if record is not None}
        fresh.files = {
            f"{folder}/{name}": mark
            for folder in sorted({name.split("/")[0] for name in (TRIALS, WORK)})
            for name, mark in self._storage.files(folder).items()
        }
        fresh.used, fresh.pins = uses(self._storage), pins(self._storage)
        return fresh

    # -- what keeps builds -----------------------------------------------------------------

    def current(self) -> dict[str, str]:
        """Return {place of the current build: its kind} of the run itself."""
        return {f"{kind}/{record['build_id']}": kind for kind, record in self._named().items()}

    def before(self) -> dict[str, int]:
        """Return {place: how many builds ago it was current}, from 1 on."""
        found = {}
        for kind, record in self._named().items():
            for ago, build_id in enumerate(record.get("before", ()), start=1):
                found[f"{kind}/{build_id}"] = ago
        return found

    def trials(self) -> dict[str, set[str]]:
        """Return {folder of a sweep's work: places of the builds that are current there}."""
        return {folder: places for folder, places in self._asides().items() if folder != WORK}

    def work(self) -> set[str]:
        """Return the places of builds that are current for a refresh that is not decided yet."""
        return self._asides().get(WORK, set())

    def publishing(self) -> dict[str, set[str]]:
        """Return {decision of a refresh that is being carried out: builds of before and after}.

        They are neither current nor in use where its job was killed: the next refresh goes on.
        """
        found = {}
        for name in self.below(LEDGER):
            record = self._read(name) if name.endswith(".json") and "/." not in name else {}
            if record.get("state") == _PUBLISHING:
                sides = (record.get("before") or {}, record.get("after") or {})
                found[name] = {f"{kind}/{each}" for side in sides for kind, each in side.items()}
        return found

    def refuse_damaged(self, kept: Iterable[str]) -> None:
        """Check what was read so far, and the manifests of builds that are kept.

        Raises:
            CorruptBuildError: a file is damaged that may keep builds, so nothing can be removed.
        """
        names = {each.file for each in self.used if each.lives and each.is_damaged}
        names |= {name for name in self._damaged if not name.endswith(f"/{MANIFEST}")}
        names |= self._damaged & {f"{place}/{MANIFEST}" for place in kept}
        for name in sorted(names):
            raise CorruptBuildError(
                f"{self._storage.url(name)} is damaged, and may keep builds: nothing is removed "
                "before it is written anew or deleted"
            )

    def lineage(self, places: Iterable[str]) -> set[str]:
        """Return builds and all that they were made from."""
        todo, found = list(places), set()
        while todo:
            place = todo.pop()
            if place not in found:
                found.add(place)
                build = self.builds.get(place) or self._found(place)
                todo += build.inputs if build is not None else ()
        return found

    # -- what is left over -----------------------------------------------------------------

    def orphans(self) -> dict[str, dict[str, FileMark]]:
        """Return {place: files below it that neither its manifest names nor a draft writes}."""
        found = {}
        for place, files in self._below.items():
            build = self.builds.get(place)
            named = build.files if build is not None else {}
            tokens = self.drafts.get(place, ())
            left = {
                name: mark
                for name, mark in files.items()
                if name not in named and not any(token in name for token in tokens)
            }
            if left or not (files or tokens):
                found[place] = left
        return found

    def partials(self, *, before_s: float) -> dict[str, FileMark]:
        """Return what small writes that were killed left, by the storage's clock before then."""
        return {
            name: mark
            for name, mark in self.files.items()
            if _PARTIAL.fullmatch(name) and mark.mtime_ns / 1e9 < before_s
        }

    def scratch(self) -> dict[str, dict[str, FileMark]]:
        """Return {folder below `training/`: its files}."""
        found: dict[str, dict[str, FileMark]] = {}
        for name, mark in self.files.items():
            words = name.split("/")
            if words[0] == SCRATCH and len(words) > 2:
                found.setdefault("/".join(words[:2]), {})[name] = mark
        return found

    def cache_keys(self) -> set[str]:
        """Return the folders of a host's cache in which files of these builds lie."""
        return {f"{build.kind}/{build.files_id}" for build in self.builds.values()}

    def below(self, folder: str) -> dict[str, FileMark]:
        """Return the files below a folder."""
        if self._names_of is not self.files:
            self._names, self._names_of = sorted(self.files), self.files
        first = bisect.bisect_left(self._names, f"{folder}/")
        last = bisect.bisect_left(self._names, f"{folder}0")  # what follows a slash
        return {name: self.files[name] for name in self._names[first:last]}

    # -- internals -------------------------------------------------------------------------

    def _asides(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name in self.files:
            match = _CURRENT.fullmatch(name)
            if match is not None and match.group(1):
                record = self._read_current(name)
                place = f"{match.group(2)}/{record.get('build_id')}"
                found.setdefault(match.group(1), set()).add(place)
        return found

    def _named(self) -> dict[str, dict[str, Any]]:
        records = {kind: self._read_current(f"{kind}/{CURRENT}") for kind in KINDS}
        return {kind: record for kind, record in records.items() if record}

    def _read_current(self, name: str) -> dict[str, Any]:
        record = self._read(name)
        if not isinstance(record.get("build_id"), str) and self._read_once[name] is not None:
            self._damaged.add(name)
            return {}
        return record

    def _read(self, name: str) -> dict[str, Any]:
        """Return what a file holds; nothing where it is not there, or damaged."""
        if name not in self._read_once:
            try:
                self._read_once[name] = self._storage.read_json(name)
            except CorruptBuildError:
                self._damaged.add(name)
                self._read_once[name] = {}
        return self._read_once[name] or {}

    def _found(self, place: str) -> Found | None:
        """Return a build; None where there is no manifest that can be read."""
        name = f"{place}/{MANIFEST}"
        if place not in self._records:
            keys = self._read(name).keys()
            if self._read_once[name] is not None and not keys >= {"inputs", "files"}:
                self._damaged.add(name)  # no build, whoever wrote it
            self._records[place] = None if name in self._damaged else self._read_once[name]
        record = self._records[place]
        if record is None:
            return None
        inputs, files = record.get("inputs", {}), record.get("files", {})
        below = self._below.get(place, {})
        names = [name, *(f"{place}/{file}" for file in files)]
        return Found(
            place,
            created_s=below[name].mtime_ns / 1e9 if name in below else float("inf"),
            inputs={f"{k}/{ref['build_id']}": ref.get("erased", 0) for k, ref in inputs.items()},
            files={name: below[name] for name in names if name in below},
            erased=tuple(str(each["at"]) for each in record.get("erased", ())),
            files_id=files_id(record),
        )


def _files_of(storage: Storage, place: str) -> dict[str, FileMark]:
    """Return the files of one build and of those that write it."""
    kind, build_id = place.split("/")
    hidden = [f for f in storage.folders(kind) if f.startswith(f".{build_id}.")]
    folders = [place, *(f"{kind}/{folder}" for folder in hidden)]
    return {f"{f}/{name}": mark for f in folders for name, mark in storage.files(f).items()}
