"""Every Triton op, and a whole tower on them, against float64 loops and the reference, interpreted, emulated or run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests import tolerances
from tests.kernels.test_reference import DTYPES, coordinate_rows, every_row
from tests.kernels.tritons import DEPRECATIONS, INTERPRETED, ON_GPU
from tests.tolerances import relative_error

pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")

from headspan.model.convert import to_tower
from headspan_kernels import attention, fused, moments, reference, switches, whole_heads
from headspan_kernels.attention import attention_emit_cut, candidates
from headspan_kernels.switches import Blocks
from tests.engine.test_decomposition import LAYERS, take_apart, toy_pixels, toy_visual

pytestmark = [pytest.mark.usefixtures("world", "nothing_is_zero_by_chance"), DEPRECATIONS]
# Batch, tokens, heads, head dimension: from one token to two blocks of rows and of keys.
SIZES = [(1, 1, 1, 5), (1, 32, 1, 16), (3, 17, 3, 8), (2, 70, 1, 16)]
# The head dimensions of CLIP's models.
HEAD_DIMS = [64, 80, 88, 104, 128]
# Most of the time goes into compiling. Without a GPU, what differs from other tests in a constant only has the marker
# full_size: run those tests when a kernel or the newest Triton changes.
by_hand: Any = () if ON_GPU else pytest.mark.full_size


def sizes_by_type(*often: tuple[Any, ...], others: tuple[Any, ...] = ((),)) -> list[Any]:
    """All of SIZES in all of DTYPES with each of `others`; those not `often` (size, type, others) are run by hand."""
    return [
        pytest.param(*size, *dtype, *other, marks=() if (place, kind, *other) in often else by_hand)
        for place, size in enumerate(SIZES)
        for kind, dtype in enumerate(DTYPES)
        for other in others
    ]


def draw(random: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=random).to(dtype)


def check_attention(
    found: tuple[torch.Tensor, reference.Emitted],
    qkv: torch.Tensor,
    heads: int,
    pooling: torch.Tensor | None,
    tol: float,
) -> None:
    """Compare with loops and with the reference."""
    head_outputs, emitted = found
    taken, wanted = every_row(qkv, heads)
    weights = torch.eye(1, qkv.shape[1]) if pooling is None else pooling
    weights = weights.expand(len(qkv), -1).double().numpy()
    pooled = np.einsum("bhnmk,bn->bhmk", taken, weights)
    assert head_outputs.dtype == qkv.dtype
    assert emitted.heads.dtype == torch.float32
    assert relative_error(head_outputs.float(), wanted) < tol
    assert relative_error(emitted.heads, pooled.sum(axis=2)) < tol
    plain_outputs, plain = reference.attention_emit(qkv, heads, pooling, True)
    assert relative_error(head_outputs.float(), plain_outputs.float()) < tol
    assert relative_error(emitted.heads, plain.heads) < tol
    if emitted.patches is not None:
        assert plain.patches is not None
        assert relative_error(emitted.patches.float(), pooled) < tol
        assert relative_error(emitted.patches.float(), plain.patches) < tol


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "size", "dtype", "tolerance"), sizes_by_type((0, 0), (2, 2), (3, 0), (3, 1))
)
def test_attention_of_the_class_token_equals_the_loops(
    random: torch.Generator, batch: int, tokens: int, heads: int, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    qkv = draw(random, batch, tokens, 3 * heads * size, dtype=dtype)
    for with_patches in (False, True) if dtype == torch.float32 else (True,):
        found = fused.attention_emit(qkv, heads, None, with_patches)
        assert (found[1].patches is not None) is with_patches
        check_attention(found, qkv, heads, None, tolerance)


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "size", "dtype", "tolerance", "own_weights"),
    sizes_by_type((2, 0, False), (3, 1, False), (3, 2, True), others=((False,), (True,))),
)
def test_attention_of_a_weighted_mean_of_rows_equals_the_loops(
    random: torch.Generator,
    batch: int,
    tokens: int,
    heads: int,
    size: int,
    dtype: torch.dtype,
    tolerance: float,
    own_weights: bool,
) -> None:
    qkv = draw(random, batch, tokens, 3 * heads * size, dtype=dtype)
    pooling = draw(random, batch if own_weights else 1, tokens).abs()
    pooling /= pooling.sum(dim=1, keepdim=True)
    for with_patches in (False, True) if dtype == torch.float32 else (True,):
        check_attention(fused.attention_emit(qkv, heads, pooling, with_patches), qkv, heads, pooling, tolerance)


@pytest.mark.parametrize("size", [pytest.param(size, marks=() if size in (64, 80) else by_hand) for size in HEAD_DIMS])
def test_attention_with_the_head_dimensions_of_clips_models(random: torch.Generator, size: int) -> None:
    qkv = draw(random, 1, 33, 3 * size)
    found = fused.attention_emit(qkv, 1, None, True)
    check_attention(found, qkv, 1, None, tolerances.FLOAT32_SUM)
    row = fused.pooled_attention(qkv[:, 0, :size], qkv[:, :, size:], 1, True)
    check_attention((found[0], row[1]), qkv, 1, None, tolerances.FLOAT32_SUM)


@pytest.mark.parametrize(
    ("tokens", "size"),
    [
        # Two blocks of rows and a part of a block of keys, as with 197 tokens; whole blocks and a class token, as with
        # 257; and heads that are padded.
        *((101, 64), (129, 64), (50, 80)),
        *(pytest.param(tokens, 64, marks=by_hand) for tokens in (50, 197, 256, 257)),
        *(pytest.param(129, size, marks=by_hand) for size in (80, 88, 104)),
        *(pytest.param(257, size, marks=by_hand) for size in (80, 88, 104)),
        pytest.param(50, 128, marks=by_hand),
    ],
)
def test_attention_at_the_sizes_of_clips_models_in_16_bits(random: torch.Generator, tokens: int, size: int) -> None:
    qkv = draw(random, 1, tokens, 3 * size, dtype=torch.bfloat16)
    tolerance = tolerances.BFLOAT16_ROUNDING
    check_attention(fused.attention_emit(qkv, 1, None, True), qkv, 1, None, tolerance)
    mean = torch.full((1, tokens), 1 / tokens)
    check_attention(fused.attention_emit(qkv, 1, mean, True), qkv, 1, mean, tolerance)


@pytest.mark.parametrize("size", [pytest.param(size, marks=() if size in (64, 104) else by_hand) for size in HEAD_DIMS])
def test_attention_of_one_query_row_with_the_head_dimensions_of_clips_models_in_16_bits(
    random: torch.Generator, size: int
) -> None:
    qkv = draw(random, 1, 65, 3 * size, dtype=torch.bfloat16)
    taken, wanted = every_row(qkv, 1)
    head_outputs, emitted = fused.pooled_attention(qkv[:, 0, :size], qkv[:, :, size:], 1, True)
    assert relative_error(head_outputs.float(), wanted[:, 0]) < tolerances.BFLOAT16_ROUNDING
    assert relative_error(emitted.heads, taken[:, :, 0].sum(axis=2)) < tolerances.BFLOAT16_ROUNDING
    assert emitted.patches is not None
    assert relative_error(emitted.patches, taken[:, :, 0]) < tolerances.BFLOAT16_ROUNDING


# float32 has one choice of blocks, which every other test uses.
@pytest.mark.parametrize("cut", sorted({*candidates(64, torch.bfloat16), *candidates(128, torch.bfloat16)}))
@pytest.mark.parametrize(("dtype", "tolerance"), [pytest.param(*DTYPES[1], marks=by_hand), DTYPES[2]])
def test_attention_is_the_same_with_every_block_size(
    random: torch.Generator, cut: Any, dtype: torch.dtype, tolerance: float
) -> None:
    qkv = draw(random, 1, 70, 3 * 16, dtype=dtype)
    pooling = torch.full((1, 70), 1 / 70)
    for weights in (None, pooling):
        check_attention(attention_emit_cut(cut, qkv, 1, weights, True), qkv, 1, weights, tolerance)


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "size", "mean", "with_patches"),
    [
        # One key left over; no whole tile of keys; both, and a mean of rows.
        (1, 33, 2, 24, False, True),
        (2, 5, 1, 16, False, False),
        (1, 50, 1, 16, True, True),
    ],
)
def test_programs_that_keep_all_keys_equal_the_loops(
    random: torch.Generator, batch: int, tokens: int, heads: int, size: int, mean: bool, with_patches: bool
) -> None:
    # Strided rows that begin anywhere.
    qkv = draw(random, batch, tokens + 1, 3 * heads * size + 8, dtype=torch.float16)[:, 1:, : 3 * heads * size]
    pooling = draw(random, batch, tokens).abs() if mean else None
    found = attention_emit_cut(Blocks(64, 16, 4, 1, whole=True), qkv, heads, pooling, with_patches)
    assert (found[1].patches is not None) is with_patches
    check_attention(found, qkv, heads, pooling, tolerances.FLOAT16_PRODUCT)


def test_programs_that_keep_all_keys_are_right_at_the_size_of_vit_l(random: torch.Generator) -> None:
    qkv = draw(random, 1, 257, 3 * 64, dtype=torch.bfloat16)
    cut = next(cut for cut in candidates(64, torch.bfloat16, 257) if cut.whole)
    check_attention(attention_emit_cut(cut, qkv, 1, None, True), qkv, 1, None, tolerances.BFLOAT16_ROUNDING)


@pytest.mark.full_size
@pytest.mark.parametrize(("tokens", "size"), [(50, 64), (197, 64), (257, 64), (577, 64), (257, 80), (256, 104)])
def test_every_block_size_of_the_benchmark_is_right_at_the_sizes_of_clips_models(
    random: torch.Generator, tokens: int, size: int
) -> None:
    qkv = draw(random, 1, tokens, 3 * size, dtype=torch.bfloat16)
    for cut in candidates(size, torch.bfloat16, tokens):
        check_attention(attention_emit_cut(cut, qkv, 1, None, True), qkv, 1, None, tolerances.BFLOAT16_ROUNDING)


def test_only_an_entry_makes_attention_use_other_blocks(
    random: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Blocks(64, 16, 4, 1, whole=True)
    monkeypatch.setitem(switches.ATTENTION, ((9, 0), "float16", 16, 9, False), other)
    monkeypatch.setitem(switches.ATTENTION, ((9, 0), "float16", 16, 11, False), "reference")
    usual = candidates(16, torch.float16)[0]
    half, single = torch.float16, torch.float32
    for tokens, dtype, mean_pooled, wanted in (
        (9, half, False, other),
        (10, half, False, usual),
        (9, half, True, usual),
        (9, single, False, candidates(16, single)[0]),
        (9, torch.bfloat16, False, candidates(16, torch.bfloat16)[0]),
        (11, half, False, "reference"),
    ):
        assert attention.cut_in_use(draw(random, 1, tokens, 48, dtype=dtype), 1, mean_pooled) == wanted
    launched: list[Any] = []
    monkeypatch.setattr(whole_heads.attend_heads, "run", lambda *arguments, **settings: launched.append(settings))
    fused.attention_emit(draw(random, 1, 9, 48, dtype=half), 1, None, False)
    fused.attention_emit(draw(random, 1, 10, 48, dtype=half), 1, None, False)
    assert [each["TILES"] for each in launched] == [0]
    qkv = draw(random, 1, 11, 48, dtype=half)
    assert torch.equal(fused.attention_emit(qkv, 1, None, False)[0], reference.attention_emit(qkv, 1, None, False)[0])


@pytest.mark.parametrize(
    "out", [torch.float16, *(pytest.param(out, marks=by_hand) for out in (torch.bfloat16, torch.float32))]
)
def test_rows_may_be_strided_and_patches_are_written_to_the_callers_tensor(
    random: torch.Generator, out: torch.dtype
) -> None:
    wide = draw(random, 3, 19, 3 * 2 * 8 + 5)
    qkv = wide[:, 1:18, : 3 * 2 * 8]
    pooling = torch.full((1, 17), 1 / 17)
    tolerance = {torch.float32: tolerances.FLOAT32_SUM, torch.float16: tolerances.FLOAT16_STORE}.get(
        out, tolerances.BFLOAT16_ROUNDING
    )
    for weights in (None, pooling):
        room = torch.full((3, 2, 2, 17, 8), torch.nan, dtype=out)
        found = fused.attention_emit(qkv, 2, weights, True, room[:, 1])
        check_attention(found, qkv, 2, weights, tolerance)
        assert found[1].patches is not None
        assert found[1].patches.data_ptr() == room[:, 1].data_ptr()
        assert room[:, 0].isnan().all()
        assert not room[:, 1].isnan().any()
    room = torch.full((3, 2, 2, 17, 8), torch.nan, dtype=out)
    found = fused.pooled_attention(qkv[:, 0, :16], qkv[:, :, 16:], 2, True, room[:, 1])
    _, plain = reference.pooled_attention(qkv[:, 0, :16], qkv[:, :, 16:], 2, True)
    assert plain.patches is not None
    assert relative_error(room[:, 1].float(), plain.patches) < tolerance
    assert room[:, 0].isnan().all()


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "size", "dtype", "tolerance"), sizes_by_type((0, 0), (2, 0), (3, 1))
)
def test_attention_of_one_query_row_equals_the_loops(
    random: torch.Generator, batch: int, tokens: int, heads: int, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    width = heads * size
    qkv = draw(random, batch, tokens, 3 * width, dtype=dtype)
    taken, wanted = every_row(qkv, heads)
    query, key_value = qkv[:, 0, :width], qkv[:, :, width:]
    for rows, columns, with_patches in (
        (query.contiguous(), key_value.contiguous(), False),
        (query, key_value, True),
    ):
        head_outputs, emitted = fused.pooled_attention(rows, columns, heads, with_patches)
        assert head_outputs.dtype == dtype
        assert relative_error(head_outputs.float(), wanted[:, 0]) < tolerance
        assert relative_error(emitted.heads, taken[:, :, 0].sum(axis=2)) < tolerance
        assert (emitted.patches is not None) is with_patches
        if emitted.patches is not None:
            assert relative_error(emitted.patches, taken[:, :, 0]) < tolerance


@pytest.mark.parametrize("world", [80], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [*(pytest.param(*each, marks=by_hand) for each in DTYPES[:-1]), DTYPES[-1]],
)
def test_ops_with_matrix_products_work_on_sm_80(
    random: torch.Generator, world: None, dtype: torch.dtype, tolerance: float
) -> None:
    qkv = draw(random, 1, 65, 3 * 2 * 64, dtype=dtype)
    for pooling in (None, torch.full((1, 65), 1 / 65)):
        check_attention(fused.attention_emit(qkv, 2, pooling, True), qkv, 2, pooling, tolerance)
    heads, scale, mean_and_bias = draw(random, 5, 1, 2, 64), draw(random, 5).double(), draw(random, 5, 3).double()
    found, exact = ((torch.zeros(1, 2, 67).double(), torch.zeros(1, 2, 67, 67).double()) for _ in range(2))
    fused.add_moments(heads, scale, mean_and_bias, *found)
    reference.add_moments(heads, scale, mean_and_bias, *exact)
    for got, want in zip(found, exact, strict=True):
        assert relative_error(got, want) < tolerances.FLOAT64


def test_scores_beyond_the_range_of_exp_stay_finite(random: torch.Generator) -> None:
    qkv = 300 * draw(random, 2, 70, 3 * 16)
    check_attention(fused.attention_emit(qkv, 1, None, True), qkv, 1, None, tolerances.FLOAT32_SUM)
    taken, _ = every_row(qkv, 1)
    _, emitted = fused.pooled_attention(qkv[:, 0, :16], qkv[:, :, 16:], 1, True)
    assert emitted.patches is not None
    assert relative_error(emitted.patches, taken[:, :, 0]) < tolerances.FLOAT32_SUM


def test_an_empty_batch_gives_empty_results() -> None:
    head_outputs, emitted = fused.attention_emit(torch.zeros(0, 5, 24), 2, None, True)
    assert head_outputs.shape == (0, 5, 8)
    assert emitted.heads.shape == (0, 2, 4)
    assert fused.layer_norm(torch.zeros(0, 8), torch.ones(8), torch.ones(8), 1e-5).shape == (0, 8)


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        pytest.param(shape, *dtype, marks=() if kind in often else by_hand)
        for shape, often in (((1, 1), (0,)), ((3, 257), (0, 2)), ((2, 3, 5), (1,)))
        for kind, dtype in enumerate(DTYPES)
    ],
)
def test_a_layer_norm_equals_float64(
    random: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    # The mean is far from zero, so 16-bit statistics would lose the spread.
    x, added = (20 + draw(random, *shape)).to(dtype), draw(random, *shape, dtype=dtype)
    weight, bias = draw(random, shape[-1], dtype=dtype), draw(random, shape[-1], dtype=dtype)
    for more in (None, added):
        found = fused.add_layer_norm(x, more, weight, bias, 1e-5)
        assert relative_error(found.rows.float(), (x if more is None else x + more).float()) < tolerance
        # Computed from the rows as this device rounded them.
        exact = found.rows.double().numpy()
        spread = np.sqrt(exact.var(axis=-1) + 1e-5)
        normed = (exact - exact.mean(axis=-1, keepdims=True)) / spread[..., None]
        assert found.normed.dtype == dtype
        wanted = normed * weight.double().numpy() + bias.double().numpy()
        assert relative_error(found.normed.float(), wanted) < max(tolerance, 2 * tolerances.FLOAT32_SUM)
    assert torch.equal(
        fused.layer_norm(x, weight, bias, 1e-5), fused.add_layer_norm(x, None, weight, bias, 1e-5).normed
    )
    # What is the same for all rows is added in float32.
    shift = draw(random, shape[-1])
    exact = x.double().numpy() + shift.double().numpy()
    normed = (exact - exact.mean(axis=-1, keepdims=True)) / np.sqrt(exact.var(axis=-1, keepdims=True) + 1e-5)
    found_with_shift = fused.layer_norm(x, weight, bias, 1e-5, shift)
    wanted = normed * weight.double().numpy() + bias.double().numpy()
    assert relative_error(found_with_shift.float(), wanted) < max(tolerance, 2 * tolerances.FLOAT32_SUM)


def test_a_layer_norm_of_strided_rows_equals_the_reference(random: torch.Generator) -> None:
    wide = draw(random, 5, 3, 7)
    x, weight, bias = wide[:, 0], draw(random, 7), draw(random, 7)
    found = fused.add_layer_norm(x, wide[:, 2], weight, bias, 1e-5)
    wanted = reference.add_layer_norm(x, wide[:, 2], weight, bias, 1e-5)
    assert torch.equal(found.rows, wanted.rows)
    assert relative_error(found.normed, wanted.normed) < tolerances.FLOAT32_SUM


def moments_of(
    random: torch.Generator, batch: int, size: int, terms: int = 3, heads: int = 2
) -> tuple[torch.Tensor, ...]:
    """Arguments of `add_moments`; the second of three images is left out."""
    drawn, scale = draw(random, batch, 1, heads, size), draw(random, batch, dtype=torch.float64)
    mean_and_bias = draw(random, batch, terms, dtype=torch.float64)
    if batch == 3:
        scale[1], drawn[1, 0, 1], mean_and_bias[1, 0] = 0, torch.nan, torch.inf
    total = draw(random, 1, heads, size + terms, dtype=torch.float64)
    gram = draw(random, 1, heads, size + terms, size + terms, dtype=torch.float64)
    return drawn, scale, mean_and_bias, total, gram


@pytest.mark.parametrize(
    ("size", "batch"),
    [
        *((1, 1), (24, 3), (64, 19), (113, 3)),
        *(pytest.param(size, batch, marks=by_hand) for size in (24, 64, 192) for batch in (1, 19)),
    ],
)
def test_moments_are_added_in_place(random: torch.Generator, size: int, batch: int) -> None:
    heads, scale, mean_and_bias, total, gram = moments_of(random, batch, size)
    wanted_total, wanted_gram = total.clone(), gram.clone()
    reference.add_moments(heads, scale, mean_and_bias, wanted_total, wanted_gram)
    before = gram[0, 1].clone().numpy()
    fused.add_moments(heads, scale, mean_and_bias, total, gram)
    assert relative_error(total, wanted_total) < tolerances.FLOAT64
    assert relative_error(gram, wanted_gram) < tolerances.FLOAT64
    good = scale != 0
    rows = coordinate_rows(heads[good, 0, 1], scale[good], mean_and_bias[good])
    assert relative_error(gram[0, 1], before + sum(np.outer(row, row) for row in rows)) < tolerances.FLOAT64


@pytest.mark.parametrize("size", [64, 65, pytest.param(104, marks=by_hand)])
def test_moments_are_the_same_with_every_tile_and_to_the_bit_with_one(random: torch.Generator, size: int) -> None:
    *inputs, total, gram = moments_of(random, 19, size, terms=4, heads=1)
    wanted_total, wanted_gram = total.clone(), gram.clone()
    reference.add_moments(*inputs, wanted_total, wanted_gram)
    cuts = {*moments.candidates(size), *moments.candidates(size, (10, 0))}
    if not ON_GPU:
        # How many registers a thread may have does not change the PTX that the emulator runs. Small tiles are the same
        # for wider heads.
        cuts = {cut for cut in cuts if cut.registers == 255 and (size == 64 or cut.side == 64)}
    for cut in cuts:
        found, again = ([total.clone(), gram.clone()] for _ in range(2))
        moments.add_moments_cut(cut, *inputs, *found)
        moments.add_moments_cut(cut, *inputs, *again)
        assert relative_error(found[0], wanted_total) < tolerances.FLOAT64, cut
        assert relative_error(found[1], wanted_gram) < tolerances.FLOAT64, cut
        for one, two in zip(found, again, strict=True):
            assert torch.equal(one, two), cut


def test_an_entry_lets_pytorch_or_other_tiles_add_moments(
    random: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    *inputs, total, gram = moments_of(random, 3, 17)
    wanted = total.clone(), gram.clone()
    reference.add_moments(*inputs, *wanted)
    other = moments.candidates(17)[1]
    monkeypatch.setattr(moments, "add_moments_cut", lambda cut, *arguments: launched.append(cut))
    launched: list[Any] = []
    for value in (None, other, "reference"):
        if value is not None:
            monkeypatch.setitem(switches.MOMENTS, ((9, 0), 17), value)
        fused.add_moments(*inputs, total, gram)
    assert launched == [moments.candidates(17)[0], other]
    assert torch.equal(total, wanted[0])
    assert torch.equal(gram, wanted[1])


def test_tiles_above_the_diagonal_are_stored_transposed_to_the_bit(random: torch.Generator) -> None:
    *inputs, total, gram = moments_of(random, 19, 80)
    gram.zero_()
    fused.add_moments(*inputs, total, gram)
    upper = gram.triu()
    # Tiles above the diagonal are stored twice; within a tile on it, both halves are products of the same numbers.
    assert relative_error(gram, upper + upper.mT - upper * torch.eye(83)) < tolerances.FLOAT64
    assert torch.equal(gram[..., :32, 32:], gram[..., 32:, :32].mT)


# The interpreter truncates where a GPU rounds, which doubles the error of bfloat16.
PASSES = {
    torch.float32: tolerances.ORACLE_FLOAT32,
    torch.float16: tolerances.FLOAT16_PASS,
    torch.bfloat16: 2 * tolerances.BFLOAT16_PASS,
}


@pytest.mark.parametrize(
    ("pool", "norm_last", "dtype"),
    [
        pytest.param(*pool, dtype, marks=() if often == dtype else by_hand)
        for pool, often in (
            (("tok", True), torch.float16),
            (("avg", True), torch.float32),
            (("avg", False), torch.bfloat16),
        )
        for dtype in PASSES
    ],
)
def test_the_whole_tower_equals_the_oracle(used: set[str], pool: Any, norm_last: bool, dtype: torch.dtype) -> None:
    tolerance = PASSES[dtype]
    visual = toy_visual(pool, norm_last, True, False, "gelu")
    # Larger batches are compared with the reference below.
    pixels = toy_pixels(1)
    tower = to_tower(visual, "toy").to(torch.device("cpu"), dtype)
    found = tower.forward(torch.from_numpy(pixels).to(dtype), range(LAYERS), True, True)
    oracle = take_apart(visual, "gelu", pixels)
    assert found.patches is not None
    assert relative_error(found.heads, np.stack([image.head_outputs for image in oracle])) < tolerance
    assert relative_error(found.patches, np.stack([image.patch_head_outputs for image in oracle])) < tolerance
    assert relative_error(found.state, np.stack([image.pooled() for image in oracle])) < tolerance
    assert used >= {"add_layer_norm", "attention_emit"}
    assert ("pooled_attention" in used) is (pool == "tok")


@pytest.mark.interpreted
@pytest.mark.skipif(not INTERPRETED, reason="the norm is compiled above; the towers' many shapes take too long")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tower_whose_products_add_to_the_rows_equals_the_oracle(
    used: set[str], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("headspan.model.tower.sums_in_products", lambda device, *key: True)
    visual, pixels = toy_visual("tok", True, True, False, "gelu"), toy_pixels(1)
    tower = to_tower(visual, "toy").to(torch.device("cpu"), dtype)
    found = tower.forward(torch.from_numpy(pixels).to(dtype), range(LAYERS), True, True)
    (oracle,) = take_apart(visual, "gelu", pixels)
    assert found.patches is not None
    assert found.terms is not None
    assert used >= {"add_linear", "layer_norm"}
    for got, wanted in (
        (found.state, oracle.pooled()),
        (found.heads, oracle.head_outputs),
        (found.patches, oracle.patch_head_outputs),
        (found.terms, [oracle.initial, *oracle.mlp_outputs]),
    ):
        assert relative_error(got[0], wanted) < PASSES[dtype]


def test_the_whole_tower_equals_the_reference(used: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tower = to_tower(toy_visual("tok", True, False, False, "quick_gelu"), "toy")
    for images, variant in ((2, tower), (1, replace(tower, mean_pooled=True, norm_before_pooling=True))):
        pixels = torch.from_numpy(toy_pixels(images))
        found = variant.forward(pixels, (0, LAYERS - 1), with_patches=True, patches_dtype=torch.float16)
        with monkeypatch.context() as patch:
            patch.setattr("headspan.model.description.ops", lambda device: reference)
            wanted = variant.forward(pixels, (0, LAYERS - 1), with_patches=True)
        assert found.patches is not None
        assert wanted.patches is not None
        assert found.patches.dtype == torch.float16
        assert relative_error(found.patches.float(), wanted.patches) < tolerances.FLOAT16_STORE
        for name in ("state", "std", "heads"):
            assert relative_error(getattr(found, name), getattr(wanted, name)) < tolerances.FLOAT32_SUM
    assert used
