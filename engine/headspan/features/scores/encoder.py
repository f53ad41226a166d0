"""Run a learner over blocks of vectors: sparse codes, and what they decode to."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32
from scipy.sparse import vstack

from headspan.features.learners.learner import Learner
from headspan.features.scores.codes import Codes, sparse_codes

# Activations that are in memory at once: 64 MB of float32.
_ACTIVATIONS = 1 << 24


class Encoder:
    """A learner's codes of blocks. The learner must be in evaluation mode and stays on its device."""

    def __init__(self, learner: Learner, features: int) -> None:
        self._learner, self.features = learner, features
        self._device = next(learner.parameters()).device
        self._decoder = [_linear_decoder(learner, features, side, self._device) for side in (0, 1)]

    @property
    def linear(self) -> bool:
        """Whether active features alone are decoded."""
        return None not in self._decoder

    def forget_linear(self) -> None:
        """Decode with the learner's own decoder from now on."""
        self._decoder = [None, None]

    @torch.inference_mode()
    def codes(self, vectors: Float32[np.ndarray, "vector width"], side: int) -> Codes:
        """The codes of vectors of one side."""
        step = max(1, _ACTIVATIONS // self.features)
        found = []
        for first in range(0, max(1, len(vectors)), step):
            some = torch.from_numpy(np.require(vectors[first : first + step], None, ["C", "W"])).to(self._device)
            found.append(sparse_codes(self._learner.encode(some, side).float().cpu().numpy()))
        return found[0] if len(found) == 1 else vstack(found, format="csr")

    @torch.inference_mode()
    def decoded(self, codes: Codes, side: int) -> Float32[np.ndarray, "vector width"] | None:
        """What codes decode to; None for learners without a decoder.

        A linear decoder is applied to active features only, which takes `codes · width` steps.
        """
        if not self._learner.decodes:
            return None
        linear = self._decoder[side]
        if linear is not None:
            rows, bias = linear
            return np.asarray(codes @ rows + bias, np.float32)
        step = max(1, _ACTIVATIONS // self.features)
        found = [
            self._learner.decode(torch.from_numpy(codes[first : first + step].toarray()).to(self._device), side)
            for first in range(0, codes.shape[0], step)
        ]
        return torch.cat(found).float().cpu().numpy()


@torch.inference_mode()
def _linear_decoder(
    learner: Learner, features: int, side: int, device: torch.device
) -> tuple[Float32[np.ndarray, "feature width"], Float32[np.ndarray, " width"]] | None:
    """Rows and bias of a decoder `codes @ rows + bias`; None for any other, which three codes tell."""
    rows = getattr(learner, "W_dec", None)
    if not learner.decodes or not isinstance(rows, torch.Tensor):
        return None
    probe = torch.zeros(3, features, device=device)
    probe[1, 0], probe[2, 0], probe[2, -1] = 0.5, 1.5, 0.25
    out = learner.decode(probe, side).float()
    rows, bias = rows.float(), out[0]
    wanted = probe @ rows + bias
    # Products of float32; a decoder of another form differs by far more.
    if not torch.allclose(out, wanted, rtol=1e-4, atol=1e-5):
        return None
    return rows.cpu().numpy(), bias.cpu().numpy()
