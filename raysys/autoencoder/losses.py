"""Losses of the consume block that never hold a large matrix of users x items.

B users, N items, H dims, P distinct (user, item) pairs of the batch, s[u, i] = z_u . g_i + b_i.
Zero diagonal: `own` [P] is taken out of the scores of the pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raysys.autoencoder.gather import parts_of
from raysys.autoencoder.ragged_ops import Pairs, bag
from raysys.data.batches import Ragged

MAX_SCORES = 1 << 22  # of the scores that are held at once
_MAX_SCORES_COSINE = 1 << 24
_MAX_SCORES_GPU = 1 << 28  # few products there


def cosine_loss(z: Tensor, g: Tensor, batch: Ragged, pairs: Pairs, own: Tensor | None) -> Tensor:
    """Return the sum over users of 1 - cos(x, y).

    |y|^2 is that of the scores [B, N] where there are fewer users than dims, else it comes from the
    Gram matrix of the item vectors: whichever takes less work.

    Args:
        z: [B, H].
        g: [N, H] unit rows, of the encoder and the decoder.
        batch: the profiles, whose 0/1 rows are x.
        pairs: its pairs.
        own: [P] y's diagonal, left out of y; None keeps it.
    """
    x = bag(batch, g, pairs.share)  # sum of g over the profile's distinct items
    product = (z * x).sum(dim=1)
    if len(z) < z.shape[1] and len(z) * len(g) <= _MAX_SCORES_COSINE:
        square = (z @ g.T).square().sum(dim=1)
    else:
        square = ((z @ (g.T @ g)) * z).sum(dim=1)
    if own is not None:
        product = product - pairs.per_user(own)
        # as the sum of own_i g_i over the items is z
        square = square - 2 * (z * z).sum(dim=1) + pairs.per_user(own * own)
    length = (pairs.per_user(torch.ones_like(pairs.row)) * square.clamp_min(1e-12)).sqrt()
    return ((batch.counts > 0).float() - product / length.clamp_min(1e-12)).sum()


def log_normalisers(
    z: Tensor, g: Tensor, bias: Tensor, pairs: tuple[Tensor, Tensor], own: Tensor | None
) -> Tensor:
    """Return log sum_i exp s[u, i], [B].

    Items are taken in chunks, whose scores are computed again in the backward pass: memory grows
    with B + N, not with B N.

    Args:
        z: [B, H].
        g: [N, H].
        bias: [N].
        pairs: rows and items of the pairs, int64 [P] each.
        own: [P], or None.
    """
    device = z.device.type
    if torch.is_autocast_enabled(device):
        narrow = torch.get_autocast_dtype(device)
        z, g = z.to(narrow), g.to(narrow)
    result: Tensor = _LogNormalisers.apply(z, g, bias, *pairs, own)  # type: ignore[no-untyped-call]
    return result


class _LogNormalisers(torch.autograd.Function):
    """See `log_normalisers`."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, g: Tensor, bias: Tensor, row: Tensor, item: Tensor, own: Tensor | None
    ) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            parts = [
                torch.logsumexp(_chunk_scores(z, g, bias, chunk, row, item, own)[0], dim=1)
                for chunk in _chunks(z, g)
            ]
            whole = torch.logsumexp(torch.stack(parts), dim=0)
        ctx.save_for_backward(z, g, bias, row, item, own, whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        z, g, bias, row, item, own, whole = ctx.saved_tensors
        to_z = torch.zeros_like(z, dtype=torch.float32)  # a sum over chunks
        to_g, to_bias = torch.empty_like(g), torch.empty_like(bias)
        to_own = None if own is None else torch.empty_like(own)
        for chunk in _chunks(z, g):
            scores, at = _chunk_scores(z, g, bias, chunk, row, item, own)
            to_scores = scores.sub_(whole[:, None]).exp_().mul_(grads[0][:, None])
            to_bias[chunk] = to_scores.sum(dim=0)
            if to_own is not None:
                to_own[at] = -to_scores[row[at], item[at] - chunk.start].to(to_own.dtype)
            to_scores = to_scores.to(z.dtype)
            to_z += to_scores @ g[chunk]
            to_g[chunk] = to_scores.T @ z
        return to_z.to(z.dtype), to_g, to_bias, None, None, to_own


def _chunks(z: Tensor, g: Tensor) -> list[slice]:
    return parts_of(len(g), len(z), _MAX_SCORES_GPU if z.is_cuda else MAX_SCORES)


def _chunk_scores(
    z: Tensor,
    g: Tensor,
    bias: Tensor,
    chunk: slice,
    row: Tensor,
    item: Tensor,
    own: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the scores of a chunk's items in float32, [B, n], and the pairs that lost `own`."""
    scores = torch.addmm(bias[chunk].to(z.dtype), z, g[chunk].T).float()
    if own is None:
        return scores, row[:0]
    at = torch.nonzero((item >= chunk.start) & (item < chunk.stop))[:, 0]
    place = row[at] * scores.shape[1] + item[at] - chunk.start
    scores.view(-1).index_add_(0, place, own[at].float(), alpha=-1)
    return scores, at


def sampled_log_normalisers(
    z: Tensor,
    g: Tensor,
    bias: Tensor,
    pairs: tuple[Tensor, Tensor],
    pair_scores: Tensor,
    *,
    n_sampled: int,
) -> Tensor:
    """Estimate log sum_i exp s[u, i], [B]: a user's own items exactly, the others by a sample.

    Half of the sample is uniform, half follows the items of the batch; every draw j counts
    1 / (n q_j) (log-Q correction), so the sum under the logarithm has the right expectation.

    Args:
        z: [B, H].
        g: [N, H].
        bias: [N].
        pairs: rows and items of the pairs, int64 [P] each.
        pair_scores: [P] their scores, without `own`.
        n_sampled: draws n.
    """
    row, item = pairs
    n_items, n_popular = len(g), n_sampled // 2 if len(item) else 0
    uniform = torch.randint(n_items, (n_sampled - n_popular,), device=z.device)
    popular = item[torch.randint(max(len(item), 1), (n_popular,), device=z.device)]
    drawn, counts = torch.unique(torch.cat([uniform, popular]), return_counts=True)
    place = torch.searchsorted(drawn, item).clamp_max(len(drawn) - 1)
    known = drawn[place] == item
    in_batch = torch.zeros(len(drawn), device=z.device)
    in_batch.index_add_(0, place, known.float())
    expected = len(uniform) / n_items + len(popular) * in_batch / max(len(item), 1)
    scores = torch.addmm(bias[drawn] + (counts / expected).log(), z, g[drawn].T)
    blocked = torch.tensor(-torch.inf, device=z.device, dtype=scores.dtype)
    scores = scores.index_put((row[known], place[known]), blocked)
    top = scores.detach().amax(dim=1)
    top = top.scatter_reduce(0, row, pair_scores.detach().to(top.dtype), "amax")
    total = (scores - top[:, None]).exp().sum(dim=1)
    total = total.index_add(0, row, (pair_scores - top[row]).exp().to(total.dtype))
    return top + total.log()
