"""Routes for those who run the service: its health, its measures, and what it serves."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from raysys.errors import RaysysError, told
from raysys.http.follow import Following
from raysys.http.limits import RefusedError
from raysys.http.metrics import CONTENT_TYPE, together
from raysys.http.service import Service
from raysys.http.wire import (
    ArmState,
    ErrorBody,
    ExperimentState,
    Health,
    Replica,
    Replicas,
    RollbackRequest,
    Status,
)
from raysys.search.served import roll_back
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": ErrorBody}}

Order = Literal["state", "look", "metrics"]
Everyone = Callable[[Order], Awaitable[list[Any]]]


class Control:
    """What one replica does when all of them are told to.

    Args:
        service: of the replica.
        following: its way to newer builds; None: it serves one index for good.
    """

    def __init__(self, service: Service, following: Following | None) -> None:
        self._service, self._following = service, following

    def obey(self, order: Order) -> Any:
        """Carry out an order.

        Returns:
            What the replica serves, as JSON values (`state`; `look`, after a look at the run), or
            [its name, its measures] (`metrics`).
        """
        service = self._service
        if order == "metrics":
            return [service.name, service.metrics.text()]
        if order == "look" and self._following is not None:
            self._following.look(anew=True)
        state = self._following.state() if self._following is not None else None
        replica = Replica(
            replica=service.name,
            build_ids=service.current().build_ids,
            uptime_s=service.uptime_s,
            following=state,
        )
        return replica.model_dump()


def add_admin(
    app: FastAPI, service: Service, everyone: Everyone, workspace: Workspace | None
) -> None:
    """Add the routes.

    Args:
        app: that they are added to.
        service: the replica that is asked.
        everyone: has an order carried out by every replica.
        workspace: the run that is followed; None: one index is served for good.
    """

    async def every(order: Order) -> Replicas:
        answers = await everyone(order)
        given = [answer for answer in answers if not isinstance(answer, BaseException)]
        return Replicas(replicas=given, unanswered=len(answers) - len(given))

    @app.get("/livez")
    @app.get("/v1/health")
    async def health() -> Health:
        """Tell that the service is up."""
        return Health(build_id=service.current().build_id)

    @app.get("/readyz")
    async def ready() -> Health:
        """Tell that what is served was verified, asked canary queries, and answers."""
        return Health(build_id=service.current().build_id)

    for path in ("/livez", "/readyz", "/v1/health"):  # some load balancers ask so
        app.add_route(path, _up, methods=["HEAD"], include_in_schema=False)

    @app.get("/v1/status")
    async def status() -> Status:
        """Say what is served and how much was asked of this replica."""
        search = service.current()
        return Status(
            build_ids=search.build_ids,
            facts=search.facts,
            rankings=list(search.rankings),
            n_items=search.n_items,
            n_users=search.n_users,
            uptime_s=service.uptime_s,
            counts=service.counts.snapshot(),
            following=service.following() if service.following is not None else None,
            experiment=_experiment(service),
        )

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return the measures of every replica, as Prometheus reads them."""
        answers = await everyone("metrics")
        texts = dict(answer for answer in answers if not isinstance(answer, BaseException))
        return Response(together(texts), media_type=CONTENT_TYPE)

    @app.get("/v1/admin/replicas")
    async def replicas() -> Replicas:
        """Say what every replica serves."""
        return await every("state")

    @app.post("/v1/admin/reload", responses=_CONFLICT)
    async def reload() -> Replicas:
        """Let every replica look for newer builds now, also for those that it refused before."""
        _require_following(workspace)
        return await every("look")

    @app.post("/v1/admin/rollback", responses=_CONFLICT)
    async def rollback(body: RollbackRequest | None = None) -> Replicas:
        """Serve what was current before, and let every replica take it now."""
        run, asked = _require_following(workspace), body or RollbackRequest.model_validate({})
        try:
            served = await run_in_threadpool(
                roll_back, run, build_id=asked.build_id, kind=asked.kind
            )
        except RaysysError as error:
            raise RefusedError(409, "no_rollback", told(error)) from error
        log.warning("service rolled back builds=%s", served.build_ids)
        return await every("look")


def _experiment(service: Service) -> ExperimentState | None:
    experiment = service.options.experiment
    if experiment is None:
        return None
    arms = [
        ArmState(arm=arm.name, share=arm.share, build_id=(arm.search or service.current)().build_id)
        for arm in experiment.arms
    ]
    return ExperimentState(experiment=experiment.name, arms=arms)


async def _up(_: Request) -> Response:
    return Response()


def _require_following(workspace: Workspace | None) -> Workspace:
    if workspace is None:
        raise RefusedError(409, "not_following", "this service serves one index for good")
    return workspace
