"""The reference ops against float64 loops, in every type and at awkward sizes."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from headspan_kernels import ops, reference
from headspan_kernels.reference import Placed
from tests import tolerances
from tests.tolerances import relative_error

# Batch, tokens, heads, head dimension.
SIZES = [(1, 1, 1, 1), (1, 3, 1, 5), (3, 7, 3, 4), (2, 257, 2, 3)]
# Grey levels by which two ways to resize differ in the mean. Sums in another order round to the next level where the
# exact value lies half-way, which is often so where pixels are halved. Over 300 drawings, a mean was at most 0.012, and
# of one image at most 0.046; a kernel that is wrong at one pixel in ten errs by more.
ROUNDED_ELSEWHERE = 0.04
DTYPES = [
    (torch.float32, tolerances.FLOAT32_SUM),
    (torch.float16, 3 * tolerances.FLOAT16_PRODUCT),
    # Three roundings of inputs and weights.
    (torch.bfloat16, 3 * tolerances.BFLOAT16_ROUNDING),
]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape)).to(dtype)


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`α v` of one query row, `[token, head_dim]`, and its sum over tokens."""
    scores = np.array([query @ row / math.sqrt(len(query)) for row in key])
    weights = np.exp(scores - scores.max())
    taken = (weights / weights.sum())[:, None] * value
    return taken, taken.sum(axis=0)


def every_row(qkv: torch.Tensor, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """By loops: `α v` `[batch, head, row, token, head_dim]`, and the attention output of all rows."""
    batch, tokens, columns = qkv.shape
    size = columns // 3 // heads
    query, key, value = qkv.double().numpy().reshape(batch, tokens, 3, heads, size).transpose(2, 0, 3, 1, 4)
    taken = np.zeros((batch, heads, tokens, tokens, size))
    for image in range(batch):
        for head in range(heads):
            for row in range(tokens):
                taken[image, head, row], _ = attend(query[image, head, row], key[image, head], value[image, head])
    head_outputs = taken.sum(axis=3).transpose(0, 2, 1, 3).reshape(batch, tokens, heads * size)
    return taken, head_outputs


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("batch", "tokens", "heads", "size"), SIZES)
def test_attention_of_the_class_token_equals_the_loops(
    batch: int, tokens: int, heads: int, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    qkv = draw(batch, tokens, 3 * heads * size, dtype=dtype)
    taken, wanted = every_row(qkv, heads)
    for with_patches in (False, True):
        head_outputs, emitted = reference.attention_emit(qkv, heads, None, with_patches)
        assert head_outputs.dtype == dtype
        assert emitted.heads.dtype == torch.float32
        assert relative_error(head_outputs.float(), wanted) < tolerance
        assert relative_error(emitted.heads, taken[:, :, 0].sum(axis=2)) < tolerance
        assert (emitted.patches is not None) is with_patches
        if emitted.patches is not None:
            assert emitted.patches.dtype == torch.float32
            assert relative_error(emitted.patches, taken[:, :, 0]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize(("batch", "tokens", "heads", "size"), SIZES)
def test_attention_of_a_pooled_row_is_the_weighted_mean_over_its_rows(
    batch: int, tokens: int, heads: int, size: int, own_weights: bool, dtype: torch.dtype, tolerance: float
) -> None:
    qkv = draw(batch, tokens, 3 * heads * size, dtype=dtype)
    pooling = draw(batch if own_weights else 1, tokens, seed=1).abs()
    pooling /= pooling.sum(dim=1, keepdim=True)
    taken, wanted = every_row(qkv, heads)
    pooled = np.stack(
        [
            sum(weight * taken[image, :, row] for row, weight in enumerate(pooling[image % len(pooling)].tolist()))
            for image in range(batch)
        ]
    )
    head_outputs, emitted = reference.attention_emit(qkv, heads, pooling, True)
    plain_outputs, plain = reference.attention_emit(qkv, heads, pooling, False)
    assert plain.patches is None
    assert emitted.patches is not None
    assert torch.equal(head_outputs, plain_outputs)
    assert relative_error(head_outputs.float(), wanted) < tolerance
    assert relative_error(emitted.patches, pooled) < tolerance
    for heads_taken in (emitted.heads, plain.heads):
        assert relative_error(heads_taken, pooled.sum(axis=2)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("batch", "tokens", "heads", "size"), SIZES)
def test_attention_of_one_query_row_equals_that_row_among_others(
    batch: int, tokens: int, heads: int, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    width = heads * size
    qkv = draw(batch, tokens, 3 * width, dtype=dtype)
    taken, wanted = every_row(qkv, heads)
    query, key_value = qkv[:, 0, :width], qkv[:, :, width:]
    # Contiguous, and as views of a larger tensor.
    for rows, columns in ((query.contiguous(), key_value.contiguous()), (query, key_value)):
        for with_patches in (False, True):
            head_outputs, emitted = reference.pooled_attention(rows, columns, heads, with_patches)
            assert head_outputs.shape == (batch, width)
            assert head_outputs.dtype == dtype
            assert emitted.heads.dtype == torch.float32
            assert relative_error(head_outputs.float(), wanted[:, 0]) < tolerance
            assert relative_error(emitted.heads, taken[:, :, 0].sum(axis=2)) < tolerance
            if with_patches:
                assert emitted.patches is not None
                assert relative_error(emitted.patches, taken[:, :, 0]) < tolerance


@pytest.mark.parametrize(("batch", "tokens", "heads", "size"), SIZES)
def test_a_bias_is_added_to_the_scores_of_every_head(batch: int, tokens: int, heads: int, size: int) -> None:
    width = heads * size
    qkv, bias = draw(batch, tokens, 3 * width), draw(heads, tokens, tokens, seed=4)
    query, key, value = qkv.double().numpy().reshape(batch, tokens, 3, heads, size).transpose(2, 0, 3, 1, 4)
    taken = np.zeros((batch, heads, tokens, tokens, size))
    weights = np.zeros((batch, heads, tokens, tokens))
    for image, head, row in np.ndindex(batch, heads, tokens):
        scores = key[image, head] @ query[image, head, row] / math.sqrt(size) + bias[head, row].double().numpy()
        powers = np.exp(scores - scores.max())
        weights[image, head, row] = powers / powers.sum()
        taken[image, head, row] = weights[image, head, row][:, None] * value[image, head]
    wanted = taken.sum(axis=3).transpose(0, 2, 1, 3).reshape(batch, tokens, width)
    pooling = draw(1, tokens, seed=1).abs()
    pooling /= pooling.sum()
    for with_patches in (False, True):
        for rows in (None, pooling):
            head_outputs, emitted = reference.attention_emit(qkv, heads, rows, with_patches, bias=bias)
            share = np.eye(tokens)[0] if rows is None else rows[0].double().numpy()
            assert relative_error(head_outputs, wanted) < tolerances.FLOAT32_SUM
            assert relative_error(emitted.heads, np.einsum("n,bhnmk->bhk", share, taken)) < tolerances.FLOAT32_SUM
            if emitted.patches is not None:
                pooled = np.einsum("n,bhnmk->bhmk", share, taken)
                assert relative_error(emitted.patches, pooled) < tolerances.FLOAT32_SUM
        alone, _ = reference.pooled_attention(qkv[:, 0, :width], qkv[..., width:], heads, with_patches, bias=bias[:, 0])
        assert relative_error(alone, wanted[:, 0]) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("batch", "tokens", "heads", "size"), SIZES)
def test_attention_weights_equal_the_loops(
    batch: int, tokens: int, heads: int, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    query, key = draw(batch, heads * size, dtype=dtype), draw(batch, tokens, heads * size, dtype=dtype, seed=1)
    found = reference.attention_weights(query, key, heads)
    assert found.dtype == torch.float32
    rows, keys = (
        query.double().numpy().reshape(batch, heads, size),
        key.double().numpy().reshape(*key.shape[:2], heads, size),
    )
    wanted = np.zeros((batch, heads, tokens))
    for image, head in np.ndindex(batch, heads):
        taken, _ = attend(rows[image, head], keys[image, :, head], np.ones((tokens, 1)))
        wanted[image, head] = taken[:, 0]
    assert relative_error(found, wanted) < tolerance


def test_scores_beyond_the_range_of_exp_stay_finite() -> None:
    qkv = 300 * draw(2, 7, 3 * 2 * 4)
    taken, wanted = every_row(qkv, 2)
    head_outputs, emitted = reference.attention_emit(qkv, 2, None, True)
    assert emitted.patches is not None
    assert relative_error(head_outputs, wanted) < tolerances.FLOAT32_SUM
    assert relative_error(emitted.patches, taken[:, :, 0]) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 257), (2, 3, 5)])
def test_a_layer_norm_keeps_its_type_and_computes_float32_statistics(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    # The mean is far from zero, so 16-bit statistics would lose the spread.
    x = (20 + draw(*shape)).to(dtype)
    weight, bias = draw(shape[-1], dtype=dtype, seed=1), draw(shape[-1], dtype=dtype, seed=2)
    for shift in (None, draw(shape[-1], seed=3)):
        found = reference.layer_norm(x, weight, bias, 1e-5, shift)
        exact = x.double().numpy() + (0 if shift is None else shift.double().numpy())
        centred = exact - exact.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        assert found.dtype == dtype
        assert relative_error(found.float(), normed * weight.double().numpy() + bias.double().numpy()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_a_product_is_added_in_place_also_to_one_row_of_each_image(dtype: torch.dtype, tolerance: float) -> None:
    rows, y, weight = draw(3, 5, 7, dtype=dtype), draw(3, 5, 11, dtype=dtype, seed=1), draw(7, 11, dtype=dtype, seed=2)
    whole, one = rows.clone(), rows.clone()
    reference.add_linear(whole, y, weight)
    reference.add_linear(one[:, 0], y[:, 0], weight)
    exact = rows.double().numpy() + y.double().numpy() @ weight.double().numpy().T
    assert relative_error(whole.float(), exact) < tolerance
    assert relative_error(one[:, 0].float(), exact[:, 0]) < tolerance
    assert torch.equal(one[:, 1:], rows[:, 1:])
    with pytest.raises(RuntimeError, match="view"):
        reference.add_linear(rows.transpose(0, 1), y.transpose(0, 1), weight)


@pytest.mark.parametrize("batch", [0, 1, 3, 257])
def test_moments_are_added_in_place_and_over_batches(batch: int) -> None:
    heads, mean_and_bias = draw(batch + 2, 2, 3, 4), draw(batch + 2, 1, dtype=torch.float64)
    scale = draw(batch + 2, dtype=torch.float64, seed=1)
    total, gram = torch.zeros(2, 3, 5, dtype=torch.float64), torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    for part in (slice(2), slice(2, None)):
        reference.add_moments(heads[part], scale[part], mean_and_bias[part], total, gram)
    for layer in range(2):
        for head in range(3):
            rows = coordinate_rows(heads[:, layer, head], scale, mean_and_bias)
            assert relative_error(total[layer, head], sum(rows)) < tolerances.FLOAT64
            assert relative_error(gram[layer, head], sum(np.outer(row, row) for row in rows)) < tolerances.FLOAT64


def coordinate_rows(head_outputs: torch.Tensor, scale: torch.Tensor, mean_and_bias: torch.Tensor) -> list[np.ndarray]:
    """Every image's coordinates for one head, float64."""
    head_outputs, scale, mean_and_bias = (tensor.double().numpy() for tensor in (head_outputs, scale, mean_and_bias))
    return [
        np.concatenate([factor * output, terms])
        for output, factor, terms in zip(head_outputs, scale, mean_and_bias, strict=True)
    ]


def test_images_of_scale_0_add_nothing_to_the_moments() -> None:
    heads, scale = draw(3, 1, 2, 4), torch.tensor([2.0, 0.0, 3.0], dtype=torch.float64)
    mean_and_bias = draw(3, 1, dtype=torch.float64)
    heads[1, 0, 1, 2], mean_and_bias[1] = torch.nan, torch.inf
    total, gram = torch.zeros(1, 2, 5, dtype=torch.float64), torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    reference.add_moments(heads, scale, mean_and_bias, total, gram)
    good = torch.tensor([0, 2])
    for head in range(2):
        rows = coordinate_rows(heads[good, 0, head], scale[good], mean_and_bias[good])
        assert relative_error(total[0, head], sum(rows)) < tolerances.FLOAT64
        assert relative_error(gram[0, head], sum(np.outer(row, row) for row in rows)) < tolerances.FLOAT64


def test_a_norm_with_a_residual_returns_the_sum() -> None:
    x, added, weight, bias = draw(3, 7, 5), draw(3, 7, 5, seed=1), draw(5), draw(5, seed=1)
    found = reference.add_layer_norm(x, added, weight, bias, 1e-5)
    assert relative_error(found.rows, x.double().numpy() + added.double().numpy()) < tolerances.FLOAT32_SUM
    assert torch.equal(found.normed, reference.layer_norm(found.rows, weight, bias, 1e-5))
    assert reference.add_layer_norm(x, None, weight, bias, 1e-5).rows is x


@pytest.mark.parametrize("pooling", [None, torch.full((1, 7), 1 / 7)])
def test_patches_are_written_to_the_callers_tensor_in_its_type(pooling: torch.Tensor | None) -> None:
    qkv = draw(3, 7, 3 * 2 * 4)
    room = torch.full((3, 2, 2, 7, 4), torch.nan, dtype=torch.float16)
    _, wanted = reference.attention_emit(qkv, 2, pooling, True)
    _, found = reference.attention_emit(qkv, 2, pooling, True, room[:, 1])
    assert wanted.patches is not None
    assert found.patches is not None
    assert found.patches.data_ptr() == room[:, 1].data_ptr()
    assert torch.equal(room[:, 1], wanted.patches.half())
    assert room[:, 0].isnan().all()


# For the kernel's tests too: one row of sizes each, resized to 16 by 11 in several ways.
SOURCES = [(37, 53), (11, 9), (16, 11), (16, 41), (90, 20), (150, 97), (1, 1), (2, 70), (200, 3)]
SIZE, MEAN, STD = (16, 11), (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)


def ways_to_place(height: int, width: int) -> dict[str, Placed]:
    """An image's sizes and places: short side to the target and cropped, long side and padded, and squashed."""
    ways = {"squash": Placed(*SIZE, 0, 0)}
    for name, choose in (("crop", min), ("pad", max)):
        ratio = choose(height / SIZE[0], width / SIZE[1])
        resized = max(round(height / ratio), 1), max(round(width / ratio), 1)
        ways[name] = Placed(*resized, *((side - size) // 2 for side, size in zip(resized, SIZE, strict=True)))
    # An odd corner, and neither side as large as the input.
    ways["corner"] = Placed(23, 19, 7, 1)
    ways["small"] = Placed(5, 7, -3, -2)
    return ways


def by_pillow(image: torch.Tensor, where: Placed, mode: str, fill: int) -> np.ndarray:
    """Grey levels after Pillow's resize, one axis at a time, and its crop, which pads with zeros."""
    picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    sizes = [(where.width, picture.height), (where.width, where.height)]
    if where.rows_first:
        sizes[0] = (picture.width, where.height)
    for size in sizes:
        picture = picture.resize(size, Image.Resampling[mode.upper()])
    whole = Image.new("RGB", SIZE[::-1], (fill,) * 3)
    whole.paste(picture, (-where.left, -where.top))
    return np.asarray(whole).astype(np.float64)


def levels_of(normalised: torch.Tensor) -> np.ndarray:
    """Grey levels of the model's input, `[batch, height, width, 3]`."""
    return normalised.cpu().permute(0, 2, 3, 1).double().numpy() * STD * 255 + np.array(MEAN) * 255


def noise(random: torch.Generator, number: int, height: int, width: int) -> torch.Tensor:
    """An image of noise: every third has one channel, and every other is stored pixel by pixel."""
    image = torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)
    if number % 3 == 0:
        return image[:1].clone()
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if number % 2 else image


@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("way", ["squash", "crop", "pad", "corner", "small"])
def test_preprocessing_equals_pillows_within_one_grey_level(
    random: torch.Generator, way: str, mode: str, rows_first: bool
) -> None:
    images = [noise(random, number, *size) for number, size in enumerate(SOURCES)]
    placed = [ways_to_place(*size)[way]._replace(rows_first=rows_first) for size in SOURCES]
    found = levels_of(reference.preprocess(images, placed, SIZE, MEAN, STD, torch.float32, mode, 99))
    wanted = np.stack([by_pillow(image, where, mode, 99) for image, where in zip(images, placed, strict=True)])
    assert np.abs(found - wanted).max() < 1.001
    assert np.abs(found - wanted).mean() < ROUNDED_ELSEWHERE


def test_every_device_has_ops_of_the_same_names_and_parameters() -> None:
    for device in ("cpu", "cuda", "meta"):
        module = ops(torch.device(device))
        for name in (
            "add_layer_norm",
            "add_linear",
            "add_moments",
            "attention_emit",
            "attention_weights",
            "layer_norm",
            "pooled_attention",
            "preprocess",
        ):
            wanted = inspect.signature(getattr(reference, name)).parameters
            assert list(inspect.signature(getattr(module, name)).parameters) == list(wanted)


def test_triton_is_imported_only_for_a_gpu() -> None:
    code = (
        "import sys, torch; from headspan_kernels import ops\n"
        "for device in ('cpu', 'cuda'):\n"
        "    ops(torch.device(device))\n"
        "    print('headspan_kernels.fused' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]
