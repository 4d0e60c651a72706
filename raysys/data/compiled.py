"""How loops are compiled: numba, cached on disk where there is a place for it.

numba takes a cached loop for today's if the file that holds it is unchanged. But a loop takes in
the loops that it calls, and those of other files may have changed: an upgrade would go on with old
ones. So what a loop is kept under tells the content of all files that it is made of.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from raysys.data.kernel_cache import keep

F = TypeVar("F", bound=Callable[..., Any])


def compiled_with(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles with these options of `numba.njit`.

    A loop that says nothing of its arithmetic would get that of the caller it is compiled for
    first: its bits would depend on which that is, and lie in the cache for all others.
    """
    options = {"fastmath": False, "error_model": "python"} | options

    def decorate(function: Callable[..., Any]) -> Any:
        loop: Any = numba.njit(**options)(function)
        for file in (__file__, inspect.getfile(function)):
            _content(file)  # as it is imported, whatever lies there when it is first compiled
        keep(loop, lambda: _content_of(function))
        return loop

    return decorate


def _content_of(function: Any) -> str:
    """Return what tells a loop from what it was before, once all that it calls is defined."""
    files, constants = _made_of(function)
    return "".join([*sorted(map(_content, files)), *sorted(constants)])


def _made_of(function: Any) -> tuple[set[str], set[str]]:
    """Return the files of a function and of all loops that it calls, and their constants."""
    files, constants, todo, seen = {__file__}, set(), [function], set()
    while todo:
        one = todo.pop()
        seen.add(one)
        files.add(inspect.getfile(one))
        for name in one.__code__.co_names:
            value = one.__globals__.get(name)
            called = getattr(value, "py_func", None)
            if called is not None and called not in seen:
                todo.append(called)
            if isinstance(value, (int, float, str, tuple, np.generic)):
                constants.add(f"{name}={value!r}")
    return files, constants


@functools.cache
def _content(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def compiled(function: F) -> F:
    """Compile without the GIL."""
    return cast(F, compiled_with(nogil=True)(function))


def compiled_fast(function: F) -> F:
    """Compile without the GIL, free to reorder the sum of a dot product."""
    return cast(F, compiled_with(nogil=True, fastmath=True)(function))


def compiled_short(function: F) -> F:
    """Compile with the GIL: for microseconds, taking it back may cost more."""
    return cast(F, compiled_with()(function))


@compiled
def half_by_bits(bits: int) -> Any:
    """Return the float32 value of float16 bits (finite numbers only), on any processor."""
    h = np.uint32(bits)
    sign = (h & np.uint32(0x8000)) << np.uint32(16)
    rest = (h & np.uint32(0x7FFF)) << np.uint32(13)
    return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)


@intrinsic  # type: ignore[untyped-decorator]
def _converted(typing: Any, bits: Any) -> Any:
    """Let the processor convert float16 bits: one instruction for eight or sixteen."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


@compiled
def half_by_processor(bits: int) -> Any:
    """Return the float32 value of float16 bits."""
    return _converted(np.uint16(bits))


def _converts() -> bool:
    """Tell whether this processor has an instruction for float16 numbers."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return arm or bool(binding.get_host_cpu_features().get("f16c"))


half = half_by_processor if _converts() else half_by_bits


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, row: Any) -> Any:
    """Ask for the first bytes of a row of a 2-d array before they are needed."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        first = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        stride = cgutils.unpack_tuple(builder, array.strides)[0]
        place = builder.gep(first, [builder.mul(stride, arguments[1])])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, flag, flag, flag])
        name = "llvm.prefetch.p0i8"  # LLVM of today renames it to what its pointers are
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(function, [place, flag(0), flag(3), flag(1)])  # read, keep near, data
        return context.get_dummy_value()

    return types.void(array, types.int64), emit


SIXTEEN = 16  # rows that are scored at once
_ENTRIES = 32  # of a row, that are turned at once
_ATOM = 4  # first bit of an entry's atom; its step lies below


def scores_sixteen() -> bool:
    """Tell whether this processor has what `sixteen_sums` is made of."""
    features = binding.get_host_cpu_features()
    return all(features.get(name) for name in ("avx512f", "avx512bw"))


@intrinsic  # type: ignore[untyped-decorator]
def sixteen_sums(
    typing: Any, entries: Any, rows: Any, first: Any, codebook: Any, table: Any, sums: Any
) -> Any:
    """Write sum_j codebook[j, step_j] * table[atom_j] of rows[first : first + 16] to `sums` there.

    Each sum runs over a row's entries in order, as a plain loop's does. Entries are turned, so that
    a register holds the j-th of sixteen rows: their steps are then looked up in another register.

    Args:
        typing: numba's.
        entries: uint16 [N, n], contiguous: atom << 4 | step.
        rows: int64 [M].
        first: int64, at most M - 16.
        codebook: float32 [n, 16], contiguous.
        table: float32 [S], contiguous.
        sums: float32 [M], contiguous.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(signature.args[n])(context, builder, arguments[n])
            for n in (0, 1, 3, 4, 5)
        ]
        _emit_sums(builder, arrays, arguments[2])
        return context.get_dummy_value()

    return types.void(entries, rows, types.int64, codebook, table, sums), emit


def _emit_sums(b: Any, arrays: list[Any], first: Any) -> None:
    """Emit the instructions of `sixteen_sums`."""
    entries, rows, codebook, table, out = arrays
    place, word, real = ir.IntType(64), ir.IntType(32), ir.FloatType()
    words, reals = ir.VectorType(word, SIXTEEN), ir.VectorType(real, SIXTEEN)
    width = cgutils.unpack_tuple(b, entries.shape)[1]
    starts = []
    for lane in range(SIXTEEN):
        row = b.load(b.gep(rows.data, [b.add(first, place(lane))]))
        starts.append(b.gep(entries.data, [b.mul(row, width)]))
    turned = cgutils.alloca_once(b, words, size=SIXTEEN)
    total = cgutils.alloca_once_value(b, ir.Constant(reals, [0.0] * SIXTEEN))
    with cgutils.for_range_slice(b, place(0), width, place(_ENTRIES)) as (start, _):
        left = b.sub(width, start)
        for number, column in enumerate(_turned(b, [b.gep(s, [start]) for s in starts], left)):
            b.store(column, b.gep(turned, [place(number)]))
        here = b.select(b.icmp_signed("<", left, place(_ENTRIES)), left, place(_ENTRIES))

        def take(number: Any, entry: Any) -> None:
            steps = b.gep(codebook.data, [b.shl(b.add(start, number), place(_ATOM))])
            factor = _looked_up(b, b.load(b.bitcast(steps, reals.as_pointer()), align=4), entry)
            value = _gathered(b, table.data, b.lshr(entry, ir.Constant(words, [_ATOM] * SIXTEEN)))
            b.store(b.fadd(b.load(total), b.fmul(factor, value)), total)

        low = ir.Constant(words, [0xFFFF] * SIXTEEN)
        with cgutils.for_range(b, b.lshr(here, place(1))) as loop:
            pair, number = b.load(b.gep(turned, [loop.index])), b.shl(loop.index, place(1))
            take(number, b.and_(pair, low))
            take(b.add(number, place(1)), b.lshr(pair, ir.Constant(words, [16] * SIXTEEN)))
        with b.if_then(b.trunc(here, ir.IntType(1))):
            number = b.sub(here, place(1))
            take(number, b.and_(b.load(b.gep(turned, [b.lshr(number, place(1))])), low))
    sums = b.bitcast(b.gep(out.data, [first]), reals.as_pointer())
    b.store(b.load(total), sums, align=4)


def _turned(b: Any, starts: Any, left: Any) -> list[Any]:
    """Return sixteen vectors, the n-th of the n-th pairs of entries behind sixteen addresses.

    Nothing is read, and there are zeros, from the `left`-th entry on.
    """
    word, flag = ir.IntType(32), ir.IntType(1)
    words, pairs = ir.VectorType(word, SIXTEEN), ir.VectorType(ir.IntType(16), _ENTRIES)
    numbers = ir.VectorType(ir.IntType(16), _ENTRIES)
    most = left.type(_ENTRIES)
    count = b.trunc(b.select(b.icmp_signed("<", left, most), left, most), numbers.element)
    places = ir.Constant(numbers, list(range(_ENTRIES)))
    mask = b.icmp_unsigned("<", places, _all(b, count, _ENTRIES))
    flags = ir.VectorType(flag, _ENTRIES)
    kind = ir.FunctionType(pairs, [pairs.as_pointer(), word, flags, pairs])
    load = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.load.v{_ENTRIES}i16.p0")
    zeros = ir.Constant(pairs, [0] * _ENTRIES)
    vectors = []
    for start in starts:
        address = b.bitcast(start, pairs.as_pointer())
        vectors.append(b.bitcast(b.call(load, [address, word(2), mask, zeros]), words))
    for bit in (1, 2, 4, 8):  # exchange that bit of a value's vector and of its place there
        low = [n if not n & bit else (n ^ bit) + SIXTEEN for n in range(SIXTEEN)]
        high = [n | bit if not n & bit else n + SIXTEEN for n in range(SIXTEEN)]
        for n in range(SIXTEEN):
            if not n & bit:
                a, c = vectors[n], vectors[n | bit]
                vectors[n] = b.shuffle_vector(a, c, ir.Constant(words, low))
                vectors[n | bit] = b.shuffle_vector(a, c, ir.Constant(words, high))
    return vectors


def _all(b: Any, value: Any, lanes: int = SIXTEEN) -> Any:
    """Return a vector of equal values."""
    kind = ir.VectorType(value.type, lanes)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _looked_up(b: Any, vector: Any, places: Any) -> Any:
    """Return the elements of a vector at the lowest four bits of `places`."""
    kind = ir.FunctionType(vector.type, [vector.type, places.type])
    name = "llvm.x86.avx512.permvar.sf.512"
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), [vector, places])


def _gathered(b: Any, data: Any, places: Any) -> Any:
    """Return the float32 numbers at sixteen places."""
    reals = ir.VectorType(ir.FloatType(), SIXTEEN)
    first, flags = ir.IntType(8).as_pointer(), ir.VectorType(ir.IntType(1), SIXTEEN)
    kind = ir.FunctionType(reals, [reals, first, places.type, flags, ir.IntType(32)])
    gather = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.mask.gather.dps.512")
    zeros, every = ir.Constant(reals, [0.0] * SIXTEEN), ir.Constant(flags, [1] * SIXTEEN)
    return b.call(gather, [zeros, b.bitcast(data, first), places, every, ir.IntType(32)(4)])


@intrinsic  # type: ignore[untyped-decorator]
def side_sums(
    typing: Any, entries: Any, row: Any, codebook: Any, side: Any, sums: Any, place: Any
) -> Any:
    """Write sum_j codebook[j, step_j] * side[atom_j] of one row to sums[place], of sixteen lanes.

    Each lane's sum runs over the row's entries in order. On any processor.

    Args:
        typing: numba's.
        entries: uint16 [N, n], contiguous: atom << 4 | step.
        row: int64.
        codebook: float32 [n, 16], contiguous.
        side: float32 [S, 16], contiguous.
        sums: float32 [M, 16], contiguous.
        place: int64.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        entries, codebook, side, sums = (
            context.make_array(signature.args[n])(context, builder, arguments[n])
            for n in (0, 2, 3, 4)
        )
        b, number, real = builder, ir.IntType(64), ir.FloatType()
        reals, shift = ir.VectorType(real, SIXTEEN), number(_ATOM)
        width = cgutils.unpack_tuple(b, entries.shape)[1]
        start = b.gep(entries.data, [b.mul(arguments[1], width)])
        total = cgutils.alloca_once_value(b, ir.Constant(reals, [0.0] * SIXTEEN))
        with cgutils.for_range(b, width) as loop:
            entry = b.zext(b.load(b.gep(start, [loop.index])), number)
            step = b.or_(b.shl(loop.index, shift), b.and_(entry, number(SIXTEEN - 1)))
            factor = _all(b, b.load(b.gep(codebook.data, [step])))
            first = b.gep(side.data, [b.shl(b.lshr(entry, shift), shift)])
            values = b.load(b.bitcast(first, reals.as_pointer()), align=4)
            b.store(b.fadd(b.load(total), b.fmul(factor, values)), total)
        out = b.gep(sums.data, [b.shl(arguments[5], shift)])
        b.store(b.load(total), b.bitcast(out, reals.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(entries, types.int64, codebook, side, sums, types.int64), emit
