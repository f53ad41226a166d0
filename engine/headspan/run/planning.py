"""From settings to a store that is planned: every image has its row, every array its shape.

An existing store is taken up again if it was made with the same settings from the same shards, and
refused with the first difference otherwise.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headspan.config import MemberNames, PrecomputeSettings
from headspan.decompose.fold import fold
from headspan.errors import StoreError, counted
from headspan.escapes import shell_command
from headspan.events import Listener, Progress, ignore
from headspan.io.files import checksum, write_atomically
from headspan.model.description import parts_of
from headspan.model.layers import Mlp, Norm
from headspan.model.tower import Tower
from headspan.redact import redact
from headspan.run.encoder import Encoder
from headspan.run.memory_estimate import estimated_bytes
from headspan.run.planned_sources import as_planned
from headspan.shards.plan import list_samples
from headspan.shards.samples import BadImage, Sample, Shard
from headspan.shards.sources import describe_each
from headspan.shards.urls import is_relative
from headspan.store.schema import FORMAT, Dimensions, image_bytes, member_names, moment_arrays
from headspan.store.tables import read_shards
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter


def open_planned(
    settings: PrecomputeSettings, urls: Mapping[str, str], encoder: Encoder, on_progress: Listener
) -> StoreWriter:
    """The store that the settings name, planned over the shards `urls` (by name) now if it is not there yet."""
    path = Path(settings.out)
    if (path / "zarr.json").is_file():
        return _resume(path, urls, settings, encoder)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreError(f"{path}: exists and is no headspan store; choose another --out")
    shards: list[Shard] = []
    notes: list[BadImage] = []
    unit_images = settings.unit_images or _unit_images(encoder.device.type, settings.emit)
    with NewStore(path) as staged:
        images = staged.plan(_collected(urls, shards, notes, on_progress, settings.member_names), unit_images, notes)
        unit_images = _fitting(unit_images, images)
        attributes = store_attributes(settings, encoder, images, unit_images)
        first = staged.publish(attributes, shards, fold(encoder.exact, encoder.layers))
    if not first:
        # Another process has planned the same store meanwhile.
        return _resume(path, urls, settings, encoder)
    store = StoreWriter(path)
    per_image = image_bytes(store.specs)
    direct = encoder.exact.direct_layers
    memory = estimated_bytes(settings, encoder, store.specs)
    once = _bytes_once(store)
    words = [
        f"{(images * per_image + once) / 1e6:,.1f} MB: {per_image:,} bytes an image, and {once / 1e6:,.1f} MB of "
        f"tables, matrices and moments; memory at most {memory / 1e6:,.0f} MB"
    ]
    if notes:
        lists = shell_command(["headspan", "info", str(path), "--notes"])
        words.append(f"{counted(len(notes), 'note')} on captions and other members; `{lists}` lists them")
    if direct.start > 0 and not encoder.carried:
        words.append(f"of layers before {direct.start}, the pooling, nothing is kept without --emit heads,through_pool")
    on_progress(Progress("planned", images, images, "; ".join(words)))
    return store


def _bytes_once(store: StoreWriter) -> int:
    """Bytes of what has no row an image: the plan's files, which are there, and the moments of all units."""
    written = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    return written + sum(spec.shape[0] * spec.row_bytes for spec in moment_arrays(store.size).values())


def store_attributes(settings: PrecomputeSettings, encoder: Encoder, images: int, unit_images: int) -> dict[str, Any]:
    """The root attributes: everything needed to interpret the arrays and to make them again."""
    tower, model = encoder.exact, encoder.model
    return {
        "format": FORMAT,
        "version": version("headspan"),
        "backend": f"{encoder.tower.ops.__name__} on {encoder.device.type}",
        "model": model.name,
        "pretrained": model.pretrained,
        "model_config": model.config,
        "weights_sha256": model.weights_sha256,
        "text_sha256": model.text_sha256,
        "tower": describe_tower(tower),
        "preprocess": asdict(model.preprocess),
        "image_size": settings.image_size,
        "image_member": settings.image_member,
        "caption_member": settings.caption_member,
        "caption_json": settings.caption_json,
        "decode": settings.decode,
        "precision": settings.precision,
        "emit": list(settings.emit),
        "dimensions": asdict(
            Dimensions(
                images=images,
                unit_images=unit_images,
                layers=encoder.layers,
                all_layers=tower.layers,
                direct_layers=len(tower.direct_layers),
                heads=tower.heads,
                head_dim=tower.head_dim,
                tokens=tower.tokens,
                prefix_tokens=tower.prefix_tokens,
                joint=tower.joint,
                terms=tower.terms,
                through_pool=encoder.carried,
                through_pool_heads=tower.trunk_heads if encoder.carried else 0,
            )
        ),
        "sum": describe_sum(tower),
        "made_with": made_with(settings, encoder),
        "units": {
            "heads": "value mix of the pooled row, sum over tokens of alpha v, after the norm behind it, if any",
            "patches": "alpha v per source token, those that are no patches first",
            "mlps": "per_term convention: (m - mean m) gamma P / s, in joint space",
            "through_pool": "per_term convention, in joint space: what the pooling layer's heads took from this head",
            "norm": "mean and sqrt(var + eps) of the final residual state (0, 1 without norm), length of the embedding",
            "embedding": "the model's own, not normalised",
        },
    }


def describe_tower(tower: Tower) -> dict[str, Any]:
    """What decides how the tower runs and stands neither in its weights nor in the store's sizes."""
    pooling = "mean of the patches" if tower.mean_pooled else "class token"
    return {
        "activation": sorted({mlp.activation for mlp in parts_of(tower, Mlp)}),
        "norm_eps": sorted({norm.eps for norm in parts_of(tower, Norm)}),
        "pooling": pooling if tower.pool is None else "attention",
        "norm_before_pooling": tower.norm_rows,
    }


def describe_sum(tower: Tower) -> dict[str, Any]:
    """Which terms sum to the embedding, which of them are direct, and which pass a nonlinearity on the way to it."""
    layers = tower.direct_layers
    if tower.pool is None:
        terms = ["initial state", *(f"MLP of layer {layer}" for layer in layers)]
        through_pool = None
    else:
        terms = [f"MLP of layer {layers.start}, the pooling"] if tower.terms else []
        through_pool = f"linear given layer {layers.start}'s attention: shares of its heads, in the sum already; " + (
            "what passes its MLP is not in them" if terms else "no other way leads to the embedding"
        )
    return {
        "direct_layers": list(layers),
        "terms": terms,
        "heads": "direct: linear from a head's numbers to the embedding",
        "mlps": "direct as they stand; nonlinear in the heads and MLPs before them",
        "through_pool": through_pool,
    }


def made_with(settings: PrecomputeSettings, encoder: Encoder) -> dict[str, Any]:
    """What makes the same bytes again on the same machine; a store may be continued with other values of these."""
    libraries = [
        "torch",
        "open_clip_torch",
        "numpy",
        "pillow",
        "zarr",
        *(["simplejpeg"] if settings.decode == "fast" else []),
    ]
    gpu = torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else None
    return {
        "shards": [redact(shard) for shard in settings.shards],
        "allow_pipe": settings.allow_pipe,
        "batch_size": settings.batch_size,
        "device": settings.device,
        "torch_threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}" + (f", {gpu}" if gpu else ""),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
        # The folder that relative names of shards are relative to.
        "folder": str(Path.cwd()) if any(map(is_relative, settings.shards)) else None,
        "paths": encoder.model.paths,
        "weights": {
            "given": settings.weights,
            "quick_gelu": encoder.model.quick_gelu,
            "assumed": encoder.model.assumed,
        },
    }


def _resume(path: Path, urls: Mapping[str, str], settings: PrecomputeSettings, encoder: Encoder) -> StoreWriter:
    store = StoreWriter(path)
    wanted = settings.unit_images and _fitting(settings.unit_images, store.size.images)
    if wanted not in (None, store.size.unit_images):
        raise StoreError(
            f"{path}: was planned in units of {counted(store.size.unit_images, 'image')}, this run asks for "
            f"{settings.unit_images}; leave --unit-images out to go on, or use another --out"
        )
    refuse_other_run(store, settings, as_planned(read_shards(path), store.attributes, urls), encoder)
    store.refuse_full_disk()
    return store


def refuse_other_run(
    store: StoreWriter, settings: PrecomputeSettings, urls: Mapping[str, str], encoder: Encoder
) -> None:
    """Raise StoreError where `settings` or the shards `urls`, by name, are not those that the store was made with."""
    # The plan is not made again: sizes and times tell whether the shards are the ones that were planned.
    store.refuse_other(
        store_attributes(settings, encoder, store.size.images, store.size.unit_images),
        [(name, *found) for name, found in zip(urls, describe_each(urls.values()), strict=True)],
    )


def restored_plan_files(
    store: StoreWriter, damaged: Sequence[str], urls: Mapping[str, str], encoder: Encoder
) -> list[str]:
    """Those of the `damaged` files of the plan that could be made again, checksum for checksum."""
    recorded = {name: found for name, found in store.commits.other_files().items() if name in damaged}
    restored: list[str] = []
    if not recorded:
        return restored
    shards: list[Shard] = []
    notes: list[BadImage] = []
    with NewStore(store.path) as staged:
        names = member_names(store.attributes)
        staged.plan(_collected(urls, shards, notes, ignore, names), store.size.unit_images, notes)
        folded = fold(encoder.exact, encoder.layers)
        staged.write(store.stored_attributes, shards, folded)
        for name, found in recorded.items():
            made = staged.folder / name
            if made.is_file() and checksum(made) == found:
                write_atomically(store.path / name, [made.read_bytes()], store.token)
                restored.append(name)
    return restored


def _unit_images(device: str, emit: Sequence[str]) -> int:
    """The unit where none is asked for: minutes of work on a CPU, seconds on a GPU.

    A unit of less than some 50 MB takes as long to be made durable as to be written.
    """
    if device == "cpu":
        return 256
    return 1024 if "patches" in emit else 16384


def _fitting(unit_images: int, images: int) -> int:
    """The unit of a job of so many images: a small job is one small unit, whose shards are not mostly padding."""
    return min(unit_images, -(-images // 64) * 64)


def _collected(
    urls: Mapping[str, str], shards: list[Shard], notes: list[BadImage], on_progress: Listener, names: MemberNames
) -> Iterator[Sample]:
    for shard, samples in list_samples(urls, on_note=notes.append, on_progress=on_progress, names=names):
        shards.append(shard)
        yield from samples
