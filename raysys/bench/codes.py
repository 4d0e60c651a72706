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
    exact_top,
    fit_codes,
    load_dataset,
    recall,
    timed,
)
from raysys.config import local, require
from raysys.retrieval.codes import Codes
from raysys.retrieval.index import Index

log = logging.getLogger(__name__)

_TOP = 100


@dataclasses.dataclass
class CodesBenchConfig(BenchConfig):
    """Settings of the codes suite.

    Attributes:
        source: .npy of vectors (cosine); empty: the run's embeddings build.
        limit: use only the first rows.
        sizes: bytes per item to compare at; ours take (size - 2) / 2 non-zeros.
        queries: query rows put aside.
        peers: measure faiss too (where it is installed).
    """

    source: str = ""
    limit: int | None = None
    sizes: list[int] = dataclasses.field(default_factory=lambda: [48, 64, 96])
    queries: int = 1000
    peers: bool = local(True)

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that hold no code."""
        require(min(self.sizes, default=0) >= 4, "sizes", self.sizes, "4 bytes or more each")
        require(self.queries >= 1, "queries", self.queries, "1 or more")


def rows(cfg: CodesBenchConfig) -> list[dict[str, Any]]:
    """Measure all engines at all sizes."""
    data = load_dataset(cfg, source=cfg.source, limit=cfg.limit, n_queries=cfg.queries)
    truth, _ = exact_top(data.queries, data.vectors, _TOP)
    found = _ours(cfg, data, truth)
    if cfg.peers:
        dim = data.vectors.shape[1]
        kinds = [each for size in cfg.sizes for each in peer_kinds(size, dim)]
        peers = [_peer(kind, data, truth, wide) for kind, wide in dict.fromkeys(kinds)]
        found += [row for row in peers if row is not None]
    return found


def _ours(cfg: CodesBenchConfig, data: Dataset, truth: Any) -> list[dict[str, Any]]:
    result = []
    for size in cfg.sizes:
        n_active = (size - 2) // 2
        fitted, seconds = timed(lambda n=n_active: fit_codes(data, n, cfg.seed))  # type: ignore[misc]
        atoms, values, dictionary = fitted
        codes, pack_s = timed(
            lambda a=atoms, v=values, d=dictionary: Codes.pack(  # type: ignore[misc]
                a, v, dictionary=d, vectors=data.vectors, similarity=data.similarity
            )
        )
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
        row["setting"] = f"n_active={codes.n_active} code_dim={len(dictionary)}"
        row["bytes_with_dictionary"] = round(codes.bytes_per_item_with(dictionary), 1)
        row["cosine"] = mean_cosine(codes.decode(dictionary), data.vectors)
        row["train_s"], row["pack_s"] = seconds, pack_s
        result.append(row)
        log.info("bench %s", row)
    return result


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
