"""``added`` of ``device/k_blocks.py``."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n", "count", "step", "stride"])
def added(terms, found, n, count, step, stride, lanes: tl.constexpr):
    """The sum of ``count`` numbers that lie ``step`` apart, for each of ``n`` lanes that lie ``stride`` apart."""
    lane = tl.program_id(0) * lanes + tl.arange(0, lanes)
    used = lane < n
    total = tl.full((lanes,), 0.0, tl.float32)
    for i in range(count):
        total = total + tl.load(terms + i * step + lane * stride, used, 0.0)
    tl.store(found + lane, total, used)
