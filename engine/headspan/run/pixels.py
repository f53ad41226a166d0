"""Bring the pixels of a batch to the device, and turn them into the model's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headspan.config import Preprocess
from headspan.decode.batches import Pixels
from headspan.model.tower import normalise


def model_input(
    parts: Sequence[Pixels], preprocess: Preprocess, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "image 3 height width_px"]:
    """The normalised pixels of a batch, whose `parts` are as `Batch.parts` describes them; at least one is given.

    On a GPU nothing waits for the copies: the parts must stay as they are until the batch's results have arrived.
    """
    joined: list[Tensor] = []
    on_host: list[Tensor] = []

    def bring() -> None:
        if on_host:
            grey_levels = _on_device(on_host, device)
            joined.append(normalise(grey_levels, preprocess.mean, preprocess.std, dtype))
            on_host.clear()

    for part in parts:
        if isinstance(part, Tensor):
            bring()
            joined.append(part.to(dtype))
        else:
            on_host.append(torch.from_numpy(part))
    bring()
    return joined[0] if len(joined) == 1 else torch.cat(joined)


def _on_device(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    if len(parts) == 1:
        return parts[0].to(device, non_blocking=True)
    if device.type == "cpu":
        return torch.cat(list(parts))
    images = sum(map(len, parts))
    whole = torch.empty((images, *parts[0].shape[1:]), dtype=torch.uint8, device=device)
    first = 0
    for part in parts:
        whole[first : first + len(part)].copy_(part, non_blocking=True)
        first += len(part)
    return whole
