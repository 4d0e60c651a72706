"""Index: arrange codes for search and choose the smallest setting that reaches the target recall.

Up to 200,000 items everything runs in this process; beyond that the coarse cells' k-means, the
assignment of items and the writing of item shards are Ray tasks. The size of the catalogue decides,
not the cluster, and a task's input never depends on the number of workers: the same seed gives the
same files.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from raysys.cluster.connect import connected
from raysys.commands.apply_changes import compacted
from raysys.compressor.codes import Codes
from raysys.config import JobConfig, identity, require_run
from raysys.errors import BuildError
from raysys.index.build import IndexParams, build_index, choose_settings, sample_probes
from raysys.index.files import load_dictionary, save_index
from raysys.index.lists import Tasks, run_here
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)

DISTRIBUTED_ITEMS = 200_000
_INPUTS = ("codes", "compressor", "embeddings")


@dataclasses.dataclass
class IndexConfig(IndexParams, JobConfig):
    """Settings of the index job: those of `IndexParams` and what every job knows."""


def index(cfg: IndexConfig) -> StageResult:
    """Build the index of the current codes, changes since they were made taken in.

    Raises:
        BuildError: there are no codes yet, or the index misses its target recall.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    chain = compacted(workspace)
    inputs = [chain[kind] for kind in _INPUTS]
    build = workspace.build(
        "index",
        config=identity(cfg),
        inputs=inputs,
        write=lambda draft: _write(cfg, draft, chain),
        force=cfg.force,
    )
    shown = ("kind", "n_items", "n_cells", "settings", "recall", "bytes_per_item")
    return StageResult(
        build_ids={build.kind: build.build_id},
        extra={key: build.facts[key] for key in shown},
    )


def _write(cfg: IndexConfig, draft: Draft, chain: dict[str, Build]) -> dict[str, Any]:
    """Build, measure and save the index; return its facts."""
    started = time.perf_counter()
    codes = Codes.open(chain["codes"])
    vectors, bias = (
        np.load(chain["embeddings"].path(f"{name}.npy"), mmap_mode="r")
        for name in ("vectors", "bias")
    )
    if not codes.n_items == len(vectors) == len(bias) or codes.n_items == 0:
        raise BuildError(
            f"codes {chain['codes'].build_id} hold {codes.n_items} items, their embeddings "
            f"{len(vectors)}: an index needs the same items, one or more"
        )
    similarity = chain["embeddings"].facts["similarity"]
    dictionary = load_dictionary(codes, chain, vectors.shape[1])
    prefix, suffix = "queries-", ".npy"
    users = {
        name[len(prefix) : -len(suffix)]: np.load(chain["embeddings"].path(name), mmap_mode="r")
        for name in chain["embeddings"].files(suffix, prefix=prefix)
    }
    probes = sample_probes(
        vectors,
        bias.shape[1],
        similarity=similarity,
        sample=cfg.sample,
        seed=cfg.seed,
        users=users,
    )
    settings: dict[str, Any] = {"similarity": similarity, "params": cfg, "seed": cfg.seed}
    with _tasks(cfg, codes.n_items) as tasks:
        made = build_index(codes, dictionary, bias, tasks=tasks, **settings)
        made.settings, table = choose_settings(made, probes, params=cfg)
        facts = save_index(made, draft, n_shards=cfg.n_shards, tasks=tasks)
    seconds = round(time.perf_counter() - started, 2)
    log.info("index built kind=%s n_items=%d seconds=%.1f", made.kind, made.n_items, seconds)
    return facts | {
        "requested_kind": cfg.kind,
        "target_recall": cfg.target_recall,
        "recall": table[-1] if table else None,
        "recall_table": table,
        "build_s": seconds,
    }


@contextmanager
def _tasks(cfg: IndexConfig, n_items: int) -> Iterator[Tasks]:
    """Give what runs independent pieces: this process, or the cluster for many items."""
    if n_items <= DISTRIBUTED_ITEMS or cfg.kind != "ivf":
        yield run_here
        return
    with connected(cfg.ray):
        yield run_on_ray


def run_on_ray(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    shared: tuple[Any, ...] = (),
) -> list[Any]:
    """Run tasks of one CPU each on the cluster; results in order, few tasks in flight at a time."""
    import ray

    remote = ray.remote(num_cpus=1)(function)
    references = [ray.put(value) for value in shared]
    window = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    results: list[Any] = []
    flying: list[Any] = []
    for each in arguments:
        flying.append(remote.remote(*each, *references))
        if len(flying) >= window:
            results.append(ray.get(flying.pop(0)))
    results += ray.get(flying)
    return results
