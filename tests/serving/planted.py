"""Tiny runs on disk with a known right answer, for tests of search, serving and scoring."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.builds import Workspace
from raysys.retrieval.codes import Codes

ITEM_IDS = ["42", "caffè/latte 1", "a?b#c%2F", "ends/"]


def item_id(num):
    return ITEM_IDS[num] if num < len(ITEM_IDS) else f"item-{num}"


def title(num):
    return None if num == 1 else f"Title {num}"


def write_items(draft, n_items):
    table = {
        "item_num": pa.array(range(n_items), pa.int32()),
        "item_id": [item_id(num) for num in range(n_items)],
        "title": pa.array([title(num) for num in range(n_items)], pa.string()),
    }
    pq.write_table(pa.table(table), draft.path("items.parquet"))


def write_embeddings(ws, vectors, bias, *, similarity, inputs):
    draft = ws.begin("embeddings", config={}, inputs=inputs, source=vectors.tobytes().hex()[:64])
    with ws.writing(draft):
        np.save(draft.path("vectors.npy"), vectors.astype(np.float32))
        np.save(draft.path("bias.npy"), bias.astype(np.float32))
        write_items(draft, len(vectors))
        facts = {"n_items": len(vectors), "dim": vectors.shape[1], "n_bias": bias.shape[1]}
        return draft.commit({**facts, "similarity": similarity})


def write_flat_index(ws, embeddings, vectors, *, similarity):
    """Compress to 8 bits per dimension and index without cells: almost the exact ranking."""
    draft = ws.begin("compressor", config={}, inputs=[embeddings])
    with ws.writing(draft):
        np.save(draft.path("dictionary.npy"), np.eye(vectors.shape[1], dtype=np.float32))
        compressor = draft.commit({})
    draft = ws.begin("codes", config={}, inputs=[compressor, embeddings])
    with ws.writing(draft):
        Codes.pack_dense(vectors, similarity=similarity).save(draft)
        facts = {"n_items": len(vectors), "packing": "dense8", "similarity": similarity}
        codes = draft.commit(facts)
    draft = ws.begin("index", config={"kind": "flat"}, inputs=[codes, compressor, embeddings])
    with ws.writing(draft):
        facts = {"kind": "flat", "n_items": len(vectors), "dim": vectors.shape[1], "settings": {}}
        return draft.commit({**facts, "similarity": similarity})


def vectors_run(path, *, n_items=60, dim=8, similarity="cosine", seed=0):
    """A run of plain vectors, without users; returns (workspace, vectors)."""
    ws = Workspace(str(path))
    vectors = np.random.default_rng(seed).normal(size=(n_items, dim)).astype(np.float32)
    bias = np.zeros((n_items, 0), dtype=np.float32)
    embeddings = write_embeddings(ws, vectors, bias, similarity=similarity, inputs=[])
    write_flat_index(ws, embeddings, vectors, similarity=similarity)
    return ws, vectors
