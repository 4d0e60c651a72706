"""Filters by item attributes: which items a list may hold.

    {"genres": "Comedy"}                      one value
    {"genres": ["Comedy", "Drama"]}           any of them
    {"year": {"min": 1990, "max": 1999}}      a range, either end may be missing
    {"released": {"min": "1990-01-31"}}       of dates

A text is compared with the values' text: `0007` is not `7`. A number is compared with the values
that are numbers: 7.5 meets `7.50`; so is a text of digits where the attribute holds numbers. The
ends of a range count; they are numbers, in text or not, or ISO 8601 dates, the last of which counts
as a whole day. A cell may hold several values: a list of any depth, or text with `|` between.
Under `allow` every condition must hold, under `deny` none may. An item without a value meets none.
"""

from __future__ import annotations

import difflib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python

from raysys.compressor.embeddings import Embeddings
from raysys.data.attributes import storable
from raysys.data.values import numbers_of, spelled
from raysys.errors import SearchError
from raysys.search.attribute_values import NO_MOMENT, AttributeValues, moment_of
from raysys.search.changes import Changes, joined_items

Conditions = Mapping[str, Any]
Mask = NDArray[np.bool_]

_RESERVED = ("item_num", "embedding")
_NAMES = ("item_id", "title")
_KEPT_MASKS = 32
_EXACT = 2**53  # numbers from here on are compared by their text
_DAY_US = 86_400 * 10**6


class Attributes:
    """The columns of the served items that can be filtered by.

    Args:
        items: row number = item_num; every column but item_num and embeddings counts.
    """

    def __init__(self, items: pa.Table) -> None:
        names = [name for name in items.column_names if name not in _RESERVED]
        self._items = items.select(names)
        self._values: dict[str, AttributeValues] = {}
        self._masks: OrderedDict[str, Mask] = OrderedDict()

    @classmethod
    def load(cls, embeddings: Embeddings, changes: Changes | None = None) -> Attributes:
        """Read the items of embeddings, and those that changed since."""
        items = embeddings.items([name for name in embeddings.columns if name not in _RESERVED])
        return cls(items if changes is None else joined_items(items, changes))

    @property
    def names(self) -> list[str]:
        """The attributes by name."""
        return list(self._items.column_names)

    def rows(self, nums: Sequence[int]) -> list[dict[str, Any]]:
        """Return the values of some items as JSON knows them, without their ids and titles."""
        names = [name for name in self.names if name not in _NAMES]
        items = self._items.select(names)  # `take` would copy what lies in several pieces
        values = [row for num in nums for row in items.slice(num, 1).to_pylist()]
        return [
            to_jsonable_python(row, bytes_mode="base64", inf_nan_mode="null", fallback=str)
            for row in values
        ]

    def mask(self, allow: Conditions | None, deny: Conditions | None) -> Mask | None:
        """Return which items [N] a list may hold; None: all.

        Raises:
            SearchError: an attribute that the items do not have, or a condition of no known form.
        """
        if not allow and not deny:
            return None
        key = json.dumps([allow, deny], sort_keys=True, default=str, ensure_ascii=False)
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise SearchError("conditions hold text that is not valid Unicode") from error
        mask: Mask | None = self._masks.get(key)
        if mask is None:
            mask = np.ones(len(self._items), dtype=bool)
            for name, condition in (allow or {}).items():
                mask &= self._meets(name, condition)
            for name, condition in (deny or {}).items():
                mask &= ~self._meets(name, condition)
            self._masks[key] = mask
            while len(self._masks) > _KEPT_MASKS:
                self._masks.popitem(last=False)
        return mask

    def _meets(self, name: str, condition: Any) -> Mask:
        """Return the items [N] that meet one condition."""
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SearchError(
                f"items have no attribute {name!r}: they have {', '.join(self.names)}{hint}"
            )
        if name not in self._values:
            self._values[name] = AttributeValues(name, storable(self._items[name]))
        values = self._values[name]
        if isinstance(condition, Mapping):
            hit = _in_range(values, condition)
        else:
            wanted = condition if isinstance(condition, (list, tuple, set)) else [condition]
            hit = _is_one_of(values, list(wanted))
        mask = np.zeros(len(self._items), dtype=bool)
        mask[values.row[hit]] = True
        return mask


class Filters:
    """Conditions on the served items, whose attributes are read when something first asks.

    Args:
        embeddings: of the items.
        changes: of items since; None: there are none.
    """

    def __init__(self, embeddings: Embeddings, changes: Changes | None) -> None:
        self._embeddings, self._changes = embeddings, changes
        self._attributes: Attributes | None = None
        self._reading = threading.Lock()

    @property
    def are_read(self) -> bool:
        """Tell whether the attributes are there already."""
        return self._attributes is not None

    def attributes(self) -> Attributes:
        """Return the attributes of the items."""
        with self._reading:  # else many requests at once would each read them all
            if self._attributes is None:
                self._attributes = Attributes.load(self._embeddings, self._changes)
            return self._attributes

    def allowed(self, allow: Conditions | None, deny: Conditions | None) -> Mask | None:
        """Return which items may be returned; None: all. See `Attributes.mask`."""
        if not allow and not deny:
            return None
        return self.attributes().mask(allow, deny)


def _is_one_of(values: AttributeValues, wanted: list[Any]) -> Mask:
    """Return which values [V] are one of several."""
    for value in wanted:
        if not isinstance(value, (str, bool, int, float)):
            raise SearchError(
                f"{values.name}={value!r} is no condition: expected text, a number, true or false"
            )
    texts = [value for value in wanted if isinstance(value, str)]
    truths = [str(value).lower() for value in wanted if isinstance(value, bool)]
    numbers = [v for v in wanted if isinstance(v, (int, float)) and not isinstance(v, bool)]
    by_text = [v for v in numbers if values.is_id or not abs(v) < _EXACT]
    small = [float(v) for v in numbers if not values.is_id and abs(v) < _EXACT]
    hit = _among(values.text, [*texts, *(str(spelled(value)) for value in by_text)])
    if truths:
        hit |= _among(pc.utf8_lower(values.text), truths)
    if texts and values.numeric:
        spelt = numbers_of(pa.array(texts, pa.string()))
        small += spelt[np.abs(spelt) < _EXACT].tolist()
    if small:
        hit |= np.isin(values.numbers, np.array(small))
    if texts and values.temporal:
        moments = [moment for moment in map(moment_of, texts) if moment is not None]
        hit |= np.isin(values.moments, np.array(moments, dtype=np.int64))
    return hit


def _among(texts: pa.Array, wanted: list[str]) -> Mask:
    hit = pc.is_in(texts, value_set=pa.array(wanted, pa.string()))
    return np.array(hit.to_numpy(zero_copy_only=False), dtype=bool)


def _in_range(values: AttributeValues, condition: Mapping[str, Any]) -> Mask:
    """Return which values [V] lie in a range of numbers or dates, its ends included."""
    ends = {key: condition[key] for key in ("min", "max") if condition.get(key) is not None}
    if ends and set(condition) <= {"min", "max"}:
        numbers = {key: _number(end) for key, end in ends.items()}
        if None not in numbers.values():
            return _between_numbers(values, **numbers)
        moments = {key: _moment(end, last=key == "max") for key, end in ends.items()}
        if None not in moments.values():
            return _between_moments(values, **moments)
    raise SearchError(
        f"{values.name}={dict(condition)} is no range: expected min and max, both numbers or both "
        "ISO 8601 dates such as 1990-01-31"
    )


def _between_numbers(
    values: AttributeValues, min: float | None = None, max: float | None = None
) -> Mask:
    numbers = values.numbers
    if not values.numeric and np.isnan(numbers).all():
        raise SearchError(_unfit(values, "numbers"))
    inside = ~np.isnan(numbers)
    inside &= True if min is None else numbers >= min
    inside &= True if max is None else numbers <= max
    return inside


def _between_moments(
    values: AttributeValues, min: int | None = None, max: int | None = None
) -> Mask:
    moments = values.moments
    inside: Mask = moments != NO_MOMENT
    if not values.temporal and not inside.any():
        raise SearchError(_unfit(values, "dates"))
    inside &= True if min is None else moments >= min
    inside &= True if max is None else moments <= max
    return inside


def _unfit(values: AttributeValues, needed: str) -> str:
    example = f", for example {values.text[0].as_py()!r}" if len(values.text) else ""
    return (
        f"attribute {values.name!r} holds {values.kind}{example}: a range of {needed} needs "
        f"{needed}, and it has none"
    )


def _number(end: Any) -> float | None:
    """Return the end of a range as a number, or None."""
    if isinstance(end, str):
        number = float(numbers_of(pa.array([end]))[0])
        return None if np.isnan(number) else number
    plain = isinstance(end, (int, float)) and not isinstance(end, bool)
    return float(end) if plain and abs(end) <= sys.float_info.max else None


def _moment(end: Any, *, last: bool) -> int | None:
    """Return the end of a range as a moment, or None; the last day counts as a whole."""
    moment = moment_of(end) if isinstance(end, str) else None
    whole_day = last and moment is not None and len(end.strip()) == len("2000-01-31")
    return moment + _DAY_US - 1 if moment is not None and whole_day else moment
