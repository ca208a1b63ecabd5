"""The encoders in torch as the checks of ``quant_checks.py`` want one."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from streammerge.formats import device as device_formats
from streammerge.formats import quants

from .quant_checks import Bytes, Encoder, Floats


def encoder_on(device: torch.device, within: AbstractContextManager[object] | None = None) -> Encoder:
    """Blocks into bytes that were not zero before and have one too many on either side, which must stay."""

    def encode(name: str, values: Floats, row: int, weights: Floats | None) -> Bytes:
        quant = quants.QUANTS[name]
        guarded = torch.full((values.size // quant.block * quant.nbytes + 2,), 0xA5, dtype=torch.uint8, device=device)
        there = torch.tensor(values).to(device)
        importance = None if weights is None else torch.tensor(weights).to(device)
        with within or nullcontext():
            device_formats.quantize(name, there, row, importance, guarded[1:-1])
        assert np.array_equal(there.cpu().numpy().view(np.uint32), values.view(np.uint32)), "values were changed"
        found: Bytes = guarded.cpu().numpy()
        assert found[0] == found[-1] == 0xA5
        return found[1:-1]

    return encode
