"""``added`` of ``device/k_blocks.py``."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n", "count", "step", "stride"])
def added(terms, found, n, count, step, stride, lanes: tl.constexpr):
    """The sum of ``count`` numbers that lie ``step`` apart, for each of ``n`` lanes that lie ``stride`` apart."""
    lane = tl.program_id(0) * lanes + tl.arange(0, lanes)
    used = lane < n
    total = tl.full((lanes,), 0.0, tl.float32)
    for first in range(0, count, 16):  # so many loads are under way; to add the 0 of those too many changes nothing
        for i in tl.static_range(16):
            place = first + i
            total = total + tl.load(terms + place * step + lane * stride, used & (place < count), 0.0)
    tl.store(found + lane, total, used)
