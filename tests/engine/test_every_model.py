"""Every model that open_clip can build: decomposed exactly where headspan says so, refused with a reason elsewhere.

A supported model runs in small (two layers, narrow, a few patches) with its own flags and every parameter
randomised: what is added up is held against open_clip's output, what is told apart against the float64 oracle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
from open_clip.factory import get_model_config
from open_clip.model import _build_vision_tower
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn

from headspan.errors import ModelError
from headspan.model.convert import catalogue, to_tower, unsupported_reason
from headspan.model.tower import PooledRow, Tower
from tests import tolerances
from tests.engine.test_decomposition import CONVENTIONS, encode_image, joint_terms
from tests.oracle import Decomposition
from tests.oracle_towers import Facts, Rotary, as_timm, decompose_tower
from tests.tolerances import relative_error

CATALOGUE = {name: reason for name, reason in catalogue().items() if "headspan" not in name}
SUPPORTED = [name for name, reason in CATALOGUE.items() if reason is None]
# A full-size model of each family, the smallest; those of every kind of stem, norm and pooling.
FULL_SIZE = (
    "coca_ViT-B-32",
    "EVA01-g-14",
    "EVA02-B-16",
    "EVA02-E-14",
    "MobileCLIP-B",
    "MobileCLIP2-L-14",
    "PE-Core-T-16-384",
    "PE-Core-B-16",
    "ViT-B-16-SigLIP",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
)


def flags(name: str) -> str:
    """What of a config decides anything but sizes; models that agree in it are one case."""
    config = get_model_config(name)
    sizes = ("image_size", "width", "layers", "head_width", "mlp_ratio", "timm_drop", "timm_drop_path")
    vision = {key: value for key, value in config["vision_cfg"].items() if key not in sizes}
    if "timm_model_name" not in vision:
        vision["quick_gelu"] = config.get("quick_gelu", False)
    return json.dumps(vision, sort_keys=True)


CASES = {flags(name): name for name in reversed(SUPPORTED)}


@contextmanager
def timm_in_small(**sizes: Any) -> Iterator[None]:
    """open_clip's calls of timm get these sizes too."""
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_clip.timm_model.timm.create_model", lambda *a, **k: create(*a, **k, **sizes))
        yield


def in_small(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """The model's image tower with two layers of three heads on two rows of three patches, and its image size."""
    config = get_model_config(name)
    vision = config["vision_cfg"]
    model = vision.get("timm_model_name")
    if model is None:
        patch = vision["patch_size"]
        square = vision.get("pos_embed_type") == "sin_cos_2d"
        size = (2 * patch, (2 if square else 3) * patch)
        small = {"image_size": size, "width": 24, "head_width": 8, "layers": 2}
        return _build_vision_tower(16, {**vision, **small}, config.get("quick_gelu", False)), size
    patch = 14 if "patch14" in model else 32 if "patch32" in model else 16
    size = (2 * patch, 3 * patch)
    sizes: dict[str, Any] = {"depth": 2, "img_size": size}
    # The widths of a convolutional stem are the model's own.
    if "mci" not in model:
        sizes |= {"embed_dim": 24, "num_heads": 3}
    with timm_in_small(**sizes):
        return _build_vision_tower(16, {**vision, "image_size": size}), size


def randomise_all(visual: nn.Module, seed: int) -> nn.Module:
    """Overwrite every parameter and running statistic, so that no flag hides behind a one or a zero."""
    generator = torch.Generator().manual_seed(seed)
    numbers = {**dict(visual.named_parameters()), **dict(visual.named_buffers())}
    for name, tensor in numbers.items():
        last = name.rpartition(".")[2]
        if last == "running_var":
            tensor.data.uniform_(0.5, 2.0, generator=generator)
        elif last in ("running_mean", "bias", "q_bias", "v_bias"):
            tensor.data.normal_(0.0, 0.3, generator=generator)
        elif last.startswith("gamma"):
            tensor.data.normal_(0.6, 0.2, generator=generator)
        elif isinstance(tensor, nn.Parameter):
            norm = tensor.ndim == 1 and last == "weight"
            rows = ("pos_embed", "positional_embedding", "cls_token", "class_embedding", "latent", "query")
            spread = 0.2 if norm else 0.7 if last in rows else tensor[0].numel() ** -0.5
            tensor.data.normal_(1.0 if norm else 0.0, spread, generator=generator)
    return visual.eval().requires_grad_(False)


def facts_of(visual: Any) -> Facts:
    """What the oracle has to be told, read off open_clip's and timm's own modules."""
    if isinstance(visual, VisionTransformer):
        block = visual.transformer.resblocks[0]
        return Facts(
            heads=block.attn.num_heads,
            activation="quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
            eps=1e-5,
            pool="latent" if visual.attn_pool is not None else "token" if visual.pool_type == "tok" else "avg",
            pool_heads=0 if visual.attn_pool is None else visual.attn_pool.attn.num_heads,
        )
    trunk = visual.trunk
    rope, pool = getattr(trunk, "rope", None), getattr(trunk, "attn_pool", None)
    block = trunk.blocks[0]
    return Facts(
        heads=block.attn.num_heads,
        activation="gelu_tanh" if "Tanh" in type(getattr(block.mlp, "act", None)).__name__ else "gelu",
        eps=block.norm1.eps,
        pool="latent" if pool is not None else trunk.global_pool,
        post_norm="PostNorm" in type(block).__name__,
        rotary=None if rope is None else Rotary(rope.ref_feat_shape, rope.grid_offset, rope.grid_indexing == "xy"),
        pool_heads=0 if pool is None else pool.num_heads,
    )


def weights_of(visual: nn.Module) -> dict[str, np.ndarray]:
    weights = {name.removeprefix("trunk."): tensor.numpy() for name, tensor in visual.state_dict().items()}
    weights = {("head.weight" if name == "head.proj.weight" else name): value for name, value in weights.items()}
    return as_timm(weights) if isinstance(visual, VisionTransformer) else weights


@dataclass(frozen=True)
class Case:
    """A model in small at work: three images, open_clip's embeddings, headspan's row, the oracle's terms."""

    wanted: np.ndarray
    tower: Tower
    row: PooledRow
    layers: tuple[int, ...]
    carried: tuple[int, ...]
    oracle: list[Decomposition]


def at_work(name: str) -> Case:
    visual, size = in_small(name)
    randomise_all(visual, seed=len(name))
    pixels = np.random.default_rng(len(name)).standard_normal((3, 3, *size)).astype(np.float32)
    tower = to_tower(visual, name)
    layers = tuple(tower.direct_layers)
    carried = tuple(layer for layer in range(tower.layers) if layer not in layers)
    given = torch.from_numpy(pixels)
    row = tower.forward(given, layers, with_patches=True, with_terms=True, carried=carried)
    weights, facts = weights_of(visual), facts_of(visual)
    oracle = [decompose_tower(weights, facts, image) for image in pixels]
    return Case(encode_image(visual, given), tower, row, layers, carried, oracle)


@pytest.mark.parametrize("name", CASES.values())
def test_a_supported_model_comes_apart_exactly(name: str) -> None:
    case = at_work(name)
    tower, row, oracle = case.tower, case.row, case.oracle
    assert relative_error([image.embedding for image in oracle], case.wanted) < tolerances.ORACLE_FLOAT32
    assert relative_error(row.heads, np.stack([image.mixes for image in oracle])) < tolerances.ORACLE_FLOAT32
    assert row.patches is not None
    assert relative_error(row.patches, np.stack([i.patch_mixes for i in oracle])) < tolerances.ORACLE_FLOAT32
    for convention in CONVENTIONS:
        terms = joint_terms(tower, row, case.layers, convention, carried=case.carried)
        assert relative_error(terms.embedding, case.wanted) < tolerances.FLOAT32_SUM
        assert relative_error(terms.total(convention), case.wanted) < tolerances.FLOAT32_SUM
        wanted = [image.contributions(convention) for image in oracle]
        assert relative_error([w.total() for w in wanted], case.wanted) < tolerances.ORACLE_FLOAT32
        assert relative_error(terms.norm, [[i.mu, i.s, i.norm] for i in oracle]) < tolerances.ORACLE_FLOAT32
        assert relative_error(terms.heads, np.stack([w.heads for w in wanted])) < tolerances.ORACLE_FLOAT32
        assert terms.patches is not None
        by_head = terms.patches.swapaxes(2, 3)
        assert relative_error(by_head, np.stack([w.patches for w in wanted])) < tolerances.ORACLE_FLOAT32
        assert terms.mlps.shape[1] == tower.terms == len(wanted[0].mlps)
        if tower.terms:
            assert relative_error(terms.mlps, np.stack([w.mlps for w in wanted])) < tolerances.ORACLE_FLOAT32
        if convention == "own":
            biases = np.stack([np.vstack([w.attention_biases, w.final_bias]) for w in wanted])
            assert relative_error(terms.biases, biases) < tolerances.ORACLE_FLOAT32
        assert (terms.carried is None) == (tower.pool is None)
        if terms.carried is not None:
            carried = np.stack([image.carried for image in oracle if image.carried is not None])
            assert relative_error(terms.carried, carried) < tolerances.ORACLE_FLOAT32
