"""Edited embeddings in diffusers' unCLIP pipelines: one with random weights is built here, so that nothing is fetched.

diffusers is in the extra `unclip`, and not in `test`.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headspan.errors import SettingsError
from headspan.features.uses.edit_result import EditedImage
from headspan.features.uses.unclip import to_unclip

WIDTH = 24


def _edited(embedding: np.ndarray) -> EditedImage:
    none = np.zeros(0)
    return EditedImage(
        *("source", "donor", "image-dominant", embedding.astype(np.float32), 1.0, 0.0),
        *(none.astype(np.int64), none.astype(np.float32), ()),
        scores_run="hand",
        residual="kept",
        tolerance=0.02,
        draws=0,
        seed=0,
    )


class _Encoder(torch.nn.Module):
    """As much of CLIP's image encoder as the hook looks at."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = SimpleNamespace(projection_dim=WIDTH)
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=dtype))


class _Variation:
    def __init__(self) -> None:
        self.image_encoder = _Encoder(torch.bfloat16)

    def __call__(self, image: Any = None, image_embeddings: Any = None) -> None: ...


class _TextToImage:
    def __call__(self, prompt: str) -> None: ...


def test_embeddings_come_under_the_pipelines_name_and_in_its_precision() -> None:
    rows = np.random.default_rng(0).standard_normal((2, WIDTH))
    found = to_unclip([_edited(each) for each in rows], _Variation())
    assert list(found) == ["image_embeddings"]
    assert torch.equal(found["image_embeddings"], torch.from_numpy(rows.astype(np.float32)).bfloat16())


def test_pipelines_that_take_no_such_embeddings_are_refused() -> None:
    with pytest.raises(SettingsError, match="_TextToImage: takes no image embeddings; give diffusers' StableUnCLIP"):
        to_unclip(_edited(np.zeros(WIDTH)), _TextToImage())
    with pytest.raises(SettingsError, match=r"takes embeddings of 24 numbers, but these have shape \(1, 23\); use a"):
        to_unclip(_edited(np.zeros(WIDTH - 1)), _Variation())


def test_a_pipeline_draws_edited_embeddings() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'headspan[unclip]'")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: 'headspan[unclip]'")
    pipeline = _stable_unclip(diffusers, transformers)
    rows = np.random.default_rng(0).standard_normal((2, WIDTH))

    def drawn(*edited: EditedImage) -> np.ndarray:
        arguments = to_unclip(edited, pipeline)
        assert arguments["prompt"] == [""] * len(edited)
        random = torch.Generator().manual_seed(0)
        found: np.ndarray = pipeline(
            **arguments, num_inference_steps=2, generator=random, output_type="np", height=8, width=8
        ).images
        return found

    both = drawn(_edited(rows[0]), _edited(rows[1]))
    assert both.shape == (2, 8, 8, 3)
    assert np.isfinite(both).all()
    one, again, other = drawn(_edited(rows[0])), drawn(_edited(rows[0])), drawn(_edited(rows[1]))
    assert np.array_equal(one, again)
    # The picture is of the embedding, and of nothing else: the noise and the prompt are the same.
    assert np.abs(one - other).max() > 0.01


def _stable_unclip(diffusers: Any, transformers: Any) -> Any:
    """A pipeline of random weights, with two letters as its vocabulary."""
    torch.manual_seed(0)
    words = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = transformers.CLIPTextConfig(
        **size, vocab_size=len(words), max_position_embeddings=8, bos_token_id=4, eos_token_id=5, pad_token_id=5
    )
    image = transformers.CLIPVisionConfig(**size, projection_dim=WIDTH, image_size=8, patch_size=4)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * WIDTH,
        cross_attention_dim=16,
        use_linear_projection=True,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )
    normalizer = import_module("diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer")
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=transformers.CLIPVisionModelWithProjection(image).eval(),
        image_normalizer=normalizer.StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        image_noising_scheduler=diffusers.DDPMScheduler(),
        tokenizer=transformers.CLIPTokenizer(
            vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=8
        ),
        text_encoder=transformers.CLIPTextModel(text).eval(),
        unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(),
        vae=vae.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
