"""Index: arrange codes for search and choose the smallest effort that reaches the target recall.

In a large catalogue the coarse lists' k-means, the assignment of items and the writing of item
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
from numpy.typing import NDArray

from raysys import progress
from raysys.autoencoder.files import Autoencoder
from raysys.cluster.tasks import Run, task_runner
from raysys.commands.apply_changes import compacted
from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.files import Coded, Compressor
from raysys.config import JobConfig, identity, require_run
from raysys.data.arrays import Floats
from raysys.data.cells import Cells, concat
from raysys.data.profiles import Profiles
from raysys.errors import BuildError
from raysys.index.build import IndexParams, build_index, choose_efforts, sample_probes
from raysys.index.files import SPREAD, IndexFacts, save_index
from raysys.index.index import Index
from raysys.index.request import SearchRequest
from raysys.scoring.normaliser import MAX_EXACT, N_CANDIDATES_LONG, measured
from raysys.scoring.rankings import Ranking
from raysys.search.ids import Ids
from raysys.search.items import ITEM_NAMES, NAMES
from raysys.search.users import UserStore
from raysys.store.builds import StageResult, Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)

_USERS = 400  # that P(consume) is measured on


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
    coded = compacted(workspace)
    build = workspace.build(
        "index",
        config=identity(cfg),
        inputs=[coded.codes, coded.compressor, coded.embeddings],
        write=lambda draft: _write(cfg, draft, coded),
        force=cfg.force,
    )
    record = build.record()
    shown = ("kind", "n_items", "n_lists", "efforts", "recall", "bytes_per_item")
    return StageResult(
        build_ids={build.kind: build.build_id},
        extra={key: record[key] for key in shown},
    )


def _write(cfg: IndexConfig, draft: Draft, coded: Coded) -> IndexFacts:
    """Build, measure and save the index; return its facts."""
    started = time.perf_counter()
    codes, embeddings = Codes.open(coded.codes), Embeddings.open(coded.embeddings)
    vectors, bias, similarity = embeddings.vectors, embeddings.bias, embeddings.similarity
    if not codes.n_items == len(vectors) == len(bias) or codes.n_items == 0:
        raise BuildError(
            f"codes {coded.codes.build_id} hold {codes.n_items} items, their embeddings "
            f"{len(vectors)}: an index needs the same items, one or more"
        )
    dictionary = Compressor.open(coded.compressor).dictionary_of(codes)
    probes = sample_probes(
        vectors,
        bias.shape[1],
        similarity=similarity,
        seed=cfg.seed,
        users=embeddings.queries,
    )
    settings: dict[str, Any] = {"similarity": similarity, "params": cfg, "seed": cfg.seed}
    with task_runner(cfg.ray, size=codes.n_items if cfg.kind == "ivf" else 0) as run:
        tasks = functools.partial(_run_all, run)
        made = build_index(codes, dictionary, bias, tasks=tasks, **settings)
        made.efforts, table = choose_efforts(made, probes, params=cfg)
        facts = save_index(made, draft, n_shards=cfg.n_shards, tasks=tasks)
    normaliser = _measure_normaliser(coded, draft, made)
    items = embeddings.items(list(NAMES))
    Ids.of(items["item_id"]).save(draft, ITEM_NAMES, items)
    if coded.profiles is not None:
        UserStore.save(Profiles.open(coded.profiles), draft)
    seconds = round(time.perf_counter() - started, 2)
    log.info("index built kind=%s n_items=%d seconds=%.1f", made.kind, made.n_items, seconds)
    return dataclasses.replace(
        facts,
        requested_kind=cfg.kind,
        target_recall=cfg.target_recall,
        recall=table[-1] if table else None,
        recall_table=tuple(table),
        normaliser=normaliser,
        build_s=seconds,
    )


def _measure_normaliser(coded: Coded, draft: Draft, made: Index) -> dict[str, float] | None:
    """Write what P(consume) is normalised by, and return how exact that is for real users.

    None where there is no model, or its sums are exact: in a small catalogue, or without users.
    """
    if coded.autoencoder is None or coded.profiles is None:
        return None
    autoencoder = Autoencoder.open(coded.autoencoder)
    scorer, facts = autoencoder.scorer(), autoencoder.facts
    if scorer.n_items <= MAX_EXACT:
        return None
    started = time.perf_counter()
    history = some_users(Profiles.open(coded.profiles), scorer.n_items)

    def candidates(z: Floats) -> NDArray[np.int32]:
        query, weights = scorer.query(z, Ranking("consume"))
        return made.search(SearchRequest(query, top_k=N_CANDIDATES_LONG, weights=weights))[0]

    with progress.stage("index normaliser", lines=progress.NONE):
        z = scorer.encode(history, facts.fitted_until)
        spread, found = measured(scorer, z, history.item_lists, candidates)
    np.save(draft.path(SPREAD), spread)
    log.info(
        "normaliser error_median=%.4f error_p99=%.4f seconds=%.1f",
        *(found["error_median"], found["error_p99"]),
        time.perf_counter() - started,
    )
    return found


def some_users(profiles: Profiles, n_items: int) -> Cells:
    """Return up to 400 users of the first shards with the items of a model, and a newcomer."""
    parts = [Cells.from_lists([[]])]
    for cells in profiles.iter_shards():
        kept = cells.take(cells.item_num < n_items)
        rows = np.flatnonzero(kept.counts > 0)
        parts.append(kept.users(rows[: _USERS - sum(part.n_users for part in parts)]))
        if sum(part.n_users for part in parts) >= _USERS:
            break
    return concat(parts)


def _run_all(
    run: Run,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    shared: tuple[Any, ...] = (),
) -> list[Any]:
    """Run an index's independent pieces, see `raysys.index.lists.Tasks`."""
    call = functools.partial(_call, function)
    stage = f"index {function.__name__.replace('_', ' ')}"
    return list(run(call, arguments, stage=stage, shared=shared, large=True))


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], *shared: Any) -> Any:
    return function(*arguments, *shared)
