"""The identity of a store: the keys that must be equal to resume it or to add moments of two stores.

Everything else in a store's attributes is a description. Sentences, names, library versions and the upstream model's
configuration may differ between two runs that compute the same numbers. A key that an older store lacks is not
compared, so stores stay usable when this list grows. Attributes must be in today's words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from headspan.config import as_ranges
from headspan.member_names import MEMBER_SETTINGS
from headspan.store.schema import decoding

# Which members of the shards are images and captions; older stores do not have these keys.
_MEMBERS = MEMBER_SETTINGS
# The model: checksums of the weights of both towers, what the weights do not contain (activation, pooling, epsilons of
# the norms), the preprocessing of images, which includes their size, and the heads that write nothing.
MODEL_KEYS = ("weights_sha256", "text_sha256", "tower", "preprocess", "without")
# What is computed with the model, and how it is divided into units.
RUN_KEYS = ("layers", "through_pool", "emit", "precision", "decode", "unit_images", "images", *_MEMBERS)
# The sizes that follow from the model.
SIZE_KEYS = ("all_layers", "direct_layers", "heads", "head_dim", "tokens", "prefix_tokens", "joint", "terms")

_WORDS = {
    "weights_sha256": "image tower",
    "text_sha256": "text tower",
    "tower": "an image tower that runs as",
    "preprocess": "preprocessing",
    "without": "--without",
    "through_pool": "layers through the pooling",
    "unit_images": "units of",
    **{name: f"--{name.replace('_', '-')}" for name in _MEMBERS},
}
_DIGITS = 12


def identity(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the compared values by their key, as in JSON; keys that the attributes lack are omitted."""
    flat = {
        **dict.fromkeys(_MEMBERS),
        "without": [],
        **attributes,
        "decode": decoding(attributes),
        **attributes["dimensions"],
    }
    if isinstance(flat.get("emit"), list):
        flat["emit"] = sorted(flat["emit"])
    known = {key: flat[key] for key in (*MODEL_KEYS, *RUN_KEYS, *SIZE_KEYS) if key in flat}
    found: dict[str, Any] = json.loads(json.dumps(known))
    return found


def differences(first: dict[str, Any], second: dict[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """List those of `keys` that differ and that both attributes have: its name and both values, in words."""
    mine, theirs = identity(first), identity(second)
    if all(first.get(name) == second.get(name) for name in ("model", "pretrained")):
        # If one model is used with two image sizes, its interpolated positions also change the checksum of the weights.
        keys = tuple(sorted(keys, key=lambda key: key != "preprocess"))
    for key in keys:
        if key in mine and key in theirs and mine[key] != theirs[key]:
            yield _WORDS.get(key, key), _in_words(key, mine, theirs, first), _in_words(key, theirs, mine, second)


def _in_words(key: str, own: dict[str, Any], other: dict[str, Any], attributes: dict[str, Any]) -> str:
    value = own[key]
    if key.endswith("sha256"):
        return f"{model_name(attributes)} (sha256 {str(value)[:_DIGITS]})"
    if key == "without" and isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, dict) and isinstance(other[key], dict):
        # Only the parts that differ.
        names = [name for name in {**value, **other[key]} if value.get(name) != other[key].get(name)]
        return ", ".join(f"{name.replace('_', ' ')} {brief(value.get(name))}" for name in names)
    return brief(value)


def model_name(attributes: Mapping[str, Any]) -> str:
    """The model of a store in words, such as `ViT-L-14 openai`."""
    return " ".join(str(attributes[name]) for name in ("model", "pretrained") if attributes.get(name)) or "a model"


def brief(value: Any) -> str:
    """Return a value of a setting for a sentence: layers as ranges, anything else as JSON."""
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return as_ranges(value)
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
