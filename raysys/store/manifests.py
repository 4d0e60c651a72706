"""Manifests: what a build says of itself.

`files` on disk are relative to the build's folder, so they begin with `folder`; in memory they are
the names that stages gave them.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from raysys.config import digest
from raysys.errors import CorruptBuildError
from raysys.store.kinds import KINDS

MANIFEST = "manifest.json"
CONDEMNED = "condemned.json"  # beside the manifest of a build that someone is about to remove
_PACKAGES = ("raysys", "ray", "torch", "numpy", "pyarrow", "hnswlib", "numba")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a build is and what it was made from (written as `manifest.json`).

    Attributes:
        kind: name of one of `kinds.KINDS`.
        schema_version: of the kind's files and facts.
        build_id: digest of kind, version, settings, source fingerprint and inputs.
        content_id: digest of the build_id and the hashes of the files that decide the content.
        folder: where its files lie, below the build's folder; empty where they lie in it.
        inputs: {kind: {"build_id", "content_id"}} of the builds it was made from; and how often
            users had been taken out of one when it was opened, `erased`, unless never.
        config: the settings that decided it.
        files: {relative path: {"sha256": hex, "bytes": int}}.
        facts: what readers need to know (sizes, cut-offs, dtype, similarity, metrics).
        notes: creation time, package versions, git revision; not part of any digest.
        erased: {"at", "users"} of each time that users were taken out of the files; `content_id`
            is that of before.
    """

    kind: str
    schema_version: int
    build_id: str
    content_id: str
    folder: str
    inputs: dict[str, dict[str, Any]]
    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    notes: dict[str, Any]
    erased: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def text(self) -> str:
        """Return the manifest as JSON."""
        record = dataclasses.asdict(self)
        prefix = self.folder and f"{self.folder}/"
        if not self.erased:
            del record["erased"]
        record["files"] = {prefix + name: entry for name, entry in self.files.items()}
        return json.dumps(record, indent=1, sort_keys=True) + "\n"

    @classmethod
    def of(cls, record: dict[str, Any], kind: str, where: str) -> Manifest:
        """Return the manifest that `text` wrote.

        Args:
            record: what was read.
            kind: of the build.
            where: path of the file, for messages.

        Raises:
            SchemaVersionError: it is of a version that is not read; CorruptBuildError: it is none.
        """
        KINDS[kind].check(record.get("schema_version"), where)
        try:
            manifest = cls(**record)
            prefix = manifest.folder and f"{manifest.folder}/"
            files = {name.removeprefix(prefix): entry for name, entry in manifest.files.items()}
        except (TypeError, AttributeError) as error:
            raise CorruptBuildError(f"{where} is not a manifest: {error}") from error
        return dataclasses.replace(manifest, files=files)


def files_id(record: Mapping[str, Any]) -> str:
    """Return what names the files of a build in the caches of hosts.

    Args:
        record: a manifest as it is written.
    """
    prefix = f"{record['folder']}/" if record.get("folder") else ""
    files = {n.removeprefix(prefix): entry for n, entry in record.get("files", {}).items()}
    return digest(files)


def notes() -> dict[str, Any]:
    """Return what a manifest says of how it was written."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"created": created, "versions": versions, "git_revision": _git("rev-parse", "HEAD")}


def is_dirty() -> bool | None:
    """Return whether tracked files of the checkout differ from its commit; None without one."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


def difference() -> str | None:
    """Return how tracked files of the checkout differ from its commit; None without one."""
    return _git("diff", "HEAD")


def _git(*words: str) -> str | None:
    """Return what git says of the checkout, None where there is none."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        output = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()


def check_size(where: str, actual: int | None, size: int) -> None:
    """Raise CorruptBuildError where a file has not the bytes that its manifest says; None: none."""
    if actual != size:
        found = "is missing" if actual is None else f"has {actual} bytes"
        raise CorruptBuildError(f"{where} {found}, manifest says {size} bytes")


def differs(where: str) -> CorruptBuildError:
    """Return the error of a file whose hash is not the manifest's."""
    return CorruptBuildError(f"{where} does not have the hash that its manifest lists")
