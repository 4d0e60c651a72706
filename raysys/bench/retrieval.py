"""Search: flat, ivf and graph over codes against hnswlib, usearch and faiss, on the same cores.

    raysys bench suite=retrieval source=embeddings.npy [limit=20000]
    raysys bench suite=retrieval source=embeddings.npy grow=1000000 keep=DIR kinds=[flat,ivf]

Every engine gets the same vectors and answers the same held-out queries one by one, each at the
smallest setting with which it finds `target_recall` of its own exact ranking (its codes compared
exhaustively; for hnswlib the dense vectors). `recall@10` is against the dense truth, and
`p50_cpu_ms_at_0.9` the time at which that much of it is found. With `grow=`
the vectors are grown by the rule of `bench.grown`; the dictionary is learned from the real ones.
`keep=` holds vectors, codes and the peers' files, so that a second run only measures. Wall times
are those of the machine as it was: `load_average` stands beside them, CPU times as well.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raysys.bench.engines import TOP, Opened, Search, ladder, measure
from raysys.bench.grown import Kept, grow
from raysys.bench.peers import PEERS, Peer
from raysys.bench.resources import load_average, timed_cpu
from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import Dataset, exact_top, load_dataset, scratch
from raysys.compressor.codes import Codes, CodesFacts
from raysys.compressor.embeddings import EmbeddingsFacts, write_embeddings
from raysys.compressor.encode import encode, fit_dictionary
from raysys.compressor.files import Coded, Compressor, CompressorFacts, write_compressor
from raysys.compressor.model import CompresSAEConfig
from raysys.config import local, location, require
from raysys.data.arrays import Floats
from raysys.index.build import IndexParams, build_index
from raysys.index.efforts import Efforts
from raysys.index.files import IndexFacts, open_index, save_index
from raysys.index.index import INDEX_KINDS, Index
from raysys.index.recall import sample_probes, set_efforts
from raysys.index.request import SearchRequest
from raysys.scoring.rankings import N_CANDIDATES
from raysys.search.neighbours import Neighbours
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft

log = logging.getLogger(__name__)


@dataclasses.dataclass
class RetrievalBenchConfig(BenchConfig):
    """Settings of the retrieval suite.

    Attributes:
        source: .npy of vectors (cosine); empty: the run's embeddings build.
        limit: use only the first rows.
        grow: grow the vectors to so many rows; null: as they are.
        keep: folder for vectors, codes and peers' files; empty: nothing is kept.
        train_rows: rows of the real vectors that the dictionary is learned from; null: up to 16
            per atom, which takes most of the suite's time.
        n_active: non-zeros per item.
        target_recall: of an engine's own exact ranking.
        queries: query rows put aside.
        kinds: of our index.
        build_threads: of the peers' builds; ours here takes one.
        peers: names of those to measure too, where they are installed; null: all. A build of a
            million rows takes a peer minutes to an hour.
    """

    source: str = location()
    limit: int | None = None
    grow: int | None = None
    keep: str = location()
    train_rows: int | None = None
    n_active: int = 32
    target_recall: float = 0.95
    queries: int = 1000
    kinds: list[str] = dataclasses.field(default_factory=lambda: list(INDEX_KINDS))
    build_threads: int = local(1)
    peers: list[str] | None = local(None)

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        require(self.n_active >= 1, "n_active", self.n_active, "1 or more")
        require(0 < self.target_recall <= 1, "target_recall", self.target_recall, "in (0, 1]")
        require(self.grow is None or self.grow >= 1, "grow", self.grow, "1 or more")
        names = [peer.name for peer in PEERS]
        require(set(self.peers or ()) <= set(names), "peers", self.peers, f"of {', '.join(names)}")
        require(
            set(self.kinds) <= set(INDEX_KINDS), "kinds", self.kinds, f"of {', '.join(INDEX_KINDS)}"
        )


def rows(cfg: RetrievalBenchConfig) -> list[dict[str, Any]]:
    """Return one row per engine."""
    data = load_dataset(cfg, source=cfg.source, limit=cfg.limit, n_queries=cfg.queries)
    found = []
    with scratch() as folder:
        kept = Kept(cfg.keep, f"{folder}/kept")
        dictionary = kept.array("dictionary", lambda: learned_dictionary(data, cfg))
        if cfg.grow is not None:
            data = grow(data, cfg.grow, seed=cfg.seed, kept=kept)
        codes = codes_of(data, dictionary, cfg, kept)
        truth = kept.array(
            f"truth-{len(data.vectors)}", lambda: exact_top(data.queries, data.vectors, TOP)[0]
        )
        shared = {"data": data.name, "n_items": len(data.vectors), "dim": data.vectors.shape[1]}
        coded = _write_builds(folder, data, codes, np.asarray(dictionary))
        for kind in cfg.kinds:
            row = _ours(cfg, kind, data, codes, coded, truth, folder)
            found.append({"engine": f"raysys {kind}", **shared, **row})
            log.info("bench %s", found[-1])
            if kind == "ivf":
                row = _rescored(cfg, data, coded, truth, folder)
                found.append({"engine": "raysys ivf, rescored", **shared, **row})
                log.info("bench %s", found[-1])
        for peer in PEERS:
            if cfg.peers is not None and peer.name not in cfg.peers:
                continue
            if peer.cosine_only and data.similarity != "cosine":
                continue
            if not peer.installed:
                log.warning("%s is not installed: no row", peer.name)
                continue
            row = _peer(cfg, peer, data, truth, kept)
            found.append({"engine": peer.name, **shared, **row})
            log.info("bench %s", found[-1])
    return found


def learned_dictionary(data: Dataset, cfg: RetrievalBenchConfig) -> Floats:
    """Return the dictionary of the default compressor, learned from the real vectors."""
    code_dim, n_active = CompresSAEConfig(n_active=cfg.n_active).sizes(len(data.vectors))
    order = np.random.default_rng([cfg.seed, 0x7A1]).permutation(len(data.vectors))
    rows = data.vectors[np.sort(order[: cfg.train_rows])]
    fitted = fit_dictionary(rows, code_dim=code_dim, n_active=n_active, seed=cfg.seed)
    return np.ascontiguousarray(fitted.numpy())


def codes_of(data: Dataset, dictionary: Floats, cfg: RetrievalBenchConfig, kept: Kept) -> Codes:
    """Return the codes of all rows; atoms and values are kept."""
    names = [f"{name}-{len(data.vectors)}" for name in ("atoms", "values")]
    if not all(kept.path(f"{name}.npy").exists() for name in names):
        atoms = torch.from_numpy(np.array(dictionary))
        pair = encode(data.vectors, atoms, n_active=cfg.n_active, model=None)
        types = (np.uint16, np.float32)
        for name, array, kind in zip(names, pair, types, strict=True):
            kept.array(name, lambda array=array, kind=kind: array.astype(kind))  # type: ignore[misc]
    atoms, values = (np.load(kept.path(f"{name}.npy"), mmap_mode="r") for name in names)
    return Codes.pack(
        atoms, values, dictionary=dictionary, vectors=data.vectors, similarity=data.similarity
    )


def _write_builds(folder: str, data: Dataset, codes: Codes, dictionary: Floats) -> Coded:
    """Write what an index opens beside itself; the vectors themselves are not needed."""
    similarity, dim = data.similarity, data.vectors.shape[1]

    def biases(draft: Draft) -> EmbeddingsFacts:
        none = np.zeros((codes.n_items, 0), dtype=np.float32)
        vectors = np.zeros((0, dim), dtype=np.float32)
        return write_embeddings(
            draft, vectors=vectors, bias=none, items=pa.table({}), similarity=similarity
        )

    def atoms(draft: Draft) -> CompressorFacts:
        return write_compressor(draft, dictionary, n_items=codes.n_items, n_active=codes.n_active)

    def packed(draft: Draft) -> CodesFacts:
        codes.save(draft)
        return codes.facts(dictionary, similarity=similarity)

    build = Workspace(folder).build
    return Coded(
        embeddings=build("embeddings", config={}, write=biases, force=True),
        compressor=build("compressor", config={}, write=atoms, force=True),
        codes=build("codes", config={}, write=packed, force=True),
    )


def _ours(
    cfg: RetrievalBenchConfig,
    kind: str,
    data: Dataset,
    codes: Codes,
    coded: Coded,
    truth: NDArray[Any],
    folder: str,
) -> dict[str, Any]:
    """Build, write, open and measure one kind of ours."""
    dictionary = np.array(Compressor.open(coded.compressor).dictionary)
    params = IndexParams(kind=kind, target_recall=cfg.target_recall)
    none = np.zeros((codes.n_items, 0), dtype=np.float32)
    common = {"similarity": data.similarity, "params": params, "seed": cfg.seed}
    made, build_s, build_cpu_s = timed_cpu(
        lambda: build_index(codes, dictionary, none, **common)  # type: ignore[arg-type]
    )
    probes = sample_probes(data.vectors, 0, similarity=data.similarity, seed=cfg.seed)
    _, choose_s, _ = timed_cpu(lambda: set_efforts(made, probes, params=params, keep=True))
    build = Workspace(folder).build(
        "index", config={}, write=lambda draft: save_index(made, draft), force=True
    )
    facts = IndexFacts.of(build)
    row = measure(lambda: _open(build, coded), data, truth, target=cfg.target_recall)
    return {
        "bytes_per_item": facts.bytes_per_item,
        "bytes_per_item_with_dictionary": facts.bytes_per_item_with_dictionary,
        **row,
        "chosen_effort": facts.efforts.get(TOP),
        "build_s": build_s,
        "build_cpu_s": build_cpu_s,
        "choose_s": choose_s,
        "load_average": load_average(),
    }


def _open(build: Build, coded: Coded) -> Opened:
    index = open_index(build, coded)
    assert isinstance(index, Index)
    most = {"flat": 1, "ivf": index.n_lists, "graph": min(index.n_items, 8192)}[index.kind]

    def search_at(effort: int) -> Search:
        return lambda queries: index.search(SearchRequest(queries, top_k=TOP, effort=effort))[0]

    def own(queries: Floats) -> NDArray[Any]:
        return index.search(SearchRequest(queries, top_k=TOP, effort=index.n_items))[0]

    return Opened(search_at, ladder(1 if index.kind == "ivf" else min(TOP, most), most), own)


def _rescored(
    cfg: RetrievalBenchConfig, data: Dataset, coded: Coded, truth: NDArray[Any], folder: str
) -> dict[str, Any]:
    """Measure a search of own vectors: candidates of the index, sorted by the mapped vectors."""
    build, path = Workspace(folder).current("index"), f"{folder}/vectors.npy"
    np.save(path, data.vectors)

    def open_() -> Opened:
        index = open_index(build, coded)
        assert isinstance(index, Index)
        vectors = np.load(path, mmap_mode="r")

        def search_at(effort: int) -> Search:
            moved = copy.copy(index)
            moved.efforts = Efforts({N_CANDIDATES: effort})
            near = Neighbours(vectors, moved)
            return lambda queries: np.stack(
                [ranked.item_nums for ranked in near.of_vectors(queries, top_k=TOP)]
            )

        least = 2 * N_CANDIDATES * index.n_lists // index.n_items  # that hold enough, mostly
        return Opened(search_at, ladder(max(1, least), index.n_lists))

    facts = IndexFacts.of(build)
    row = measure(open_, data, truth, target=cfg.target_recall)
    per_item = 4 * data.vectors.shape[1]
    sizes = {
        "bytes_per_item": facts.bytes_per_item + per_item,
        "bytes_per_item_with_dictionary": facts.bytes_per_item_with_dictionary + per_item,
    }
    return {**sizes, **row, "load_average": load_average()}


def _peer(
    cfg: RetrievalBenchConfig, peer: Peer, data: Dataset, truth: NDArray[Any], kept: Kept
) -> dict[str, Any]:
    """Build (unless it is kept), open and measure one peer."""
    stem = f"{peer.name.replace(' ', '-')}-{len(data.vectors)}"
    path, facts = kept.path(f"{stem}.bin"), kept.path(f"{stem}.json")
    if not facts.exists():
        _, build_s, build_cpu_s = timed_cpu(
            lambda: peer.build(data.vectors, path, cfg.seed, cfg.build_threads)
        )
        times = {"build_s": build_s, "build_cpu_s": build_cpu_s}
        facts.write_text(json.dumps(times | {"build_threads": cfg.build_threads}))
    row = measure(
        lambda: peer.open(path, data.vectors.shape[1]), data, truth, target=cfg.target_recall
    )
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    per_item = round(sum(file.stat().st_size for file in files) / len(data.vectors), 1)
    sizes = {"bytes_per_item": per_item, "bytes_per_item_with_dictionary": per_item}
    return {**sizes, **row, **json.loads(facts.read_text()), "load_average": load_average()}
