"""Evaluate: the metrics of the current builds, with baselines beside them and error bars.

    audit -> count the training window -> fit or reuse the baselines -> rank and rate shard by shard

Writes `<run>/reports/<name>.json` (all metrics and slices of all methods), `<name>.html` and `.md`
(the same as pages) and `<run>/reports/<name>/<report_id>/<method>.parquet` (the sums of every user,
from which `compare` works). The first names the last and is written when that is there. The metrics
alone are kept for every build that was evaluated, in `<run>/reports/of-builds`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.autoencoder.files import AutoencoderFacts
from raysys.cluster.tasks import Run, task_runner
from raysys.config import JobConfig, require, require_run
from raysys.data.profiles import Profiles, shard_names
from raysys.data.schema import PERIODS, period_windows
from raysys.errors import DataError
from raysys.evaluation import audit, fit_baselines, metric_table, protocols
from raysys.evaluation.ranked_users import POPULARITY_SLICES
from raysys.prepare.append import BASE as APPENDED_TO
from raysys.reports import files, page, tables
from raysys.reports.html import evaluation, pages
from raysys.reports.methods import VIA, Subject
from raysys.reports.passes import (
    Counted,
    EvaluationTask,
    Plan,
    count_shard,
    evaluate_shard,
    n_users,
)
from raysys.scoring.rankings import Ranking, text_of_keys
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.drafts import Draft
from raysys.tracking import tracked_stage

log = logging.getLogger(__name__)

REPORTS = "reports"
_CELLS_PER_ROW = 4  # that a task evaluates in the time that other tasks take for a row


@dataclasses.dataclass
class MeasureConfig(JobConfig):
    """How a model is evaluated.

    Attributes:
        ranking: the order of lists, e.g. like or discover^0.5 (more weight: less of what users
            come across anyway); null takes the model's first.
        gamma: the weight of ranking=discover; write ranking=discover^0.5 instead.
        protocol: cutoff (one history per user, before the cut), lloo (each target from strictly
            earlier items) or loo (each target from all the user's other items).
        top_k: list cuts K.
        betas: exponents of the popularity penalty.
        baselines: methods shown beside the model; [] for none. Those that do not apply to the log
            are left out.
        replicates: bootstrap replicates behind the intervals; 0 for none.
        horizons: days after the cut, and since the last visit, at which metrics are split; with
            split=temporal and protocol=cutoff.
    """

    GONE = {
        "block_users": "the size of the catalogue decides how many users are ranked at once",
        "in_process_cells": "the size of the log decides where it is evaluated",
    }

    ranking: str | None = None
    gamma: float | None = None
    protocol: str = "cutoff"
    top_k: list[int] = dataclasses.field(default_factory=lambda: list(metric_table.TOP_K))
    betas: list[float] = dataclasses.field(default_factory=lambda: list(metric_table.BETAS))
    baselines: list[str] = dataclasses.field(
        default_factory=lambda: [*fit_baselines.RANKERS, *fit_baselines.RATERS]
    )
    replicates: int = 1000
    horizons: list[float] = dataclasses.field(default_factory=lambda: list(metric_table.HORIZONS))

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        require(
            self.protocol in protocols.PROTOCOLS, "protocol", self.protocol, "cutoff, lloo or loo"
        )
        self.ranking, self.gamma = text_of_keys(self.ranking, self.gamma), None
        require(all(k >= 1 for k in self.top_k), "top_k", self.top_k, "1 or more each")
        require(all(0 <= b <= 2 for b in self.betas), "betas", self.betas, "0 to 2 each")
        known = (*fit_baselines.RANKERS, *fit_baselines.RATERS)
        unknown = [name for name in self.baselines if name not in known]
        require(not unknown, "baselines", self.baselines, f"a list of {', '.join(known)}")
        require(self.replicates >= 0, "replicates", self.replicates, "0 or more")
        require(all(h > 0 for h in self.horizons), "horizons", self.horizons, "above 0 each")


@dataclasses.dataclass
class EvaluateConfig(MeasureConfig):
    """What is evaluated, and how.

    Attributes:
        period: val or test.
        via: model (its exact ranking), codes (code scores of all items) or index (what the
            service returns: candidates, then exact rescoring).
        rescore: with via=index, let the model reorder the candidates; false shows the index alone.
    """

    GONE = MeasureConfig.GONE | {
        "backtest": "rolling windows of the past are a command of their own, raysys backtest",
        "launch": "trainings of a backtest take launch= of raysys backtest",
    }

    period: str = "test"
    via: str = "model"
    rescore: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        super().__post_init__()
        require(self.period in PERIODS, "period", self.period, " or ".join(PERIODS))
        require(self.via in VIA, "via", self.via, "model, codes or index")


@tracked_stage("evaluate")
def evaluate(cfg: EvaluateConfig, *, shown: bool = True) -> StageResult:
    """Evaluate the current builds.

    Args:
        cfg: what and how.
        shown: to people, too: with plots and a page.

    Raises:
        BuildError: a build is missing or mixed. DataError: a leak, or nobody to evaluate.
        ConfigError: a ranking that the model cannot give.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    subject = Subject.open(workspace, cfg.via)
    profiles = Profiles.open(subject.profiles)
    if profiles.facts.split == "ratings" and profiles.levels.n_rated < 2:
        raise DataError(
            "split=ratings evaluates predictions of ratings, and this log has none that differ "
            f"(levels: {', '.join(profiles.levels.names)}): prepare it with split=temporal or users"
        )
    _audit(cfg, subject, profiles)
    n_cells = sum(profiles.facts.n_cells.values())
    baselines, left_out = _baselines(cfg, workspace, subject.profiles, profiles)
    plan = _plan(cfg, subject, profiles, baselines)
    shards = shard_names(subject.profiles)
    log.info(
        "evaluate started period=%s via=%s users=%d shards=%d",
        cfg.period,
        cfg.via,
        profiles.n_users,
        len(shards),
    )
    name = report_name(cfg)
    report = workspace.path(f"{REPORTS}/{name}")
    validation = {
        method: fit_baselines.BaselineFacts.of(build).validation
        for method, build in baselines.items()
        if method in fit_baselines.RANKERS
    }
    report_id = secrets.token_hex(8)
    with (
        task_runner(cfg.ray, size=n_cells // _CELLS_PER_ROW) as run,
        files.user_files(workspace, f"{report}/{report_id}") as folder,
    ):
        known = _count(plan, shards, profiles, run)
        tasks = [EvaluationTask(plan, name, *known) for name in shards]
        results = run(evaluate_shard, tasks, stage="evaluate", rows=n_users, large=True)
        outcome = files.merge(results, folder)
        record = {"report_id": report_id, **_record(cfg, plan, subject, outcome, left_out)}
        record["validation"] = validation
        record["differences"] = page.differences(
            folder, cfg.via, [*record["methods"]], seed=cfg.seed, replicates=cfg.replicates
        )
        if shown:
            page.draw_days(record, folder)
    files.publish(workspace, report, record, page.page(record, name))
    where = None
    if shown:
        made = evaluation.page_of(record, run=pages.name_of_run(cfg.run), name=name)
        where = pages.publish(workspace, f"{report}.html", made)
    files.keep(workspace, subject.head, name, record)
    methods = {method: entry["metrics"] for method, entry in record["methods"].items()}
    for line in [*tables.table(methods), *page.lines(record)]:
        log.info("%s", line)
    own = methods.pop(cfg.via)
    return StageResult(
        build_ids=record["build_ids"],
        metrics=own,
        extra={
            "report": f"{cfg.run.rstrip('/')}/{report}.json",
            "page": where,
            **{key: record[key] for key in ("period", "via", "protocol", "evaluated", "dropped")},
            "baselines": {method: tables.headline(metrics) for method, metrics in methods.items()},
            "baselines_left_out": left_out,
            "validation": validation,
        },
    )


def report_name(cfg: EvaluateConfig) -> str:
    """Return the file name of a report, without its suffix."""
    parts = ["evaluate", cfg.period, cfg.via]
    parts += ["raw"] if cfg.via == "index" and not cfg.rescore else []
    parts += [cfg.protocol] if cfg.protocol != "cutoff" else []
    parts += [cfg.ranking] if cfg.ranking else []
    return "-".join(parts)


def _audit(cfg: EvaluateConfig, subject: Subject, profiles: Profiles) -> None:
    """Check the manifests; the cells are checked shard by shard."""
    facts = profiles.facts
    audit.check_model(
        AutoencoderFacts.of(subject.autoencoder),
        period=cfg.period,
        windows=period_windows(facts.split, cfg.period),
        cutoffs=facts.cutoffs,
        n_items=facts.catalogue[cfg.period],
    )
    audit.check_catalogue(
        profiles.items,
        catalogue=facts.catalogue,
        cutoffs=facts.cutoffs,
        numbers_kept=APPENDED_TO in subject.profiles.manifest.config,
    )


def _plan(
    cfg: EvaluateConfig,
    subject: Subject,
    profiles: Profiles,
    baselines: dict[str, Build],
) -> Plan:
    facts = profiles.facts
    values = [value for value in profiles.levels.values if value is not None]
    spread = max(values) - min(values) if values else 0.0
    by_days = facts.cutoffs is not None and cfg.protocol == "cutoff"
    return Plan(
        run=cfg.run,
        cache_dir=cfg.cache_dir,
        via=cfg.via,
        head=subject.head.build_id,
        ranking=None if cfg.ranking is None else Ranking.parse(cfg.ranking),
        rescore=cfg.rescore,
        baselines=tuple((name, build.build_id) for name, build in baselines.items()),
        period=cfg.period,
        windows=period_windows(facts.split, cfg.period),
        n_items=facts.catalogue[cfg.period],
        cutoffs=tuple(facts.cutoffs.items()) if facts.cutoffs else None,
        split=facts.split,
        protocol=cfg.protocol,
        layout=metric_table.MetricLayout(
            top_k=tuple(cfg.top_k),
            betas=tuple(cfg.betas),
            levels=profiles.levels.names,
            rating_range=spread or 1.0,
            horizons=tuple(cfg.horizons) if by_days else (),
            cut=facts.cutoffs[cfg.period] if facts.cutoffs else 0,
        ),
        seed=cfg.seed,
        replicates=cfg.replicates,
    )


def _baselines(
    cfg: EvaluateConfig, workspace: Workspace, build: Build, profiles: Profiles
) -> tuple[dict[str, Build], dict[str, str]]:
    """Fit or reuse one `baselines` build per name; return them and why others are left out."""
    facts = profiles.facts
    wanted = fit_baselines.applicable(
        [n for n in cfg.baselines if facts.split != "ratings" or n in fit_baselines.RATERS],
        n_users=profiles.n_users,
        n_items=facts.catalogue[cfg.period],
        has_time=facts.has_time,
        n_rated=profiles.levels.n_rated,
    )
    builds = {}
    source = functools.cache(lambda: fit_baselines.source_of(profiles))
    for name in (name for name, reason in wanted.items() if reason is None):
        settings = {"name": name, "period": cfg.period}
        write = functools.partial(_fit_baseline, source, name=name, period=cfg.period)
        builds[name] = workspace.build("baselines", config=settings, inputs=[build], write=write)
    return builds, {name: reason for name, reason in wanted.items() if reason is not None}


def _fit_baseline(
    source: Callable[[], fit_baselines.Source], draft: Draft, *, name: str, period: str
) -> fit_baselines.BaselineFacts:
    """Fit one baseline and write its files; return the build's facts."""
    return fit_baselines.fit_and_save(source(), period=period, name=name, folder=draft.staging)


def _count(
    plan: Plan, shards: list[str], profiles: Profiles, run: Run
) -> tuple[NDArray[np.int64], bool, int]:
    """Run the first pass.

    Returns:
        Item counts [N], whether the training window has ratings, the number of users with targets.
    """
    tasks = [(plan, name) for name in shards]
    found: list[Counted] = list(run(count_shard, tasks, stage="audit", rows=n_users, large=True))
    ids = profiles.items["item_id"]
    audit.check_shards(
        ((c.name, c.user_num) for c in found), user=lambda n: repr(profiles.user_ids[n].as_py())
    )
    audit.check_popularity(
        profiles.items["n_fit"].to_numpy(),
        np.sum([c.fit_rows for c in found], axis=0),
        ids=ids.to_pylist(),
    )
    levels = np.sum([c.level_counts for c in found], axis=0)
    counts = np.sum([c.item_counts for c in found], axis=0)
    rated = bool(levels[profiles.levels.rated].any())
    return counts, rated, sum(c.n_asked for c in found)


def _record(
    cfg: EvaluateConfig,
    plan: Plan,
    subject: Subject,
    outcome: files.Outcome,
    left_out: dict[str, str],
) -> dict[str, Any]:
    """Return the report as JSON values."""
    own = outcome.evaluators[cfg.via]
    evaluated = {
        "rows": own.count("rows"),
        "targets": sum(own.count(f"targets|popularity={d + 1}") for d in range(POPULARITY_SLICES)),
        "rated_targets": own.count("rated"),
    }
    if not evaluated["rows"] and not evaluated["rated_targets"]:
        raise DataError(
            f"period={cfg.period} has nobody to evaluate: no user has history and a new target "
            f"in the catalogue ({dict(outcome.dropped)})"
        )
    return {
        "period": cfg.period,
        "via": cfg.via,
        "rescore": cfg.rescore,
        "ranking": cfg.ranking,
        "protocol": cfg.protocol,
        "split": plan.split,
        "seed": cfg.seed,
        "replicates": cfg.replicates,
        "build_ids": subject.build_ids,
        "baseline_ids": dict(plan.baselines),
        "cutoffs": dict(plan.cutoffs) if plan.cutoffs else None,
        "evaluated": evaluated,
        "dropped": {reason: count for reason, count in sorted(outcome.dropped.items()) if count},
        "baselines_left_out": left_out,
        "horizons": page.buckets(own),
        "methods": {
            method: {
                "metrics": evaluator.result(),
                "slices": evaluator.slices(),
                **evaluator.figures(),
            }
            for method, evaluator in outcome.evaluators.items()
        },
    }
