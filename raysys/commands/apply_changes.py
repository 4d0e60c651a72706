"""Compact: take the changes since a build of own vectors into new builds of the same kinds.

Deleted and replaced rows go, upserted ones are encoded with the dictionary that is there; the codes
of all other rows stay bit for bit. What a model was trained on is not touched: there the changes
stay on top of the index until the next training.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raysys.compressor.codes import Codes
from raysys.compressor.encode import encode
from raysys.compressor.model import CompresSAE
from raysys.data.arrays import Floats
from raysys.search.changes import (
    EDIT,
    KIND,
    Changes,
    current_changes,
    gone_mask,
    joined_items,
)
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)


def compacted(workspace: Workspace) -> dict[str, Build]:
    """Return the chain of current codes, after taking in the changes that there are for it."""
    with workspace.held(EDIT):
        return _compacted(workspace, workspace.chain(workspace.current("codes")))


def _compacted(workspace: Workspace, chain: dict[str, Build]) -> dict[str, Build]:
    if "autoencoder" in chain:
        _carry_deletions(workspace, chain["embeddings"])
    build = current_changes(workspace, chain["embeddings"])
    if build is None or not (build.facts["n_upserted"] or build.facts["n_deleted"]):
        return chain
    if "autoencoder" in chain:
        log.info("changes stay on top of the index until the next training")
        return chain
    changes = Changes.load(build)
    items = pq.read_table(chain["embeddings"].path("items.parquet"))
    known = {item_id: num for num, item_id in enumerate(items["item_id"].to_pylist())}
    keep = np.flatnonzero(~gone_mask(changes, known, len(items)))
    embeddings = _embeddings(workspace, chain["embeddings"], build, changes, items, keep)
    compressor = _compressor(workspace, chain["compressor"], embeddings)
    codes = _codes(workspace, chain["codes"], compressor, embeddings, changes, keep)
    log.info("changes taken in n_items=%d fresh=%d", codes.facts["n_items"], len(changes.items))
    return {**chain, "embeddings": embeddings, "compressor": compressor, "codes": codes}


def _carry_deletions(workspace: Workspace, embeddings: Build) -> None:
    """Delete again, from newly trained embeddings, what was deleted from earlier ones.

    A log still holds the interactions with an item that is gone, so training brings it back.
    Upserted rows lie in the space of the old vectors and are dropped.
    """
    if not workspace.has(KIND):
        return
    old = workspace.current(KIND)
    if old.manifest.inputs["embeddings"]["content_id"] == embeddings.content_id:
        return
    changes = Changes.load(old)
    ids = pq.read_table(embeddings.path("items.parquet"), columns=["item_id"])["item_id"]
    known = set(ids.to_pylist())
    lost = [i for i in changes.item_ids if i not in known]
    if lost:
        log.warning("upserted items dropped n=%d: update them again for the new vectors", len(lost))
    facts = embeddings.facts
    none = Changes.none(facts["dim"], facts["n_bias"])
    kept = dataclasses.replace(none, deleted=tuple(i for i in changes.deleted if i in known))
    settings = {"carried": old.content_id}
    workspace.build(KIND, config=settings, inputs=[embeddings], write=kept.save)


def _embeddings(
    workspace: Workspace,
    old: Build,
    changes_build: Build,
    changes: Changes,
    items: pa.Table,
    keep: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Build:

    def write(draft: Draft) -> dict[str, Any]:
        for name, fresh in (("vectors", changes.vectors), ("bias", changes.bias)):
            rows = np.load(old.path(f"{name}.npy"), mmap_mode="r")[keep]
            np.save(draft.path(f"{name}.npy"), np.concatenate([rows, fresh]))
        rows = np.concatenate([keep, len(items) + np.arange(len(changes.items))])
        table = joined_items(items, changes).take(pa.array(rows))
        numbers = pa.array(range(len(table)), pa.int32())
        table = table.set_column(table.column_names.index("item_num"), "item_num", numbers)
        pq.write_table(table, draft.path("items.parquet"))
        return old.facts | {"n_items": len(table)}

    source = [old.content_id, changes_build.content_id]
    return workspace.build("embeddings", config={"source": "changes"}, source=source, write=write)


def _compressor(workspace: Workspace, old: Build, embeddings: Build) -> Build:
    def write(draft: Draft) -> dict[str, Any]:
        for name in old.files():
            shutil.copyfile(old.path(name), draft.path(name))
        return old.facts

    settings = old.manifest.config | {"from": old.content_id}
    return workspace.build("compressor", config=settings, inputs=[embeddings], write=write)


def _codes(
    workspace: Workspace,
    old: Build,
    compressor: Build,
    embeddings: Build,
    changes: Changes,
    keep: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Build:
    def write(draft: Draft) -> dict[str, Any]:
        codes = Codes.open(old)
        kept = codes.take(keep)
        if len(changes.vectors):
            kept = kept.joined(_encoded(changes.vectors, codes, compressor))
        kept.save(draft)
        return old.facts | {"n_items": kept.n_items}

    settings = old.manifest.config | {"from": old.content_id}
    return workspace.build("codes", config=settings, inputs=[compressor, embeddings], write=write)


def _encoded(vectors: Floats, codes: Codes, compressor: Build) -> Codes:
    """Return the codes of further rows over the dictionary, in the packing of `codes`."""
    if codes.packing == "dense8":
        return Codes.pack_dense(vectors, similarity="cosine")
    dictionary = np.load(compressor.path("dictionary.npy"))
    model = None
    if "encoder.safetensors" in compressor.files():
        path = compressor.path("encoder.safetensors")
        weight = compressor.manifest.config["compressor"]["wide_weight"]
        model = CompresSAE.load(path, n_active=codes.n_active, wide_weight=weight)
    atoms, values = encode(
        vectors, torch.from_numpy(dictionary), n_active=codes.n_active, model=model
    )
    return Codes.pack(
        atoms,
        values,
        dictionary=dictionary,
        vectors=vectors if model is None else None,
        similarity="cosine",
        value_bits={"packed4": 4, "int8": 8, "float16": 16}[codes.packing],
        codebook=codes.codebook if codes.packing == "packed4" else None,
    )
