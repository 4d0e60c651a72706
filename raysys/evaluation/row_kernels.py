"""The best items of one row of scores, for compiled loops over users."""

from __future__ import annotations

from typing import Any

from raysys.data.compiled import compiled


@compiled
def best_of_row(row: Any, values: Any, items: Any) -> int:
    """Write the best of scores [N], best first and the first of equals; return how many there are.

    A row is read once, and few of its scores enter the list.

    Args:
        row: float32 [N].
        values: float32 [K], written: their scores.
        items: int [K], written: their numbers.
    """
    filled, top_k = 0, len(items)
    for item in range(len(row)):
        score = row[item]
        if filled == top_k and not score > values[top_k - 1]:
            continue
        if filled < top_k:
            filled += 1
        place = filled - 1
        while place > 0 and score > values[place - 1]:
            values[place], items[place] = values[place - 1], items[place - 1]
            place -= 1
        values[place], items[place] = score, item
    return filled
