"""What an experiment says: its arms, each against the control, and one sentence that follows.

The outcome of a user is what happened within a horizon after the first impression: whether the user
converted, or how many conversions. The horizon is the same for all, so outcomes do not depend on
when the report is read, and a user counts as soon as the horizon has passed. Users in the order of
their first impressions are then a sequence that only grows, and `anytime` may read it after each.

With several arms every one is compared with the control, with alpha shared out among these
comparisons (Bonferroni): all intervals hold together with 1 - alpha.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysys.errors import DataError
from raysys.evaluation.anytime import BURN_IN, Running, Split, check_split, compare, users_needed
from raysys.evaluation.attribution import ExperimentUsers
from raysys.evaluation.looks import Gap, Mean, gap, ratio_of, share_of

OUTCOMES = ("converted", "conversions")
_CONTROL = "control"
_DAY = 86_400
_STEPS = 60  # of a drawn sequence

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Arm:
    """What the users of an arm did.

    Attributes:
        name: of the arm.
        weight: share that it was configured to get, the last one.
        users: seen in this arm alone.
        mature: of these, those whose horizon has passed.
        impressions, conversions: of its users, over the whole experiment.
        outcome: mean outcome of its mature users.
        per_impression: conversions per impression, over the whole experiment.
    """

    name: str
    weight: float
    users: int
    mature: int
    impressions: int
    conversions: int
    outcome: Mean
    per_impression: Mean


@dataclasses.dataclass(frozen=True)
class Step:
    """A comparison as it stood once: after `users`, `days` after the experiment's beginning."""

    users: int
    days: float
    effect: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm against the control.

    Attributes:
        arm: its name.
        users: mature ones of both, who came while both were there.
        outcome, per_impression: intervals for one look.
        effect: mean outcome of the arm minus the control's, as the sequence estimates it.
        low, high: confidence sequence of the effect, valid at any time; None before `BURN_IN`.
        p_value: valid at any time, times the number of comparisons.
        decided_at: users after which the arms were called different; None: they are not yet.
        better: the arm that was ahead then.
        needed: users of both at which an effect of this size would be decided, on average.
        steps: the sequence until now, thinned out.
    """

    arm: str
    users: int
    outcome: Gap
    per_impression: Gap
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float = 1.0
    decided_at: int | None = None
    better: str | None = None
    needed: int | None = None
    steps: list[Step] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Assessment:
    """All that an experiment says.

    Attributes:
        control: name of the control.
        alpha: of everything together.
        arms: the control first.
        comparisons: one an arm beside the control.
        split: of the users, None with one arm.
        verdict: the sentence.
    """

    control: str
    alpha: float
    arms: list[Arm]
    comparisons: list[Comparison]
    split: Split | None
    verdict: str


def assess(
    users: ExperimentUsers,
    *,
    until: int,
    horizon_s: int,
    outcome: str = "converted",
    control: str | None = None,
    alpha: float = 0.05,
) -> Assessment:
    """Say what an experiment says until now.

    Args:
        users: of the experiment.
        until: UTC seconds that the log goes to.
        horizon_s: seconds after a first impression that the user's outcome takes.
        outcome: converted (0 or 1) or conversions (a count).
        control: an arm; None: the one named control, else the first by name.
        alpha: 0..1, chance of any wrong decision at any time.

    Raises:
        DataError: there is no such arm.
    """
    control = _control(users.arms, control)
    names = [control, *(name for name in users.arms if name != control)]
    # What is known now is a beginning of the sequence, as first impressions ascend.
    log = _Outcomes(
        users,
        values=(users.early > 0 if outcome == "converted" else users.early).astype(np.float64),
        mature=users.first + horizon_s <= until,
        known_after=users.first + horizon_s,
        are_shares=outcome == "converted",
        n_comparisons=max(1, len(names) - 1),
        alpha=alpha,
    )
    arms = {name: log.arm(name) for name in names}
    comparisons = [log.comparison(arms[name], arms[control]) for name in names[1:]]
    split = log.split()
    verdict = _verdict(arms[control], comparisons, split)
    return Assessment(control, alpha, [*arms.values()], comparisons, split, verdict)


def _control(names: Sequence[str], wanted: str | None) -> str:
    if wanted is None:
        return _CONTROL if _CONTROL in names else names[0]
    if wanted not in names:
        raise DataError(f"control={wanted!r} is no arm of this experiment: {', '.join(names)}")
    return wanted


@dataclasses.dataclass(frozen=True)
class _Outcomes:
    """The users of an experiment with their outcomes.

    Attributes:
        users: in order.
        values: [U] outcomes.
        mature: [U] the outcome is known.
        known_after: [U] UTC seconds.
        are_shares: outcomes are 0 or 1.
        n_comparisons: that share alpha.
        alpha: of all together.
    """

    users: ExperimentUsers
    values: Floats
    mature: NDArray[np.bool_]
    known_after: NDArray[np.int64]
    are_shares: bool
    n_comparisons: int
    alpha: float

    @property
    def level(self) -> float:
        """Alpha of one comparison."""
        return self.alpha / self.n_comparisons

    def arm(self, name: str) -> Arm:
        own = self.users.arm == self.users.arms.index(name)
        known = self.values[own & self.mature]
        shown, converted = self.users.impressions[own], self.users.conversions[own]
        return Arm(
            name=name,
            weight=self.users.configured[name][-1],
            users=int(own.sum()),
            mature=len(known),
            impressions=int(shown.sum()),
            conversions=int(converted.sum()),
            outcome=share_of(known > 0, alpha=self.level)
            if self.are_shares
            else ratio_of(known, np.ones(len(known)), alpha=self.level),
            per_impression=ratio_of(
                converted.astype(np.float64), shown.astype(np.float64), alpha=self.level
            ),
        )

    def split(self) -> Split | None:
        """Check the split among the arms that have users; None: there are not two."""
        populated = np.unique(self.users.arm)
        if len(populated) < 2:
            return None
        place = np.searchsorted(populated, self.users.arm)
        return check_split(place, self.users.shares[:, populated])

    def comparison(self, arm: Arm, control: Arm) -> Comparison:
        own, other = (self.users.arms.index(each.name) for each in (arm, control))
        in_both = (self.users.arm == own) | (self.users.arm == other)
        were_both = (self.users.shares[:, [own, other]] > 0).all(axis=1)  # arms come and go
        rows = np.flatnonzero(in_both & were_both & self.mature)
        once = Comparison(
            arm=arm.name,
            users=len(rows),
            outcome=gap(arm.outcome, control.outcome, alpha=self.level, hybrid=self.are_shares),
            per_impression=gap(arm.per_impression, control.per_impression, alpha=self.level),
        )
        if len(np.unique(self.users.arm[rows])) < 2:
            return once
        both = self.users.shares[rows][:, [own, other]]
        running = compare(
            self.users.arm[rows] == own,
            self.values[rows],
            both[:, 0] / both.sum(axis=1),
            alpha=self.level,
        )
        days = (self.known_after[rows] - self.users.first[0]) / _DAY
        effect, deviation = float(running.effect[-1]), float(running.deviation[-1])
        shown = len(rows) >= BURN_IN
        at = running.decided_at(self.level)
        return dataclasses.replace(
            once,
            effect=effect,
            low=float(running.low[-1]) if shown else None,
            high=float(running.high[-1]) if shown else None,
            p_value=min(1.0, self.n_comparisons * float(running.p_value[-1])),
            decided_at=at,
            better=None if at is None else (arm if running.effect[at - 1] > 0 else control).name,
            needed=users_needed(effect, deviation, alpha=self.level) if shown else None,
            steps=_steps(running, days),
        )


def _steps(running: Running, days: Floats) -> list[Step]:
    """Return the sequence at evenly spaced numbers of users, none before the burn-in."""
    n = len(days)
    if n < BURN_IN:
        return []
    return [
        Step(
            users=int(at) + 1,
            days=float(days[at]),
            effect=float(running.effect[at]),
            low=float(running.low[at]),
            high=float(running.high[at]),
        )
        for at in np.unique(np.linspace(BURN_IN - 1, n - 1, _STEPS).astype(int))
    ]


def _verdict(control: Arm, comparisons: Sequence[Comparison], split: Split | None) -> str:
    """Return the sentence that a reader takes away."""
    if not comparisons:
        return "There is one arm: nothing to compare."
    if split is None:
        return "No two arms have users of their own: nothing to compare."
    if not split.is_as_configured:
        return (
            f"Users are not split as configured (p = {split.p_value:.2g}): the comparison is not "
            "to be trusted until the reason is known."
        )
    decided = [each for each in comparisons if each.decided_at is not None]
    if decided:
        return " ".join(_decision(each, control.name) for each in decided)
    if not any(each.users for each in comparisons):
        return "Nothing is decided yet: no user's horizon has passed."
    return f"Nothing is decided yet: {'; '.join(_open(each) for each in comparisons)}."


def _decision(found: Comparison, control: str) -> str:
    worse = control if found.better == found.arm else found.arm
    text = f"{found.better} is better than {worse}, decided after {found.decided_at:,} users."
    assert found.low is not None
    assert found.high is not None
    if found.low <= 0 <= found.high:
        text += " The interval holds 0 again: the difference has faded since."
    return text


def _open(found: Comparison) -> str:
    if found.low is None:
        return f"{found.arm} and the control have {found.users:,} users, {BURN_IN} are the least"
    if found.low == found.high:
        return f"neither {found.arm} nor the control has an outcome other than another"
    if found.needed is None:
        return f"{found.arm} is so close to the control that no number of users would tell"
    more = max(found.needed - found.users, 0)
    if not more:
        return f"{found.arm} is about to be decided"
    return f"{found.arm} would take about {more:,} more users if it differs as it seems to now"
