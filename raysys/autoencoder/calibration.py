"""Calibration: the link that makes log P(i | u) of scores, and offsets of the level logits.

The link is monotone:

    t = (score - mean) / spread
    log P(i | u) = log_softmax_i( slope t + power log(softplus(sharpness t) + floor) )

With all four parameters positive it grows strictly, so P(i | u) sorts items as the scores do. The
second term lets P grow in proportion to a score, which is what scores trained by squared error on
0/1 rows are: estimates of P itself, up to a factor per user.

Training predicts a cell from all others of its user. Asked for is, on a time split, what a user
does next, and that has other levels: the best is consumed first, and a level's share moves with
time. So one number per level is added to the logits, by penalised maximum likelihood on the
validation targets. The penalty is the one that serves users best whom the offsets were not fitted
to, and there are no offsets where that gains less than a thousandth.

Letters: B users, N items, M target cells, R levels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

LINK_CHOICES = tuple(f"link_{name}" for name in ("slope", "power", "sharpness", "floor"))
"""Names of the link's parameters, as logs, among what a training chose."""

_BINS = 192  # of each of the three sets of edges
_EDGE_SAMPLE = 1 << 18
_MAX_ROUNDS = 60
_DOWN, _UP = 12.0, 6.0  # of a log parameter from the start, at most
_PULL = 1e-5  # towards the start, so that no parameter runs away where nothing depends on it
_PENALTIES = (10.0, 100.0, 1000.0, 10_000.0)  # of an offset's square, in cells
_FOLDS = 10
_LEAST_GAIN = 1e-3  # relative, of -log P(level)
_NEWTON_STEPS, _TOLERANCE = 30, 1e-6


class Link(nn.Module):
    """The link; the identity until it is fitted.

    Attributes:
        parameters_log: [4] logs of slope, power, sharpness, floor.
        shift: [2] mean and spread of the scores it was fitted on.
        fitted: whether it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameters_log: Tensor
        self.shift: Tensor
        self.fitted: Tensor
        self.typical_slope: Tensor
        self.register_buffer("parameters_log", torch.tensor([-1.0, 0.0, 0.0, -3.0]))
        self.register_buffer("shift", torch.tensor([0.0, 1.0]))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.register_buffer("typical_slope", torch.ones(()))

    def forward(self, scores: Tensor) -> Tensor:
        """Return unnormalised log probabilities of scores."""
        if not self.fitted:
            return scores
        return _curve((scores - self.shift[0]) / self.shift[1], self.parameters_log)

    def slope(self) -> float:
        """Return d log P / d score at the scores of consumed items, on average."""
        return float(self.typical_slope)

    def fit(
        self, scores: Tensor, row: Tensor, item: Tensor, *, logs: Tensor | None = None
    ) -> float:
        """Fit by maximum likelihood.

        Memory and time of a step are those of users x bins: scores enter the normaliser in at most
        600 bins, each as its mean and its count of a user's items.

        Args:
            scores: [B, N] with each consumed item's own contribution taken out.
            row: int64 [P] users of the consumed pairs, the observations.
            item: int64 [P] their items.
            logs: parameters of an earlier fit to take, [4]; only what scores look like is new.

        Returns:
            Mean -log P(i | u) over the pairs, in nats.
        """
        self.shift = torch.stack([scores.mean(), scores.std().clamp_min(1e-12)])
        points = (scores[row, item] - self.shift[0]) / self.shift[1]
        middle, log_count = _binned(scores, self.shift, points)
        shares = torch.bincount(row, minlength=len(scores)).to(points) / max(len(row), 1)
        start = self.parameters_log.clone()

        def loss(logs: Tensor) -> Tensor:
            whole = torch.logsumexp(_curve(middle, logs) + log_count, dim=1)
            return (whole * shares).sum() - _curve(points, logs).mean()

        if logs is None:
            self.parameters_log, value = _minimum(loss, start)
        else:
            self.parameters_log, value = logs.to(start), float(loss(logs.to(start)))
        self.typical_slope = _steepness(points, self.parameters_log).mean() / self.shift[1]
        self.fitted = torch.ones((), dtype=torch.bool)
        return value


def _binned(scores: Tensor, shift: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return means of standardised scores by user and bin, [B, K], and log counts of items.

    Edges are quantiles of all scores and of the consumed items' and steps of equal width, so bins
    are narrow both where most scores are and where the likely ones are. Where there are not more
    items than bins, every score is a bin of its own.
    """
    n_users, n_items = scores.shape
    if n_items <= 3 * _BINS:
        return (scores - shift[0]) / shift[1], torch.zeros(1, 1).to(scores)
    low, high = ((end - shift[0]) / shift[1] for end in scores.aminmax())
    stride = max(1, scores.numel() // _EDGE_SAMPLE) | 1  # odd: not one column alone
    sample = (scores.reshape(-1)[::stride] - shift[0]) / shift[1]
    ends = [values.sort().values for values in (sample, points)]
    inner = [
        values[torch.linspace(0, len(values) - 1, _BINS, device=values.device).long()]
        for values in ends
        if len(values)
    ]
    steps = torch.linspace(float(low), float(high), _BINS, device=scores.device)
    edges = torch.cat([*inner, steps]).sort().values
    size = len(edges) + 1
    total, count = torch.zeros(2, n_users, size, device=scores.device, dtype=torch.float64)
    for user in range(n_users):  # a row at a time: no second matrix of all scores
        t = (scores[user] - shift[0]) / shift[1]
        place = torch.bucketize(t, edges)
        total[user] = torch.bincount(place, t.double(), minlength=size)
        count[user] = torch.bincount(place, minlength=size)
    return (total / count.clamp_min(1)).to(scores), count.log().to(scores)


def _minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, float]:
    """Return where a loss of a few parameters is smallest near `start`, and its value there.

    Each parameter stays in reach of the start: a line search along a flat loss went to 1e31.
    """
    first = start.double().cpu().numpy()

    def value(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logs = torch.tensor(at).to(start).requires_grad_()
        found = loss(logs) + _PULL / 2 * (logs - start).square().sum()
        torch.autograd.backward(found)
        assert logs.grad is not None
        return float(found.detach()), logs.grad.double().cpu().numpy()

    bounds = [(at - _DOWN, at + _UP) for at in first]
    options = {"maxiter": _MAX_ROUNDS, "ftol": 1e-7}
    with torch.enable_grad():
        found = minimize(value, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    logs = torch.tensor(found.x).to(start)
    with torch.no_grad():
        return logs, float(loss(logs))


def _steepness(t: Tensor, logs: Tensor) -> Tensor:
    """Return the derivative of the curve at t."""
    slope, power, sharpness, floor = logs.exp()
    inside = sharpness * torch.sigmoid(sharpness * t) / (F.softplus(sharpness * t) + floor)
    steepness: Tensor = slope + power * inside
    return steepness


def _curve(t: Tensor, logs: Tensor) -> Tensor:
    slope, power, sharpness, floor = logs.exp()
    curve: Tensor = slope * t + power * (F.softplus(sharpness * t) + floor).log()
    return curve


def level_offsets(logits: Tensor, level: Tensor, user: Tensor) -> tuple[Tensor, float]:
    """Return offsets [R], zeros where nothing is gained, and -log P(level) with them.

    The latter is cross-fitted: of each tenth of the users, with the offsets of the others.

    Args:
        logits: [M, R].
        level: int64 [M] what they should have said.
        user: int64 [M] whose cells they are.
    """
    logits = logits.double()
    before = float(F.cross_entropy(logits, level))
    found, best = torch.zeros_like(logits[0]), before * (1 - _LEAST_GAIN)
    for penalty in _PENALTIES:
        offsets = _fit_offsets(logits, level, penalty, found)
        value = _loss_left_out(logits, level, user, penalty, offsets)
        if value < best:
            found, best = offsets, value
    return found, best if found.any() else before


def _loss_left_out(
    logits: Tensor, level: Tensor, user: Tensor, penalty: float, start: Tensor
) -> float:
    """Return the mean -log P(level) of users whom the offsets were not fitted to."""
    loss = 0.0
    for fold in range(_FOLDS):
        out = user % _FOLDS == fold
        offsets = _fit_offsets(logits[~out], level[~out], penalty, start)
        loss += float(F.cross_entropy(logits[out] + offsets, level[out], reduction="sum"))
    return loss / len(level)


def _fit_offsets(logits: Tensor, level: Tensor, penalty: float, start: Tensor) -> Tensor:
    """Return the offsets that minimise the sum of -log P(level) + penalty / 2 |offsets|^2."""
    wanted = torch.bincount(level, minlength=logits.shape[1])
    ridge = penalty * torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    offsets = start
    for _ in range(_NEWTON_STEPS):
        p = torch.softmax(logits + offsets, dim=1)
        expected = p.sum(dim=0)
        slope = wanted - expected - penalty * offsets
        step = torch.linalg.solve(expected.diag() - p.T @ p + ridge, slope).clamp(-1, 1)
        offsets = offsets + step
        if step.abs().max() < _TOLERANCE:
            break
    return offsets
