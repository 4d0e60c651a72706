"""Hashes that decide splits: keyed BLAKE2b of ids, so they depend on nothing but seed and id.

CRC-like hashes are XOR-linear and leave structure between user and item bits; these mix.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_ids(ids: pa.Array | pa.ChunkedArray, *, key: str) -> NDArray[np.uint64]:
    """Return a uniform 64-bit hash per id; ids should be distinct, each costs about 1 us.

    Args:
        ids: [n] strings without nulls.
        key: purpose and seed; another key gives unrelated hashes.
    """
    start = _keyed(key)
    digests = bytearray()
    for value in ids.to_pylist():
        state = start.copy()
        state.update(value.encode())
        digests += state.digest()
    return np.frombuffer(bytes(digests), dtype="<u8")


@functools.lru_cache(maxsize=64)
def _keyed(key: str) -> Any:
    return hashlib.blake2b(digest_size=8, key=hashlib.sha256(key.encode()).digest())


def hash_id(text: str, *, key: str) -> np.uint64:
    """Return the hash of one id, as `hash_ids` has it."""
    state = _keyed(key).copy()
    state.update(text.encode())
    return np.uint64(int.from_bytes(state.digest(), "little"))


def combine(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash pairs of 64-bit hashes, not symmetric (SplitMix64's finaliser, Steele et al. 2014)."""
    x = _mix(a + _GOLDEN) ^ b
    return _mix(x + _GOLDEN)


def unit(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map hashes to [0, 1), 53 bits each."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[Any]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)
