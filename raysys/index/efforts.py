"""Efforts: how many lists (ivf) or steps (graph) the queries of each sort need.

    Q queries, D dims

A build measures them for several top_k. Queries that score a head need few lists beside it; the
longest tenth of these, of users who like few items much more than others do, need many. The others
are queries from item to item, and those that subtract a bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats

PLAIN, HEADED, LONG = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Efforts:
    """Measured efforts, {top_k: effort} each.

    Attributes:
        plain: of queries without a head, and of those that subtract a bias.
        headed: of the others.
        long: of those of them that are long.
        lengths: for each bias, the length beyond which queries that weigh it are long; None: none
            is. Empty: no query is long.
    """

    plain: Mapping[int, int] = dataclasses.field(default_factory=dict)
    headed: Mapping[int, int] = dataclasses.field(default_factory=dict)
    long: Mapping[int, int] = dataclasses.field(default_factory=dict)
    lengths: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        """Put every table in the order of its top_k."""
        for name in ("plain", "headed", "long"):
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))

    def of(self, sort: int) -> Mapping[int, int]:
        """Return the efforts of a sort; where none were measured, those of the sort before."""
        measured = (self.plain, self.headed or self.plain, self.long or self.headed or self.plain)
        return measured[sort]

    def wanted(self, sort: int, depth: int, least: int) -> int:
        """Return the measured effort of the next larger top_k, or grow the last in proportion.

        Args:
            sort: of the query.
            depth: its top_k and what it excludes.
            least: effort.
        """
        table = self.of(sort)
        for top_k, effort in table.items():
            if top_k >= depth:
                return max(effort, least)
        top_k, effort = list(table.items())[-1] if table else (1, 1)
        return max(-(-effort * depth // top_k), least)

    def sorts(
        self, queries: Floats, weights: Floats, heads: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Return the sort of each query: PLAIN, HEADED or LONG, [Q].

        Args:
            queries: [Q, D].
            weights: [Q, n_bias] of the biases.
            heads: [n_bias] which biases have a head.
        """
        headed = np.asarray((weights[:, heads] > 0).any(axis=1) & (weights >= 0).all(axis=1))
        if not self.lengths:
            return np.asarray(headed, dtype=np.int64)
        least = np.array([np.inf if length is None else length for length in self.lengths])
        asked = np.where(weights > 0, least, np.inf).min(axis=1, initial=np.inf)
        squares = np.einsum("qd,qd->q", queries, queries)
        return np.asarray(headed + 1 * (headed & (squares > asked * asked)), dtype=np.int64)
