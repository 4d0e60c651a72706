"""Compact weights of a model, as a build keeps them and a serving process maps them.

    N items, Hc and Hl sizes of the latent's blocks, R levels, C input and K output channels,
    F rating factors; the formulas are those of `autoencoder/model.py`

serving/rows.npy       float16 [N, Hc]     directions of g, and of E where it has the same
serving/encoder.npy    float16 [N, Hc]     directions of E where it has others (likelihood)
serving/scales.npy     float32 [2, N]      lengths of E and of g
serving/prior.npy      float32 [N]
serving/level_in.npy   float16 [N, C, Hl]  F            with levels, as all that follow
serving/level_out.npy  float16 [N, K, Hl]  W
serving/level_bias.npy serving/residual.npy     float32 [N, R]
serving/loadings.npy serving/variance.npy       float32 [N, 1 + F]
serving/tables.safetensors                 what does not grow with N; levels.json lies beside

A process reads the rows that an answer needs; replicas of a node share their pages. Directions are
kept apart from the lengths of g and E, which may be of any size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from raysys.data.arrays import CHUNK_ROWS, new_file, read_only
from raysys.data.schema import RatingLevels
from raysys.errors import BuildError
from raysys.store.builds import Build
from raysys.store.drafts import Draft

FOLDER, LEVELS = "serving/", "levels.json"
_TABLES = "tables.safetensors"
_HALVES = ("rows", "encoder", "level_in", "level_out")
LEVEL_TABLES = (
    *("table_in", "table_out", "table_user", "table_levels", "level_shift", "level_offset"),
    *("factor_channels", "log_overall", "penalties"),
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a model is made of, as `Scorer` reads it.

    Attributes:
        rows: {name: array} with an entry per item in the last or first axis, see the module.
        tables: {name: small float32 array}.
        levels: R levels.
    """

    rows: Mapping[str, NDArray[Any]]
    tables: Mapping[str, NDArray[Any]]
    levels: RatingLevels


def save_weights(draft: Draft, weights: Weights) -> None:
    """Write weights into a build that is being made, their levels apart; part by part.

    Raises:
        BuildError: a weight is not finite, or too large for float16.
    """
    for name, array in weights.rows.items():
        kind = np.float16 if name in _HALVES else np.float32
        file = new_file(draft.path(f"{FOLDER}{name}.npy"), array.shape, kind)
        for start in range(0, len(array), CHUNK_ROWS):
            part = array[start : start + CHUNK_ROWS]
            with np.errstate(over="ignore"):
                file[start : start + CHUNK_ROWS] = part
            if name in _HALVES and not np.isfinite(file[start : start + CHUNK_ROWS]).all():
                raise BuildError(f"weights {name} are not finite, or too large for float16")
    tables = {name: np.array(table, order="C") for name, table in weights.tables.items()}
    save_file(tables, draft.path(f"{FOLDER}{_TABLES}"))  # writes a buffer, whatever its strides


def open_weights(build: Build) -> Weights:
    """Map what `save_weights` wrote."""
    names = build.files(".npy", prefix=FOLDER)
    return Weights(
        rows={
            name[len(FOLDER) : -len(".npy")]: read_only(np.load(build.path(name), mmap_mode="r"))
            for name in names
        },
        tables=load_file(build.path(f"{FOLDER}{_TABLES}")),
        levels=RatingLevels.load(build.path(LEVELS)),
    )
