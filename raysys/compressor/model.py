"""CompresSAE: dense embeddings -> sparse codes over a learned dictionary.

Source: Kasalicky et al., "The Future is Sparse: Embedding Compression for Scalable Retrieval in
Recommender Systems", RecSys 2025, arXiv 2505.11388.

    B rows in a batch, D embedding, S = code_dim atoms, n = n_active

    xbar = x / |x|;  a = xbar E + b;  code = the n entries of a with the largest |a|, signs kept;
    xhat = code Dict, the atoms (rows of Dict) of unit norm.
    loss = mean(1 - cos(x, xhat_n)) + wide_weight * mean(1 - cos(x, xhat_4n))
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from raysys.compressor.sparse_kernels import sparse_decode, top_magnitudes
from raysys.config import require
from raysys.errors import ConfigError, DataError

log = logging.getLogger(__name__)

PRESETS = ("paper", "best")
WIDE_FACTOR = 4
MIN_ITEMS = 256  # below this a dictionary cannot pay: vectors are kept as 8-bit dense ones
MAX_CODE_DIM = 4096
_EPSILON = 1e-8


@dataclasses.dataclass
class CompresSAEConfig:
    """Settings of the compressor.

    Attributes:
        preset: `paper` encodes with the trained encoder; `best` encodes by matching pursuit over
            a dictionary that is fine-tuned against its own pursuit codes.
        code_dim: atoms S; default min(4096, N // 4).
        n_active: non-zeros per item; default 32, lowered to code_dim // 4 in small catalogues.
        wide_weight: weight of the loss at 4 n_active, 1/8 in the paper's code, 1 in its text.
    """

    preset: str = "best"
    code_dim: int | None = None
    n_active: int | None = None
    wide_weight: float = 0.125

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot work whatever the data."""
        require(self.preset in PRESETS, "compressor.preset", self.preset, " or ".join(PRESETS))
        for name in ("code_dim", "n_active"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"compressor.{name}", value, "at least 1")
        require(self.wide_weight >= 0, "compressor.wide_weight", self.wide_weight, ">= 0")

    def sizes(self, n_items: int) -> tuple[int, int]:
        """Return (code_dim, n_active) for a catalogue of `n_items`.

        Raises:
            ConfigError: an explicit setting conflicts with the other or with the catalogue.
        """
        code_dim = self.code_dim or max(min(MAX_CODE_DIM, n_items // 4), WIDE_FACTOR)
        if self.n_active is not None:
            if WIDE_FACTOR * self.n_active > code_dim:
                raise ConfigError(
                    f"compressor.n_active={self.n_active} needs code_dim >= "
                    f"{WIDE_FACTOR * self.n_active}, it is {code_dim} for {n_items} items"
                )
            return code_dim, self.n_active
        n_active = min(32, code_dim // WIDE_FACTOR)
        if n_active < 32:
            log.warning("small catalogue items=%d n_active=%d", n_items, n_active)
        return code_dim, n_active


class CompresSAE(nn.Module):
    """The sparse autoencoder; `forward` returns the losses.

    Args:
        dim: width D of the embeddings.
        code_dim: number of atoms S, at least 4 n_active.
        n_active: stored non-zeros per row.
        wide_weight: weight of the loss at 4 n_active.
        seed: seed of the initial dictionary.
    """

    def __init__(
        self, dim: int, *, code_dim: int, n_active: int, wide_weight: float = 0.125, seed: int = 0
    ) -> None:
        super().__init__()
        if WIDE_FACTOR * n_active > code_dim:
            raise ConfigError(
                f"4 * n_active = {WIDE_FACTOR * n_active} exceeds code_dim={code_dim}"
            )
        self.n_active = n_active
        self.wide_weight = wide_weight
        atoms = torch.randn(code_dim, dim, generator=torch.Generator().manual_seed(seed))
        self.dictionary = nn.Parameter(F.normalize(atoms, dim=1))
        self.encoder = nn.Parameter(self.dictionary.detach().T.clone())  # [D, S]
        self.bias = nn.Parameter(torch.zeros(code_dim))

    def preactivations(self, x: Tensor) -> Tensor:
        """Return a = xbar E + b, [B, S].

        Raises:
            DataError: a row is zero or not finite; the message names it.
        """
        norms = x.norm(dim=1, keepdim=True)
        bad = torch.nonzero(~(norms[:, 0] > 0) | ~torch.isfinite(norms[:, 0]))
        if len(bad):
            raise DataError(f"embedding row {int(bad[0])} of the batch is zero or not finite")
        return torch.addmm(self.bias, x / norms.clamp_min(_EPSILON), self.encoder).float()

    def encode(self, x: Tensor, n_active: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the atoms [B, n] and signed values [B, n], largest magnitude first."""
        a = self.preactivations(x)
        atoms = top_magnitudes(a, n_active or self.n_active)
        return atoms, a.gather(1, atoms)

    def decode(self, atoms: Tensor, values: Tensor) -> Tensor:
        """Return the reconstructions [B, D] of codes."""
        return sparse_decode(atoms, values, self.dictionary)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return `loss` and its parts `cosine_loss` (at n_active) and `wide_loss` (at 4 n)."""
        atoms, values = self.encode(x, WIDE_FACTOR * self.n_active)  # sorted: codes are nested
        n = self.n_active
        narrow = self.decode(atoms[:, :n], values[:, :n])
        wide = narrow + self.decode(atoms[:, n:], values[:, n:])
        cosine_loss = (1 - F.cosine_similarity(x, narrow, dim=1, eps=_EPSILON)).mean()
        wide_loss = (1 - F.cosine_similarity(x, wide, dim=1, eps=_EPSILON)).mean()
        loss = cosine_loss + self.wide_weight * wide_loss
        return {"loss": loss, "cosine_loss": cosine_loss, "wide_loss": wide_loss}

    @torch.no_grad()
    def before_step(self) -> None:
        """Project the dictionary's gradient off each atom: after backward, before the step."""
        gradient = self.dictionary.grad
        if gradient is not None:
            along = (gradient * self.dictionary).sum(dim=1, keepdim=True)
            gradient -= along * self.dictionary

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the atoms back to unit norm: after each optimiser step."""
        self.dictionary.div_(self.dictionary.norm(dim=1, keepdim=True).clamp_min(_EPSILON))

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        save_file(state, path, metadata={"n_active": str(self.n_active)})

    @classmethod
    def load(cls, path: Path, *, n_active: int, wide_weight: float = 0.125) -> CompresSAE:
        """Read what `save` wrote."""
        state = load_file(path)
        code_dim, dim = state["dictionary"].shape
        model = cls(dim, code_dim=code_dim, n_active=n_active, wide_weight=wide_weight)
        model.load_state_dict(state)
        return model.eval()
