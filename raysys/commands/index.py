"""Index: arrange codes for search and choose the smallest setting that reaches the target recall.

In a large catalogue the coarse cells' k-means, the assignment of items and the writing of item
shards of an ivf index are Ray tasks. The same seed gives the same files wherever they run.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raysys.cluster.tasks import Run, task_runner
from raysys.commands.apply_changes import compacted
from raysys.compressor.codes import Codes
from raysys.config import JobConfig, identity, require_run
from raysys.errors import BuildError
from raysys.index.build import IndexParams, build_index, choose_settings, sample_probes
from raysys.index.files import load_dictionary, save_index
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)

_INPUTS = ("codes", "compressor", "embeddings")


@dataclasses.dataclass
class IndexConfig(IndexParams, JobConfig):
    """Settings of index."""


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
    with task_runner(cfg.ray, size=codes.n_items if cfg.kind == "ivf" else 0) as run:
        tasks = functools.partial(_run_all, run)
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


def _run_all(
    run: Run,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    shared: tuple[Any, ...] = (),
) -> list[Any]:
    """Run an index's independent pieces, see `raysys.index.lists.Tasks`."""
    call = functools.partial(_call, function)
    return list(run(call, arguments, stage="index", shared=shared, large=True))


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], *shared: Any) -> Any:
    return function(*arguments, *shared)
