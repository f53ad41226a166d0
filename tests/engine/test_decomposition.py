"""Tests of tower and contributions against open_clip's forward pass, the published numbers and the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.factory import get_model_config
from open_clip.model import _build_vision_tower
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn

from headspan.decompose.contributions import contributions
from headspan.decompose.fold import fold
from headspan.decompose.formula import (
    Convention,
    bias_contributions,
    check_convention,
    head_coordinates,
    head_directions,
    mlp_contributions,
)
from headspan.decompose.moments import Moments
from headspan.errors import SettingsError
from headspan.model.convert import to_tower
from headspan.model.tower import PooledRow, Tower
from headspan.shards.samples import Sample, Shard
from headspan.store.reader import Store
from headspan.store.schema import FORMAT
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter
from tests import tolerances
from tests.conftest import randomise
from tests.golden import recipe
from tests.oracle import Activation, Decomposition, Pool, decompose
from tests.tolerances import relative_error

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "prs_vitb32.npz"
# Of a model with more layers, only so many are computed.
MOST_LAYERS = 8
CONVENTIONS: tuple[Convention, ...] = ("uniform", "per_term")


@dataclass(frozen=True)
class Joint:
    """All terms of a batch in joint space, as the reader of a store returns them, but without rounding to 16 bits."""

    embedding: np.ndarray
    norm: np.ndarray
    heads: np.ndarray
    mlps: np.ndarray
    biases: np.ndarray
    patches: np.ndarray | None
    through_pool: np.ndarray | None = None

    def total(self, convention: Convention) -> np.ndarray:
        biases = self.biases.sum(axis=1) if convention == "per_term" else 0
        return self.heads.sum(axis=(1, 2)) + self.mlps.sum(axis=1) + biases


@contextmanager
def unrounded() -> Iterator[None]:
    """Skip the rounding to 16 bits, the last step before storage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "half", torch.Tensor.float)
        yield


def joint_terms(
    tower: Tower,
    row: PooledRow,
    layers: tuple[int, ...],
    convention: Convention,
    normalised: bool = False,
    through_pool: tuple[int, ...] = (),
) -> Joint:
    """All terms, computed by `contributions`, `fold` and the formulas of the conventions."""
    with unrounded():
        arrays = contributions(row, tower, through_pool).arrays
    folded, norm = fold(tower, layers), arrays["norm"]
    heads = np.empty((len(norm), len(layers), tower.heads, tower.joint), np.float32)
    patches = None
    if row.patches is not None:
        patches = np.empty((len(norm), len(layers), tower.tokens, tower.heads, tower.joint), np.float32)
    for (kept, layer), head in itertools.product(enumerate(layers), range(tower.heads)):
        directions = head_directions(folded, kept, layer - tower.layers, head, convention)
        heads[:, kept, head] = head_coordinates(arrays["heads"][:, kept, head], norm, normalised) @ directions
        if patches is not None:
            spread = np.repeat(norm[:, None], tower.tokens, axis=1)
            head_outputs = arrays["patches"][:, kept, head]
            patches[:, kept, :, head] = (
                head_coordinates(head_outputs, spread, normalised, parts=tower.tokens) @ directions
            )
    mlps = np.zeros((len(norm), 0, tower.joint), np.float32)
    if row.terms is not None:
        mlps = mlp_contributions(arrays["mlps"], arrays["mlp_means"], norm, folded, convention, normalised)
    biases = bias_contributions(norm, folded, normalised)
    return Joint(arrays["embedding"], norm, heads, mlps, biases, patches, arrays.get("through_pool"))


def build_visual(config: dict[str, Any], seed: int) -> VisionTransformer:
    """The image tower of an open_clip config with random parameters; open_clip's initialisation is skipped."""
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))
    visual = visual.to_empty(device="cpu").eval()
    randomise(visual, seed)
    return visual


@torch.inference_mode()
def encode_image(visual: VisionTransformer, pixels: torch.Tensor) -> np.ndarray:
    found = visual(pixels)
    # CoCa's towers also return their tokens.
    return (found[0] if isinstance(found, tuple) else found).numpy()


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("ViT-B-32", 2),
        ("ViT-B-16", 2),
        ("ViT-M-16-alt", 2),
        ("ViT-L-14", 1),
        pytest.param("ViT-L-14-CLIPA", 1, marks=pytest.mark.full_size),
    ],
)
def test_contributions_sum_to_open_clips_embedding(name: str, images: int) -> None:
    config = get_model_config(name)
    # All layers of a model are alike, so some stand for the 24 of the large ones.
    config["vision_cfg"]["layers"] = min(config["vision_cfg"]["layers"], MOST_LAYERS)
    visual = build_visual(config, seed=len(name))
    pixels = torch.from_numpy(recipe.images(images, seed=3))
    wanted = encode_image(visual, pixels)
    tower = to_tower(visual, name)
    every_layer = tuple(range(len(tower.blocks)))
    row = tower.forward(pixels, every_layer, with_patches=True, with_terms=True)
    assert row.patches is not None
    assert relative_error(row.patches.sum(dim=3), row.heads) < tolerances.FLOAT32_SUM
    # The patches are compared above; in joint space the heads are enough.
    row = PooledRow(row.state, row.std, row.heads, None, row.terms)
    for convention in CONVENTIONS:
        terms = joint_terms(tower, row, every_layer, convention)
        assert relative_error(terms.embedding, wanted) < tolerances.FLOAT32_SUM
        assert relative_error(terms.total(convention), wanted) < tolerances.FLOAT32_SUM
        assert relative_error(terms.norm[:, 2], np.linalg.norm(wanted, axis=1)) < tolerances.FLOAT32_SUM
    unit = joint_terms(tower, row, every_layer, "uniform", normalised=True).total("uniform")
    assert relative_error(unit, wanted / np.linalg.norm(wanted, axis=1, keepdims=True)) < tolerances.FLOAT32_SUM


def golden_tower() -> Tower:
    visual = VisionTransformer(224, 32, 768, 12, 12, mlp_ratio=4.0, output_dim=512).eval()
    recipe.fill_visual(nn.ModuleDict({"visual": visual}), seed=0)
    return to_tower(visual, "ViT-B-32")


@pytest.fixture(scope="module")
def golden() -> Iterator[Any]:
    with np.load(GOLDEN) as arrays:
        yield dict(arrays)


@pytest.fixture(scope="module")
def golden_run() -> tuple[Tower, PooledRow]:
    tower = golden_tower()
    pixels = torch.from_numpy(recipe.images(64, seed=1, keep=2))
    return tower, tower.forward(pixels, range(12), with_patches=True, with_terms=True)


def test_the_published_numbers_are_reproduced_before_storing(
    golden: dict[str, np.ndarray], golden_run: tuple[Tower, PooledRow]
) -> None:
    tower, row = golden_run
    terms = joint_terms(tower, row, tuple(range(12)), "uniform", normalised=True)
    assert terms.patches is not None
    layers = golden["attn_spatial_layers"]
    assert relative_error(terms.embedding, golden["embedding"]) < tolerances.FLOAT32_SUM
    assert relative_error(terms.heads, golden["attn"]) < tolerances.FLOAT32_SUM
    assert relative_error(terms.mlps, golden["mlp"]) < tolerances.FLOAT32_SUM
    assert relative_error(terms.patches[:1, layers], golden["attn_spatial"]) < tolerances.FLOAT32_SUM
    # An average over heads could hide a wrong head.
    for head in range(12):
        assert relative_error(terms.heads[:, 11, head], golden["attn"][:, 11, head]) < tolerances.FLOAT32_SUM


def test_the_published_numbers_are_read_back_from_a_store_of_16_bits(
    golden: dict[str, np.ndarray], golden_run: tuple[Tower, PooledRow], tmp_path: Path
) -> None:
    tower, row = golden_run
    layers, emit = tuple(range(12)), ("heads", "patches", "mlps")
    attributes = {
        "format": FORMAT,
        "version": "0",
        "emit": list(emit),
        "dimensions": {
            "images": 2,
            "unit_images": 3,
            "layers": list(layers),
            "all_layers": 12,
            "direct_layers": 12,
            "heads": tower.heads,
            "head_dim": tower.head_dim,
            "tokens": tower.tokens,
            "prefix_tokens": 1,
            "joint": tower.joint,
            "terms": 13,
            "through_pool": [],
        },
    }
    samples = [Sample(n, f"k{n}", "a.tar", f"k{n}.jpg", 512, 1) for n in range(2)]
    with NewStore(tmp_path / "golden.zarr") as staged:
        assert staged.plan(samples, 3, []) == 2
        staged.publish(attributes, [Shard("a.tar", 0, 2, 1, 1)], fold(tower, layers))
    writer = StoreWriter(tmp_path / "golden.zarr")
    (unit,) = writer.unfinished()
    found, moments = contributions(row, tower), Moments.zeros(12, 12, 64, torch.device("cpu"))
    moments.add(found.heads, found.norm)
    with writer.begin(unit) as rows:
        rows.put(np.arange(2), found.good, found.arrays)
        rows.commit(moments, [])
    writer.finish()

    store = Store(tmp_path / "golden.zarr")
    assert store.images == 2
    assert relative_error(store.embedding, golden["embedding"]) < tolerances.FLOAT32_SUM
    assert relative_error(store.mlps(), golden["mlp"]) < tolerances.FLOAT16_STORE
    for layer, head in itertools.product(layers, range(12)):
        wanted = golden["attn"][:, layer, head]
        assert relative_error(store.head(layer, head), wanted) < tolerances.FLOAT16_STORE, (layer, head)
    for place, layer in enumerate(golden["attn_spatial_layers"].tolist()):
        wanted = golden["attn_spatial"][0, place]
        assert relative_error(store.patches(0, layer), wanted) < tolerances.FLOAT16_STORE


class TanhGELU(nn.GELU):
    """What open_clip builds from `act_kwargs={"approximate": "tanh"}`."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "gelu_tanh": TanhGELU, "quick_gelu": QuickGELU}
FLAGS = (False, True)
LAYERS, HEADS, PATCH = 3, 3, 4


def toy_visual(
    pool: Pool, final_ln_after_pool: bool, layer_scale: bool, no_ln_pre: bool, activation: Activation
) -> VisionTransformer:
    """A tower of three heads of five dimensions and a 2 × 3 grid; the patches do not cover the whole image."""
    visual = VisionTransformer(
        image_size=(9, 14),
        patch_size=PATCH,
        width=15,
        layers=LAYERS,
        heads=HEADS,
        mlp_ratio=1.4,
        ls_init_value=1.0 if layer_scale else None,
        pool_type=pool,
        final_ln_after_pool=final_ln_after_pool,
        no_ln_pre=no_ln_pre,
        output_dim=7,
        act_layer=ACTIVATIONS[activation],
    ).eval()
    randomise(visual, seed=257)
    return visual


def toy_pixels(images: int) -> np.ndarray:
    return np.random.default_rng(images).standard_normal((images, 3, 9, 14)).astype(np.float32)


def take_apart(visual: VisionTransformer, activation: Activation, pixels: np.ndarray) -> list[Decomposition]:
    weights = {name: tensor.numpy() for name, tensor in visual.state_dict().items()}
    return [
        decompose(
            weights,
            heads=HEADS,
            patch_size=PATCH,
            activation=activation,
            pool=visual.pool_type,
            final_ln_after_pool=visual.final_ln_after_pool,
            pixels=image,
        )
        for image in pixels
    ]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("no_ln_pre", FLAGS)
@pytest.mark.parametrize("layer_scale", FLAGS)
@pytest.mark.parametrize("final_ln_after_pool", FLAGS)
@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_every_kind_of_tower_decomposes_as_the_oracle_does(
    pool: Pool, final_ln_after_pool: bool, layer_scale: bool, no_ln_pre: bool, activation: Activation
) -> None:
    visual = toy_visual(pool, final_ln_after_pool, layer_scale, no_ln_pre, activation)
    tower = to_tower(visual, "toy")
    for images in (1, 3):
        pixels = toy_pixels(images)
        oracle = take_apart(visual, activation, pixels)
        row = tower.forward(torch.from_numpy(pixels), range(LAYERS), with_patches=True, with_terms=True)
        assert row.patches is not None
        head_outputs = np.stack([image.head_outputs for image in oracle])
        assert relative_error(row.heads, head_outputs) < tolerances.ORACLE_FLOAT32
        assert relative_error(row.patches, np.stack([i.patch_head_outputs for i in oracle])) < tolerances.ORACLE_FLOAT32
        assert relative_error(row.state, np.stack([i.pooled() for i in oracle])) < tolerances.ORACLE_FLOAT32
        for convention in CONVENTIONS:
            terms = joint_terms(tower, row, tuple(range(LAYERS)), convention)
            wanted = [image.contributions(convention) for image in oracle]
            assert relative_error(terms.embedding, np.stack([i.embedding for i in oracle])) < tolerances.ORACLE_FLOAT32
            assert relative_error(terms.norm, [[i.mu, i.s, i.norm] for i in oracle]) < tolerances.ORACLE_FLOAT32
            assert relative_error(terms.heads, np.stack([w.heads for w in wanted])) < tolerances.ORACLE_FLOAT32
            assert relative_error(terms.mlps, np.stack([w.mlps for w in wanted])) < tolerances.ORACLE_FLOAT32
            assert terms.patches is not None
            by_head = terms.patches.swapaxes(2, 3)
            assert relative_error(by_head, np.stack([w.patches for w in wanted])) < tolerances.ORACLE_FLOAT32
            if convention == "per_term":
                biases = np.stack([np.vstack([w.attention_biases, w.final_bias]) for w in wanted])
                assert relative_error(terms.biases, biases) < tolerances.ORACLE_FLOAT32


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_a_layer_has_the_same_numbers_with_and_without_the_other_layers(pool: Pool) -> None:
    tower = to_tower(toy_visual(pool, False, True, False, "gelu"), "toy")
    pixels = torch.from_numpy(toy_pixels(3))
    every = tower.forward(pixels, range(LAYERS), with_patches=True, with_terms=True)
    for layers in ((0,), (2,), (0, 2)):
        some = tower.forward(pixels, layers, with_patches=True, with_terms=True)
        assert some.patches is not None
        assert every.patches is not None
        torch.testing.assert_close(some.heads, every.heads[:, layers])
        torch.testing.assert_close(some.patches, every.patches[:, layers])
        for convention in CONVENTIONS:
            wanted = joint_terms(tower, every, tuple(range(LAYERS)), convention)
            terms = joint_terms(tower, some, layers, convention)
            assert relative_error(terms.heads, wanted.heads[:, layers]) < tolerances.FLOAT32_SUM
            assert relative_error(terms.biases, wanted.biases) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_heads_are_the_same_whether_or_not_patches_and_terms_are_asked_for(pool: Pool) -> None:
    tower = to_tower(toy_visual(pool, True, False, False, "gelu"), "toy")
    pixels = torch.from_numpy(toy_pixels(3))
    full = tower.forward(pixels, range(LAYERS), with_patches=True, with_terms=True)
    plain = tower.forward(pixels, range(LAYERS))
    assert plain.patches is None
    assert plain.terms is None
    assert relative_error(plain.heads, full.heads) < tolerances.FLOAT32_SUM
    assert relative_error(plain.state, full.state) < tolerances.FLOAT32_SUM
    assert relative_error(plain.std, full.std) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize("final_ln_after_pool", FLAGS)
@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, tolerances.FLOAT16_PASS), (torch.bfloat16, tolerances.BFLOAT16_PASS)]
)
def test_a_tower_in_16_bits_is_close_to_the_oracle_and_emits_float32(
    pool: Pool, final_ln_after_pool: bool, dtype: torch.dtype, tolerance: float
) -> None:
    visual = toy_visual(pool, final_ln_after_pool, True, False, "gelu")
    pixels = toy_pixels(3)
    oracle = take_apart(visual, "gelu", pixels)
    tower = to_tower(visual, "toy").to(torch.device("cpu"), dtype)
    row = tower.forward(torch.from_numpy(pixels).to(dtype), range(LAYERS), with_patches=True, with_terms=True)
    for tensor in (row.state, row.std, row.heads, row.patches, row.terms):
        assert tensor is not None
        assert tensor.dtype == torch.float32
    assert relative_error(row.heads, np.stack([image.head_outputs for image in oracle])) < tolerance
    assert relative_error(contributions(row, tower).arrays["embedding"], [i.embedding for i in oracle]) < tolerance


def test_the_norm_takes_its_eps_from_the_model() -> None:
    # The variance is as small as eps, so the value of eps matters.
    vision = {"image_size": 8, "patch_size": 4, "width": 12, "layers": 1, "head_width": 4, "norm_kwargs": {"eps": 0.5}}
    visual = build_visual({"embed_dim": 5, "vision_cfg": vision}, seed=1)
    pixels = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32))
    tower = to_tower(visual, "toy")
    terms = joint_terms(tower, tower.forward(pixels, (0,), with_terms=True), (0,), "per_term")
    assert relative_error(terms.total("per_term"), encode_image(visual, pixels)) < tolerances.FLOAT32_SUM


def test_unknown_and_earlier_names_of_conventions_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"convention 'odd' is unknown; use 'uniform' .* or 'per_term'"):
        check_convention("odd")
    for earlier, name in (("even", "uniform"), ("own", "per_term")):
        with pytest.raises(SettingsError, match=rf"convention '{earlier}' is now called '{name}'; use that name"):
            check_convention(earlier)


def test_moments_are_accumulated_from_the_float32_heads() -> None:
    tower = to_tower(toy_visual("tok", False, True, False, "gelu"), "toy")
    found = [contributions(tower.forward(torch.from_numpy(toy_pixels(n)), (0, 2)), tower) for n in (1, 3, 7)]
    moments = Moments.zeros(2, HEADS, 5, torch.device("cpu"))
    for batch in found:
        moments.add(batch.heads, batch.norm)
    count, total, gram = moments.arrays()
    heads = np.concatenate([batch.heads.numpy() for batch in found]).astype(np.float64)
    norm = np.concatenate([batch.norm.numpy() for batch in found]).astype(np.float64)
    assert count == 11
    for kept, head in itertools.product(range(2), range(HEADS)):
        rows = [
            [*(head_output / s), 1 / s, mu / s, 1.0] / length
            for head_output, (mu, s, length) in zip(heads[:, kept, head], norm, strict=True)
        ]
        assert relative_error(total[kept, head], np.sum(rows, axis=0)) < tolerances.FLOAT64
        assert relative_error(gram[kept, head], sum(np.outer(row, row) for row in rows)) < tolerances.FLOAT64
