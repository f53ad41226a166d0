"""Value maps of every kind of tower against the raw weights, and value-output directions against edited weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer

from headspan.decompose.fold import fold
from headspan.decompose.values import value_maps
from headspan.explore.heads.spectra import value_output_svd
from headspan.model.convert import to_tower
from headspan.model.load import LoadedModel
from tests import tolerances
from tests.engine.test_every_model import CASES, VARIANTS, facts_of, randomise_all, small_tower, weights_of
from tests.oracle_towers import _Block
from tests.tolerances import relative_error


def raw_value_maps(visual: Any) -> np.ndarray:
    """`[layer, head, width, head_dim]`: how the values change with each number that the norm gives, folded."""
    weights = {name: value.astype(np.float64) for name, value in weights_of(visual).items()}
    facts = facts_of(visual)
    if facts.pool == "latent":
        gamma, value = weights["norm.weight"], np.split(weights["attn_pool.kv.weight"], 2)[1]
        return (gamma[:, None] * value.T).reshape(len(gamma), facts.pool_heads, -1).swapaxes(0, 1)[None]
    found = []
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for layer in range(layers):
        prefix = f"blocks.{layer}."
        block = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        width = len(block["norm1.weight"])
        rows = np.eye(width) if facts.post_norm else np.diag(block["norm1.weight"])
        # The oracle's values, which read queries, keys and values in whatever form the model has them.
        values = _Block._project(block, rows)[2] - _Block._project(block, np.zeros((1, width)))[2]
        found.append(values.reshape(width, facts.heads, -1).swapaxes(0, 1))
    return np.stack(found)


def check(name: str, **more: Any) -> None:
    visual, _ = small_tower(name, **more)
    randomise_all(visual, seed=len(name))
    tower = to_tower(visual, name)
    layers = list(tower.direct_layers)
    maps, writes = value_maps(tower, layers), fold(tower, layers).head_to_joint
    assert relative_error(maps, raw_value_maps(visual)) < tolerances.FLOAT64
    for place in np.ndindex(*maps.shape[:2]):
        product = maps[place] @ writes[place][: maps.shape[3]].astype(np.float64)
        values, directions = value_output_svd(maps[place], writes[place][: maps.shape[3]].astype(np.float64))
        rank = min(maps.shape[3], product.shape[1])
        wanted = np.linalg.svd(product, compute_uv=False)[:rank]
        assert relative_error(values[:rank], wanted) < tolerances.FLOAT64
        assert relative_error(directions @ directions.T, np.eye(len(directions))) < tolerances.FLOAT64
        assert relative_error(np.linalg.norm(product @ directions.T, axis=0), values) < tolerances.FLOAT64


@pytest.mark.parametrize("name", CASES.values())
def test_value_maps_of_every_kind_of_tower_are_those_of_its_weights(name: str) -> None:
    check(name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_value_maps_of_towers_from_users_configs_are_those_of_their_weights(variant: str) -> None:
    name, more = VARIANTS[variant]
    check(name, **more)


def test_a_head_writes_along_a_direction_only_through_its_singular_value(toy_model: LoadedModel) -> None:
    # The value weights of one head are edited so that one singular value of its value-output matrix is zero.
    # Towers share the memory of their models.
    visual: VisionTransformer = copy.deepcopy(toy_model.clip.visual)
    tower = to_tower(toy_model.clip.visual, "toy")
    last, head, edited = tower.layers - 1, 1, 2
    reads = value_maps(tower, [last])[0, head]
    writes = fold(tower, [last]).head_to_joint[0, head].astype(np.float64)
    values, directions = value_output_svd(reads, writes)
    left = reads @ writes @ directions[edited] / values[edited]
    without = reads - np.outer(values[edited] * left, directions[edited] @ np.linalg.pinv(writes))
    block = visual.transformer.resblocks[last]
    width, size = reads.shape
    rows = slice(2 * width + head * size, 2 * width + (head + 1) * size)
    weight = without / block.ln_1.weight.double().numpy()[:, None]
    block.attn.in_proj_weight.data[rows] = torch.from_numpy(weight.T).float()

    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((9, 3, 32, 32)).astype(np.float32))
    before, after = (
        each.forward(pixels, [last]).heads[:, 0, head].double().numpy() @ writes @ directions.T
        for each in (tower, to_tower(visual, "edited"))
    )
    # Biases are left out of the matrix, so they stay; only what varies with the image is compared.
    before, after = (each - each.mean(axis=0) for each in (before, after))
    assert np.linalg.norm(after[:, edited]) < 1e-4 * np.linalg.norm(before[:, edited])
    others = np.arange(len(directions)) != edited
    assert relative_error(after[:, others], before[:, others]) < tolerances.ORACLE_FLOAT32
