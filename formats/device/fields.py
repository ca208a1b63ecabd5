"""What blocks have in common: float16 fields, packed codes, extremes, tables on a device."""

from functools import cache

import torch
from torch import Tensor

_NAN = 0xFE00 - 0x1_0000  # a NaN of arithmetic has its sign set on x86-64, and so has what ggml writes
_BITS = (1, 2, 4, 8, 16, 32, 64, 128)


@cache
def table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers kept on a device. They are copied from the host, which waits: so they are there for every stream."""
    return torch.tensor(values, dtype=dtype, device=device)


def constant(value: float, device: torch.device) -> Tensor:
    """A float32 without dimensions, to divide by."""
    return table((value,), torch.float32, device)[0]


def looked_up(entries: Tensor, places: Tensor) -> Tensor:
    """``entries[places]`` for int32 places, in the shape of these."""
    return entries.index_select(0, places.reshape(-1)).view(places.shape)


def put_half(values: Tensor, out: Tensor) -> None:
    """The float16 nearest to float32[n, 1], as ``out``, uint8[n, 2]; it may be a slice of wider blocks."""
    short = values.to(torch.float16).view(torch.int16)
    out.copy_(short.masked_fill_(values != values, _NAN).view(torch.uint8))


def put_nibbles(codes: Tensor, out: Tensor) -> None:
    """Codes below 16, uint8[..., 32], as uint8[..., 16]: byte j holds elements j and j + 16."""
    torch.bitwise_or(codes[..., :16], codes[..., 16:] << 4, out=out)


def put_codes(codes: Tensor, has_fifth: bool, out: Tensor) -> None:
    """Codes of Q4_0, Q4_1, Q5_0 and Q5_1, uint8[n, 32]; the fifth bits come first, that of element e in bit e."""
    if has_fifth:
        bits = (codes >> 4).view(-1, 4, 8).mul_(table(_BITS, torch.uint8, codes.device))
        torch.sum(bits, 2, dtype=torch.uint8, out=out[:, :4])
        codes.bitwise_and_(15)
        out = out[:, 4:]
    put_nibbles(codes, out)


def peaks(blocks: Tensor) -> Tensor:
    """The greatest magnitude in each row, (n, 1)."""
    least, greatest = torch.aminmax(blocks, dim=1, keepdim=True)
    return torch.maximum(-least, greatest).abs_()  # a zero has no sign


def signed_peaks(blocks: Tensor) -> Tensor:
    """The first element of the greatest magnitude in each row, (n, 1); 0 in a row of zeros, whatever their signs."""
    return blocks.gather(1, blocks.abs().argmax(1, keepdim=True)).add_(0.0)  # -0 + 0 is 0


def inverted(d: Tensor) -> Tensor:
    """1 / d, but 0 for 0."""
    return (constant(1.0, d.device) / d).masked_fill_(d == 0, 0.0)


def root(values: Tensor) -> Tensor:
    """The square root of float32, correctly rounded.

    On a CPU torch leaves it to MKL, which is not; from float64 it comes out right, because no root of a float32 is so
    near to the middle between two that a float64 cannot tell.
    """
    return values.double().sqrt_().float()
