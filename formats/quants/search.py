"""The search procedures of ggml-quants.c, for sixteen sub-blocks at a time, and the vector type they are written in.

A procedure here reads like its scalar original, but each variable is a vector of ``LANES`` values, one for each of
sixteen sub-blocks (of sixteen different blocks). A lane does exactly the operations of the original in their order,
each rounded once to float32, so its result has the same bits; branches are selects. Elements lie in scratch arrays
``(rows, LANES)``, element i of a sub-block in row ``first + i``.

The vector type is an LLVM vector, so that running sums stay in registers across the loop over the elements, whatever
the vectorizer of LLVM makes of loops over lanes.

No code is kept during a search, only the numbers that it was made from: whoever needs the search's own codes makes
them again, once, instead of a copy at each improvement.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numpy import float32, int32
from numpy.typing import NDArray

from ..jit import inline

LANES = 16

Rows = NDArray[np.float32]  # (rows, LANES)
Floats = Any  # a vector of float32; compiled code only
Ints = Any  # a vector of int32
Mask = Any  # a vector of booleans


def _intrinsic(define: Callable[..., Any]) -> Any:
    """``numba.extending.intrinsic``, whose type hints describe the definition and not the call."""
    return intrinsic(define)


class _Vector(types.Type):
    """The Numba type of ``LANES`` equal scalars."""

    def __init__(self, scalar: types.Type) -> None:
        self.scalar = scalar
        super().__init__(name=f"vector({scalar})")


_F = _Vector(types.float32)
_I = _Vector(types.int32)
_B = _Vector(types.boolean)
_LLVM = {
    _F: ir.VectorType(ir.FloatType(), LANES),
    _I: ir.VectorType(ir.IntType(32), LANES),
    _B: ir.VectorType(ir.IntType(1), LANES),
}


@register_model(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, _LLVM[vector])  # type: ignore[no-untyped-call]


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(value.type, LANES)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, single, order)


def _widened(context: Any, builder: Any, value: Any, found: Any, vector: _Vector) -> Any:
    """An operand as a vector: a scalar is cast to the vector's scalar and repeated."""
    return value if found == vector else _splat(builder, context.cast(builder, value, found, vector.scalar))


def _vector_of(a: Any, b: Any) -> Any:
    """The common vector type of two operands, else None: a scalar float must be float32, or the sum were float64."""
    vector, other = (a, b) if isinstance(a, _Vector) else (b, a)
    if not isinstance(vector, _Vector):
        return None
    matches = other in (vector, vector.scalar) or (vector == _I and isinstance(other, types.Integer))
    return vector if matches else None


def _define(operation: Any, emit: dict[_Vector, Callable[[Any, Any, Any], Any]], result: Any = None) -> None:
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

    for left, right in ((_Vector, _Vector), (_Vector, types.Number), (types.Number, _Vector)):
        lower_builtin(operation, left, right)(lower)  # type: ignore[no-untyped-call]


def _call(name: str) -> Callable[[Any, Any, Any], Any]:
    return lambda builder, a, b: getattr(builder, name)(a, b)


def _compare(sign: str) -> dict[_Vector, Callable[[Any, Any, Any], Any]]:
    return {
        _F: lambda builder, a, b: builder.fcmp_ordered(sign, a, b),
        _I: lambda builder, a, b: builder.icmp_signed(sign, a, b),
    }


def _call_unordered(builder: Any, a: Any, b: Any) -> Any:
    return builder.fcmp_unordered("!=", a, b)


_define(operator.add, {_F: _call("fadd"), _I: _call("add")})
_define(operator.sub, {_F: _call("fsub"), _I: _call("sub")})
_define(operator.mul, {_F: _call("fmul"), _I: _call("mul")})
_define(operator.truediv, {_F: _call("fdiv")})
_define(operator.and_, {_I: _call("and_"), _B: _call("and_")})
_define(operator.or_, {_I: _call("or_"), _B: _call("or_")})
_define(operator.lshift, {_I: _call("shl")})
_define(operator.rshift, {_I: _call("lshr")})  # of the bit pattern: no sign is carried along
_define(operator.gt, _compare(">"), _B)
_define(operator.lt, _compare("<"), _B)
_define(operator.le, _compare("<="), _B)
_define(operator.ge, _compare(">="), _B)
_define(operator.eq, _compare("=="), _B)
_define(operator.ne, {_F: _call_unordered, _I: _compare("!=")[_I]}, _B)


@_intrinsic
def splat(typing: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return _splat(builder, values[0])

    return (_F(types.float32), build) if value == types.float32 else None


@_intrinsic
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

        return (types.boolean(mask), build) if mask == _B else None

    return _intrinsic(define)


any_lane: Callable[[Mask], bool] = _test("!=", 0)
all_lanes: Callable[[Mask], bool] = _test("==", (1 << LANES) - 1)


def _math(name: str) -> Any:
    def define(typing: Any, x: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            function_type = ir.FunctionType(values[0].type, [values[0].type])
            full_name = f"{name}.v{LANES}f32"
            function = cgutils.get_or_insert_function(builder.module, function_type, full_name)  # type: ignore[no-untyped-call]
            return builder.call(function, values)

        return (_F(x), build) if x == _F else None

    return _intrinsic(define)


magnitude = _math("llvm.fabs")
root = _math("llvm.sqrt")


def _convert(source: _Vector, target: _Vector, name: str) -> Any:
    def define(typing: Any, x: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            return getattr(builder, name)(values[0], _LLVM[target])

        return (target(x), build) if x == source else None

    return _intrinsic(define)


bits = _convert(_F, _I, "bitcast")
from_bits = _convert(_I, _F, "bitcast")
to_float = _convert(_I, _F, "sitofp")


def _address(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    start = builder.gep(data, [builder.mul(row, ir.Constant(row.type, LANES))])
    return builder.bitcast(start, _LLVM[_Vector(array_type.dtype)].as_pointer())


@_intrinsic
def load(typing: Any, array: Any, row: Any) -> Any:
    """A row of a float32 or int32 array ``(rows, LANES)``; the row is not checked."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        row = context.cast(builder, values[1], sig.args[1], types.intp)
        return builder.load(_address(context, builder, sig.args[0], values[0], row), align=4)

    return _Vector(array.dtype)(array, row), build


@_intrinsic
def store(typing: Any, array: Any, row: Any, vector: Any) -> Any:
    """Put a vector into a row; the row is not checked."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        row = context.cast(builder, values[1], sig.args[1], types.intp)
        builder.store(values[2], _address(context, builder, sig.args[0], values[0], row), align=4)
        return context.get_dummy_value()

    return (types.void(array, row, vector), build) if vector == _Vector(array.dtype) else None


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


@_intrinsic
def transpose(typing: Any, source: Any, starts: Any, offset: Any, target: Any, first: Any, stride: Any) -> Any:
    """Transpose ``LANES`` runs of ``LANES`` elements; positions are in elements from the start of an array.

    Run i is at ``starts[i] + offset`` in ``source``; what is at place j of each goes to ``first + stride * j`` in
    ``target``. Both arrays hold the same scalars, ``starts`` is int64. Nothing is checked.
    """

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        source, starts, target = (context.make_array(sig.args[i])(context, builder, values[i]).data for i in (0, 1, 3))
        offset, first, stride = (context.cast(builder, values[i], sig.args[i], types.intp) for i in (2, 4, 5))
        pointer = _LLVM[_Vector(sig.args[0].dtype)].as_pointer()
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


ZERO = float32(0)
ONE = float32(1)
MINUS_ONE = float32(-1)
INFINITY = float32(np.inf)
NAN = float32(np.nan)
TENTH = float32(0.1)
EPSILON = float32(1e-15)  # GROUP_MAX_EPS: below it a sub-block counts as zero
MAGIC = float32(12582912)  # 1.5 * 2**23: adding it rounds to an integer, ties to even
EXACT = float32(4194302)  # up to here the sum with MAGIC has a unit in the last place of 1


@inline
def clamp(codes: Ints, low: int | np.int32, high: int | np.int32) -> Ints:
    """Limit integers to ``low .. high``."""
    codes = select(codes < low, low, codes)
    return select(codes > high, high, codes)


@inline
def nearest(v: Floats) -> Ints:
    """``nearest_int``: half to even below 2**22; beyond, and for infinity and NaN, the same garbage as ggml's."""
    return (bits(v + MAGIC) & 0x7FFFFF) - 0x400000


@inline
def nearest_float(v: Floats, low: np.float32, high: np.float32) -> Floats:
    """``nearest_int`` clamped to ``low .. high``, as floats, where all ``abs(v) <= EXACT``: four operations for six."""
    rounded = (v + MAGIC) - MAGIC
    rounded = select(rounded > low, rounded, low)
    return select(rounded < high, rounded, high)


@inline
def half(v: Floats) -> tuple[Ints, Floats]:
    """The float16 nearest to v, ties to even, as its 16 bits and as float32."""
    code = bits(v)
    sign = code & -0x80000000
    size = code & 0x7FFFFFFF
    # Round the mantissa to ten bits; a carry into the exponent is right.
    normal = (size + (0xFFF + ((size >> 13) & 1))) & ~0x1FFF
    # The unit in the last place of 0.5 is the least positive float16.
    anchored = from_bits(size) + float32(0.5)
    is_small = size < 0x38800000
    is_infinite = normal > 0x477FE000
    value = select(is_small, bits(anchored - float32(0.5)), select(is_infinite, 0x7F800000, normal))
    short = select(is_small, bits(anchored) - 0x3F000000, select(is_infinite, 0x7C00, (normal - 0x38000000) >> 13))
    is_nan = size > 0x7F800000
    value = select(is_nan, 0x7FC00000, value)
    short = select(is_nan, 0x7E00, short)
    return short | (sign >> 16), from_bits(value | sign)


@inline
def asymmetric_codes(x: Floats, inverse: Floats, low: Floats, top: int) -> Ints:
    """The codes 0 .. top that ``asymmetric`` chose: a sub-block of equal elements has ``inverse`` 0."""
    return clamp(nearest(inverse * (x - low)), 0, top)


@inline
def _is_tame(low: Floats, high: Floats) -> bool:
    """Are all numbers between two vectors inside the range of ``nearest_float``? Rounding keeps their order."""
    return all_lanes((magnitude(low) <= EXACT) & (magnitude(high) <= EXACT))


@inline
def _extent(x: Rows, w: Rows, first: int, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Least and greatest element, sum of the weights, sum of the weighted elements."""
    low = high = load(x, first)
    sum_w = load(w, 0)
    sum_x = sum_w * low
    for i in range(1, count):
        value, weight = load(x, first + i), load(w, i)
        low = select(value < low, value, low)
        high = select(value > high, value, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * value
    return low, high, sum_w, sum_x


@inline
def _asymmetric_sums(
    x: Rows, w: Rows, codes: Rows, first: int, count: int, inverse: Floats, low: Floats, top: np.float32, is_tame: bool
) -> tuple[Floats, Floats, Floats]:
    """Choose codes; returns the weighted sums of code, code squared and code times element."""
    sum_l = sum_l2 = sum_xl = splat(ZERO)
    for i in range(count):
        value, weight = load(x, first + i), load(w, i)
        scaled = inverse * (value - low)
        code = nearest_float(scaled, ZERO, top) if is_tame else to_float(clamp(nearest(scaled), 0, int32(top)))
        store(codes, i, code)
        weighted = weight * code
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * code
        sum_xl = sum_xl + weighted * value
    return sum_l, sum_l2, sum_xl


@inline
def _asymmetric_error(
    x: Rows, w: Rows, codes: Rows, first: int, count: int, scale: Floats, low: Floats, is_absolute: bool
) -> Floats:
    error = splat(ZERO)
    for i in range(count):
        off = (scale * load(codes, i) + low) - load(x, first + i)
        error = error + load(w, i) * (magnitude(off) if is_absolute else off * off)
    return error


@inline
def asymmetric(
    x: Rows,
    w: Rows,
    codes: Rows,
    first: int,
    count: int,
    top: int,
    start: np.float32,
    step: np.float32,
    steps: int,
    is_absolute: bool,
) -> tuple[Floats, Floats, Floats, Floats]:
    """``make_qkx2_quants`` and ``make_qkx3_quants``: fit ``scale * code - minimum`` with codes 0 .. top.

    Elements are rows ``first .. first + count`` of ``x``, weights rows ``0 .. count`` of ``w``; ``codes`` is scratch.
    Tries the inverse scales ``(start + step * s + top) / range`` for s = 0 .. steps and keeps the least weighted
    error, absolute or squared. Returns scale and minimum (>= 0), then what ``asymmetric_codes`` needs.
    """
    limit = float32(top)
    least, high, sum_w, sum_x = _extent(x, w, first, count)
    low = select(least > ZERO, ZERO, least)
    is_flat = high == low
    greatest = high
    high = select(is_flat, low + ONE, high)  # keeps the numbers of the unused lane tame
    inverse = limit / (high - low)
    best_inverse, best_low = select(is_flat, ZERO, inverse), low
    scale = ONE / inverse
    _asymmetric_sums(x, w, codes, first, count, inverse, low, limit, False)
    error = _asymmetric_error(x, w, codes, first, count, scale, low, is_absolute)
    error = select(is_flat, splat(-INFINITY), error)
    scale = select(is_flat, ZERO, scale)
    for s in range(steps + 1):
        inverse = ((start + step * float32(s)) + limit) / (high - low)
        is_tame = _is_tame(inverse * (least - low), inverse * (greatest - low))
        if is_tame:
            sum_l, sum_l2, sum_xl = _asymmetric_sums(x, w, codes, first, count, inverse, low, limit, True)
        else:
            sum_l, sum_l2, sum_xl = _asymmetric_sums(x, w, codes, first, count, inverse, low, limit, False)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        is_above = new_low > ZERO
        new_low = select(is_above, ZERO, new_low)
        new_scale = select(is_above, sum_xl / sum_l2, new_scale)
        new_error = _asymmetric_error(x, w, codes, first, count, new_scale, new_low, is_absolute)
        is_better = (determinant > ZERO) & (new_error < error)
        error = select(is_better, new_error, error)
        scale = select(is_better, new_scale, scale)
        best_inverse = select(is_better, inverse, best_inverse)
        best_low = select(is_better, low, best_low)
        low = select(is_better, new_low, low)  # the next steps search from the new minimum, as the original does
    return scale, low * MINUS_ONE, best_inverse, best_low


@inline
def _signed_peak(x: Rows, first: int, count: int) -> tuple[Floats, Floats]:
    """The greatest magnitude and the first element that has it."""
    peak = extreme = splat(ZERO)
    for i in range(count):
        value = load(x, first + i)
        size = magnitude(value)
        is_larger = size > peak
        peak = select(is_larger, size, peak)
        extreme = select(is_larger, value, extreme)
    return peak, extreme


@inline
def symmetric_codes(x: Floats, inverse: Floats, top: int) -> Ints:
    """The codes 0 .. 2 top - 1 that ``symmetric`` chose: all 0 in a sub-block of zeros, which has ``inverse`` NaN."""
    code = clamp(nearest(inverse * x), -top, top - 1) + top
    return select(inverse != inverse, 0, code)


@inline
def _symmetric_sums(
    x: Rows, w: Rows, wx: Rows, first: int, count: int, inverse: Floats, top: np.float32, is_tame: bool
) -> tuple[Floats, Floats]:
    sum_lx = sum_l2 = splat(ZERO)
    for i in range(count):
        scaled = inverse * load(x, first + i)
        if is_tame:
            code = nearest_float(scaled, -top, top - ONE)
        else:
            code = to_float(clamp(nearest(scaled), -int32(top), int32(top) - 1))
        sum_lx = sum_lx + load(wx, i) * code
        sum_l2 = sum_l2 + (load(w, i) * code) * code
    return sum_lx, sum_l2


@inline
def symmetric(x: Rows, w: Rows, wx: Rows, first: int, count: int, top: int) -> tuple[Floats, Floats]:
    """``make_qx_quants`` with rmse_type 1: fit ``scale * code`` with codes -top .. top - 1.

    Elements are rows ``first .. first + count`` of ``x``, weights rows ``0 .. count`` of ``w``; ``wx`` is scratch.
    Returns the scale, which may be negative, and the inverse for ``symmetric_codes``.
    """
    limit = float32(top)
    peak, extreme = _signed_peak(x, first, count)
    is_zero = peak < EPSILON
    extreme = select(is_zero, ONE, extreme)  # keeps the numbers of the unused lane tame
    is_tame = all_lanes(peak < INFINITY)  # not so where these elements are scales that overflowed
    for i in range(count):
        store(wx, i, load(w, i) * load(x, first + i))
    best_inverse = -limit / extreme
    sum_lx, sum_l2 = _symmetric_sums(x, w, wx, first, count, best_inverse, limit, False)
    scale = select(sum_l2 == ZERO, ZERO, sum_lx / sum_l2)
    best = scale * sum_lx
    for s in range(-9, 10):
        if s == 0:
            continue
        inverse = -(limit + TENTH * float32(s)) / extreme
        if is_tame:
            sum_lx, sum_l2 = _symmetric_sums(x, w, wx, first, count, inverse, limit, True)
        else:
            sum_lx, sum_l2 = _symmetric_sums(x, w, wx, first, count, inverse, limit, False)
        is_better = (sum_l2 > ZERO) & (sum_lx * sum_lx > best * sum_l2)
        scale = select(is_better, sum_lx / sum_l2, scale)
        best = select(is_better, scale * sum_lx, best)
        best_inverse = select(is_better, inverse, best_inverse)
    return select(is_zero, ZERO, scale), select(is_zero, NAN, best_inverse)


@inline
def _start_refined(x: Rows, codes: Rows, sums: Rows, first: int, count: int, sub: int) -> None:
    """The codes for the inverse scale that the extreme element gives, and their two sums in two rows of ``sums``."""
    peak, extreme = _signed_peak(x, first, count)
    inverse = float32(-4) / select(peak < EPSILON, ONE, extreme)
    sum_lx = sum_l2 = splat(ZERO)
    for i in range(first, first + count):
        value = load(x, i)
        weight = value * value
        code = nearest_float(inverse * value, float32(-4), float32(3))
        store(codes, i, code)
        sum_lx = sum_lx + (weight * value) * code
        sum_l2 = sum_l2 + (weight * code) * code
    store(sums, 2 * sub, sum_lx)
    store(sums, 2 * sub + 1, sum_l2)


@inline
def _refine_symmetric(x: Rows, codes: Rows, sums: Rows, i: int, sub: int) -> bool:
    """Give one element the code that is best while the others keep theirs; has any lane changed?"""
    value, code = load(x, i), load(codes, i)
    sum_lx, sum_l2 = load(sums, 2 * sub), load(sums, 2 * sub + 1)
    weight = value * value
    weighted = weight * value
    lx = sum_lx - weighted * code
    l2 = sum_l2 - (weight * code) * code
    new = to_float(clamp(nearest((value * l2) / lx), -4, 3))
    is_open = (lx > ZERO) & (new != code)
    lx = lx + weighted * new
    l2 = l2 + (weight * new) * new
    is_better = is_open & (l2 > ZERO) & ((lx * lx) * sum_l2 > (sum_lx * sum_lx) * l2)
    store(codes, i, select(is_better, new, code))
    store(sums, 2 * sub, select(is_better, lx, sum_lx))
    store(sums, 2 * sub + 1, select(is_better, l2, sum_l2))
    return any_lane(is_better)


@inline
def _finish_refined(x: Rows, codes: Rows, sums: Rows, first: int, count: int, sub: int) -> Floats:
    peak, _ = _signed_peak(x, first, count)
    is_zero = peak < EPSILON
    for i in range(first, first + count):
        store(codes, i, select(is_zero, ZERO, load(codes, i) + float32(4)))
    sum_lx, sum_l2 = load(sums, 2 * sub), load(sums, 2 * sub + 1)
    return select((sum_l2 > ZERO) & (peak >= EPSILON), sum_lx / sum_l2, ZERO)


@inline
def refined(x: Rows, codes: Rows, sums: Rows, scales: Rows, begin: int, end: int, count: int) -> None:
    """``make_q3_quants``: fit ``scale * code`` with codes -4 .. 3, weighted by the squares, to several sub-blocks.

    Sub-block s has the rows ``s * count .. (s + 1) * count`` of ``x``. Its codes (as floats, 0 .. 7; in a sub-block
    of zeros all 0) go to the same rows of ``codes``, its scale to row s of ``scales``; ``sums`` is scratch. The
    sub-blocks take turns, because a step needs all results of the step before in the same sub-block.
    """
    for sub in range(begin, end):
        _start_refined(x, codes, sums, sub * count, count, sub)
    for _ in range(5):
        # A lane without a change stays as it is in all later passes, so the lanes may go on together.
        has_changed = False
        for i in range(count):
            for sub in range(begin, end):
                has_changed |= _refine_symmetric(x, codes, sums, sub * count + i, sub)
        if not has_changed:
            break
    for sub in range(begin, end):
        store(scales, sub, _finish_refined(x, codes, sums, sub * count, count, sub))


@inline
def _positive_start(x: Rows, w: Rows, count: int, top: np.float32, greatest: Floats) -> Floats:
    """The inverse scale with the least weighted squared error, of nine around ``top / greatest``."""
    best_inverse = top / greatest
    error = splat(ZERO)
    scale = ONE / best_inverse
    for i in range(count):
        # The first codes are bytes and not limited to top.
        off = load(x, i) - scale * to_float(nearest(best_inverse * load(x, i)) & 0xFF)
        error = error + (load(w, i) * off) * off
    for s in range(-4, 5):
        if s == 0:
            continue
        inverse = (TENTH * float32(s) + top) / greatest
        scale = ONE / inverse
        new_error = splat(ZERO)
        for i in range(count):
            code = nearest(inverse * load(x, i))
            off = load(x, i) - scale * to_float(select(code < int32(top), code, int32(top)))
            new_error = new_error + (load(w, i) * off) * off
        is_better = new_error < error
        error = select(is_better, new_error, error)
        best_inverse = select(is_better, inverse, best_inverse)
    return best_inverse


@inline
def _refine_positive(
    x: Rows, w: Rows, codes: NDArray[np.int32], count: int, top: int, sum_lx: Floats, sum_l2: Floats
) -> tuple[Floats, Floats, bool]:
    has_changed = False
    for i in range(count):
        value, weight, code = load(x, i), load(w, i), load(codes, i)
        weighted, level = weight * value, to_float(code)
        lx = sum_lx - weighted * level
        l2 = sum_l2 - (weight * level) * level
        new = nearest((value * l2) / lx)
        new = select(new < top, new, top)
        level = to_float(new)
        is_open = (lx > ZERO) & (l2 > ZERO) & (new != code)
        lx = lx + weighted * level
        l2 = l2 + (weight * level) * level
        is_better = is_open & ((lx * lx) * sum_l2 > (sum_lx * sum_lx) * l2)
        store(codes, i, select(is_better, new & 0xFF, code))
        sum_lx = select(is_better, lx, sum_lx)
        sum_l2 = select(is_better, l2, sum_l2)
        has_changed |= any_lane(is_better)
    return sum_lx, sum_l2, has_changed


@inline
def positive(x: Rows, w: Rows, codes: NDArray[np.int32], count: int, top: int) -> Floats:
    """``make_qp_quants``: fit ``scale * code`` to numbers >= 0 with codes 0 .. top. Returns the scale.

    Numbers are the first ``count`` rows of ``x``, weights those of ``w``; the codes go to those of ``codes``. As in
    the original a code is a byte, and nothing keeps a negative number from becoming a large one.
    """
    greatest = splat(ZERO)
    for i in range(count):
        greatest = select(greatest > load(x, i), greatest, load(x, i))
    is_zero = greatest < EPSILON
    inverse = _positive_start(x, w, count, float32(top), greatest)
    sum_lx = sum_l2 = splat(ZERO)
    for i in range(count):
        value, weight = load(x, i), load(w, i)
        code = nearest(inverse * value)
        code = select(code < top, code, top)
        store(codes, i, select(is_zero, 0, code & 0xFF))
        level = to_float(code)
        sum_lx = sum_lx + (weight * value) * level
        sum_l2 = sum_l2 + (weight * level) * level
    sum_lx, sum_l2 = select(is_zero, ZERO, sum_lx), select(is_zero, ZERO, sum_l2)
    for _ in range(5):
        sum_lx, sum_l2, has_changed = _refine_positive(x, w, codes, count, top, sum_lx, sum_l2)
        if not has_changed:
            break
    return select(sum_l2 > ZERO, sum_lx / sum_l2, ZERO)
