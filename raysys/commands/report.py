"""Report: one page of what a run holds, `<run>/reports/run.html`, and its figures as JSON.

    raysys report run=R

Joins the data, the evaluation, codes and index, the training, sweeps and backtests that are there.
What is missing is named with the command that makes it; what is damaged is named too. Pages of
reports that were made before there were pages are made on the way.
"""

from __future__ import annotations

import dataclasses
import json
import logging

from raysys.config import JobConfig, require_run
from raysys.reports.html import backtest, comparison, evaluation, pages, run, sources, sweep
from raysys.reports.html.content import Page
from raysys.store.builds import StageResult, Workspace
from raysys.store.storage import join

log = logging.getLogger(__name__)

NAME = "reports/run"


@dataclasses.dataclass
class ReportConfig(JobConfig):
    """A page takes nothing but the run."""


def report(cfg: ReportConfig) -> StageResult:
    """Write the page of a run.

    Returns:
        `extra["page"]` is the page's path or URI; `extra["report"]` that of its figures.

    Raises:
        BuildError: there is no such run.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    page = write_page(workspace)
    return StageResult(extra={"page": page, "report": join(cfg.run, f"{NAME}.json")})


def write_page(workspace: Workspace) -> str:
    """Write the page of a run and its figures; return the page's path or URI."""
    _write_missing(workspace)
    record = sources.gather(workspace)
    workspace.storage.write_atomic(f"{NAME}.json", json.dumps(record, indent=1) + "\n")
    return pages.publish(workspace, f"{NAME}.html", run.page_of(record, run=workspace.run))


def _write_missing(workspace: Workspace) -> None:
    """Write the pages of reports that lack theirs."""
    storage, name = workspace.storage, pages.name_of_run(workspace.run)
    files = storage.files("reports")
    for stem in [n.removesuffix(".json") for n in files if n.endswith(".json") and "/" not in n]:
        if f"{stem}.html" in files:
            continue
        try:
            record = storage.read_json(f"reports/{stem}.json") or {}
            page: Page | None = None
            if stem.startswith("evaluate-"):
                page = evaluation.page_of(record, run=name, name=stem)
            elif stem.startswith("backtest-"):
                page = backtest.page_of(record, run=name)
            elif stem.startswith("compare-"):
                page = comparison.page_of(record)
            if page is not None:
                pages.publish(workspace, f"reports/{stem}.html", page)
        except pages.UNREADABLE as error:
            log.warning("a report has no page: it cannot be read name=%s error=%s", stem, error)
    sweeps = storage.files("sweeps")
    for place in [n.removesuffix("/sweep.json") for n in sweeps if n.endswith("/sweep.json")]:
        if f"{place}/report.html" not in sweeps:
            try:
                sweep.publish(workspace, place)
            except pages.UNREADABLE as error:
                log.warning("a sweep has no page: it cannot be read id=%s error=%s", place, error)
