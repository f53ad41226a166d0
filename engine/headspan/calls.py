"""The calls of the Python interface that take a run's settings one by one, as the command line does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from headspan.events import Listener
    from headspan.head_names import Head
    from headspan.ray_settings import Ray
    from headspan.run.repair import Repaired
    from headspan.run.summary import Summary
    from headspan.run.verify import Verdict
    from headspan.store.reader import Store


def models() -> dict[str, str | None]:
    """Every model of open_clip by name, with None if headspan supports it, else the reason why it does not.

    Needs torch.
    """
    # Here and below: imported in the call, because reading and analysing stores need no torch.
    from headspan.model.convert import catalogue

    return catalogue()


def precompute(
    shards: str | Sequence[str],
    out: str | Path,
    *,
    model: str = "ViT-B-32",
    pretrained: str | None = None,
    weights: str | Path | None = None,
    layers: str | Sequence[int] = "last4",
    emit: str | Sequence[str] = ("heads",),
    without: str | Sequence[str | Head] = (),
    image_size: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    decode: Literal["fast", "exact"] = "fast",
    workers: int | None = None,
    unit_images: int | None = None,
    image_member: str | None = None,
    caption_member: str | None = None,
    caption_json: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    class_column: str | None = None,
    key_column: str | None = None,
    captions: str | Path | None = None,
    classes: Literal["auto", "folders", "none"] | None = None,
    allow_pipe: bool = False,
    max_bad: str | int | None = None,
    in_flight_bytes: int | None = None,
    executor: Ray | None = None,
    on_progress: Listener | None = None,
) -> Summary:
    """Stream shards of images through an image encoder into a store. Needs torch.

    After an interruption, the same call continues after the last committed unit. Several processes may work on one
    store with the same arguments.

    Args:
        shards: Tars, folders of images, Parquet files or lists, in the order of rows: paths, patterns or URLs.
        out: The store to write, a local folder such as `run.zarr`.
        model: An open_clip name, `hf-hub:…`, `local-dir:…`, a config file (.json), or `reference`, the included model.
        pretrained: An open_clip tag, `hf-hub:…`, a .pt or .safetensors file, `random:SEED`; None for `model`'s own.
        weights: A file or folder that holds the weights named by `pretrained` or `model`, or `hf-hub:…`.
        layers: Layers whose heads are stored, counted from 0: `all`, `last4`, `8-11`, `0,3,8-11`, or numbers.
        emit: What is stored: `heads` always, and `patches`, `mlps` or, with attention pooling, `through_pool`.
        without: Heads of any layers that write nothing, `L22.H13,L23.H1` or pairs of layer and head (soft pruning).
        image_size: Height and width in pixels; None for the model's own. Position embeddings are interpolated.
        device: `auto` for all GPUs, `cpu`, `cuda:0`, or several such as `cuda:0,cuda:2`, with a process for each.
        precision: Type of weights and activations: `fp32`, `bf16`, `fp16`; `auto` is fp32 on a CPU, fp16 on a GPU.
        batch_size: Images per forward pass; `auto` is 32 on a CPU, and depends on model and memory on a GPU.
        decode: `exact` gives open_clip's pixels; `fast` is within two grey levels of them; `gpu` decodes on the GPU.
        workers: Threads or processes that decode images, for each device; None for an equal share of the cores.
        unit_images: Images per unit of work, which is committed as a whole; None for a size that suits the device.
        image_member: Which members are images, by what follows the first dot of their names; None for all images.
        caption_member: Which members are captions, in the same way; None for `txt`.
        caption_json: The key under which .json members hold captions; None if captions are members of their own.
        image_column: Which column of Parquet files and lists holds the images; None for one with a usual name.
        caption_column: Which column holds the captions, in the same way.
        class_column: Which column holds the classes, in the same way.
        key_column: Which column holds the keys, in the same way.
        captions: For folders: a CSV file with the columns file,caption; None for `X.txt` beside `X.jpg`.
        classes: For folders: `folders` takes classes from subfolders, `none` takes none; None decides by their names.
        allow_pipe: Run shards that are `pipe:` commands.
        max_bad: Stop when more images than this cannot be used: a number, or a share such as `1%`; None for no limit.
        in_flight_bytes: Bytes of memory for images in flight, for each device; None for a size that suits the device.
        executor: `headspan.Ray(…)` to compute on the nodes of a Ray cluster; None to compute on this machine.
        on_progress: Called with a `headspan.events.Progress` as the work advances.

    Returns:
        What this call stored, the images that could not be used, and the seconds that each stage took.

    Raises:
        HeadspanError: If a shard, the model, an argument or the disk prevents the run, or too many images are bad.
            Committed units stay valid.
    """
    given = {name: value for name, value in locals().items() if name not in ("executor", "on_progress")}

    from headspan.config import PrecomputeSettings
    from headspan.events import ignore
    from headspan.run.precompute import precompute as run

    settings = PrecomputeSettings.from_dict({**given, "out": str(out)})
    return run(settings, on_progress or ignore, executor=executor)


def verify(
    store: Store | str | Path,
    *,
    sources: bool = False,
    shards: Sequence[str] = (),
    on_progress: Listener | None = None,
) -> Verdict:
    """Check a store's files, numbers and sources; nothing is changed.

    Args:
        store: The store, or its path.
        sources: Read every image again from its source and compare checksums.
        shards: Where all the shards are now, if they have moved.
        on_progress: Called with a `headspan.events.Progress` after each unit.

    Returns:
        The problems, and how far the contributions' sums are from the embeddings.

    Raises:
        HeadspanError: If there is no store, or its plan cannot be read.
    """
    from headspan.events import ignore
    from headspan.run.verify import verify as run
    from headspan.store.reader import Store

    # All rows: which of them hold an image is one of the things to check.
    path = store.path if isinstance(store, Store) else store
    return run(Store(path, include_failed=True), on_progress or ignore, sources, shards)


def repair(
    store: Store | str | Path,
    shards: Sequence[str] = (),
    *,
    weights: str | Path | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    in_flight_bytes: int | None = None,
    allow_pipe: bool = False,
    on_progress: Listener | None = None,
) -> Repaired:
    """Compute damaged and quarantined units of a store again, and restore damaged files of its plan. Needs torch.

    Everything else stays as it is.

    Args:
        store: The store, or its path.
        shards: All shards in the order of the run, if they have moved or if their URLs hold secrets.
        weights: Where the model's weights are now, if they have moved: a file, a folder, or `hf-hub:…`.
        batch_size: Images per forward pass; None for the store's, which gives the same bytes on the same machine.
        device: `auto`, `cpu` or `cuda:0`, the first of several; None for the store's.
        workers: Threads or processes that decode images; None for about one per core.
        in_flight_bytes: Bytes of memory for images that are being decoded or wait for the model; None for enough.
        allow_pipe: Run shards that are `pipe:` commands.
        on_progress: Called with a `headspan.events.Progress` as the work advances.

    Returns:
        The units and files that were written, and the verdict on the store afterwards.

    Raises:
        HeadspanError: If model or shards are not those that the store was made from, or cannot be read.
    """
    from headspan.events import ignore
    from headspan.run.repair import repair as run
    from headspan.store.reader import Store

    changed = {
        "batch_size": batch_size,
        "device": device,
        "workers": workers,
        "in_flight_bytes": in_flight_bytes,
        "allow_pipe": allow_pipe or None,
    }
    given = {name: value for name, value in changed.items() if value is not None}
    path = store.path if isinstance(store, Store) else store
    return run(path, shards, on_progress or ignore, weights=weights, **given)
