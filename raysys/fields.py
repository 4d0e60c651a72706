"""Settings by type: what the text of a setting means is decided by the field that it is for.

A value arrives as text, as lists and mappings of texts (see `flow`), or, from Python, as it is. A
text field keeps every character; numbers, booleans and null are read where the field has them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from raysys import flow
from raysys.errors import ConfigError

T = TypeVar("T")

IDENTIFIER = "identifier"  # metadata of a field: no text means null
LOCATION = "location"  # metadata of a field: a path or URI, made absolute
_TRUE = ("true", "on", "yes", "y", "1")
_FALSE = ("false", "off", "no", "n", "0")
_SHOWN = 100
_UNIONS = (types.UnionType, typing.Union)


def refused(key: str, value: object, accepted: str) -> ConfigError:
    """Return the error that says in one uniform sentence why a value is not accepted."""
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = shown[: _SHOWN - 1] + "…"
    return ConfigError(f"{key}={shown} is not accepted: expected {accepted}")


def make(schema: type[T], tree: Mapping[str, Any], prefix: str = "") -> T:
    """Return an instance of a dataclass with the values of `tree`, its defaults elsewhere.

    Raises:
        ConfigError: a key is unknown, or a value is not of its field's type.
    """
    return schema(**_values(schema, tree, prefix, _default))


def changed(base: T, tree: Mapping[str, Any], prefix: str = "") -> T:
    """Return a copy of a dataclass instance in which the values of `tree` replace its own.

    Raises:
        ConfigError: as `make`.
    """
    values = _values(type(base), tree, prefix, lambda field: getattr(base, field.name))
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def read(hint: Any, raw: Any, *, key: str, marks: Mapping[str, Any] | None = None) -> Any:
    """Return `raw` as a value of type `hint`.

    Args:
        hint: str, int, float, bool, a list of them, `dict[str, Any]`, a dataclass, or one of these
            `| None`; a scalar or a list of it.
        raw: text, lists and mappings of text, or a value of that type already.
        key: how messages call the setting.
        marks: the field's metadata, see `IDENTIFIER` and `LOCATION`.

    Raises:
        ConfigError: naming the key, the value and what is accepted.
    """
    marks = marks or {}
    inner, optional = without_none(hint)
    if optional and is_null(raw, marks):
        return None
    listed = _listed(hint)
    if listed and isinstance(_parsed(raw, key), (list, tuple)):
        inner = listed
    origin = typing.get_origin(inner) or inner
    if dataclasses.is_dataclass(inner):
        return make(typing.cast(type[Any], inner), mapping(raw, key), f"{key}.")
    if hasattr(inner, "model_validate"):
        return _model(inner, raw, key)
    if origin is list:
        (element,) = typing.get_args(inner)
        return [
            read(element, entry, key=f"{key}[{number}]", marks={IDENTIFIER: True})
            for number, entry in enumerate(_sequence(raw, key))
        ]
    if origin is dict:
        return _plain(mapping(raw, key))
    value = None if _is_bare_null(raw) and not marks.get(IDENTIFIER) else _SCALARS[inner](raw)
    if value is None:
        raise refused(key, raw, _ACCEPTED[inner] + (" or null" if optional else ""))
    return absolute(value) if marks.get(LOCATION) else value


def _model(schema: Any, raw: Any, key: str) -> Any:
    """Return a Pydantic model; it reads texts as the fields here are read."""
    if isinstance(raw, schema):
        return raw
    nullable = {n for n, f in schema.model_fields.items() if without_none(f.annotation)[1]}
    values = {
        name: None if name in nullable and _is_bare_null(value) else value
        for name, value in mapping(raw, key).items()
    }
    try:
        return schema.model_validate(values)
    except ValueError as error:
        reason = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())  # type: ignore[attr-defined]
        raise refused(key, raw, f"{schema.__name__}: {reason}") from error


def mapping(raw: Any, key: str) -> Mapping[str, Any]:
    """Return the mapping that a value is or spells; none at all is an empty one.

    Raises:
        ConfigError: it is something else.
    """
    value = _parsed(raw, key)
    if _is_bare_null(raw):
        return {}
    if not isinstance(value, Mapping):
        raise refused(key, raw, "a mapping, {key: value, ...}")
    return value


def assigned(schema: Any, path: Sequence[str], raw: Any) -> Any:
    """Return what is assigned to a dotted key, its text parsed where mappings can be merged.

    Raises:
        ConfigError: the key stands for a mapping, and `raw` is none.
    """
    key, hint = ".".join(path), schema
    for depth, name in enumerate(path, start=1):
        hint = without_none(_hints(hint).get(name))[0]
        if _is_free(hint):
            return mapping(raw, key) if depth == len(path) else _parsed(raw, key)
    return mapping(raw, key) if dataclasses.is_dataclass(hint) else raw


def section(schema: Any, name: str) -> Any:
    """Return the dataclass below a key, None where there is none."""
    hint = without_none(_hints(schema).get(name))[0]
    return hint if dataclasses.is_dataclass(hint) else None


def absolute(where: str) -> str:
    """Return a path or URI as processes with another working directory can open it.

    A `file://` URI becomes a path; other URIs and no text at all stay as they are.
    """
    below = where.removeprefix("file://")
    if below != where and below.startswith("/") and not set(below) & set("?#"):
        return unquote(below)
    if not where or "://" in where:
        return where
    return str(Path(os.path.expanduser(where)).absolute())


def check_keys(schema: type, tree: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ConfigError for a key that the schema does not have, naming the nearest one."""
    known = {prefix + name: free for name, free in _schema_keys(schema)}
    for key in _tree_keys(tree, prefix, known):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key {key!r}{hint}")


def _values(
    schema: type, tree: Mapping[str, Any], prefix: str, own: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return the fields that `tree` names; a section keeps of `own` what it does not name."""
    check_keys(schema, tree, prefix)
    values = {}
    for field in dataclasses.fields(schema):
        if field.name in tree:
            hint, raw, key = _hints(schema)[field.name], tree[field.name], prefix + field.name
            if dataclasses.is_dataclass(hint):
                values[field.name] = changed(own(field), mapping(raw, key), f"{key}.")
            else:
                values[field.name] = read(hint, raw, key=key, marks=field.metadata)
    return values


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def _hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema) if dataclasses.is_dataclass(schema) else {}


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return the type of `X | None` and whether None is allowed."""
    if typing.get_origin(hint) not in _UNIONS:
        return hint, False
    inner = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return inner[0], len(inner) < len(typing.get_args(hint))


def _listed(hint: Any) -> Any:
    """Return the list of `X | list[X]`, None of other types."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else ()
    return next((part for part in parts if typing.get_origin(part) is list), None)


def _is_free(hint: Any) -> bool:
    """Tell whether a type is a mapping that takes any key."""
    return (typing.get_origin(hint) or hint) is dict


def is_null(raw: Any, marks: Mapping[str, Any] = types.MappingProxyType({})) -> bool:
    """Tell whether a value of a field that accepts None is None."""
    word = isinstance(raw, str) and raw == "null" and not isinstance(raw, flow.Quoted)
    return _is_bare_null(raw) or (word and not marks.get(IDENTIFIER))


def _is_bare_null(raw: Any) -> bool:
    return raw is None or isinstance(raw, flow.Null)


def _parsed(raw: Any, key: str) -> Any:
    """Return the list or mapping that a text spells; other values as they are."""
    if not isinstance(raw, str) or raw.strip()[:1] not in ("[", "{"):
        return raw
    try:
        return flow.parse(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={raw!r} cannot be read: {error}") from error


def _sequence(raw: Any, key: str) -> list[Any]:
    value = _parsed(raw, key)
    if not isinstance(value, (list, tuple)):
        raise refused(key, raw, "a list, [value, ...]")
    return list(value)


def _plain(value: Any) -> Any:
    """Return a value of a free mapping; a scalar is the text that it was."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, str) else value


def _text(raw: Any) -> str | None:
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return str(raw)
    return str(raw) if isinstance(raw, str) else None


def _whole(raw: Any) -> int | None:
    if isinstance(raw, str):
        try:
            return int(raw)
        except ValueError:
            return None
    return raw if isinstance(raw, int) and not isinstance(raw, bool) else None


def _number(raw: Any) -> float | None:
    if isinstance(raw, bool):
        return None
    try:
        value = float(raw)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(value) else value


def _switch(raw: Any) -> bool | None:
    if isinstance(raw, bool):
        return raw
    word = raw.lower() if isinstance(raw, str) else ""
    return True if word in _TRUE else False if word in _FALSE else None


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    str: _text,
    int: _whole,
    float: _number,
    bool: _switch,
}
_ACCEPTED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _schema_keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield every dotted key, and whether it takes any keys below it."""
    for name, hint in _hints(schema).items():
        inner = without_none(hint)[0]
        yield prefix + name, _is_free(inner)
        yield from _schema_keys(inner, f"{prefix}{name}.")


def _tree_keys(tree: Mapping[str, Any], prefix: str, known: Mapping[str, bool]) -> Iterator[str]:
    for name, value in tree.items():
        key = prefix + name
        yield key
        if isinstance(value, Mapping) and not known.get(key):
            yield from _tree_keys(value, f"{key}.", known)
