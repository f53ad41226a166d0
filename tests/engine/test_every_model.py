"""Every model that open_clip can build is either decomposed exactly or refused with a reason.

A supported model runs at a small size (two layers, narrow, a few patches) with its own flags and random parameters. The
sum of its terms is compared with open_clip's output, and each term with the float64 oracle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.factory import get_model_config
from open_clip.model import _build_vision_tower
from open_clip.transformer import QuickGELU, VisionTransformer
from timm.models.eva import Eva
from torch import nn

import headspan as hs
from headspan.cli.main import main
from headspan.errors import ModelError
from headspan.model.convert import catalogue, to_tower, unsupported_reason
from headspan.model.tower import PooledRow, Tower
from tests import tolerances
from tests.engine.test_decomposition import CONVENTIONS, encode_image, joint_terms
from tests.oracle import Decomposition
from tests.oracle_towers import Facts, Rotary, as_timm, decompose_tower
from tests.tolerances import relative_error
from tools import list_models


def may_be_supported(config: dict[str, Any]) -> bool:
    """Whether an image tower is no ResNet and of no other family; building each tower would take seconds."""
    vision = config["vision_cfg"]
    family = timm.model_entrypoint(vision["timm_model_name"]).__module__ if "timm_model_name" in vision else ""
    others = ("convnext", "swin_transformer", "fastvit", "vitamin")
    return not isinstance(vision.get("layers", 0), list) and not family.endswith(others)


NAMES = [name for name in open_clip.list_models() if "headspan" not in name]
# `test_all_hundred_and_one_vision_transformers_are_supported` compares them with headspan's own list.
SUPPORTED = [name for name in NAMES if may_be_supported(get_model_config(name))]
# The smallest model of each family, with its full width and number of layers. The largest EVA, with 4.4 billion
# parameters, has its full width but fewer layers.
FULL_SIZE = {
    "coca_ViT-B-32": 12,
    "EVA01-g-14": 40,
    "EVA02-B-16": 12,
    "EVA02-E-14": 2,
    "MobileCLIP-B": 12,
    "MobileCLIP2-L-14": 24,
    "PE-Core-T-16-384": 12,
    "PE-Core-B-16": 12,
    "ViT-B-16-SigLIP": 12,
    "ViT-B-32": 12,
    "vit_medium_patch16_gap_256": 12,
    "vit_relpos_medium_patch16_cls_224": 12,
}
# Towers that no config of open_clip has but a user's config may have: a config with further arguments of timm.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "latent query over patches after class token and registers": (
        "ViT-B-16-SigLIP",
        {"class_token": True, "reg_tokens": 2},
    ),
    "mean of the patches behind class token and registers, norm before": (
        "vit_medium_patch16_gap_256",
        {"class_token": True, "reg_tokens": 1, "no_embed_class": True},
    ),
    "mean of the patches, norm behind": (
        "vit_medium_patch16_gap_256",
        {"class_token": True, "fc_norm": True, "qkv_bias": True},
    ),
    "rotary, registers, LayerScale, norm behind the mean": (
        "EVA02-B-16",
        {"num_reg_tokens": 2, "init_values": 0.1, "scale_attn_inner": False, "global_pool": "avg", "qkv_fused": True},
    ),
    "packed gate, rotary without reference grid": ("EVA02-L-14", {"scale_mlp": False, "ref_feat_shape": None}),
    "relative positions without class token": (
        "vit_relpos_medium_patch16_cls_224",
        {"class_token": False, "global_pool": "avg", "qkv_bias": True},
    ),
}


def flags(name: str) -> str:
    """The settings of a config that do not only change sizes. Models that agree in them are one case."""
    config = get_model_config(name)
    sizes = ("image_size", "width", "layers", "head_width", "mlp_ratio", "timm_drop", "timm_drop_path")
    vision = {key: value for key, value in config["vision_cfg"].items() if key not in sizes}
    if "timm_model_name" not in vision:
        vision["quick_gelu"] = config.get("quick_gelu", False)
    return json.dumps(vision, sort_keys=True)


CASES = {flags(name): name for name in reversed(SUPPORTED)}


@contextmanager
def timm_sizes(**sizes: Any) -> Iterator[None]:
    """Add these sizes to open_clip's calls of timm."""
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_clip.timm_model.timm.create_model", lambda *a, **k: create(*a, **k, **sizes))
        yield


def small_tower(name: str, **more: Any) -> tuple[nn.Module, tuple[int, int]]:
    """The model's image tower with two layers, three heads and two rows of three patches, and its image size."""
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
    # A convolutional stem keeps the model's widths.
    if "mci" not in model:
        sizes |= {"embed_dim": 24, "num_heads": 3}
    if "global_pool" in more:
        vision = {**vision, "timm_pool": more["global_pool"]}
        # open_clip passes the pooling to timm itself, unless it adds its own projection.
        more = more if vision["timm_proj"] == "linear" else {k: v for k, v in more.items() if k != "global_pool"}
    with timm_sizes(**sizes | more):
        return _build_vision_tower(16, {**vision, "image_size": size}), size


def randomise_all(visual: nn.Module, seed: int) -> nn.Module:
    """Randomise every parameter and running statistic, since ones and zeros would hide wrong flags."""
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
    """The facts that the oracle needs, read from open_clip's and timm's modules."""
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
        pool_skip=trunk.num_prefix_tokens if pool is not None and not isinstance(trunk, Eva) else 0,
    )


def weights_of(visual: nn.Module) -> dict[str, np.ndarray]:
    weights = {name.removeprefix("trunk."): tensor.numpy() for name, tensor in visual.state_dict().items()}
    weights = {("head.weight" if name == "head.proj.weight" else name): value for name, value in weights.items()}
    return as_timm(weights) if isinstance(visual, VisionTransformer) else weights


@dataclass(frozen=True)
class Case:
    """A small model run on three images: open_clip's embeddings, headspan's pooled row, the oracle's terms."""

    wanted: np.ndarray
    tower: Tower
    row: PooledRow
    layers: tuple[int, ...]
    through_pool: tuple[int, ...]
    oracle: list[Decomposition]


def run_small(name: str, **more: Any) -> Case:
    visual, size = small_tower(name, **more)
    randomise_all(visual, seed=len(name))
    pixels = np.random.default_rng(len(name)).standard_normal((3, 3, *size)).astype(np.float32)
    tower = to_tower(visual, name)
    layers = tuple(tower.direct_layers)
    through_pool = tuple(layer for layer in range(tower.layers) if layer not in layers)
    given = torch.from_numpy(pixels)
    row = tower.forward(given, layers, with_patches=True, with_terms=True, through_pool=through_pool)
    weights, facts = weights_of(visual), facts_of(visual)
    oracle = [decompose_tower(weights, facts, image) for image in pixels]
    return Case(encode_image(visual, given), tower, row, layers, through_pool, oracle)


@pytest.mark.parametrize("name", CASES.values())
def test_a_supported_model_is_decomposed_exactly(name: str) -> None:
    check(run_small(name))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tower_from_a_users_config_is_decomposed_exactly(variant: str) -> None:
    name, more = VARIANTS[variant]
    check(run_small(name, **more))


def check(case: Case) -> None:
    """Compare sums with open_clip's output, and every part with the oracle."""
    tower, row, oracle = case.tower, case.row, case.oracle
    assert relative_error([image.embedding for image in oracle], case.wanted) < tolerances.ORACLE_FLOAT32
    assert relative_error(row.heads, np.stack([image.head_outputs for image in oracle])) < tolerances.ORACLE_FLOAT32
    assert row.patches is not None
    assert relative_error(row.patches, np.stack([i.patch_head_outputs for i in oracle])) < tolerances.ORACLE_FLOAT32
    for convention in CONVENTIONS:
        terms = joint_terms(tower, row, case.layers, convention, through_pool=case.through_pool)
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
        if convention == "per_term":
            biases = np.stack([np.vstack([w.attention_biases, w.final_bias]) for w in wanted])
            assert relative_error(terms.biases, biases) < tolerances.ORACLE_FLOAT32
        assert (terms.through_pool is None) == (tower.attention_pool is None)
        if terms.through_pool is not None:
            through_pool = np.stack([image.through_pool for image in oracle if image.through_pool is not None])
            assert relative_error(terms.through_pool, through_pool) < tolerances.ORACLE_FLOAT32


@pytest.fixture(scope="module")
def verdicts() -> dict[str, str | None]:
    """What headspan says of open_clip's models; other tests may have added configs to them."""
    found = catalogue()
    return {name: found[name] for name in NAMES}


def test_all_hundred_and_one_vision_transformers_are_supported(verdicts: dict[str, str | None]) -> None:
    assert [name for name, reason in verdicts.items() if reason is None] == SUPPORTED
    assert (len(SUPPORTED), len(verdicts)) == (101, 144)
    kinds = ("ResNet", "ConvNeXt", "Swin", "FastViT", "ViTamin")
    counts = {kind: sum(kind in (reason or "") for reason in verdicts.values()) for kind in kinds}
    assert counts == {"ResNet": 10, "ConvNeXt": 11, "Swin": 1, "FastViT": 6, "ViTamin": 15}
    assert {flags(name) for name in SUPPORTED} == set(CASES)


@pytest.mark.parametrize("name", FULL_SIZE)
@pytest.mark.full_size
def test_a_model_of_each_family_is_decomposed_at_full_size(name: str) -> None:
    config = get_model_config(name)
    depth = FULL_SIZE[name]
    with timm_sizes(**({"depth": depth} if name == "EVA02-E-14" else {})):
        visual: Any = _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))
    randomise_all(visual, seed=1)
    pixels = np.random.default_rng(1).standard_normal((1, 3, *visual.image_size)).astype(np.float32)
    given = torch.from_numpy(pixels)
    wanted = encode_image(visual, given)
    tower = to_tower(visual, name)
    assert len(tower.blocks) == depth
    layers = tuple(tower.direct_layers)
    row = tower.forward(given, layers, with_terms=True)
    for convention in CONVENTIONS:
        terms = joint_terms(tower, row, layers, convention)
        assert relative_error(terms.embedding, wanted) < tolerances.FLOAT32_SUM
        assert relative_error(terms.total(convention), wanted) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize(
    "name", ["ViT-B-16-SigLIP", "PE-Core-B-16", "EVA02-B-16", "vit_relpos_medium_patch16_cls_224", "MobileCLIP-B"]
)
def test_another_image_size_has_the_positions_that_open_clip_computes(name: str) -> None:
    visual, (height, width) = small_tower(name)
    randomise_all(visual, seed=3)
    before = to_tower(visual, name)
    # open_clip does this to a timm tower after loading its weights.
    visual.set_input_size((2 * height, width + height))
    pixels = np.random.default_rng(3).standard_normal((2, 3, 2 * height, width + height)).astype(np.float32)
    given = torch.from_numpy(pixels)
    tower = to_tower(visual, name)
    assert tower.tokens - tower.prefix_tokens == 4 * 5
    assert before.tokens - before.prefix_tokens == 2 * 3
    layers = tuple(tower.direct_layers)
    terms = joint_terms(tower, tower.forward(given, layers, with_terms=True), layers, "per_term")
    assert relative_error(terms.total("per_term"), encode_image(visual, given)) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "PE-Core-B-16", "coca_ViT-B-32", "EVA02-B-16", "EVA02-E-14"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, tolerances.FLOAT16_PASS), (torch.bfloat16, tolerances.BFLOAT16_PASS)]
)
def test_every_kind_of_pooling_and_norm_runs_in_16_bits(name: str, dtype: torch.dtype, tolerance: float) -> None:
    visual, size = small_tower(name)
    randomise_all(visual, seed=5)
    pixels = torch.from_numpy(np.random.default_rng(5).standard_normal((3, 3, *size)).astype(np.float32))
    exact = to_tower(visual, name)
    tower = exact.to(torch.device("cpu"), dtype)
    assert (exact.rope is None) == (tower.rope is None)
    layers = tuple(tower.direct_layers)
    through_pool = () if tower.attention_pool is None else (0,)
    row = tower.forward(pixels.to(dtype), layers, with_patches=True, with_terms=True, through_pool=through_pool)
    for tensor in (row.state, row.std, row.heads, row.patches, row.terms, row.through_pool):
        assert tensor is None or tensor.dtype == torch.float32
    terms = joint_terms(tower, row, layers, "uniform", through_pool=through_pool)
    assert relative_error(terms.embedding, encode_image(visual, pixels)) < tolerance
    assert relative_error(terms.total("uniform"), terms.embedding) < tolerance


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA02-B-16", "EVA02-E-14", "vit_relpos_medium_patch16_cls_224"])
def test_heads_are_the_same_with_and_without_patches(name: str) -> None:
    visual, size = small_tower(name)
    randomise_all(visual, seed=7)
    pixels = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 3, *size)).astype(np.float32))
    tower = to_tower(visual, name)
    layers = tuple(tower.direct_layers)
    full = tower.forward(pixels, layers, with_patches=True, with_terms=True)
    plain = tower.forward(pixels, layers)
    assert (plain.patches, plain.terms, plain.through_pool) == (None, None, None)
    assert full.patches is not None
    assert relative_error(full.patches.sum(dim=3), full.heads) < tolerances.FLOAT32_SUM
    assert relative_error(plain.heads, full.heads) < tolerances.FLOAT32_SUM
    assert relative_error(plain.state, full.state) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("EVA02-B-16", {"global_pool": "avg"}, "its attention has norms after it, and it has no class token"),
        ("PE-Core-B-16", {"qk_norm": True}, "its queries and keys are normalised"),
        ("PE-Core-B-16", {"qkv_fused": False, "num_kv_heads": 1}, "its heads share keys and values"),
        ("PE-Core-B-16", {"rope_type": "mixed"}, "its rotary embeddings differ between layers"),
        ("vit_medium_patch16_gap_256", {"global_pool": "max"}, "its image tower pools its rows by 'max'"),
        ("vit_medium_patch16_gap_256", {"dynamic_img_size": True}, "its positions depend on each image's size"),
        ("vit_medium_patch16_gap_256", {"class_token": True, "pool_include_prefix": True}, "its mean counts the class"),
        ("vit_medium_patch16_gap_256", {"norm_layer": "rmsnorm"}, "its norms are RmsNorm, not LayerNorms"),
        ("vit_medium_patch16_gap_256", {"act_layer": "relu"}, "its MLPs use ReLU, but headspan runs GELU, QuickGELU"),
        ("vit_medium_patch16_gap_256", {"attn_layer": "diff"}, "its blocks are Block with DiffAttention"),
    ],
)
def test_a_tower_with_unsupported_parts_is_refused(name: str, more: dict[str, Any], reason: str) -> None:
    visual, _ = small_tower(name, **more)
    with pytest.raises(ModelError, match=rf"^odd: {reason}.*; headspan decomposes Vision Transformers, open_clip's"):
        to_tower(visual, "odd")


def test_a_gate_after_the_heads_is_refused() -> None:
    visual: Any = small_tower("ViT-B-16-SigLIP")[0]
    visual.trunk.blocks[1].attn.gate = nn.Linear(24, 24)
    with pytest.raises(ModelError, match=r"^odd: its attention outputs are gated; headspan decomposes"):
        to_tower(visual, "odd")


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ({"attentional_pool": "parallel", "attn_pooler_queries": 3}, "its attention pooling has several queries"),
        ({"attentional_pool": True, "pool_type": "avg"}, "its attention pooling has several queries"),
        ({"block_type": "custom"}, "its blocks are CustomResidualAttentionBlock"),
        ({"qk_norm": True}, "its blocks are CustomResidualAttentionBlock"),
        ({"scale_heads": True}, "its blocks are CustomResidualAttentionBlock"),
        ({"scale_fc": True}, "its blocks are CustomResidualAttentionBlock"),
        ({"pool_type": "none"}, "its image tower does not pool its rows"),
        ({"timm_model_name": "resnet50"}, "its image tower is timm's ResNet, which is not a Vision Transformer"),
        ({"timm_model_name": "vit_none"}, "its image tower is timm's vit_none, which timm .* does not have"),
        ({"timm_model_name": "vit_base_r26_s32_224"}, "its image tower is a hybrid with convolution stages"),
        (
            {"timm_model_name": "vit_base_patch16_224", "timm_proj": "mlp", "timm_pool": "token"},
            "its pooled row is not projected by one linear map",
        ),
    ],
)
def test_a_config_is_refused_before_its_weights_are_fetched(variant: dict[str, Any], reason: str) -> None:
    vision = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8, **variant}
    found = unsupported_reason({"embed_dim": 8, "vision_cfg": vision})
    assert found is not None
    assert re.match(reason, found)
    if "timm_model_name" not in variant:
        with pytest.raises(ModelError, match=rf"^odd: {reason}"):
            to_tower(_build_vision_tower(8, vision), "odd")


def test_an_unknown_activation_is_refused_by_name() -> None:
    visual = VisionTransformer(8, 4, 16, 1, 2, mlp_ratio=2.0, output_dim=8, act_layer=nn.ReLU)
    with pytest.raises(ModelError, match=r"odd: its MLPs use ReLU, but headspan runs GELU, QuickGELU and SiLU"):
        to_tower(visual, "odd")


def test_the_count_in_the_readme_is_correct(verdicts: dict[str, str | None]) -> None:
    text = list_models.README.read_text(encoding="utf-8")
    assert list_models.with_count(text, verdicts) == text


def test_the_command_lists_every_model_with_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clip.list_models", lambda: ["RN50", "ViT-B-16-SigLIP", "roberta-ViT-B-32"])
    monkeypatch.setattr("headspan.model.convert.find_spec", lambda name: None)
    assert hs.models() == {"RN50": "its image tower is a ResNet", "ViT-B-16-SigLIP": None, "roberta-ViT-B-32": None}
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "RN50              no: its image tower is a ResNet",
        "ViT-B-16-SigLIP   yes",
        "roberta-ViT-B-32  yes, after pip install transformers, for its text tower",
        f"headspan supports 2 of the 3 models of open_clip {version('open_clip_torch')}",
    ]
