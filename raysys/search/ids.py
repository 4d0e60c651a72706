"""External ids by number, found by a sorted table of hashes; in memory, or mapped from a build.

    NAME.arrow                      ids, and what else there is of each, in the order of numbers
    NAME-hashes.npy NAME-nums.npy   uint64 [N] ascending, and int32 [N] whose they are

12 bytes an id beside its text, shared by all processes of a node: a dictionary of Python takes
200 of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.data.arrays import read_only
from raysys.prepare.hashing import hash_id, hash_ids
from raysys.store.builds import Build
from raysys.store.drafts import Draft

_KEY = "raysys served ids"


class Ids(Mapping[str, int]):
    """{external id: number}; of equal ids the first number is found.

    Args:
        texts: [N] ids by number.
        hashes: uint64 [N] ascending.
        nums: int32 [N] of the hashes.
    """

    def __init__(
        self, texts: pa.ChunkedArray, hashes: NDArray[np.uint64], nums: NDArray[np.int32]
    ) -> None:
        self.texts = texts
        self._hashes, self._nums = hashes, nums

    @classmethod
    def of(cls, texts: pa.ChunkedArray) -> Ids:
        """Return the table of ids in memory."""
        hashes = hash_ids(texts, key=_KEY)
        nums = np.argsort(hashes, kind="stable").astype(np.int32)
        return cls(texts, hashes[nums], nums)

    def save(self, draft: Draft, name: str, table: pa.Table) -> None:
        """Write the ids into a build that is being made, see `write`."""
        self.write(draft.path, name, table)

    def write(self, path: Callable[[str], Path], name: str, table: pa.Table) -> None:
        """Write the ids.

        Args:
            path: of a file, by its name.
            name: of the files, with their folder.
            table: N rows of text, the ids first.
        """
        kinds = [pa.field(name, pa.large_string()) for name in table.column_names]
        whole = table.cast(pa.schema(kinds)).combine_chunks()  # one batch, of any size
        with (
            pa.OSFile(str(path(f"{name}.arrow")), "wb") as sink,
            pa.ipc.new_file(sink, whole.schema) as writer,
        ):
            writer.write_table(whole)
        np.save(path(f"{name}-hashes.npy"), self._hashes)
        np.save(path(f"{name}-nums.npy"), self._nums)

    @classmethod
    def open(cls, build: Build, name: str) -> tuple[Ids, pa.Table]:
        """Map what `save` wrote."""
        with pa.memory_map(str(build.path(f"{name}.arrow"))) as source:
            table = pa.ipc.open_file(source).read_all()
        hashes = read_only(np.load(build.path(f"{name}-hashes.npy"), mmap_mode="r"))
        nums = read_only(np.load(build.path(f"{name}-nums.npy"), mmap_mode="r"))
        return cls(table.column(0), hashes, nums), table

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts.to_pylist())

    def __getitem__(self, key: str) -> int:
        wanted = hash_id(key, key=_KEY)
        at = int(np.searchsorted(self._hashes, wanted))
        while at < len(self._hashes) and self._hashes[at] == wanted:
            num = int(self._nums[at])
            if self.texts[num].as_py() == key:
                return num
            at += 1
        raise KeyError(key)
