"""Four-bit values for sparse codes: a codebook per position, steps chosen jointly per row.

    M rows, n = n_active, D dims, S atoms

A row's values u are divided by their root mean square, then position j takes one of 8 magnitudes
learned for that position (Lloyd, "Least squares quantization in PCM", IEEE Trans. IT 28, 1982)
and a sign. Positions differ because the large values of a row come first. Rounding each value
alone ignores that atoms overlap; coordinate descent over the steps on
|x - s * sum_j c_j d_j|^2, with s re-fitted between sweeps, gives back a part of that cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import nearest_step
from raysys.data.compiled import compiled_fast

N_STEPS = 16
_MAGNITUDES = 8
_SAMPLE_ROWS = 50_000
_LLOYD_ROUNDS = 25
_SWEEPS = 3
_SOLVE_ROWS = 1024


def fit_codebook(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Learn the steps of every position from (a fixed stride of) the rows.

    Args:
        values: [M, n], M > 0; zero rows are ignored.

    Returns:
        [n, 16]: 8 ascending magnitudes, then the same with a minus sign; each position's steps
        apply to values divided by their row's root mean square.
    """
    sample = np.asarray(values[:: sample_stride(len(values))], dtype=np.float32)
    rms = np.sqrt(np.mean(sample * sample, axis=1, keepdims=True))
    sample = np.abs(sample[rms[:, 0] > 0] / rms[rms[:, 0] > 0])
    if len(sample) == 0:
        sample = np.ones((1, values.shape[1]), dtype=np.float32)
    magnitudes = np.stack([_lloyd(np.sort(column)) for column in sample.T])
    return np.concatenate([magnitudes, -magnitudes], axis=1).astype(np.float32)


def sample_stride(n_rows: int) -> int:
    """Return s: every s-th of all rows decides about the steps."""
    return max(1, n_rows // _SAMPLE_ROWS)


def no_codebook() -> NDArray[np.float32]:
    """Return the codebook [0, 16] of packings that have none."""
    return np.zeros((0, N_STEPS), dtype=np.float32)


def _lloyd(ordered: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return 8 ascending steps with small squared error on `ordered` (ascending)."""
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    steps = np.quantile(ordered.astype(np.float64), (np.arange(_MAGNITUDES) + 0.5) / _MAGNITUDES)
    for _ in range(_LLOYD_ROUNDS):
        edges = np.searchsorted(ordered, (steps[1:] + steps[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(counts, 1)
        steps = np.sort(np.where(counts > 0, means, steps))
    return steps


@compiled_fast
def _dot(a: NDArray[Any], b: NDArray[Any]) -> Any:
    total = np.float32(0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@compiled_fast
def _add(total: NDArray[Any], factor: float, atom: NDArray[Any]) -> None:
    for d in range(total.shape[0]):
        total[d] += factor * atom[d]


@compiled_fast
def choose_steps(
    atoms: NDArray[Any],
    values: NDArray[Any],
    vectors: NDArray[Any],
    dictionary: NDArray[Any],
    codebook: NDArray[Any],
    steps: NDArray[Any],
) -> None:
    """Choose the step of every entry so that the row, at its best scale, is near its vector.

    Args:
        atoms: [M, n] row numbers of the dictionary.
        values: [M, n] float32 starting values.
        vectors: [M, D] float32 targets, or [0, D]: the reconstructions of `values` themselves.
        dictionary: [S, D] float32.
        codebook: [n, 16] float32.
        steps: [M, n] uint8, written.
    """
    n = atoms.shape[1]
    gram = np.empty((n, n), np.float32)
    target = np.empty(n, np.float32)
    chosen = np.empty(n, np.float32)
    against = np.empty(n, np.float32)
    for row in range(atoms.shape[0]):
        for i in range(n):
            for j in range(i + 1):
                gram[i, j] = _dot(dictionary[atoms[row, i]], dictionary[atoms[row, j]])
                gram[j, i] = gram[i, j]
        scale = np.float32(0)
        for j in range(n):
            scale += values[row, j] * values[row, j]
        scale = np.sqrt(scale / np.float32(n))
        if scale == 0:
            continue
        for j in range(n):
            if vectors.shape[0] > 0:
                target[j] = _dot(dictionary[atoms[row, j]], vectors[row])
            else:
                target[j] = _dot(gram[j], values[row])
            steps[row, j] = nearest_step(codebook[j], values[row, j] / scale)
            chosen[j] = codebook[j, steps[row, j]]
        for i in range(n):
            against[i] = _dot(gram[i], chosen)
        for _ in range(_SWEEPS):
            energy = _dot(chosen, against)
            fit = _dot(chosen, target)
            if energy <= 0 or fit <= 0:
                break
            scale = fit / energy
            changed = False
            for j in range(n):
                if gram[j, j] == 0:
                    continue
                wish = chosen[j] + (target[j] / scale - against[j]) / gram[j, j]
                step = nearest_step(codebook[j], wish)
                if step != steps[row, j]:
                    change = codebook[j, step] - chosen[j]
                    for i in range(n):
                        against[i] += change * gram[i, j]
                    steps[row, j] = step
                    chosen[j] = codebook[j, step]
                    changed = True
            if not changed:
                break


@compiled_fast
def project(
    atoms: NDArray[Any],
    values: NDArray[Any],
    vectors: NDArray[Any],
    dictionary: NDArray[Any],
    energy: NDArray[Any],
    product: NDArray[Any],
) -> None:
    """Write |xhat|^2 to `energy` [M] and, where `vectors` has rows, x . xhat to `product` [M]."""
    xhat = np.empty(dictionary.shape[1], np.float32)
    for row in range(atoms.shape[0]):
        xhat[:] = 0
        for j in range(atoms.shape[1]):
            _add(xhat, values[row, j], dictionary[atoms[row, j]])
        energy[row] = _dot(xhat, xhat)
        if vectors.shape[0] > 0:
            product[row] = _dot(vectors[row], xhat)


@compiled_fast
def write_reconstructions(
    atoms: NDArray[Any], values: NDArray[Any], dictionary: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write sum_j values[:, j] * dictionary[atoms[:, j]] to `out` [M, D]."""
    for row in range(atoms.shape[0]):
        out[row] = 0
        for j in range(atoms.shape[1]):
            _add(out[row], values[row, j], dictionary[atoms[row, j]])


def fit_values(
    atoms: NDArray[np.integer[Any]], vectors: NDArray[np.float32], dictionary: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the values [M, n] that bring each row's atoms nearest to its vector."""
    out = np.empty(atoms.shape, dtype=np.float32)
    ridge = 1e-6 * np.eye(atoms.shape[1], dtype=np.float32)
    for start in range(0, len(atoms), _SOLVE_ROWS):
        rows = slice(start, start + _SOLVE_ROWS)
        chosen = dictionary[atoms[rows]]  # [m, n, D]
        gram = chosen @ chosen.transpose(0, 2, 1) + ridge
        target = chosen @ vectors[rows, :, None]
        out[rows] = np.linalg.solve(gram, target)[:, :, 0]
    return out
