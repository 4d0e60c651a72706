"""What every configuration key is: its type, default, what it accepts, and its sentence.

The sentence stands in the `Attributes:` section of the dataclass that declares the key, or of one
that it inherits from. What a key accepts is what the dataclass says when it refuses a value, so
that neither can be written down twice. `raysys X --help` and the site show both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from raysys import fields
from raysys.errors import ConfigError

_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_PROBES: dict[Any, tuple[Any, ...]] = {
    str: ("??",),
    int: (-(10**9), 10**9),
    float: (-1e9, 1e9),
    bool: (),
}
_ATTRIBUTE = re.compile(r"(\w+(?:, \w+)*): (.*)")
_REFUSED = re.compile(r"(\S+?)=.* is not accepted: expected (.*)")
_KEY_COLUMNS = 34  # of the help, until the sentence begins


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a command.

    Attributes:
        name: dotted, e.g. `optim.lr`.
        type: in words, with `or null` where null is a value.
        default: as one would type it.
        accepted: what values are accepted beyond the type, in words; may be empty.
        sentence: what the key says.
        decides: the key decides what is built; others say where or how fast.
    """

    name: str
    type: str
    default: str
    accepted: str
    sentence: str
    decides: bool


@dataclasses.dataclass(frozen=True)
class Section:
    """Keys that stand together.

    Attributes:
        name: what their names begin with, or empty at the top.
        sentence: what the section is for.
        keys: in the order of the dataclass.
    """

    name: str
    sentence: str
    keys: tuple[Key, ...]


def sections(schema: type) -> list[Section]:
    """Return the keys of a configuration dataclass: those at the top, then section by section."""
    return list(_sections(schema(), "", _summary(schema), decides=True))


def help_text(schema: type, *, width: int = 100) -> str:
    """Return the sections of a schema as text, wrapped to `width` columns."""
    lines: list[str] = []
    for section in sections(schema):
        head = f"{section.name}.*: {section.sentence}" if section.name else section.sentence
        lines += [*textwrap.wrap(head, width), ""] if head else []
        for key in section.keys:
            lines += _help_lines(key, width)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _help_lines(key: Key, width: int) -> list[str]:
    assigned = f"  {key.name}={key.default}"
    about = f"{key.sentence} ({'; '.join(filter(None, (key.type, key.accepted)))})"
    lines = textwrap.wrap(about, width - _KEY_COLUMNS, break_on_hyphens=False)
    if len(assigned) < _KEY_COLUMNS:
        heads = [assigned.ljust(_KEY_COLUMNS) + lines.pop(0)]
    else:
        heads = textwrap.wrap(assigned, width, break_on_hyphens=False, subsequent_indent="      ")
    return [*heads, *(" " * _KEY_COLUMNS + line for line in lines)]


def _sections(cfg: Any, prefix: str, sentence: str, *, decides: bool) -> Iterator[Section]:
    """Yield the section of a dataclass instance, then those below it."""
    schema = type(cfg)
    hints, sentences = typing.get_type_hints(schema), _sentences(schema)
    keys, below = [], []
    for field in dataclasses.fields(schema):
        value, name = getattr(cfg, field.name), prefix + field.name
        said = sentences.get(field.name, "")
        identity = decides and field.metadata.get("identity", True)
        if dataclasses.is_dataclass(value):
            below.append((value, f"{name}.", said, identity))
            continue
        accepted = _accepted(schema, field.name, hints[field.name])
        type_name = _type_name(hints[field.name], field.metadata)
        keys.append(Key(name, type_name, _spelled(value), accepted, said, identity))
    if keys:
        yield Section(prefix.rstrip("."), sentence, tuple(keys))
    for value, name, said, identity in below:
        yield from _sections(value, name, said, decides=identity)


def _summary(schema: type) -> str:
    """Return what a dataclass says of itself before its attributes, in one line."""
    return " ".join((schema.__doc__ or "").partition("Attributes:")[0].split())


def _sentences(schema: type) -> dict[str, str]:
    """Return the sentence of every field; a dataclass's own goes before an inherited one."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        text = textwrap.dedent((cls.__doc__ or "").partition("Attributes:\n")[2])
        section = re.split(r"\n(?=\w+:\n)|\n\n", text)[0]
        for entry in re.split(r"\n(?! )", section.rstrip()):
            matched = _ATTRIBUTE.fullmatch(" ".join(entry.split()))
            names = matched.group(1).split(", ") if matched else ()
            found.update({name: matched.group(2) for name in names} if matched else {})
    return found


def _accepted(schema: type, name: str, hint: Any) -> str:
    """Return what the dataclass says that it accepts when it refuses a value of a field."""
    said: dict[str, None] = {}
    for probe in _probes(hint):
        try:
            with _unheard():
                fields.make(schema, {name: probe})
        except ConfigError as error:
            refused = _REFUSED.fullmatch(str(error))
            if refused and refused.group(1).split(".")[-1] == name:
                said[refused.group(2)] = None
    return ", ".join(said)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keep warnings about values of a probe out of the log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _probes(hint: Any) -> tuple[Any, ...]:
    """Return values of a type that hardly any field takes."""
    inner, _ = fields.without_none(hint)
    if typing.get_origin(inner) is list:
        (element,) = typing.get_args(inner)
        return tuple([probe] for probe in _PROBES.get(element, ()))
    return _PROBES.get(inner, ())


def _type_name(hint: Any, marks: Any) -> str:
    inner, optional = fields.without_none(hint)
    origin = typing.get_origin(inner) or inner
    if marks.get(fields.LOCATION):
        name = "path or URI"
    elif marks.get(fields.IDENTIFIER):
        name = "id"
    elif origin is list:
        (element,) = typing.get_args(inner)
        name = f"list of {_TYPES.get(element, 'mapping')}s".replace("texts", "text")
    else:
        name = _TYPES.get(origin, "mapping")
    return f"{name} or null" if optional else name


def _spelled(value: Any) -> str:
    """Return a default as one would type it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(_spelled(entry) for entry in value)}]"
    if isinstance(value, dict):
        pairs = (f"{name}: {_spelled(entry)}" for name, entry in value.items())
        return f"{{{', '.join(pairs)}}}"
    return str(value)
