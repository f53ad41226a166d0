"""Hand edited embeddings to diffusers' unCLIP pipelines, which draw images from CLIP's image embeddings.

A pipeline draws from embeddings of the model that it was trained with: Stable unCLIP of OpenCLIP's ViT-H-14, Karlo of
OpenAI's ViT-L-14. The store must be of that model. diffusers is not imported here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from headspan.errors import SettingsError
from headspan.features.uses.edit_result import EditedImage

# What the pipelines call the embeddings: StableUnCLIPImg2ImgPipeline, and UnCLIPImageVariationPipeline.
_NAMES = ("image_embeds", "image_embeddings")


def to_unclip(
    embeddings: EditedImage | Sequence[EditedImage] | Float32[np.ndarray, "image joint"], pipeline: Any
) -> dict[str, Any]:
    """Keyword arguments that let a pipeline draw `embeddings`: `pipeline(**to_unclip(edited, pipeline)).images`.

    Embeddings are as long as the model gives them, not unit vectors. They come on the pipeline's device and in its
    precision. StableUnCLIPImg2ImgPipeline also needs a prompt for each image, which is empty here; others can be given
    in its place. Raises SettingsError if the pipeline takes no image embeddings, or such of another length.
    """
    taken = inspect.signature(type(pipeline).__call__).parameters
    name = next((each for each in _NAMES if each in taken), None)
    if name is None:
        raise SettingsError(
            f"{type(pipeline).__name__}: takes no image embeddings; give diffusers' StableUnCLIPImg2ImgPipeline or "
            "UnCLIPImageVariationPipeline"
        )
    if isinstance(embeddings, EditedImage):
        embeddings = [embeddings]
    rows = embeddings if isinstance(embeddings, np.ndarray) else np.stack([each.embedding for each in embeddings])
    width = int(pipeline.image_encoder.config.projection_dim)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise SettingsError(
            f"{type(pipeline).__name__}: takes embeddings of {width} numbers, but these have shape {rows.shape}; use a "
            "store of the model that the pipeline was trained with"
        )
    weight = next(iter(pipeline.image_encoder.parameters()))
    found: dict[str, Any] = {name: torch.from_numpy(np.array(rows, np.float32)).to(weight.device, weight.dtype)}
    return {**found, "prompt": [""] * len(rows)} if "prompt" in taken else found
