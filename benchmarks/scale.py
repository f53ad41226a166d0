"""Estimate what runs over a million to billions of images take.

`python -m benchmarks.scale` writes the tables of SCALE.md. Operations and bytes come from headspan's own formulas.
Rates are the latest recorded ones where there are any: of the tower and of whole runs on a GPU by model and decoding,
otherwise of ViT-L/14's tower by its operations, and of one core's decoding. The tables say which number comes from
which machine. Prices and the other assumptions are named below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import bench_decode, bench_encode, gpu
from benchmarks.bench_store_bytes import dense_bytes
from benchmarks.gpu import Sizes
from benchmarks.gpu_tower import flops
from benchmarks.measure import avx512_hidden, latest_lines
from benchmarks.models import MODELS, store_size
from benchmarks.scale_records import with_paragraph
from headspan.decompose.formula import EXTRA_COORDINATES
from headspan.store.schema import image_bytes, row_arrays

SCALE = Path(__file__).parent / "SCALE.md"
BEGIN, END = "<!-- tables: python -m benchmarks.scale -->", "<!-- end of tables -->"

IMAGES = (10**6, 4 * 10**8, 5 * 10**9)
NAMES = ("ViT-B-32", "ViT-L-14", "ViT-H-14")
# What is stored: the form, and the number of last layers, or None for all.
FORMS = (("heads", 4), ("heads", None), ("patches", 4), ("patches", None))

# Assumed until a GPU is recorded: 55 % of the 790 TFLOP/s in bf16 that matrix products reach on an H200.
ASSUMED_TFLOP_S = 0.55 * 790
# Assumptions.
CORES_A_GPU = 16
GPU_HOUR_DOLLARS = 3.50
CORE_HOUR_DOLLARS = 0.04
TB_MONTH_DOLLARS = 20.0
IMAGE_FILE_BYTES = 60_000
# The rows of `gpu_precompute` that hold the tower alone.
_TOWER_ROWS = ("tower, fp16", "tower, bf16")


def tower_rate() -> tuple[float, str]:
    """TFLOP/s of the image tower on a GPU, and the source of the number."""
    for (question, device), line in sorted(latest_lines().items()):
        if question == gpu.TOWER:
            return float(line["tflop_s"]), f"measured on {device} with ViT-L/14, commit {line['commit']}"
    return ASSUMED_TFLOP_S, "assumed (55 % of 790 TFLOP/s, bf16, an H200), not a measurement"


def decoded_a_second() -> dict[str, float]:
    """Images a second and core, JPEGs of 500 × 375, as last recorded on any machine."""
    line = _decoding()[1]
    return {kind: line[f"{kind}_images_a_second"] for kind in ("exact", "fast")}


def _decoding() -> tuple[str, dict[str, Any]]:
    """The machine and the line of the last recorded decoding."""
    lines = [
        (device, line) for (asked, device), line in sorted(latest_lines().items()) if asked == bench_decode.QUESTION
    ]
    return lines[-1]


def measured(name: str) -> tuple[dict[str, float], str]:
    """Images a second of a model on a GPU by row of `gpu_precompute`, and the source; no rows if none are recorded.

    Those of runs are the steady ones, since the runs here take hours.
    """
    for (question, device), line in sorted(latest_lines().items()):
        if question == gpu.PRECOMPUTE and name in line["models"]:
            rows = line["models"][name]
            rates = {
                kind: row.get("steady_images_a_second") or row["images_a_second"]
                for kind, row in rows.items()
                if "images_a_second" in row
            }
            return rates, f"{name} measured on {device}, commit {line['commit']}"
    return {}, ""


def images_a_second(name: str) -> float:
    """Images a second of one GPU that never waits: the tower's, in the faster type."""
    rates = [rate for row, rate in measured(name)[0].items() if row in _TOWER_ROWS]
    return max(rates, default=tower_rate()[0] * 1e12 / flops(MODELS[name]))


def from_jpegs(name: str, decoding: str) -> float | None:
    """Images a second of a whole run on one GPU, from JPEGs to a store, as measured with that model and decoding."""
    return measured(name)[0].get(f"decode {decoding}")


def stored_bytes(size: Sizes, form: str, layers: int | None) -> int:
    """Bytes per image of the arrays that have one row per image."""
    emit = ("heads", "patches") if form == "patches" else ("heads",)
    return image_bytes(row_arrays(store_size(size, 1, 1, layers or size.layers), emit))


def gpu_hours(name: str, images: int, decoding: str | None = None) -> float:
    """GPU-hours of the forward pass; with `decoding`, of whole runs on a GPU with its own cores.

    Where no run was measured, the GPU may wait for what decoding delivers: the most that any model's run took, or the
    rate of one core times the cores.
    """
    rate = images_a_second(name)
    if decoding is not None:
        run = from_jpegs(name, decoding)
        rate = min(rate, _delivered(decoding)) if run is None else run
    return images / rate / 3600


def _delivered(decoding: str) -> float:
    """Images a second that decoding delivers to one GPU."""
    runs = [run for run in (from_jpegs(name, decoding) for name in NAMES) if run is not None]
    return max(runs) if runs else CORES_A_GPU * decoded_a_second()[decoding]


def moments_bytes(size: Sizes, layers: int) -> int:
    """Bytes of the sums and Gram matrices of the heads of so many layers, which are all that TEXTSPAN needs."""
    coordinates = size.head_dim + EXTRA_COORDINATES
    return 8 * layers * size.heads * coordinates * (coordinates + 1)


def tables() -> str:
    """All tables, in Markdown."""
    (rate, source), decoded = tower_rate(), decoded_a_second()
    runs = [where for where in (measured(name)[1] for name in NAMES) if where]
    whole = f"Towers and whole runs: {'; '.join(runs)}. Other towers" if runs else "Towers"
    return "\n\n".join(
        [
            f"{whole}: {rate:,.0f} TFLOP/s, {source}. Decoding: {decoded['fast']:,.0f} images/s a core "
            f"(`fast`), {decoded['exact']:,.0f} (`exact`), measured on {_decoding()[0]}. Whole runs that were not "
            f"measured: the tower, unless decoding is slower. Assumed: {CORES_A_GPU} cores come with a GPU, "
            f"together ${GPU_HOUR_DOLLARS:.2f} an hour; a core alone ${CORE_HOUR_DOLLARS:.2f} an hour; storage "
            f"${TB_MONTH_DOLLARS:.0f} a TB and month; {IMAGE_FILE_BYTES // 1000} kB an image file.",
            _rates(),
            _bytes(),
            _hours(),
            _disks(),
        ]
    )


def _rates() -> str:
    head = (
        "one GPU",
        "GFLOP an image",
        "images/s of the tower",
        "images/s from JPEGs, measured: fast, gpu",
        "cores to feed it: fast, exact",
        "MB/s in",
        "MB/s out: heads last 4, all; patches last 4, all",
        "images/s of 2 CPU cores, fp32",
    )
    rows, decoded = [], decoded_a_second()
    for name in NAMES:
        size, rate = MODELS[name], images_a_second(name)
        cores = (f"{rate / decoded[kind]:,.0f}" for kind in ("fast", "exact"))
        out = (f"{rate * stored_bytes(size, *form) / 1e6:,.0f}" for form in FORMS)
        rows.append(
            (
                name,
                f"{flops(size) / 1e9:,.1f}",
                f"{rate:,.0f}",
                ", ".join(_or_not_yet(from_jpegs(name, decoding)) for decoding in ("fast", "gpu")),
                ", ".join(cores),
                f"{rate * IMAGE_FILE_BYTES / 1e6:,.0f}",
                ", ".join(out),
                _on_a_cpu(name),
            )
        )
    return _markdown(head, rows)


def _or_not_yet(rate: float | None) -> str:
    return "not yet" if rate is None else f"{rate:,.0f}"


def _on_a_cpu(name: str) -> str:
    rows = [
        line["rows"].get(f"{name} fp32")
        for (question, _), line in latest_lines().items()
        if question == bench_encode.QUESTION and not avx512_hidden(line)
    ]
    return f"{rows[-1]['images_a_second']:,.1f}" if rows and rows[-1] else "not yet measured"


def _bytes() -> str:
    head = ("bytes an image", *map(_form_words, FORMS), "dense float16 patches, last 4", "moments of all layers, once")
    rows = []
    for name in NAMES:
        size = MODELS[name]
        rows.append(
            (
                name,
                *(f"{stored_bytes(size, *form):,}" for form in FORMS),
                f"{dense_bytes(size, 4, 'patches', 2):,}",
                f"{moments_bytes(size, size.layers) / 1e6:,.0f} MB",
            )
        )
    return _markdown(head, rows)


def _hours() -> str:
    kinds = ["fast", "exact"] + ["gpu"] * any(from_jpegs(name, "gpu") for name in NAMES)
    head = (
        "images",
        "model",
        "GPU-hours, never waiting",
        "core-hours of decoding: fast, exact",
        f"GPU-hours with {CORES_A_GPU} cores each: {', '.join(kinds)}",
        f"dollars: {', '.join(kinds)}",
        "dollars with decoding on other cores, fast",
    )
    rows, decoded = [], decoded_a_second()
    for images in IMAGES:
        for name in NAMES:
            hours = gpu_hours(name, images)
            cores = {kind: images / rate / 3600 for kind, rate in decoded.items()}
            paid = [gpu_hours(name, images, kind) for kind in kinds]
            apart = hours * GPU_HOUR_DOLLARS
            # The share that the GPUs' own cores cannot decode in time.
            apart += max(0.0, cores["fast"] - hours * CORES_A_GPU) * CORE_HOUR_DOLLARS
            rows.append(
                (
                    f"{images:,}",
                    name,
                    _rounded(hours),
                    ", ".join(_rounded(cores[kind]) for kind in ("fast", "exact")),
                    ", ".join(map(_rounded, paid)),
                    ", ".join(_rounded(each * GPU_HOUR_DOLLARS) for each in paid),
                    _rounded(apart),
                )
            )
    return _markdown(head, rows)


def _disks() -> str:
    head = ("images", "model", "TB read", *(f"TB, {_form_words(form)}" for form in FORMS), "dollars a month, each")
    rows = []
    for images in IMAGES:
        for name in NAMES:
            terabytes = [images * stored_bytes(MODELS[name], *form) / 1e12 for form in FORMS]
            rows.append(
                (
                    f"{images:,}",
                    name,
                    _rounded(images * IMAGE_FILE_BYTES / 1e12),
                    *map(_rounded, terabytes),
                    ", ".join(_rounded(each * TB_MONTH_DOLLARS) for each in terabytes),
                )
            )
    return _markdown(head, rows)


def _form_words(form: tuple[str, int | None]) -> str:
    kind, layers = form
    return f"{kind}, {'all layers' if layers is None else f'last {layers}'}"


def _rounded(number: float) -> str:
    """Two digits: the assumptions are no better."""
    return f"{float(f'{number:.2g}'):,.10g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(page: str) -> str:
    """The page with its tables and its paragraph about a simulated run up to date."""
    before, rest = page.split(BEGIN)
    return with_paragraph(f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    SCALE.write_text(with_tables(SCALE.read_text(encoding="utf-8")), encoding="utf-8")
