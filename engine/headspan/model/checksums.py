"""SHA-256 of a model's towers, computed on other threads while the run is prepared."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TowerChecksums:
    """The checksums of a model's image and text tower: of their parameters, by name, as float32."""

    _image: Future[str]
    _text: Future[str]

    @classmethod
    def begin(cls, clip: Any) -> TowerChecksums:
        """Begin to compute the checksums of an open_clip model, whose weights must not change any more."""
        state = clip.state_dict()
        image = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
        # The scale and bias of the logits do not affect text vectors.
        others = ("logit_scale", "logit_bias")
        text = {k: v for k, v in state.items() if not k.startswith("visual.") and k not in others}
        threads = ThreadPoolExecutor(2, thread_name_prefix="headspan-checksum")
        begun = cls(threads.submit(_digest, image), threads.submit(_digest, text))
        threads.shutdown(wait=False)
        return begun

    @property
    def image(self) -> str:
        """SHA-256 of the image tower. Waits until it is known."""
        return self._image.result()

    @property
    def text(self) -> str:
        """SHA-256 of everything else but the scale and bias of the logits. Waits until it is known."""
        return self._text.result()


def _digest(state: dict[str, Tensor]) -> str:
    """SHA-256 of tensors, by name, as float32. Other threads run meanwhile."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        numbers: np.ndarray = tensor.detach().to(torch.float32).contiguous().numpy()
        digest.update(numbers.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
