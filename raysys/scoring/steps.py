"""Steps of an answer, each one compiled call: latents, normalisers, and scores of some items.

    B users, M cells or pairs of a user and an item, N items, T items of a sample, and the letters
    of `scorer.py`

Each is a few microseconds of arithmetic on small arrays. Made of NumPy's operations it takes ten
times as long: a microsecond or two for each of dozens, and their code is cold when an answer comes
to it. What a step reads of the model goes in as one flat tuple, see `index/near.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.compiled import compiled
from raysys.data.products import Rounded, integer_products
from raysys.scoring.kernels import (
    add_rows,
    curve,
    level_probs,
    level_sums,
    log_sums,
    row_products,
    unique_runs,
    user_factors,
)

USER_PSEUDO_CELLS = 10.0  # pull a user's distribution over levels to the overall one
_LEAST_WEIGHT = 1e-6  # of a profile


@compiled
def latents(
    model: tuple[Any, ...],
    items: NDArray[Any],
    levels: NDArray[Any],
    times: NDArray[Any],
    offsets: NDArray[Any],
    until: int,
    out: NDArray[Any],
) -> None:
    """Write the latents of profiles to `out` [B, H].

    Args:
        model: see `Scorer`.
        items: [M] int64.
        levels: [M] int64.
        times: [M] int64, UTC seconds; [0] where ages do not count.
        offsets: [B + 1] int64, cells of each user, the oldest first.
        until: UTC seconds that ages count from, or from a user's newest cell if that is later.
        out: float32, written.
    """
    encoder, lengths, level_scale, settings = model[0], model[1], model[2], model[3]
    level_in, table_in, level_shift, overall = model[4], model[5], model[6], model[7]
    residual, loadings, variance, penalties = model[8], model[9], model[10], model[11]
    half_life, exponent, length, recency = settings
    n_users, width = offsets.shape[0] - 1, encoder.shape[1]
    timed = times.shape[0] > 0
    weight, asked = np.empty(items.shape[0], np.float32), np.empty(items.shape[0], np.float32)
    ages = np.zeros(items.shape[0], np.float32)  # which equal those of training, rounded as there
    for user in range(n_users):
        start, stop = offsets[user], offsets[user + 1]
        count = np.float32(max(stop - start, 1))
        end = max(until, times[stop - 1]) if timed and stop > start else until
        fading, total, last = half_life > 0 and timed, 0.0, stop - 1
        share, query = count**-exponent, count**-length
        for m in range(stop - 1, start - 1, -1):
            if timed:
                ages[m] = np.float32(max(end - times[m], 0))
            weight[m] = np.exp2(-ages[m] / half_life) if fading else share
            total += weight[m]
            asked[m] = query
            if timed and recency > 0:
                if m + 1 < stop and ages[m] != ages[m + 1]:
                    last = m
                asked[m] *= np.exp2(np.float32(last + 1 - stop) / recency)
        if fading:
            share = np.float32(max(total, _LEAST_WEIGHT) ** -np.float64(exponent))
            for m in range(start, stop):
                weight[m] *= share
    for m in range(items.shape[0]):
        asked[m] = weight[m] * asked[m] * level_scale[levels[m]] * lengths[items[m]]
    consume = np.zeros((n_users, width), np.float32)
    add_rows(encoder, items, asked, offsets, consume)
    out[:, :width] = consume
    if out.shape[1] == width:
        return
    n_channels, n_levels = table_in.shape[1], overall.shape[0]
    places = np.empty(items.shape[0] * n_channels, np.int64)
    amounts = np.empty(places.shape[0], np.float32)
    for m in range(items.shape[0]):
        for channel in range(n_channels):
            places[m * n_channels + channel] = items[m] * n_channels + channel
            amounts[m * n_channels + channel] = table_in[levels[m], channel] * weight[m]
    latent = np.empty((n_users, level_shift.shape[0]), np.float32)
    latent[:] = level_shift
    add_rows(level_in, places, amounts, offsets * n_channels, latent)
    factors = np.zeros((n_users, loadings.shape[1]), np.float32)
    if residual.shape[0] > 0:
        values = np.empty(items.shape[0], np.float32)
        for m in range(items.shape[0]):
            values[m] = residual[items[m], levels[m]]
        rated = np.isfinite(values)
        user_factors(loadings, variance, penalties, items, values, rated, offsets, factors)
    first = width + latent.shape[1]
    out[:, width:first] = latent
    out[:, first : first + factors.shape[1]] = factors
    _shares(levels, offsets, overall, out[:, out.shape[1] - n_levels :])


@compiled
def _shares(
    levels: NDArray[Any], offsets: NDArray[Any], overall: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write how far the logs of users' shares of levels lie above the overall ones, [B, R]."""
    pseudo = np.float32(USER_PSEUDO_CELLS) * np.exp(overall)
    counts = np.empty(overall.shape[0], np.int64)
    for user in range(out.shape[0]):
        counts[:] = 0
        for m in range(offsets[user], offsets[user + 1]):
            counts[levels[m]] += 1
        cells = counts.sum() + USER_PSEUDO_CELLS
        for r in range(counts.shape[0]):
            out[user, r] = np.log((counts[r] + pseudo[r]) / cells) - overall[r]


@compiled
def linked(link: tuple[Any, ...], scores: NDArray[Any]) -> NDArray[Any]:
    """Return unnormalised log probabilities of scores [M], by (is it fitted, ...) of `Link`."""
    if not link[0]:
        return scores
    points, out = np.empty(scores.shape[0], np.float32), np.empty(scores.shape[0], np.float32)
    for m in range(scores.shape[0]):
        points[m] = (scores[m] - link[2]) / link[3]
    curve(points, link[1], out)
    return out


@compiled
def consume_scores(
    model: tuple[Any, ...],
    z: NDArray[Any],
    nums: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the consume scores of several users' items to `out` [M].

    Args:
        model: `consuming` of `Scorer`.
        z: [B, Hc] latents, contiguous.
        nums: [M] int64 items, user by user.
        offsets: [B + 1] items of each user.
        out: float32, written.
    """
    rows, lengths, prior = model[0], model[1], model[2]
    row_products(rows, nums, offsets, z, out)
    for m in range(nums.shape[0]):
        out[m] = out[m] * lengths[nums[m]] + prior[nums[m]]


@compiled
def log_z(
    model: tuple[Any, ...],
    sample: tuple[Any, ...],
    z: NDArray[Any],
    users: NDArray[Any],
    items: NDArray[Any],
    offsets: NDArray[Any],
    best: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write log Z of some users to `out` [B], see `normaliser.py`.

    Args:
        model: `consuming` of `Scorer`.
        sample: (whole, steps, prior, log weights, items) of T.
        z: [B, Hc] latents, contiguous.
        users: int64, rows of those users.
        items: [M], user by user, that are summed exactly.
        offsets: [B + 1] items of each user.
        best: [B, K] others that are; what is no item of the model is left out.
        out: float32, written for those users.
    """
    link, n_users, n_items = model[3:], users.shape[0], model[1].shape[0]
    asked = np.empty((n_users, z.shape[1]), np.float32)
    own = np.empty(items.shape[0] + n_users * best.shape[1], np.int64)
    ends, end = np.zeros(n_users + 1, np.int64), 0
    for row in range(n_users):
        user = users[row]
        asked[row] = z[user]
        for m in range(offsets[user], offsets[user + 1]):
            own[end] = items[m]
            end += 1
        for k in range(best.shape[1]):
            if 0 <= best[user, k] < n_items:
                own[end] = best[user, k]
                end += 1
        ends[row + 1] = end
    unique_runs(own, ends)
    own = own[: ends[-1]]
    exact = np.empty(own.shape[0], np.float32)
    consume_scores(model, asked, own, ends, exact)
    products = np.empty((n_users, sample[1].shape[0]), np.float32)
    integer_products(Rounded(sample[0], sample[1]), asked, 1.0, products)
    prior, log_weights, size = sample[2], sample[3], sample[2].shape[0]
    scores = np.empty((n_users, size), np.float32)
    for row in range(n_users):
        for t in range(size):
            scores[row, t] = products[row, t] + prior[t]
    logs = linked(link, scores.reshape(-1)).reshape((n_users, size))
    for row in range(n_users):
        for t in range(size):
            logs[row, t] += log_weights[t]
    sums = np.empty(n_users, np.float32)
    log_sums(logs, sample[4], own, ends, linked(link, exact), sums)
    out[users] = sums


@compiled
def are_long(z: NDArray[Any], width: int, length: float) -> NDArray[Any]:
    """Tell of each latent of z [B, H] whether its first dims are longer than that, [B] bool."""
    found = np.empty(z.shape[0], np.bool_)
    for user in range(z.shape[0]):
        square = np.float32(0)
        for d in range(width):
            square += z[user, d] * z[user, d]
        found[user] = square > length * length
    return found


@compiled
def item_scores(
    model: tuple[Any, ...],
    link: tuple[Any, ...],
    z: NDArray[Any],
    nums: NDArray[Any],
    offsets: NDArray[Any],
    log_z: NDArray[Any],
    consume: NDArray[Any],
    log_p: NDArray[Any],
    probs: NDArray[Any],
    sums: NDArray[Any],
) -> None:
    """Write what the model says of several users' items.

    Args:
        model: see `Scorer`.
        link: `held` of `Link`.
        z: [B, H] latents.
        nums: [M] int64 items, user by user.
        offsets: [B + 1] items of each user.
        log_z: [B].
        consume: [M] consume scores.
        log_p: [M] float32, log P(i | u), written.
        probs: [M, R] float32, P(r | i, u), written.
        sums: [3, M] float32, written: P of the liked levels, of the rated ones, and the mean value
            of the rated ones.
    """
    logs = linked(link, consume)
    for user in range(offsets.shape[0] - 1):
        for m in range(offsets[user], offsets[user + 1]):
            log_p[m] = logs[m] - log_z[user]
    level_probs_of(model, z, nums, offsets, probs)
    level_sums(probs, model[0], sums)
    for m in range(nums.shape[0]):
        sums[2, m] /= max(sums[1, m], np.float32(1e-30))


@compiled
def level_probs_of(
    model: tuple[Any, ...],
    z: NDArray[Any],
    nums: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write P(r | i, u) of several users' items to `out` [M, R]; see `item_scores`."""
    if out.shape[1] == 1:
        out[:] = 1
        return
    level_out, loadings, bias, channels = model[1], model[2], model[3], model[4]
    table_out, table_user, table_levels = model[5], model[6], model[7]
    n_users, size, n_levels = z.shape[0], level_out.shape[2], table_levels.shape[0]
    third = z.shape[1] - n_levels
    second = third - loadings.shape[1]
    first = second - size
    hidden = np.empty((n_users, size), np.float32)
    factors = np.empty((n_users, loadings.shape[1]), np.float32)
    shifts = np.empty((n_users, n_levels + channels.shape[0]), np.float32)
    hidden[:], factors[:] = z[:, first:second], z[:, second:third]
    for user in range(n_users):
        for r in range(n_levels):
            shifts[user, r] = z[user, third + r] * table_levels[r]
        for k in range(channels.shape[0]):
            shifts[user, n_levels + k] = factors[user, 0] * table_user[k]
    level_probs(
        level_out, loadings, bias, nums, offsets, hidden, factors, shifts, channels, table_out, out
    )
