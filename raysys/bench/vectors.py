"""What the suites on vectors share: their input, held-out queries, exact truth, recall."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.compressor.embeddings import Embeddings
from raysys.compressor.encode import encode, fit_dictionary
from raysys.compressor.model import CompresSAEConfig
from raysys.config import JobConfig, require
from raysys.data.arrays import Floats, unit_rows
from raysys.data.profiles import Profiles
from raysys.errors import DataError
from raysys.store.builds import Workspace
from raysys.store.temporary import prefix

T = TypeVar("T")

_TRUTH_CHUNK = 16_384


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Database and queries of a bench.

    Attributes:
        name: where the vectors are from.
        similarity: `cosine` (all rows of unit length) or `inner_product`.
        vectors: [N, D] the database, also what everything is trained on.
        bias: [N, n_bias].
        queries: [Q, D], kept out of training and database.
        weights: [Q, n_bias], zeros: the bench compares vectors.
        popularity: [N] interactions of each item of the database; None where unknown.
    """

    name: str
    similarity: str
    vectors: Floats
    bias: Floats
    queries: Floats
    weights: Floats
    popularity: NDArray[np.int64] | None = None


def load_dataset(
    cfg: JobConfig,
    *,
    source: str,
    limit: int | None,
    n_queries: int,
    similarity: str = "cosine",
) -> Dataset:
    """Read vectors and put `n_queries` rows, picked by a seeded hash of their number, aside.

    Args:
        cfg: run and seed.
        source: a .npy file of vectors; empty: the run's embeddings build.
        limit: use only the first rows.
        n_queries: at most half of the rows.
        similarity: how the vectors of a source are compared; a build knows its own.

    Raises:
        DataError: the file cannot be read, or holds no matrix of finite numbers.
    """
    popularity = None
    if source:
        vectors = _read_matrix(source)
        bias = np.zeros((len(vectors), 0), dtype=np.float32)
    else:
        require(bool(cfg.run), "source", source, "a .npy file, or run= with embeddings")
        workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
        embeddings = Embeddings.open(workspace.current("embeddings"))
        vectors, bias = embeddings.vectors, np.array(embeddings.bias)
        similarity = embeddings.similarity
        popularity = _popularity(cfg, len(vectors))
    vectors = np.ascontiguousarray(vectors[:limit], dtype=np.float32)
    good = np.flatnonzero(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    if len(good) < 20:
        raise DataError(f"{source or cfg.run} holds {len(good)} usable vectors, a bench needs 20")
    if similarity == "cosine":
        vectors = unit_rows(vectors)
    marks = [hashlib.blake2b(f"{cfg.seed}:{row}".encode()).digest() for row in good]
    order = sorted(range(len(good)), key=marks.__getitem__)
    queries = good[order[: min(n_queries, len(good) // 2)]]
    rest = np.setdiff1d(good, queries)
    weights = np.zeros((len(queries), bias.shape[1]), dtype=np.float32)
    name = str(Path(source).parent.name) if source else cfg.run
    counts = None if popularity is None else popularity[rest]
    return Dataset(name, similarity, vectors[rest], bias[rest], vectors[queries], weights, counts)


def _popularity(cfg: JobConfig, n_items: int) -> NDArray[np.int64] | None:
    """Return the number of interactions [N] of every item of a run that has profiles."""
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    if not workspace.has("profiles"):
        return None
    nums = Profiles.open(workspace.current("profiles")).cells().item_num
    return np.bincount(nums[nums < n_items], minlength=n_items)


def dictionary_of(data: Dataset, seed: int) -> Floats:
    """Return the dictionary [S, D] of the default compressor, trained on the database."""
    code_dim, _ = CompresSAEConfig().sizes(len(data.vectors))
    fitted = fit_dictionary(data.vectors, code_dim=code_dim, seed=seed)
    return np.ascontiguousarray(fitted.numpy())


def encode_with(
    vectors: Floats, dictionary: Floats, n_active: int, codebook: Floats | None = None
) -> tuple[Any, Any]:
    """Return the atoms and values [N, n] of vectors [N, D]."""
    return encode(
        vectors, torch.from_numpy(dictionary), n_active=n_active, model=None, codebook=codebook
    )


def exact_top(queries: Floats, vectors: Floats, top_k: int) -> tuple[NDArray[np.int64], Floats]:
    """Return item numbers and scores [Q, K] of the largest dot products, best first.

    Vectors may be memory-mapped: they are read once, in blocks, for all queries.
    """
    top_k = min(top_k, len(vectors))
    nums: NDArray[Any] = np.empty((len(queries), 0), dtype=np.int64)
    scores: NDArray[Any] = np.empty((len(queries), 0), dtype=np.float32)
    for start in range(0, len(vectors), _TRUTH_CHUNK):
        product = queries @ np.asarray(vectors[start : start + _TRUTH_CHUNK]).T
        scores = np.concatenate([scores, product], axis=1)
        here = np.arange(start, start + product.shape[1])
        nums = np.concatenate([nums, np.broadcast_to(here, product.shape)], axis=1)
        if start + product.shape[1] >= top_k:
            some = np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k]
            nums = np.take_along_axis(nums, some, 1)
            scores = np.take_along_axis(scores, some, 1)
    order = np.lexsort((nums, -scores), axis=1)
    return np.take_along_axis(nums, order, 1), np.take_along_axis(scores, order, 1)


def recall(found: NDArray[Any], truth: NDArray[Any], top_k: int) -> float:
    """Return the mean share of the first K of `truth` [Q, >=K] among the first K found."""
    pairs = zip(found[:, :top_k], truth[:, :top_k], strict=True)
    shares = [len(np.intersect1d(f, t)) / len(t) for f, t in pairs]
    return round(float(np.mean(shares)), 4)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """Return a result and the seconds it took."""
    started = time.perf_counter()
    result = function()
    return result, round(time.perf_counter() - started, 3)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that is removed when the block ends."""
    return tempfile.TemporaryDirectory(prefix=prefix("bench"))


def _read_matrix(source: str) -> NDArray[Any]:
    try:
        array = np.load(source, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"source={source} cannot be read as a .npy array: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(
            f"source={source} has shape {array.shape} of {array.dtype}: expected [N, D]"
        )
    return np.asarray(array)
