"""Builds that tests plant with the writers of their owners, without the jobs that make them."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raysys.autoencoder.files import AutoencoderFacts, write_model
from raysys.compressor.embeddings import write_embeddings
from raysys.compressor.files import Coded, write_compressor
from raysys.data.profiles import ProfilesFacts, shard_name, write_tables
from raysys.data.schema import Window
from raysys.index.files import save_index


class Folder:
    """A folder to write files of a build into; `path`, `staging` and `url` as of a draft."""

    def __init__(self, folder):
        self.staging = Path(tempfile.mkdtemp(dir=folder))
        self.url = str(self.staging)

    def path(self, name):
        return self.staging / name


def plant(ws, kind, write, **settings):
    """Write a build; `settings` are those of `Workspace.build`."""
    return ws.build(kind, write=write, **({"config": {}} | settings))


def plant_profiles(ws, cells, levels, items, *, user_ids=None, shards=2, settings=None, **facts):
    """Write a `profiles` build of planted cells.

    Args:
        ws: the run.
        cells: of all users.
        levels: of the cells.
        items: columns of the item table; `item_num` is added.
        user_ids: ids, default `u0`, `u1`, ...
        shards: user shards.
        settings: of `plant`.
        facts: fields of `ProfilesFacts` that are not those of a log without time.
    """
    n_items = len(items["item_id"])
    ids = user_ids or [f"u{num}" for num in range(cells.n_users)]
    plain = {
        "split": "users",
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
        user_ids = pa.chunked_array([ids])
        write_tables(draft, items=item_table(items), user_ids=user_ids, levels=levels)
        return ProfilesFacts(**(plain | facts))

    return plant(ws, "profiles", write, **(settings or {}))


def item_table(columns):
    numbers = pa.array(range(len(columns["item_id"])), pa.int32())
    return pa.table({"item_num": numbers, **columns})


def plant_autoencoder(ws, model, *, settings=None, timed=None, **facts):
    """Write an `autoencoder` build; `facts` are those that are not of a model of period test.

    `timed`, a `Timed`, makes the model's prior.
    """
    if timed is not None:
        model.prior = torch.from_numpy(timed.prior())
    plain = {
        "n_items": model.n_items,
        "n_levels": model.levels.n_levels,
        "period": "test",
        "fitted_windows": (Window.FIT, Window.VAL),
        "fitted_until": None,
    }

    def write(draft):
        write_model(draft, model)
        if timed is not None:
            timed.save(draft)
        return AutoencoderFacts(**(plain | facts))

    return plant(ws, "autoencoder", write, **(settings or {}))


def plant_embeddings(ws, vectors, *, bias=None, items=None, similarity="cosine", **settings):
    """Write an `embeddings` build; default: no biases, and items `i0`, `i1`, ... without title."""
    if bias is None:
        bias = np.zeros((len(vectors), 0), dtype=np.float32)
    if items is None:
        ids = [f"i{num}" for num in range(len(vectors))]
        items = {"item_id": ids, "title": pa.nulls(len(ids), pa.string())}

    def write(draft):
        return write_embeddings(
            draft, vectors=vectors, bias=bias, items=item_table(items), similarity=similarity
        )

    return plant(ws, "embeddings", write, **settings)


def plant_codes(ws, codes, dictionary, embeddings, *, similarity="cosine"):
    """Write the `compressor` and `codes` builds of embeddings; return all as `Coded`."""

    def atoms(draft):
        return write_compressor(draft, dictionary, n_items=codes.n_items, n_active=codes.n_active)

    def packed(draft):
        codes.save(draft)
        return codes.facts(dictionary, similarity=similarity)

    compressor = plant(ws, "compressor", atoms, inputs=[embeddings])
    build = plant(ws, "codes", packed, inputs=[compressor, embeddings])
    return Coded.of(ws.chain(build), "planted codes")


def plant_index(ws, index, coded=None, **settings):
    """Write an `index` build; its `Coded`, where none is given, are made from itself."""
    n_shards = settings.pop("n_shards", 1)
    if coded is None:
        vectors = np.zeros((index.n_items, index.dim), dtype=np.float32)
        bias, how = index.bias, {"similarity": index.similarity}
        embeddings = plant_embeddings(ws, vectors, bias=bias, **how)
        coded = plant_codes(ws, index.codes, index.dictionary.floats, embeddings, **how)
    build = plant(
        ws,
        "index",
        lambda draft: save_index(index, draft, n_shards=n_shards),
        inputs=[coded.codes, coded.compressor, coded.embeddings],
        **({"config": {"n_shards": n_shards}} | settings),
    )
    return build, coded
