"""Cold items: a ridge map from content embeddings to item vectors, fitted on warm items.

    W warm items with content, E content dims, D + n_bias what is predicted

    [v, b] = [c, 1] B,  B = argmin |[c, 1] B - [v, b]|^2 + lambda |B|^2 (the constant is free)

lambda is the one of a grid that finds most on warm items left out; the recall that is reported is
of another tenth that neither the fit nor the choice saw: the share of the 10 items nearest to a
left-out item's true vector that are among the 10 nearest to its predicted one.
Source: Hoerl, Kennard, "Ridge Regression", Technometrics 12(1), 1970.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats, unit_rows
from raysys.errors import DataError

log = logging.getLogger(__name__)

MIN_WARM = 50
TOP = 10
_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MOST_HELD_OUT = 1000
_PURPOSE = 0xC01D


@dataclasses.dataclass(frozen=True)
class ColdMap:
    """The fitted map.

    Attributes:
        weights: [E + 1, D + n_bias] float64; the last row is the constant.
        dim: D.
        ridge: the chosen lambda, times the mean squared content value.
        recall: recall@10 on held-out warm items.
        n_held_out: how many.
    """

    weights: NDArray[np.float64]
    dim: int
    ridge: float
    recall: float
    n_held_out: int

    @classmethod
    def fit(
        cls, content: Floats, vectors: Floats, bias: Floats, *, width: int | None = None, seed: int
    ) -> ColdMap:
        """Fit on warm items.

        Args:
            content: [W, E] finite.
            vectors: [W, D].
            bias: [W, n_bias].
            width: leading dimensions that recall compares; None takes all.
            seed: of which items are left out.

        Raises:
            DataError: fewer than 50 warm items.
        """
        if len(content) < MIN_WARM:
            raise DataError(
                f"{len(content)} items have both content and a vector, the map needs {MIN_WARM}"
            )
        order = np.random.default_rng([seed, _PURPOSE]).permutation(len(content))
        held = min(len(content) // 10, _MOST_HELD_OUT)
        test, choice, rest = order[:held], order[held : 2 * held], order[2 * held :]
        targets = np.concatenate([vectors, bias], axis=1).astype(np.float64)
        inputs = np.concatenate([content, np.ones((len(content), 1))], axis=1)
        compared = unit_rows(np.asarray(vectors[:, :width], dtype=np.float32))
        found = {}
        for ridge in _GRID:
            weights = _solve(inputs[rest], targets[rest], ridge)
            found[ridge] = _recall(inputs[choice] @ weights, choice, compared)
        ridge = max(_GRID, key=lambda r: found[r])
        kept = np.concatenate([rest, choice])
        weights = _solve(inputs[kept], targets[kept], ridge)
        recall = _recall(inputs[test] @ weights, test, compared)
        log.info("cold map ridge=%g recall@10=%.4f held_out=%d", ridge, recall, held)
        return cls(_solve(inputs, targets, ridge), vectors.shape[1], ridge, recall, held)

    def predict(self, content: Floats) -> tuple[Floats, Floats]:
        """Return the vectors [M, D] and biases [M, n_bias] of content [M, E]."""
        if content.shape[1] != len(self.weights) - 1:
            raise DataError(
                f"content embeddings have {content.shape[1]} numbers, those of the warm items "
                f"{len(self.weights) - 1}"
            )
        both = np.concatenate([content, np.ones((len(content), 1))], axis=1) @ self.weights
        return both[:, : self.dim].astype(np.float32), both[:, self.dim :].astype(np.float32)


def _solve(
    inputs: NDArray[np.float64], targets: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    size = np.mean(inputs[:, :-1] ** 2) * len(inputs)
    penalty = np.full(inputs.shape[1], ridge * size)
    penalty[-1] = 1e-9 * size
    gram = inputs.T @ inputs + np.diag(penalty)
    return np.asarray(np.linalg.solve(gram, inputs.T @ targets))


def _recall(predicted: NDArray[np.float64], rows: NDArray[np.int64], vectors: Floats) -> float:
    """Return how many of a row's true neighbours its prediction has, itself left out."""
    guess = unit_rows(predicted[:, : vectors.shape[1]].astype(np.float32))
    hits = []
    for mine, row in zip(guess, rows, strict=True):
        lists = []
        for query in (vectors[row], mine):
            scores = vectors @ query
            scores[row] = -np.inf
            lists.append(np.argpartition(-scores, TOP)[:TOP])
        hits.append(np.isin(lists[0], lists[1]).mean())
    return float(np.mean(hits))
