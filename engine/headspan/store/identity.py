"""What two runs must agree on to fill one store, and two stores to be added: an explicit list of keys.

Everything else in a store's attributes is a description. Sentences, names, library versions and the upstream model's
configuration may differ between two runs that compute the same numbers. A key that an older store lacks is not
compared, so stores stay usable when this list grows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from headspan.config import spans
from headspan.store.schema import decoding

# Which members of the shards are images and captions; unset in stores that are older than the choice.
_MEMBERS = ("image_member", "caption_member", "caption_json")
# The model as it runs: checksums of the weights of both towers, what the weights do not say (activation, pooling,
# epsilons of the norms), and what happens to an image before it (which includes the image size).
MODEL_KEYS = ("weights_sha256", "text_sha256", "tower", "preprocess")
# What is computed with it, and how it is laid out.
RUN_KEYS = ("layers", "carried", "emit", "precision", "decode", "unit_images", "images", *_MEMBERS)
# The sizes that follow from the model.
SIZE_KEYS = ("all_layers", "direct_layers", "heads", "head_dim", "tokens", "prefix_tokens", "joint", "terms")

_WORDS = {
    "weights_sha256": "image tower",
    "text_sha256": "text tower",
    "tower": "an image tower that runs as",
    "preprocess": "preprocessing",
    "carried": "carried layers",
    "unit_images": "units of",
    **{name: f"--{name.replace('_', '-')}" for name in _MEMBERS},
}
_DIGITS = 12


def identity(attributes: dict[str, Any]) -> dict[str, Any]:
    """The compared values by their key, as JSON has them; keys that the attributes lack are left out."""
    flat = {**dict.fromkeys(_MEMBERS), **attributes, "decode": decoding(attributes), **attributes["dimensions"]}
    if isinstance(flat.get("emit"), list):
        flat["emit"] = sorted(flat["emit"])
    known = {key: flat[key] for key in (*MODEL_KEYS, *RUN_KEYS, *SIZE_KEYS) if key in flat}
    found: dict[str, Any] = json.loads(json.dumps(known))
    return found


def differences(first: dict[str, Any], second: dict[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Those of `keys` that both attributes have with different values: what it is, and both values, in words."""
    mine, theirs = identity(first), identity(second)
    if all(first.get(name) == second.get(name) for name in ("model", "pretrained")):
        # Of one model, another image size interpolates the positions, and so changes the checksum of the weights too.
        keys = tuple(sorted(keys, key=lambda key: key != "preprocess"))
    for key in keys:
        if key in mine and key in theirs and mine[key] != theirs[key]:
            yield _WORDS.get(key, key), _in_words(key, mine, theirs, first), _in_words(key, theirs, mine, second)


def _in_words(key: str, own: dict[str, Any], other: dict[str, Any], attributes: dict[str, Any]) -> str:
    value = own[key]
    if key.endswith("sha256"):
        return f"{_model(attributes)} (sha256 {str(value)[:_DIGITS]})"
    if isinstance(value, dict) and isinstance(other[key], dict):
        # What differs alone: the rest would bury it.
        names = [name for name in {**value, **other[key]} if value.get(name) != other[key].get(name)]
        return ", ".join(f"{name.replace('_', ' ')} {brief(value.get(name))}" for name in names)
    return brief(value)


def _model(attributes: dict[str, Any]) -> str:
    return " ".join(str(attributes[name]) for name in ("model", "pretrained") if attributes.get(name)) or "a model"


def brief(value: Any) -> str:
    """A value of a setting as a sentence quotes it: layers as spans, anything else as JSON."""
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return spans(value)
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
