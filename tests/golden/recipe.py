"""The inputs of the golden numbers: weights, pixels and TEXTSPAN problems from NumPy's PCG64 alone.

No framework's random numbers are involved, so any of them can be fed the same inputs. A weight depends on
its state-dict name, its shape and the seed, and on no other weight. The order of every draw is part of the
recipe: change one, and the numbers beside this file no longer belong to it.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

if TYPE_CHECKING:
    from torch import nn


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def weight(name: str, shape: tuple[int, ...], seed: int) -> Float32[np.ndarray, "..."]:
    """One parameter by its full open_clip name (`visual.…`), far from any value that would hide a mistake.

    Raises KeyError for a name without a rule (LayerScale, say): the golden model has none.
    """
    draw = _stream(seed, name).standard_normal(shape).astype(np.float32)
    if name.endswith(("ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight")):
        return (1.0 + 0.2 * draw).astype(np.float32)
    if name.endswith("bias"):
        return (0.1 * draw).astype(np.float32)
    if name.endswith("in_proj_weight"):
        # Half again the usual size: attention is far from uniform.
        return (draw * 1.5 * shape[1] ** -0.5).astype(np.float32)
    if name.endswith(("out_proj.weight", "c_fc.weight", "c_proj.weight")):
        return (draw * 0.7 * shape[1] ** -0.5).astype(np.float32)
    if name.endswith("conv1.weight"):
        return (draw * (shape[1] * shape[2] * shape[3]) ** -0.5).astype(np.float32)
    if name.endswith("positional_embedding"):
        return (0.3 * draw).astype(np.float32)
    if name.endswith("class_embedding"):
        return draw
    if name.endswith(".proj"):
        return (draw * shape[0] ** -0.5).astype(np.float32)
    raise KeyError(f"{name}: the recipe has no rule for this weight")


def fill_visual(model: nn.Module, seed: int) -> None:
    """Overwrite `model.visual` of an open_clip model in place; the text tower is left as it is."""
    import torch

    for name, tensor in model.state_dict().items():
        if name.startswith("visual."):
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape), seed)))


def images(drawn: int, seed: int, size: int = 224, keep: int | None = None) -> Float32[np.ndarray, "..."]:
    """Preprocessed pixels [keep, 3, size, size]: a coarse 7 × 7 pattern plus noise, about N(0, 1).

    `drawn` counts the images of the whole batch, since all patterns are drawn before any noise; `keep` only
    saves the drawing of noise for images that nobody asks for, and defaults to `drawn`.
    """
    keep = drawn if keep is None else keep
    generator = _stream(seed, "images")
    coarse = generator.standard_normal((drawn, 3, 7, 7)).astype(np.float32)[:keep]
    coarse = np.repeat(np.repeat(coarse, size // 7, axis=2), size // 7, axis=3)
    return (coarse + 0.5 * generator.standard_normal((keep, 3, size, size)).astype(np.float32)).astype(np.float32)


def textspan_inputs(
    seed: int, extra: int = 0, noise: float = 0.0
) -> tuple[Float32[np.ndarray, "2000 512"], Float32[np.ndarray, "3500 512"]]:
    """One head's contributions, of rank 64 + `extra` under noise of deviation `noise`, and unit texts.

    The spectrum falls fifty-fold over the 64 directions, and the mean is not zero.
    """
    head_dim, image_count, text_count, joint = 64, 2000, 3500, 512
    generator = np.random.Generator(np.random.PCG64(seed))
    basis = generator.standard_normal((head_dim, joint)) / np.sqrt(joint)
    scale = np.geomspace(1.0, 0.02, head_dim)
    spread = generator.standard_normal((image_count, head_dim)) * scale
    contributions = (spread + 0.5 * generator.standard_normal(head_dim) * scale) @ basis
    if extra:
        more = generator.standard_normal((extra, joint)) / np.sqrt(joint)
        contributions += (0.05 * (1 + 0.1 * generator.standard_normal((image_count, extra)))) @ more
    contributions = 0.02 * contributions
    if noise:
        contributions = contributions + noise * generator.standard_normal((image_count, joint))
    texts = generator.standard_normal((text_count, joint)) + 1.5 * generator.standard_normal(joint)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return contributions.astype(np.float32), texts.astype(np.float32)
