"""One training step: the sparse path and the dense textbook form, on a processor or on a GPU.

The textbook form makes one-hot tensors [B, R, N], a 1x1 convolution [B, C, N], a dense layer to the
latent and back, and a softmax over all N R cells.

A step with a dense optimiser cannot be shorter than the longer of two times: every parameter and
its two moments are read and written and its gradient is written and read, 32 bytes in all, at the
rate at which the device copies; the matrix products are made at the rate of its matrix units. Both
rates are measured, on this device and in this run.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysys.autoencoder import losses
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.model import Conv4Rec, left_out
from raysys.bench.resources import resident_bytes
from raysys.bench.suites import STARS
from raysys.data.batches import Ragged, Resident
from raysys.data.cells import Cells

TEXTBOOK = "textbook"
ENGINES: dict[str, dict[str, Any]] = {
    TEXTBOOK: {},
    "sparse, cosine (default)": {"consume_loss": "cosine"},
    "sparse, likelihood": {"consume_loss": "likelihood", "items_loss": "full"},
    "sparse, likelihood in chunks": {"consume_loss": "likelihood", "items_loss": "full"},
    "sparse, sampled likelihood": {"consume_loss": "likelihood", "items_loss": "sampled"},
}
_SMALL_CHUNK = 1 << 19
_WARM_STEPS = 2
_BYTES_PER_PARAMETER = 32
_COPIED = 1 << 30  # bytes that the copy reads
_MATRIX = 8192  # rows and columns of the product
_REPEATS = 10


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a step works on.

    Attributes:
        n_items: catalogue N.
        batch: profiles B of a step.
        profile: cells of a profile, on average.
        latent: H of every latent.
        steps: that are timed; the first two are not.
        seed: of the profiles.
    """

    n_items: int
    batch: int
    profile: int
    latent: int
    steps: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """What steps of an engine took.

    Attributes:
        seconds: median of a step.
        peak: bytes that the training added.
        n_parameters: of its model.
    """

    seconds: float
    peak: int
    n_parameters: int


def step_seconds(engine: str, sizes: Sizes, device: torch.device) -> Measured:
    """Time steps of an engine, the making of a batch included but not what is made once.

    The peak is what the process (on a GPU: its tensors there) grew by from before there was a
    model: parameters, gradients and optimiser are in it.
    """
    cells = _profiles(sizes)
    counts = torch.zeros(sizes.n_items, STARS.n_levels)
    first = nn.Parameter(torch.zeros(1, device=device))
    torch.optim.AdamW([first], fused=True).step()  # what torch loads on first use
    before = _peak(device, start=True)
    resident = Resident(cells, device)
    if engine == TEXTBOOK:
        model: nn.Module = _Textbook(sizes).to(device)
        groups: Any = model.parameters()
    else:
        if engine.endswith("chunks"):
            losses.MAX_SCORES = _SMALL_CHUNK  # an engine of a process of its own
        settings = Conv4RecConfig(latent=sizes.latent, level_latent=sizes.latent, **ENGINES[engine])
        ours = Conv4Rec(settings, n_items=sizes.n_items, levels=STARS, counts=counts).to(device)
        model, groups = ours, ours.parameter_groups(0.001)
        resident.left = left_out(ours, resident)
    optimiser = torch.optim.AdamW(groups, lr=0.001, fused=True)
    taken = []
    for step in range(sizes.steps + _WARM_STEPS):
        started = time.perf_counter()
        rows = np.arange(step * sizes.batch, (step + 1) * sizes.batch) % cells.n_users
        optimiser.zero_grad(set_to_none=True)
        batch = resident.users(rows)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(batch)["loss"]
        loss.backward()
        optimiser.step()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return Measured(
        seconds=statistics.median(taken[_WARM_STEPS:]),
        peak=_peak(device) - before,
        n_parameters=sum(p.numel() for p in model.parameters()),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device, *, start: bool = False) -> int:
    if device.type != "cuda":
        return resident_bytes(peak=not start)
    if start:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return torch.cuda.max_memory_allocated(device)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Bytes per second of a large copy (read and written), and bf16 operations of a product."""

    bytes_per_s: float
    flops_per_s: float

    @classmethod
    def of(cls, device: torch.device) -> Rates:
        """Measure them on random numbers."""
        source = torch.randn(_COPIED // 4, device=device)
        target = torch.empty_like(source)
        copy_s = _fastest(functools.partial(target.copy_, source), device)
        one, other = torch.randn(2, _MATRIX, _MATRIX, device=device, dtype=torch.bfloat16)
        product_s = _fastest(functools.partial(torch.mm, one, other), device)
        return cls(2 * _COPIED / copy_s, 2 * _MATRIX**3 / product_s)


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    taken = []
    for _ in range(_REPEATS + _WARM_STEPS):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken[_WARM_STEPS:])


def bound_seconds(engine: str, sizes: Sizes, n_parameters: int, rates: Rates) -> float:
    """Return what a step takes at least, see the module."""
    wide = sizes.n_items * sizes.latent
    products = {
        TEXTBOOK: 2 * sizes.batch * Conv4RecConfig.channels * wide,  # encoder and decoder
        "cosine": sizes.latent * wide,
        "full": sizes.batch * wide,
        "sampled": sizes.batch * Conv4RecConfig.negatives * sizes.latent,
    }
    settings = ENGINES[engine]
    kind = settings.get("items_loss", settings.get("consume_loss", TEXTBOOK))
    moved_s = _BYTES_PER_PARAMETER * n_parameters / rates.bytes_per_s
    return max(moved_s, 3 * 2 * products[kind] / rates.flops_per_s)  # forward, and twice backward


def gpu_rows(sizes: list[Sizes]) -> list[dict[str, Any]]:
    """Return a row with the rates of the first GPU, then one for every engine and sizes."""
    device = torch.device("cuda")
    rates = Rates.of(device)
    card = torch.cuda.get_device_name(device)
    first = {
        "engine": card,
        "copy_gb_per_s": round(rates.bytes_per_s / 1e9, 1),
        "tflop_per_s": round(rates.flops_per_s / 1e12, 1),
    }
    found: list[dict[str, Any]] = [first]
    for size in sizes:
        for engine in [name for name in ENGINES if not name.endswith("chunks")]:
            row = {"engine": f"{engine}, {card}", "n_items": size.n_items, "batch": size.batch}
            try:
                measured = step_seconds(engine, size, device)
            except torch.cuda.OutOfMemoryError:
                found.append(row | {"peak_mb": "more than the card has"})
                continue
            bound = bound_seconds(engine, size, measured.n_parameters, rates)
            found.append(
                row
                | {
                    "profiles_per_s": round(size.batch / measured.seconds, 1),
                    "peak_mb": measured.peak >> 20,
                    "step_ms": round(1e3 * measured.seconds, 3),
                    "bound_ms": round(1e3 * bound, 3),
                    "of_bound": round(measured.seconds / bound, 1),
                }
            )
    return found


@functools.lru_cache(maxsize=1)
def _profiles(sizes: Sizes) -> Cells:
    """Draw profiles of distinct items by a power law, levels at random."""
    rng = np.random.default_rng([sizes.seed, 0x7472])
    share = ((np.arange(sizes.n_items) + 10.0) ** -0.8).cumsum()
    share /= share[-1]
    lists = []
    for _ in range(4 * sizes.batch):
        size = min(int(rng.geometric(1 / sizes.profile)), sizes.n_items // 2)
        items = np.unique(share.searchsorted(rng.random(size), side="right"))
        levels = rng.integers(STARS.n_levels, size=len(items))
        lists.append(list(zip(items.tolist(), levels.tolist(), strict=True)))
    return Cells.from_lists(lists)


class _Textbook(nn.Module):
    """The autoencoder as it is drawn: one-hot tensors, convolutions, dense layers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        n_levels, channels = STARS.n_levels, Conv4RecConfig.channels
        self.shape = (n_levels, sizes.n_items)
        self.inner = nn.Conv1d(n_levels, channels, 1, bias=False)
        self.encoder = nn.Linear(channels * sizes.n_items, sizes.latent)
        self.decoder = nn.Linear(sizes.latent, channels * sizes.n_items)
        self.outer = nn.Conv1d(channels, n_levels, 1)

    def forward(self, batch: Ragged) -> dict[str, Tensor]:
        x = torch.zeros(batch.n_rows, *self.shape, device=batch.item_num.device)
        x[batch.rows, batch.level, batch.item_num] = 1.0
        size = x.sum(dim=(1, 2)).clamp_min(1)
        z = self.encoder(self.inner(x).flatten(1) / size.sqrt()[:, None])
        hidden = self.decoder(z).view(batch.n_rows, -1, self.shape[1])
        log_p = F.log_softmax(self.outer(hidden).flatten(1), dim=1)
        return {"loss": -(x.flatten(1) * log_p).sum() / size.sum()}
