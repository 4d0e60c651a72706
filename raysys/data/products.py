"""Products of rounded rows with vectors: whole numbers, the same on every machine.

    X rows, Q vectors, W dims

Rows have 8 bits a dim and lie in blocks, pairs of dims side by side. So one load holds the same
two dims of sixteen rows, and one instruction multiplies them with a vector's and adds the pairs up,
each row in a lane of its own: nothing is left to be added at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.data.compiled import compiled

LARGEST = 127  # of a row
_LANES = 16  # rows whose sums a register holds
_PAIR = 2
_LINE = 64  # bytes of the cache
_LARGEST_SUM = np.float32(2**31 // LARGEST - 2**16)  # of |rounded vector|, for sums in 32 bits

_WIDE = bool(binding.get_host_cpu_features().get("avx512bw"))
# Registers of sums for a block, vectors of a tile, and blocks at once for one vector.
_REGISTERS, _VECTORS, _ALONE = (4, 4, 2) if _WIDE else (2, 2, 2)
_BLOCK = _REGISTERS * _LANES  # rows
_STEP = _ALONE * _BLOCK  # rows are filled up to a multiple of this, with zeros


class Rounded(NamedTuple):
    """Rounded rows; rows and dims of zeros fill them up.

    Attributes:
        whole: int8 [X' / B, W' / 2, B, 2], blocks of B rows.
        steps: float32 [X'], what a whole number of each row stands for.
    """

    whole: NDArray[Any]
    steps: NDArray[Any]


def rounded(rows: Floats) -> Rounded:
    """Return rows [X, W] rounded to 8 bits a dim, each in steps of its largest value / 127."""
    found = _room(len(rows), rows.shape[1])
    _round(np.ascontiguousarray(rows, dtype=np.float32), found)
    return found


def laid(rows: NDArray[np.int8], steps: Floats) -> Rounded:
    """Return rows [X, W] with their steps [X] as products read them."""
    found = _room(*rows.shape)
    n_blocks, n_pairs = found.whole.shape[:2]
    filled = np.zeros((n_blocks * _BLOCK, n_pairs * _PAIR), dtype=np.int8)
    filled[: len(rows), : rows.shape[1]] = rows
    found.whole[:] = filled.reshape(n_blocks, _BLOCK, n_pairs, _PAIR).swapaxes(1, 2)
    found.steps[: len(rows)] = steps
    return found


def _room(size: int, width: int) -> Rounded:
    """Return zeros for rows [X, W] that begin with a line of the cache: a load then touches one."""
    n_blocks, n_pairs = -(-size // _STEP) * _ALONE, max(1, -(-width // _PAIR))
    shape = n_blocks, n_pairs, _BLOCK, _PAIR
    n_bytes = math.prod(shape)
    room = np.zeros(n_bytes + _LINE, dtype=np.int8)
    first = -room.ctypes.data % _LINE
    steps = np.zeros(n_blocks * _BLOCK, dtype=np.float32)
    return Rounded(room[first : first + n_bytes].reshape(shape), steps)


def unlaid(rounded: Rounded) -> NDArray[np.int8]:
    """Return the rows [X', W'] of `laid`."""
    width = rounded.whole.shape[1] * _PAIR
    return np.ascontiguousarray(rounded.whole.swapaxes(1, 2)).reshape(-1, width)


def _tile(n_blocks: int, n_vectors: int) -> Callable[..., Any]:
    """Return an intrinsic for the sums of so many blocks with so many vectors."""

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typing: Any, whole: Any, block: Any, pairs: Any, vector: Any, part: Any, sums: Any
    ) -> Any:
        """Write the products of some blocks with some vectors to `sums`, by vector, then row.

        numba's own loops of 8-bit times 16-bit numbers fill half a register. Sums wrap around in
        32 bits.

        Args:
            typing: numba's.
            whole: int8 [X' / B, W' / 2, B, 2], contiguous.
            block: int64, the first one.
            pairs: int32 [Q, W' / 2], contiguous: two numbers of 16 bits each.
            vector: int64, the first one.
            part: int64 [2], the first pair of dims that counts, and the one after the last.
            sums: int32 [n_vectors, n_blocks B], contiguous.
        """

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = [
                context.make_array(signature.args[n])(context, builder, arguments[n])
                for n in (0, 2, 4, 5)
            ]
            _emit_tile(builder, arrays, arguments[1], arguments[3], (n_blocks, n_vectors))
            return context.get_dummy_value()

        return types.void(whole, types.int64, pairs, types.int64, part, sums), emit

    return tile  # type: ignore[no-any-return]


def _emit_tile(b: Any, arrays: list[Any], block: Any, vector: Any, size: tuple[int, int]) -> None:
    """Emit the instructions of a tile: a loop over pairs of dims, its sums in registers."""
    whole, pairs, part, out = arrays
    place, byte, half, word = map(ir.IntType, (64, 8, 16, 32))
    n_numbers = _LANES * _PAIR
    numbers, wide = ir.VectorType(half, n_numbers), ir.VectorType(word, n_numbers)
    bytes_, words = ir.VectorType(byte, n_numbers), ir.VectorType(word, _LANES)
    n_pairs = cgutils.unpack_tuple(b, whole.shape)[1]
    n_blocks, n_vectors = size
    n_bytes = b.mul(n_pairs, place(_BLOCK * _PAIR))
    blocks = [b.gep(whole.data, [b.mul(n_bytes, b.add(block, place(n)))]) for n in range(n_blocks)]
    vectors = [
        b.gep(pairs.data, [b.mul(n_pairs, b.add(vector, place(n)))]) for n in range(n_vectors)
    ]
    start, stop = (b.load(b.gep(part.data, [place(n)])) for n in range(2))
    before, loop, end = b.block, b.append_basic_block("loop"), b.append_basic_block("end")
    b.branch(loop)
    b.position_at_end(loop)
    at = b.phi(place)
    at.add_incoming(start, before)
    totals = [b.phi(words) for _ in range(n_vectors * n_blocks * _REGISTERS)]
    first, rows = b.mul(at, place(_BLOCK * _PAIR)), []
    for begin in blocks:
        for n in range(_REGISTERS):
            address = b.gep(begin, [b.add(first, place(n * n_numbers))])
            loaded = b.load(b.bitcast(address, bytes_.as_pointer()), align=1)
            rows.append(b.sext(b.sext(loaded, numbers), wide))
    undefined, zeros = ir.Constant(words, ir.Undefined), ir.Constant(words, [0] * _LANES)
    evens, odds = (ir.Constant(words, list(range(n, n_numbers, _PAIR))) for n in range(_PAIR))
    grown: list[Any] = []
    for begin in vectors:
        one = b.insert_element(undefined, b.load(b.gep(begin, [at])), word(0))
        pair = b.bitcast(b.shuffle_vector(one, undefined, zeros), numbers)
        for row in rows:
            products = b.mul(row, b.sext(pair, wide))
            halves = [
                b.shuffle_vector(products, ir.Constant(wide, ir.Undefined), n)
                for n in (evens, odds)
            ]
            grown.append(b.add(totals[len(grown)], b.add(*halves)))
    for total, more in zip(totals, grown, strict=True):
        total.add_incoming(zeros, before)
        total.add_incoming(more, loop)
    following = b.add(at, place(1))
    at.add_incoming(following, loop)
    b.cbranch(b.icmp_signed("<", following, stop), loop, end)
    b.position_at_end(end)
    for n, total in enumerate(grown):
        b.store(total, b.bitcast(b.gep(out.data, [place(n * _LANES)]), words.as_pointer()), align=4)


_alone, _both, _together = _tile(_ALONE, 1), _tile(1, 2), _tile(1, _VECTORS)


@compiled
def integer_products(
    rounded: Rounded, vectors: NDArray[Any], factor: float, out: NDArray[Any]
) -> None:
    """Write factor * steps * (whole times vectors [Q, W] rounded to 16 bits) to `out` [Q, X'].

    A vector's largest value becomes 32767, or less where sums of many dims would overflow 32 bits.
    A few blocks of rows meet all vectors while they lie in the nearest cache.
    """
    whole, steps, n_vectors = rounded.whole, rounded.steps, vectors.shape[0]
    numbers = np.zeros((n_vectors, whole.shape[1] * 2), np.int16)
    units = np.empty(n_vectors, np.float32)
    for q in range(n_vectors):
        largest, total = np.float32(1e-30), np.float32(0)
        for d in range(vectors.shape[1]):
            value = abs(vectors[q, d])
            largest = max(largest, value)
            total += value
        step = max(largest / np.float32(32767), total / _LARGEST_SUM)
        for d in range(vectors.shape[1]):
            numbers[q, d] = np.int16(np.rint(vectors[q, d] / step))
        units[q] = np.float32(step * factor)
    pairs = numbers.view(np.int32)
    sums = np.empty(max(_ALONE, _VECTORS) * _BLOCK, np.int32)
    tiled = n_vectors - n_vectors % _VECTORS
    parts = np.empty((n_vectors, 2), np.int64)
    for q in range(0, tiled, _VECTORS):
        _counted(pairs[q : q + _VECTORS], parts[q])
    for q in range(tiled, n_vectors):
        _counted(pairs[q : q + 1], parts[q])
    paired = tiled
    while paired + 1 < n_vectors and _pays(parts[paired], parts[paired + 1]):
        _counted(pairs[paired : paired + 2], parts[paired])
        paired += 2
    for block in range(whole.shape[0] if paired > 0 else 0):
        first, last = block * _BLOCK, (block + 1) * _BLOCK
        for q in range(0, tiled, _VECTORS):
            _together(whole, block, pairs, q, parts[q], sums)
            for n in range(_VECTORS):
                mine = sums[n * _BLOCK : (n + 1) * _BLOCK]
                _scaled(mine, steps[first:last], units[q + n], out[q + n, first:last])
        for q in range(tiled, paired, 2):
            _both(whole, block, pairs, q, parts[q], sums)
            for n in range(2):
                mine = sums[n * _BLOCK : (n + 1) * _BLOCK]
                _scaled(mine, steps[first:last], units[q + n], out[q + n, first:last])
    for q in range(paired, n_vectors):
        for block in range(0, whole.shape[0], _ALONE):
            first, last = block * _BLOCK, (block + _ALONE) * _BLOCK
            _alone(whole, block, pairs, q, parts[q], sums)
            _scaled(sums[: _ALONE * _BLOCK], steps[first:last], units[q], out[q, first:last])


@compiled
def _pays(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two vectors take less together, with the pairs of dims that count in either."""
    both = max(one[1], other[1]) - min(one[0], other[0])
    return bool(4 * both <= 3 * (one[1] - one[0] + other[1] - other[0]))


@compiled
def _counted(pairs: NDArray[Any], part: NDArray[Any]) -> None:
    """Write the first pair of dims that is not zero in all vectors, and the one after the last.

    A ranking may leave many out. One pair is there at least.
    """
    first, last = 0, pairs.shape[1]
    while last > 1 and not pairs[:, last - 1].any():
        last -= 1
    while first < last - 1 and not pairs[:, first].any():
        first += 1
    part[0], part[1] = first, last


@compiled
def _round(rows: NDArray[Any], out: Rounded) -> None:
    """Write rows [X, W] to what `_room` returned."""
    for x in range(rows.shape[0]):
        row, largest = rows[x], np.float32(1e-30)
        for d in range(row.shape[0]):
            largest = max(largest, abs(row[d]))
        factor, block, place = np.float32(LARGEST) / largest, x // _BLOCK, x % _BLOCK
        for d in range(row.shape[0]):
            out.whole[block, d >> 1, place, d & 1] = np.int8(np.rint(row[d] * factor))
        out.steps[x] = largest / np.float32(LARGEST)


@compiled
def _scaled(sums: NDArray[Any], steps: NDArray[Any], unit: Any, out: NDArray[Any]) -> None:
    """Write sums [X], times what they stand for, to `out` [X]."""
    for x in range(out.shape[0]):
        out[x] = np.float32(sums[x]) * (steps[x] * unit)
