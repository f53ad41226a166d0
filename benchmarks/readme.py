"""Generate the tables of the READMEs from the recorded lines.

`python -m benchmarks.readme` writes all tables of benchmarks/README.md, the headlines of README.md, the ops of
kernels/README.md and the modality of features in engine/README.md. For each question and machine the latest line
counts; README.md shows one short row for each of a few questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import (
    bench_ablation,
    bench_contrast,
    bench_decode,
    bench_dense,
    bench_describe_truth,
    bench_encode,
    bench_explore,
    bench_explorer,
    bench_feature_scores,
    bench_feature_truth,
    bench_feature_uses,
    bench_frames,
    bench_loader,
    bench_memory,
    bench_neighbours,
    bench_nulls,
    bench_object_store,
    bench_pipeline,
    bench_plan,
    bench_planted_features,
    bench_precision,
    bench_prune_world,
    bench_scheduling,
    bench_shards,
    bench_sources,
    bench_startup,
    bench_store_bytes,
    bench_store_io,
    bench_storing,
    bench_textspan,
    bench_train_features,
    bench_variants,
    gpu,
    gpu_precompute,
)
from benchmarks.measure import avx512_hidden, latest_lines
from headspan_kernels import reference

README = Path(__file__).parent.parent / "README.md"
PAGE = Path(__file__).parent / "README.md"
KERNELS = README.parent / "kernels" / "README.md"
GUIDE = README.parent / "engine" / "README.md"
BEGIN, END = "<!-- benchmarks: python -m benchmarks.readme -->", "<!-- end of benchmarks -->"

MODULES = (
    bench_encode,
    bench_dense,
    bench_store_bytes,
    bench_textspan,
    bench_nulls,
    bench_prune_world,
    bench_feature_scores,
    bench_planted_features,
    bench_train_features,
    bench_feature_truth,
    bench_feature_uses,
    bench_describe_truth,
    bench_contrast,
    bench_pipeline,
    bench_memory,
    bench_store_io,
    bench_loader,
    bench_storing,
    bench_neighbours,
    bench_explore,
    bench_explorer,
    bench_ablation,
    bench_shards,
    bench_frames,
    bench_sources,
    bench_decode,
    bench_precision,
    bench_startup,
    bench_variants,
    bench_scheduling,
    bench_plan,
    bench_object_store,
)
_GPU_DUE_TO = {
    gpu.TOWER: "Compared with open_clip, attention and norms are fused, and the last block computes the class token's "
    "row only. “Same tower on PyTorch's ops” divided by “ours, heads alone” is what the kernels gain; “ours” divided "
    "by “ours, heads alone” is what emitting patches costs. A CUDA graph gains nothing, nor does compiling norms and "
    "MLPs.",
    gpu.OPS: "Fused ops make fewer passes over memory: what PyTorch writes and reads again stays in registers. The "
    "floor is the larger of the least bytes at the measured copy rate and the least operations at the measured matrix "
    "rate; its share is the floor divided by the op's time. The norms are as fast as compiled ones. The line of the "
    "H100 is older than the kernels of `add_moments` and `preprocess` that are in use; in the line of the H200, "
    "`add_moments` used tiles with 255 registers, and the tiles that are in use took 0.065 ms in the same run. "
    "`head_project`, `text_maps` and `textspan_rounds` were deleted, because no engine code called them "
    "([kernels/README.md](../kernels/README.md)).",
    gpu.ACCURACY: "bf16 has fewer digits than float32, whose products are computed as three TF32 products each.",
}


class Section(NamedTuple):
    """A question of benchmarks/README.md: its title, the question in full, the command, and how its lines are shown."""

    title: str
    asks: str
    module: str
    due_to: str
    table: Callable[[dict[str, Any]], list[list[str]]]


def _section(module: Any) -> Section:
    asks = " ".join(module.__doc__.partition("\n\n")[0].split())
    return Section(module.QUESTION, asks, module.__name__.rpartition(".")[2], module.DUE_TO, module.table)


SECTIONS = (
    *map(_section, MODULES),
    Section(
        gpu.PRECOMPUTE,
        "Does `precompute` run at the pace of the tower on a GPU, from JPEG shards to a finished store?",
        "gpu_precompute",
        gpu_precompute.DUE_TO,
        gpu_precompute.table,
    ),
    Section(
        gpu.TOWER,
        "How fast is ViT-L/14 with everything emitted, beside open_clip and the same tower on PyTorch's ops?",
        "gpu",
        _GPU_DUE_TO[gpu.TOWER],
        gpu.tower_table,
    ),
    Section(
        gpu.OPS,
        "Is every fused op right at ViT-L/14's sizes, and faster than PyTorch, eager and compiled?",
        "gpu",
        _GPU_DUE_TO[gpu.OPS],
        gpu.ops_table,
    ),
    Section(
        gpu.ACCURACY,
        "How far are the contributions of the fused tower from a float64 pass?",
        "gpu",
        _GPU_DUE_TO[gpu.ACCURACY],
        gpu.accuracy_table,
    ),
)
# The rows of README.md: the question, and its line in two short cells.
HEADLINES: tuple[tuple[str, Callable[[dict[str, Any]], tuple[str, str]]], ...] = (
    *(
        (module.QUESTION, module.headline)
        for module in (
            bench_encode,
            bench_dense,
            bench_store_bytes,
            bench_textspan,
            bench_nulls,
            bench_pipeline,
            bench_variants,
            bench_neighbours,
        )
    ),
    (gpu.TOWER, gpu.tower_headline),
    (gpu.PRECOMPUTE, gpu_precompute.headline),
)


def page() -> str:
    """The generated part of benchmarks/README.md."""
    latest = latest_lines()
    parts = []
    for section in SECTIONS:
        parts += [f"## {section.title}", f"{section.asks} [`{section.module}.py`]({section.module}.py)"]
        found = [(machine, line) for (asked, machine), line in sorted(latest.items()) if asked == section.title]
        for machine, line in found:
            where = f"*{machine}, {line['date']}, commit {line['commit']}{_instructions(line)}*"
            parts += [where, _markdown(section.table(line))]
        if not found:
            parts.append("Not yet measured.")
        parts.append(f"Causes: {section.due_to}")
    return "\n\n".join(parts)


def headlines() -> str:
    """The rows of README.md: for each question the latest line, with all instructions of its machine."""
    rows = [["", "measured", "compared with", "machine"]]
    for question, words in HEADLINES:
        lines = [
            (line["date"], machine, line)
            for (asked, machine), line in latest_lines().items()
            if asked == question and not avx512_hidden(line)
        ]
        if lines:
            _, machine, line = max(lines, key=lambda found: found[:2])
            rows.append([question, *words(line), machine])
    return _markdown(rows)


def kernels() -> str:
    """The rows of the ops that still exist, for each GPU."""
    parts = []
    for (question, machine), line in sorted(latest_lines().items()):
        if question == gpu.OPS:
            head, *rows = gpu.ops_table(line)
            parts.append(f"*{machine}, {line['date']}, commit {line['commit']}*")
            parts.append(_markdown([head, *(row for row in rows if hasattr(reference, row[0].partition(",")[0]))]))
    return "\n\n".join(parts)


def modality() -> str:
    """How well scores of modality find the truth, for each machine."""
    parts = []
    for (question, machine), line in sorted(latest_lines().items()):
        if question == bench_feature_truth.QUESTION:
            parts.append(f"*{machine}, {line['date']}, commit {line['commit']}*")
            parts.append(_markdown(bench_feature_truth.summary(line)))
    return "\n\n".join(parts) or "Not yet measured."


def pages() -> dict[Path, str]:
    """Every page with a generated block, and the block."""
    return {README: headlines(), PAGE: page(), KERNELS: kernels(), GUIDE: modality()}


def with_block(text: str, block: str) -> str:
    """`text` with the part between the marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def _instructions(line: Mapping[str, Any]) -> str:
    """The processor's instructions for matrices, in lines that name them and do not measure a GPU."""
    instructions = [] if "ceilings" in line else line.get("cpu", {}).get("instructions", [])
    return f"; the processor has {', '.join(instructions)}" if instructions else ""


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for path, block in pages().items():
        path.write_text(with_block(path.read_text(encoding="utf-8"), block), encoding="utf-8")
