"""Models on a window of time that they did not see, whatever windows the profiles were split into.

    history ------------------(cut)--- targets ---(end)

A case ranks and rates with one model. A blind one takes the histories of other users for its lists,
and says of every rating how often its level occurs: what is lost then is what the model is good
for, its *skill*. In a window whose items or ratings were shuffled it is gone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.autoencoder.files import Autoencoder
from raysys.cluster.tasks import task_runner
from raysys.config import RayConfig
from raysys.data.cells import Cells, concat, read_cells
from raysys.data.profiles import Profiles, shard_names
from raysys.data.schema import PeriodWindows, RatingLevels, Window
from raysys.evaluation import named_metrics, protocols
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.metrics import Ranker, Rater, RatingPrediction
from raysys.evaluation.rating_baselines import mean_rating
from raysys.evaluation.user_sums import UserSums, rank_task, rate_cells
from raysys.reports.methods import ModelMethod, Subject
from raysys.store.builds import Workspace

_BLOCK_USERS = 256
_MAX_SCORES = 1 << 25
_CELLS_PER_ROW = 4
_ASKED = PeriodWindows((Window.FIT,), (Window.FIT,), (Window.TEST,))


@dataclasses.dataclass(frozen=True)
class Case:
    """What is evaluated.

    Attributes:
        name: of the case.
        model: build_id of an autoencoder, fitted before `cut`.
        cut, end: UTC seconds; targets lie in [cut, end), histories before.
        blind: take the histories of other users, and the shares of levels.
    """

    name: str
    model: str
    cut: int
    end: int
    blind: bool = False


@dataclasses.dataclass(frozen=True)
class Cases:
    """Cases on one log.

    Attributes:
        run, cache_dir: of the workspace.
        profiles: build_id of profiles that hold all windows; models number items as they do.
        n_items: catalogue that targets are taken from.
        metrics: names that are wanted, see `named_metrics`.
        cases: what is evaluated.
    """

    run: str
    cache_dir: str | None
    profiles: str
    n_items: int
    metrics: tuple[str, ...]
    cases: tuple[Case, ...]


def users_of(cases: Cases, ray: RayConfig) -> dict[str, pa.Table]:
    """Return the users' sums of every case, as `comparison.compare_users` takes them."""
    workspace = Workspace(cases.run, cache_dir=cases.cache_dir)
    build = workspace.open("profiles", cases.profiles)
    n_cells = sum(Profiles.open(build).facts.n_cells.values())
    names = range(len(shard_names(build)))
    with task_runner(ray, size=len(cases.cases) * n_cells // _CELLS_PER_ROW) as run:
        parts = list(run(_shard, names, stage="judge", shared=(cases,), large=True))
    return {
        case.name: pa.concat_tables([part[case.name] for part in parts]) for case in cases.cases
    }


def levels_of(own: RatingLevels, others: RatingLevels) -> NDArray[np.uint8]:
    """Return the level [R] that a model with levels `own` takes for each level of `others`."""
    found = []
    for name, value in zip(others.names, others.values, strict=True):
        level = own.level_of_name(name)
        if level is None and value is not None:
            level = int(own.level_of_rating(np.array([value]))[0])
        found.append(0 if level is None else level)
    return np.array(found, dtype=np.uint8)


def window_of(cells: Cells, *, cut: int, end: int) -> Cells:
    """Return the cells before `end`, those from `cut` on as TEST, all others as FIT."""
    kept = cells.take(cells.timestamp < end)
    window = np.where(kept.timestamp >= cut, Window.TEST, Window.FIT).astype(np.uint8)
    return dataclasses.replace(kept, window=window)


def others_of(history: Cells, pool: Cells) -> Cells:
    """Return for each user the history of the next one in the pool; users without number: theirs.

    Args:
        history: of users of the pool, then of users whose number is -1, who are padding.
        pool: of all users, by number.
    """
    real = history.user_num >= 0
    rows = np.searchsorted(pool.user_num, history.user_num[real])
    others = pool.users((rows + 1) % pool.n_users)
    return concat([others, history.users(np.flatnonzero(~real))])


def shares_of(history: Cells, levels: RatingLevels) -> Rater:
    """Return what predicts of every rating how often each level occurs in some histories."""
    share = np.bincount(history.level, minlength=levels.n_levels) + 1.0
    share /= share.sum()

    def rate(history: Cells, targets: Cells) -> RatingPrediction:
        del history
        probs = np.tile(share, (targets.n_cells, 1))
        return RatingPrediction(mean_rating(probs, levels.value_array()), probs)

    return rate


class _Model:
    """A model on cells whose levels may be numbered otherwise than its own."""

    def __init__(self, cases: Cases, build_id: str) -> None:
        workspace = Workspace(cases.run, cache_dir=cases.cache_dir)
        build = workspace.open("autoencoder", build_id)
        profiles = _profiles(cases.run, cases.cache_dir, cases.profiles)
        subject = Subject(build, build, workspace.open("profiles", cases.profiles))
        own = Autoencoder.open(build).model.levels
        self._method = ModelMethod(subject, ranking=None)
        self._levels = levels_of(own, profiles.levels)
        self.rates = own.names == profiles.levels.names and own.n_rated > 1

    def rank(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        return self._method.rank(self._own(history), top_k)

    def blind(self, pool: Cells) -> Ranker:
        """Return what gives users the lists of others, without what they have themselves."""

        def rank(history: Cells, top_k: int) -> NDArray[np.int32]:
            others = self._own(others_of(history, pool))
            return self._method.rank(others, top_k, exclude=history)

        return rank

    def rate(self, history: Cells, targets: Cells) -> RatingPrediction:
        return self._method.rate(self._own(history), targets)

    def _own(self, history: Cells) -> Cells:
        return dataclasses.replace(history, level=self._levels[history.level])


def _shard(number: int, cases: Cases) -> dict[str, pa.Table]:
    """Evaluate all cases on the users of one shard."""
    profiles = _profiles(cases.run, cases.cache_dir, cases.profiles)
    cells = read_cells([profiles.shard_paths[number]])
    first = int(cells.user_num[0]) if cells.n_users else 0
    user_ids = profiles.user_ids.slice(first, cells.n_users).to_pylist()
    keys, layout = user_keys(user_ids), _layout(cases.metrics, profiles.levels)
    tables = {}
    for case in cases.cases:
        sums = UserSums.empty(keys, first_user=first, layout=layout)
        asked = window_of(cells, cut=case.cut, end=case.end)
        task = protocols.cutoff_task(asked, _ASKED, n_items=cases.n_items)
        _evaluate(cases, case, profiles, task, sums, layout)
        tables[case.name] = sums.table(user_ids, layout)
    return tables


def _evaluate(
    cases: Cases,
    case: Case,
    profiles: Profiles,
    task: protocols.Task,
    sums: UserSums,
    layout: MetricLayout,
) -> None:
    model = _model(cases, case.model)
    n_fit = profiles.items["n_fit"].to_numpy()[: cases.n_items]
    levels = profiles.levels if model.rates else None
    evaluator = Evaluator(layout, item_counts=n_fit, levels=levels, replicates=0)
    block = max(1, min(_BLOCK_USERS, _MAX_SCORES // cases.n_items))
    rank = model.blind(task.history) if case.blind else model.rank
    rank_task(evaluator, task, rank, users=sums, block=block, name=case.name)
    if model.rates:
        rate = shares_of(task.history, profiles.levels) if case.blind else model.rate
        further: dict[str, Any] = {"users": sums, "block": _BLOCK_USERS, "name": case.name}
        rate_cells(evaluator, task.history, task.targets, rate, **further)


def _layout(metrics: Sequence[str], levels: RatingLevels) -> MetricLayout:
    values = [value for value in levels.values if value is not None]
    spread = max(values) - min(values) if values else 0.0
    return named_metrics.layout_of(metrics, rating_range=spread or 1.0)


@functools.lru_cache(maxsize=1)
def _profiles(run: str, cache_dir: str | None, build_id: str) -> Profiles:
    return Profiles.open(Workspace(run, cache_dir=cache_dir).open("profiles", build_id))


@functools.lru_cache(maxsize=3)
def _model(cases: Cases, build_id: str) -> _Model:
    return _Model(cases, build_id)
