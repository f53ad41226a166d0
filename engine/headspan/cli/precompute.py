"""The command `precompute`, and the summary that it prints."""

from __future__ import annotations

import argparse
from dataclasses import fields

from headspan.cli.commands import Section, loading
from headspan.cli.numbers import FROM_1, Whole
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import pipe_flag
from headspan.cli.terminal import say
from headspan.config import EMISSIONS, MOST, PRECISIONS, PrecomputeSettings
from headspan.errors import SettingsError, counted, percent
from headspan.escapes import shell_command
from headspan.ray_settings import Ray
from headspan.run.summary import Summary
from headspan.store.commit_records import NOT_FINITE
from headspan.store.reader import Store
from headspan.timing import IN_TURN, MEANWHILE

_BAD_SHOWN = 10
# The share of a run's time, spent waiting for images, above which another way to decode is advised.
_LONG_WAIT = 0.2
# The share of images above which overflows are advised against.
_MANY_OVERFLOWS = 0.001


def add_precompute(section: Section) -> None:
    """Add `precompute`."""
    command = section.add(
        "precompute",
        _precompute,
        "headspan precompute 'data/{0000..0127}.tar' --model ViT-L-14 \\\n"
        "      --pretrained laion2b_s32b_b82k --out run.zarr",
    )
    command.set_defaults(kept="finished units")

    images = command.add_argument_group("images")
    images.add_argument(
        "shards",
        nargs="+",
        help="tars, folders of images, Parquet files, or lists of images (.csv, .tsv, .txt, .jsonl): paths, brace "
        "patterns, globs, directories or URLs",
    )
    images.add_argument(
        "--image-member",
        metavar="FIELD",
        help="which files of a tar are images, by the part of their names after the first dot, such as input.jpg or "
        "*.left.png (default: all images)",
    )
    images.add_argument(
        "--caption-member", metavar="FIELD", help="which files are captions, in the same way (default: txt)"
    )
    images.add_argument("--caption-json", metavar="KEY", help="read captions from this key of the .json files")
    for role, held in (("image", "images"), ("caption", "captions"), ("class", "classes"), ("key", "keys")):
        images.add_argument(
            f"--{role}-column",
            metavar="NAME",
            help=f"which column of Parquet files and lists holds the {held} (default: by the usual names)",
        )
    images.add_argument(
        "--captions",
        metavar="FILE",
        help="captions of a folder's images: a CSV file with the columns file,caption (default: X.txt beside X.jpg)",
    )
    images.add_argument(
        "--classes",
        metavar="FROM",
        help="classes of a folder's images: folders, none, or auto (its subfolders, unless they are numbered like "
        "shards or images have .cls files) (default: auto)",
    )
    images.add_argument(
        "--max-bad",
        metavar="N",
        help="stop when more images than this cannot be used: a number, or a share such as 1%%",
    )
    pipe_flag(images)

    model = command.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="NAME",
        help="the model: an open_clip name, hf-hub:…, local-dir:…, a config file (.json), or reference, the small "
        "model that headspan includes (default: ViT-B-32)",
    )
    model.add_argument(
        "--pretrained",
        metavar="TAG",
        help="the weights: an open_clip tag, hf-hub:…, a .pt or .safetensors file, or random:SEED",
    )
    model.add_argument(
        "--weights", metavar="PATH", help="file or folder that holds the weights of --pretrained TAG or of --model"
    )
    model.add_argument(
        "--image-size",
        type=Whole(most=MOST["image_size"]),
        metavar="N",
        help="height and width in pixels (default: the model's); position embeddings are interpolated",
    )

    output = command.add_argument_group("output")
    output.add_argument("--out", required=True, metavar="STORE", help="the store to write, a folder such as run.zarr")
    output.add_argument(
        "--layers", help="layers to store, as in all, last4, 8-11 or 0,3,8-11, counting from 0 (default: last4)"
    )
    output.add_argument("--emit", help=f"what to store, separated by commas: {', '.join(EMISSIONS)} (default: heads)")
    output.add_argument(
        "--without",
        action="append",
        metavar="HEADS",
        help="soft pruning: heads of any layers that write nothing, separated by commas, as in L22.H13,L23.H1 (their "
        "slices of the output projections are zero, the biases stay); may be repeated",
    )
    output.add_argument(
        "--unit-images",
        type=Whole(most=MOST["unit_images"]),
        metavar="N",
        help="images per unit of work, which is stored as a whole (default: 256 on a CPU; on a GPU 16384, or with "
        "patches up to 1024 of at most 2 GB; fewer for a small job on several devices)",
    )

    computation = command.add_argument_group("computation")
    computation.add_argument(
        "--device",
        help="cpu, cuda:0, or several GPUs such as cuda:0,cuda:2, each with its own process (default: auto, all GPUs, "
        "or the CPU if there is none)",
    )
    computation.add_argument(
        "--precision",
        help=f"the model's number format: {', '.join(PRECISIONS)} (default: auto, fp32 on a CPU and fp16 on a GPU; a "
        "store that exists keeps its own)",
    )
    computation.add_argument(
        "--decode",
        help="fast (JPEG pixels within two grey levels of open_clip's), exact (the same pixels as open_clip's) or gpu "
        "(JPEGs decoded on the GPU) (default: fast)",
    )
    computation.add_argument(
        "--batch-size",
        type=Whole(most=MOST["batch_size"], word="auto"),
        metavar="N",
        help="images per forward pass (default: auto, 32 on a CPU, and on a GPU by model and free memory; a store that "
        "exists keeps its own)",
    )
    computation.add_argument(
        "--workers",
        type=Whole(most=MOST["workers"]),
        metavar="N",
        help="threads or processes that decode images, for each device (default: about one per core, shared "
        "by the devices)",
    )
    computation.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="compute on a Ray cluster, whose head is at HOST:PORT (default: the cluster of RAY_ADDRESS, else one that "
        "runs here, else one of this machine alone, for this run)",
    )
    computation.add_argument(
        "--ray-cpus",
        type=FROM_1,
        metavar="N",
        help="cores of each worker (default: an equal share for each GPU; on CPUs as many as torch has threads here)",
    )
    computation.add_argument(
        "--ray-workers",
        type=FROM_1,
        metavar="N",
        help="at most this many workers (default: as many as the cluster has room for, one for each GPU)",
    )


def _precompute(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    # Needs torch.
    with loading():
        from headspan.run.precompute import precompute

    names = {field.name for field in fields(PrecomputeSettings)}
    given = {name: value for name, value in vars(flags).items() if name in names and value is not None}
    summary = precompute(PrecomputeSettings.from_dict(given), progress, executor=_executor(flags))
    progress.close()
    print_summary(summary)
    store = Store(summary.path)
    _advise(summary, store)
    if store.complete and not store.images:
        say(
            f"none of {counted(store.planned_images, 'image')} could be used, so the store is empty; "
            f"`{_command_listing_bad(summary)}` lists the reasons"
        )
        return 1
    return 1 if summary.quarantined else 0


def _executor(flags: argparse.Namespace) -> Ray | None:
    """The executor that the flags name; None for this machine."""
    if flags.ray is not None:
        return Ray(flags.ray or None, flags.ray_cpus, flags.ray_workers)
    for name in ("ray_cpus", "ray_workers"):
        if getattr(flags, name) is not None:
            raise SettingsError(f"--{name.replace('_', '-')} is for runs on a Ray cluster; add --ray, or leave it out")
    return None


def print_summary(summary: Summary) -> None:
    """Print what a call of `precompute` did."""
    if summary.skipped:
        say(f"already stored, earlier or by another process: {counted(summary.skipped, 'image')}")
    say(f"{counted(summary.images, 'image')} stored in {summary.path}")
    if summary.images:
        say(_stage_seconds(summary))
    if summary.bad:
        say(f"{counted(len(summary.bad), 'image')} could not be used:")
        for bad in summary.bad[:_BAD_SHOWN]:
            say(f"  row {bad.row}, {bad.key} in {bad.url}: {bad.reason}")
        if len(summary.bad) > _BAD_SHOWN:
            say(f"  and {len(summary.bad) - _BAD_SHOWN:,} more; `{_command_listing_bad(summary)}` lists all")
    if summary.completed_by:
        say(f"{summary.completed_by} adds up the moments of all units, which completes the store")
    for unit in summary.quarantined:
        say(
            f"unit {unit.index}, rows {unit.first_row} to {unit.first_row + unit.rows - 1}, is quarantined, because "
            f"its process repeatedly crashed; `{shell_command(['headspan', 'repair', summary.path])}` tries it again"
        )


def _advise(summary: Summary, store: Store) -> None:
    """Print what may help the next run."""
    overflows = sum(bad.reason == NOT_FINITE for bad in summary.bad)
    if store.attributes["precision"] == "fp16" and overflows > _MANY_OVERFLOWS * (summary.images + len(summary.bad)):
        say(
            f"numbers of {counted(overflows, 'image')} overflowed, perhaps in the model's fp16; --precision bf16, with "
            "another --out, has the range of fp32"
        )
    waited = summary.seconds.get("waiting for images", 0.0) / summary.processes
    total = summary.seconds.get("total", 0.0)
    on_gpu = str(store.attributes.get("backend", "")).endswith(" cuda")
    if summary.images and on_gpu and store.attributes["decode"] == "fast" and waited > _LONG_WAIT * total:
        say(
            f"the GPU waited for images for {percent(waited / total, 0)} of the time; --decode gpu, with another "
            "--out, decodes JPEGs on it, to pixels that differ a little more from open_clip's"
        )


def _stage_seconds(summary: Summary) -> str:
    seconds = summary.seconds
    in_turn, meanwhile = (
        ", ".join(f"{stage} {seconds[stage]:,.1f} s" for stage in stages) for stages in (IN_TURN, MEANWHILE)
    )
    over = f", added up over {summary.processes} processes" if summary.processes > 1 else ""
    return f"{seconds['total']:,.1f} s{over}: {in_turn}; at the same time on other threads: {meanwhile}"


def _command_listing_bad(summary: Summary) -> str:
    return shell_command(["headspan", "info", summary.path, "--bad"])
