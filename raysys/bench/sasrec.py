"""A small SASRec: what the order of events is worth, beside rankers that do not see it.

Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018: blocks of causal
self-attention over a user's items in the order of time; the last position's output times the item
embeddings is the score. Deviations from the paper: cross-entropy against the same 512 drawn items
for a whole batch instead of one sampled negative each, and layers that normalise first.

Letters: B sequences, L positions, N items, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysys.bench.epochs import train_epochs
from raysys.data.cells import Cells
from raysys.evaluation.metrics import top_items
from raysys.evaluation.protocols import first_appearances

WIDTH, BLOCKS, HEADS, LENGTH = 64, 2, 2, 50
_DROPOUT = 0.3
_BATCH = 32
_LR = 1e-3
_PAD = -1
_NEGATIVES = 512

Items = NDArray[np.int64]


class SasRec(nn.Module):
    """Scores all items after every position of sequences of items.

    Args:
        n_items: size N of the catalogue.
    """

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items
        self.items = nn.Embedding(n_items + 1, WIDTH, padding_idx=n_items)
        self.places = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, WIDTH, _DROPOUT, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, BLOCKS, enable_nested_tensor=False)
        self.last = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(_DROPOUT)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, sequences: Tensor) -> Tensor:
        """Return the state after each position, [B, L, D]; _PAD stands behind short sequences."""
        length = sequences.shape[1]
        inputs = torch.where(sequences < 0, self.n_items, sequences)
        x = self.items(inputs) * WIDTH**0.5 + self.places.weight[:length]
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
        hidden: Tensor = self.last(self.blocks(self.dropout(x), mask=mask))
        return hidden

    def logits(self, states: Tensor) -> Tensor:
        """Return the scores of all items, [..., N]."""
        return states @ self.items.weight[: self.n_items].T

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of targets [M] after states [M, D], among drawn items."""
        drawn = torch.randint(self.n_items, (_NEGATIVES,))
        own = (states * self.items(targets)).sum(dim=1, keepdim=True)
        others = (states @ self.items(drawn).T).masked_fill(drawn == targets[:, None], -torch.inf)
        return -torch.log_softmax(torch.cat((own, others), dim=1), dim=1)[:, 0].mean()


def sequences(
    cells: Cells, n_items: int, *, ordered: bool, rng: np.random.Generator
) -> list[Items]:
    """Return each user's items in the order of time, or in a random one, each item once.

    Items of one second are in random order: cells have them by number, which a network learns.
    """
    cells = first_appearances(cells)
    cells = cells.take(cells.item_num < n_items)
    time = cells.timestamp if ordered else np.zeros(cells.n_cells)
    order = np.lexsort((rng.random(cells.n_cells), time, cells.rows))
    items = cells.item_num[order].astype(np.int64)
    return np.split(items, cells.offsets[1:-1])


def fit(
    cells: Cells,
    n_items: int,
    *,
    epochs: int,
    seconds: float,
    seed: int,
    ordered: bool,
    score: Callable[[Ranked], float] | None = None,
) -> tuple[Ranked, int]:
    """Train on the cells; return the ranker and its number of epochs, see `train_epochs`.

    Without `ordered` every sequence is shuffled, which leaves all but the order.
    """
    rng = np.random.default_rng([seed, int(ordered)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SasRec(n_items)
        optim = torch.optim.AdamW(model.parameters(), lr=_LR, betas=(0.9, 0.98))
        ranked = Ranked(model, ordered=ordered)

        def epoch() -> float:
            rows = sequences(cells, n_items, ordered=ordered, rng=rng)
            return _epoch(model, optim, _chunks(rows), rng)

        best = train_epochs(model, epoch, ranked, score, "sasrec", epochs, seconds)
    return ranked, best


class Ranked:
    """Ranks by a trained model; where it was trained without order, it is asked without."""

    def __init__(self, model: SasRec, *, ordered: bool) -> None:
        self._model, self._ordered = model, ordered

    @torch.inference_mode()
    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return the best items outside each history, int32 [B, top_k]."""
        was_training = self._model.training
        self._model.eval()
        rng = np.random.default_rng(0)
        past = sequences(history, self._model.n_items, ordered=self._ordered, rng=rng)
        rows = [row[-LENGTH:] for row in past]
        batch = _padded([row if len(row) else np.array([_PAD]) for row in rows])
        at = torch.tensor([max(len(row), 1) - 1 for row in rows])
        states = self._model(batch)[torch.arange(len(rows)), at]
        scores = self._model.logits(states).numpy()
        self._model.train(was_training)
        lists: NDArray[np.int32] = top_items(scores, top_k, exclude=history)
        return lists


def _chunks(rows: list[Items]) -> list[Items]:
    """Cut sequences into pieces of LENGTH + 1 from the end; neighbours share an item."""
    return [
        row[max(stop - LENGTH - 1, 0) : stop]
        for row in rows
        for stop in range(len(row), 1, -LENGTH)
    ]


def _epoch(
    model: SasRec, optim: torch.optim.Optimizer, chunks: list[Items], rng: np.random.Generator
) -> float:
    """Train on every piece once, in random order; return the mean loss of a position."""
    model.train()
    order = rng.permutation(len(chunks))
    total = n_places = 0.0
    for start in range(0, len(order), _BATCH):
        batch = _padded([chunks[i] for i in order[start : start + _BATCH]])
        inputs, targets = batch[:, :-1], batch[:, 1:]
        asked = targets >= 0
        states = model(inputs)[asked]
        loss = model.loss(states, targets[asked])
        optim.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        total += float(loss.detach()) * len(states)
        n_places += len(states)
    return total / max(n_places, 1)


def _padded(rows: list[Items]) -> Tensor:
    """Return int64 [B, longest], _PAD behind short rows."""
    batch = np.full((len(rows), max(map(len, rows))), _PAD, dtype=np.int64)
    for number, row in enumerate(rows):
        batch[number, : len(row)] = row
    return torch.from_numpy(batch)
