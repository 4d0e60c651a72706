"""The monotone link that turns ranking scores into log P(i | u).

    t = (score - mean) / spread
    log P(i | u) = log_softmax_i( slope t + power log(softplus(sharpness t) + floor) )

With all four parameters positive it grows strictly, so P(i | u) sorts items as the scores do. The
second term lets P grow in proportion to a score, which is what scores trained by squared error on
0/1 rows are: estimates of P itself, up to a factor per user.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 150
_LEARNING_RATE = 0.05


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

    def fit(self, scores: Tensor, row: Tensor, item: Tensor) -> float:
        """Fit by maximum likelihood.

        Args:
            scores: [B, N] with each consumed item's own contribution taken out.
            row: int64 [P] users of the consumed pairs, the observations.
            item: int64 [P] their items.

        Returns:
            Mean -log P(i | u) over the pairs, in nats.
        """
        self.shift = torch.stack([scores.mean(), scores.std().clamp_min(1e-12)])
        t = (scores - self.shift[0]) / self.shift[1]
        logs = self.parameters_log.clone().requires_grad_()
        optimiser = torch.optim.Adam([logs], lr=_LEARNING_RATE)
        with torch.enable_grad():
            for _ in range(_STEPS):
                optimiser.zero_grad()
                curve = _curve(t, logs)
                loss = (torch.logsumexp(curve, dim=1)[row] - curve[row, item]).mean()
                torch.autograd.backward(loss)
                optimiser.step()
            points = t[row, item].detach().requires_grad_()
            torch.autograd.backward(_curve(points, logs.detach()).sum())
        assert points.grad is not None
        self.typical_slope = points.grad.mean() / self.shift[1]
        self.parameters_log = logs.detach()
        self.fitted = torch.ones((), dtype=torch.bool)
        return float(loss.detach())


def _curve(t: Tensor, logs: Tensor) -> Tensor:
    slope, power, sharpness, floor = logs.exp()
    curve: Tensor = slope * t + power * (F.softplus(sharpness * t) + floor).log()
    return curve
