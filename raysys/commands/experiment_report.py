"""Experiment report: which arm of an online experiment is better, from what a service logged.

    raysys experiment report run=R name=NAME [events=[purchase]] [window_s=86400] [control=ARM]

Reads `<run>/impressions` and `<run>/events`, writes `<run>/reports/experiment-<name>.json`, `.md`
and a plot, and the rows of the experiment in `<run>/reports/experiments.parquet`, from which
`raysys bench suite=agreement` says which offline metric agrees with what users did.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
import urllib.parse
from typing import Any

from raysys.config import JobConfig, identifier, require, require_run
from raysys.evaluation.experiment import OUTCOMES, Assessment, assess
from raysys.events import records
from raysys.events.journal import segments
from raysys.reports import experiment_log, experiment_offline, experiment_page, files
from raysys.reports.experiment_log import Logged
from raysys.reports.plots import draw
from raysys.store.builds import StageResult, Workspace
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

_NAMED = 5  # users that a note names


@dataclasses.dataclass
class ExperimentReportConfig(JobConfig):
    """What is asked of an experiment.

    Attributes:
        name: of the experiment, as its impressions have it.
        events: kinds of events that are conversions; empty: all are.
        min_rating: rated events below it are no conversions; null: any rating is one.
        window_s: seconds after an impression in which an event on one of its items is credited.
        horizon_s: seconds after a user's first impression that the outcome is taken of; null:
            window_s.
        outcome: converted (a user did or did not) or conversions (how many a user made).
        control: the arm that others are compared with; null: `control`, else the first by name.
        alpha: chance of any wrong decision, at any time.
    """

    name: str | None = identifier(None)
    events: list[str] = dataclasses.field(default_factory=list)
    min_rating: float | None = None
    window_s: int = 86_400
    horizon_s: int | None = None
    outcome: str = "converted"
    control: str | None = identifier(None)
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        require(self.window_s >= 1, "window_s", self.window_s, "1 or more")
        horizon = self.horizon_s
        require(horizon is None or horizon >= 1, "horizon_s", horizon, "1 or more")
        require(self.outcome in OUTCOMES, "outcome", self.outcome, " or ".join(OUTCOMES))
        require(0 < self.alpha < 1, "alpha", self.alpha, "a chance between 0 and 1")


def report(cfg: ExperimentReportConfig) -> StageResult:
    """Report on one experiment.

    Returns:
        `metrics` {arm: {"mean", "ci_low", "ci_high"}} are the outcomes; `extra` holds the verdict,
        the comparisons, the split of users and where the report lies.

    Raises:
        ConfigError: no name. DataError: a table cannot be read, there is no such experiment (the
            message names those there are), or it has no such control.
    """
    require_run(cfg)
    require(bool(cfg.name), "name", cfg.name, "the name of an experiment")
    assert cfg.name is not None
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    horizon_s = cfg.horizon_s or cfg.window_s
    logged = experiment_log.read(
        workspace.storage,
        cfg.name,
        events=cfg.events,
        min_rating=cfg.min_rating,
        window_s=cfg.window_s,
        horizon_s=horizon_s,
    )
    found = assess(
        logged.users,
        until=min(logged.until, int(time.time())),  # a client's clock may be ahead
        horizon_s=horizon_s,
        outcome=cfg.outcome,
        control=cfg.control,
        alpha=cfg.alpha,
    )
    metrics = {
        arm: experiment_offline.metrics_of(workspace, *places[0])
        for arm, places in logged.users.builds.items()
    }
    rows = experiment_offline.rows_of(cfg.name, found.arms, logged.users.builds, metrics)
    experiment_offline.add(workspace, cfg.name, rows)
    notes = [
        *experiment_page.method_notes(found),
        *_notes(logged, found, metrics, workspace.storage),
    ]
    name = f"reports/experiment-{urllib.parse.quote(cfg.name, safe='')}"
    record = _published(workspace, name, cfg, found, notes)
    for line in experiment_page.lines(found, notes):
        log.info("%s", line)
    return StageResult(
        build_ids={},
        metrics={
            arm.name: {
                "mean": arm.outcome.value,
                "ci_low": arm.outcome.low,
                "ci_high": arm.outcome.high,
            }
            for arm in found.arms
        },
        extra={
            "report": f"{cfg.run.rstrip('/')}/{name}.json",
            "table": f"{cfg.run.rstrip('/')}/{experiment_offline.TABLE}" if rows else None,
            "verdict": found.verdict,
            "comparisons": [
                {key: value for key, value in each.items() if key != "steps"}
                for each in record["comparisons"]
            ],
            "split": record["split"],
            "notes": notes,
        },
    )


def _published(
    workspace: Workspace,
    name: str,
    cfg: ExperimentReportConfig,
    found: Assessment,
    notes: list[str],
) -> dict[str, Any]:
    """Write plot, page and record; return the record."""
    report_id = secrets.token_hex(8)
    panels = experiment_page.panels(found)
    if panels:
        with files.user_files(workspace, f"{name}/{report_id}") as folder:
            draw(panels, folder / experiment_page.PLOT)
    settings = ("name", "events", "min_rating", "window_s", "horizon_s", "outcome")
    record: dict[str, Any] = {
        "report_id": report_id,
        **{key: getattr(cfg, key) for key in settings},
        **dataclasses.asdict(found),
        "notes": notes,
    }
    if found.split is not None:
        record["split"]["expected"] = found.split.expected.tolist()
    # The page's links begin at the page, and a name may hold what a link would read otherwise.
    place = urllib.parse.quote(f"{name.rpartition('/')[2]}/{report_id}/{experiment_page.PLOT}")
    title = f"Experiment {cfg.name}"
    page = experiment_page.page(found, title, place if panels else None, notes)
    files.publish(workspace, name, record, page)
    return record


def _notes(
    logged: Logged, found: Assessment, metrics: dict[str, dict[str, float]], storage: Storage
) -> list[str]:
    """Return what a reader should know of the tables that were read."""
    users = logged.users
    notes = []
    if segments(storage, records.IMPRESSIONS) or segments(storage, records.EVENTS):
        notes.append(
            "What came in the last minutes is still in the journal: `raysys events fold` adds it."
        )
    if not logged.has_events:
        notes.append("The run has no table of events: nothing is a conversion.")
    if users.moved:
        some = ", ".join(users.moved[:_NAMED]) + (", ..." if len(users.moved) > _NAMED else "")
        notes.append(
            f"{len(users.moved):,} users were seen in several arms and are left out: {some}."
        )
    if logged.anonymous:
        notes.append(f"{logged.anonymous:,} impressions without a user or time are left out.")
    changed = [name for name, weights in users.configured.items() if len(weights) > 1]
    if changed:
        notes.append(
            f"Weights changed during the experiment: {', '.join(changed)}. What is read once mixes "
            "times of different weights; what may be read at any time does not."
        )
    total = sum(arm.weight for arm in found.arms)
    if not changed and abs(total - 1) > 1e-6:
        notes.append(
            f"The arms' weights sum to {total:g}: other users see no experiment, or an arm has "
            "shown nothing."
        )
    mixed = [name for name, places in users.builds.items() if len(places) > 1]
    if mixed:
        notes.append(
            f"Several builds or rankings answered in {', '.join(mixed)}: offline metrics are those "
            "of the one with most impressions."
        )
    lacking = [name for name in metrics if not metrics[name]]
    if lacking:
        notes.append(
            f"No evaluation of the build and ranking of {', '.join(lacking)}: `raysys evaluate` "
            "while that build is current brings the offline metrics."
        )
    return notes
