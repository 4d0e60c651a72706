"""Encode and pack embeddings of any size, part by part.

    encode   rows of the embeddings -> atoms and values of a part   (once per part)
    steps    the values of a fixed stride of all rows -> the codebook
    pack     atoms and values -> entries, stored values and scales of a part
    join     parts -> the files of the codes build

A part is a file of `PART_ROWS` rows below `training/<name>` of the run, written in one step. A job
that is killed leaves the finished parts, and the next one of the same build goes on from there.
Memory: a part per worker, and 4 bytes a row for the scales, whose common unit is known at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.cluster.tasks import task_runner
from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.encode import ENCODE_ROWS, Encoder
from raysys.compressor.packing import Packed, Packer
from raysys.compressor.quantise import sample_stride
from raysys.config import RayConfig
from raysys.store.drafts import SCRATCH, Draft
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

PART_ROWS = 4 * ENCODE_ROWS


@dataclasses.dataclass(frozen=True)
class PartStore:
    """The vectors to encode and the parts made of them; any process of the cluster can use it.

    Attributes:
        embeddings: the rows.
        storage: of the run.
        name: the folder below `training/`.
        n_rows: rows N of the embeddings.
        part_rows: rows of a part, a multiple of `ENCODE_ROWS`.
    """

    embeddings: Embeddings
    storage: Storage
    name: str
    n_rows: int
    part_rows: int

    @property
    def numbers(self) -> range:
        """Numbers of all parts."""
        return range(-(-self.n_rows // self.part_rows))

    def start(self, number: int) -> int:
        """Return the first row of a part."""
        return number * self.part_rows

    def vectors(self, number: int) -> NDArray[np.floating[Any]]:
        """Return the vectors [M, D] of a part, memory-mapped."""
        return self.embeddings.vectors[self.start(number) : self.start(number + 1)]

    def read(self, kind: str, number: int) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of a part, None where it is not finished."""
        content = self.storage.read(self._path(kind, number))
        if content is None:
            return None
        with np.load(io.BytesIO(content)) as arrays:
            return dict(arrays)

    def write(self, kind: str, number: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Write the arrays of a part in one step."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        self.storage.write_atomic(self._path(kind, number), buffer.getvalue())

    def _path(self, kind: str, number: int) -> str:
        return f"{SCRATCH}/{self.name}/{kind}-{self.part_rows}-{number:06d}.npz"


def encode_in_parts(
    draft: Draft,
    embeddings: Embeddings,
    encoder: Encoder,
    *,
    storage: Storage,
    name: str,
    fitted: bool,
    similarity: str,
    value_bits: int,
    part_rows: int = PART_ROWS,
) -> Codes:
    """Write the codes of all embeddings into a draft.

    Args:
        draft: the codes build that is being made.
        embeddings: what to encode.
        encoder: how.
        storage: of the run.
        name: identity of the work, under which it resumes, see `Draft.scratch`.
        fitted: fit steps and scale to the vectors, not to the encoder's values alone.
        similarity: of the codes.
        value_bits: of the packing.
        part_rows: rows of a part, a multiple of `ENCODE_ROWS`; the bytes of the codes do not depend
            on it.
    """
    n_rows = embeddings.facts.n_items
    store = PartStore(embeddings, storage, name, n_rows, part_rows)
    encode = functools.partial(_encode_part, store=store, encoder=encoder)
    with task_runner(RayConfig(), size=n_rows) as run:  # training is connected already
        encoded = list(run(encode, store.numbers, stage="encode", rows=lambda r: r[0]))
        packer = Packer.fit(
            np.concatenate([sample for _, sample in encoded]),
            dictionary=encoder.dictionary.numpy(),
            similarity=similarity,
            value_bits=value_bits,
        )
        pack = functools.partial(_pack_part, store=store, packer=packer, fitted=fitted)
        list(run(pack, store.numbers, stage="pack", rows=lambda n_new: n_new))
    parts = (_packed(store, number) for number in store.numbers)
    return Codes.assemble(packer, parts, n_items=n_rows, draft=draft)


def _encode_part(
    number: int, *, store: PartStore, encoder: Encoder
) -> tuple[int, NDArray[np.float32]]:
    """Encode a part unless that is done; return rows encoded and the values of sampled rows."""
    part = store.read("codes", number)
    n_new = 0
    if part is None:
        vectors = store.vectors(number)
        n_new = len(vectors)
        blocks = [
            encoder.block(vectors[start : start + ENCODE_ROWS])
            for start in range(0, n_new, ENCODE_ROWS)
        ]
        part = {
            "atoms": np.concatenate([atoms for atoms, _ in blocks]).astype(np.uint16),
            "values": np.concatenate([values for _, values in blocks]),
        }
        store.write("codes", number, part)
    stride = sample_stride(store.n_rows)
    return n_new, part["values"][-store.start(number) % stride :: stride].copy()


def _pack_part(number: int, *, store: PartStore, packer: Packer, fitted: bool) -> int:
    """Pack a part unless that is done; return the number of rows packed."""
    if store.read("packed", number) is not None:
        return 0
    part = store.read("codes", number)
    assert part is not None, number
    vectors = store.vectors(number) if fitted else None
    packed = packer.rows(part["atoms"], part["values"], vectors, start=store.start(number))
    store.write("packed", number, vars(packed))
    return len(packed.scale)


def _packed(store: PartStore, number: int) -> Packed:
    part = store.read("packed", number)
    assert part is not None, number
    return Packed(**part)
