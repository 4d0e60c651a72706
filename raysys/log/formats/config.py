"""The table of formats, and the settings of how files are read.

A format is a module of this folder and a row of `FORMATS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from raysys.config import require
from raysys.log.formats.contract import Reader
from raysys.log.formats.delimited import DelimitedReader
from raysys.log.formats.jsonl import JsonLinesReader
from raysys.log.formats.parquet import ParquetReader


@dataclasses.dataclass
class FormatConfig:
    r"""How the files of a log or catalogue are read.

    Attributes:
        kind: the files' format; null goes by their names.
        separator: what stands between values, any text; `\t` is a tab, `\x01` what Hive writes;
            default `,`, in TSV a tab.
        header: whether the first line names the columns; default true, false with `columns.names`.
        encoding: of text, e.g. latin-1; default UTF-8, or what a byte-order mark says.
        quote: what encloses values, default `"`, in TSV nothing; empty is nothing.
        escape: what stands before a character that is text, e.g. `\` in dumps of MySQL.
        time: form of the times in strptime's notation, e.g. `%d/%m/%Y %H:%M`.
    """

    kind: str | None = None
    separator: str | None = None
    header: bool | None = None
    encoding: str | None = None
    quote: str | None = None
    escape: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for values that no reader takes."""
        kinds = "|".join(FORMATS)
        require(self.kind in (None, *FORMATS), "format.kind", self.kind, kinds)
        for key in ("quote", "escape"):
            value = getattr(self, key) or " "
            require(len(value) == 1 and value.isascii(), f"format.{key}", value, "one ASCII letter")
        text = self.separator
        accepted = "one or more characters, no line end"
        require(text is None or bool(text.strip("\r\n")), "format.separator", text, accepted)
        require(
            _is_encoding(self.encoding), "format.encoding", self.encoding, "e.g. utf-8, latin-1"
        )


def _is_encoding(name: str | None) -> bool:
    try:
        return name is None or bool(b"    ".decode(name, "replace"))
    except LookupError:  # no such encoding, or one that makes no text of bytes
        return False


def typed_separator(text: str) -> str:
    r"""Return the separator that a setting spells: `\t` is a tab, `\x01` what Hive writes."""
    return text.replace("\\t", "\t").replace("\\x01", "\x01")


def _delimited(settings: FormatConfig, names: Sequence[str] | None) -> Reader:
    tabs = settings.kind == "tsv"
    separator = settings.separator or ("\t" if tabs else ",")
    quote = settings.quote
    if quote is None:
        quote = "" if separator == "\t" else '"'
    return DelimitedReader(
        separator=typed_separator(separator),
        quote=quote,
        escape=settings.escape or "",
        header=names is None if settings.header is None else settings.header,
        names=None if names is None else tuple(names),
        encoding=settings.encoding,
    )


@dataclasses.dataclass(frozen=True)
class Format:
    """What is known of a format.

    Attributes:
        endings: of its files' names, plain; the first one stands in messages.
        make: makes its reader of the settings and of the columns' names, where they are given.
        takes: the settings that mean something beside `kind` and `time`.
    """

    endings: tuple[str, ...]
    make: Callable[[FormatConfig, Sequence[str] | None], Reader]
    takes: tuple[str, ...]


_TEXT = ("separator", "header", "encoding", "quote", "escape", "names")
FORMATS = {
    "csv": Format((".csv",), _delimited, _TEXT),
    "tsv": Format((".tsv", ".inter", ".item", ".user"), _delimited, _TEXT),
    "jsonl": Format(
        (".jsonl", ".ndjson", ".json"),
        lambda settings, names: JsonLinesReader(settings.encoding),
        ("encoding",),
    ),
    "parquet": Format((".parquet", ".pq"), lambda settings, names: ParquetReader(), ()),
}
