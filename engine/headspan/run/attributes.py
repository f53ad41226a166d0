"""The root attributes of a store: what is needed to interpret its arrays and to compute them again."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headspan.config import ResolvedSettings
from headspan.member_names import MEMBER_SETTINGS
from headspan.model.description import parts_of
from headspan.model.layers import Mlp, Norm
from headspan.model.tower import Tower
from headspan.redact import redact
from headspan.run.encoder import Encoder
from headspan.shards.urls import is_relative
from headspan.store.schema import FORMAT, Dimensions


def store_attributes(settings: ResolvedSettings, encoder: Encoder, images: int, unit_images: int) -> dict[str, Any]:
    """The root attributes of a store of `images` rows in units of `unit_images`."""
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
        **{name: getattr(settings, name) for name in MEMBER_SETTINGS},
        "decode": settings.decode,
        "precision": settings.precision,
        "emit": list(settings.emit),
        "without": list(settings.without),
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
                through_pool=encoder.through_pool,
                through_pool_heads=tower.trunk_heads if encoder.through_pool else 0,
            )
        ),
        "sum": describe_sum(tower),
        "made_with": made_with(settings, encoder),
        "units": {
            "heads": "head output of the pooled row: sum over tokens of alpha v, after the norm that follows, if any",
            "patches": "alpha v per source token; class token and registers come before the patches",
            "mlps": "per-term convention: (m - mean m) gamma P / s, in joint space",
            "through_pool": "per-term convention, in joint space: what the pooling layer's heads took from this head",
            "norm": "mean and sqrt(var + eps) of the final residual state (0, 1 without norm), length of the embedding",
            "embedding": "the model's image embedding, not normalised",
        },
    }


def describe_tower(tower: Tower) -> dict[str, Any]:
    """What determines how the tower runs, apart from its weights and the store's sizes."""
    pooling = "mean of the patches" if tower.mean_pooled else "class token"
    return {
        "activation": sorted({mlp.activation for mlp in parts_of(tower, Mlp)}),
        "norm_eps": sorted({norm.eps for norm in parts_of(tower, Norm)}),
        "pooling": pooling if tower.attention_pool is None else "attention",
        "norm_before_pooling": tower.norm_before_pooling,
    }


def describe_sum(tower: Tower) -> dict[str, Any]:
    """Which terms sum to the embedding, which of them are direct, and which pass a nonlinearity before it."""
    layers = tower.direct_layers
    if tower.attention_pool is None:
        terms = ["initial state", *(f"MLP of layer {layer}" for layer in layers)]
        through_pool = None
    else:
        terms = [f"MLP of layer {layers.start}, the pooling"] if tower.terms else []
        through_pool = f"linear given layer {layers.start}'s attention; part of its heads, so already in the sum; " + (
            "paths through its MLP are not included" if terms else "no other path leads to the embedding"
        )
    return {
        "direct_layers": list(layers),
        "terms": terms,
        "heads": "direct: linear from a head's numbers to the embedding",
        "mlps": "direct; nonlinear in the heads and MLPs before them",
        "through_pool": through_pool,
    }


def made_with(settings: ResolvedSettings, encoder: Encoder) -> dict[str, Any]:
    """What gives the same bytes again on the same machine. A run that resumes may have other values of these."""
    libraries = [
        "torch",
        "open_clip_torch",
        "numpy",
        "pillow",
        "zarr",
        *(["simplejpeg"] if settings.decode != "exact" else []),
        *(["torchvision"] if settings.decode == "gpu" else []),
    ]
    gpu = torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else None
    return {
        "shards": [redact(shard) for shard in settings.shards],
        "allow_pipe": settings.allow_pipe,
        "batch_size": settings.batch_size,
        # The first of several. Which of them computed a unit is not recorded, since their numbers are the same.
        "device": settings.device.split(",")[0].strip(),
        "torch_threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}" + (f", {gpu}" if gpu else ""),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
        # Relative names of shards are relative to this folder.
        "folder": str(Path.cwd()) if any(map(is_relative, settings.shards)) else None,
        "paths": encoder.model.paths,
        "weights": {
            "given": settings.weights,
            "quick_gelu": encoder.model.quick_gelu,
            "assumed": encoder.model.assumed,
        },
    }
