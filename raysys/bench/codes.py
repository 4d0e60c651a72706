"""Recall at equal bytes: sparse codes against the quantisers of faiss.

    raysys bench suite=codes source=embeddings.npy [limit=20000] [sizes=[48,64,96]] [plot=X.png]
    raysys bench suite=codes source=embeddings.npy parts=[paper,training]

Truth: the exact top 10 and 100 of the dense vectors, for query rows that neither training nor
database saw. Every engine is trained in this run on the same rows, and asked by the dense query.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.bench.codes_plot import write_plot
from raysys.bench.paper_preset import mode_rows, training_row
from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import (
    Dataset,
    dictionary_of,
    encode_with,
    exact_top,
    load_dataset,
    recall,
    timed,
)
from raysys.compressor.atoms import atom_usage
from raysys.compressor.codes import Codes, truncated
from raysys.compressor.model import WIDE_FACTOR, CompresSAEConfig
from raysys.compressor.packing import SIMILARITIES
from raysys.config import local, location, require
from raysys.data.arrays import Floats
from raysys.index.index import Index
from raysys.index.request import SearchRequest

log = logging.getLogger(__name__)

PARTS = ("recall", "paper", "training")
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
        plot: PNG to draw recall@10 against bytes to; the figures go to a .json beside it.
        parts: `recall`; `paper`: recall of the ways to compare codes of `preset=paper` (cosine);
            `training`: how fast it trains.
    """

    source: str = location()
    similarity: str = "cosine"
    limit: int | None = None
    sizes: list[int] = dataclasses.field(default_factory=lambda: [48, 64, 96])
    queries: int = 1000
    peers: bool = local(True)
    plot: str | None = location(None)
    parts: list[str] = dataclasses.field(default_factory=lambda: ["recall"])

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that hold no code."""
        require(
            self.similarity in SIMILARITIES,
            "similarity",
            self.similarity,
            " or ".join(SIMILARITIES),
        )
        require(min(self.sizes, default=0) >= 4, "sizes", self.sizes, "4 bytes or more each")
        require(self.queries >= 1, "queries", self.queries, "1 or more")
        known = bool(self.parts) and set(self.parts) <= set(PARTS)
        require(known, "parts", self.parts, f"some of {', '.join(PARTS)}")


def rows(cfg: CodesBenchConfig) -> list[dict[str, Any]]:
    """Measure what `cfg.parts` names."""
    data = load_dataset(
        cfg,
        source=cfg.source,
        limit=cfg.limit,
        n_queries=cfg.queries,
        similarity=cfg.similarity,
    )
    fits = data.similarity == "cosine" or "paper" not in cfg.parts
    require(fits, "parts", cfg.parts, "no `paper` for inner products")
    found = _recall_rows(cfg, data) if "recall" in cfg.parts else []
    if "paper" in cfg.parts:
        found += mode_rows(data, seed=cfg.seed)
    if "training" in cfg.parts:
        found.append(training_row(data, seed=cfg.seed))
    return found


def _recall_rows(cfg: CodesBenchConfig, data: Dataset) -> list[dict[str, Any]]:
    """Measure all engines at all sizes."""
    truth, _ = exact_top(data.queries, data.vectors, _TOP)
    found = _ours(cfg, data, truth)
    if cfg.peers:
        dim = data.vectors.shape[1]
        kinds = [each for size in cfg.sizes for each in peer_kinds(size, dim)]
        peers = [_peer(kind, data, truth, wide) for kind, wide in dict.fromkeys(kinds)]
        found += [row for row in peers if row is not None]
    if cfg.plot:
        write_plot(found, Path(cfg.plot))
    return found


def _ours(cfg: CodesBenchConfig, data: Dataset, truth: Any) -> list[dict[str, Any]]:
    """Measure our codes at all sizes; one dictionary serves them all, as in a deployment.

    A last set of rows cuts the longest codes to the other sizes, without the dense vectors.
    """
    code_dim, _ = CompresSAEConfig().sizes(len(data.vectors))
    dictionary, train_s = timed(lambda: dictionary_of(data, cfg.seed))
    result = []
    longest: Codes | None = None
    for size in sorted(cfg.sizes):
        n_active = min((size - 2) // 2, code_dim // WIDE_FACTOR)
        started, core_s = time.perf_counter(), time.process_time()
        longest = codes = _encode(data, dictionary, n_active)
        encode_s, core_s = time.perf_counter() - started, time.process_time() - core_s
        row = _measured(data, codes, dictionary, truth)
        row |= {"train_s": train_s, "encode_s": round(encode_s, 3)}
        row["items_per_core_s"] = round(codes.n_items / core_s, 1)
        row["core_hours_100m"] = round(1e8 / row["items_per_core_s"] / 3600, 1)
        if codes.packing != "dense8":
            row["cosine_held_out"] = _held_out(data, codes, dictionary)
            row["held_out_loss"] = round(row["cosine"] - row["cosine_held_out"], 4)
        result.append(row)
        log.info("bench %s", row)
    for size in sorted(cfg.sizes)[:-1]:
        if longest is not None and longest.packing != "dense8":
            keep = min((size - 2) // 2, longest.n_active)
            cut = truncated(longest, keep, dictionary=dictionary, similarity=data.similarity)
            row = _measured(data, cut, dictionary, truth)
            row["engine"] += f" cut from {longest.n_active}"
            result.append(row)
            log.info("bench %s", row)
    return result


def _measured(data: Dataset, codes: Codes, dictionary: Floats, truth: Any) -> dict[str, Any]:
    """Search codes exhaustively and describe them."""
    none = np.zeros((codes.n_items, 0), dtype=np.float32)
    settings: dict[str, Any] = {"similarity": data.similarity, "dictionary": dictionary}
    nums, _ = Index(kind="flat", codes=codes, bias=none, **settings).search(
        SearchRequest(data.queries, top_k=_TOP)
    )
    row = _row(f"raysys {codes.packing}", data, codes.bytes_per_item, nums, truth)
    row["cosine"] = mean_cosine(codes.decode(dictionary), data.vectors)
    if data.popularity is not None:
        row["recall@10_by_popularity"] = recall_by_decile(nums, truth, data.popularity, 10)
    row["setting"] = f"n_active={codes.n_active}"
    if codes.packing != "dense8":
        row["setting"] += f" code_dim={len(dictionary)}"
        usage = atom_usage(codes, len(dictionary))
        row["dead_atoms"] = int(np.count_nonzero(usage == 0))
        row["usage_p1_p50_p99"] = [int(u) for u in np.quantile(usage, [0.01, 0.5, 0.99])]
        row["dictionary_bytes"] = dictionary.nbytes
        row["bytes_with_dictionary"] = round(codes.bytes_per_item_with(dictionary), 1)
        row["pays_from_items"] = pays_from(dictionary, codes.bytes_per_item)
    return row


def _encode(data: Dataset, dictionary: Floats, n_active: int) -> Codes:
    """Return packed codes; 8-bit dense ones where these are no larger."""
    if data.vectors.shape[1] <= 2 * n_active:
        return Codes.pack_dense(data.vectors, similarity=data.similarity)
    atoms, values = encode_with(data.vectors, dictionary, n_active)
    return Codes.pack(
        atoms, values, dictionary=dictionary, vectors=data.vectors, similarity=data.similarity
    )


def _held_out(data: Dataset, codes: Codes, dictionary: Floats) -> float:
    """Return the mean cosine of the queries' own codes: items that nothing was trained on."""
    book = codes.codebook if codes.packing == "packed4" else None
    atoms, values = encode_with(data.queries, dictionary, codes.n_active, book)
    own = Codes.pack(
        atoms,
        values,
        dictionary=dictionary,
        vectors=data.queries,
        similarity=data.similarity,
        codebook=book,
    )
    return mean_cosine(own.decode(dictionary), data.queries)


def recall_by_decile(
    found: NDArray[Any], truth: NDArray[Any], popularity: NDArray[Any], top_k: int
) -> list[float | None]:
    """Return the share of true neighbours found, by the neighbours' popularity, rarest first.

    Args:
        found: item numbers [Q, >= K], best first.
        truth: the right ones, likewise.
        popularity: [N]; deciles hold equal numbers of items, ties by item number.
        top_k: K.

    Returns:
        Ten shares; None where no true neighbour lies in the decile.
    """
    rank = np.argsort(np.argsort(popularity, kind="stable"), kind="stable")
    decile = rank * 10 // len(popularity)
    wanted = truth[:, :top_k]
    hit = (wanted[:, :, None] == found[:, None, :top_k]).any(axis=2)
    counts = np.bincount(decile[wanted].ravel(), minlength=10)
    hits = np.bincount(decile[wanted].ravel(), weights=hit.ravel(), minlength=10)
    return [round(float(h / n), 4) if n else None for h, n in zip(hits, counts, strict=True)]


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
