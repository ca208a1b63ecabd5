"""The vector type that the encoders are written in: ``LANES`` float32, int32 or booleans.

It is an LLVM vector, so that running sums stay in registers across a loop over elements, whatever the vectorizer of
LLVM makes of loops over lanes. Operators work lane by lane, each rounded once; a scalar operand is repeated in all
lanes. Branches are ``select``.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numpy.typing import NDArray

LANES = 16

Rows = NDArray[np.float32]  # (rows, LANES)
IntRows = NDArray[np.int32]
Floats = Any  # a vector of float32; compiled code only
Ints = Any  # a vector of int32
Mask = Any  # a vector of booleans


def vector_intrinsic(define: Callable[..., Any]) -> Any:
    """``numba.extending.intrinsic``, whose type hints describe the definition and not the call."""
    return intrinsic(define)


class Vector(types.Type):
    """The Numba type of ``LANES`` equal scalars."""

    def __init__(self, scalar: types.Type) -> None:
        self.scalar = scalar
        super().__init__(name=f"vector({scalar})")


F32 = Vector(types.float32)
I32 = Vector(types.int32)
BOOL = Vector(types.boolean)
LLVM = {
    F32: ir.VectorType(ir.FloatType(), LANES),
    I32: ir.VectorType(ir.IntType(32), LANES),
    BOOL: ir.VectorType(ir.IntType(1), LANES),
}


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, LLVM[vector])  # type: ignore[no-untyped-call]


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(value.type, LANES)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, single, order)


def _widened(context: Any, builder: Any, value: Any, found: Any, vector: Vector) -> Any:
    """An operand as a vector: a scalar is cast to the vector's scalar and repeated."""
    return value if found == vector else _splat(builder, context.cast(builder, value, found, vector.scalar))


def _vector_of(a: Any, b: Any) -> Any:
    """The common vector type of two operands, else None: a scalar float must be float32, or the sum were float64."""
    vector, other = (a, b) if isinstance(a, Vector) else (b, a)
    if not isinstance(vector, Vector):
        return None
    matches = other in (vector, vector.scalar) or (vector == I32 and isinstance(other, types.Integer))
    return vector if matches else None


def _define(operation: Any, emit: dict[Vector, Callable[[Any, Any, Any], Any]], result: Any = None) -> None:
    """Teach Numba a binary operator on vectors; ``emit`` holds what builds its LLVM instruction for each type."""

    @type_callable(operation)
    def typing(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            vector = _vector_of(a, b)
            return (result or vector)(a, b) if vector in emit else None

        return typer

    def lower(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        vector = _vector_of(*sig.args)
        a, b = (_widened(context, builder, value, found, vector) for value, found in zip(values, sig.args))
        return emit[vector](builder, a, b)

    for left, right in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(operation, left, right)(lower)  # type: ignore[no-untyped-call]


def _call(name: str) -> Callable[[Any, Any, Any], Any]:
    return lambda builder, a, b: getattr(builder, name)(a, b)


def _compare(sign: str) -> dict[Vector, Callable[[Any, Any, Any], Any]]:
    return {
        F32: lambda builder, a, b: builder.fcmp_ordered(sign, a, b),
        I32: lambda builder, a, b: builder.icmp_signed(sign, a, b),
    }


def _call_unordered(builder: Any, a: Any, b: Any) -> Any:
    return builder.fcmp_unordered("!=", a, b)


_define(operator.add, {F32: _call("fadd"), I32: _call("add")})
_define(operator.sub, {F32: _call("fsub"), I32: _call("sub")})
_define(operator.mul, {F32: _call("fmul"), I32: _call("mul")})
_define(operator.truediv, {F32: _call("fdiv")})
_define(operator.and_, {I32: _call("and_"), BOOL: _call("and_")})
_define(operator.or_, {I32: _call("or_"), BOOL: _call("or_")})
_define(operator.lshift, {I32: _call("shl")})
_define(operator.rshift, {I32: _call("lshr")})  # of the bit pattern: no sign is carried along
_define(operator.gt, _compare(">"), BOOL)
_define(operator.lt, _compare("<"), BOOL)
_define(operator.le, _compare("<="), BOOL)
_define(operator.ge, _compare(">="), BOOL)
_define(operator.eq, _compare("=="), BOOL)
_define(operator.ne, {F32: _call_unordered, I32: _compare("!=")[I32]}, BOOL)


@vector_intrinsic
def splat(typing: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return _splat(builder, values[0])

    return (F32(types.float32), build) if value == types.float32 else None


@vector_intrinsic
def select(typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """Lane by lane ``a`` where the mask is set, else ``b``; one of the two may be a scalar."""
    vector = _vector_of(a, b)

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        chosen = (_widened(context, builder, value, found, vector) for value, found in zip(values[1:], sig.args[1:]))
        return builder.select(values[0], *chosen)

    return (vector(mask, a, b), build) if vector is not None else None


def _test(sign: str, mask_bits: int) -> Any:
    def define(typing: Any, mask: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            packed = builder.bitcast(values[0], ir.IntType(LANES))
            return builder.icmp_unsigned(sign, packed, ir.Constant(ir.IntType(LANES), mask_bits))

        return (types.boolean(mask), build) if mask == BOOL else None

    return vector_intrinsic(define)


any_lane: Callable[[Mask], bool] = _test("!=", 0)
all_lanes: Callable[[Mask], bool] = _test("==", (1 << LANES) - 1)


def _math(name: str) -> Any:
    def define(typing: Any, x: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            function_type = ir.FunctionType(values[0].type, [values[0].type])
            full_name = f"{name}.v{LANES}f32"
            function = cgutils.get_or_insert_function(builder.module, function_type, full_name)  # type: ignore[no-untyped-call]
            return builder.call(function, values)

        return (F32(x), build) if x == F32 else None

    return vector_intrinsic(define)


magnitude = _math("llvm.fabs")
root = _math("llvm.sqrt")


def _convert(source: Vector, target: Vector, name: str) -> Any:
    def define(typing: Any, x: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            return getattr(builder, name)(values[0], LLVM[target])

        return (target(x), build) if x == source else None

    return vector_intrinsic(define)


bits = _convert(F32, I32, "bitcast")
from_bits = _convert(I32, F32, "bitcast")
to_float = _convert(I32, F32, "sitofp")
truncate = _convert(F32, I32, "fptosi")  # what an int32 cannot hold gives anything


def _reduce(name: str, vector: Any, flags: tuple[str, ...] = ()) -> Any:
    def define(typing: Any, x: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            kind = ir.FunctionType(LLVM[vector].element, [LLVM[vector]])
            function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
            return builder.call(function, values, fastmath=flags)

        return (vector.scalar(x), build) if x == vector else None

    return vector_intrinsic(define)


greatest_int_lane = _reduce(f"llvm.vector.reduce.smax.v{LANES}i32", I32)
# These two want vectors without NaN, and may lose the sign of a zero.
least_lane = _reduce(f"llvm.vector.reduce.fmin.v{LANES}f32", F32, ("nnan",))
greatest_lane = _reduce(f"llvm.vector.reduce.fmax.v{LANES}f32", F32, ("nnan",))


@vector_intrinsic
def positions(typing: Any, low: Any, high: Any) -> Any:
    """The set lanes of two masks as the bits of an int64."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        wide = ir.IntType(64)
        parts = [builder.zext(builder.bitcast(mask, ir.IntType(LANES)), wide) for mask in values]
        return builder.or_(parts[0], builder.shl(parts[1], ir.Constant(wide, LANES)))

    return types.int64(low, high), build


@vector_intrinsic
def first_position(typing: Any, positions: Any) -> Any:
    """The number of the lowest bit that is set, 64 if none is."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(positions), build


@vector_intrinsic
def lane_numbers(typing: Any) -> Any:
    """0, 1, 2, ..."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return ir.Constant(LLVM[I32], list(range(LANES)))

    return I32(), build


@vector_intrinsic
def first_lane(typing: Any, x: Any) -> Any:
    """The scalar in lane 0."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return builder.extract_element(values[0], ir.Constant(ir.IntType(32), 0))

    return x.scalar(x), build
