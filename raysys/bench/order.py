"""Peers on prepared folds: what the order of events is worth, and how far linear maps get.

    raysys bench suite=order run=runs/folds data=[ml-1m-T,online-retail-T] save=benchmarks/results

Each `<run>/<data>` is a run with profiles (`raysys prepare folds=FILE split=temporal|users`), and
perhaps a trained model. Every method chooses its settings or epochs on val, is fitted again on what
the test period may see, and is judged on test by the evaluator of all reports, with 95 % intervals
over users. `sasrec-shuffled` is the same network on shuffled sequences: the difference is
what order is worth to it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.bench import recvae, sasrec
from raysys.bench.suites import BenchConfig
from raysys.config import require, require_run
from raysys.data.profiles import Profiles
from raysys.data.schema import period_windows
from raysys.errors import BuildError
from raysys.evaluation import fit_baselines
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import DAY_METRICS, MetricLayout
from raysys.evaluation.metrics import Ranker
from raysys.evaluation.presence import item_counts
from raysys.evaluation.protocols import cutoff_task
from raysys.reports.methods import ModelMethod, Subject
from raysys.store.builds import Workspace
from raysys.store.storage import join

log = logging.getLogger(__name__)

OURS = "raysys"
NETWORKS: dict[str, Callable[..., tuple[Ranker, int]]] = {
    "sasrec": partial(sasrec.fit, ordered=True),
    "sasrec-shuffled": partial(sasrec.fit, ordered=False),
    "recvae": recvae.fit,
}
_SIZES = {
    "sasrec": f"width={sasrec.WIDTH} blocks={sasrec.BLOCKS} length={sasrec.LENGTH}",
    "recvae": f"hidden={recvae.HIDDEN} latent={recvae.LATENT}",
}
_BLOCK = 256
_CHOSEN_BY = "ndcg@100"


@dataclasses.dataclass
class OrderBenchConfig(BenchConfig):
    """Settings of the order suite.

    Attributes:
        data: names of runs below `run`, with profiles of published folds.
        methods: raysys (the run's model), any ranker of reports, sasrec, sasrec-shuffled, recvae.
        epochs: of a network, at most; fewer where validation says so.
        minutes: of a network's training on val, at most.
        replicates: bootstrap replicates.
    """

    data: list[str] = dataclasses.field(default_factory=list)
    methods: list[str] = dataclasses.field(
        default_factory=lambda: [OURS, *fit_baselines.RANKERS, *NETWORKS]
    )
    epochs: int = 30
    minutes: float = 5.0
    replicates: int = 1000

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        known = [OURS, *fit_baselines.RANKERS, *NETWORKS]
        wrong = [name for name in self.methods if name not in known]
        require(not wrong, "methods", self.methods, f"a list of {', '.join(known)}")
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.minutes > 0, "minutes", self.minutes, "above 0")


def rows(cfg: OrderBenchConfig) -> list[dict[str, Any]]:
    """Return a row per data set and method."""
    require_run(cfg)
    require(bool(cfg.data), "data", cfg.data, "a list of runs below run")
    found = []
    for data in cfg.data:
        workspace = Workspace(join(cfg.run, data), cache_dir=cfg.cache_dir)
        profiles = Profiles.open(workspace.current("profiles"))
        source = fit_baselines.source_of(profiles)
        n_items = source.catalogue["test"]
        methods = [
            name
            for name, reason in fit_baselines.applicable(
                cfg.methods,
                n_users=profiles.n_users,
                n_items=n_items,
                has_time=source.has_time and source.split == "temporal",
                n_rated=0,
            ).items()
            if reason is None
        ]
        for name in methods:
            started = time.monotonic()
            fitted = _fitted(cfg, workspace, source, name)
            if fitted is None:
                continue
            rank, setting = fitted
            row = {
                "data": data,
                "split": source.split,
                "method": name,
                **_judged(cfg, profiles, source, rank),
                "setting": setting,
                "seconds": round(time.monotonic() - started, 1),
            }
            log.info("bench order %s", row)
            found.append(row)
    return found


def _fitted(
    cfg: OrderBenchConfig, workspace: Workspace, source: fit_baselines.Source, name: str
) -> tuple[Ranker, str] | None:
    """Return a ranker for the test period and its setting; None: the run has no model."""
    if name == OURS:
        try:
            subject = Subject.open(workspace, "model")
        except BuildError:
            return None
        return ModelMethod(subject, ranking=None).rank, ""
    if name in NETWORKS:
        return _network(cfg, source, name)
    chosen = fit_baselines.choose(source, name, period="test")
    return chosen.model, " ".join(f"{key}={value:g}" for key, value in chosen.settings.items())


def _network(cfg: OrderBenchConfig, source: fit_baselines.Source, name: str) -> tuple[Ranker, str]:
    """Choose the epochs on val, then train as many on what the test period may see."""
    scores = fit_baselines.ranking_scores(source)

    def fit(period: str, epochs: int, score: Callable[[Ranker], float] | None) -> Any:
        windows = period_windows(source.split, period)
        return NETWORKS[name](
            source.cells.in_windows(windows.fitted),
            source.catalogue[period],
            epochs=epochs,
            seconds=60 * cfg.minutes if score else np.inf,
            seed=cfg.seed,
            score=score,
        )

    rank, epochs = fit("val", cfg.epochs, lambda model: scores(model)[_CHOSEN_BY])
    if source.split == "temporal":
        rank, _ = fit("test", epochs, None)
    return rank, f"{_SIZES[name.partition('-')[0]]} epochs={epochs}"


def _judged(
    cfg: OrderBenchConfig, profiles: Profiles, source: fit_baselines.Source, rank: Ranker
) -> dict[str, float | None]:
    """Return the metrics on test with their intervals."""
    windows = period_windows(source.split, "test")
    n_items = source.catalogue["test"]
    task = cutoff_task(source.cells, windows, n_items=n_items)
    evaluator = Evaluator(
        MetricLayout(top_k=(20,), betas=(0.3,)),
        item_counts=item_counts(source.cells.in_windows(windows.fitted), n_items),
        seed=cfg.seed,
        replicates=cfg.replicates,
    )
    keys = user_keys(profiles.user_ids.take(pa.array(task.history.user_num)).to_pylist())
    for start in range(0, task.history.n_users, _BLOCK):
        part = np.arange(start, min(start + _BLOCK, task.history.n_users))
        history = task.history.users(part)
        lists = rank(history, evaluator.layout.list_length)
        evaluator.update_ranking(
            keys[part], history=history, targets=task.targets.users(part), lists=lists
        )
    found = evaluator.result()
    row: dict[str, float | None] = {}
    for name in DAY_METRICS:
        values = found[name]
        row |= {name: values["mean"]}
        row |= {f"{name}_low": values["ci_low"], f"{name}_high": values["ci_high"]}
    return {key: value if value is None else round(value, 5) for key, value in row.items()}
