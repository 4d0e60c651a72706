"""Builds that tests write file by file, without the job that makes them."""

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data.profiles import ProfilesFacts, shard_name, write_tables
from raysys.data.schema import Window


class Planted:
    """Files of a build to come; `path` and `commit` as on a draft."""

    def __init__(self, workspace, kind, settings):
        self._workspace, self._kind, self._settings = workspace, kind, settings
        self.staging = Path(tempfile.mkdtemp(prefix="raysys-planted-"))
        self.url = str(self.staging)
        weakref.finalize(self, shutil.rmtree, self.staging, ignore_errors=True)

    def path(self, name):
        target = self.staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def commit(self, facts):
        def write(draft):
            shutil.copytree(self.staging, draft.staging, dirs_exist_ok=True)
            return facts

        return self._workspace.build(self._kind, write=write, **self._settings)


def begin(workspace, kind, **settings):
    """Return what `Workspace.build` will write once `commit` is called."""
    return Planted(workspace, kind, settings)


def plant_profiles(ws, cells, levels, items, *, user_ids=None, shards=2, settings=None, **facts):
    """Write a `profiles` build of planted cells.

    Args:
        ws: the run.
        cells: of all users.
        levels: of the cells.
        items: columns of the item table; `item_num` is added.
        user_ids: ids, default `u0`, `u1`, ...
        shards: user shards.
        settings: of `Workspace.build`.
        facts: fields of `ProfilesFacts` that are not those of a log without time.
    """
    n_items = len(items["item_id"])
    table = {"item_num": pa.array(range(n_items), pa.int32()), **items}
    ids = user_ids or [f"u{num}" for num in range(cells.n_users)]
    plain = {
        "protocol": "users",
        "n_users": cells.n_users,
        "n_items": n_items,
        "catalogue": dict.fromkeys(("val", "test", "all"), n_items),
        "cutoffs": None,
        "has_time": False,
        "n_cells": {w.name: int((cells.window == w).sum()) for w in Window},
    }

    def write(draft):
        for number, rows in enumerate(np.array_split(np.arange(cells.n_users), shards)):
            pq.write_table(cells.users(rows).to_table(), draft.path(shard_name(number)))
        write_tables(draft, items=pa.table(table), user_ids=pa.chunked_array([ids]), levels=levels)
        return ProfilesFacts(**(plain | facts))

    return ws.build("profiles", write=write, **({"config": {}} | (settings or {})))
