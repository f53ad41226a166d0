"""The settings that a store was made with, read from its attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headspan.config import PrecomputeSettings
from headspan.io.locations import Location
from headspan.member_names import MEMBER_SETTINGS
from headspan.store.schema import decoding, dimensions


def stored_settings(
    path: Location, attributes: dict[str, Any], shards: Sequence[str], changed: Mapping[str, Any]
) -> PrecomputeSettings:
    """The settings that the store at `path` was made with, over `shards`, with the values of `changed`."""
    size, made_with = dimensions(attributes), attributes.get("made_with", {})
    given = {
        "shards": list(shards),
        "out": str(path),
        "model": attributes["model"],
        "pretrained": attributes["pretrained"],
        # The layers whose heads act through an attention pooling come before the pooling layer.
        "layers": [*size.through_pool, *size.layers],
        "emit": attributes["emit"],
        "without": attributes.get("without", ()),
        "precision": attributes["precision"],
        "decode": decoding(attributes),
        "image_size": attributes.get("image_size"),
        **{name: attributes.get(name) for name in MEMBER_SETTINGS},
        "unit_images": size.unit_images,
        "batch_size": made_with.get("batch_size", 32),
        "device": made_with.get("device", "auto"),
    }
    return PrecomputeSettings.from_dict({**given, **changed})
