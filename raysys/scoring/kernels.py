"""Compiled loops over compact rows: sums of rows, products with rows, levels of items.

    N items, B users, M cells, C candidates, R levels, K output channels, F factors

Rows are float16, passed as their bits (uint16), which numba can load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.compiled import compiled, compiled_fast, half, prefetch
from raysys.data.elementary import exp_of, log1p_of, log_of

_AHEAD = 4  # rows between asking for one and reading it
_LINE = 32  # halves of a cache line
_NOTHING = -1e30  # a log whose exponential is 0
_BLOCK_ROWS = 16  # that several users meet at once


@compiled_fast
def add_rows(
    rows: NDArray[Any],
    places: NDArray[Any],
    weights: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Add weights [M] times rows[places] to the user of each cell, `out` [B, W].

    Args:
        rows: [X, W] uint16, bits of float16.
        places: [M] row of each cell.
        weights: [M] float32.
        offsets: [B + 1] cells of each user.
        out: [B, W] float32, added to.
    """
    for user in range(out.shape[0]):
        total = out[user]
        for m in range(offsets[user], offsets[user + 1]):
            row, weight = rows[places[m]], weights[m]
            for d in range(total.shape[0]):
                total[d] += weight * half(row[d])


@compiled_fast
def row_products(
    rows: NDArray[Any],
    places: NDArray[Any],
    offsets: NDArray[Any],
    vectors: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the products of every user's rows with its vector to `out` [M].

    Rows may lie anywhere: every cache line of one is asked for ahead of its turn.

    Args:
        rows: [X, W] uint16, bits of float16.
        places: [M] rows, user by user.
        offsets: [B + 1] places of each user.
        vectors: [B, W] float32.
        out: [M] float32.
    """
    width = rows.shape[1]
    n_lines = width // _LINE if width % _LINE == 0 else 1
    lines = rows.reshape((rows.shape[0] * n_lines, width // n_lines))
    for user in range(vectors.shape[0]):
        vector = vectors[user]
        for m in range(offsets[user], offsets[user + 1]):
            if m + _AHEAD < places.shape[0]:
                first = places[m + _AHEAD] * n_lines
                for line in range(first, first + n_lines):
                    prefetch(lines, line)
            row, total = rows[places[m]], np.float32(0)
            for d in range(vector.shape[0]):
                total += half(row[d]) * vector[d]
            out[m] = total


@compiled_fast
def unique_runs(items: NDArray[Any], offsets: NDArray[Any]) -> None:
    """Sort every user's items [M] in place, each once, and move them together.

    `offsets` [B + 1] become those of what is left at the start of `items`.
    """
    end = 0
    for user in range(offsets.shape[0] - 1):
        mine = np.sort(items[offsets[user] : offsets[user + 1]])
        offsets[user] = end  # what stood there was read
        for m in range(mine.shape[0]):
            if m == 0 or mine[m] != mine[m - 1]:
                items[end] = mine[m]
                end += 1
    offsets[offsets.shape[0] - 1] = end


@compiled_fast
def log_sums(
    logs: NDArray[Any],
    sampled: NDArray[Any],
    items: NDArray[Any],
    offsets: NDArray[Any],
    exact: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write log(sum of exp) of a sample and of exact items to `out` [B].

    Args:
        logs: [B, T] of what each of the sample stands for; those of exact items are overwritten.
        sampled: [T] the sample's items, ascending.
        items: [M] exact items, user by user, ascending and each once.
        offsets: [B + 1] items of each user.
        exact: [M] their logs.
        out: [B] float32.
    """
    for user in range(logs.shape[0]):
        mine = logs[user]
        start, stop = offsets[user], offsets[user + 1]
        place = 0
        for m in range(start, stop):
            place += np.searchsorted(sampled[place:], items[m])
            if place < sampled.shape[0] and sampled[place] == items[m]:
                mine[place] = _NOTHING
        top = np.float32(_NOTHING)
        for t in range(mine.shape[0]):
            top = max(top, mine[t])
        for m in range(start, stop):
            top = max(top, exact[m])
        total, others = np.float32(0), np.float32(0)
        for t in range(mine.shape[0]):
            total += exp_of(mine[t] - top)
        for m in range(start, stop):
            others += exp_of(exact[m] - top)
        out[user] = top + np.log(total + others)


@compiled_fast
def all_products(rows: NDArray[Any], vectors: NDArray[Any], out: NDArray[Any]) -> None:
    """Write vectors [B, W] times rows [X, W] transposed to `out` [B, X]; rows as in `add_rows`.

    A block of rows is converted once and meets all vectors while it lies in the nearest cache.
    """
    width = rows.shape[1]
    block = np.empty((_BLOCK_ROWS, width), np.float32)
    for start in range(0, rows.shape[0], _BLOCK_ROWS):
        size = min(_BLOCK_ROWS, rows.shape[0] - start)
        for m in range(size):
            for d in range(width):
                block[m, d] = half(rows[start + m, d])
        for b in range(vectors.shape[0]):
            vector = vectors[b]
            for m in range(size):
                row, total = block[m], np.float32(0)
                for d in range(width):
                    total += row[d] * vector[d]
                out[b, start + m] = total


@compiled_fast
def curve(points: NDArray[Any], parameters: NDArray[Any], out: NDArray[Any]) -> None:
    """Write the link of standardised scores [C] to `out`, see `autoencoder/calibration.py`.

    Args:
        points: [C] float32.
        parameters: [4] slope, power, sharpness, floor.
        out: [C] float32.
    """
    slope, power, sharpness, floor = parameters
    for m in range(points.shape[0]):
        inside = sharpness * points[m]
        soft = max(inside, np.float32(0)) + log1p_of(exp_of(-abs(inside)))
        out[m] = slope * points[m] + power * log_of(soft + floor)


@compiled_fast
def level_probs(
    vectors: NDArray[Any],
    loadings: NDArray[Any],
    bias: NDArray[Any],
    nums: NDArray[Any],
    offsets: NDArray[Any],
    latents: NDArray[Any],
    factors: NDArray[Any],
    shifts: NDArray[Any],
    channels: NDArray[Any],
    table: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write P(r | i, u) of every user's items to `out` [M, R].

    Args:
        vectors: [N, K, Hl] uint16, bits of float16: W.
        loadings: [N, 1 + F]: v, the first of which is not used.
        bias: [N, R].
        nums: [M] items, user by user.
        offsets: [B + 1] items of each user.
        latents: [B, Hl] the learned parts of z_l.
        factors: [B, 1 + F].
        shifts: [B, R + K], what users add to every item: first to levels, then to channels.
        channels: [K], c.
        table: [K, R], T.
        out: [M, R].
    """
    n_levels, n_channels = bias.shape[1], channels.shape[0]
    size = n_channels * vectors.shape[2]
    n_lines = size // _LINE if size % _LINE == 0 else 1
    lines = vectors.reshape((vectors.shape[0] * n_lines, size // n_lines))
    for user in range(latents.shape[0]):
        latent, factor, shift = latents[user], factors[user], shifts[user]
        for m in range(offsets[user], offsets[user + 1]):
            if m + _AHEAD < nums.shape[0]:
                following = nums[m + _AHEAD]
                for line in range(following * n_lines, (following + 1) * n_lines):
                    prefetch(lines, line)
                prefetch(loadings, following)
                prefetch(bias, following)
            num = nums[m]
            liking = np.float32(0)
            for f in range(1, factor.shape[0]):
                liking += factor[f] * loadings[num, f]
            for r in range(n_levels):
                out[m, r] = bias[num, r] + shift[r]
            for k in range(n_channels):
                row, hidden = vectors[num, k], np.float32(0)
                for d in range(latent.shape[0]):
                    hidden += half(row[d]) * latent[d]
                hidden += liking * channels[k] + shift[n_levels + k]
                for r in range(n_levels):
                    out[m, r] += hidden * table[k, r]
            top, total = out[m].max(), np.float32(0)
            for r in range(n_levels):
                out[m, r] = exp_of(out[m, r] - top)
            for r in range(n_levels):
                total += out[m, r]
            for r in range(n_levels):
                out[m, r] /= total


@compiled
def level_sums(probs: NDArray[Any], weights: NDArray[Any], out: NDArray[Any]) -> None:
    """Write probs [M, R] times weights [F, R] transposed to `out` [F, M].

    A row has the same bits in every batch, as no product of matrices has.
    """
    for f in range(weights.shape[0]):
        for m in range(probs.shape[0]):
            total = np.float32(0)
            for r in range(probs.shape[1]):
                total += probs[m, r] * weights[f, r]
            out[f, m] = total


@compiled_fast
def user_factors(
    loadings: NDArray[Any],
    variance: NDArray[Any],
    penalties: NDArray[Any],
    items: NDArray[Any],
    values: NDArray[Any],
    rated: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the factors of users to `out` [B, 1 + F], by a ridge regression on their ratings.

    Args:
        loadings: [N, 1 + F].
        variance: [N, 1 + F] of the loadings.
        penalties: [1 + F], positive.
        items: [M] of the cells.
        values: [M] how far the ratings lie above the items' means.
        rated: [M] bool, which cells have a rating.
        offsets: [B + 1] cells of each user.
        out: [B, 1 + F] float32.
    """
    size = out.shape[1]
    for user in range(out.shape[0]):
        gram, right = np.zeros((size, size)), np.zeros(size)
        for f in range(size):
            gram[f, f] = penalties[f]
        for m in range(offsets[user], offsets[user + 1]):
            if not rated[m]:
                continue
            row, value = loadings[items[m]], values[m]
            for f in range(size):
                right[f] += row[f] * value
                gram[f, f] += variance[items[m], f]
                for other in range(f + 1):
                    gram[f, other] += row[f] * row[other]
        for f in range(size):
            for other in range(f):
                gram[other, f] = gram[f, other]
        out[user] = np.linalg.solve(gram, right).astype(np.float32)
