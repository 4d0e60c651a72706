"""Fits the baselines of one period: settings chosen on val, then fitted on the period's windows."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysys import progress
from raysys.data.cells import Cells, concat
from raysys.data.profiles import Profiles
from raysys.data.schema import RatingLevels, period_windows
from raysys.evaluation import baselines, linear_items, rating_baselines
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import DAY_METRICS, MetricLayout
from raysys.evaluation.metrics import Ranker, Rater
from raysys.evaluation.presence import item_counts
from raysys.evaluation.protocols import Task, cutoff_task
from raysys.store.builds import Build
from raysys.store.kinds import Facts

log = logging.getLogger(__name__)

RANKERS = ("popularity", "recent", "window", "decayed", "itemknn", "ease", "rdlae")
ITEM_ITEM = ("itemknn", "ease", "rdlae")
RATERS = ("marginal", "histogram", "bias")
MAX_KNN_ITEMS = 60_000
MAX_CELLS = 30_000_000

_TIMED = ("recent", "window", "decayed")
_VAL_USERS = 5000
_BLOCK = 256  # users ranked at once; fewer where a row of all items is long
_MAX_SCORES = 1 << 26  # float32 of a block
_CHOSEN_BY = "ndcg@100"
_RATED = "score"
_JUDGED = MetricLayout(top_k=(20,), betas=(0.3,))  # no more than DAY_METRICS need
_GRIDS: dict[str, list[dict[str, float]]] = {
    "popularity": [{}],
    "recent": [{"fraction": f} for f in (0.05, 0.1, 0.2, 0.4)],
    "window": [{"days": d} for d in (1, 3, 7, 14, 30, 90, 180)],
    "decayed": [{"half_life_days": d} for d in (1, 7, 30, 90, 365)],
    "itemknn": [{"k": k, "shrink": s} for k in (10, 50, 200) for s in (0, 20, 100)],
    "ease": [{"penalty": p} for p in (150, 400, 600, 1200)],
    "rdlae": [
        {"penalty": p, "drop": d, "relaxed": r}
        for p in (100, 500)
        for d in (0.1, 0.3)
        for r in (0.1, 0.3, 0.6)
    ],
    "marginal": [{}],
    "histogram": [{"smoothing": s} for s in (5, 10, 20, 50)],
    "bias": [{"user_penalty": u, "item_penalty": i} for u in (3, 5, 10) for i in (3, 5, 10)],
}
_CLASSES: dict[str, Any] = {
    "popularity": baselines.ItemRanker,
    "recent": baselines.ItemRanker,
    "window": baselines.ItemRanker,
    "decayed": baselines.ItemRanker,
    "itemknn": baselines.ItemKNN,
    "ease": linear_items,
    "rdlae": linear_items,
    "marginal": rating_baselines.LevelShares,
    "histogram": rating_baselines.LevelShares,
    "bias": rating_baselines.Bias,
}


@dataclasses.dataclass(frozen=True)
class BaselineFacts(Facts):
    """What a baseline is.

    Attributes:
        name: one of RANKERS or RATERS.
        settings: {name: value} chosen on val.
        user_share: share of the users that it was fitted on.
        validation: {metric: value} of `DAY_METRICS` on val, of a ranker.
    """

    name: str
    settings: dict[str, float]
    user_share: float
    validation: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Source:
    """What the baselines are fitted on.

    Attributes:
        cells: all windows of the users.
        split: temporal, users or ratings.
        catalogue: {period: number of items}.
        levels: of the log.
        has_time: whether timestamps mean anything.
        share: of the log's users that `cells` holds.
    """

    cells: Cells
    split: str
    catalogue: dict[str, int]
    levels: RatingLevels
    has_time: bool
    share: float = 1.0


def source_of(profiles: Profiles) -> Source:
    """Read what baselines are fitted on: all users, or so many that memory stays bounded.

    Above `MAX_CELLS` cells, users are picked by a hash of their id, shard by shard.
    """
    facts = profiles.facts
    n_cells = sum(facts.n_cells.values())
    share = min(1.0, MAX_CELLS / max(n_cells, 1))
    if share < 1:
        log.warning("baselines are fitted on %.3g of the users: %d cells", share, n_cells)
    parts = []
    for cells in profiles.iter_shards():
        if share < 1:
            ids = profiles.user_ids.take(pa.array(cells.user_num)).to_pylist()
            cells = cells.users(user_keys(ids) < np.uint64(share * 2.0**64))
        parts.append(cells)
    return Source(
        concat(parts),
        facts.split,
        facts.catalogue,
        profiles.levels,
        facts.has_time,
        share,
    )


def applicable(
    names: Sequence[str], *, n_users: int, n_items: int, has_time: bool, n_rated: int
) -> dict[str, str | None]:
    """Return {name: None, or why the baseline is left out}."""
    reasons: dict[str, str | None] = {}
    for name in names:
        if name in _TIMED and not has_time:
            reasons[name] = "the log has no time"
        elif name in RATERS and n_rated < 2:
            reasons[name] = "the log has no ratings that differ"
        elif name in ("ease", "rdlae") and min(n_users, n_items) > linear_items.MAX_SIDE:
            reasons[name] = f"more than {linear_items.MAX_SIDE} users and items"
        elif name == "itemknn" and n_items > MAX_KNN_ITEMS:
            reasons[name] = f"more than {MAX_KNN_ITEMS} items"
        else:
            reasons[name] = None
    return reasons


def fit_and_save(source: Source, *, period: str, name: str, folder: Path) -> BaselineFacts:
    """Fit a baseline for a period, write it to `folder`, and return its build's facts."""
    started = time.perf_counter()
    with progress.stage(f"fit {name}", lines=progress.NONE):
        chosen = choose(source, name, period=period)
        chosen.model.save(folder, name)
    seconds = time.perf_counter() - started
    log.info("baseline fitted name=%s settings=%s seconds=%.1f", name, chosen.settings, seconds)
    return BaselineFacts(name, chosen.settings, source.share, chosen.validation)


def open_baseline(build: Build) -> Any:
    """Open a `baselines` build: a ranker or a rater."""
    name = BaselineFacts.of(build).name
    paths = [build.path(file) for file in build.files()]
    return _CLASSES[name].load(paths[0].parent, name)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The best of a grid.

    Attributes:
        settings: {name: value} that are best on val.
        model: a ranker or rater with them, fitted for the period asked for.
        validation: {metric: value} on val, of a ranker; empty of a rater.
    """

    settings: dict[str, float]
    model: Any
    validation: dict[str, float]


def choose(source: Source, name: str, *, period: str) -> Chosen:
    """Return the settings that are best on val, and the model fitted for `period` with them.

    Rankers are chosen by ndcg@100, histogram by nll, bias by rmse.
    """
    grid = _GRIDS[name]
    same_fit = period == "val" or source.split != "temporal"
    ranks = name in RANKERS and source.split != "ratings"
    best, top = 0, -np.inf
    kept: Any = None
    validation: dict[str, float] = {}
    if len(grid) > 1 or ranks:
        judge = ranking_scores(source) if name in RANKERS else _rating_score(source)
        for number, model in enumerate(_fit(source, name, grid, "val")):
            scores = judge(model)
            value = scores[_CHOSEN_BY if name in RANKERS else _RATED]
            log.debug("baseline grid name=%s settings=%s scores=%s", name, grid[number], scores)
            if value > top:
                best, top = number, value
                kept = model if same_fit else None
                validation = scores if name in RANKERS else {}
    if kept is None:
        [kept] = _fit(source, name, [grid[best]], period)
    return Chosen(grid[best], kept, validation)


def _fit(source: Source, name: str, grid: Sequence[dict[str, float]], period: str) -> Any:
    """Yield the models of a grid, one at a time where they are large."""
    n_items = source.catalogue[period]
    train = source.cells.in_windows(period_windows(source.split, period).fitted)
    if name == "itemknn":
        yield from baselines.itemknn(train, n_items, [(int(g["k"]), g["shrink"]) for g in grid])
        return
    if name == "ease":
        yield from linear_items.ease(train, n_items, [g["penalty"] for g in grid])
        return
    if name == "rdlae":
        triples = [(g["penalty"], g["drop"], g["relaxed"]) for g in grid]
        yield from linear_items.rdlae(train, n_items, triples)
        return
    module = rating_baselines if name in RATERS else baselines
    function: Callable[..., Any] = getattr(module, name)
    extra = (source.levels,) if name in RATERS else ()
    for settings in grid:
        yield function(train, n_items, *extra, **settings)


def ranking_scores(source: Source) -> Callable[[Ranker], dict[str, float]]:
    """Return what measures `DAY_METRICS` of a ranker on val."""
    task = val_task(source)
    keys = user_keys(task.history.user_num)
    train = source.cells.in_windows(period_windows(source.split, "val").fitted)
    counts = item_counts(train, source.catalogue["val"])

    def scores(model: Ranker) -> dict[str, float]:
        evaluator = Evaluator(_JUDGED, item_counts=counts, replicates=0)
        block = max(1, min(_BLOCK, _MAX_SCORES // max(len(counts), 1)))
        for start in range(0, task.history.n_users, block):
            rows = np.arange(start, min(start + block, task.history.n_users))
            history = task.history.users(rows)
            evaluator.update_ranking(
                keys[rows],
                history=history,
                targets=task.targets.users(rows),
                lists=model(history, evaluator.layout.list_length),
            )
        found = evaluator.result()
        means = {name: found[name]["mean"] if name in found else None for name in DAY_METRICS}
        return {name: float(mean or 0.0) for name, mean in means.items()}

    return scores


def _rating_score(source: Source) -> Callable[[Rater], dict[str, float]]:
    """Score by minus nll where a model has probabilities, else by minus rmse."""
    windows = period_windows(source.split, "val")
    history = source.cells.in_windows(windows.history)
    targets = source.cells.in_windows(windows.targets)
    counts = np.ones(source.catalogue["val"], dtype=np.int64)
    keys = np.zeros(targets.n_users, dtype=np.uint64)

    def score(model: Rater) -> dict[str, float]:
        evaluator = Evaluator(
            MetricLayout(), item_counts=counts, levels=source.levels, replicates=0
        )
        prediction = model(history, targets)
        flat = dataclasses.replace(prediction, level_probs=None)
        evaluator.update_ratings(keys, targets=targets, prediction=flat)
        found = evaluator.result()
        if prediction.level_probs is not None:
            probs = np.take_along_axis(prediction.level_probs, targets.level[:, None], axis=1)
            return {_RATED: float(np.log(np.maximum(probs, 1e-12)).mean())}
        return {_RATED: -float(found["rmse"]["mean"] or 0.0) if "rmse" in found else 0.0}

    return score


def val_task(source: Source) -> Task:
    """Return the val period's rows, thinned evenly to a few thousand users."""
    windows = period_windows(source.split, "val")
    task = cutoff_task(source.cells, windows, n_items=source.catalogue["val"])
    step = -(-task.history.n_users // _VAL_USERS) or 1
    rows = np.arange(0, task.history.n_users, step)
    return Task(task.history.users(rows), task.targets.users(rows), task.dropped)
