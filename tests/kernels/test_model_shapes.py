"""The ops on a GPU at the shapes of all supported models; and the same checks at a toy shape everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import tolerances
from tests.kernels import model_shapes, tritons
from tests.kernels.test_reference import ROUNDED_ELSEWHERE
from tests.kernels.tritons import DEPRECATIONS
from tests.tolerances import relative_error

pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")

from benchmarks import gpu_cases
from headspan_kernels import fused, moments, reference, switches

pytestmark = DEPRECATIONS
WORLD = pytest.mark.usefixtures("world", "nothing_is_zero_by_chance")
ON_GPU = pytest.mark.skipif(not tritons.ON_GPU, reason="the shapes of whole models need a GPU")
DEVICE = torch.device("cuda" if tritons.ON_GPU else "cpu")
SHAPES = model_shapes.recorded()
DTYPES = [
    (torch.float32, tolerances.FLOAT32_SUM),
    (torch.float16, 3 * tolerances.FLOAT16_PRODUCT),
    (torch.bfloat16, 3 * tolerances.BFLOAT16_ROUNDING),
]
# The number of images is odd, so that nothing divides it.
BATCH = 3
Numbers = tuple[int, ...]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def check(found: Any, wanted: Any, tolerance: float) -> None:
    """Compare what an op returns with the reference's float64, tensor by tensor."""
    if isinstance(found, tuple):
        for got, want in zip(found, wanted, strict=True):
            check(got, want, tolerance)
    elif found is not None:
        assert found.shape == wanted.shape
        assert relative_error(found.float().cpu(), wanted.float().cpu()) < tolerance


def check_attention(heads: int, head_dim: int, tokens: int, pooled: str, dtype: torch.dtype, tolerance: float) -> None:
    qkv = draw(BATCH, tokens, 3 * heads * head_dim, dtype=dtype)
    pooling = None if pooled == model_shapes.CLASS_TOKEN else torch.full((1, tokens), 1 / tokens, device=DEVICE)
    for with_patches in (False, True):
        found = fused.attention_emit(qkv, heads, pooling, with_patches)
        check(found, reference.attention_emit(qkv.double(), heads, pooling, with_patches), tolerance)


def check_pooled_attention(heads: int, head_dim: int, tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    width = heads * head_dim
    query, key_value = draw(BATCH, width, dtype=dtype), draw(BATCH, tokens, 2 * width, dtype=dtype)
    for with_patches in (False, True):
        found = fused.pooled_attention(query, key_value, heads, with_patches)
        check(found, reference.pooled_attention(query.double(), key_value.double(), heads, with_patches), tolerance)


def check_norm(width: int, dtype: torch.dtype, tolerance: float) -> None:
    x, added, weight, bias = (draw(*shape, dtype=dtype) for shape in ((BATCH, 5, width),) * 2 + ((width,),) * 2)
    found = fused.add_layer_norm(x, added, weight, bias, 1e-5)
    # Normed rows are of the rows as this type rounds them.
    rows = (x + added).double()
    normed = reference.layer_norm(rows, weight.double(), bias.double(), 1e-5)
    check(found, (rows, normed), max(tolerance, 2 * tolerances.FLOAT32_SUM))
    check(fused.layer_norm(x, weight, bias, 1e-5), fused.add_layer_norm(x, None, weight, bias, 1e-5).normed, 1e-7)
    shift = draw(width)
    shifted = reference.layer_norm(x.double(), weight.double(), bias.double(), 1e-5, shift)
    check(fused.layer_norm(x, weight, bias, 1e-5, shift), shifted, max(tolerance, 2 * tolerances.FLOAT32_SUM))


def check_moments(head_dim: int, batch: int) -> None:
    heads, scale, terms = draw(batch, 2, 3, head_dim), draw(batch).double(), draw(batch, 3).double()
    scale[1], heads[1], terms[1] = 0, torch.nan, torch.nan
    size = head_dim + 3
    wanted = torch.zeros(2, 3, size, device=DEVICE).double(), torch.zeros(2, 3, size, size, device=DEVICE).double()
    reference.add_moments(heads, scale, terms, *wanted)
    for cut in moments.candidates(head_dim, switches.capability(heads.device)):
        found, again = ([torch.zeros_like(each) for each in wanted] for _ in range(2))
        for sums in (found, again):
            moments.add_moments_cut(cut, heads, scale, terms, sums[0], sums[1])
        for got, want, same in zip(found, wanted, again, strict=True):
            assert relative_error(got.cpu(), want.cpu()) < tolerances.FLOAT64, cut
            assert torch.equal(got, same), cut


def check_preprocessing(
    side: int, addressed: list[torch.Tensor], photos: tuple[tuple[int, int], ...] = ((60, 91), (75, 50), (375, 500))
) -> None:
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    images = [torch.randint(0, 256, (3, *photo), dtype=torch.uint8, device=DEVICE) for photo in photos]
    addressed += images
    placed = [gpu_cases.cropped(photo, side) for photo in photos]
    found = fused.preprocess(images, placed, (side, side), mean, std, torch.float32)
    wanted = reference.preprocess(images, placed, (side, side), mean, std, torch.float32)
    # A sum that rounds to another grey level may do so in both passes.
    levels = 255 * min(std) * (found - wanted).abs()
    assert levels.max() < 2.1
    assert levels.mean() < ROUNDED_ELSEWHERE


def by_head_dim(shapes: list[Any]) -> list[tuple[int, list[Any]]]:
    """The shapes of each head dimension: one test compiles a kernel once, and runs it at every number of tokens."""
    return [(size, [shape for shape in shapes if shape[1] == size]) for size in sorted({shape[1] for shape in shapes})]


@WORLD
@ON_GPU
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("head_dim", "pooled", "shapes"),
    [
        (size, pooled, shapes)
        for pooled in (model_shapes.CLASS_TOKEN, model_shapes.MEAN)
        for size, shapes in by_head_dim([shape for shape in SHAPES.attention if shape[3] == pooled])
    ],
)
def test_attention_at_the_shapes_of_every_model(
    head_dim: int, pooled: str, shapes: list[tuple[int, int, int, str]], dtype: torch.dtype, tolerance: float
) -> None:
    for heads, _, tokens, _ in shapes:
        check_attention(heads, head_dim, tokens, pooled, dtype, tolerance)


@WORLD
@ON_GPU
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("head_dim", "shapes"), by_head_dim(SHAPES.pooled_attention))
def test_attention_of_one_query_row_at_the_shapes_of_every_model(
    head_dim: int, shapes: list[Numbers], dtype: torch.dtype, tolerance: float
) -> None:
    for heads, _, tokens in shapes:
        check_pooled_attention(heads, head_dim, tokens, dtype, tolerance)


@WORLD
@ON_GPU
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("width", SHAPES.norms)
def test_a_layer_norm_at_the_widths_of_every_model(width: int, dtype: torch.dtype, tolerance: float) -> None:
    check_norm(width, dtype, tolerance)


@WORLD
@ON_GPU
@pytest.mark.parametrize("head_dim", SHAPES.moments)
def test_moments_at_the_head_dimensions_of_every_model(head_dim: int) -> None:
    check_moments(head_dim, 257)


@WORLD
@ON_GPU
@pytest.mark.parametrize(("height", "width"), SHAPES.pixels)
def test_preprocessing_to_the_sizes_of_every_model(height: int, width: int, addressed: list[torch.Tensor]) -> None:
    assert height == width
    check_preprocessing(height, addressed)


@WORLD
@pytest.mark.skipif(tritons.ON_GPU, reason="without a GPU only")
def test_the_check_of_preprocessing_passes_at_a_toy_size_without_a_gpu(addressed: list[torch.Tensor]) -> None:
    check_preprocessing(12, addressed, ((30, 46), (25, 17)))


@WORLD
@pytest.mark.skipif(tritons.ON_GPU, reason="a GPU runs the checks at real shapes")
@pytest.mark.parametrize(
    "work",
    [
        lambda: check_attention(2, 16, 5, model_shapes.CLASS_TOKEN, *DTYPES[0]),
        lambda: check_attention(1, 16, 7, model_shapes.MEAN, *DTYPES[2]),
        lambda: check_pooled_attention(2, 24, 5, *DTYPES[1]),
        lambda: check_norm(30, *DTYPES[2]),
        lambda: check_moments(24, 5),
    ],
    ids=["class token", "mean", "one row", "norm", "moments"],
)
def test_the_checks_pass_at_toy_shapes_without_a_gpu(work: Callable[[], None]) -> None:
    work()


@pytest.mark.parametrize("op", ["attention_emit", "pooled_attention", "add_layer_norm"])
def test_the_checks_notice_wrong_results(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = getattr(reference, op)

    def wrong(*arguments: Any, **settings: Any) -> Any:
        found = exact(*arguments, **settings)
        return found._replace(normed=1.1 * found.normed) if op == "add_layer_norm" else (1.1 * found[0], found[1])

    monkeypatch.setattr(fused, op, wrong)
    monkeypatch.setattr(fused, "layer_norm", reference.layer_norm)
    work: dict[str, Callable[[], None]] = {
        "attention_emit": lambda: check_attention(2, 16, 5, model_shapes.CLASS_TOKEN, *DTYPES[0]),
        "pooled_attention": lambda: check_pooled_attention(2, 24, 5, *DTYPES[0]),
        "add_layer_norm": lambda: check_norm(30, *DTYPES[0]),
    }
    with pytest.raises(AssertionError):
        work[op]()


@pytest.mark.slow
def test_the_recorded_shapes_are_those_of_the_models() -> None:
    pytest.importorskip("open_clip", reason="the models are open_clip's")
    assert model_shapes.of_models() == SHAPES, "run python -m tests.kernels.model_shapes"
