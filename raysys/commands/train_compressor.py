"""Compress: train the compressor on the current embeddings and write their codes."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.cluster.train_workers import LaunchConfig, launch
from raysys.commands.encode_parts import encode_in_parts
from raysys.commands.preflight_hosts import refuse_compressing
from raysys.compressor.codes import Codes, CodesFacts, truncated
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.encode import Encoder, fit_dictionary, rows_passed, unit_tensor
from raysys.compressor.files import Compressor, CompressorFacts, write_compressor
from raysys.compressor.model import MIN_ITEMS, CompresSAE, CompresSAEConfig
from raysys.compressor.task import compressor_phases
from raysys.config import identity, local
from raysys.data.arrays import Floats, row_blocks, take_rows
from raysys.errors import DataError
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft
from raysys.store.storage import Storage
from raysys.training import ledger
from raysys.training.history import timed
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
        codes = _cut(
            workspace, codes, compressor, embeddings, settings=settings, keep=cfg.keep, force=force
        )
    return [compressor, codes]


def _cut(
    workspace: Workspace,
    whole: Build,
    compressor: Build,
    embeddings: Build,
    *,
    settings: dict[str, Any],
    keep: int,
    force: bool,
) -> Build:
    """Write the codes that keep the first `keep` non-zeros of every item, or reuse them.

    Raises:
        ConfigError: the codes do not hold so many.
    """

    def write(draft: Draft) -> CodesFacts:
        dictionary = Compressor.open(compressor).dictionary
        opened = Embeddings.open(embeddings)
        codes = truncated(
            Codes.open(whole),
            keep,
            dictionary=dictionary,
            similarity=opened.similarity,
            draft=draft,
        )
        return _facts(codes, dictionary, opened)

    inputs = [compressor, embeddings]
    settings = settings | {"keep": keep, "from": whole.content_id}
    return workspace.build("codes", config=settings, inputs=inputs, write=write, force=force)


def _train(
    workspace: Workspace,
    draft: Draft,
    embeddings: Build,
    cfg: CompressorConfig,
    seed: int,
    workers: LaunchConfig,
) -> CompressorFacts:
    """Fit the dictionary (and the paper's encoder), write them, return the facts."""
    opened = Embeddings.open(embeddings)
    vectors = opened.vectors
    n_items, dim = vectors.shape
    _check(vectors, opened.similarity)
    small = n_items < MIN_ITEMS
    code_dim, n_active = (0, 0) if small else cfg.sizes(n_items)
    narrow = cfg.preset == "best" and dim <= 2 * n_active
    if small or narrow:
        why = f"only {n_items} items" if small else f"{dim} bytes are no more"
        log.warning("%s: vectors are kept as 8-bit dense ones", why)
        none = np.zeros((0, dim), dtype=np.float32)
        return write_compressor(draft, none, n_items=n_items, n_active=0)
    refuse_compressing(n_items, dim, cfg)
    model = None
    seconds: dict[str, float] = {}
    if cfg.preset == "paper":
        sizes: dict[str, Any] = {
            "code_dim": code_dim,
            "n_active": n_active,
            "wide_weight": cfg.wide_weight,
            "seed": seed,
        }
        with timed(seconds, "all"):
            state = launch(
                compressor_phases,
                {"path": str(opened.vectors_path), "sizes": sizes},
                optim=cfg.optim,
                seed=seed,
                cfg=workers,
                storage=workspace.storage,
                name=draft.scratch(),
            )
        training = ledger.of_state(state, seconds=seconds["all"])
        model = CompresSAE(dim, **sizes)
        model.load_state_dict(state["model"])
        dictionary = model.dictionary.detach()
    else:
        ledger.reset_peak()
        with timed(seconds, "all"):
            dictionary = fit_dictionary(vectors, code_dim=code_dim, seed=seed)
        rows = rows_passed(n_items, code_dim=code_dim)
        training = ledger.of_one(seconds=seconds["all"], rows=rows)
    log.info("compressor trained %s", ledger.line(training))
    draft.note(training=training)
    return write_compressor(
        draft, dictionary.numpy(), n_items=n_items, n_active=n_active, model=model
    )


def _write_codes(
    draft: Draft,
    compressor: Build,
    embeddings: Build,
    cfg: CompressorConfig,
    storage: Storage,
) -> CodesFacts:
    """Encode every row, pack and write the codes, return the facts."""
    opened, fitted = Embeddings.open(embeddings), Compressor.open(compressor)
    similarity, n_active = opened.similarity, fitted.facts.n_active
    if n_active == 0:
        codes = Codes.pack_dense(opened.vectors, similarity=similarity, draft=draft)
    else:
        encoder = Encoder.fit(
            opened.vectors,
            torch.from_numpy(np.array(fitted.dictionary)),
            n_active=n_active,
            model=fitted.encoder(n_active=n_active),
            value_bits=cfg.value_bits,
        )
        codes = encode_in_parts(
            draft,
            opened,
            encoder,
            storage=storage,
            name=draft.scratch(),
            fitted=cfg.preset == "best" or similarity == "inner_product",
            similarity=similarity,
            value_bits=cfg.value_bits,
        )
    return _facts(codes, fitted.dictionary, opened)


def _facts(codes: Codes, dictionary: Floats, embeddings: Embeddings) -> CodesFacts:
    """Measure finished codes and return what readers need to know of them."""
    cosine = _mean_cosine(codes, dictionary, embeddings.vectors)
    log.info(
        "codes written n_items=%d bytes_per_item=%.0f cosine=%.4f",
        codes.n_items,
        codes.bytes_per_item,
        cosine,
    )
    return codes.facts(dictionary, similarity=embeddings.similarity, mean_cosine=cosine)


def _mean_cosine(codes: Codes, dictionary: Floats, vectors: NDArray[np.floating[Any]]) -> float:
    """Return the mean cosine of stored reconstructions, over at most 10,000 rows."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, 10_000).astype(np.int64))
    ours = unit_tensor(codes.decode(dictionary, rows))
    return float((ours * unit_tensor(take_rows(vectors, rows))).sum(dim=1).mean())


def _check(vectors: NDArray[np.floating[Any]], similarity: str) -> None:
    for start, part in row_blocks(vectors):
        bad = ~np.isfinite(part).all(axis=1)
        if similarity == "cosine":
            bad |= ~part.any(axis=1)
        if bad.any():
            row = start + int(np.argmax(bad))
            raise DataError(f"embedding row {row} is not finite, or zero where directions count")
