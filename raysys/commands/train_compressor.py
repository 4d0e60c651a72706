"""Compress: train the compressor on the current embeddings and write their codes."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.cluster.train_workers import LaunchConfig, launch
from raysys.commands.encode_parts import encode_in_parts
from raysys.compressor.codes import Codes
from raysys.compressor.encode import Encoder, fit_dictionary, unit_rows
from raysys.compressor.model import MIN_ITEMS, CompresSAE, CompresSAEConfig
from raysys.compressor.task import compressor_phases
from raysys.config import identity, local
from raysys.data.arrays import row_blocks, take_rows
from raysys.errors import DataError
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft
from raysys.store.storage import Storage
from raysys.training.optim import OptimConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass
class CompressorConfig(CompresSAEConfig):
    """Settings of the compressor and of its training.

    Attributes:
        optim: used by `preset=paper`.
        value_bits: bits of a stored value: 4, 8 or 16.
        keep: cut the finished codes to this many non-zeros, as a further build that becomes the
            current one; needs neither training nor the dense vectors again.
    """

    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(lr=0.001, epochs=20, batch_size=1024, patience=0)
    )
    value_bits: int = 4
    keep: int | None = local(None)


def compress(
    workspace: Workspace,
    embeddings: Build,
    *,
    cfg: CompressorConfig,
    seed: int,
    workers: LaunchConfig,
    force: bool,
) -> list[Build]:
    """Write the `compressor` and `codes` builds of an `embeddings` build, or reuse them.

    Raises:
        DataError: an embedding is not finite, or zero where only its direction counts.
    """
    settings = {"compressor": identity(cfg), "seed": seed}
    compressor = workspace.build(
        "compressor",
        config=settings,
        inputs=[embeddings],
        write=lambda draft: _train(workspace, draft, embeddings, cfg, seed, workers),
        force=force,
    )
    codes = workspace.build(
        "codes",
        config=settings,
        inputs=[compressor, embeddings],
        write=lambda draft: _write_codes(draft, compressor, embeddings, cfg, workspace.storage),
        force=force,
    )
    if cfg.keep is not None:
        codes = _cut(workspace, codes, [compressor, embeddings], settings, cfg.keep, force)
    return [compressor, codes]


def _cut(
    workspace: Workspace,
    whole: Build,
    inputs: list[Build],
    settings: dict[str, Any],
    keep: int,
    force: bool,
) -> Build:
    """Write the codes that keep the first `keep` non-zeros of every item, or reuse them.

    Raises:
        ConfigError: the codes do not hold so many.
    """

    def write(draft: Draft) -> dict[str, Any]:
        dictionary = np.load(inputs[0].path("dictionary.npy"))
        similarity = whole.facts["similarity"]
        codes = Codes.open(whole).truncate(
            keep, dictionary=dictionary, similarity=similarity, draft=draft
        )
        vectors = np.load(inputs[1].path("vectors.npy"), mmap_mode="r")
        return _facts(codes, dictionary, vectors, similarity)

    settings = settings | {"keep": keep, "from": whole.content_id}
    return workspace.build("codes", config=settings, inputs=inputs, write=write, force=force)


def _train(
    workspace: Workspace,
    draft: Draft,
    embeddings: Build,
    cfg: CompressorConfig,
    seed: int,
    workers: LaunchConfig,
) -> dict[str, Any]:
    """Fit the dictionary (and the paper's encoder), write them, return the facts."""
    path = embeddings.path("vectors.npy")
    vectors = np.load(path, mmap_mode="r")
    _check(vectors, embeddings.facts["similarity"])
    facts: dict[str, Any] = {"n_items": len(vectors), "dim": vectors.shape[1]}
    small = len(vectors) < MIN_ITEMS
    code_dim, n_active = (0, 0) if small else cfg.sizes(len(vectors))
    narrow = cfg.preset == "best" and vectors.shape[1] <= 2 * n_active
    if small or narrow:
        why = f"only {len(vectors)} items" if small else f"{vectors.shape[1]} bytes are no more"
        log.warning("%s: vectors are kept as 8-bit dense ones", why)
        np.save(draft.path("dictionary.npy"), np.zeros((0, vectors.shape[1]), dtype=np.float32))
        return facts | {"code_dim": 0, "n_active": 0}
    if cfg.preset == "paper":
        sizes: dict[str, Any] = {
            "code_dim": code_dim,
            "n_active": n_active,
            "wide_weight": cfg.wide_weight,
            "seed": seed,
        }
        state = launch(
            compressor_phases,
            {"path": str(path), "sizes": sizes},
            optim=cfg.optim,
            seed=seed,
            cfg=workers,
            storage=workspace.storage,
            name=draft.scratch(),
        )
        model = CompresSAE(vectors.shape[1], **sizes)
        model.load_state_dict(state["model"])
        model.save(draft.path("encoder.safetensors"))
        dictionary = model.dictionary.detach()
    else:
        dictionary = fit_dictionary(vectors, code_dim=code_dim, seed=seed)
    np.save(draft.path("dictionary.npy"), dictionary.numpy())
    return facts | {"code_dim": code_dim, "n_active": n_active}


def _write_codes(
    draft: Draft,
    compressor: Build,
    embeddings: Build,
    cfg: CompressorConfig,
    storage: Storage,
) -> dict[str, Any]:
    """Encode every row, pack and write the codes, return the facts."""
    vectors = np.load(embeddings.path("vectors.npy"), mmap_mode="r")
    similarity = embeddings.facts["similarity"]
    n_active = compressor.facts["n_active"]
    dictionary = np.load(compressor.path("dictionary.npy"))
    if n_active == 0:
        codes = Codes.pack_dense(vectors, similarity=similarity, draft=draft)
    else:
        encoder = Encoder.fit(
            vectors,
            torch.from_numpy(dictionary),
            n_active=n_active,
            model=_encoder(compressor, n_active, cfg),
            value_bits=cfg.value_bits,
        )
        codes = encode_in_parts(
            draft,
            embeddings,
            encoder,
            storage=storage,
            name=draft.scratch(),
            fitted=cfg.preset == "best" or similarity == "inner_product",
            similarity=similarity,
            value_bits=cfg.value_bits,
        )
    return _facts(codes, dictionary, vectors, similarity)


def _facts(
    codes: Codes,
    dictionary: NDArray[np.float32],
    vectors: NDArray[np.floating[Any]],
    similarity: str,
) -> dict[str, Any]:
    """Return what readers need to know of finished codes."""
    cosine = _mean_cosine(codes, dictionary, vectors)
    log.info(
        "codes written n_items=%d bytes_per_item=%.0f cosine=%.4f",
        codes.n_items,
        codes.bytes_per_item,
        cosine,
    )
    return {
        "n_items": codes.n_items,
        "code_dim": len(dictionary),
        "n_active": codes.n_active,
        "packing": codes.packing,
        "similarity": similarity,
        "bytes_per_item": codes.bytes_per_item,
        "bytes_per_item_with_dictionary": codes.bytes_per_item_with(dictionary),
        "mean_cosine": cosine,
    }


def _encoder(compressor: Build, n_active: int, cfg: CompressorConfig) -> CompresSAE | None:
    if cfg.preset != "paper":
        return None
    path: Path = compressor.path("encoder.safetensors")
    return CompresSAE.load(path, n_active=n_active, wide_weight=cfg.wide_weight)


def _mean_cosine(
    codes: Codes, dictionary: NDArray[np.float32], vectors: NDArray[np.floating[Any]]
) -> float:
    """Return the mean cosine of stored reconstructions, over at most 10,000 rows."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, 10_000).astype(np.int64))
    ours = unit_rows(codes.decode(dictionary, rows))
    return float((ours * unit_rows(take_rows(vectors, rows))).sum(dim=1).mean())


def _check(vectors: NDArray[np.floating[Any]], similarity: str) -> None:
    for start, part in row_blocks(vectors):
        bad = ~np.isfinite(part).all(axis=1)
        if similarity == "cosine":
            bad |= ~part.any(axis=1)
        if bad.any():
            row = start + int(np.argmax(bad))
            raise DataError(f"embedding row {row} is not finite, or zero where directions count")
