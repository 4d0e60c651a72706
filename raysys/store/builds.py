"""Builds: what a stage writes, hashed, committed in one step and bound to what it was made from.

    <run>/<kind>/<build_id>/manifest.json   and the files that it lists
    <run>/<kind>/current.json               names the current build, and those before it; one write

`build_id` is known before the work (kind, settings, inputs), `content_id` after it (the files too).
A build is written under a lease of its identity, so two equal jobs do the work once. It is written
in a folder that no other job knows: a hidden sibling, renamed at the end; on object stores, which
cannot rename, and where the build was there before (`force`, or found damaged), a folder below the
build's own, which one write of the manifest makes its files. So a reader sees a whole build or
none, nothing that is finished is written into, and what is made anew stays until its successor.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from raysys.config import digest
from raysys.errors import BuildError, CorruptBuildError, SchemaVersionError
from raysys.store.current import Current
from raysys.store.drafts import Draft, remove_abandoned
from raysys.store.kinds import KINDS, Facts
from raysys.store.leases import Lease, leased
from raysys.store.manifests import CONDEMNED, MANIFEST, Manifest, check_size, differs
from raysys.store.storage import FileMark, Storage, hash_of
from raysys.store.uses import Use, announcing

log = logging.getLogger(__name__)


@dataclasses.dataclass
class StageResult:
    """What a stage hands to the job that prints the JSON line.

    Attributes:
        build_ids: {kind: build_id} of the builds it wrote or reused.
        metrics: {name: {"mean", "ci_low", "ci_high"}}; null intervals where there are none.
        extra: further keys of the JSON line.
    """

    build_ids: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class Build:
    """A finished build; its files are local or fetched on first use, and known to its kind's owner.

    Attributes:
        manifest: what it is and was made from.
        place, folder: where it lies in its run, and where its files do.
        storage: the run's.
    """

    def __init__(self, workspace: Workspace, manifest: Manifest) -> None:
        self.manifest = manifest
        self.storage = workspace.storage
        self.place = f"{manifest.kind}/{manifest.build_id}"
        self.folder = f"{self.place}/{manifest.folder}" if manifest.folder else self.place
        self._files_id = digest(manifest.files)

    @property
    def kind(self) -> str:
        """The kind of the build."""
        return self.manifest.kind

    @property
    def build_id(self) -> str:
        """The build's identity before the work."""
        return self.manifest.build_id

    @property
    def content_id(self) -> str:
        """The build's identity after the work."""
        return self.manifest.content_id

    def record(self) -> dict[str, Any]:
        """Return the build's facts as JSON values, to be shown; readers take their typed form."""
        return self.manifest.facts

    def files(self, suffix: str = "", *, prefix: str = "") -> list[str]:
        """Return the relative paths that start with `prefix` and end with `suffix`, sorted."""
        names = self.manifest.files
        return sorted(n for n in names if n.startswith(prefix) and n.endswith(suffix))

    def url(self, name: str) -> str:
        """Return the local path or URI of file `name`, which workers on any node can read."""
        return self.storage.url(f"{self.folder}/{name}")

    def urls(self, suffix: str = "", *, prefix: str = "") -> list[str]:
        """Return `url` of the files that start with `prefix` and end with `suffix`, sorted."""
        return [self.url(name) for name in self.files(suffix, prefix=prefix)]

    def path(self, name: str) -> Path:
        """Return a local path of file `name`, its size checked; fetched first from object stores.

        Raises:
            CorruptBuildError: the file is missing or its size is not the manifest's.
        """
        size = self._entry(name)["bytes"]
        path = self._fetched(name)
        actual = path.stat().st_size if path.is_file() else None
        if actual != size and not self.storage.is_local:
            path = self._fetched(name, anew=True)
            actual = path.stat().st_size
        check_size(f"{path}", actual, size)
        return path

    def verify(self, *prefixes: str) -> None:
        """Check the hash of every file, as this host reads it; what is cached wrong is fetched.

        Args:
            prefixes: of the names that are checked; none: all are.

        Raises:
            CorruptBuildError: naming the first file that differs from the manifest.
        """
        for name, entry in self.manifest.files.items():
            if prefixes and not name.startswith(prefixes):
                continue
            path = self.path(name)
            if hash_of(path) == entry["sha256"]:
                continue
            if self.storage.is_local or hash_of(self._fetched(name, anew=True)) != entry["sha256"]:
                raise differs(f"{path}")

    def check(self) -> None:
        """Check sizes where the build lies, and hashes once per content and host.

        Raises:
            CorruptBuildError: naming the first file that differs from the manifest.
        """
        marks = self.storage.files(self.folder)
        for name, entry in self.manifest.files.items():
            mark = marks.get(name)
            check_size(self.url(name), mark and mark.size_bytes, entry["bytes"])
        if self.storage.remembers(self.folder, self._marks(marks)):
            return
        for name, entry in self.manifest.files.items():
            if self.storage.sha256(f"{self.folder}/{name}") != entry["sha256"]:
                raise differs(self.url(name))
        self.storage.remember(self.folder, self._marks(marks))

    def remember(self) -> None:
        """Take it that the files, as they are now, have their hashes."""
        self.storage.remember(self.folder, self._marks(self.storage.files(self.folder)))

    def made_from(self, other: Build) -> bool:
        """Tell whether this build was made from the content of another one."""
        ref = self.manifest.inputs.get(other.kind)
        return ref is not None and ref["content_id"] == other.content_id

    def ref(self) -> dict[str, str]:
        """Return the entry under which later builds name this one as their input."""
        return {"build_id": self.build_id, "content_id": self.content_id}

    def named(self) -> dict[str, Any]:
        """Return `ref`, and how often users were taken out of it, where they were."""
        n_erased = len(self.manifest.erased)
        return self.ref() | ({"erased": n_erased} if n_erased else {})

    @property
    def learned_id(self) -> str:
        """What ids of builds made from this one follow from: an erasure makes another one."""
        erased = self.manifest.erased
        return digest([self.content_id, erased]) if erased else self.content_id

    def state(self) -> dict[str, str]:
        """Return what tells the build's files too: an erasure keeps the ids."""
        return self.ref() | {"files": self._files_id}

    def _entry(self, name: str) -> dict[str, Any]:
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BuildError(f"{self.kind} build {self.build_id} holds no file {name!r}")
        return entry

    def _fetched(self, name: str, *, anew: bool = False) -> Path:
        key = f"{self.kind}/{self._files_id}/{name}"
        return self.storage.fetch(f"{self.folder}/{name}", cache_key=key, anew=anew)

    def _marks(self, marks: Mapping[str, FileMark]) -> dict[str, Any]:
        """Return what identifies the content and the files that hold it."""
        return {"content_id": self.content_id, "files": {n: [*marks[n]] for n in self.files()}}


class Workspace:
    """One run: its builds, read and written.

    Args:
        run: local path or any URI that `pyarrow.fs` opens.
        cache_dir: where files from object stores are kept; default `~/.cache/raysys`.

    Attributes:
        use: where it is written down which builds are opened; None: nowhere.
    """

    def __init__(self, run: str, *, cache_dir: str | None = None) -> None:
        self.run = run
        self.storage = Storage(run, cache_dir=cache_dir)
        self.use, self._current = announcing(self.storage), Current(self.storage)
        self._held: list[Lease] = []

    def path(self, name: str) -> str:
        """Return where a folder beside the builds lies, such as `reports`: see `aside`."""
        return self._current.path(name)

    def current(self, kind: str) -> Build:
        """Open the current build of `kind`.

        Raises:
            BuildError: there is none yet; the message names the job that writes it.
        """
        record = self._current.read(kind)
        if record is None:
            writer = KINDS[kind].writer
            raise BuildError(f"{self.run} holds no {kind} build yet: {writer} writes it")
        return self.open(kind, str(record.get("build_id")))

    def has(self, kind: str) -> bool:
        """Tell whether a current build of `kind` exists."""
        return self._current.read(kind) is not None

    def before(self, kind: str) -> list[str]:
        """Return the ids of the builds that were current before the present one, newest first."""
        return [str(each) for each in (self._current.read(kind) or {}).get("before", ())]

    def go_back(self, build: Build, *, present: Build | None = None) -> None:
        """Make a build current that was so before; those after it are no longer named.

        Raises:
            BuildError: another than `present` is current by now, or storage cannot be written.
        """
        with self._writing(build.kind):
            self._current.go_back(build.manifest, present=present.build_id if present else None)

    def take(self, build: Build) -> None:
        """Make a build current, unless it is so; the one before it stays named.

        Raises:
            BuildError: storage cannot be written.
        """
        with self._writing(build.kind):
            self._current.name(build.manifest)

    def open(self, kind: str, build_id: str) -> Build:
        """Open one build by its id.

        Raises:
            BuildError: there is no such build; SchemaVersionError: of another version;
            CorruptBuildError: its manifest is not readable.
        """
        place = f"{kind}/{build_id}"
        where = f"{place}/{MANIFEST}"
        self._using(place)
        record = self.storage.read_json(where)
        if self.use is not None and self.storage.exists(f"{place}/{CONDEMNED}"):
            with leased(self.storage, place):  # whoever is about to remove it decides first
                self.storage.remove(f"{place}/{CONDEMNED}")
            record = self.storage.read_json(where)
        if record is None:
            raise BuildError(f"{self.run} holds no {kind} build {build_id}")
        return Build(self, Manifest.of(record, kind, f"{self.run}/{where}"))

    def announce(self, what: str) -> Use:
        """Write down from now on which builds are opened, until the use is closed."""
        self.use = Use(self.storage, what)
        return self.use

    def chain(self, build: Build) -> dict[str, Build]:
        """Open `build` and everything that it was made from, by content.

        Returns:
            {kind: Build} including `build` itself.

        Raises:
            BuildError: an input is gone, was rebuilt with other content, or two builds in the
            chain were made from different builds of one kind.
        """
        chain = {build.kind: build}
        todo = [build]
        while todo:
            user = todo.pop()
            self._using(*(f"{k}/{ref['build_id']}" for k, ref in user.manifest.inputs.items()))
            for kind, ref in user.manifest.inputs.items():
                found = chain.get(kind)
                if found is None:
                    found = chain[kind] = self.open(kind, ref["build_id"])
                    todo.append(found)
                if found.content_id != ref["content_id"]:
                    raise BuildError(
                        f"mixed builds: {user.kind} {user.build_id} was made from {kind} content "
                        f"{ref['content_id']}, but {found.build_id} has {found.content_id}; "
                        f"run the jobs again from {KINDS[kind].writer} on"
                    )
        return chain

    def build(
        self,
        kind: str,
        *,
        config: Mapping[str, Any],
        write: Callable[[Draft], Facts],
        inputs: Sequence[Build] = (),
        source: object = None,
        force: bool = False,
    ) -> Build:
        """Return the finished build with this identity, written first if need be, made current.

        Two equal jobs do the work once: the second one waits, and takes over when the first one
        dies. A finished build is reused if it passes `Build.check`.

        Args:
            kind: the kind of build.
            config: the settings that decide its content.
            write: writes the files into the draft and returns the build's facts.
            inputs: the builds it is made from.
            source: fingerprint of outside data, anything JSON can hold.
            force: write it anew even if it is finished.

        Raises:
            BuildError: the storage cannot be written. What `write` raises comes through, and what
            it wrote is deleted.
        """
        contents = {build.kind: build.learned_id for build in inputs}
        settings = json.loads(json.dumps(dict(config)))
        header: dict[str, Any] = {"kind": kind, "schema_version": KINDS[kind].version}
        build_id = digest([*header.values(), settings, source, contents])
        refs = {build.kind: build.named() for build in inputs}
        header |= {"build_id": build_id, "inputs": refs, "config": settings}
        self._using(f"{kind}/{build_id}", *(build.place for build in inputs))
        with self._writing(kind):
            build = None if force else self._finished(kind, build_id)
            if build is None:
                with leased(self.storage, f"{kind}/{build_id}") as lease:
                    build = None if force else self._finished(kind, build_id)
                    if build is None:
                        remove_abandoned(self.storage)
                        draft = Draft(self.storage, header, [lease, *self._held], anew=force)
                        build = self._written(draft, write)
            self._current.name(build.manifest)
        return build

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold a lease during the block: what it builds is published only while that holds."""
        with leased(self.storage, name) as lease:
            self._held.append(lease)
            try:
                yield
            finally:
                self._held.remove(lease)

    def _using(self, *places: str) -> None:
        if self.use is not None:
            self.use.add(*places)

    @contextmanager
    def _writing(self, kind: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:  # the latter wraps the former: a full disk
            raise BuildError(f"cannot write {kind} build to {self.run}: {error}") from error

    def _written(self, draft: Draft, write: Callable[[Draft], Facts]) -> Build:
        try:
            build = Build(self, draft.commit(write(draft)))
        except BaseException:
            draft.discard()
            raise
        finally:
            draft.close()
        build.remember()
        return build

    def _finished(self, kind: str, build_id: str) -> Build | None:
        """Return the build if it is there and whole."""
        if not self.storage.exists(f"{kind}/{build_id}/{MANIFEST}"):
            return None
        try:
            build = self.open(kind, build_id)
            build.check()
        except (CorruptBuildError, SchemaVersionError) as error:
            log.warning("build is made anew kind=%s build_id=%s: %s", kind, build_id, error)
            return None
        log.info("build reused kind=%s build_id=%s", kind, build_id)
        return build
