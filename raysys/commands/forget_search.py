"""Searching the files of a run for users.

Looked at are columns of users in tables, arrays of text, values below keys of JSON that name users,
columns of users in pages and CSV, and what follows the word `user` in text. An id may well be a
word that means something else, or the id of an item: what names no user is not looked at. What a
manifest says is settings and figures; it is left out.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import html
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.data.interactions import tells_of_none
from raysys.errors import BuildError, told
from raysys.events.fold import ERASED
from raysys.store.erasures import ERASED as HASHES
from raysys.store.manifests import MANIFEST
from raysys.store.storage import Storage

_TEXT = ("json", "jsonl", "md", "html", "csv", "txt", "log", "yaml")
_USER_COLUMNS = ("user_id", "user")
_USER_KEY = re.compile(r"(?:.*[_. -])?(?:user|user[_ ]?ids?|users)", re.IGNORECASE)
_NUMBER_KEY = re.compile(r"user|user[_ ]?ids?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Searched:
    """What was found.

    Attributes:
        files: {sort of file: how many were looked through}.
        held: names of those that hold a user.
        users: how many of the users were found.
    """

    files: dict[str, int]
    held: list[str]
    users: int


def search(
    storage: Storage, user_ids: Collection[str], *, names: Sequence[str] | None = None
) -> Searched:
    """Look for users in the files of a run.

    Args:
        storage: of the run.
        user_ids: who are looked for.
        names: of the files; None: all.

    Raises:
        BuildError: a file cannot be read.
    """
    files: Counter[str] = Counter()
    held: list[str] = []
    users: set[str] = set()
    for name in storage.files("") if names is None else names:
        if name.startswith(f"{ERASED}/") or name == HASHES or name.endswith(f"/{MANIFEST}"):
            continue  # an order goes when it is done with
        ending = name.rpartition(".")[2]
        try:
            kind, found = _searched(storage, name, ending, frozenset(user_ids))
        except FileNotFoundError:  # gone meanwhile
            continue
        except (OSError, pa.ArrowInvalid, ValueError) as error:
            raise BuildError(f"{storage.run}/{name} cannot be searched: {told(error)}") from error
        files[kind] += 1
        users |= found
        if found:
            held.append(name)
    return Searched(dict(sorted(files.items())), held, len(users))


def _searched(
    storage: Storage, name: str, ending: str, user_ids: frozenset[str]
) -> tuple[str, set[str]]:
    """Return the sort of a file, and who of the users is in it; other sorts are not read."""
    if ending in _TEXT:
        content = storage.read(name)
        return "text", _in_text((content or b"").decode(errors="replace"), ending, user_ids)
    if ending not in ("parquet", "arrow", "npy"):
        return "other", set()
    with storage.filesystem.open_input_file(f"{storage.root}/{name}") as file:
        look = {"parquet": _in_parquet, "arrow": _in_arrow, "npy": _in_array}[ending]
        return ending, look(file, user_ids)


def _in_parquet(source: Any, user_ids: frozenset[str]) -> set[str]:
    found: set[str] = set()
    with pq.ParquetFile(source) as file:
        names = set(file.schema_arrow.names)
        raw = {"reason", "text", "user_id"} <= names  # rows that break a rule
        own = sorted(names & set(_USER_COLUMNS))
        for group in range(file.num_row_groups) if own else ():
            rows = file.read_row_group(group, columns=None if raw else own)
            found |= _in_columns(rows, user_ids)
            if raw:
                left = user_ids - found
                found |= {u for u in left if not pc.all(tells_of_none(rows, [u])).as_py()}
    return found


def _in_arrow(source: Any, user_ids: frozenset[str]) -> set[str]:
    file = pa.ipc.open_file(source)
    found: set[str] = set()
    for number in range(file.num_record_batches):
        found |= _in_columns(pa.Table.from_batches([file.get_batch(number)]), user_ids)
    return found


def _in_columns(table: pa.Table, user_ids: frozenset[str]) -> set[str]:
    wanted = pa.array(sorted(user_ids), pa.string())
    found: set[str] = set()
    for name in table.column_names:
        if name in _USER_COLUMNS:
            column = table[name].cast(pa.string())
            found |= set(pc.unique(column.filter(pc.is_in(column, wanted))).to_pylist())
    return found


def _in_array(source: Any, user_ids: frozenset[str]) -> set[str]:
    """Look through an array of text; of one of numbers the header alone is read."""
    version = np.lib.format.read_magic(source)
    read = np.lib.format.read_array_header_1_0
    _, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(source)
    if dtype.kind not in "US":
        return set()
    source.seek(0)
    array = np.load(io.BytesIO(source.read()), allow_pickle=False)
    texts = array if dtype.kind == "U" else np.char.decode(array, "utf-8", "replace")
    return set(texts.ravel().tolist()) & user_ids


# -- text ----------------------------------------------------------------------------------


def _in_text(text: str, ending: str, user_ids: frozenset[str]) -> set[str]:
    if ending in ("json", "jsonl"):
        try:
            parts = [text] if ending == "json" else text.splitlines()
            values = [value for part in parts if part.strip() for value in _named(json.loads(part))]
        except ValueError:
            return _said(text, user_ids)
        sentences = "\n".join(value for value in values if "user" in value.lower())
        return (set(values) & user_ids) | _said(sentences, user_ids)
    found: set[str] = set()
    if ending == "html":
        page = _Page()
        page.feed(text)
        found = page.users & user_ids
        text = html.unescape(text)
    elif ending == "csv":
        own = [row.get(name) for row in csv.DictReader(io.StringIO(text)) for name in _USER_COLUMNS]
        found = {each for each in own if each is not None} & user_ids
    return found | _said(text, user_ids)


def _named(value: Any, key: str = "", within: str = "") -> Iterator[str]:
    """Yield the texts in JSON that may be users: values of keys that name them, and sentences."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _named(each, key if name == "id" else name, within=key)
    elif isinstance(value, list):
        for each in value:
            yield from _named(each, key, within)
    elif within != "columns" and _USER_KEY.fullmatch(key) is not None:  # whose names these are
        if isinstance(value, str):
            yield value
        elif type(value) is int and _NUMBER_KEY.fullmatch(key) is not None:
            yield str(value)
    elif isinstance(value, str) and len(value) > len("user:") and "user" in value.lower():
        yield f"\0{value}"  # no id: a sentence that may hold one


def _said(text: str, user_ids: frozenset[str]) -> set[str]:
    return {each for each in user_ids if each in text and _says(each).search(text)}


@functools.cache
def _says(user_id: str) -> re.Pattern[str]:
    """Return what finds a user in text: the id after `user`, where it can be nothing else.

    What is no number may be a word of the sentence, so it is `user=`, `user:`, or quoted.
    """
    between = r"\s*[:=]\s*[\"']?|\s+[\"']"
    if user_id.isdigit():
        between += r"|\s+"
    word = r"(?<!\w)" if re.match(r"\w", user_id) else ""
    return re.compile(
        rf"user(?:[_ ]?ids?)?[\"']?(?:{between}){word}{re.escape(user_id)}(?!\w)", re.IGNORECASE
    )


class _Page(HTMLParser):
    """Collects the cells of a page's tables that stand below `user` or `user_id`."""

    def __init__(self) -> None:
        super().__init__()
        self.users: set[str] = set()
        self._columns: set[int] = set()
        self._cell = -1
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Begin a table, a row or a cell."""
        if tag == "table":
            self._columns = set()
        elif tag == "tr":
            self._cell = -1
        elif tag in ("td", "th"):
            self._cell, self._text = self._cell + 1, []

    def handle_data(self, data: str) -> None:
        """Take text of a cell."""
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        """End a cell."""
        if tag in ("td", "th") and self._text is not None:
            text, self._text = "".join(self._text).strip(), None
            if tag == "th" and _NUMBER_KEY.fullmatch(text) is not None:
                self._columns.add(self._cell)
            elif self._cell in self._columns:
                self.users.add(text)
