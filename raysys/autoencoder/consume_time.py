"""The time form of a model's consume scores: rehearsed, chosen, and set.

The windows are the validation targets and the stretch of equal length before them, for which a
closed form of the same rank and penalty is fitted on the cells before it. A form is richer than one
half-life only where these windows look as far ahead as the model will have to: what is popular for
a week is wrong for half a year.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.autoencoder.closed_form import closed_ranks, spectrum
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.model import Conv4Rec
from raysys.data.arrays import Floats
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, Window
from raysys.timing.choice import LEAST_USERS, Choice, choose
from raysys.timing.counters import Counters
from raysys.timing.files import Timed
from raysys.timing.form import TimeForm
from raysys.timing.windows import RehearsalWindow, window_of

log = logging.getLogger(__name__)

DAY_S = 86_400.0
_FAR = 3.0  # horizons up to so many times the validation window are matched by it
_MOST_BEFORE = 0.5  # of the fitted cells lie before a rehearsal, at least
_PRESENCE = RatingLevels(names=("consumed",), values=(None,), liked=(True,))


@dataclasses.dataclass(frozen=True)
class Horizon:
    """How far ahead a model has to look.

    Attributes:
        start: of the validation targets, UTC seconds.
        stop: where they end.
        seconds: from a cut to the last of what the model will be asked for.
    """

    start: int
    stop: int
    seconds: float

    @classmethod
    def of(cls, cutoffs: dict[str, int], seconds: float | None) -> Horizon:
        """Return the horizon of a split; None seconds: that of the validation targets."""
        start, stop = cutoffs["val"], cutoffs["test"]
        return cls(start, stop, stop - start if seconds is None else seconds)

    @property
    def length(self) -> int:
        """Seconds of a rehearsal window: the horizon, where validation reaches as far."""
        return int(min(self.seconds, self.stop - self.start))

    @property
    def matched(self) -> bool:
        """Whether validation looks about as far ahead."""
        return self.seconds <= _FAR * (self.stop - self.start)


@torch.no_grad()
def choose_form(
    model: Conv4Rec,
    cells: Cells,
    horizon: Horizon,
    *,
    rank: int,
    penalty: float,
    metric: str,
    seed: int,
) -> Choice | None:
    """Return the form that the windows prefer; None where validation has no targets.

    Args:
        model: fitted on the cells before the validation targets.
        cells: of all users up to the end of the validation targets.
        horizon: where they lie, and how far ahead the model will look.
        rank: of the closed form that a rehearsal is fitted by.
        penalty: of it.
        metric: that the consume block is chosen by.
        seed: picks users.
    """
    pooled = float(metric.partition("^")[2] or 0.3)
    fitted = cells.window == Window.FIT  # given folds may fit on the very second of the cut
    time = np.where(fitted, np.minimum(cells.timestamp, horizon.start - 1), cells.timestamp)
    cells, length = dataclasses.replace(cells, timestamp=time), horizon.length

    def window(model: Conv4Rec, start: int, stop: int) -> RehearsalWindow | None:
        score = personal(model, start)
        n_items = model.n_items
        return window_of(
            score, cells, start=start, stop=stop, n_items=n_items, pooled=pooled, seed=seed
        )

    newest = window(model, horizon.start, horizon.start + length)
    if newest is None and length < horizon.stop - horizon.start:
        length = horizon.stop - horizon.start
        newest = window(model, horizon.start, horizon.stop)
        log.warning("nobody has validation targets within the horizon: all of them are taken")
    if newest is None:
        return None
    windows = [newest]
    rank = max(closed_ranks(cells.n_users, model.n_items, rank), default=0)
    if not horizon.matched:
        log.warning(
            "validation looks %.3g days ahead, the model %.3g: time enters in its plain form only",
            (horizon.stop - horizon.start) / DAY_S,
            horizon.seconds / DAY_S,
        )
    elif rank and 2 * newest.n_users >= LEAST_USERS:
        start = horizon.start - length
        before = cells.take(cells.timestamp < start)
        if before.n_cells >= _MOST_BEFORE * fitted.sum():
            earlier = _closed(before, model.cfg, model.n_items, rank, penalty, seed)
            rehearsal = window(earlier, start, horizon.start)
            windows += [rehearsal] if rehearsal is not None else []
    return choose(windows, metric=metric, rich=len(windows) > 1)


@torch.no_grad()
def set_form(
    model: Conv4Rec, form: TimeForm, counters: Counters, spread: Callable[[], torch.Tensor]
) -> dict[str, float]:
    """Let vectors, queries and prior of a model follow the form; return it as choices.

    Args:
        model: solved, or trained.
        form: to follow.
        counters: of the items at the cut.
        spread: makes the standard deviation of the model's personal scores.
    """
    lift = torch.from_numpy(form.item_lift(counters.totals))
    model.follow_time(lift, length=form.length, recency=form.recency)
    wide = float(spread())
    if form.weight:  # else an empty profile keeps the order that it had
        model.prior.copy_(torch.from_numpy(Timed.at_first(form, wide, counters).prior()))
    return form.as_choices(wide)


def personal(model: Conv4Rec, now: int) -> Callable[[Cells, float], Floats]:
    """Return what makes the personal scores [U, N] of profiles at a time, by their recency."""

    def scores(cells: Cells, recency: float) -> Floats:
        if not model.has_levels:
            cells = dataclasses.replace(cells, level=np.zeros_like(cells.level))
        batch = ragged(cells, reference_time=now).to(model.query.device)
        z = model.consume_latent(batch, model.cell_weights(batch), 0.0, recency)
        found: NDArray[np.float32] = (z @ model.consume_vectors().T).cpu().numpy()
        return found

    return scores


def _closed(
    cells: Cells, cfg: Conv4RecConfig, n_items: int, rank: int, penalty: float, seed: int
) -> Conv4Rec:
    """Return a model of presence alone, in closed form."""
    users = cells.users(cells.counts > 0)
    solution = spectrum(
        users.rows, users.item_num, n_users=users.n_users, n_items=n_items, rank=rank, seed=seed
    )
    vectors, scales = map(torch.from_numpy, solution.item_vectors(penalty, rank))
    settings = dataclasses.replace(cfg, latent=rank)
    model = Conv4Rec(settings, n_items=n_items, levels=_PRESENCE, seed=None)
    model.solve_consume(vectors, scales)
    return model.eval()
