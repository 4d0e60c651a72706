"""Choosing the form: by lists of users on windows of the log, a step only where it surely pays.

The plain form (one half-life, one weight) is the best of a grid by the wanted metric on the newest
window. From there a richer one is looked for: the best of a coarse grid, then from that number by
number. Either is taken where

    - the gain, over the users of all windows, is above 0 by a one-sided 95 % interval of the
      paired differences (few users, wide interval: the plain form stays), and
    - no window loses by it: what jumps from one cut to the next is left out.

The gain is relative, half of it in the wanted metric, half in recall@20, ndcg@100 and pooled recall
alike. In the end the form is compared with every list alone: where one is better by the wanted
metric, significantly, the form is that list.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys import progress
from raysys.timing.counters import HALF_LIVES_D
from raysys.timing.form import LIST_WEIGHT, TimeForm
from raysys.timing.windows import RehearsalWindow

log = logging.getLogger(__name__)

LEAST_USERS = 300  # of all windows, for more than the plain form: a search fits fewer by chance
METRICS = ("recall@20", "ndcg@100", "recall@20^BETA")
PLAIN = [(0.0, 0.0)] + [(w, 0.0) for w in (0.03, 0.1, 0.3, 1.0, 3.0)]
PLAIN += [(w, h) for h in (90.0, 30.0, 14.0, 7.0, 3.0, 1.0) for w in (0.3, 1.0, 3.0, 10.0)]

_LIFTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LENGTHS = (0.0, 0.25, 0.5)
_RECENCIES = (0.0, 20.0, 50.0, 100.0)
_POPULARITIES = (0.0, -0.1, -0.2)  # below -.25 it lost on horizons longer than the window's
_SHARES = (0.1, 0.3, 0.6)
_JUMPS = (
    (1.0, 3.0, 10.0),
    (0.5, 1.0, 2.0, 3.0, 7.0, 14.0, 30.0, 0.0),
    (0.0, 0.5, 1.0),
    (0.0, -0.1),
)
"""Weights, half-lives, lifts and popularities from the best of which single steps go on."""

_SURE = 1.645  # one-sided 95 %
_LIKELY = 0.5  # of a single step, of several that are judged together in the end
_CLEARLY = 1.96
_LEAST_GAIN = 0.002
_MAX_SWEEPS = 4


@dataclasses.dataclass(frozen=True)
class Choice:
    """A chosen form.

    Attributes:
        form: the form.
        reason: `plain`, `rich` or `list`.
        n_tried: forms that were judged.
    """

    form: TimeForm
    reason: str
    n_tried: int


def choose(windows: Sequence[RehearsalWindow], *, metric: str, rich: bool) -> Choice:
    """Return the form that windows prefer.

    Args:
        windows: one or more, the newest first; the plain form is chosen on that one alone.
        metric: one of METRICS by which the plain form is chosen and lists are feared.
        rich: look for more than the plain form.
    """
    column = METRICS.index("recall@20^BETA" if "^" in metric else metric)
    newest = windows[0]
    rich = rich and sum(window.n_users for window in windows) >= LEAST_USERS
    with progress.stage("time form", unit="forms") as work:

        def judged(form: TimeForm) -> float:
            work.add()
            return float(newest.gains(form)[:, column].mean())

        plain = max((TimeForm.single(*pair) for pair in PLAIN), key=judged)
        search = _Search(windows, plain, column, work)
        reason = "plain"
        if rich:
            search.jump()
            search.climb()
            reason = "rich" if search.form != plain else "plain"
        form, gains = search.form, search.gains[0]
        better = _better_list(newest, gains, column)
        if better is not None:
            reason = "list"
            form, gains = better
        work.add(len(HALF_LIVES_D))
        mean = gains.mean(axis=0)
        work.note = f"{reason} recall@20 {mean[0]:.4f} ndcg@100 {mean[1]:.4f}"
    return Choice(form, reason, round(work.done))


class _Search:
    """A climb by changes that surely pay."""

    def __init__(
        self,
        windows: Sequence[RehearsalWindow],
        start: TimeForm,
        column: int,
        work: progress.Stage,
    ) -> None:
        self._windows = windows
        self._mix = np.full(len(METRICS), 1 / 6)
        self._mix[column] += 0.5
        self.form = start
        self._work = work
        self.gains = [window.gains(start) for window in windows]

    def jump(self) -> None:
        """Take the best of a coarse grid, where it surely pays: it lies beyond single steps."""
        found = []
        for weight, half_life, lift, popularity in itertools.product(*_JUMPS):
            form = TimeForm.single(weight, half_life)
            form = dataclasses.replace(form, lift=lift, popularity=popularity)
            gain, gains = self._judged(form, self.gains, sure=_SURE)
            if gain > 0:
                found.append((gain, form, gains))
        if found:
            _, self.form, self.gains = max(found, key=lambda entry: entry[0])

    def climb(self) -> None:
        """Change one number after the other; where they end is kept where it surely pays."""
        start, gains = self.form, self.gains
        self._sweeps()
        if self.form != start and self._judged(self.form, gains, sure=_SURE)[0] == 0:
            self.form, self.gains = start, gains

    def _sweeps(self) -> None:
        for _ in range(_MAX_SWEEPS):
            before = self.form
            for values in _coordinates():
                found = []
                for form in values(self.form):
                    if form == self.form:
                        continue
                    gain, gains = self._judged(form, self.gains, sure=_LIKELY)
                    if gain > 0:
                        found.append((gain, form, gains))
                if found:
                    _, self.form, self.gains = max(found, key=lambda entry: entry[0])
            if self.form == before:
                return

    def _judged(
        self, form: TimeForm, over: list[NDArray[np.float64]], *, sure: float
    ) -> tuple[float, list[NDArray[np.float64]]]:
        """Return the gain of a form over others' gains, 0 where it is not sure, and its own."""
        self._work.add()
        after, parts = [], []
        for window, before in zip(self._windows, over, strict=True):
            after.append(window.gains(form))
            scale = self._mix / np.maximum(before.mean(axis=0), 1e-9)
            parts.append((after[-1] - before) @ scale)
            if parts[-1].mean() < 0:
                return 0.0, after
        difference = np.concatenate(parts)
        mean = float(difference.mean())
        error = float(difference.std()) / np.sqrt(len(difference))
        pays = mean > _LEAST_GAIN and mean > sure * error
        return (mean if pays else 0.0), after


def _coordinates() -> Sequence[Callable[[TimeForm], Iterable[TimeForm]]]:
    """Return, per number of a form, what makes the forms with its other values."""

    def numbers(name: str, values: Sequence[float]) -> Callable[[TimeForm], Iterable[TimeForm]]:
        return lambda form: (_with(form, name, value) for value in values)

    def weights(form: TimeForm) -> Iterator[TimeForm]:
        for factor in (0.5, 0.7, 1.4, 2.0):
            yield dataclasses.replace(form, weight=form.weight * factor)

    def shares(form: TimeForm) -> Iterator[TimeForm]:
        for half_life, old in zip(HALF_LIVES_D, form.shares, strict=True):
            for share in _SHARES:
                yield form.towards(half_life, share)
            if 0 < old < 1:
                yield form.without(half_life)

    return (
        weights,
        numbers("lift", _LIFTS),
        shares,
        numbers("length", _LENGTHS),
        numbers("recency", _RECENCIES),
        numbers("popularity", _POPULARITIES),
        weights,
    )


def _with(form: TimeForm, name: str, value: Any) -> TimeForm:
    return dataclasses.replace(form, **{name: value})


def _better_list(
    window: RehearsalWindow, gains: NDArray[np.float64], column: int
) -> tuple[TimeForm, NDArray[np.float64]] | None:
    """Return the best list alone and its gains, where it is significantly better than others."""
    lists = [TimeForm.single(LIST_WEIGHT, half_life) for half_life in HALF_LIVES_D]
    found = [window.gains(form) for form in lists]
    best = int(np.argmax([theirs[:, column].mean() for theirs in found]))
    difference = found[best][:, column] - gains[:, column]
    error = difference.std() / np.sqrt(len(difference))
    if difference.mean() > _CLEARLY * error:
        return lists[best], found[best]
    return None
