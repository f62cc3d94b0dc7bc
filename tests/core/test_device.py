"""A device that is not there is refused in one line, before anything is computed."""

import pytest
import torch

from flattengpt_core.device import peak_memory_bytes, pick_device
from flattengpt_core.errors import InvalidRequest


def test_a_device_by_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert peak_memory_bytes(torch.device("cpu")) > 2**20


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:x", "meta", "", "cpu\nX-Injected: 1"])
def test_what_is_no_device_here(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be used on this machine") as refused:
        pick_device(name)
    assert refused.value.field == "device"
    assert len(str(refused.value).splitlines()) == 1
