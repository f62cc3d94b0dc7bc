"""bfloat16 is refused where it would be computed in software."""

import pytest
import torch

from flattengpt_core.errors import InvalidRequest
from flattengpt_core.options import Recovery
from flattengpt_core.recovery.precision import refuse_emulated

ASKED = Recovery(method="distill", precision="bfloat16")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def processor(monkeypatch: pytest.MonkeyPatch, **units: bool) -> None:
    """Let torch see a processor with these units."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **units})


def test_without_a_unit_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, avx512_bf16=False, amx_bf16=False)
    with pytest.raises(InvalidRequest, match="ask for float32") as refused:
        refuse_emulated(ASKED, CPU)
    assert refused.value.field == "recovery.precision"


@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16"])
def test_with_a_unit_it_is_not(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    processor(monkeypatch, **{unit: True})
    refuse_emulated(ASKED, CPU)


def test_nor_where_nothing_is_computed_so(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch)
    refuse_emulated(ASKED, GPU)
    refuse_emulated(Recovery(method="distill"), CPU)
    refuse_emulated(Recovery(precision="bfloat16"), CPU)


def test_torch_names_the_units_so() -> None:
    """On x86, where these names were read; elsewhere the call alone is tested."""
    found = torch.cpu.get_capabilities()
    assert found.get("architecture") != "x86_64" or {"avx512_bf16", "amx_bf16"} <= set(found)
