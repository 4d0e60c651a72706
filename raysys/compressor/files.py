"""The `compressor` build, and codes together with all they were made from.

dictionary.npy       the atoms [S, D]; [0, D] where vectors are kept as 8-bit dense ones
encoder.safetensors  the paper's encoder, where that chose the atoms
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from raysys.compressor.codes import Codes
from raysys.data.arrays import Floats
from raysys.errors import BuildError
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft
from raysys.store.kinds import Facts

if TYPE_CHECKING:
    from raysys.compressor.model import CompresSAE

_DICTIONARY, _ENCODER = "dictionary.npy", "encoder.safetensors"


@dataclasses.dataclass(frozen=True)
class CompressorFacts(Facts):
    """What a compressor is.

    Attributes:
        n_items, dim: N and D of the embeddings it was fitted to.
        code_dim: atoms S; 0 where vectors are kept as 8-bit dense ones.
        n_active: atoms of an item; 0 likewise.
        wide_weight: of the paper's encoder; None without one.
    """

    n_items: int
    dim: int
    code_dim: int
    n_active: int
    wide_weight: float | None = None


class Compressor:
    """A `compressor` build, opened; files are read when they are asked for.

    Attributes:
        facts: what it is.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self.facts = CompressorFacts.of(build)

    @classmethod
    def open(cls, build: Build) -> Compressor:
        """Open a `compressor` build."""
        return cls(build)

    @property
    def dictionary(self) -> Floats:
        """The atoms [S, D], mapped."""
        dictionary: Floats = np.load(self._build.path(_DICTIONARY), mmap_mode="r")
        return dictionary

    def dictionary_of(self, codes: Codes) -> Floats:
        """Return the atoms that codes are made of: none, [0, D], for dense8."""
        if codes.packing == "dense8":
            return np.zeros((0, self.facts.dim), dtype=np.float32)
        return np.asarray(self.dictionary)

    def encoder(self, *, n_active: int) -> CompresSAE | None:
        """Read the paper's encoder, to choose `n_active` atoms an item; None without one."""
        if self.facts.wide_weight is None:
            return None
        from raysys.compressor.model import CompresSAE  # brings Torch, which no service needs

        path = self._build.path(_ENCODER)
        return CompresSAE.load(path, n_active=n_active, wide_weight=self.facts.wide_weight)

    def copy_to(self, draft: Draft) -> CompressorFacts:
        """Write the same compressor again and return its facts."""
        for name in self._build.files():
            shutil.copyfile(self._build.path(name), draft.path(name))
        return self.facts


def write_compressor(
    draft: Draft,
    dictionary: Floats,
    *,
    n_items: int,
    n_active: int,
    model: CompresSAE | None = None,
) -> CompressorFacts:
    """Write a `compressor` build and return its facts.

    Args:
        draft: the build that is being made.
        dictionary: the atoms [S, D].
        n_items: N of the embeddings.
        n_active: atoms of an item.
        model: the paper's encoder.
    """
    np.save(draft.path(_DICTIONARY), dictionary)
    if model is not None:
        model.save(draft.path(_ENCODER))
    code_dim, dim = dictionary.shape
    weight = None if model is None else model.wide_weight
    return CompressorFacts(n_items, dim, code_dim, n_active, weight)


@dataclasses.dataclass(frozen=True)
class Coded:
    """Codes and all they were made from, bound by content.

    Attributes:
        codes, compressor, embeddings: always there.
        autoencoder, profiles, interactions: None where the embeddings are the user's own vectors.
    """

    codes: Build
    compressor: Build
    embeddings: Build
    autoencoder: Build | None = None
    profiles: Build | None = None
    interactions: Build | None = None

    @property
    def builds(self) -> list[Build]:
        """All of them, by kind."""
        builds = (getattr(self, field.name) for field in dataclasses.fields(self))
        return sorted((b for b in builds if b is not None), key=lambda build: build.kind)

    @classmethod
    def current(cls, workspace: Workspace) -> Coded:
        """Open the current codes of a run.

        Raises:
            BuildError: a build is missing, or the chain mixes builds.
        """
        head = workspace.current("codes")
        return cls.of(workspace.chain(head), f"codes {head.build_id} of {workspace.run}")

    @classmethod
    def of(cls, chain: Mapping[str, Build], head: str) -> Coded:
        """Take the builds from {kind: build}; `head` names what they are the chain of.

        Raises:
            BuildError: one of those that must be there is missing.
        """
        for kind in ("codes", "compressor", "embeddings"):
            if kind not in chain:
                raise BuildError(f"{head} names no {kind} build")
        return cls(
            codes=chain["codes"],
            compressor=chain["compressor"],
            embeddings=chain["embeddings"],
            autoencoder=chain.get("autoencoder"),
            profiles=chain.get("profiles"),
            interactions=chain.get("interactions"),
        )
