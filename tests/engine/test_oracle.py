"""Tests of the oracle against open_clip's forward pass and against the numbers of the published code.

Other tests rely on the oracle, so these tests do not use headspan.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn

from tests import tolerances
from tests.golden import recipe
from tests.oracle import Activation, Decomposition, Pool, decompose, textspan
from tests.tolerances import relative_error

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TEXTSPAN_CASES = json.loads((GOLDEN / "textspan.json").read_text())
LAYERS, HEADS, PATCH = 3, 2, 4


class TanhGELU(nn.GELU):
    """What open_clip builds from `act_kwargs={"approximate": "tanh"}`."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": TanhGELU,
    "quick_gelu": QuickGELU,
}


def toy_tower(
    pool: Pool, final_ln_after_pool: bool, layer_scale: bool, no_ln_pre: bool, activation: Activation
) -> VisionTransformer:
    """A 2 × 3 grid of patches, three layers, two heads of three dimensions; no parameter has its default value."""
    tower = VisionTransformer(
        image_size=(8, 12),
        patch_size=PATCH,
        width=6,
        layers=LAYERS,
        heads=HEADS,
        mlp_ratio=1.5,
        ls_init_value=1.0 if layer_scale else None,
        pool_type=pool,
        final_ln_after_pool=final_ln_after_pool,
        no_ln_pre=no_ln_pre,
        output_dim=5,
        act_layer=ACTIVATIONS[activation],
    )
    generator = torch.Generator().manual_seed(3)
    tower = tower.double().eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            # Centred at 0.3, so that the norms' weights and LayerScales are not one, and biases are not zero.
            parameter.copy_(0.3 + 0.7 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return tower


def take_apart(tower: VisionTransformer, activation: Activation, pixels: np.ndarray) -> Decomposition:
    return decompose(
        {name: tensor.numpy() for name, tensor in tower.state_dict().items()},
        heads=HEADS,
        patch_size=PATCH,
        activation=activation,
        pool=tower.pool_type,
        final_ln_after_pool=tower.final_ln_after_pool,
        pixels=pixels,
    )


PIXELS = np.random.default_rng(5).standard_normal((3, 8, 12))
FLAGS = (False, True)
KINDS = list(itertools.product(("tok", "avg"), FLAGS, FLAGS, FLAGS, ACTIVATIONS))


@pytest.mark.parametrize(("pool", "final_ln_after_pool", "layer_scale", "no_ln_pre", "activation"), KINDS)
def test_the_terms_sum_to_open_clips_embedding_in_both_conventions(
    pool: Pool, final_ln_after_pool: bool, layer_scale: bool, no_ln_pre: bool, activation: Activation
) -> None:
    tower = toy_tower(pool, final_ln_after_pool, layer_scale, no_ln_pre, activation)
    with torch.no_grad():
        wanted = tower(torch.from_numpy(PIXELS)[None])[0].numpy()
    image = take_apart(tower, activation, PIXELS)

    assert relative_error(image.embedding, wanted) < tolerances.FLOAT64
    for convention in ("uniform", "per_term"):
        parts = image.contributions(convention)
        assert relative_error(parts.total(), wanted) < tolerances.FLOAT64
        assert relative_error(parts.patches.sum(axis=2), parts.heads) < tolerances.FLOAT64
        unit = image.contributions(convention, normalised=True).total()
        assert relative_error(unit, wanted / np.linalg.norm(wanted)) < tolerances.FLOAT64


@pytest.mark.parametrize("final_ln_after_pool", FLAGS)
@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_the_per_term_convention_is_one_fixed_matrix_per_head_for_all_images(
    pool: Pool, final_ln_after_pool: bool
) -> None:
    tower = toy_tower(pool, final_ln_after_pool, True, False, "gelu")
    last = tower.transformer.resblocks[-1]
    outward = (last.attn.out_proj.weight * last.ls_1.gamma[:, None]).detach().numpy().T
    outward = outward - outward.mean(axis=1, keepdims=True)
    folded = outward * tower.ln_post.weight.detach().numpy() @ tower.proj.detach().numpy()
    for seed in (0, 1, 257):
        pixels = np.random.default_rng(seed).standard_normal((3, 8, 12))
        image = take_apart(tower, "gelu", pixels)
        for head, matrix in enumerate(folded.reshape(HEADS, 3, 5)):
            wanted = image.head_outputs[-1, head] @ matrix / image.s
            assert relative_error(image.contributions("per_term").heads[-1, head], wanted) < tolerances.FLOAT64


@pytest.mark.parametrize("final_ln_after_pool", FLAGS)
@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_the_norms_statistics_map_the_pooled_sum_to_the_embedding(pool: Pool, final_ln_after_pool: bool) -> None:
    tower = toy_tower(pool, final_ln_after_pool, False, False, "gelu")
    image = take_apart(tower, "gelu", PIXELS)
    normed = image.final_weight * (image.pooled() - image.mu) / image.s + image.final_bias
    assert relative_error(normed @ image.projection, image.embedding) < tolerances.FLOAT64
    assert image.norm == np.linalg.norm(image.embedding)


def test_mean_pooling_leaves_the_class_token_out_as_a_row_but_not_as_a_source() -> None:
    tower = toy_tower("avg", True, False, False, "gelu")
    before = take_apart(tower, "gelu", PIXELS)
    with torch.no_grad():
        tower.class_embedding[0] += 1.0
    after = take_apart(tower, "gelu", PIXELS)
    assert (after.initial == before.initial).all()
    assert relative_error(after.patch_head_outputs[0, :, 0], before.patch_head_outputs[0, :, 0]) > 0.01


def test_the_oracle_reproduces_the_published_numbers_of_vit_b_32() -> None:
    tower = nn.ModuleDict({"visual": VisionTransformer(224, 32, 768, 12, 12, mlp_ratio=4.0, output_dim=512).eval()})
    recipe.fill_visual(tower, seed=0)
    image = decompose(
        {name: tensor.numpy() for name, tensor in tower["visual"].state_dict().items()},
        heads=12,
        patch_size=32,
        activation="gelu",
        pool="tok",
        final_ln_after_pool=False,
        pixels=recipe.images(64, seed=1, keep=1)[0],
    )
    parts = image.contributions("uniform", normalised=True)
    with np.load(GOLDEN / "prs_vitb32.npz") as golden:
        layers = golden["attn_spatial_layers"]
        assert relative_error(image.embedding, golden["embedding"][0]) < tolerances.ORACLE_FLOAT32
        assert relative_error(parts.heads, golden["attn"][0]) < tolerances.ORACLE_FLOAT32
        assert relative_error(parts.mlps, golden["mlp"][0]) < tolerances.ORACLE_FLOAT32
        by_token = parts.patches[layers].transpose(0, 2, 1, 3)
        assert relative_error(by_token, golden["attn_spatial"][0]) < tolerances.ORACLE_FLOAT32


@pytest.mark.parametrize("case", TEXTSPAN_CASES)
def test_textspan_picks_the_first_published_texts(case: str) -> None:
    golden = TEXTSPAN_CASES[case]
    contributions, texts = recipe.textspan_inputs(golden["seed"], **golden["make"])
    chosen, explained, _ = textspan(contributions, texts, 4, golden["rank"])
    assert chosen.tolist() == golden["chosen"][:4]
    assert explained[-1] < golden["explained"]


# A case takes some ten seconds; the first texts of each are compared above.
@pytest.mark.full_size
@pytest.mark.parametrize("case", TEXTSPAN_CASES)
def test_textspan_picks_the_published_sixty_texts(case: str) -> None:
    golden = TEXTSPAN_CASES[case]
    contributions, texts = recipe.textspan_inputs(golden["seed"], **golden["make"])
    chosen, explained, reconstruction = textspan(contributions, texts, 60, golden["rank"])

    assert chosen.tolist() == golden["chosen"]
    # The published number has five decimals.
    assert round(explained[-1], 5) == golden["explained"]
    assert (np.diff(explained) > 0).all()
    missing = ((contributions - reconstruction) ** 2).sum()
    spread = ((contributions - contributions.mean(axis=0)) ** 2).sum()
    assert abs(1 - missing / spread - explained[-1]) < tolerances.FLOAT32_SUM


def test_a_rank_above_the_true_one_changes_nothing() -> None:
    generator = np.random.default_rng(257)
    # Float32 products of rank 3 in 11 dimensions: the other 8 singular values are rounding noise.
    contributions = (generator.standard_normal((37, 3)) @ generator.standard_normal((3, 11))).astype(np.float32)
    texts = generator.standard_normal((101, 11)).astype(np.float32)
    exact, generous = (textspan(contributions, texts, 3, rank) for rank in (3, 11))
    assert exact[0].tolist() == generous[0].tolist()
    assert relative_error(exact[2], generous[2]) < tolerances.FLOAT64
    assert abs(exact[1][-1] - 1) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize("rank", [1, 2])
def test_textspan_at_a_low_rank_sees_only_the_leading_directions(rank: int) -> None:
    generator = np.random.default_rng(1)
    # Directions of spread 9, 3 and 1 along the axes; one text along each, the last one twice as long.
    contributions = generator.standard_normal((257, 3)) * [9.0, 3.0, 1.0]
    texts = np.diag([1.0, 1.0, 20.0])
    chosen, _, _ = textspan(contributions, texts, 1, rank)
    unlimited, _, _ = textspan(contributions, texts, 1, 3)
    assert chosen[0] == 0
    assert unlimited[0] == 2


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_fail_every_tolerance(broken: float) -> None:
    assert relative_error([1.0, broken], [1.0, 2.0]) == float("inf")
    assert relative_error([1.0, broken], [1.0, broken]) == float("inf")


def test_a_comparison_of_different_shapes_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"got shape \(3,\), wanted \(1, 3\)"):
        relative_error([1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]])
