"""``python -m tests.formats.fused_ptx``: the PTX of all kernels for an H100, with the options they are started with."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from streammerge.formats.device.fused import iq4, kernels, refinement, rounding, search, sums

LANES = {"lanes": rounding.LANES}
KERNELS = [
    (sums.added, {}),
    (search.asymmetric, {"count": 32, "top": 15, "is_absolute": False}),
    (search.asymmetric, {"count": 16, "top": 3, "is_absolute": True}),
    (search.symmetric, {"count": 16, "top": 32}),
    (iq4.best_scale, {"limits": kernels._LIMITS, "values": kernels._VALUES, "count": 32}),
    (refinement.refined, {"passes": 5, "count": 16}),
    (refinement.positive, {"top": 63, "passes": 5, "count": 8}),
]
TYPES = {**dict.fromkeys(["n", "tries", "blocks", "count", "step", "stride"], "i32"), "epsilon": "fp32"}


def ptx(kernel, constants):
    types = {**TYPES, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, {name: types.get(name, "*fp32") for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=rounding.OPTIONS).asm["ptx"]


if __name__ == "__main__":
    for kernel, constants in KERNELS:
        print(ptx(kernel, {**constants, **LANES}))
