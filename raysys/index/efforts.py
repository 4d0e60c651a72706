"""Efforts: how many lists (ivf) or steps (graph) the queries of each sort need.

    Q queries, D dims

A build measures them for several top_k. Queries that score a head need few lists beside it, or
none; the longest tenth of these, of users who like few items much more than others do, need many.
The others are queries from item to item, and those that subtract a bias. What one ranking of users
needs may be a hundred times what another does, so queries that weigh one bias have efforts of their
own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.data.compiled import compiled_short, compiled_with

PLAIN, HEADED, LONG = 0, 1, 2
_KINDS = 3
_FAR = 2  # times the last measured top_k
Table = Mapping[int, int]


@dataclasses.dataclass(frozen=True)
class Efforts:
    """Measured efforts, {top_k: effort} each.

    A sort is PLAIN, HEADED or LONG, and three more for each bias up to the one that a query weighs.

    Attributes:
        plain: of queries without a head, and of those that subtract a bias.
        headed: of the others.
        long: of those of them that are long.
        lengths: for each bias, the length beyond which queries that weigh it are long; None: none
            is. Empty: no query is long.
        own: for each bias, those of headed and of long queries that weigh it alone; empty tables
            where none were measured. Empty: all have the same.
    """

    plain: Table = dataclasses.field(default_factory=dict)
    headed: Table = dataclasses.field(default_factory=dict)
    long: Table = dataclasses.field(default_factory=dict)
    lengths: tuple[float | None, ...] = ()
    own: tuple[tuple[Table, Table], ...] = ()

    def __post_init__(self) -> None:
        """Put every table in the order of its top_k."""
        for name in ("plain", "headed", "long"):
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))
        own = [[dict(sorted(table.items())) for table in tables] for tables in self.own]
        object.__setattr__(self, "own", tuple(map(tuple, own)))

    def of(self, sort: int) -> Table:
        """Return the efforts of a sort; where none were measured, those of the sort before."""
        number, kind = divmod(sort, _KINDS)
        headed, long = self.own[number - 1] if 0 < number <= len(self.own) else ({}, {})
        every = self.headed or self.plain
        return (self.plain, headed or every, long or self.long or headed or every)[kind]

    def wanted(self, sort: int, depth: int, least: int) -> int:
        """Return the measured effort of the next larger top_k, or grow the last in proportion.

        A head that is enough for the last one is so for somewhat more.

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
        some = max(effort, int(depth > _FAR * top_k))
        return max(-(-some * depth // top_k), least)

    def sorts(
        self, queries: Floats, weights: Floats, heads: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Return the sort of each query, [Q].

        Args:
            queries: [Q, D].
            weights: [Q, n_bias] of the biases.
            heads: [n_bias] which biases have a head.
        """
        found = np.empty(len(queries), dtype=np.int64)
        _sorts(queries, weights, heads, self._least, found)
        return found

    @cached_property
    def _least(self) -> NDArray[np.float64]:
        """The lengths, inf where there is none."""
        return np.array([np.inf if length is None else length for length in self.lengths])


@compiled_with(fastmath=True)
def _square(query: NDArray[Any]) -> Any:
    """Return the square of a query's length."""
    total = np.float32(0)
    for d in range(query.shape[0]):
        total += query[d] * query[d]
    return total


@compiled_short
def _sorts(
    queries: NDArray[Any],
    weights: NDArray[Any],
    heads: NDArray[Any],
    least: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the sort of each query to `out` [Q], see `Efforts.sorts`; `least` are lengths."""
    for q in range(queries.shape[0]):
        number, n_weighed, negative, beyond = 0, 0, False, np.inf
        for column in range(weights.shape[1]):
            weight = weights[q, column]
            negative |= not weight >= 0
            if weight > 0:
                n_weighed += 1
                if column < least.shape[0]:
                    beyond = min(beyond, least[column])
                if heads[column]:
                    number = column + 1
        out[q] = PLAIN
        if number > 0 and not negative:
            kind = LONG if _square(queries[q]) > beyond * beyond else HEADED
            out[q] = kind + (_KINDS * number if n_weighed == 1 else 0)


def is_long(sort: Any) -> Any:
    """Tell whether queries of a sort, or of each of several, are long."""
    return sort % _KINDS == LONG
