"""The peers of the retrieval suite: hnswlib float32, usearch i8, faiss by four quantisers, and SVS.

A peer builds an index file, opens it, and says how it is asked; what is not installed is left out.
SVS (`pip install scalable-vs toml archspec`) is no dependency: what is measured of it runs on
Intel's processors alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.bench.engines import TOP, Opened, Search, ladder
from raysys.bench.records import processor
from raysys.data.arrays import Floats

_LINKS = 16
_EF_CONSTRUCTION = 200
_MOST_EF = 1280
_SVS_PARTS = ("config", "graph", "data")


@dataclasses.dataclass(frozen=True)
class Peer:
    """One engine.

    Attributes:
        name: as it is shown.
        module: what it imports.
        build: (vectors, path, seed, threads): write an index file, or a folder of them.
        open: (path, dim): open it for searches on one thread.
        cosine_only: it compares directions, so inner products are left out.
        intel_only: other processors are refused.
    """

    name: str
    module: str
    build: Callable[[Floats, Path, int, int], None]
    open: Callable[[Path, int], Opened]
    cosine_only: bool = False
    intel_only: bool = False

    @property
    def installed(self) -> bool:
        """Tell whether the engine can be imported, and runs on this processor."""
        if self.intel_only and "Intel" not in processor():
            return False
        return importlib.util.find_spec(self.module) is not None


def _build_hnswlib(vectors: Floats, path: Path, seed: int, threads: int) -> None:
    import hnswlib

    graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
    settings = {"M": _LINKS, "ef_construction": _EF_CONSTRUCTION, "random_seed": seed}
    graph.init_index(len(vectors), **settings)
    for start in range(0, len(vectors), 1 << 16):
        rows = np.asarray(vectors[start : start + (1 << 16)])
        graph.add_items(rows, np.arange(start, start + len(rows)), num_threads=threads)
    graph.save_index(str(path))


def _open_hnswlib(path: Path, dim: int) -> Opened:
    import hnswlib

    graph = hnswlib.Index(space="ip", dim=dim)
    graph.load_index(str(path))

    def search_at(ef: int) -> Search:
        graph.set_ef(ef)
        return lambda query: _as_nums(graph.knn_query(query, k=TOP, num_threads=1)[0])

    return Opened(search_at, ladder(TOP, _MOST_EF))


def _build_usearch(vectors: Floats, path: Path, seed: int, threads: int) -> None:
    from usearch.index import Index

    graph = Index(**_usearch_settings(vectors.shape[1]))
    for start in range(0, len(vectors), 1 << 16):
        rows = np.asarray(vectors[start : start + (1 << 16)])
        graph.add(np.arange(start, start + len(rows)), rows, threads=threads)
    graph.save(str(path))


def _open_usearch(path: Path, dim: int) -> Opened:
    from usearch.index import Index

    graph = Index(**_usearch_settings(dim))
    graph.load(str(path))

    def search_at(ef: int) -> Search:
        graph.expansion_search = ef
        return lambda query: _as_nums(graph.search(query, TOP, threads=1).keys)

    def own(queries: Floats) -> NDArray[Any]:
        return _as_nums(graph.search(queries, TOP, threads=1, exact=True).keys)

    return Opened(search_at, ladder(TOP, _MOST_EF), own)


def _usearch_settings(dim: int) -> dict[str, Any]:
    shape = {"ndim": dim, "metric": "cos", "dtype": "i8"}
    return {**shape, "connectivity": _LINKS, "expansion_add": _EF_CONSTRUCTION}


def _build_faiss(kind: str, vectors: Floats, path: Path, seed: int, threads: int) -> None:
    import faiss

    faiss.omp_set_num_threads(threads)
    dim, lists = vectors.shape[1], max(1, int(4 * len(vectors) ** 0.5))
    parts = dim // 6 if dim % 6 == 0 else dim // 4
    text = kind.format(lists=lists, dim=dim, parts=parts)
    index = faiss.index_factory(dim, text, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng([seed, lists])
    rows = np.sort(rng.permutation(len(vectors))[: max(50 * lists, 1 << 16)])
    index.train(np.ascontiguousarray(vectors[rows]))
    for start in range(0, len(vectors), 1 << 16):
        index.add(np.ascontiguousarray(vectors[start : start + (1 << 16)]))
    faiss.write_index(index, str(path))


def _open_faiss(path: Path, dim: int) -> Opened:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(path))
    inner = faiss.extract_index_ivf(index)

    def search_at(n_probe: int) -> Search:
        inner.nprobe = n_probe
        return lambda query: _as_nums(index.search(query, TOP)[1])

    return Opened(search_at, ladder(1, inner.nlist), lambda q: search_at(inner.nlist)(q))


def _faiss(name: str, kind: str) -> Peer:
    def build(vectors: Floats, path: Path, seed: int, threads: int) -> None:
        _build_faiss(kind, vectors, path, seed, threads)

    return Peer(name, "faiss", build, _open_faiss)


def _build_svs(vectors: Floats, path: Path, seed: int, threads: int) -> None:
    """Write LeanVec: half of the dims in four bits for the walk, all in eight for the order."""
    import svs

    shutil.rmtree(path, ignore_errors=True)  # of a build that was cut off
    path.mkdir(parents=True)
    file, kinds = path / "vectors.fvecs", svs.LeanVecKind
    svs.write_vecs(np.ascontiguousarray(vectors), str(file))
    dim = vectors.shape[1]
    loader = svs.LeanVecLoader(
        svs.VectorDataLoader(str(file), svs.DataType.float32, dims=dim),
        max(1, dim // 2),
        primary_kind=kinds.lvq4,
        secondary_kind=kinds.lvq8,
    )
    shape = svs.VamanaBuildParameters(
        alpha=0.95, graph_max_degree=2 * _LINKS, window_size=_EF_CONSTRUCTION
    )
    index = svs.Vamana.build(shape, loader, svs.DistanceType.MIP, num_threads=threads)
    index.save(*(str(path / part) for part in _SVS_PARTS))
    file.unlink()


def _open_svs(path: Path, dim: int) -> Opened:
    import svs

    config, graph, data = (str(path / part) for part in _SVS_PARTS)
    loaders = svs.GraphLoader(graph), svs.LeanVecLoader(data)
    index = svs.Vamana(config, *loaders, svs.DistanceType.MIP, num_threads=1)

    def search_at(window: int) -> Search:
        index.search_window_size = window
        return lambda query: _as_nums(index.search(query, TOP)[0])

    return Opened(search_at, ladder(TOP, _MOST_EF))


def _as_nums(keys: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(keys).astype(np.int64).reshape(-1, TOP)


PEERS = (
    Peer("hnswlib float32", "hnswlib", _build_hnswlib, _open_hnswlib),
    Peer("usearch i8", "usearch", _build_usearch, _open_usearch, cosine_only=True),
    _faiss("faiss IVF-OPQ", "OPQ{parts},IVF{lists},PQ{parts}x8"),
    _faiss("faiss IVF-RaBitQ", "RR{dim},IVF{lists},RaBitQ"),
    _faiss("faiss IVF-RaBitQ 4 bits", "RR{dim},IVF{lists},RaBitQ4"),
    _faiss("faiss IVF-TurboQuant 4 bits", "RR{dim},IVF{lists},SQtq4"),
    Peer("SVS LeanVec 4x8", "svs", _build_svs, _open_svs, intel_only=True),
)
