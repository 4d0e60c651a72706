"""Settings of Conv4Rec; the letters are those of its module."""

from __future__ import annotations

import dataclasses

from raysys.config import require

CONSUME_LOSSES = ("cosine", "likelihood")
ITEMS_LOSSES = ("auto", "full", "sampled")
LEVEL_WEIGHT = 5.0  # of log P(r | i, u); 1 is the exact joint likelihood
LATENT = 512
"""Dims of the consume block, but in large catalogues."""

MANY_ITEMS = 100_000
"""Up to so many items no size depends on their number."""

_LATENT_STEP = 64
_CLOSED_ELEMENTS, _CLOSED_EXTRA = 1 << 28, 32  # see closed_form.MAX_ELEMENTS and _OVERSAMPLE


@dataclasses.dataclass
class Conv4RecConfig:
    """Settings of the model.

    Attributes:
        latent: size Hc of the latent's consume block in training; a closed form of twice as many
            dims is taken where validation gains by it, and a loaded model says what it has. null:
            512, less where the closed form of so many items would need more than a gigabyte.
        level_latent: size Hl of the latent's level block.
        channels: input channels C of the level block.
        level_channels: output channels K of the level block.
        consume_loss: what trains the consume block, `cosine` or `likelihood`.
        items_loss: normaliser of the likelihood over items: `full`, `sampled`, or `auto`: sampled
            beyond 100,000 items. The cosine loss needs none.
        negatives: items of a sample, common to a batch.
        zero_diagonal: take an item's own share out of its scores in training.
        dropout: of the level block, in training.
        weight_decay: decoupled, on the level block's item vectors only.
        profile_exponent: s = |profile|^-profile_exponent.
        profile_half_life_days: cells of a profile lose half their weight in this time; 0 is never.
    """

    GONE = {"level_weight": "no parameter is shared with the level loss: it changes no optimum"}

    latent: int | None = None
    level_latent: int = 64
    channels: int = 3
    level_channels: int = 2
    consume_loss: str = "cosine"
    items_loss: str = "auto"
    negatives: int = 4096
    zero_diagonal: bool = True
    dropout: float = 0.5
    weight_decay: float = 5.0
    profile_exponent: float = 0.5
    profile_half_life_days: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for values that no model can use."""
        for name in ("latent", "level_latent", "channels", "level_channels", "negatives"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"autoencoder.{name}", value, "at least 1")
        for name in ("weight_decay", "profile_half_life_days"):
            value = getattr(self, name)
            require(value >= 0, f"autoencoder.{name}", value, "at least 0")
        known = self.consume_loss in CONSUME_LOSSES
        require(known, "autoencoder.consume_loss", self.consume_loss, " or ".join(CONSUME_LOSSES))
        known = self.items_loss in ITEMS_LOSSES
        require(known, "autoencoder.items_loss", self.items_loss, " or ".join(ITEMS_LOSSES))
        require(0 <= self.dropout < 1, "autoencoder.dropout", self.dropout, "from 0 to below 1")
        exponent = self.profile_exponent
        require(0 <= exponent <= 1, "autoencoder.profile_exponent", exponent, "from 0 to 1")

    def latent_of(self, n_items: int) -> int:
        """Return the size Hc of the consume block for a catalogue of so many items."""
        if self.latent is not None:
            return self.latent
        if n_items <= MANY_ITEMS:
            return LATENT
        fitting = _CLOSED_ELEMENTS // n_items - _CLOSED_EXTRA
        return max(_LATENT_STEP, min(LATENT, fitting // _LATENT_STEP * _LATENT_STEP))

    def sampled(self, n_items: int) -> bool:
        """Tell whether the likelihood over so many items is that of a sample."""
        return self.items_loss == "sampled" or (self.items_loss == "auto" and n_items > MANY_ITEMS)
