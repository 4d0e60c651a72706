"""Cursors: what a list has given so far, so that its next page never repeats.

A cursor is the ids themselves, as text that nobody has to read. It needs no memory in the service,
holds on any replica, and outlives an exchange of the index: an item that was given is left out of
what comes next, whatever has changed since.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from pydantic_core import to_json

from raysys.errors import SearchError
from raysys.search.query import MAX_CURSOR

MAX_LISTED = 10_000  # ids that a cursor may hold


def cursor_of(item_ids: Sequence[str]) -> str | None:
    """Return the cursor behind these items; None where none may hold so many."""
    cursor = base64.urlsafe_b64encode(to_json(item_ids)).decode().rstrip("=")
    return cursor if len(cursor) <= MAX_CURSOR and len(item_ids) <= MAX_LISTED else None


def listed(cursor: str | None) -> list[str]:
    """Return the items that a cursor stands behind; None and an empty one are the beginning.

    Raises:
        SearchError: it is none of ours.
    """
    if not cursor:
        return []
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        ids = json.loads(text)
        json.dumps(ids, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(item_id, str) for item_id in ids):
        raise SearchError("cursor is not one that an answer gave")
    if len(ids) > MAX_LISTED:
        raise SearchError(f"cursor stands behind {len(ids)} items: expected {MAX_LISTED} at most")
    return ids
