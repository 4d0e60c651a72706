"""Refresh: new logs are appended, a model is retrained, and published unless it is worse.

    raysys refresh run=R source=NEW

    new logs, events --append--> rows --split--> profiles -----refit=val--> candidate
    served model and candidate --newest window--> gate --refused, waiting--> ledger
                                                   |
                                   publish: refit=all, index, current, ledger

All work before the decision is set aside in `<run>/refresh/work`: nothing that is current moves. A
decision stands in the ledger (`reports/refreshes.py`) before builds become current, so that the
next refresh completes what a killed one began. One refresh of a run works at a time.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from raysys.autoencoder.files import AutoencoderFacts
from raysys.autoencoder.task import VALIDATED_USERS
from raysys.cluster.connect import connected
from raysys.cluster.train_workers import LaunchConfig
from raysys.commands import refresh_gate as gate
from raysys.commands import refresh_logs
from raysys.commands.refresh_logs import NewLogs
from raysys.commands.refresh_models import Model, current
from raysys.commands.refresh_verbs import carry_out, complete
from raysys.config import JobConfig, local, require_run
from raysys.data.cells import AHEAD_S
from raysys.data.interactions import InteractionsFacts
from raysys.data.profiles import Profiles, ProfilesFacts
from raysys.errors import ConfigError
from raysys.log.sources import list_files
from raysys.reports import newest, refreshes
from raysys.reports.refreshes import NOTHING_NEW, PUBLISHED, WAITING, Decision
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.collect import Collector, Policy
from raysys.store.current import aside
from raysys.store.erasures import models_with_erased
from raysys.store.inventory import WORK, Inventory
from raysys.store.leases import REFRESH, Lease, leased
from raysys.training.history import timed

log = logging.getLogger(__name__)


@dataclasses.dataclass
class RefreshConfig(JobConfig):
    """What a refresh takes.

    Attributes:
        source: new logs, a file, directory, glob or URI; files that were taken before are left out.
        events: take what services of the run wrote down, too.
        items: file of items, with new ones; null: titles and attributes stay.
        retry: take files again that an earlier refresh set aside.
        accept: guards that may fail this once, by their `key` in the ledger, such as `items`.
        dry_run: say what would be done; nothing is read but names, and nothing is decided.
        launch: Ray Train workers of the trainings.
    """

    source: str | None = local(None)
    events: bool = local(True)
    items: str | None = local(None)
    retry: bool = local(False)
    accept: list[str] = local(factory=list)
    dry_run: bool = local(False)
    launch: LaunchConfig = local(factory=LaunchConfig)


def refresh(cfg: RefreshConfig) -> StageResult:
    """Take the new logs, retrain, and publish what is not worse.

    Returns:
        `extra["decision"]` is `published`, `refused`, `waiting`, `nothing new` or, of a dry run,
        `none`; `metrics` are the differences, candidate minus served.

    Raises:
        BuildError: the run serves nothing yet, or others changed it meanwhile.
        DataError, ConfigError: a log cannot be read, or the run is not split in time.
    """
    require_run(cfg)
    unknown = [key for key in cfg.accept if key not in gate.KEYS]
    if unknown:
        raise ConfigError(f"accept={unknown[0]} is no guard: accepted are {', '.join(gate.KEYS)}")
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    Model.open(workspace)
    if cfg.source is not None:
        list_files(cfg.source, any_ending=True)
    if cfg.dry_run:
        return _told(cfg, workspace)
    with leased(workspace.storage, REFRESH) as lease:
        complete(workspace, lease)
        if cfg.events and workspace.storage.files("journal"):
            refresh_logs.fold(cfg)
        old = stale(workspace)
        retrained = _Refresh(cfg, workspace, lease).without_erased(old) if old else None
        result = _Refresh(cfg, workspace, lease).run()
    return retrained if retrained and result.extra["decision"] == NOTHING_NEW else result


def stale(workspace: Workspace) -> list[str]:
    """Return the places of current builds that learned from users who were erased since."""
    served = {f"{kind}/{build_id}" for kind, build_id in current(workspace).items()}
    return [place for place in models_with_erased(workspace.storage) if place in served]


def collect(workspace: Workspace, decisions: Sequence[Decision]) -> None:
    """Remove what earlier refreshes published, but for the last three and what they replaced.

    What is current, pinned, or in use stays, and so does what no refresh made; `raysys gc` has
    the rest.
    """
    stays = refreshes.kept(decisions)
    made = {pair for decision in decisions for pair in decision.after.items()} - stays
    if not made:
        return
    collector = Collector(workspace.storage, Policy(keep=0, older_s=0.0))
    with leased(workspace.storage, "gc"):
        for waste in collector.found(Inventory(workspace.storage)):
            kind, _, build_id = waste.place.partition("/")
            if waste.what == "build" and (kind, build_id) in made and collector.remove(waste):
                log.info("removed build=%s reason=newer ones were published", waste.place)


class _Refresh:
    """One refresh, under its lease."""

    def __init__(self, cfg: RefreshConfig, workspace: Workspace, lease: Lease) -> None:
        self._cfg, self._workspace, self._lease = cfg, workspace, lease
        self._decisions = refreshes.read(workspace.storage)
        self._model = Model.open(workspace)
        self._before = current(workspace)
        self._candidate: Build | None = None
        self._begin: Build | None = None  # where its gradient steps begin
        self._seconds: dict[str, float] = {}

    def run(self) -> StageResult:
        """Take what is new, judge it, and publish unless it is worse."""
        cfg = self._cfg
        asked: dict[str, Any] = {"source": cfg.source, "events": cfg.events, "retry": cfg.retry}
        new = refresh_logs.find(self._workspace, self._decisions, **asked)
        if new.aside:
            log.warning(
                "files set aside by earlier refreshes n=%d: retry=true takes them", new.aside
            )
        if not new or self._waits(new):
            return self._nothing_new(new)
        with connected(cfg.ray), _work(cfg, self._workspace) as place:
            return self._refreshed(place, new)

    def without_erased(self, models: Sequence[str]) -> StageResult:
        """Publish a model of the current profiles, which hold these users no more."""
        cfg = self._cfg
        work, publishing = _work(cfg, self._workspace), timed(self._seconds, "publish")
        with connected(cfg.ray), work as place, publishing:
            after = self._model.replacement(cfg, place, cfg.launch)
        reason = "what was served had learned from users who were erased"
        return self._closed(self._decision(PUBLISHED, reason, after=after, retrained=models))

    # -- internals -------------------------------------------------------------------------

    def _refreshed(self, place: Workspace, new: NewLogs) -> StageResult:
        spans: list[gate.Span] = []

        def cuts(interactions: Build) -> tuple[float, float]:
            spans.append(self._span(interactions))
            if spans[-1].is_empty:  # whatever is decided, it is not by these profiles
                before = ProfilesFacts.of(self._workspace.current("profiles")).cutoffs or {}
                return float(before["val"]), float(before["test"])
            first, _ = InteractionsFacts.of(interactions).time_range or (0, 0)
            start, cut = spans[-1].start, spans[-1].cut
            usual = bool(gate.usual_skill(self._decisions))
            if usual:
                users = refresh_logs.users_between(interactions, start, cut)
                if users >= VALIDATED_USERS:  # enough to choose by, and the served model saw none
                    return float(start), float(cut)
            length = self._model.validation_s
            begins = gate.validation_begins(spans[-1], first=first, length=length, usual=usual)
            return float(begins), float(cut)

        with timed(self._seconds, "append"):
            rows = refresh_logs.append(self._cfg, place, new, items=self._cfg.items, cuts=cuts)
        taken: dict[str, Any] = {
            "source": new.source,
            "logs": sorted(new.files.values()),
            "events": sorted(new.events.values()),
            "log_settings": new.settings,
            "rows": rows,
        }
        if rows["new"] <= 0:
            reason = "the log held all these rows before"
            return self._closed(self._decision(NOTHING_NEW, reason, **taken))
        span = spans[-1]
        verdict = self._judged(place, span, rows["new"])
        after = current(place)
        if verdict.decision == PUBLISHED:
            with timed(self._seconds, "publish"):
                made = {"candidate": self._candidate, "begin": self._begin}
                after = self._model.replacement(self._cfg, place, self._cfg.launch, **made)
            before = refreshes.taken_back(self._decisions, after["index"])
            if before is not None:
                again = f"the builds of refresh {before}, which was rolled back, once more"
                verdict = dataclasses.replace(verdict, reason=f"{verdict.reason}; {again}")
        decision = self._decision(
            verdict.decision,
            verdict.reason,
            **taken,
            window=dataclasses.asdict(span),
            metrics=verdict.metrics,
            guards=verdict.guards,
            accepted=tuple(self._cfg.accept),
            by=refreshes.who() if self._cfg.accept else "",
            skill=verdict.skill,
            after=after,
        )
        return self._closed(decision)

    def _span(self, interactions: Build) -> gate.Span:
        """Return where the rows lie that neither the log before nor the served model knew."""
        base = InteractionsFacts.of(self._workspace.current("interactions"))
        latest = time.time() + AHEAD_S  # what is later is a mistake
        _, last = base.time_range or (0, -1)
        start = max(self._model.fitted_until, last + 1 if last <= latest else 0)
        fresh = refresh_logs.times_since(interactions, start)
        n_fresh = len(fresh)
        fresh = fresh[fresh <= latest]
        end = int(fresh.max(initial=start)) + 1
        cut = int(np.ceil(np.median(fresh))) if len(fresh) else start
        return gate.Span(start, cut if start < cut < end else start, end, n_fresh)

    def _judged(self, place: Workspace, span: gate.Span, n_new: int) -> gate.Verdict:
        accept, profiles = self._cfg.accept, place.current("profiles")
        opened = Profiles.open(profiles)
        if span.is_empty:
            return gate.Verdict(WAITING, "no new row is later than the rows before")
        n_known = ProfilesFacts.of(self._workspace.current("profiles")).n_items
        late = max(1 - span.n_rows / n_new, 0.0)
        rows = gate.guards_of_rows(opened, span, n_known=n_known, late=late, now=time.time())
        refused = gate.refused_by(rows, accept)
        if refused is not None:
            return refused
        model, launch = self._model, self._cfg.launch
        with timed(self._seconds, "train"):
            known = stale(self._workspace)  # users who were erased meanwhile
            self._begin = None if known else model.begin(profiles)
            asked: dict[str, Any] = {"refit": "val", "begin": self._begin}
            self._candidate = candidate = model.candidate(self._cfg, place, launch, **asked)
        usual = gate.usual_skill(self._decisions)
        cases = _cases(model.autoencoder, candidate, span)
        if not usual:
            with timed(self._seconds, "usual"):
                earlier = model.candidate(self._cfg, place, launch, refit="none")
            cases += _usual(earlier, opened, span)
        metrics = (model.select, *(["nll"] if model.rated else []))
        with timed(self._seconds, "judge"):
            tables = newest.users_of(
                newest.Cases(
                    run=self._cfg.run,
                    cache_dir=self._cfg.cache_dir,
                    profiles=profiles.build_id,
                    n_items=AutoencoderFacts.of(candidate).n_items,
                    metrics=(*metrics, *gate.SKILLS),
                    cases=cases,
                ),
                self._cfg.ray,
            )
            seed = model.autoencoder.manifest.config["seed"]
            verdict = gate.judged(tables, metrics=metrics, usual=usual, seed=seed, accept=accept)
        return dataclasses.replace(verdict, guards=[*rows, *verdict.guards])

    def _waits(self, new: NewLogs) -> bool:
        """Tell whether just these files were found too few, and nothing has changed."""
        last = self._decisions[-1] if self._decisions else None
        return (
            last is not None
            and last.decision == WAITING
            and list(last.logs) == sorted(new.files.values())
            and list(last.events) == sorted(new.events.values())
            and last.before == self._before
        )

    def _nothing_new(self, new: NewLogs) -> StageResult:
        waiting = bool(new) and self._waits(new)
        log.info("refresh decision=%s", NOTHING_NEW)
        return StageResult(
            build_ids=self._before,
            extra={"decision": NOTHING_NEW, "set_aside": new.aside, "waiting": waiting},
        )

    def _decision(self, decision: str, reason: str, **found: Any) -> Decision:
        last = self._decisions[-1].number if self._decisions else 0
        return Decision(
            number=last + 1,
            at=refreshes.now(),
            decision=decision,
            reason=reason,
            before=self._before,
            seconds={name: round(value, 3) for name, value in self._seconds.items()},
            **found,
        )

    def _closed(self, decision: Decision) -> StageResult:
        """Write the decision down and carry it out."""
        workspace = self._workspace
        if decision.decision == PUBLISHED:
            carry_out(workspace, self._lease, decision)
        else:
            self._lease.confirm()
            decision.write(workspace.storage)
        self._decisions.append(decision)
        log.info(
            "refresh decision=%s number=%d reason=%s",
            *(decision.decision, decision.number, decision.reason),
        )
        if decision.decision == PUBLISHED:
            collect(workspace, self._decisions)
        return StageResult(
            build_ids=current(workspace),
            metrics={
                name: {"mean": m["difference"], "ci_low": m["ci_low"], "ci_high": m["ci_high"]}
                for name, m in decision.metrics.items()
            },
            extra={
                "decision": decision.decision,
                "reason": decision.reason,
                "number": decision.number,
                "rows": decision.rows,
                "guards": [each for each in decision.guards if not each["passed"]],
                "stage_seconds": decision.seconds,
            },
        )


def _cases(served: Build, candidate: Build, span: gate.Span) -> tuple[newest.Case, ...]:
    """Return the cases of the gate; see `gate.judged`."""
    last, early = (span.cut, span.end), (span.start, span.cut)
    cases = [
        newest.Case(gate.SERVED, served.build_id, *last),
        newest.Case(gate.CANDIDATE, candidate.build_id, *last),
        newest.Case(gate.BLIND, served.build_id, *last, blind=True),
    ]
    if span.cut > span.start:
        cases += [
            newest.Case(gate.EARLY, served.build_id, *early),
            newest.Case(gate.EARLY_BLIND, served.build_id, *early, blind=True),
        ]
    return tuple(cases)


def _usual(earlier: Build, profiles: Profiles, span: gate.Span) -> tuple[newest.Case, ...]:
    """Return cases of a model on what followed its own rows, as far ahead as the newest window."""
    cut = (profiles.facts.cutoffs or {})["val"]
    window = cut, min(cut + span.end - span.cut, span.start)
    return (
        newest.Case(gate.USUAL, earlier.build_id, *window),
        newest.Case(gate.USUAL_BLIND, earlier.build_id, *window, blind=True),
    )


@contextmanager
def _work(cfg: RefreshConfig, workspace: Workspace) -> Iterator[Workspace]:
    """Give the run as it is seen from the place of the work, which begins with what is current."""
    workspace.storage.delete(WORK)
    with aside(WORK):
        yield Workspace(cfg.run, cache_dir=cfg.cache_dir)
    workspace.storage.delete(WORK)
    workspace.storage.prune(WORK)


def _told(cfg: RefreshConfig, workspace: Workspace) -> StageResult:
    """Say what a refresh would take and do."""
    asked: dict[str, Any] = {"source": cfg.source, "events": cfg.events, "retry": cfg.retry}
    new = refresh_logs.find(workspace, refreshes.read(workspace.storage), **asked)
    old = stale(workspace)
    steps = ["retrain without erased users"] if old else []
    if new:
        steps += ["append", "train", "judge on the newest window", "publish unless worse"]
    return StageResult(
        build_ids=current(workspace),
        extra={
            "decision": "none",
            "would": steps or [NOTHING_NEW],
            "files": sorted(new.files),
            "events": sorted(new.events.values()),
            "segments_to_fold": len(workspace.storage.files("journal")) if cfg.events else 0,
            "set_aside": new.aside,
            "retrain": old,
        },
    )
