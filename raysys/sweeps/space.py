"""The space of a sweep: which keys, what each may be, and when it counts.

A domain is a list of choices, or a mapping:

    [0.1, 0.2]                                        choices
    {low: 0.001, high: 0.1, log: true}                a range, both ends included
    {values: [0.1, 0.2], if: {autoencoder.consume_loss: [likelihood]}}

With `if` a key counts only where other keys have one of the values named, and keeps its default
elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from raysys.config import require
from raysys.errors import ConfigError
from raysys.fields import mapping, read

Values = dict[str, Any]
Read = Callable[[str, Any], Any]  # (dotted key, raw value) -> the value as the key's type

_RANGE, _CHOICES = ("low", "high"), "values"
_LEAF = {*_RANGE, "log", _CHOICES, "if"}
_EXPECTED = "a list, {low, high[, log]} or {values, if}"


class Suggests(Protocol):
    """What a space asks of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return a number of a range."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """Return a whole number of a range."""


def flatten(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: domain as it was given}.

    Raises:
        ConfigError: a value is no domain.
    """
    flat: dict[str, Any] = {}
    for name, domain in space.items():
        key = f"{prefix}{name}"
        if isinstance(domain, Mapping) and _is_domain(domain):
            flat[key] = dict(domain)
        elif isinstance(domain, Mapping) and not {*_RANGE, _CHOICES} & set(domain):
            flat |= flatten(domain, f"{key}.")
        elif isinstance(domain, list) and domain:
            flat[key] = domain
        elif domain == []:
            raise ConfigError(f"space.{key}=[]: expected a list of one value or more")
        else:
            raise ConfigError(f"space.{key}={domain!r}: expected {_EXPECTED}")
    return flat


def _is_domain(domain: Mapping[str, Any]) -> bool:
    names = set(domain)
    return names <= _LEAF and (
        (set(_RANGE) <= names and _CHOICES not in names)
        or (_CHOICES in names and names <= {_CHOICES, "if"})
    )


def typed(key: str, domain: Any, read_value: Read) -> Any:
    """Return a domain whose values are of the type of their key.

    Args:
        key: dotted.
        domain: one of `flatten`.
        read_value: reads a raw value of a key; raises ConfigError where the key does not take it.

    Raises:
        ConfigError: there is no such key, it does not take one of the values, or a range is none.
    """
    if isinstance(domain, list):
        return [read_value(key, raw) for raw in domain]
    when = {
        other: [read_value(other, raw) for raw in (raws if isinstance(raws, list) else [raws])]
        for other, raws in mapping(domain.get("if", {}), f"space.{key}.if").items()
    }
    found: dict[str, Any]
    if _CHOICES in domain:
        choices = domain[_CHOICES]
        accepted = isinstance(choices, list) and bool(choices)
        require(accepted, f"space.{key}.values", choices, "a list")
        found = {_CHOICES: [read_value(key, raw) for raw in choices]}
    else:
        low, high = (read_value(key, domain[end]) for end in _RANGE)
        log = read(bool, domain.get("log", False), key=f"space.{key}.log")
        numbers = all(isinstance(end, int | float) for end in (low, high))
        shown = f"space.{key}"
        require(numbers and math.isfinite(low) and low < high, shown, domain, "low < high")
        require(not log or low > 0, shown, domain, "low > 0 with log")
        found = {"low": low, "high": high, "log": log}
    return found | ({"if": when} if when else {})


@dataclasses.dataclass(frozen=True)
class Space:
    """Domains by key, those that others depend on first.

    Attributes:
        domains: {dotted key: domain of `typed`}.
        defaults: value of every key that a domain or a condition names, where no trial sets it.
    """

    domains: Mapping[str, Any]
    defaults: Values

    @classmethod
    def of(cls, domains: Mapping[str, Any], default: Callable[[str], Any]) -> Space:
        """Sort domains by what they depend on.

        Raises:
            ConfigError: conditions go in a circle.
        """
        left = dict(domains)
        ordered: dict[str, Any] = {}
        while left:
            ready = [key for key, domain in left.items() if not set(_when(domain)) & set(left)]
            if not ready:
                raise ConfigError(f"space: the conditions of {', '.join(left)} go in a circle")
            ordered |= {key: left.pop(key) for key in ready}
        named = {*ordered, *itertools.chain.from_iterable(map(_when, ordered.values()))}
        return cls(ordered, {key: default(key) for key in sorted(named)})

    @property
    def is_finite(self) -> bool:
        """Whether all domains are choices."""
        return all(choices_of(domain) is not None for domain in self.domains.values())

    def counts(self, key: str, values: Values) -> bool:
        """Tell whether a key counts beside values of other keys."""
        return all(
            values.get(other, self.defaults[other]) in accepted
            for other, accepted in _when(self.domains[key]).items()
        )

    def grid(self) -> Iterator[Values]:
        """Yield all combinations of a finite space, the last key fastest, without the defaults."""
        yield from (values for values in self._grid([*self.domains], {}) if not self.plain(values))

    @functools.cached_property
    def n_settings(self) -> int:
        """How many combinations `grid` has."""
        return sum(1 for _ in self.grid())

    def _grid(self, keys: Sequence[str], values: Values) -> Iterator[Values]:
        if not keys:
            yield values
            return
        key, *rest = keys
        if not self.counts(key, values):
            yield from self._grid(rest, values)
            return
        for choice in choices_of(self.domains[key]) or ():
            yield from self._grid(rest, {**values, key: choice})

    def plain(self, values: Values) -> bool:
        """Tell whether values are the defaults."""
        return all(value == self.defaults[key] for key, value in values.items())

    def default_values(self) -> Values | None:
        """Return the defaults as a point of the space; None where they do not lie in it."""
        values: Values = {}
        for key, domain in self.domains.items():
            if self.counts(key, values):
                value = self.defaults[key]
                if not _holds(domain, value):
                    return None
                values[key] = value
        return values

    def suggest(self, trial: Suggests, before: Callable[[str], None]) -> Values:
        """Return a point of the space.

        Args:
            trial: draws the values.
            before: called with every key that is going to be drawn.
        """
        values: Values = {}
        for key, domain in self.domains.items():
            if self.counts(key, values):
                before(key)
                values[key] = _suggested(trial, key, domain)
        return values

    def encoded(self, values: Values) -> Values:
        """Return values as Optuna holds them, for a trial whose values are given."""
        found = {}
        for key, value in values.items():
            choices = choices_of(self.domains[key])
            found[key] = value if choices is None else _labels(choices)[choices.index(value)]
        return found


def _suggested(trial: Suggests, key: str, domain: Any) -> Any:
    choices = choices_of(domain)
    if choices is not None:
        labels = _labels(choices)
        return choices[labels.index(trial.suggest_categorical(key, labels))]
    low, high, log = domain["low"], domain["high"], domain["log"]
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=log)
    return trial.suggest_float(key, low, high, log=log)


def _holds(domain: Any, value: Any) -> bool:
    choices = choices_of(domain)
    if choices is not None:
        return value in choices
    return isinstance(value, int | float) and bool(domain["low"] <= value <= domain["high"])


def choices_of(domain: Any) -> list[Any] | None:
    """Return the choices of a domain; None where it is a range."""
    if isinstance(domain, list):
        return domain
    found: list[Any] | None = domain.get(_CHOICES)
    return found


def _labels(choices: Sequence[Any]) -> list[Any]:
    """Return what stands for choices in Optuna, which takes no lists."""
    scalars = all(isinstance(choice, bool | int | float | str | None) for choice in choices)
    return list(choices) if scalars else [json.dumps(choice) for choice in choices]


def _when(domain: Any) -> Mapping[str, list[Any]]:
    return {} if isinstance(domain, list) else domain.get("if", {})
