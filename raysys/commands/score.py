"""Score: every stored user's list, with its probabilities, as Parquet files.

One task per user shard writes one file of stable name; a run that was interrupted keeps the files
that are finished and writes the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs as pafs

from raysys.cluster.tasks import task_runner
from raysys.config import JobConfig, digest, local, location, require, require_run
from raysys.data.cells import Cells, read_cells
from raysys.data.profiles import SHARD_PREFIX, Profiles, ProfilesFacts, shard_names
from raysys.errors import BuildError, ConfigError
from raysys.scoring.rankings import Ranking, text_of_keys
from raysys.search.query import Ranked
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import StageResult, Workspace
from raysys.store.storage import Storage, join

log = logging.getLogger(__name__)

HEADER = "_scores.json"  # Parquet readers skip names that begin with _ or .
SCORES_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("rank", pa.int32()),  # 1 is the best
        ("item_id", pa.string()),
        ("score", pa.float32()),  # of the ranking; higher is better
        ("p_consume", pa.float32()),
        ("p_like", pa.float32()),
        ("expected_rating", pa.float32()),  # null: the log has no ratings
    ]
)


@dataclasses.dataclass
class ScoreConfig(JobConfig):
    """What to score and where the files go.

    Attributes:
        top_k: length of every user's list.
        ranking: the order of lists, e.g. like or discover^0.5 (more weight: less of what users
            come across anyway); null takes the build's first.
        gamma: the weight of ranking=discover; write ranking=discover^0.5 instead.
        exclude_seen: leave out the items of the user's history.
        output: folder or URI of the files; null means `<run>/reports/scores-<id>`.
        batch_users: users scored at once by one task.
    """

    top_k: int = 20
    ranking: str | None = None
    gamma: float | None = None
    exclude_seen: bool = True
    output: str | None = location(None)
    batch_users: int = local(1024)

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        require(self.top_k >= 1, "top_k", self.top_k, "1 or more")
        self.ranking, self.gamma = text_of_keys(self.ranking, self.gamma), None
        require(self.batch_users >= 1, "batch_users", self.batch_users, "1 or more")


@dataclasses.dataclass(frozen=True)
class _Task:
    """One user shard to score; travels to a worker."""

    run: str
    cache_dir: str | None
    index_id: str
    shard: str
    output: str
    cfg: ScoreConfig


def score(cfg: ScoreConfig) -> StageResult:
    """Write the lists of all stored users.

    Raises:
        BuildError: there is no index of a log, or a build is damaged or mixed.
        ConfigError: `output` holds scores of other settings or builds.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    served = Served.open(workspace)
    if served.coded.profiles is None:
        raise BuildError(f"{cfg.run} indexes plain vectors: there are no users to score")
    output = Storage(
        cfg.output or join(cfg.run, f"reports/scores-{digest(_identity(cfg, served))}")
    )
    shards = shard_names(served.coded.profiles)
    n_users = ProfilesFacts.of(served.coded.profiles).n_users
    _claim(output, cfg, served)
    kept = set() if cfg.force else _finished(output)
    url = output.root if output.is_local else output.run
    index_id = served.index.build_id
    tasks = [
        _Task(cfg.run, cfg.cache_dir, index_id, shard, url, cfg)
        for shard in shards
        if _file_of(shard) not in kept
    ]
    log.info("score started users=%d shards=%d kept=%d", n_users, len(shards), len(kept))
    if tasks:
        with task_runner(cfg.ray, size=n_users * cfg.top_k) as run:
            list(run(_score_shard, tasks, stage="score", rows=int))
    rows = sum(_count_rows(output, _file_of(shard)) for shard in shards)
    log.info("score finished rows=%d output=%s", rows, url)
    return StageResult(
        build_ids=served.build_ids,
        extra={"output": url, "rows": rows, "users": n_users, "shards_kept": len(kept)},
    )


def _score_shard(task: _Task) -> int:
    """Score one user shard and write its file in one step; return the number of rows."""
    search, profiles = _opened(task.run, task.cache_dir, task.index_id)
    [cells] = [read_cells([p]) for p in profiles.shard_paths if p.name == task.shard]
    output = Storage(task.output)
    name = _file_of(task.shard)
    part = f"{output.root}/.{name}.{secrets.token_hex(4)}"  # an equal job may write it too
    rows = 0
    with (
        output.filesystem.open_output_stream(part) as stream,
        pq.ParquetWriter(stream, SCORES_SCHEMA) as writer,
    ):
        for table in _tables(search, cells, profiles.user_ids, task.cfg):
            writer.write_table(table)
            rows += table.num_rows
    output.filesystem.move(part, f"{output.root}/{name}")
    return rows


@functools.lru_cache(maxsize=1)
def _opened(run: str, cache_dir: str | None, index_id: str) -> tuple[Search, Profiles]:
    """Open the builds once per worker process; the driver has checked their hashes."""
    workspace = Workspace(run, cache_dir=cache_dir)
    served = Served.open(workspace, build_id=index_id, verify=False)
    assert served.coded.profiles is not None, "the driver has looked"
    return Search(served, users=False), Profiles.open(served.coded.profiles)


def _tables(
    search: Search, cells: Cells, user_ids: pa.ChunkedArray, cfg: ScoreConfig
) -> Iterator[pa.Table]:
    item_ids = search.items.item_ids.column
    for start in range(0, cells.n_users, cfg.batch_users):
        part = cells.users(np.arange(start, min(start + cfg.batch_users, cells.n_users)))
        ranked = list(
            search.engine.lists(
                part,
                top_k=cfg.top_k,
                ranking=None if cfg.ranking is None else Ranking.parse(cfg.ranking),
                exclude_seen=cfg.exclude_seen,
            )
        )
        yield _table(ranked, user_ids.take(pa.array(part.user_num)), item_ids)


def _table(
    ranked: Sequence[Ranked], user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray
) -> pa.Table:
    counts = [len(one.item_nums) for one in ranked]
    nums = np.concatenate([one.item_nums for one in ranked])
    ranks = np.concatenate([np.arange(1, n + 1, dtype=np.int32) for n in counts])
    columns = [
        user_ids.take(pa.array(np.repeat(np.arange(len(ranked)), counts))),
        pa.array(ranks),
        item_ids.take(pa.array(nums)).cast(pa.string()),
        *(_column(ranked, name) for name in ("scores", "p_consume", "p_like", "expected_rating")),
    ]
    return pa.table(columns, schema=SCORES_SCHEMA)


def _column(ranked: Sequence[Ranked], name: str) -> pa.Array:
    parts: list[NDArray[np.floating[Any]]] = [getattr(one, name) for one in ranked]
    if any(part is None for part in parts):
        return pa.nulls(sum(len(one.item_nums) for one in ranked), pa.float32())
    return pa.array(np.concatenate(parts).astype(np.float32))


def _identity(cfg: ScoreConfig, served: Served) -> dict[str, object]:
    names = ("top_k", "ranking", "exclude_seen")
    return {"index": served.index.content_id, **{name: getattr(cfg, name) for name in names}}


def _claim(output: Storage, cfg: ScoreConfig, served: Served) -> None:
    """Write into the folder what its files are; refuse a folder that is something else."""
    identity = _identity(cfg, served)
    header = output.read_json(HEADER)
    if header == identity:
        return
    if header is not None and not cfg.force:
        raise ConfigError(
            f"output={cfg.output!r} holds scores of other settings or builds: {json.dumps(header)};"
            " choose another folder, or force=true to overwrite them"
        )
    try:
        output.filesystem.create_dir(output.root, recursive=True)
        for name in _finished(output):
            output.filesystem.delete_file(f"{output.root}/{name}")
        output.write_atomic(HEADER, json.dumps(identity) + "\n")
    except OSError as error:
        raise ConfigError(f"output={cfg.output!r} cannot be written: {error}") from error


def _finished(output: Storage) -> set[str]:
    found = output.filesystem.get_file_info(pafs.FileSelector(output.root, allow_not_found=True))
    return {f.base_name for f in found if f.base_name.startswith("scores-")}


def _file_of(shard: str) -> str:
    return f"scores-{shard[len(SHARD_PREFIX) :]}"


def _count_rows(output: Storage, name: str) -> int:
    path = f"{output.root}/{name}"
    return int(pq.read_metadata(path, filesystem=output.filesystem).num_rows)
