"""Which columns of a source mean what: as the user says, by default names, by common names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping

from raysys.errors import ConfigError, DataError

ROLES = ("user", "item", "rating", "timestamp", "event")
REQUIRED = ("user", "item")
NOT_ASKED_FOR, SWITCHED_OFF = "not asked for", "switched off"

_SYNONYMS = {
    "user": (
        "userid user uid reviewerid visitorid customerid clientid memberid buyerid profileid "
        "accountid personid customer member visitor username usersession sessionid session"
    ),
    "item": (
        "itemid item iid movieid productid parentasin asin isbn stockcode artistid bookid songid "
        "trackid articleid newsid gameid businessid videoid animeid recipeid sku product movie"
    ),
    "rating": "rating ratings overall bookrating stars score ratingvalue userrating rate",
    "timestamp": (
        "timestamp ts unixreviewtime time eventtime datetime date invoicedate createdat "
        "transactiondate ratedat visittime reviewtime submitted"
    ),
    "event": "event eventtype behavior behaviour behaviortype action interaction interactiontype",
    "title": "title name itemtitle movietitle producttitle booktitle productname itemname artist",
}


class Repeated(str):
    """Why a column cannot be read that stands several times: which one is for the user to say."""


@dataclasses.dataclass
class ColumnsConfig:
    """Names of the columns in the log; null takes the default name where there is such a column.

    Attributes:
        user: user id, default `user_id`.
        item: item id, default `item_id`.
        rating: rating value, default `rating`, optional; empty leaves it out.
        timestamp: time, default `timestamp`, optional; empty leaves it out.
        event: kind of interaction, default `event`, optional; empty leaves it out.
        names: names of the columns of delimited text, in order, instead of its header's.
    """

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    timestamp: str | None = None
    event: str | None = None
    names: list[str] | None = None


@dataclasses.dataclass
class ItemsColumnsConfig:
    """Names of the columns in the item file.

    Attributes:
        item: item id, default `columns.item`, else `item_id`.
        title: title, default `title`.
        names: names of the columns of delimited text, in order, instead of its header's.
    """

    item: str | None = None
    title: str | None = None
    names: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class Mapped:
    """What became of the columns of a log.

    Attributes:
        columns: {our name: the log's name} of those to read.
        left_out: {the log's name: why}.
        defaults: our names of optional columns that nobody asked for by name.
    """

    columns: dict[str, str]
    left_out: dict[str, str]
    defaults: tuple[str, ...] = ()

    def without(self, reasons: Mapping[str, str]) -> Mapped:
        """Return the mapping without some columns, by our name with the reason."""
        kept = {name: column for name, column in self.columns.items() if name not in reasons}
        gone = {self.columns[name]: reason for name, reason in reasons.items()}
        return Mapped(kept, self.left_out | gone, self.defaults)


def our_name(role: str) -> str:
    """Return what a column is called in builds, which is also its default name in a log."""
    return f"{role}_id" if role in REQUIRED else role


def map_columns(
    columns: ColumnsConfig,
    seen: Mapping[str, str],
    *,
    source: str,
    folds: bool = False,
    maybe: Collection[str] = (),
) -> Mapped:
    """Decide which columns to read.

    Args:
        columns: what the user says.
        seen: {column of the log: why it cannot be read, or ""}.
        source: for messages.
        folds: a column `fold` is needed.
        maybe: default names of optional columns that rows may hold all the same (JSON lines).

    Raises:
        ConfigError: a column is not there; the message lists those that are and the nearest.
        DataError: a column that is needed cannot be read, or there is no `fold`.
    """
    mapped: dict[str, str] = {}
    left_out: dict[str, str] = {}
    defaults = []
    for role in ROLES:
        default, setting = our_name(role), getattr(columns, role)
        required = role in REQUIRED or bool(setting)
        name = setting or default
        if setting == "" and role not in REQUIRED:
            left_out[name] = SWITCHED_OFF
        elif name in seen and not seen[name]:
            mapped[default] = name
        elif name in seen and (required or isinstance(seen[name], Repeated)):
            remedy = "" if required else f"; columns.{role}= (empty) leaves it out"
            raise DataError(f"columns.{role}: {name!r} {seen[name]} and cannot be read{remedy}")
        elif name in seen:
            left_out[name] = seen[name]
        elif required:
            raise ConfigError(_missing(f"columns.{role}", name, seen, source))
        elif name in maybe:
            mapped[default] = name
        if not setting and role not in REQUIRED:
            defaults.append(default)
    if folds:
        if "fold" not in seen:
            raise DataError(f"folds={source} has no column 'fold': it has {', '.join(seen)}")
        mapped["fold"] = "fold"
    used = {*mapped.values(), *left_out}
    left_out |= {name: why or NOT_ASKED_FOR for name, why in seen.items() if name not in used}
    left_out = {name: why for name, why in left_out.items() if name in seen}
    return Mapped(mapped, left_out, tuple(defaults))


def _missing(key: str, name: str, seen: Collection[str], source: str) -> str:
    near = difflib.get_close_matches(name, seen, n=1, cutoff=0.0)
    return f"{key}={name!r} is not in {source}, which has {', '.join(seen) or 'no columns'}" + (
        f"; did you mean {near[0]!r}?" if near else ""
    )


def guess(role: str, names: Collection[str]) -> str | None:
    """Return the column that commonly has a role, by its name; the usual names win."""
    plain = {
        "".join(ch for ch in name.lower() if ch.isalnum()): name for name in reversed([*names])
    }
    return next((plain[word] for word in _SYNONYMS[role].split() if word in plain), None)
