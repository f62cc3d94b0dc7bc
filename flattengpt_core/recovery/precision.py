"""Whether the hardware computes in the precision that training is asked for."""

import torch

from flattengpt_core.errors import InvalidRequest
from flattengpt_core.options import Recovery

_UNITS = ("amx_bf16", "avx512_bf16", "arm_bf16", "bf16")
"""What torch calls a processor's units for bfloat16 products."""


def refuse_emulated(options: Recovery, device: torch.device) -> None:
    """Refuse bfloat16 products on a processor that has no unit for them.

    They would be computed in software: nine times as slow as in float32, measured side by side on a processor with
    AVX2 alone.

    Raises:
        InvalidRequest: so it is; the field is `recovery.precision`.
    """
    if options.method == "none" or options.precision != "bfloat16" or device.type != "cpu":
        return
    found = torch.cpu.get_capabilities()
    if not any(found.get(unit) for unit in _UNITS):
        raise InvalidRequest(
            "The worker has no GPU, and its processor computes bfloat16 in software, far slower than float32: ask for "
            "float32.",
            field="recovery.precision",
        )
