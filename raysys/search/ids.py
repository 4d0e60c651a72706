"""External ids by number, found by a sorted table of hashes; in memory, or mapped from a build.

    NAME.arrow                      ids, and what else there is of each, in the order of numbers
    NAME-hashes.npy NAME-nums.npy   uint64 [N] ascending, and int32 [N] whose they are

12 bytes an id beside its text, shared by all processes of a node: a dictionary of Python takes
200 of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.data.arrays import read_only
from raysys.prepare.hashing import hash_id, hash_ids
from raysys.store.builds import Build
from raysys.store.drafts import Draft

_KEY = "raysys served ids"
_OFFSETS = {pa.string(): np.int32, pa.large_string(): np.int64}  # types of where a text begins
_FEW = 100  # texts that are read one by one: Arrow's own code is cold when an answer comes to it


class Texts(Sequence[Any]):
    """Texts by number, read where they lie; None where there is none."""

    def __init__(self, texts: Sequence[str | None] | pa.ChunkedArray) -> None:
        if not isinstance(texts, pa.ChunkedArray):
            texts = pa.chunked_array([pa.array(texts, pa.string())])
        self.column = texts
        self._first = texts.chunk(0) if texts.num_chunks else pa.nulls(0)
        self._n_first = 0  # texts whose bytes are read without Arrow, which takes longer for few
        self._missing: NDArray[np.bool_] | None = None
        if len(self._first) and self._first.type in _OFFSETS:
            valid, offsets, data = self._first.buffers()
            places = slice(self._first.offset, self._first.offset + len(self._first) + 1)
            self._places = np.frombuffer(offsets, dtype=_OFFSETS[self._first.type])[places]
            self._bytes = memoryview(data if data is not None else b"")
            self._missing = None if valid is None else np.asarray(self._first.is_null())
            self._n_first = len(self._first)

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, num: Any) -> Any:
        if 0 <= num < self._n_first and self._missing is None:
            return str(self._bytes[self._places[num] : self._places[num + 1]], "utf-8")
        return self.column[num].as_py()

    def of(self, nums: NDArray[np.int32]) -> list[str | None]:
        """Return the texts of some numbers."""
        if not len(nums) or nums.max() >= self._n_first:
            return [self[num] for num in nums.tolist()]
        if len(nums) > _FEW:
            found: list[str | None] = self._first.take(pa.array(nums)).to_pylist()
            return found
        starts, stops, data = self._places[nums], self._places[nums + 1], self._bytes
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        if self._missing is None:
            return [str(data[start:stop], "utf-8") for start, stop in pairs]
        missing = self._missing[nums].tolist()
        return [
            None if gone else str(data[start:stop], "utf-8")
            for gone, (start, stop) in zip(missing, pairs, strict=True)
        ]


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
        self.texts = Texts(texts)
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
        return iter(self.texts.column.to_pylist())

    def __getitem__(self, key: str) -> int:
        num = self.find(key)
        if num is None:
            raise KeyError(key)
        return num

    def find(self, key: str) -> int | None:
        """Return the number of an id, or None; what `get` does, in half its time."""
        wanted, hashes = hash_id(key, key=_KEY), self._hashes
        at = int(hashes.searchsorted(wanted))
        while at < len(hashes) and hashes[at] == wanted:
            num = int(self._nums[at])
            if self.texts[num] == key:
                return num
            at += 1
        return None
