"""The ledger of refreshes: one JSON a decision, `<run>/refresh/ledger/000007.json`.

A decision is written in one step, and nothing of it is ever deleted: it says which logs were taken
or set aside, which builds were served before and after, and why. One that publishes is written
before the builds become current (`state` is `publishing`) and again after (`done`), so that the
next refresh completes what a killed one began. Where it cannot, because builds are gone (`failed`)
or others moved what is current meanwhile (`abandoned`), the decision does not stand: its logs are
as free as those that wait.
"""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from raysys.errors import CorruptBuildError
from raysys.store.storage import Storage

LEDGER = "refresh/ledger"
PUBLISHED, REFUSED, WAITING, ROLLED_BACK = "published", "refused", "waiting", "rolled back"
NOTHING_NEW = "nothing new"
PUBLISHING, DONE, FAILED, ABANDONED = "publishing", "done", "failed", "abandoned"

Builds = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Decision:
    """One entry.

    Attributes:
        number: 1, 2, ... in order of time.
        at: when it was made, ISO 8601 in UTC.
        decision: `published`, `refused` (its logs are set aside), `waiting` (they are judged again
            with the next ones), `rolled back` or `nothing new` (the log held all its rows before).
        reason: in a sentence.
        state: `publishing` while builds become current, `failed` or `abandoned` where they did not,
            else `done`.
        source: of the new logs; None: events alone, or none.
        logs: fingerprints of their files.
        events: names of the folded files of events.
        log_settings: `columns` and `format` that the logs were read with.
        rows: `before`, `after`, `new`, `quarantined` and `repeated` rows.
        window: `start` of what is new, `cut` and `end` of the newest window, UTC seconds; `n_rows`.
        metrics: {metric: {"served", "candidate", "difference", "ci_low", "ci_high"}}.
        guards: what was looked at before, each with `key`, `name`, `value`, `limit` and `passed`.
        accepted: keys of guards that were asked to be let through, and `by` whom: user and host.
        skill: {metric: what the served model is good for on the newest window}, see `newest`.
        before, after: {kind: build_id} that were current, and that are or would have been.
        retrained: places of the models that it replaced because they knew users erased since.
        seconds: {stage: seconds}.
    """

    number: int
    at: str
    decision: str
    reason: str
    state: str = DONE
    source: str | None = None
    logs: Sequence[str] = ()
    events: Sequence[str] = ()
    log_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    window: Mapping[str, int] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    guards: Sequence[Mapping[str, Any]] = ()
    accepted: Sequence[str] = ()
    by: str = ""
    skill: Mapping[str, float] = dataclasses.field(default_factory=dict)
    before: Builds = dataclasses.field(default_factory=dict)
    after: Builds = dataclasses.field(default_factory=dict)
    retrained: Sequence[str] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def marks(self) -> list[str]:
        """What tells the files that it took from others."""
        return [*self.logs, *self.events]

    @property
    def stands(self) -> bool:
        """Whether it is carried out, as far as it has anything to do."""
        return self.state not in (FAILED, ABANDONED)

    def write(self, storage: Storage) -> None:
        """Write it in one step."""
        content = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        storage.write_atomic(f"{LEDGER}/{self.number:06d}.json", content + "\n")


def now() -> str:
    """Return the time as decisions have it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def who() -> str:
    """Return who asks, as decisions have it: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def read(storage: Storage) -> list[Decision]:
    """Return all decisions of a run, oldest first.

    Raises:
        CorruptBuildError: one is damaged; the message names it.
    """
    names = [n for n in storage.files(LEDGER) if n.endswith(".json") and not n.startswith(".")]
    decisions = []
    for name in sorted(names):
        record = storage.read_json(f"{LEDGER}/{name}")
        try:
            decisions.append(Decision(**(record or {})))
        except TypeError as error:
            raise CorruptBuildError(
                f"{storage.url(LEDGER)}/{name} is no decision: {error}"
            ) from None
    return decisions


def held(decisions: Sequence[Decision], interactions: str) -> list[Decision]:
    """Return the decisions whose logs an interactions build holds, the newest first.

    One that trained again without erased users took none. One that does not stand may have got as
    far as the interactions.

    Args:
        decisions: of the ledger.
        interactions: its build_id.
    """
    by_build = {
        decision.after["interactions"]: decision
        for decision in decisions
        if decision.decision == PUBLISHED and decision.marks
    }
    found: list[Decision] = []
    while interactions in by_build and by_build[interactions] not in found:
        found.append(by_build[interactions])
        interactions = found[-1].before.get("interactions", "")
    return found


def published(decisions: Sequence[Decision]) -> list[Decision]:
    """Return the decisions that published, oldest first."""
    return [each for each in decisions if each.decision == PUBLISHED and each.stands]


def newest(decisions: Sequence[Decision], present: Mapping[str, str]) -> Decision | None:
    """Return the newest refresh of which is what is current; None: of none.

    Args:
        decisions: of the ledger.
        present: {kind: build_id}. Where another index was built by hand, the log tells.
    """
    names = ("interactions", "index")
    for decision in reversed(published(decisions)):
        if all(decision.after.get(name) == present.get(name) for name in names):
            return decision
    inside = [each for each in held(decisions, present.get("interactions", "")) if each.stands]
    return inside[0] if inside else None


def kept(decisions: Sequence[Decision], *, n: int = 3) -> set[tuple[str, str]]:
    """Return (kind, build_id) of the last `n` published refreshes and of what they replaced."""
    builds = [
        part for decision in published(decisions)[-n:] for part in (decision.before, decision.after)
    ]
    return {pair for part in builds for pair in part.items()}


def taken_back(decisions: Sequence[Decision], index: str) -> int | None:
    """Return the number of the refresh that published an index and was rolled back, if any."""
    gone = {d.before.get("index") for d in decisions if d.decision == ROLLED_BACK and d.stands}
    numbers = [d.number for d in published(decisions) if d.after.get("index") == index]
    return numbers[-1] if numbers and index in gone else None
