"""Lists and mappings typed in one line, every scalar as the text that was typed.

    [Toy Story, "Heat (1995)"]        {genres: [Comedy, Drama], year: {min: 1990}}

The notation is YAML's flow style (so JSON is read too) without what would change a text: no types,
comments, anchors or tags. A text stands in quotes only if it begins with a quote, has a blank at an
end, or holds one of `,[]{}`. Double quotes take the escapes of JSON and YAML, in single quotes a
doubled quote is one. A colon ends a key only before a blank, as in YAML.
"""

from __future__ import annotations

import json
import re
from typing import TypeAlias

Value: TypeAlias = "str | list[Value] | dict[str, Value]"

_NULLS = ("", "~", "null", "Null", "NULL")
_BLANKS = re.compile(r"[ \t\r\n]*")
_DOUBLE = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SINGLE = re.compile(r"'(?:[^']|'')*'")
_PLAIN = re.compile(r"[^,\[\]{}]*")
_KEY = re.compile(r"(?:[^,\[\]{}:]|:(?=[^ \t\r\n,\[\]{}]))*")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_YAML_ONLY = {
    **{"0": "\0", "a": "\a", "v": "\v", "e": "\x1b", " ": " "},
    **{"N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029"},
}


class Null(str):
    """A scalar without quotes that YAML reads as null; still the text it was."""


class Quoted(str):
    """A scalar in quotes: never null."""


def scalar(text: str, *, quoted: bool) -> str:
    """Return a scalar that remembers whether it may mean null."""
    if quoted:
        return Quoted(text)
    return Null(text) if text in _NULLS else text


def parse(text: str) -> Value:
    """Return the list or mapping that `text` spells.

    Raises:
        ValueError: it is neither, or does not end where it should; the message says where.
    """
    reader = _Reader(text)
    value = reader.value()
    reader.end()
    if isinstance(value, str):
        raise ValueError("expected [...] or {...}")
    return value


class _Reader:
    """Walks once over a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def value(self) -> Value:
        """Read a list, a mapping or a scalar, and the blanks around it."""
        mark = self._next()
        if mark == "[":
            return self._list()
        return self._mapping() if mark == "{" else self._scalar(_PLAIN)

    def end(self) -> None:
        """Raise ValueError unless all was read."""
        if self._next():
            raise ValueError(f"{self._rest()} follows after the end")

    def _list(self) -> Value:
        found: list[Value] = []
        self._at += 1
        while self._next() != "]":
            if self._next() == ",":
                raise ValueError(f"nothing stands before {self._rest()}")
            found.append(self.value())
            self._separated("]")
        self._at += 1
        return found

    def _mapping(self) -> Value:
        found: dict[str, Value] = {}
        self._at += 1
        while self._next() != "}":
            key = self._scalar(_KEY)
            if self._next() != ":":
                raise ValueError(f"{str(key)!r} has no value: write key: value, blank after colon")
            self._at += 1
            if str(key) in found:
                raise ValueError(f"key {str(key)!r} stands there twice")
            found[str(key)] = self.value()
            self._separated("}")
        self._at += 1
        return found

    def _scalar(self, plain: re.Pattern[str]) -> str:
        mark = self._next()
        quoted = {'"': _DOUBLE, "'": _SINGLE}.get(mark)
        match = (quoted or plain).match(self._text, self._at)
        if match is None:
            raise ValueError(f"the quote of {self._rest()} does not close")
        self._at = match.end()
        text = match[0].rstrip(" \t\r\n")
        if quoted:
            text = _unescaped(text) if mark == '"' else text[1:-1].replace("''", "'")
        return scalar(text, quoted=quoted is not None)

    def _separated(self, end: str) -> None:
        """Step over the comma between two entries."""
        mark = self._next()
        if mark == ",":
            self._at += 1
        elif not mark:
            raise ValueError(f"the closing {end} is missing")
        elif mark != end:
            raise ValueError(f"{self._rest()} needs a comma before it, or quotes around the text")

    def _next(self) -> str:
        """Step over blanks and return the character that follows; empty at the end."""
        match = _BLANKS.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _rest(self) -> str:
        rest = self._text[self._at :]
        return repr(rest if len(rest) <= 30 else rest[:29] + "…")


def _unescaped(quoted: str) -> str:
    """Return the text of a double-quoted scalar of JSON or YAML."""
    text: str = json.loads(_ESCAPE.sub(_as_json, quoted), strict=False)
    return text


def _as_json(match: re.Match[str]) -> str:
    """Spell an escape that only YAML has as JSON does."""
    code = match[1]
    if code[0] in "xU" and len(code) > 1:
        return json.dumps(chr(int(code[1:], 16)))[1:-1]
    return json.dumps(_YAML_ONLY[code])[1:-1] if code in _YAML_ONLY else match[0]
