"""The gate of a refresh: whether a candidate may be served.

    log so far ------------------|start|---- new rows ----|cut|--- newest window ---|end|
    served model ------ fitted --|
    candidate --------- fitted --------------------------|

Neither model saw the newest window, the later half of what is new. Both are judged on its users,
paired. Before that the new rows themselves are looked at: rows that are not what the log holds
else, and windows in which the served model is worth much less than usual (see `newest`), are
refused whatever the candidate does there, for both models may be equally lost in nonsense. What is
looked at are rows later than the log so far; rows that are older may be a few alone. Where a change
is meant, its guards are accepted by name.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.data.cells import AHEAD_S
from raysys.data.profiles import Profiles
from raysys.evaluation.comparison import Difference, compare_users
from raysys.evaluation.named_metrics import is_minimised
from raysys.reports.refreshes import PUBLISHED, REFUSED, ROLLED_BACK, WAITING, Decision

SERVED, CANDIDATE, BLIND = "served", "candidate", "served blind"
EARLY, EARLY_BLIND = "served early", "served early blind"
USUAL, USUAL_BLIND = "usual", "usual blind"
SKILLS = ("ndcg@100", "nll")  # metrics of deep lists and of ratings, which noise moves least
REPLICATES = 1000
LEAST_USERS = 30
_WIDEST = 0.1  # of the served model's metric: noise that may not hide a loss
_LEAST_SKILL = 0.5  # of the usual one
_MOST_UNKNOWN = 0.5  # of the new rows are of items that the log did not hold
_MOST_SHIFT = 0.25  # total variation between the levels of the new rows and those before
_MOST_LATE = 0.25  # of the new rows are older than the log so far: nothing else looks at them
_MOST_ROWS = 10.0  # times the rows of a day
_MOST_AHEAD = 1e-3  # of the new rows lie in the future
_SKILLS_KEPT = 5  # published refreshes whose median is usual

ROWS, LATE, ITEMS, LEVELS, FUTURE = "rows", "late", "items", "levels", "future"
SKILL, USUAL_SKILL = "skill", "usual_skill"
KEYS = (ROWS, LATE, ITEMS, LEVELS, FUTURE, SKILL, USUAL_SKILL)
"""What can be accepted."""

Guard = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Span:
    """Where the new rows lie, UTC seconds; see the module.

    Attributes:
        start, cut, end: of the windows.
        n_rows: from `start` on, those beyond `end` too, whose times are a mistake.
    """

    start: int
    cut: int
    end: int
    n_rows: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no new row is later than those before."""
        return self.end <= self.start + 1


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        decision: `published`, `refused` or `waiting`.
        reason: in a sentence.
        metrics, guards, skill: as in `Decision`.
    """

    decision: str
    reason: str
    metrics: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    guards: Sequence[Guard] = ()
    skill: Mapping[str, float] = dataclasses.field(default_factory=dict)


def guard(key: str, name: str, value: float, limit: float, *, least: bool = False) -> Guard:
    """Return what was found beside its limit, which is the most, or the least."""
    value, limit = float(value), float(limit)
    passed = value >= limit if least else value <= limit
    found = {"value": round(value, 5), "limit": round(limit, 5), "passed": passed}
    return {"key": key, "name": name, **found}


def guards_of_rows(
    profiles: Profiles, span: Span, *, n_known: int, late: float, now: float
) -> list[Guard]:
    """Look at the new rows beside those of an equal time before them, and at the whole log.

    Args:
        profiles: with all rows.
        span: of the new rows.
        n_known: items that the log held before; later numbers are new.
        late: share of the rows added that are older than `span`.
        now: UTC seconds.
    """
    n_levels = profiles.levels.n_levels
    levels = np.zeros((2, n_levels))  # before, new
    unknown = ahead = 0
    first, earlier = span.start, 0
    for cells in profiles.iter_shards():
        fresh = cells.timestamp >= span.start
        before = ~fresh & (cells.timestamp >= 2 * span.start - span.end)
        for row, mask in enumerate((before, fresh)):
            levels[row] += np.bincount(cells.level[mask], minlength=n_levels)
        unknown += int((cells.item_num[fresh] >= n_known).sum())
        ahead += int((cells.timestamp > now + AHEAD_S).sum())
        earlier += int((~fresh).sum())
        first = min(first, int(cells.timestamp.min(initial=span.start)))
    n_before, n_new = levels.sum(axis=1)
    shares = levels / np.maximum(levels.sum(axis=1, keepdims=True), 1)
    shift = float(np.abs(shares[0] - shares[1]).sum() / 2) if n_before >= LEAST_USERS else 0.0
    usual = max(n_before, earlier * (span.end - span.start) / max(span.start - first, 1), 1.0)
    return [
        guard(LATE, "share of rows older than the log so far", late, _MOST_LATE),
        guard(ROWS, "rows of a day, times those before", float(n_new) / usual, _MOST_ROWS),
        guard(ITEMS, "share of unknown items", unknown / max(n_new, 1), _MOST_UNKNOWN),
        guard(LEVELS, "shift of the levels", shift, _MOST_SHIFT),
        guard(FUTURE, "share of times in the future", ahead / max(n_new, 1), _MOST_AHEAD),
    ]


def validation_begins(span: Span, *, first: int, length: int, usual: bool) -> int:
    """Return where validation begins, UTC seconds, but never in the first half of the log.

    Args:
        span: of the new rows.
        first: second of the log.
        length: of the served model's validation, seconds.
        usual: whether it is known which skill is usual; else a window as long as the newest one
            lies between validation's beginning and the new rows, to say so.
    """
    needed = length if usual else max(length, span.end - span.start)
    return max(span.cut - needed, (first + span.cut) // 2)


def usual_skill(decisions: Sequence[Decision]) -> dict[str, float]:
    """Return {metric: median skill of the last refreshes that published}, where there is any.

    Where another skill was accepted, what is usual begins anew after it. One that was rolled back
    says nothing.
    """
    kept: list[Decision] = []
    for decision in decisions:
        if decision.decision == ROLLED_BACK and decision.stands:
            gone = decision.before.get("index")
            kept = [each for each in kept if each.after.get("index") != gone]
        elif decision.decision == PUBLISHED and decision.stands:
            kept = [] if SKILL in decision.accepted else [*kept, decision]
    skills = [each.skill for each in kept if each.skill][-_SKILLS_KEPT:]
    names = sorted({name for skill in skills for name in skill})
    found = {name: statistics.median(s[name] for s in skills if name in s) for name in names}
    return {name: value for name, value in found.items() if value > 0}


def judged(
    tables: Mapping[str, pa.Table],
    *,
    metrics: Sequence[str],
    usual: Mapping[str, float],
    seed: int,
    accept: Collection[str] = (),
) -> Verdict:
    """Judge the users' sums of the cases.

    Args:
        tables: {case: users' sums}: `SERVED`, `CANDIDATE`, `BLIND` on the newest window, `EARLY`
            and `EARLY_BLIND` on the part of the new rows before it, where there is one; `USUAL`
            and `USUAL_BLIND` on an earlier window, where `usual` is empty.
        metrics: that decide, `nll` among them where levels are rated.
        usual: {metric: skill} of earlier refreshes.
        seed: of the bootstrap.
        accept: guards that may fail.
    """
    again: dict[str, Any] = {"seed": seed, "replicates": REPLICATES}
    if min(len(tables[SERVED]), len(tables[CANDIDATE])) < LEAST_USERS:
        few = len(tables[SERVED])
        return Verdict(WAITING, f"{few} users to judge by, {LEAST_USERS} are needed")
    pairs, _ = compare_users(tables[CANDIDATE], tables[SERVED], **again, metrics=metrics)
    again["metrics"] = SKILLS
    skills, _ = compare_users(tables[SERVED], tables[BLIND], **again)
    skill = {name: _better(name, each)[0] for name, each in skills.items()}
    if len(tables.get(USUAL, ())) >= LEAST_USERS:
        earlier, _ = compare_users(tables[USUAL], tables[USUAL_BLIND], **again)
        usual = {name: _better(name, each)[0] for name, each in earlier.items()}
    if USUAL_SKILL not in accept and not any(usual.get(name, 0.0) > 0 for name in skills):
        few = len(tables.get(USUAL, ()))
        reason = f"the served model's usual skill is not known from {few} users of earlier rows"
        return Verdict(WAITING, f"{reason}, {LEAST_USERS} are needed, whom it helps")
    guards = _guards_of_skill(skills, usual, "newest window")
    if len(tables.get(EARLY, ())) >= LEAST_USERS:
        early, _ = compare_users(tables[EARLY], tables[EARLY_BLIND], **again)
        guards += _guards_of_skill(early, usual, "first half")
    shown = {
        name: {
            "served": pair.other,
            "candidate": pair.mean,
            "difference": pair.difference,
            "ci_low": pair.ci_low,
            "ci_high": pair.ci_high,
        }
        for name, pair in pairs.items()
    }
    decision, reason = decide(pairs, guards, accept)
    return Verdict(decision, reason, shown, guards, skill)


def decide(
    pairs: Mapping[str, Difference], guards: Sequence[Guard], accept: Collection[str] = ()
) -> tuple[str, str]:
    """Return the decision and its reason.

    Refused: a guard fails, or a metric of the candidate is worse and its 95 % interval lies below
    zero. Waiting: the interval is so wide that a loss of a tenth could hide in it. Else published.
    """
    failed = _failed(guards, accept)
    if failed:
        first = failed[0]
        return REFUSED, f"{first['name']} is {first['value']:.4g}, limit {first['limit']:.4g}"
    if not pairs:
        return WAITING, "no metric can be judged on the newest window"
    for name, pair in pairs.items():
        gain, low, high = _better(name, pair)
        if high < 0:
            return REFUSED, f"{name} is worse by {-gain:.4g} ({-high:.4g} to {-low:.4g})"
    for name, pair in pairs.items():
        _, low, _ = _better(name, pair)
        if low < -_WIDEST * abs(pair.other):
            return WAITING, f"{name} may be worse by {-low:.4g}: too few users to tell"
    name, pair = next(iter(pairs.items()))
    gain, low, high = _better(name, pair)
    return PUBLISHED, f"{name} {gain:+.4g} ({low:+.4g} to {high:+.4g}), not worse beyond noise"


def refused_by(guards: Sequence[Guard], accept: Collection[str] = ()) -> Verdict | None:
    """Return a refusal where a guard fails that is not accepted."""
    return Verdict(*decide({}, guards, accept), guards=guards) if _failed(guards, accept) else None


def _failed(guards: Sequence[Guard], accept: Collection[str]) -> list[Guard]:
    return [each for each in guards if not each["passed"] and each["key"] not in accept]


def _guards_of_skill(
    skills: Mapping[str, Difference], usual: Mapping[str, float], where: str
) -> list[Guard]:
    """Compare the upper end of each skill with half of the usual one, where that is one."""
    found = []
    for name, skill in skills.items():
        if usual.get(name, 0.0) > 0:
            _, _, high = _better(name, skill)
            label = f"skill of the served model by {name} in the {where}"
            found.append(guard(SKILL, label, high, _LEAST_SKILL * usual[name], least=True))
    return found


def _better(name: str, pair: Difference) -> tuple[float, float, float]:
    """Return the difference and its interval with more as the better end."""
    low = pair.difference if pair.ci_low is None else pair.ci_low
    high = pair.difference if pair.ci_high is None else pair.ci_high
    if is_minimised(name):
        return -pair.difference, -high, -low
    return pair.difference, low, high
