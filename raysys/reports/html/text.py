"""How values are written on a page."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
_UNITS = ("B", "kB", "MB", "GB", "TB")


def number(value: float | None, digits: int = 4) -> str:
    """Return a metric's value; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    """Return a difference with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def span(low: float | None, high: float | None, *, sign: bool = True) -> str:
    """Return an interval; empty where there is none."""
    if low is None or high is None:
        return ""
    form = signed if sign else number
    return f"{form(low)} to {form(high)}"


def with_interval(entry: Mapping[str, Any] | None) -> str:
    """Return a mean and half its 95 % interval."""
    mean, low, high = (entry or {}).get("mean"), *ends(entry)
    if low is None or high is None:
        return number(mean)
    return f"{number(mean)} ±{(high - low) / 2:.4f}"


def ends(entry: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    """Return the ends of an entry's interval."""
    entry = entry or {}
    return entry.get("ci_low"), entry.get("ci_high")


def count(value: float | None) -> str:
    """Return a whole number with commas."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share."""
    return "–" if value is None else f"{value:.{digits}%}".replace("%", " %")


def size(n_bytes: float | None) -> str:
    """Return a number of bytes in the unit that keeps it short."""
    if n_bytes is None:
        return "–"
    value = float(n_bytes)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def seconds(value: float | None) -> str:
    """Return a time in the unit that people would take."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:,.3g} h"


def moment(second: float | None) -> str:
    """Return a UTC second as date and time."""
    if second is None:
        return "–"
    return datetime.datetime.fromtimestamp(second, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def value(any_value: Any) -> str:
    """Return a setting, choice or fact."""
    if any_value is None:
        return "null"
    if isinstance(any_value, bool):
        return "true" if any_value else "false"
    if isinstance(any_value, float):
        return f"{any_value:.5g}".replace("-", MINUS)
    return any_value if isinstance(any_value, str) else json.dumps(any_value, ensure_ascii=False)
