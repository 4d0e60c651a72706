"""What an evaluation ranks and rates with: the model, its codes, what the service returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.autoencoder.files import Autoencoder
from raysys.autoencoder.linear_form import retrieval_query
from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.files import Coded, Compressor
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.errors import BuildError, ConfigError
from raysys.evaluation.metrics import Expecter, Ranker, Rater, RatingPrediction, top_items
from raysys.evaluation.rating_baselines import mean_rating
from raysys.index.index import Index
from raysys.scoring.rankings import Ranking
from raysys.scoring.scorer import at_the_end
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import Build, Workspace

_RATED_AT_ONCE = 1 << 14
VIA = {"model": "autoencoder", "codes": "codes", "index": "index"}


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of a report: something that ranks, rates, or both; perhaps with P(i | u)."""

    name: str
    rank: Ranker | None = None
    rate: Rater | None = None
    expect: Expecter | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """What an evaluation is of, and what that was made from, bound by content.

    Attributes:
        head: the build that `via` names.
        autoencoder, profiles: always there.
        interactions: what the profiles were made from.
        coded: codes and all of these; None where the model itself is evaluated.
        index: None unless the index is evaluated.
    """

    head: Build
    autoencoder: Build
    profiles: Build
    interactions: Build | None = None
    coded: Coded | None = None
    index: Build | None = None

    @classmethod
    def open(cls, workspace: Workspace, via: str, *, build_id: str | None = None) -> Subject:
        """Open what `via` evaluates, `build_id` or the current one.

        Raises:
            BuildError: a build is missing, the chain mixes builds, or it has no autoencoder.
        """
        kind = VIA[via]
        head = workspace.open(kind, build_id) if build_id else workspace.current(kind)
        chain = workspace.chain(head)
        name = f"{kind} {head.build_id} of {workspace.run}"
        if "autoencoder" not in chain or "profiles" not in chain:
            raise BuildError(
                f"{name} holds plain vectors: there is no interaction log to evaluate them on"
            )
        return cls(
            head,
            autoencoder=chain["autoencoder"],
            profiles=chain["profiles"],
            interactions=chain.get("interactions"),
            coded=None if via == "model" else Coded.of(chain, name),
            index=chain.get("index"),
        )

    @property
    def build_ids(self) -> dict[str, str]:
        """{kind: build_id} of all of them."""
        found = [self.autoencoder, self.profiles, self.interactions, self.index]
        found += self.coded.builds if self.coded is not None else []
        ids = {build.kind: build.build_id for build in found if build is not None}
        return dict(sorted(ids.items()))


class ModelMethod:
    """Ranks with the model itself, or with its codes where the subject has them; rates by it.

    Args:
        subject: what is evaluated.
        ranking: one of the model's rankings; None takes its first.

    Raises:
        ConfigError: the model cannot give this ranking.
    """

    def __init__(self, subject: Subject, *, ranking: Ranking | None) -> None:
        self._flat = _flat_index(subject.coded) if subject.coded is not None else None
        autoencoder = Autoencoder.open(subject.autoencoder)
        self._model, self._fitted_until = autoencoder.model, autoencoder.facts.fitted_until
        self._n_items = self._model.n_items
        self._values = self._model.levels.value_array()
        self.ranking = _checked_ranking(self._model.available_rankings, ranking)

    def rank(
        self, history: Cells, top_k: int, *, exclude: Cells | None = None
    ) -> NDArray[np.int32]:
        """Return every user's list, int32 [B, top_k], without `exclude`; None: the history."""
        known = history.take(history.item_num < self._n_items)
        left = known if exclude is None else exclude.take(exclude.item_num < self._n_items)
        lists: NDArray[np.int32] = top_items(self._scores(known), top_k, exclude=left)
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
        return RatingPrediction(mean_rating(probs, self._values), probs)

    @torch.inference_mode()
    def expect(self, history: Cells) -> NDArray[np.float32]:
        """Return log P(i | u) of every item, float32 [B, N]."""
        known = history.take(history.item_num < self._n_items)
        log_p: NDArray[np.float32] = self._model.log_p_consume(self._encode(known)).cpu().numpy()
        return log_p

    def _encode(self, history: Cells) -> torch.Tensor:
        """Return the latents [B, H]; ages count as `Scorer.encode` says."""
        until = self._fitted_until
        if until is None:
            return self._model.encode(ragged(history))
        return self._model.encode(ragged(at_the_end(history, until), reference_time=until))

    @torch.inference_mode()
    def _scores(self, history: Cells) -> Any:
        z = self._encode(history)
        if self._flat is None:
            return self._model.scores(z, self.ranking).cpu().numpy()
        query, weights = retrieval_query(self._model, z, self.ranking)
        return self._flat.score_all(
            np.asarray(query, dtype=np.float32), np.asarray(weights, dtype=np.float32)
        )


class ServedMethod:
    """Ranks and rates with what a service has: the index and the model's compact weights.

    Args:
        subject: with an index.
        ranking: as of `ModelMethod`.
        rescore: let the model reorder the candidates.

    Raises:
        ConfigError: the model cannot give this ranking.
    """

    def __init__(self, subject: Subject, *, ranking: Ranking | None, rescore: bool) -> None:
        assert subject.index is not None
        assert subject.coded is not None
        self._engine = Search(Served(subject.index, subject.coded), users=False).engine
        assert self._engine.scorer is not None, "a subject has an autoencoder"
        self._scorer = self._engine.scorer
        self._values = self._scorer.levels.value_array()
        self._rescore = rescore
        self.ranking = _checked_ranking(self._scorer.available_rankings, ranking)

    def rank(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return every user's list, int32 [B, top_k]."""
        known = history.take(history.item_num < self._scorer.n_items)
        return self._engine.rank(known, top_k=top_k, ranking=self.ranking, rescore=self._rescore)

    def rate(self, history: Cells, targets: Cells) -> RatingPrediction:
        """Predict the level of every target; an unknown item gets what the user alone says."""
        z = self._engine.encode(history.take(history.item_num < self._scorer.n_items))
        probs = np.empty((targets.n_cells, len(self._values)))
        inside = targets.item_num < self._scorer.n_items
        known = targets.take(inside)
        probs[inside] = self._scorer.pair_level_probs(z, known.item_num, known.offsets)
        probs[~inside] = self._scorer.unknown_level_probs(z)[targets.rows[~inside]]
        return RatingPrediction(mean_rating(probs, self._values), probs)


def _checked_ranking(available: Sequence[str], ranking: Ranking | None) -> Ranking:
    if ranking is not None and ranking.name not in available:
        raise ConfigError(
            f"ranking={ranking.name!r} is not what this model can give: expected one of "
            f"{', '.join(available)}"
        )
    return ranking or Ranking(available[0])


def _flat_index(coded: Coded) -> Index:
    """Return an exact scan over the codes, which needs no index build."""
    codes, embeddings = Codes.open(coded.codes), Embeddings.open(coded.embeddings)
    return Index(
        kind="flat",
        similarity=embeddings.similarity,
        codes=codes,
        bias=embeddings.bias,
        dictionary=Compressor.open(coded.compressor).dictionary_of(codes),
    )
