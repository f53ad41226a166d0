"""The models of stores that were used last, loaded and kept in this process, so that a second query need not load them.

At most two are kept: comparisons alternate between two stores. A model of ViT-L/14's size takes 1.7 GB.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from headspan.events import Listener, ignore
from headspan.io.locations import Location
from headspan.model import load
from headspan.model.load import LoadedModel

_KEPT = 2
# What decides which model a store was made with, and how it is run.
_KEYS = ("weights_sha256", "text_sha256", "model", "pretrained", "model_config", "tower", "preprocess", "image_size")
_Value = TypeVar("_Value")


class LastUsed(Generic[_Value]):
    """The last `most` values that were made, by key. Threads may share it; each value is made once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[str, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], _Value]) -> _Value:
        """The value of `key`, made now if it is not kept. Other threads wait meanwhile."""
        with self._lock:
            if key not in self._values:
                # The oldest goes first: two large models and a third one may not fit the memory.
                while len(self._values) >= self._most:
                    self._values.popitem(last=False)
                self._values[key] = make()
            self._values.move_to_end(key)
            return self._values[key]

    def holds(self, key: str) -> bool:
        """Whether the value of `key` is kept."""
        with self._lock:
            return key in self._values

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._values.clear()


_models: LastUsed[LoadedModel] = LastUsed(_KEPT)


def kept_model(
    attributes: Mapping[str, Any], path: Location, weights: str | Path | None = None, on_progress: Listener = ignore
) -> LoadedModel:
    """As `load_stored_model`, but the model is loaded only at the first call with these `weights`."""
    key = model_key(attributes, weights)
    return _models.get(key, lambda: load.load_stored_model(attributes, path, weights, on_progress))


def is_kept(attributes: Mapping[str, Any], weights: str | Path | None = None) -> bool:
    """Whether `kept_model` need not load the model."""
    return _models.holds(model_key(attributes, weights))


def model_key(attributes: Mapping[str, Any], weights: str | Path | None) -> str:
    """What decides a stored model, as text: checksums of its weights, its config, its preprocessing, and the place."""
    return json.dumps([str(weights), *(attributes.get(name) for name in _KEYS)], sort_keys=True)


def forget_kept_models() -> None:
    """Free the memory of the models."""
    _models.clear()
