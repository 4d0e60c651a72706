"""Search on one thread: flat, ivf and graph over codes against hnswlib, usearch and faiss.

    raysys bench suite=retrieval source=embeddings.npy [limit=20000]

Every engine gets the same vectors and answers the same held-out queries one by one, each at the
smallest setting with which it finds `target_recall` of its own exact ranking (its codes compared
exhaustively; for hnswlib the dense vectors). `recall@10` is against the dense truth.
`resident_bytes` is what an engine keeps per index: our arrays, the peers' files.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import (
    Dataset,
    Floats,
    exact_top,
    fit_codes,
    latency,
    load_dataset,
    recall,
    scratch,
    timed,
)
from raysys.builds import Build, Draft, Workspace
from raysys.config import local, require
from raysys.retrieval.building import IndexParams, build_index, choose_settings, sample_probes
from raysys.retrieval.codes import Codes
from raysys.retrieval.index import KINDS, Index

log = logging.getLogger(__name__)

_TOP = 10
_EF_LADDER = [10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 320, 453, 640, 1280]

Search = Callable[[Floats], Any]


@dataclasses.dataclass
class RetrievalBenchConfig(BenchConfig):
    """Settings of the retrieval suite.

    Attributes:
        source: .npy of vectors (cosine); empty: the run's embeddings build.
        limit: use only the first rows.
        n_active: non-zeros per item.
        target_recall: of an engine's own exact ranking.
        queries: query rows put aside.
        peers: measure hnswlib, usearch and faiss too (the last two where they are installed).
    """

    source: str = ""
    limit: int | None = None
    n_active: int = 32
    target_recall: float = 0.95
    queries: int = 1000
    peers: bool = local(True)

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        require(self.n_active >= 1, "n_active", self.n_active, "1 or more")
        require(0 < self.target_recall <= 1, "target_recall", self.target_recall, "in (0, 1]")
        require(self.queries >= 1, "queries", self.queries, "1 or more")


def rows(cfg: RetrievalBenchConfig) -> list[dict[str, Any]]:
    """Measure all engines."""
    data = load_dataset(cfg, source=cfg.source, limit=cfg.limit, n_queries=cfg.queries)
    truth, _ = exact_top(data.queries, data.vectors, _TOP)
    (atoms, values, dictionary), train_s = timed(lambda: fit_codes(data, cfg.n_active, cfg.seed))
    codes = Codes.pack(
        atoms, values, dictionary=dictionary, vectors=data.vectors, similarity=data.similarity
    )
    found = []
    with scratch() as folder:
        chain = _write_builds(folder, data, codes, dictionary)
        for kind in KINDS:
            found.append(_ours(cfg, kind, data, codes, dictionary, chain, truth, folder))
            found[-1]["train_s"] = train_s
            log.info("bench %s", found[-1])
        for peer in (_hnswlib, _usearch, *_FAISS) if cfg.peers else ():
            row = peer(cfg, data, truth, Path(folder))
            if row is not None:
                found.append(row)
                log.info("bench %s", row)
    return found


def _write_builds(folder: str, data: Dataset, codes: Codes, dictionary: Floats) -> dict[str, Build]:
    """Write what an index opens beside itself."""
    workspace = Workspace(folder)
    draft = _draft(workspace, "embeddings")
    np.save(draft.path("bias.npy"), np.zeros((codes.n_items, 0), dtype=np.float32))
    embeddings = draft.commit({})
    draft = _draft(workspace, "compressor")
    np.save(draft.path("dictionary.npy"), dictionary)
    compressor = draft.commit({})
    draft = _draft(workspace, "codes")
    codes.save(draft)
    stored = draft.commit({"packing": codes.packing, "similarity": data.similarity})
    return {"embeddings": embeddings, "compressor": compressor, "codes": stored}


def _draft(workspace: Workspace, kind: str) -> Draft:
    draft = workspace.begin(kind, config={}, force=True)
    assert isinstance(draft, Draft)
    return draft


def _ours(
    cfg: RetrievalBenchConfig,
    kind: str,
    data: Dataset,
    codes: Codes,
    dictionary: Floats,
    chain: dict[str, Build],
    truth: Any,
    folder: str,
) -> dict[str, Any]:
    params = IndexParams(kind=kind, target_recall=cfg.target_recall, allow_miss=True)
    none = np.zeros((codes.n_items, 0), dtype=np.float32)
    made, build_s = timed(
        lambda: build_index(
            codes, dictionary, none, similarity=data.similarity, params=params, seed=cfg.seed
        )
    )
    probes = sample_probes(data.vectors, 0, similarity=data.similarity, sample=200, seed=cfg.seed)
    (made.settings, _), choose_s = timed(lambda: choose_settings(made, probes, params=params))
    draft = _draft(Workspace(folder), "index")
    build = draft.commit(made.save(draft))
    index, load_s = timed(lambda: Index.open(build, chain))
    nums, scores = index.search(data.queries, top_k=_TOP)
    exact = np.sort(index.score_all(data.queries), axis=1)[:, -_TOP]
    size = sum(build.manifest.files[name]["bytes"] for name in build.files())
    if kind != "ivf":
        size += sum(chain["codes"].manifest.files[name]["bytes"] for name in chain["codes"].files())
    return {
        "engine": f"raysys {index.kind}",
        **_shape(data),
        "setting": f"{index.settings.get(_TOP, '')}",
        "bytes_per_item": build.facts["bytes_per_item"],
        "recall@10": recall(nums, truth, _TOP),
        "own_recall@10": round(float(np.mean(scores >= exact[:, None])), 4),
        **latency(lambda query: index.search(query, top_k=_TOP), data.queries),
        "build_s": build_s,
        "choose_s": choose_s,
        "load_s": load_s,
        "resident_bytes": size + dictionary.nbytes,
    }


def _shape(data: Dataset) -> dict[str, Any]:
    return {
        "data": data.name,
        "n_items": len(data.vectors),
        "dim": data.vectors.shape[1],
        "similarity": data.similarity,
        "threads": 1,
    }


def _measure(
    name: str,
    cfg: RetrievalBenchConfig,
    data: Dataset,
    truth: Any,
    own: Any,
    settings: Iterable[int],
    search_at: Callable[[int], Search],
) -> dict[str, Any]:
    """Find a peer's smallest setting that reaches the target on its own ranking; time that."""
    setting, nums, search = 0, own, search_at(10)
    for setting in settings:
        search = search_at(setting)
        nums = np.concatenate([search(data.queries[q : q + 1]) for q in range(len(data.queries))])
        if recall(nums, own, _TOP) >= cfg.target_recall:
            break
    return {
        "engine": name,
        **_shape(data),
        "setting": f"{setting}",
        "recall@10": recall(nums, truth, _TOP),
        "own_recall@10": recall(nums, own, _TOP),
        **latency(search, data.queries),
    }


def _sizes(row: dict[str, Any], data: Dataset, path: Path, build_s: float) -> dict[str, Any]:
    size = path.stat().st_size
    per_item = round(size / len(data.vectors), 1)
    return row | {"bytes_per_item": per_item, "build_s": build_s, "resident_bytes": size}


def _hnswlib(cfg: RetrievalBenchConfig, data: Dataset, truth: Any, folder: Path) -> dict[str, Any]:
    import hnswlib

    dim = data.vectors.shape[1]

    def build() -> Any:
        graph = hnswlib.Index(space="ip", dim=dim)
        graph.init_index(len(data.vectors), M=16, ef_construction=200, random_seed=cfg.seed)
        graph.add_items(data.vectors, num_threads=1)
        return graph

    graph, build_s = timed(build)
    path = folder / "peer.hnswlib"
    graph.save_index(str(path))
    loaded = hnswlib.Index(space="ip", dim=dim)
    _, load_s = timed(lambda: loaded.load_index(str(path)))

    def search_at(ef: int) -> Search:
        loaded.set_ef(ef)
        return lambda query: loaded.knn_query(query, k=_TOP, num_threads=1)[0].astype(np.int64)

    row = _measure("hnswlib float32", cfg, data, truth, truth, _EF_LADDER, search_at)
    return _sizes(row, data, path, build_s) | {"load_s": load_s}


def _usearch(
    cfg: RetrievalBenchConfig, data: Dataset, truth: Any, folder: Path
) -> dict[str, Any] | None:
    try:
        from usearch.index import Index as UsearchIndex
    except ImportError:
        log.warning("usearch is not installed: no row")
        return None
    metric = "cos" if data.similarity == "cosine" else "ip"
    settings = {"ndim": data.vectors.shape[1], "metric": metric, "dtype": "i8"}
    graph = UsearchIndex(**settings, connectivity=16, expansion_add=200)
    keys = np.arange(len(data.vectors))
    _, build_s = timed(lambda: graph.add(keys, data.vectors, threads=1))
    path = folder / "peer.usearch"
    graph.save(str(path))
    loaded = UsearchIndex(**settings)
    _, load_s = timed(lambda: loaded.load(str(path)))
    own = _keys(loaded.search(data.queries, _TOP, threads=1, exact=True))

    def search_at(ef: int) -> Search:
        loaded.expansion_search = ef
        return lambda query: _keys(loaded.search(query, _TOP, threads=1))

    row = _measure("usearch i8", cfg, data, truth, own, _EF_LADDER, search_at)
    return _sizes(row, data, path, build_s) | {"load_s": load_s}


def _keys(matches: Any) -> Any:
    return np.asarray(matches.keys, dtype=np.int64).reshape(-1, _TOP)


def _faiss(
    kind: str, cfg: RetrievalBenchConfig, data: Dataset, truth: Any, folder: Path
) -> dict[str, Any] | None:
    try:
        import faiss
    except ImportError:
        log.warning("faiss is not installed: no row")
        return None
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        n_lists = max(1, int(4 * len(data.vectors) ** 0.5))
        dim = data.vectors.shape[1]
        text = kind.format(lists=n_lists, dim=dim, parts=dim // 6 if dim % 6 == 0 else dim // 4)
        lists = faiss.index_factory(dim, text, faiss.METRIC_INNER_PRODUCT)

        def build() -> None:
            lists.train(data.vectors)
            lists.add(data.vectors)

        _, build_s = timed(build)
        path = folder / "peer.faiss"
        faiss.write_index(lists, str(path))
        loaded, load_s = timed(lambda: faiss.read_index(str(path)))
        inner = faiss.extract_index_ivf(loaded)

        def search_at(n_probe: int) -> Search:
            inner.nprobe = n_probe
            return lambda query: loaded.search(query, _TOP)[1]

        own = search_at(n_lists)(data.queries)
        row = _measure(f"faiss {text}", cfg, data, truth, own, _probes(n_lists), search_at)
        return _sizes(row, data, path, build_s) | {"load_s": load_s}
    finally:
        faiss.omp_set_num_threads(threads)


def _ivf_opq(*arguments: Any) -> dict[str, Any] | None:
    return _faiss("OPQ{parts},IVF{lists},PQ{parts}x8", *arguments)


def _ivf_rabitq(*arguments: Any) -> dict[str, Any] | None:
    return _faiss("RR{dim},IVF{lists},RaBitQ", *arguments)


_FAISS = (_ivf_opq, _ivf_rabitq)


def _probes(n_lists: int) -> list[int]:
    steps = np.rint(2 ** (np.arange(40) / 2)).astype(int)
    return [*dict.fromkeys(int(s) for s in steps if s < n_lists), n_lists]
