"""Vectors from and to arrays. No place is checked: the callers compute it from lengths that were."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..jit import inline
from .lanes import I32, LANES, LLVM, IntRows, Rows, Vector, vector_intrinsic

_BYTES = ir.VectorType(ir.IntType(8), LANES)


def _address(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    start = builder.gep(data, [builder.mul(row, ir.Constant(row.type, LANES))])
    return builder.bitcast(start, LLVM[Vector(array_type.dtype)].as_pointer())


@inline
def rows(count: int) -> Rows:
    """Rows that begin at multiples of 64 bytes, so that no vector lies across two cache lines."""
    raw = np.empty((count + 1) * LANES, np.float32)
    skip = -raw.ctypes.data % 64 // 4
    return raw[skip : skip + count * LANES].reshape(count, LANES)


@inline
def int_rows(count: int) -> IntRows:
    """The same for int32."""
    return rows(count).view(np.int32)


@vector_intrinsic
def load(typing: Any, array: Any, row: Any) -> Any:
    """A row of a float32 or int32 array ``(rows, LANES)``."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        row = context.cast(builder, values[1], sig.args[1], types.intp)
        return builder.load(_address(context, builder, sig.args[0], values[0], row), align=4)

    return Vector(array.dtype)(array, row), build


@vector_intrinsic
def store(typing: Any, array: Any, row: Any, vector: Any) -> Any:
    """Put a vector into a row."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        row = context.cast(builder, values[1], sig.args[1], types.intp)
        builder.store(values[2], _address(context, builder, sig.args[0], values[0], row), align=4)
        return context.get_dummy_value()

    return (types.void(array, row, vector), build) if vector == Vector(array.dtype) else None


@vector_intrinsic
def align_stack(typing: Any) -> Any:
    """Let the vectors that find no register lie at multiples of 64 bytes in the stack frame of the calling function."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        slot = cgutils.alloca_once(builder, LLVM[I32])  # type: ignore[no-untyped-call]
        slot.align = 64
        kind = ir.FunctionType(ir.VoidType(), [slot.type])
        builder.call(ir.InlineAsm(kind, "", "r", side_effect=True), [slot])
        return context.get_dummy_value()

    return types.void(), build


def _exchange(builder: Any, rows: list[Any], span: int) -> None:
    """One step of a transposition: swap the off-diagonal squares of ``span`` in all squares of twice that."""
    a_order = [k + LANES - span if k & span else k for k in range(LANES)]
    b_order = [k + LANES if k & span else k + span for k in range(LANES)]
    order = ir.VectorType(ir.IntType(32), LANES)
    for i in range(LANES):
        if not i & span:
            a, b = rows[i], rows[i + span]
            rows[i] = builder.shuffle_vector(a, b, ir.Constant(order, a_order))
            rows[i + span] = builder.shuffle_vector(a, b, ir.Constant(order, b_order))


@vector_intrinsic
def transpose(typing: Any, source: Any, starts: Any, offset: Any, target: Any, first: Any, stride: Any) -> Any:
    """Transpose ``LANES`` runs of ``LANES`` elements; positions are in elements from the start of an array.

    Run i is at ``starts[i] + offset`` in ``source``; what is at place j of each goes to ``first + stride * j`` in
    ``target``. Both arrays hold the same scalars, ``starts`` is int64.
    """

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        source, starts, target = (context.make_array(sig.args[i])(context, builder, values[i]).data for i in (0, 1, 3))
        offset, first, stride = (context.cast(builder, values[i], sig.args[i], types.intp) for i in (2, 4, 5))
        pointer = LLVM[Vector(sig.args[0].dtype)].as_pointer()
        word = offset.type
        rows = []
        for i in range(LANES):
            start = builder.load(builder.gep(starts, [ir.Constant(word, i)]))
            address = builder.gep(source, [builder.add(start, offset)])
            rows.append(builder.load(builder.bitcast(address, pointer), align=4))
        for span in (8, 4, 2, 1):
            _exchange(builder, rows, span)
        for i, row in enumerate(rows):
            address = builder.gep(target, [builder.add(first, builder.mul(stride, ir.Constant(word, i)))])
            builder.store(row, builder.bitcast(address, pointer), align=4)
        return context.get_dummy_value()

    return types.void(source, starts, offset, target, first, stride), build


def _place(context: Any, builder: Any, sig: Any, values: Any) -> Any:
    """Where ``LANES`` bytes begin; an array and a place are the first two arguments."""
    data = context.make_array(sig.args[0])(context, builder, values[0]).data
    at = context.cast(builder, values[1], sig.args[1], types.intp)
    return builder.bitcast(builder.gep(data, [at]), _BYTES.as_pointer())


@vector_intrinsic
def get_bytes(typing: Any, raw: Any, at: Any) -> Any:
    """``LANES`` bytes from ``at`` on, as integers 0 .. 255."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return builder.zext(builder.load(_place(context, builder, sig, values), align=1), LLVM[I32])

    return I32(raw, at), build


@vector_intrinsic
def copy_bytes(typing: Any, source: Any, start: Any, target: Any, at: Any, count: Any) -> Any:
    """``count`` bytes from place ``start`` of one array to place ``at`` of another."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        places = []
        for i in (0, 2):
            data = context.make_array(sig.args[i])(context, builder, values[i]).data
            places.append(builder.gep(data, [context.cast(builder, values[i + 1], sig.args[i + 1], types.intp)]))
        count = context.cast(builder, values[4], sig.args[4], types.intp)
        cgutils.raw_memcpy(builder, places[1], places[0], count, 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(source, start, target, at, count), build


@vector_intrinsic
def put_bytes(typing: Any, out: Any, at: Any, codes: Any) -> Any:
    """The low byte of each lane, from ``at`` on."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        builder.store(builder.trunc(values[2], _BYTES), _place(context, builder, sig, values), align=1)
        return context.get_dummy_value()

    return types.void(out, at, codes), build
