"""The two passes of an evaluation over user shards: count and audit, then rank and rate.

A pass is a task per shard; their results come in shard order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.data.cells import Cells, read_cells
from raysys.data.profiles import Profiles
from raysys.data.schema import PeriodWindows, Window
from raysys.evaluation import audit, fit_baselines, protocols
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.presence import item_counts
from raysys.evaluation.user_sums import UserSums, expect_task, rank_task, rate_cells
from raysys.reports.methods import Method, ModelMethod, ServedMethod, Subject
from raysys.scoring.rankings import Ranking
from raysys.store.builds import Workspace

_BLOCK_USERS = 256  # ranked at once, fewer of a large catalogue
_MAX_SCORES = 1 << 25  # of such a block
_EXPECTED_COPIES = 4  # of its scores that the link makes on the way
_MAX_EXPECTED = 1 << 26  # pairs of user and item whose P(i | u) is looked at


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every shard task of one evaluation shares.

    Attributes:
        run, cache_dir: of the workspace, the run as any process can open it.
        via, head, ranking, rescore: of `methods.ServedMethod`; `head` is the build_id.
        baselines: (name, build_id) of each baseline.
        period, windows, n_items, cutoffs: what is evaluated.
        split: temporal, users or ratings.
        protocol: cutoff, lloo or loo.
        layout, seed, replicates: of the evaluator.
    """

    run: str
    cache_dir: str | None
    via: str
    head: str
    ranking: Ranking | None
    rescore: bool
    baselines: tuple[tuple[str, str], ...]
    period: str
    windows: PeriodWindows
    n_items: int
    cutoffs: tuple[tuple[str, int], ...] | None
    split: str
    protocol: str
    layout: MetricLayout
    seed: int
    replicates: int


@dataclasses.dataclass(frozen=True)
class Counted:
    """What the first pass found in a shard.

    Attributes:
        name: of the shard.
        user_num: int32 [U].
        item_counts: int64 [N] training users per item of the catalogue.
        fit_rows: int64 [all items] cells of window FIT per item.
        level_counts: int64 [R] training cells per level.
        n_asked: users with targets.
    """

    name: str
    user_num: NDArray[np.int32]
    item_counts: NDArray[np.int64]
    fit_rows: NDArray[np.int64]
    level_counts: NDArray[np.int64]
    n_asked: int


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What the second pass made of a shard: per method the merged sums and the users' sums."""

    evaluators: dict[str, Evaluator]
    tables: dict[str, pa.Table]
    dropped: Counter[str]


def n_users(result: Counted | Evaluated) -> int:
    """Return the users of a shard that a pass dealt with."""
    if isinstance(result, Counted):
        return len(result.user_num)
    return max((len(table) for table in result.tables.values()), default=0)


def count_shard(task: tuple[Plan, str]) -> Counted:
    """Count one shard and audit its cells.

    Raises:
        DataError: a leak; the message names the rows.
    """
    plan, name = task
    profiles = _profiles(plan.run, plan.cache_dir, plan.via, plan.head)
    cells = read_cells([_shard_path(profiles, name)], _windows(plan))
    names = {
        "user": lambda num: repr(profiles.user_ids[num].as_py()),
        "item": lambda num: repr(profiles.items["item_id"][num].as_py()),
    }
    cutoffs = dict(plan.cutoffs) if plan.cutoffs else None
    audit.check_windows(cells, period=plan.period, windows=plan.windows, cutoffs=cutoffs, **names)
    targets = cells.in_windows(plan.windows.targets)
    if cutoffs is None:
        past = cells.in_windows({*plan.windows.history, *plan.windows.fitted})
        audit.check_pairs(past, targets, **names)
    train = cells.in_windows(plan.windows.fitted)
    fit = cells.in_windows([Window.FIT])
    return Counted(
        name=name,
        user_num=cells.user_num,
        item_counts=item_counts(train, plan.n_items),
        fit_rows=np.bincount(fit.item_num, minlength=profiles.n_items),
        level_counts=np.bincount(train.level, minlength=profiles.levels.n_levels),
        n_asked=int(np.count_nonzero(targets.counts)),
    )


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """One shard of the second pass; `item_counts` [N], `rated` and `n_asked` are of all shards."""

    plan: Plan
    name: str
    item_counts: NDArray[np.int64]
    rated: bool
    n_asked: int


def evaluate_shard(task: EvaluationTask) -> Evaluated:
    """Rank and rate the users of one shard with every method."""
    plan = task.plan
    profiles = _profiles(plan.run, plan.cache_dir, plan.via, plan.head)
    cells = read_cells([_shard_path(profiles, task.name)], _windows(plan))
    methods = _methods(plan, task.rated)
    first = int(cells.user_num[0]) if cells.n_users else 0
    user_ids = profiles.user_ids.slice(first, cells.n_users).to_pylist()
    keys = user_keys(user_ids)
    evaluators, sums = {}, {}
    for method in methods:
        evaluators[method.name] = Evaluator(
            plan.layout,
            item_counts=task.item_counts,
            levels=profiles.levels if profiles.levels.n_rated > 1 else None,
            seed=plan.seed,
            replicates=plan.replicates,
        )
        sums[method.name] = UserSums.empty(keys, first_user=first, layout=plan.layout)
    dropped: Counter[str] = Counter()
    for part in _tasks(plan, cells, dropped):
        for method in methods:
            _evaluate(task, part, method, evaluators[method.name], sums[method.name])
    tables = {m.name: sums[m.name].table(user_ids, plan.layout) for m in methods}
    return Evaluated(evaluators, tables, dropped)


def _evaluate(
    task: EvaluationTask,
    part: protocols.Task,
    method: Method,
    evaluator: Evaluator,
    users: UserSums,
) -> None:
    plan = task.plan
    if method.rank is not None and plan.split != "ratings":
        rank_task(evaluator, part, method.rank, users=users, block=_block(plan), name=method.name)
    if method.expect is not None and plan.split != "ratings":
        expect_task(
            evaluator,
            part,
            method.expect,
            users=users,
            block=max(1, _block(plan) // _EXPECTED_COPIES),
            share=_MAX_EXPECTED / max(task.n_asked * plan.n_items, 1),
            name=method.name,
        )
    if method.rate is not None and evaluator.levels is not None and plan.protocol == "cutoff":
        rate_cells(
            evaluator,
            part.history,
            part.targets,
            method.rate,
            users=users,
            block=_BLOCK_USERS,
            name=method.name,
        )


def _block(plan: Plan) -> int:
    return max(1, min(_BLOCK_USERS, _MAX_SCORES // plan.n_items))


def _tasks(plan: Plan, cells: Cells, dropped: Counter[str]) -> Iterator[protocols.Task]:
    """Yield what is ranked, counting what is left out; for ratings every target cell counts."""
    if plan.split == "ratings":
        history = cells.in_windows(plan.windows.history)
        yield protocols.Task(history, cells.in_windows(plan.windows.targets), Counter())
        return
    if plan.protocol == "cutoff":
        parts = iter([protocols.cutoff_task(cells, plan.windows, n_items=plan.n_items)])
    else:
        parts = protocols.leave_one_out_tasks(
            cells, plan.windows, n_items=plan.n_items, last=plan.protocol == "lloo"
        )
    for part in parts:
        dropped.update(part.dropped)
        audit.check_pairs(part.history, part.targets)
        if plan.cutoffs and plan.protocol != "loo":
            audit.check_order(part.history, part.targets)
        yield part


def _windows(plan: Plan) -> frozenset[Window]:
    """Return what is read: for the period val, nothing of the test period."""
    return plan.windows.used | {Window.FIT}


def _shard_path(profiles: Profiles, name: str) -> Path:
    return next(path for path in profiles.shard_paths if path.name == name)


@functools.lru_cache(maxsize=2)
def _subject(run: str, cache_dir: str | None, via: str, head: str) -> Subject:
    return Subject.open(Workspace(run, cache_dir=cache_dir), via, build_id=head)


@functools.lru_cache(maxsize=2)
def _profiles(run: str, cache_dir: str | None, via: str, head: str) -> Profiles:
    return Profiles.open(_subject(run, cache_dir, via, head).profiles)


@functools.lru_cache(maxsize=1)
def _methods(plan: Plan, rated: bool) -> list[Method]:
    """Open the model and the baselines once per process."""
    subject = _subject(plan.run, plan.cache_dir, plan.via, plan.head)
    model: ModelMethod | ServedMethod
    if subject.index is None:
        model = ModelMethod(subject, ranking=plan.ranking)
    else:
        model = ServedMethod(subject, ranking=plan.ranking, rescore=plan.rescore)
    expect = model.expect if plan.via == "model" and isinstance(model, ModelMethod) else None
    methods = [Method(plan.via, model.rank, model.rate if rated else None, expect)]
    workspace = Workspace(plan.run, cache_dir=plan.cache_dir)
    for name, build_id in plan.baselines:
        fitted = fit_baselines.open_baseline(workspace.open("baselines", build_id))
        rates = name in fit_baselines.RATERS
        methods.append(Method(name, None if rates else fitted, fitted if rates else None))
    return methods
