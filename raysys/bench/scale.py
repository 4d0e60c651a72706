"""The cost curve: what a query and a build cost as the catalogue grows.

    raysys bench suite=scale source=embeddings.npy keep=DIR sizes=[10000,100000,1000000,3000000]

Only codes are grown, so that millions of items fit a laptop. Row i of the first B is a real code; a
later one takes the 8 strongest entries (and the scale) of a real code a and the others of a real
code b, drawn by a generator seeded by (seed, block of 65,536 rows). Queries are real held-out
vectors; recall is against the exact ranking of the codes.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.bench.engines import TOP, Search, ladder, latency, one_by_one
from raysys.bench.grown import Kept
from raysys.bench.resources import load_average, timed_cpu
from raysys.bench.retrieval import RetrievalBenchConfig, codes_of, learned_dictionary
from raysys.bench.vectors import load_dataset, recall, scratch
from raysys.compressor.codes import Codes
from raysys.config import require
from raysys.index.build import IndexParams, build_index
from raysys.index.index import Index
from raysys.index.request import SearchRequest

log = logging.getLogger(__name__)

_BLOCK_ROWS = 65_536
_KEPT_ENTRIES = 8
_PURPOSE = 0x5CA1
_ASKED = 300


@dataclasses.dataclass
class ScaleBenchConfig(RetrievalBenchConfig):
    """Settings of the scale suite: those of the retrieval suite, and the sizes.

    Attributes:
        sizes: numbers of items.
    """

    sizes: list[int] = dataclasses.field(
        default_factory=lambda: [10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000]
    )

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        super().__post_init__()
        require(min(self.sizes, default=0) >= 1000, "sizes", self.sizes, "1000 or more each")


def rows(cfg: ScaleBenchConfig) -> list[dict[str, Any]]:
    """Return one row per size."""
    data = load_dataset(cfg, source=cfg.source, limit=cfg.limit, n_queries=cfg.queries)
    require(data.similarity == "cosine", "source", cfg.source, "vectors compared by cosine")
    with scratch() as folder:
        kept = Kept(cfg.keep, f"{folder}/kept")
        dictionary = np.array(kept.array("dictionary", lambda: learned_dictionary(data, cfg)))
        real = codes_of(data, dictionary, cfg, kept)
        found = []
        for size in cfg.sizes:
            codes = grown_codes(real, size, seed=cfg.seed)
            found.append(
                {"engine": "raysys ivf", "n_items": size, **_measure(cfg, codes, data, dictionary)}
            )
            log.info("bench %s", found[-1])
    return found


def grown_codes(real: Codes, n_items: int, *, seed: int) -> Codes:
    """Return codes grown (or cut) to `n_items` rows by the rule of the module's docstring."""
    return mixed_codes(real, *grown_rows(real.n_items, n_items, seed=seed))


def mixed_codes(real: Codes, a: NDArray[np.int64], b: NDArray[np.int64]) -> Codes:
    """Return codes [N] with the strongest entries and the scale of a, the other entries of b."""
    codes = real.take(a)
    entries = codes.entries.copy()
    entries[:, _KEPT_ENTRIES:] = real.entries[b, _KEPT_ENTRIES:]
    return dataclasses.replace(codes, entries=entries)


def grown_rows(
    n_real: int, n_items: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the real items a and b [n_items] of every row; a real row is both of its own."""
    a, b = np.arange(n_items), np.arange(n_items)
    for start in range(0, n_items, _BLOCK_ROWS):
        rng = np.random.default_rng([seed, _PURPOSE, start // _BLOCK_ROWS])
        drawn = rng.integers(0, n_real, (2, _BLOCK_ROWS))[:, : n_items - start]
        part = slice(start, start + _BLOCK_ROWS)
        late = a[part] >= n_real
        a[part][late], b[part][late] = drawn[0][late], drawn[1][late]
    return a, b


def _measure(cfg: ScaleBenchConfig, codes: Codes, data: Any, dictionary: Any) -> dict[str, Any]:
    params = IndexParams(kind="ivf", target_recall=cfg.target_recall)
    none = np.zeros((codes.n_items, 0), dtype=np.float32)
    index, build_s, build_cpu_s = timed_cpu(
        lambda: build_index(
            codes, dictionary, none, similarity="cosine", params=params, seed=cfg.seed
        )
    )

    def search_at(effort: int) -> Search:
        return lambda queries: index.search(SearchRequest(queries, top_k=TOP, effort=effort))[0]

    queries = data.queries[:_ASKED]
    own = search_at(index.n_lists)(queries)
    effort = index.n_lists
    for effort in ladder(1, index.n_lists):
        found = one_by_one(search_at(effort), queries)
        if recall(found, own, TOP) >= cfg.target_recall:
            break
    return {
        "n_lists": index.n_lists,
        "setting": effort,
        "own_recall@10": recall(found, own, TOP),
        **latency(search_at(effort), queries),
        "exact_cpu_ms": _exact_ms(index, queries[:20]),
        "build_s": build_s,
        "build_cpu_s": build_cpu_s,
        "load_average": load_average(),
    }


def _exact_ms(index: Index, queries: Any) -> float:
    """Return the CPU time of one exact scan in ms."""
    answer = timed_cpu(
        lambda: index.search(SearchRequest(queries, top_k=TOP, effort=index.n_lists))
    )
    return round(answer[2] / len(queries) * 1e3, 3)
