"""What an evaluation ranks and rates with: the model, its codes, what the service returns."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.autoencoder.linear_form import retrieval_query
from raysys.autoencoder.model import Conv4Rec
from raysys.compressor.codes import Codes
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.errors import BuildError, ConfigError
from raysys.evaluation.metrics import Ranker, Rater, RatingPrediction, top_items
from raysys.evaluation.rating_baselines import expected_rating
from raysys.index.files import load_dictionary
from raysys.index.index import Index
from raysys.search.search import Search
from raysys.store.builds import Build, Workspace

_RATED_AT_ONCE = 1 << 14
VIA = {"model": "autoencoder", "codes": "codes", "index": "index"}


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of a report: something that ranks, rates, or both."""

    name: str
    rank: Ranker | None = None
    rate: Rater | None = None


def open_chain(workspace: Workspace, via: str, *, build_id: str | None = None) -> dict[str, Build]:
    """Open what `via` evaluates and everything that it was made from, bound by content.

    Raises:
        BuildError: a build is missing, the chain mixes builds, or it has no autoencoder.
    """
    kind = VIA[via]
    head = workspace.open(kind, build_id) if build_id else workspace.current(kind)
    chain = workspace.chain(head)
    if "autoencoder" not in chain or "profiles" not in chain:
        raise BuildError(
            f"{kind} {head.build_id} of {workspace.run} holds plain vectors: there is no "
            f"interaction log to evaluate them on"
        )
    return chain


class ModelMethod:
    """Ranks and rates with an autoencoder, its codes or a search index over them.

    Args:
        chain: of `open_chain`.
        via: model, codes or index.
        ranking: one of the model's rankings; None takes its first.
        gamma: of the discover ranking.
        rescore: with via=index, let the model reorder the candidates.

    Raises:
        ConfigError: the model cannot give this ranking.
    """

    def __init__(
        self,
        chain: dict[str, Build],
        *,
        via: str,
        ranking: str | None,
        gamma: float,
        rescore: bool,
    ) -> None:
        autoencoder = chain["autoencoder"]
        self._model = Conv4Rec.load(autoencoder)
        self._n_items = int(autoencoder.facts["n_items"])
        self._fitted_until: int | None = autoencoder.facts.get("fitted_until")
        self._values = RatingLevels.load(autoencoder.path("levels.json")).value_array()
        self._gamma = gamma
        self._rescore = rescore
        self._via = via
        self.ranking = _checked_ranking(self._model, ranking)
        self._search = Search(chain, users=False) if via == "index" else None
        self._flat = _flat_index(chain) if via == "codes" else None

    def rank(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return every user's list, int32 [B, top_k]."""
        known = history.take(history.item_num < self._n_items)
        if self._search is not None:
            return self._search.rank(
                known,
                top_k=top_k,
                ranking=self.ranking,
                gamma=self._gamma,
                rescore=self._rescore,
            )
        lists: NDArray[np.int32] = top_items(self._scores(known), top_k, exclude=known)
        return lists

    def rate(self, history: Cells, targets: Cells) -> RatingPrediction:
        """Predict the level of every target; an unknown item gets what the user alone says."""
        known = history.take(history.item_num < self._n_items)
        probs = np.empty((targets.n_cells, len(self._values)))
        inside = targets.item_num < self._n_items
        with torch.inference_mode():
            z_l = self._model.split(self._encode(known))[1]
            for at, found in ((np.flatnonzero(inside), True), (np.flatnonzero(~inside), False)):
                for part in np.split(at, range(_RATED_AT_ONCE, len(at), _RATED_AT_ONCE)):
                    items = torch.from_numpy(targets.item_num[part].astype(np.int64))
                    rows = torch.from_numpy(targets.rows[part])
                    logits = self._model.level_logits(z_l[rows], items if found else None)
                    probs[part] = torch.softmax(logits.double(), dim=1).numpy()
        return RatingPrediction(expected_rating(probs, self._values), probs)

    @torch.inference_mode()
    def _scores(self, history: Cells) -> Any:
        z = self._encode(history)
        if self._flat is None:
            return self._model.scores(z, self.ranking, self._gamma).cpu().numpy()
        query, weights = retrieval_query(self._model, z, self.ranking, self._gamma)
        return self._flat.score_all(
            np.asarray(query, dtype=np.float32), np.asarray(weights, dtype=np.float32)
        )

    def _encode(self, history: Cells) -> torch.Tensor:
        """Encode profiles; ages count from the end of the fitted period or a later newest cell."""
        if self._fitted_until is None:
            return self._model.encode(ragged(history))
        late = np.zeros(history.n_users, dtype=np.int64)
        some = history.counts > 0
        late[some] = history.timestamp[history.offsets[1:][some] - 1] - self._fitted_until
        moved = history.timestamp - np.repeat(np.maximum(late, 0), history.counts)
        history = dataclasses.replace(history, timestamp=moved)
        return self._model.encode(ragged(history, reference_time=self._fitted_until))


def _checked_ranking(model: Conv4Rec, ranking: str | None) -> str:
    available = model.available_rankings
    if ranking is not None and ranking not in available:
        raise ConfigError(
            f"ranking={ranking!r} is not what this model can give: expected one of "
            f"{', '.join(available)}"
        )
    return ranking or available[0]


def _flat_index(chain: dict[str, Build]) -> Index:
    """Return an exact scan over the codes, which needs no index build."""
    codes = Codes.open(chain["codes"])
    embeddings = chain["embeddings"]
    return Index(
        kind="flat",
        similarity=embeddings.facts["similarity"],
        codes=codes,
        bias=np.load(embeddings.path("bias.npy"), mmap_mode="r"),
        dictionary=load_dictionary(codes, chain, int(embeddings.facts["dim"])),
    )
