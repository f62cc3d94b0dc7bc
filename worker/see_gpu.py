"""Prints the bytes of the GPU that a job here would run on: a process of its own, since this imports torch."""

import torch

from flattengpt_core.device import pick_device

if __name__ == "__main__":
    device = pick_device("auto")
    print(torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0)  # noqa: T201
