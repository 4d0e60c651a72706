"""Index: arrange codes for search and choose the smallest effort that reaches the target recall.

In a large catalogue the coarse lists' k-means, the assignment of items and the writing of item
shards of an ivf index are Ray tasks. The same seed gives the same files wherever they run.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from raysys import progress
from raysys.autoencoder.files import Autoencoder
from raysys.cluster.tasks import Run, task_runner
from raysys.commands.apply_changes import compacted
from raysys.commands.preflight_hosts import refuse_indexing
from raysys.compressor.codes import Codes, CodesFacts
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.files import Coded, Compressor
from raysys.config import JobConfig, identity, require_run
from raysys.data.cells import Cells, concat, read_cells
from raysys.data.profiles import Profiles
from raysys.data.schema import Window
from raysys.errors import BuildError
from raysys.index.build import IndexParams, build_index
from raysys.index.files import SPREAD, IndexFacts, save_index
from raysys.index.index import Index
from raysys.index.recall import sample_probes, set_efforts
from raysys.index.request import SearchRequest
from raysys.scoring.normaliser import MAX_EXACT, measured
from raysys.scoring.rankings import N_CANDIDATES, Ranking
from raysys.search.ids import Ids
from raysys.search.items import ITEM_NAMES, NAMES
from raysys.search.users import UserStore
from raysys.store.builds import StageResult, Workspace
from raysys.store.drafts import Draft
from raysys.tracking import tracked_stage

log = logging.getLogger(__name__)

_USERS = 400  # that P(consume) is measured on
_PURPOSE = 0x5A  # seeds their draw
_SHARDS = 4  # that they are drawn from
_LEAST_RECALL = 0.95  # of candidates that a user's exact best items are among
_LARGE_ERROR = 0.05  # of log P(consume), in nats, that one user in a hundred may have


@dataclasses.dataclass
class IndexConfig(IndexParams, JobConfig):
    """Settings of index."""


@tracked_stage("index")
def index(cfg: IndexConfig, *, windows: Collection[Window] | None = None) -> StageResult:
    """Build the index of the current codes, changes since they were made taken in.

    Args:
        cfg: the settings.
        windows: that users' histories are read from; None: all. A sweep leaves the test period out.

    Raises:
        BuildError: there are no codes yet, or the index misses its target recall.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    coded = compacted(workspace)
    build = workspace.build(
        "index",
        config=identity(cfg) | ({} if windows is None else {"windows": sorted(windows)}),
        inputs=[coded.codes, coded.compressor, coded.embeddings],
        write=lambda draft: _write(cfg, draft, coded, windows),
        force=cfg.force,
    )
    record = build.record()
    shown = ("kind", "n_items", "n_lists", "efforts", "recall", "head_recall", "long_recall")
    answers = ("candidate_recall", "normaliser")
    return StageResult(
        build_ids={build.kind: build.build_id},
        extra={key: record[key] for key in (*shown, *answers, "bytes_per_item")},
    )


def _write(
    cfg: IndexConfig, draft: Draft, coded: Coded, windows: Collection[Window] | None
) -> IndexFacts:
    """Build, measure and save the index; return its facts."""
    started = time.perf_counter()
    codes, embeddings = Codes.open(coded.codes), Embeddings.open(coded.embeddings)
    vectors, bias, similarity = embeddings.vectors, embeddings.bias, embeddings.similarity
    if not codes.n_items == len(vectors) == len(bias) or codes.n_items == 0:
        raise BuildError(
            f"codes {coded.codes.build_id} hold {codes.n_items} items, their embeddings "
            f"{len(vectors)}: an index needs the same items, one or more"
        )
    n_active = CodesFacts.of(coded.codes).n_active
    refuse_indexing(codes.n_items, vectors.shape[1], n_active, cfg.kind)
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
        plain, headed, long = set_efforts(made, probes, params=cfg)
        facts = save_index(made, draft, n_shards=cfg.n_shards, tasks=tasks)
    normaliser, candidate_recall = _measure_answers(
        coded, draft, made, seed=cfg.seed, windows=windows
    )
    items = embeddings.items(list(NAMES))
    Ids.of(items["item_id"]).save(draft, ITEM_NAMES, items)
    if coded.profiles is not None:
        UserStore.save(Profiles.open(coded.profiles), draft, windows=windows)
    seconds = round(time.perf_counter() - started, 2)
    log.info("index built kind=%s n_items=%d seconds=%.1f", made.kind, made.n_items, seconds)
    return dataclasses.replace(
        facts,
        requested_kind=cfg.kind,
        target_recall=cfg.target_recall,
        recall=plain[-1] if plain else None,
        head_recall=headed[-1] if headed else None,
        long_recall=long[-1] if long else None,
        recall_table=(*plain, *headed, *long),
        normaliser=normaliser,
        candidate_recall=candidate_recall,
        build_s=seconds,
    )


def _measure_answers(
    coded: Coded,
    draft: Draft,
    made: Index,
    *,
    seed: int,
    windows: Collection[Window] | None,
) -> tuple[dict[str, float] | None, float | None]:
    """Write what P(consume) is normalised by; return how exact that and candidates are.

    None where there is no model, or answers are exact: in a small catalogue, or without users.
    """
    if coded.autoencoder is None or coded.profiles is None:
        return None, None
    autoencoder = Autoencoder.open(coded.autoencoder)
    scorer, facts = autoencoder.scorer(), autoencoder.facts
    if scorer.n_items <= MAX_EXACT:
        return None, None
    started = time.perf_counter()
    history = some_users(Profiles.open(coded.profiles), scorer.n_items, seed, windows)
    own = history.item_lists
    with progress.stage("index answers", lines=progress.NONE):
        z = scorer.encode(history, facts.fitted_until)
        query, weights = scorer.query(z, Ranking("consume"))
        request = SearchRequest(query, top_k=N_CANDIDATES, weights=weights, exclude=own)
        spread, found, recall = measured(scorer, z, own, made.search(request)[0])
    np.save(draft.path(SPREAD), spread)
    log.log(
        logging.WARNING if found["error_p99"] > _LARGE_ERROR else logging.INFO,
        "normaliser error_median=%.4f error_p99=%.4f seconds=%.1f",
        *(found["error_median"], found["error_p99"]),
        time.perf_counter() - started,
    )
    if recall < _LEAST_RECALL:
        log.warning(
            "candidates recall=%.3f of the exact best 20 by consume: codes of more atoms "
            "(compressor.n_active) or a higher target_recall find more",
            recall,
        )
    return found, round(recall, 4)


def some_users(
    profiles: Profiles, n_items: int, seed: int, windows: Collection[Window] | None = None
) -> Cells:
    """Return 400 users, drawn from four shards, with the items of a model, and a newcomer."""
    parts = [Cells.from_lists([[]])]
    rng = np.random.default_rng([seed, _PURPOSE])
    paths = profiles.shard_paths
    for number in np.unique(np.linspace(0, len(paths) - 1, _SHARDS).astype(int)):
        cells = read_cells([paths[number]], windows)
        kept = cells.take(cells.item_num < n_items)
        rows = rng.permutation(np.flatnonzero(kept.counts > 0))
        parts.append(kept.users(np.sort(rows[: _USERS // min(_SHARDS, len(paths))])))
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
