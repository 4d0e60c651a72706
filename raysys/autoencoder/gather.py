"""Functions of gathered rows that hold a part of them at a time.

A batch of M cells that looks up rows of its tables would keep [M, H] copies of them until the
backward pass. Here a part of the cells is looked up, used and forgotten, and looked up once more
when gradients are asked for: memory is that of the tables and of one part, which a cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_PART_ELEMENTS = 1 << 18  # of the rows of a part, over all tables: what a core's cache holds
_PART_ELEMENTS_GPU = 1 << 25  # few kernels there

Rows = Callable[..., Tensor]
Into = tuple[Tensor, int]


def of_rows(function: Rows, tables: Sequence[Tensor], places: Sequence[Tensor | None]) -> Tensor:
    """Return function(table[place], ...) of all M cells, computed part by part.

    Args:
        function: of the rows of every table, [m, ...] each, for some of the cells; returns
            [m, ...], cell by cell. It must give the same when it is called again.
        tables: float tensors; those that need a gradient get one.
        places: for each table the row of every cell, int64 [M]; None: the cells' own, in order.
            At least one is not None.
    """
    result: Tensor = _OfRows.apply(function, tuple(places), None, *tables)  # type: ignore[no-untyped-call]
    return result


def sums_of_rows(
    function: Rows, tables: Sequence[Tensor], places: Sequence[Tensor | None], into: Into
) -> Tensor:
    """Return the sums [n, ...] of what `of_rows` would give; `into`: each cell's row, and n."""
    result: Tensor = _OfRows.apply(function, tuple(places), into, *tables)  # type: ignore[no-untyped-call]
    return result


def product_sums(one: Tensor, at_one: Tensor, other: Tensor, at_other: Tensor) -> Tensor:
    """Return sum_h one[i, h] other[j, h] for pairs (i, j) of rows, [M]."""
    return of_rows(lambda a, b: (a * b).sum(dim=1), [one, other], [at_one, at_other])


class _OfRows(torch.autograd.Function):
    """See `of_rows` and `sums_of_rows`."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Rows,
        places: tuple[Tensor | None, ...],
        into: Into | None,
        *tables: Tensor,
    ) -> Any:
        ctx.function, ctx.places, ctx.into = function, places, into
        ctx.save_for_backward(*tables)
        with torch.autocast(tables[0].device.type, enabled=False):
            if into is None:
                found = [function(*_rows(tables, places, part)) for part in _parts(tables, places)]
                return found[0] if len(found) == 1 else torch.cat(found)
            row, n_rows = into
            whole: Tensor | None = None
            for part in _parts(tables, places):
                found_here = function(*_rows(tables, places, part))
                if whole is None:
                    whole = found_here.new_zeros(n_rows, *found_here.shape[1:])
                whole.index_add_(0, row[part], found_here)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tables, places, into = ctx.saved_tensors, ctx.places, ctx.into
        wanted = [n for n, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        sums = {n: torch.zeros_like(tables[n]) for n in wanted}
        for part in _parts(tables, places):
            rows = [row.detach() for row in _rows(tables, places, part)]
            for n in wanted:
                rows[n].requires_grad_()
            with torch.enable_grad():
                out = ctx.function(*rows)
            to_out = grads[0][part if into is None else into[0][part]]
            found = torch.autograd.grad(out, [rows[n] for n in wanted], to_out)
            for n, gradient in zip(wanted, found, strict=True):
                place = places[n]
                if place is None:
                    sums[n][part] = gradient
                else:
                    sums[n].index_add_(0, place[part], gradient)
        return None, None, None, *(sums.get(n) for n in range(len(tables)))


def _rows(tables: Sequence[Tensor], places: Sequence[Tensor | None], part: slice) -> list[Tensor]:
    return [
        table[part] if place is None else table[place[part]]
        for table, place in zip(tables, places, strict=True)
    ]


def _parts(tables: Sequence[Tensor], places: Sequence[Tensor | None]) -> list[slice]:
    size = next(len(place) for place in places if place is not None)
    width = sum(table[:1].numel() for table in tables)
    return parts_of(size, width, part_elements(tables[0]))


def part_elements(like: Tensor) -> int:
    """Return how many elements of looked-up rows to hold at once where this tensor lies."""
    return _PART_ELEMENTS_GPU if like.is_cuda else _PART_ELEMENTS


def parts_of(size: int, width: int, most: int) -> list[slice]:
    """Cut rows 0 .. size of `width` elements into parts of at most `most`; one part at least."""
    step = max(1, most // max(width, 1))
    return [slice(start, start + step) for start in range(0, max(size, 1), step)]
