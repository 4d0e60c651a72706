"""What the run's evaluations say of the model that is served."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from raysys.errors import RaysysError, told
from raysys.evaluation.headlines import HEADLINES
from raysys.http.service import Service
from raysys.http.wire import Evaluation, EvaluationAnswer
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

PERIODS = ("test", "val")  # what says most of a service first
VIA = {"index": ("codes", "index"), "model": (), "codes": ("codes",)}  # builds beside the model


def add_evaluation(app: FastAPI, service: Service, run: Workspace | None) -> None:
    """Add the route; without a run it knows of no evaluation."""

    @app.get("/v1/evaluation")
    async def evaluation() -> EvaluationAnswer:
        """Return headline metrics of what is served, where it was evaluated."""
        search = service.current()
        metrics = None
        if run is not None:
            metrics = await run_in_threadpool(evaluation_of, run, search.build_ids)
        return EvaluationAnswer(build_id=search.build_id, evaluation=metrics)


def evaluation_of(run: Workspace, served: dict[str, str]) -> Evaluation | None:
    """Return the evaluations of builds; None: there is none, or it is of others.

    The test window comes before validation. The reports on the index (what users get), the model
    and its codes are put together where they are of the same users.

    Args:
        run: whose reports are read.
        served: {kind: build_id}.
    """
    for period in PERIODS:
        reports = [_read(run, f"evaluate-{period}-{via}", served) for via in VIA]
        known = [report for report in reports if report is not None]
        alike = [report for report in known if _users(report) == _users(known[0])]
        if alike:
            names = [name for report in alike for name in report.reports]
            methods = {name: own for report in alike for name, own in report.methods.items()}
            return alike[0].model_copy(update={"reports": names, "methods": methods})
    return None


def _read(run: Workspace, name: str, served: dict[str, str]) -> Evaluation | None:
    """Return the headline metrics of a report that is of what is served."""
    try:
        report = run.storage.read_json(f"reports/{name}.json")
        if report is None or not _is_of(report, served):
            return None
        return Evaluation.model_validate(
            {
                "reports": [name],
                "users": report["evaluated"]["rows"],
                "methods": {
                    method: _headlines(entry["metrics"])
                    for method, entry in report["methods"].items()
                },
                **{key: report[key] for key in ("period", "cutoffs", "split", "protocol")},
            }
        )
    except (RaysysError, ValidationError, LookupError, TypeError, AttributeError) as error:
        log.warning("evaluation is not readable report=%s: %s", name, told(error))
        return None


def _is_of(report: dict[str, Any], served: dict[str, str]) -> bool:
    kinds = ("autoencoder", *VIA[report["via"]])
    return all(report["build_ids"][kind] == served.get(kind) for kind in kinds)


def _headlines(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in HEADLINES if name in metrics}


def _users(report: Evaluation) -> tuple[object, ...]:
    return report.users, report.cutoffs, report.split, report.protocol
