"""Export: a served set, copied into another run, on any storage, and verified there.

Examples:
    raysys export run=runs/first to=s3://bucket/run       what is served now
    raysys export run=s3://bucket/run to=runs/copy        and back: there is no other import
    raysys export run=R to=T build_id=0123456789abcdef    an index of before
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as pq

from raysys import progress
from raysys.config import JobConfig, location, require, require_run
from raysys.data.interactions import Interactions
from raysys.errors import BuildError, told
from raysys.reports.tables import size
from raysys.search.served import Served
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.copies import copy_build
from raysys.store.current import Current
from raysys.store.erasures import Erasures, merge
from raysys.store.kinds import KINDS
from raysys.store.storage import Storage

log = logging.getLogger(__name__)


@dataclasses.dataclass
class ExportConfig(JobConfig):
    """What is copied where.

    Attributes:
        to: the other run, a local path or URI.
        build_id: of the index; null: the current one.
    """

    to: str = location()
    build_id: str | None = None


def export(cfg: ExportConfig) -> StageResult:
    """Copy an index and all it was made from into another run, and make it current there.

    Returns:
        `build_ids` of the set; `copied`: those that were not there yet; `bytes` of their files.

    Raises:
        BuildError: a build is missing or damaged, or a run cannot be read or written, or the other
            run was made to forget users whose rows the set holds.
    """
    require_run(cfg)
    require(bool(cfg.to), "to", cfg.to, "a directory or URI of another run")
    source = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    target = Workspace(cfg.to, cache_dir=cfg.cache_dir)
    is_same = _place_of(source.storage) == _place_of(target.storage)
    require(not is_same, "to", cfg.to, "another run than run=")
    served = Served.open(source, build_id=cfg.build_id, verify=False)
    chain = {build.kind: build for build in served.builds} | source.chain(served.index)
    builds = sorted(chain.values(), key=lambda build: list(KINDS).index(build.kind))
    _refuse_erased(chain, target.storage)
    merge(source.storage, target.storage)
    copied, n_bytes = [], 0
    with progress.stage("export", total=len(builds), unit="builds") as work:
        for build in builds:
            if copy_build(build, target):
                copied.append(build.place)
                n_bytes += sum(entry["bytes"] for entry in build.manifest.files.values())
            work.add(1)
    target.chain(target.open("index", served.index.build_id))
    try:
        for build in builds:
            Current(target.storage).name(build.manifest)
    except OSError as error:
        raise BuildError(f"to={cfg.to} cannot be written: {told(error)}") from error
    Served.open(target)
    log.info("exported builds=%d of %d size=%s", len(copied), len(builds), size(n_bytes))
    return StageResult(
        build_ids={build.kind: build.build_id for build in builds},
        extra={"to": cfg.to, "copied": copied, "bytes": n_bytes},
    )


def _place_of(storage: Storage) -> tuple[str, str]:
    """Return what tells a run from others, whatever its name is written like."""
    if storage.is_local:
        return "", os.path.realpath(storage.root)
    query = parse_qs(urlsplit(storage.run).query)
    return query.get("endpoint_override", [""])[-1], storage.root


def _refuse_erased(chain: Mapping[str, Build], target: Storage) -> None:
    """Check that no rows come back of users whom the other run was made to forget.

    Raises:
        BuildError: the set holds such rows.
    """
    erasures = Erasures.of(target)
    if erasures is None or "interactions" not in chain:
        return
    interactions = Interactions.open(chain["interactions"])
    for path in interactions.part_paths:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=["user_id", "timestamp"])
                users = rows["user_id"].combine_chunks().dictionary_encode()
                if erasures.forbidden(users, rows["timestamp"].combine_chunks()).any():
                    raise BuildError(
                        f"{target.run} was made to forget users whose rows {path} holds: export "
                        "to a new run, or run forget on run= first"
                    )
