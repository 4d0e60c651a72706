"""Compact: take the changes since a build of own vectors into new builds of the same kinds.

Deleted and replaced rows go, upserted ones are encoded with the dictionary that is there; the codes
of all other rows stay bit for bit. What a model was trained on is not touched: there the changes
stay on top of the index until the next training.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pyarrow as pa
import torch

from raysys.compressor.codes import Codes, CodesFacts
from raysys.compressor.embeddings import Embeddings, EmbeddingsFacts, write_embeddings
from raysys.compressor.encode import encode
from raysys.compressor.files import Coded, Compressor
from raysys.data.arrays import Floats
from raysys.search.changes import (
    EDIT,
    KIND,
    Changes,
    ChangesFacts,
    current_changes,
    gone_mask,
    joined_items,
)
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)


def compacted(workspace: Workspace) -> Coded:
    """Return the current codes, after taking in the changes that there are for them."""
    with workspace.held(EDIT):
        return _compacted(workspace, Coded.current(workspace))


def _compacted(workspace: Workspace, coded: Coded) -> Coded:
    if coded.autoencoder is not None:
        _carry_deletions(workspace, coded.embeddings)
    build = current_changes(workspace, coded.embeddings)
    if build is None or not ChangesFacts.of(build).any:
        return coded
    if coded.autoencoder is not None:
        log.info("changes stay on top of the index until the next training")
        return coded
    changes = Changes.open(build)
    items = Embeddings.open(coded.embeddings).items()
    known = {item_id: num for num, item_id in enumerate(items["item_id"].to_pylist())}
    keep = np.flatnonzero(~gone_mask(changes, known, len(items)))
    embeddings = _embeddings(workspace, coded.embeddings, build, changes, items, keep)
    compressor = _compressor(workspace, coded.compressor, embeddings)
    codes = _codes(workspace, coded.codes, compressor, embeddings, changes, keep)
    n_items = EmbeddingsFacts.of(embeddings).n_items
    log.info("changes taken in n_items=%d fresh=%d", n_items, len(changes.items))
    return dataclasses.replace(coded, embeddings=embeddings, compressor=compressor, codes=codes)


def _carry_deletions(workspace: Workspace, embeddings: Build) -> None:
    """Delete again, from newly trained embeddings, what was deleted from earlier ones.

    A log still holds the interactions with an item that is gone, so training brings it back.
    Upserted rows lie in the space of the old vectors and are dropped.
    """
    if not workspace.has(KIND):
        return
    old = workspace.current(KIND)
    if old.made_from(embeddings):
        return
    changes = Changes.open(old)
    opened = Embeddings.open(embeddings)
    known = set(opened.item_ids())
    lost = [i for i in changes.item_ids if i not in known]
    if lost:
        log.warning("upserted items dropped n=%d: update them again for the new vectors", len(lost))
    none = Changes.none(opened.facts.dim, opened.facts.n_bias)
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

    def write(draft: Draft) -> EmbeddingsFacts:
        before = Embeddings.open(old)
        rows = np.concatenate([keep, len(items) + np.arange(len(changes.items))])
        table = joined_items(items, changes).take(pa.array(rows))
        numbers = pa.array(range(len(table)), pa.int32())
        table = table.set_column(table.column_names.index("item_num"), "item_num", numbers)
        write_embeddings(
            draft,
            vectors=np.concatenate([before.vectors[keep], changes.vectors]),
            bias=np.concatenate([before.bias[keep], changes.bias]),
            items=table,
            similarity=before.similarity,
        )
        return dataclasses.replace(before.facts, n_items=len(table))

    source = [old.content_id, changes_build.content_id]
    return workspace.build("embeddings", config={"source": "changes"}, source=source, write=write)


def _compressor(workspace: Workspace, old: Build, embeddings: Build) -> Build:
    settings = old.manifest.config | {"from": old.content_id}
    write = Compressor.open(old).copy_to
    return workspace.build("compressor", config=settings, inputs=[embeddings], write=write)


def _codes(
    workspace: Workspace,
    old: Build,
    compressor: Build,
    embeddings: Build,
    changes: Changes,
    keep: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Build:
    def write(draft: Draft) -> CodesFacts:
        codes = Codes.open(old)
        kept = codes.take(keep)
        if len(changes.vectors):
            kept = kept.joined(_encoded(changes.vectors, codes, Compressor.open(compressor)))
        kept.save(draft)
        return dataclasses.replace(CodesFacts.of(old), n_items=kept.n_items)

    settings = old.manifest.config | {"from": old.content_id}
    return workspace.build("codes", config=settings, inputs=[compressor, embeddings], write=write)


def _encoded(vectors: Floats, codes: Codes, compressor: Compressor) -> Codes:
    """Return the codes of further rows over the dictionary, in the packing of `codes`."""
    if codes.packing == "dense8":
        return Codes.pack_dense(vectors, similarity="cosine")
    dictionary = np.array(compressor.dictionary)
    model = compressor.encoder(n_active=codes.n_active)
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
