"""Offsets of the level logits, fitted to what the validation holds.

Training predicts a cell from all others of its user. Asked for is, on a time split, what a user
does next, and that has other levels: the best is consumed first, and a level's share moves with
time. So one number per level is added to the logits, by penalised maximum likelihood on the
validation targets. The penalty is the one that serves users best whom the offsets were not fitted
to, and there are no offsets where that gains less than a thousandth.

Letters: M target cells, R levels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_PENALTIES = (10.0, 100.0, 1000.0, 10_000.0)  # of an offset's square, in cells
_FOLDS = 10
_LEAST_GAIN = 1e-3  # relative, of -log P(level)
_STEPS, _TOLERANCE = 30, 1e-6


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
        offsets = _fit(logits, level, penalty, found)
        value = _left_out(logits, level, user, penalty, offsets)
        if value < best:
            found, best = offsets, value
    return found, best if found.any() else before


def _left_out(logits: Tensor, level: Tensor, user: Tensor, penalty: float, start: Tensor) -> float:
    """Return the mean -log P(level) of users whom the offsets were not fitted to."""
    loss = 0.0
    for fold in range(_FOLDS):
        out = user % _FOLDS == fold
        offsets = _fit(logits[~out], level[~out], penalty, start)
        loss += float(F.cross_entropy(logits[out] + offsets, level[out], reduction="sum"))
    return loss / len(level)


def _fit(logits: Tensor, level: Tensor, penalty: float, start: Tensor) -> Tensor:
    """Return the offsets that minimise the sum of -log P(level) + penalty / 2 |offsets|^2."""
    wanted = torch.bincount(level, minlength=logits.shape[1])
    ridge = penalty * torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    offsets = start
    for _ in range(_STEPS):
        p = torch.softmax(logits + offsets, dim=1)
        expected = p.sum(dim=0)
        slope = wanted - expected - penalty * offsets
        step = torch.linalg.solve(expected.diag() - p.T @ p + ridge, slope).clamp(-1, 1)
        offsets = offsets + step
        if step.abs().max() < _TOLERANCE:
            break
    return offsets
