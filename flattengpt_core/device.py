"""Where tensors are computed, and how much memory that took."""

import resource

import torch

from flattengpt_core.errors import InvalidRequest

_KINDS = ("cpu", "cuda", "mps")


def pick_device(device: str) -> torch.device:
    """The torch device called `device`; `auto` is a GPU if torch sees one, else the CPU.

    Raises:
        InvalidRequest: there is no such device here; the field is `device`.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type not in _KINDS:
            raise RuntimeError("it is none that models are compressed on")
        torch.zeros((), device=found)
    except (RuntimeError, AssertionError) as error:  # what torch makes of a name, and of hardware that is missing
        raise InvalidRequest(
            f"The device {device!r} cannot be used on this machine ({str(error).splitlines()[0]}): "
            "give auto, cpu, or a GPU that torch sees, such as cuda or cuda:1.",
            field="device",
        ) from error
    return found


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory the run has held so far: on the GPU if it runs there, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
