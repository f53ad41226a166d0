"""The devices that a run names, and what depends on the device alone: its name and its precision."""

from __future__ import annotations

import re

import torch

from headspan.config import AUTO
from headspan.errors import SettingsError, counted

# fp16 is seven times as exact as bf16: relative errors of 7e-4 against 5e-3 for heads, and of 1.2e-3 against 9e-3 for
# embeddings (ViT-B/32 on an H100 against fp32 on a CPU). It is about as fast: on an H200, 2,944 against 3,092 images/s
# with ViT-L/14, 5 % less, and 48,345 against 49,725 with ViT-B/32, 3 % less. Numbers beyond its range set single images
# apart.
_GPU_PRECISION = "fp16"


def named_devices(text: str) -> tuple[torch.device, ...]:
    """The devices that `--device` names, in order; `auto` means every visible GPU, or the CPU if there is none.

    Raises SettingsError if a device is unknown or missing, or if CPUs and GPUs are mixed.
    """
    gpus = torch.cuda.device_count()
    if text == AUTO:
        usable = gpus if torch.cuda.is_available() else 0
        return tuple(torch.device("cuda", index) for index in range(usable)) or (torch.device("cpu"),)
    devices = []
    for name in text.split(","):
        found = re.fullmatch(r"\s*(?:(cpu)|cuda(?::(\d{1,4}))?)\s*", name)
        if not found:
            raise SettingsError(
                f"--device {text}: {name.strip() or 'an empty name'} is unknown; write auto, cpu, cuda:0, or several "
                "GPUs such as cuda:0,cuda:1"
            )
        device = torch.device("cpu") if found[1] else torch.device("cuda", int(found[2] or 0))
        if device.type == "cuda" and device.index >= gpus:
            raise SettingsError(f"--device {text}: torch sees {counted(gpus, 'GPU')}; use auto or cpu")
        devices.append(device)
    if len({device.type for device in devices}) > 1:
        raise SettingsError(
            f"--device {text} mixes CPU and GPU, whose numbers differ in their last digits; name devices of one kind"
        )
    return tuple(devices)


def precision_on(device: torch.device, precision: str) -> str:
    """`precision`, or the device's own if it is `auto`: fp32 on a CPU, 16 bits on a GPU."""
    if precision != AUTO:
        return precision
    return _GPU_PRECISION if device.type == "cuda" else "fp32"


def in_words(devices: tuple[torch.device, ...]) -> str:
    """Names of the devices for a sentence, as in `2 × NVIDIA H100 80GB HBM3`."""
    names = [torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU" for device in devices]
    if len(names) == 1:
        return names[0]
    if names[0] == "the CPU":
        return f"the CPU, in {len(names)} processes"
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
