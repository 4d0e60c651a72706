"""RecVAE, a peer for folds of users: a variational autoencoder of rows of the interaction matrix.

Shenbin, Alekseev, Tutubalina, Malykh, Nikolenko, "RecVAE: A New Variational Autoencoder for Top-N
Recommendations with Implicit Feedback", WSDM 2020: a multinomial likelihood, a prior that holds the
encoder of the epoch before, a KL term in proportion to a user's items, and an encoder that learns
three times while the decoder learns once. Sizes and rates are the paper's. Deviation: a smaller
batch, as the logs here have fewer users.

Letters: B users, N items, K latent size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from raysys.bench.epochs import train_epochs
from raysys.data.cells import Cells
from raysys.evaluation.metrics import top_items
from raysys.evaluation.presence import presence

HIDDEN, LATENT, LAYERS = 600, 200, 5
_DROPOUT = 0.5
_LR = 5e-4
_BATCH = 200
_KL_PER_ITEM = 0.005  # gamma
_ENCODER_PASSES = 3
_PRIOR = (0.15, 0.75, 0.1)  # of the unit normal, the former posterior, the wide normal
_WIDE_LOG_VARIANCE = 10.0


class DenseEncoder(nn.Module):
    """Makes means and log variances [B, K] of rows [B, N]; a layer adds up all before it.

    Args:
        n_items: size N of the catalogue.
    """

    def __init__(self, n_items: int) -> None:
        super().__init__()
        sizes = [n_items] + [HIDDEN] * (LAYERS - 1)
        self.layers = nn.ModuleList(nn.Linear(size, HIDDEN) for size in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in sizes)
        self.out = nn.Linear(HIDDEN, 2 * LATENT)

    def forward(self, rows: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Return the mean and the log variance of the latent of each row."""
        value = F.dropout(F.normalize(rows, dim=1), dropout, training=dropout > 0)
        before: list[Tensor] = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            value = norm(F.silu(layer(value) + sum(before)))
            before.append(value)
        mean, log_variance = self.out(value).chunk(2, dim=1)
        return mean, log_variance


class RecVae(nn.Module):
    """The network; see the module.

    Args:
        n_items: size N of the catalogue.
    """

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items
        self.encoder = DenseEncoder(n_items)
        self.decoder = nn.Linear(LATENT, n_items)
        self.former = copy.deepcopy(self.encoder).requires_grad_(False)

    def loss(self, rows: Tensor, dropout: float) -> Tensor:
        """Return the mean of -log P(row | latent) + gamma n KL over rows [B, N] of 0 and 1."""
        mean, log_variance = self.encoder(rows, dropout)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        likelihood = (F.log_softmax(self.decoder(z), dim=1) * rows).sum(dim=1)
        kl = (_log_normal(z, mean, log_variance) - self._log_prior(rows, z)).sum(dim=1)
        return (_KL_PER_ITEM * rows.sum(dim=1) * kl - likelihood).mean()

    def _log_prior(self, rows: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            former = self.former(rows, 0.0)
        zero = torch.zeros_like(z)
        parts = (zero, zero), former, (zero, zero + _WIDE_LOG_VARIANCE)
        logs = [
            _log_normal(z, *part) + float(np.log(share))
            for part, share in zip(parts, _PRIOR, strict=True)
        ]
        return torch.stack(logs).logsumexp(dim=0)


def _log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    spread = (z - mean).square() / log_variance.exp()
    return -0.5 * (log_variance + float(np.log(2 * np.pi)) + spread)


def fit(
    cells: Cells,
    n_items: int,
    *,
    epochs: int,
    seconds: float,
    seed: int,
    score: Callable[[Ranked], float] | None = None,
) -> tuple[Ranked, int]:
    """Train on the cells; return the ranker and its number of epochs, see `train_epochs`."""
    rng = np.random.default_rng([seed, 0x7A])
    matrix = presence(cells.users(cells.counts > 0), n_items)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RecVae(n_items)
        ranked = Ranked(model)
        sides = model.encoder, model.decoder
        optims = [torch.optim.Adam(side.parameters(), lr=_LR) for side in sides]

        def epoch() -> float:
            loss = 0.0
            for number in range(_ENCODER_PASSES + 1):
                learns = int(number == _ENCODER_PASSES)
                if learns:
                    model.former.load_state_dict(model.encoder.state_dict())
                order = rng.permutation(matrix.shape[0])
                for start in range(0, len(order), _BATCH):
                    rows = torch.from_numpy(matrix[order[start : start + _BATCH]].toarray())
                    value = model.loss(rows, 0.0 if learns else _DROPOUT)
                    model.zero_grad()
                    value.backward()  # type: ignore[no-untyped-call]
                    optims[learns].step()
                    loss += value.item() * len(rows)
            return loss / max(len(order), 1) / (_ENCODER_PASSES + 1)

        best = train_epochs(model, epoch, ranked, score, "recvae", epochs, seconds)
    return ranked, best


class Ranked:
    """Ranks by the means of a trained model."""

    def __init__(self, model: RecVae) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return the best items outside each history, int32 [B, top_k]."""
        rows = torch.from_numpy(presence(history, self._model.n_items).toarray())
        scores = self._model.decoder(self._model.encoder(rows, 0.0)[0]).numpy()
        lists: NDArray[np.int32] = top_items(scores, top_k, exclude=history)
        return lists
