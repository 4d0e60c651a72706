"""Builds: what a stage writes, hashed, committed in one step and bound to what it was made from.

    <run>/<kind>/<build_id>/manifest.json   and the files that it lists
    <run>/<kind>/current.json               names the current build, replaced by one atomic write

A build is written to a hidden sibling (`.<build_id>.<token>`), hashed, given its manifest last and
renamed. On object stores, which cannot rename, the manifest is written last and readers require it.
`build_id` is known before the work (kind, settings, inputs), `content_id` after it (the files too).
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import platform
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from raysys.config import digest
from raysys.errors import BuildError, CorruptBuildError, SchemaVersionError
from raysys.storage import Storage

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
CURRENT = "current.json"
_PACKAGES = ("raysys", "ray", "torch", "numpy", "pyarrow", "hnswlib", "numba")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a build is and what it was made from (written as `manifest.json`).

    Attributes:
        kind: interactions, profiles, autoencoder, embeddings, compressor, codes, index or changes.
        build_id: digest of kind, schema version, settings, source fingerprint and inputs.
        content_id: digest of the build_id and the files table.
        inputs: {kind: {"build_id", "content_id"}} of the builds it was made from.
        config: the settings that decided it.
        files: {relative path: {"sha256": hex, "bytes": int}}.
        facts: what readers need to know (sizes, cut-offs, dtype, similarity, metrics).
        notes: creation time, package versions, git revision; not part of any digest.
    """

    kind: str
    build_id: str
    content_id: str
    inputs: dict[str, dict[str, str]]
    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    notes: dict[str, Any]
    schema_version: int = SCHEMA_VERSION


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
    """A finished build; its files are local or fetched on first use."""

    def __init__(self, workspace: Workspace, manifest: Manifest) -> None:
        self.manifest = manifest
        self._workspace = workspace

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

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage recorded for readers."""
        return self.manifest.facts

    def files(self, suffix: str = "", *, prefix: str = "") -> list[str]:
        """Return the relative paths that start with `prefix` and end with `suffix`, sorted."""
        names = self.manifest.files
        return sorted(n for n in names if n.startswith(prefix) and n.endswith(suffix))

    def path(self, name: str) -> Path:
        """Return a local path of file `name`, its size checked; fetched first from object stores.

        Raises:
            CorruptBuildError: the file is missing or its size is not the manifest's.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BuildError(f"{self.kind} build {self.build_id} holds no file {name!r}")
        path = self._workspace.storage.fetch(
            f"{self.kind}/{self.build_id}/{name}",
            cache_key=f"{self.kind}/{self.content_id}/{name}",
        )
        actual = path.stat().st_size if path.is_file() else None
        if actual != entry["bytes"]:
            found = "is missing" if actual is None else f"has {actual} bytes"
            raise CorruptBuildError(f"{path} {found}, manifest says {entry['bytes']} bytes")
        return path

    def verify(self) -> None:
        """Check the hash of every file.

        Raises:
            CorruptBuildError: naming the first file that differs from the manifest.
        """
        for name, entry in self.manifest.files.items():
            path = self.path(name)
            with path.open("rb") as stream:
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
            if actual != entry["sha256"]:
                raise CorruptBuildError(f"{path} does not have the hash that its manifest lists")

    def ref(self) -> dict[str, str]:
        """Return the entry under which later builds name this one as their input."""
        return {"build_id": self.build_id, "content_id": self.content_id}


class Draft:
    """A build being written.

    Attributes:
        staging: the local folder that `path` hands out; on object stores uploaded by `commit`.
        url: where workers on other nodes write: the same folder, or the build's final URI, which
            readers ignore until it has a manifest.
    """

    def __init__(self, workspace: Workspace, header: dict[str, Any]) -> None:
        self._workspace = workspace
        self._storage = workspace.storage
        self._header = header
        self.kind: str = header["kind"]
        self.build_id: str = header["build_id"]
        self._final = f"{self.kind}/{self.build_id}"
        try:
            if self._storage.is_local:
                self._folder = f"{self.kind}/.{self.build_id}.{secrets.token_hex(4)}"
                self.staging = Path(self._storage.root) / self._folder
                self.staging.mkdir(parents=True)
                self.url = str(self.staging)
            else:
                self._folder = self._final
                self._storage.delete(self._folder)
                self.staging = Path(tempfile.mkdtemp(prefix="raysys-"))
                self.url = f"{workspace.run.rstrip('/')}/{self._folder}"
        except OSError as error:
            raise BuildError(f"cannot write to {workspace.run}: {error}") from error

    def path(self, name: str) -> Path:
        """Return the local path to write file `name` to; its folder exists."""
        target = self.staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def commit(self, facts: Mapping[str, Any]) -> Build:
        """Hash the files, write the manifest, publish the build and make it the current one."""
        if not self._storage.is_local:
            self._storage.upload(self.staging, self._folder)
        files = self._storage.table_of_files(self._folder)
        manifest = Manifest(
            **self._header,
            content_id=digest([self.build_id, {n: e["sha256"] for n, e in files.items()}]),
            files=files,
            facts=json.loads(json.dumps(dict(facts), allow_nan=False)),
            notes=_notes(),
        )
        text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n"
        self._storage.write_atomic(f"{self._folder}/{MANIFEST}", text)
        if self._storage.is_local:
            self._storage.move_into_place(self._folder, self._final)
        else:
            shutil.rmtree(self.staging, ignore_errors=True)
        self._workspace._set_current(manifest)
        log.info("build committed kind=%s build_id=%s", self.kind, self.build_id)
        return Build(self._workspace, manifest)

    def discard(self) -> None:
        """Delete what was written so far."""
        shutil.rmtree(self.staging, ignore_errors=True)
        if not self._storage.is_local:
            self._storage.delete(self._folder)


class Workspace:
    """One run: its builds, read and written.

    Args:
        run: local path or any URI that `pyarrow.fs` opens.
        cache_dir: where files from object stores are kept; default `~/.cache/raysys`.
    """

    def __init__(self, run: str, *, cache_dir: str | None = None) -> None:
        self.run = run
        self.storage = Storage(run, cache_dir=cache_dir)

    def current(self, kind: str) -> Build:
        """Open the current build of `kind`.

        Raises:
            BuildError: there is none yet; the message names the job that writes it.
        """
        record = self.storage.read_json(f"{kind}/{CURRENT}")
        if record is None:
            raise BuildError(f"{self.run} holds no {kind} build yet: {_WRITERS[kind]} writes it")
        return self.open(kind, str(record.get("build_id")))

    def has(self, kind: str) -> bool:
        """Tell whether a current build of `kind` exists."""
        return self.storage.read_json(f"{kind}/{CURRENT}") is not None

    def open(self, kind: str, build_id: str) -> Build:
        """Open one build by its id.

        Raises:
            BuildError: there is no such build; SchemaVersionError: of another version;
            CorruptBuildError: its manifest is not readable.
        """
        where = f"{kind}/{build_id}/{MANIFEST}"
        record = self.storage.read_json(where)
        if record is None:
            raise BuildError(f"{self.run} holds no {kind} build {build_id}")
        version = record.get("schema_version")
        if version != SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{self.run}/{where} has schema version {version!r}, "
                f"this raysys reads {SCHEMA_VERSION}: run its stages again, from prepare on"
            )
        try:
            return Build(self, Manifest(**record))
        except TypeError as error:
            raise CorruptBuildError(f"{self.run}/{where} is not a manifest: {error}") from error

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
            for kind, ref in user.manifest.inputs.items():
                found = chain.get(kind)
                if found is None:
                    found = self.open(kind, ref["build_id"])
                    chain[kind] = found
                    todo.append(found)
                if found.content_id != ref["content_id"]:
                    raise BuildError(
                        f"mixed builds: {user.kind} {user.build_id} was made from {kind} content "
                        f"{ref['content_id']}, but {found.build_id} has {found.content_id}; "
                        f"run the jobs again from {_WRITERS[kind]} on"
                    )
        return chain

    def begin(
        self,
        kind: str,
        *,
        config: Mapping[str, Any],
        inputs: Sequence[Build] = (),
        source: object = None,
        force: bool = False,
    ) -> Build | Draft:
        """Return the finished build with this identity, made current, or a draft to write it.

        Args:
            kind: the kind of build.
            config: the settings that decide its content.
            inputs: the builds it is made from.
            source: fingerprint of outside data, anything JSON can hold.
            force: write it anew even if it exists.
        """
        refs = {build.kind: build.ref() for build in inputs}
        contents = {name: ref["content_id"] for name, ref in refs.items()}
        settings = json.loads(json.dumps(dict(config)))
        build_id = digest([kind, SCHEMA_VERSION, settings, source, contents])
        if not force:
            finished = self._finished(kind, build_id)
            if finished is not None:
                log.info("build reused kind=%s build_id=%s", kind, build_id)
                self._set_current(finished.manifest)
                return finished
        header = {"kind": kind, "build_id": build_id, "inputs": refs, "config": settings}
        return Draft(self, header)

    @contextmanager
    def writing(self, draft: Draft) -> Iterator[Draft]:
        """Remove the draft's files when the work inside the block fails."""
        try:
            yield draft
        except BaseException as error:
            draft.discard()
            if isinstance(error, OSError):
                raise BuildError(f"cannot write {draft.kind} build: {error}") from error
            raise

    def _finished(self, kind: str, build_id: str) -> Build | None:
        try:
            build = self.open(kind, build_id)
            if self.storage.is_local:
                for name in build.files():
                    build.path(name)
        except BuildError:
            return None
        return build

    def _set_current(self, manifest: Manifest) -> None:
        record = {"build_id": manifest.build_id, "content_id": manifest.content_id}
        self.storage.write_atomic(f"{manifest.kind}/{CURRENT}", json.dumps(record) + "\n")


_WRITERS = {
    "interactions": "prepare",
    "profiles": "prepare",
    "autoencoder": "train",
    "embeddings": "train",
    "compressor": "train",
    "codes": "train",
    "index": "index",
    "changes": "update",
}


def _notes() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"created": created, "versions": versions, "git_revision": _git_revision()}


def _git_revision() -> str | None:
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        output = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()
