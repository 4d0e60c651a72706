"""Recall at equal bytes: sparse codes against the quantisers of faiss.

    raysys bench suite=codes source=embeddings.npy [limit=20000] [sizes=[48,64,96]]

Truth: the exact top 10 and 100 of the dense vectors, for query rows that neither training nor
database saw. Every engine is trained in this run on the same rows, and asked by the dense query.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np

from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import (
    Dataset,
    Floats,
    dictionary_of,
    encode_with,
    exact_top,
    load_dataset,
    recall,
    timed,
)
from raysys.config import local, require
from raysys.models.compressae import WIDE_FACTOR, CompresSAEConfig
from raysys.retrieval.atoms import atom_usage
from raysys.retrieval.codes import SIMILARITIES, Codes
from raysys.retrieval.index import Index

log = logging.getLogger(__name__)

_TOP = 100


@dataclasses.dataclass
class CodesBenchConfig(BenchConfig):
    """Settings of the codes suite.

    Attributes:
        source: .npy of vectors; empty: the run's embeddings build.
        similarity: of a source, `cosine` or `inner_product`.
        limit: use only the first rows.
        sizes: bytes per item to compare at; ours take (size - 2) / 2 non-zeros.
        queries: query rows put aside.
        peers: measure faiss too (where it is installed).
    """

    source: str = ""
    similarity: str = "cosine"
    limit: int | None = None
    sizes: list[int] = dataclasses.field(default_factory=lambda: [48, 64, 96])
    queries: int = 1000
    peers: bool = local(True)

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that hold no code."""
        require(self.similarity in SIMILARITIES, "similarity", self.similarity, str(SIMILARITIES))
        require(min(self.sizes, default=0) >= 4, "sizes", self.sizes, "4 bytes or more each")
        require(self.queries >= 1, "queries", self.queries, "1 or more")


def rows(cfg: CodesBenchConfig) -> list[dict[str, Any]]:
    """Measure all engines at all sizes."""
    data = load_dataset(
        cfg,
        source=cfg.source,
        limit=cfg.limit,
        n_queries=cfg.queries,
        similarity=cfg.similarity,
    )
    truth, _ = exact_top(data.queries, data.vectors, _TOP)
    found = _ours(cfg, data, truth)
    if cfg.peers:
        dim = data.vectors.shape[1]
        kinds = [each for size in cfg.sizes for each in peer_kinds(size, dim)]
        peers = [_peer(kind, data, truth, wide) for kind, wide in dict.fromkeys(kinds)]
        found += [row for row in peers if row is not None]
    return found


def _ours(cfg: CodesBenchConfig, data: Dataset, truth: Any) -> list[dict[str, Any]]:
    """Measure our codes at all sizes; one dictionary serves them all, as in a deployment."""
    code_dim, _ = CompresSAEConfig().sizes(len(data.vectors))
    dictionary, train_s = timed(lambda: dictionary_of(data, cfg.seed))
    result = []
    for size in cfg.sizes:
        n_active = min((size - 2) // 2, code_dim // WIDE_FACTOR)
        codes, encode_s = timed(lambda n=n_active: _encode(data, dictionary, n))  # type: ignore[misc]
        none = np.zeros((codes.n_items, 0), dtype=np.float32)
        index = Index(
            kind="flat",
            similarity=data.similarity,
            codes=codes,
            bias=none,
            dictionary=dictionary,
        )
        nums, _ = index.search(data.queries, top_k=_TOP)
        row = _row(f"raysys {codes.packing}", data, codes.bytes_per_item, nums, truth)
        row["cosine"] = mean_cosine(codes.decode(dictionary), data.vectors)
        row["train_s"], row["encode_s"] = train_s, encode_s
        row["items_per_s"] = round(codes.n_items / encode_s, 1)
        row["setting"] = f"n_active={codes.n_active}"
        if codes.packing != "dense8":
            row["setting"] += f" code_dim={code_dim}"
            usage = atom_usage(codes, code_dim)
            row["dead_atoms"] = int(np.count_nonzero(usage == 0))
            row["usage_p1_p50_p99"] = [int(u) for u in np.quantile(usage, [0.01, 0.5, 0.99])]
            row["dictionary_bytes"] = dictionary.nbytes
            row["bytes_with_dictionary"] = round(codes.bytes_per_item_with(dictionary), 1)
            row["pays_from_items"] = pays_from(dictionary, codes.bytes_per_item)
        result.append(row)
        log.info("bench %s", row)
    return result


def _encode(data: Dataset, dictionary: Floats, n_active: int) -> Codes:
    """Return packed codes; 8-bit dense ones where these are no larger."""
    if data.vectors.shape[1] <= 2 * n_active:
        return Codes.pack_dense(data.vectors, similarity=data.similarity)
    atoms, values = encode_with(data, dictionary, n_active)
    return Codes.pack(
        atoms, values, dictionary=dictionary, vectors=data.vectors, similarity=data.similarity
    )


def pays_from(dictionary: Floats, code_bytes: float) -> int:
    """Return from how many items on codes and dictionary are smaller than float16 vectors."""
    saved = 2 * dictionary.shape[1] - code_bytes
    return -1 if saved <= 0 else int(np.ceil(dictionary.nbytes / saved))


def peer_kinds(size: int, dim: int) -> list[tuple[str, int]]:
    """Return faiss' quantisers of `size` bytes per item, each with the width it is given.

    Product quantisers split a vector into equal parts: zeros fill the last one.
    """
    wide = -(-dim // size) * size
    kinds = [(f"PQ{size}x8", wide), (f"OPQ{size}_{wide},PQ{size}x8", wide)]
    if size < dim:
        kinds.append((f"PCA{size},SQ8", dim))
    return [*kinds, (_rabitq(size, dim), dim)]


def _rabitq(size: int, dim: int) -> str:
    """Return RaBitQ (one bit per dimension and 8 bytes) after rotation, or PCA where it is wider.

    Bits beyond one cost 4 factors more (`RaBitQ2`: 2 bits and 20 bytes per item).
    """
    bits = dim if dim // 8 + 8 <= size else max(8, (size - 8) * 8)
    return f"PCAR{bits},RaBitQ" if bits < dim else f"RR{dim},RaBitQ"


def _peer(kind: str, data: Dataset, truth: Any, wide: int) -> dict[str, Any] | None:
    try:
        import faiss
    except ImportError:
        log.warning("faiss is not installed: no peers")
        return None
    vectors, queries = _widen(data.vectors, wide), _widen(data.queries, wide)
    quantiser = faiss.index_factory(wide, kind, faiss.METRIC_INNER_PRODUCT)
    _, seconds = timed(lambda: quantiser.train(vectors))
    quantiser.add(vectors)
    nums = quantiser.search(queries, _TOP)[1]
    row = _row(f"faiss {kind}", data, quantiser.sa_code_size(), nums, truth)
    row["setting"] = "" if wide == data.vectors.shape[1] else f"padded to {wide}"
    row["cosine"] = mean_cosine(quantiser.sa_decode(quantiser.sa_encode(vectors)), vectors)
    row["train_s"] = seconds
    log.info("bench %s", row)
    return row


def _row(engine: str, data: Dataset, size: float, nums: Any, truth: Any) -> dict[str, Any]:
    return {
        "engine": engine,
        "data": data.name,
        "n_items": len(data.vectors),
        "dim": data.vectors.shape[1],
        "similarity": data.similarity,
        "bytes_per_item": size,
        "recall@10": recall(nums, truth, 10),
        "recall@100": recall(nums, truth, _TOP),
    }


def _widen(vectors: Floats, wide: int) -> Floats:
    """Return vectors with columns of zeros up to `wide`: products stay the same."""
    missing = wide - vectors.shape[1]
    if missing == 0:
        return vectors
    zeros = np.zeros((len(vectors), missing), dtype=np.float32)
    return np.ascontiguousarray(np.concatenate([vectors, zeros], axis=1))


def mean_cosine(found: Floats, vectors: Floats) -> float:
    """Return the mean cosine of reconstructions [N, D] and vectors [N, D]."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(vectors, axis=1)
    return round(float(np.mean(np.sum(found * vectors, 1) / np.maximum(norms, 1e-12))), 4)
