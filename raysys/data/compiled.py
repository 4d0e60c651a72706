"""How loops are compiled: numba, without the GIL, cached on disk where there is a place for it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile without the GIL, cached on disk where numba finds a place to write to."""
    return _jit(function, fastmath=False)


def compiled_fast(function: F) -> F:
    """Like `compiled`, and free to reorder the sum of a dot product."""
    return _jit(function, fastmath=True)


def _jit(function: F, *, fastmath: bool) -> F:
    try:
        return cast(F, numba.njit(nogil=True, cache=True, fastmath=fastmath)(function))
    except RuntimeError:  # numba: "no locator available", an install without any writable folder
        return cast(F, numba.njit(nogil=True, fastmath=fastmath)(function))


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
