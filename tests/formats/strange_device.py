"""A device that does what any device may do, played on the processor: what torch code must not rely on goes wrong.

The bits of a NaN are others than those of x86-64. An error is: an operation that rounds twice or in an order of its
own, that waits for the device, or that is not known to give the same bits everywhere; a division by a number, which
some devices make a product with its inverse; a conversion to an integer type that cannot hold the value.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NAN_BITS = 0x7FFF_FFFF
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# fmt: off
_MOVING = {
    "_unsafe_view", "arange", "cat", "clone", "constant_pad_nd", "detach", "empty_like", "expand", "fill", "full",
    "full_like", "gather", "index_select", "lift_fresh", "masked_fill", "new_empty", "new_full", "new_zeros", "ones",
    "ones_like", "permute", "scalar_tensor", "select", "slice", "squeeze", "stack", "t", "transpose", "tril", "unbind",
    "unfold", "unsqueeze", "view", "where", "zero", "zeros_like",
}
_EXACT = {
    "_to_copy", "abs", "add", "all", "amax", "aminmax", "any", "argmax", "argmin", "bitwise_and", "bitwise_left_shift",
    "bitwise_not", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "bucketize", "clamp", "clamp_min", "copy",
    "div", "eq", "ge", "gt", "hardshrink", "isinf", "le", "logical_and", "logical_or", "lt", "maximum", "mul",
    "copysign", "nan_to_num", "ne", "neg", "relu", "round", "rsub", "sign", "sub", "__lshift__", "__rshift__",
}
# fmt: on
_FOR_INTEGERS = {"addcmul", "cumsum", "scatter_add", "sum"}
_FOR_FLOAT64 = {"sqrt"}  # of float32 MKL rounds it otherwise


class StrangeDevice(TorchDispatchMode):
    """What runs while it is active runs on the strange device."""

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        name = name if name.startswith("__") else name.removesuffix("_")
        _check_operation(name, args, kwargs)
        if name in ("_to_copy", "copy"):
            _check_conversion(args[1] if name == "copy" else args[0], kwargs.get("dtype", args[0].dtype))
        result = function(*args, **kwargs)
        if name not in _MOVING:
            for tensor in tree_leaves(result):
                _spoil_nan(tensor)
        return result


def _check_operation(name: str, args: Any, kwargs: Any) -> None:
    dtypes = {tensor.dtype for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
    is_allowed = (
        name in _MOVING
        or name in _EXACT
        or (name in _FOR_INTEGERS and not any(dtype.is_floating_point for dtype in dtypes))
        or (name in _FOR_FLOAT64 and dtypes == {torch.float64})
        or (name == "linalg_vector_norm" and args[1] == 0)  # how many are not 0: fewer than 2^24
    )
    assert is_allowed, f"{name} of {dtypes} need not give the same bits on every device, or waits for it"
    assert kwargs.get("alpha", 1) in (1, -1), f"{name} with a factor rounds once or twice"
    assert name != "div" or isinstance(args[1], torch.Tensor), "division by a number"


def _check_conversion(values: torch.Tensor, dtype: torch.dtype) -> None:
    if values.is_floating_point() and dtype in _INTEGERS:
        limits, whole = torch.iinfo(dtype), values.trunc()
        fits = (whole >= limits.min) & (whole <= limits.max)
        assert fits.all(), f"{values[~fits][:3]} as {dtype}"


def _spoil_nan(tensor: Any) -> None:
    if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
        tensor.masked_fill_(tensor.isnan(), torch.tensor(_NAN_BITS, dtype=torch.int32).view(torch.float32))
