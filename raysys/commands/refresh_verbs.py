"""What is said and done about refreshes that were decided.

Examples:
    raysys refresh status run=R
    raysys refresh rollback run=R      all that the last published refresh replaced comes back
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from raysys.commands.refresh_models import KINDS, current
from raysys.config import JobConfig, require_run
from raysys.errors import BuildError
from raysys.reports import refreshes
from raysys.reports.refreshes import (
    ABANDONED,
    DONE,
    FAILED,
    PUBLISHED,
    PUBLISHING,
    ROLLED_BACK,
    Decision,
)
from raysys.reports.tables import aligned
from raysys.search.changes import EDIT
from raysys.search.served import Served
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.leases import APPEND, REFRESH, Lease, holder, leased

log = logging.getLogger(__name__)


@dataclasses.dataclass
class RefreshesConfig(JobConfig):
    """Which run."""


def status(cfg: RefreshesConfig) -> str:
    """Return the decisions of a run as a table, the newest last, and who works.

    Raises:
        BuildError: there is no such run, or its ledger is damaged.
    """
    workspace = _workspace(cfg)
    decisions = refreshes.read(workspace.storage)
    owner = holder(workspace.storage, REFRESH)
    working = [f"a refresh works: {owner.name}"] if owner is not None else []
    if not decisions:
        return "\n".join([*working, "no refresh was decided yet"]) + "\n"
    served = workspace.current("index").build_id if workspace.has("index") else ""
    rows = [["refresh", "at", "decision", "new rows", "metric", "served", "candidate", "reason"]]
    for decision in decisions:
        name, pair = next(iter(decision.metrics.items()), ("", {}))
        is_current = decision.decision == PUBLISHED and decision.after.get("index") == served
        note = ", current" if is_current and decision.stands else ""
        note = note if decision.state == DONE else f", {decision.state}"
        rows.append(
            [
                str(decision.number),
                decision.at,
                f"{decision.decision}{note}",
                str(decision.rows.get("new", "")),
                name,
                *(f"{pair[side]:.4f}" if pair else "" for side in ("served", "candidate")),
                decision.reason,
            ]
        )
    return "\n".join([*aligned(rows, left=(0, 1, 2, 4, 7)), *working]) + "\n"


def rollback(cfg: RefreshesConfig) -> StageResult:
    """Make all builds current again that the newest published refresh replaced.

    Its logs count as set aside from then on.

    Raises:
        BuildError: what is current is of no refresh, or what was before is gone or damaged.
    """
    workspace = _workspace(cfg)
    with leased(workspace.storage, REFRESH) as lease:
        complete(workspace, lease)
        decisions = refreshes.read(workspace.storage)
        present = current(workspace)
        last = refreshes.newest(decisions, present)
        if last is None:
            raise BuildError(
                f"what is current in {cfg.run} is of no refresh: raysys serve rollback run=... "
                "goes back to the index of before"
            )
        Served.open(workspace, build_id=last.before["index"])  # verified
        decision = Decision(
            number=decisions[-1].number + 1,
            at=refreshes.now(),
            decision=ROLLED_BACK,
            reason=f"refresh {last.number} was taken back by hand",
            before=present,
            after=last.before,
        )
        carry_out(workspace, lease, decision)
    log.warning("refresh rolled back number=%d builds=%s", last.number, last.before)
    return StageResult(
        build_ids=current(workspace),
        extra={"decision": ROLLED_BACK, "number": decision.number, "reason": decision.reason},
    )


def carry_out(workspace: Workspace, lease: Lease, decision: Decision) -> None:
    """Write a decision down, and make its builds current if what is current is as it was before.

    Raises:
        BuildError: a build is gone or damaged, or others changed what is current; nothing moved.
    """
    builds = _builds(workspace, decision)
    with workspace.held(APPEND), workspace.held(EDIT):
        if current(workspace) != decision.before:
            raise BuildError(
                f"other jobs changed what is current in {workspace.run} meanwhile: run refresh "
                "again, it goes on from what is there"
            )
        lease.confirm()
        dataclasses.replace(decision, state=PUBLISHING).write(workspace.storage)
        _make_current(workspace, lease, decision, builds)
    lease.confirm()
    dataclasses.replace(decision, state=DONE).write(workspace.storage)


def complete(workspace: Workspace, lease: Lease) -> None:
    """Let builds become current that a killed job was about to make so, if that still can be.

    It cannot where one of them is gone, nor where what is current is by now neither what was so
    before nor what was to be: someone went on by hand.
    """
    for decision in refreshes.read(workspace.storage):
        if decision.state != PUBLISHING:
            continue
        with workspace.held(APPEND), workspace.held(EDIT):
            state = _completed(workspace, lease, decision)
        dataclasses.replace(decision, state=state).write(workspace.storage)


def _completed(workspace: Workspace, lease: Lease, decision: Decision) -> str:
    """Complete a decision; return its state."""
    present = current(workspace)
    for kind, build_id in decision.after.items():
        if present.get(kind) not in (decision.before.get(kind), build_id):
            log.warning(
                "refresh abandoned number=%d: its job was killed, and %s %s was made current since",
                *(decision.number, kind, present.get(kind)),
            )
            return ABANDONED
    try:
        builds = _builds(workspace, decision)
    except BuildError as error:
        log.warning(
            "refresh failed number=%d: its job was killed, and it cannot be completed: %s",
            *(decision.number, error),
        )
        return FAILED
    log.warning("refresh completed number=%d: its job was killed", decision.number)
    _make_current(workspace, lease, decision, builds)
    return DONE


def _builds(workspace: Workspace, decision: Decision) -> list[Build]:
    """Open what a decision makes current, what is served last; all of it, before any of it moves.

    Raises:
        BuildError: a build is gone or damaged.
    """
    builds = [workspace.open(k, decision.after[k]) for k in KINDS if k in decision.after]
    for build in builds:
        build.check()
    return builds


def _make_current(
    workspace: Workspace, lease: Lease, decision: Decision, builds: Sequence[Build]
) -> None:
    for build in builds:
        lease.confirm()
        if decision.decision == ROLLED_BACK:
            workspace.go_back(build)
        else:
            workspace.take(build)


def _workspace(cfg: JobConfig) -> Workspace:
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    if not workspace.storage.is_there():
        raise BuildError(f"run={cfg.run} is not there")
    return workspace
