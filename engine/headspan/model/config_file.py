"""Read config files of models, check their fields, and refuse those that ask for remote code.

Only the fields that headspan reads itself are checked. open_clip checks the others when it builds the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from headspan.config import INTERPOLATIONS, RESIZE_MODES
from headspan.errors import ModelError, one_line

_CHANNELS = 3
# The largest and the smallest positive number of float32, in which images are normalised.
_LARGEST, _SMALLEST = 3.4e38, 1.2e-38
_LARGEST_LEVEL = 255


def read_json(path: Path) -> Any:
    """The contents of a JSON file. Raises ModelError if it is not JSON or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON ({one_line(error)}); give an open_clip model config") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give an open_clip model config") from error


def read_saved(path: Path, name: str) -> dict[str, Any]:
    """The contents of an `open_clip_config.json`, which describes the model `name` or is stored with its weights.

    Raises ModelError if it is not JSON, if a field has the wrong type, or if it asks for remote code.
    """
    whole = read_json(path)
    refuse_remote_code(name, whole)
    if not isinstance(whole, dict):
        raise ModelError(
            f"{path}: is not an open_clip config; correct it, or remove it from the folder of the weights if it does "
            "not belong to them"
        )
    if "model_cfg" in whole:
        check_model(path, whole["model_cfg"], "model_cfg")
    elif "embed_dim" in whole:
        check_model(path, whole)
    if whole.get("preprocess_cfg") is not None:
        _check_preprocess(path, _table(path, "preprocess_cfg", whole["preprocess_cfg"]))
    return whole


def check_model(path: Path | str, config: Any, within: str = "") -> None:
    """Raise ModelError if a field of the model config in `path` has the wrong type."""
    prefix = f"{within}." if within else ""
    config = _table(path, within, config)
    for part in ("vision_cfg", "text_cfg"):
        if part in config:
            _table(path, f"{prefix}{part}", config[part])
    if not isinstance(config.get("quick_gelu") or False, bool):
        raise _wrong(path, f"{prefix}quick_gelu", config["quick_gelu"], "true or false")
    size = (config.get("vision_cfg") or {}).get("image_size")
    sides = size if isinstance(size, list) else [size]
    if size is not None and not (len(sides) in (1, 2) and all(_is_whole(side) and side > 0 for side in sides)):
        raise _wrong(path, f"{prefix}vision_cfg.image_size", size, "a whole number, or a list of height and width")


def refuse_remote_code(name: str, config: Any) -> None:
    """Raise ModelError if any part of a config asks to run code that comes with a model."""
    if isinstance(config, Mapping):
        if config.get("trust_remote_code"):
            raise ModelError(
                f"{name}: its config asks for trust_remote_code, which would run code from a repository; headspan "
                "never does that, so remove the setting from a copy of the config, and give the copy"
            )
        for value in config.values():
            refuse_remote_code(name, value)
    elif isinstance(config, list | tuple):
        for value in config:
            refuse_remote_code(name, value)


def _check_preprocess(path: Path, config: dict[str, Any]) -> None:
    for field in ("mean", "std"):
        value = config.get(field)
        if value is None:
            continue
        numbers = value if isinstance(value, list) else []
        if len(numbers) != _CHANNELS or not all(_is_number(each) for each in numbers):
            raise _wrong(path, f"preprocess_cfg.{field}", value, "a list of three finite numbers")
        if field == "std" and min(numbers) < _SMALLEST:
            raise _wrong(path, "preprocess_cfg.std", value, "a list of three numbers above 0")
    for field, known in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        value = config.get(field)
        if value is not None and value not in known:
            raise _wrong(path, f"preprocess_cfg.{field}", value, f"one of {', '.join(known)}")
    fill = config.get("fill_color")
    if fill is not None and not (_is_whole(fill) and 0 <= fill <= _LARGEST_LEVEL):
        raise _wrong(path, "preprocess_cfg.fill_color", fill, f"a whole number from 0 to {_LARGEST_LEVEL}")


def _table(path: Path | str, field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, field, value, "a JSON object with settings by name")
    return value


def _wrong(path: Path | str, field: str, value: Any, expected: str) -> ModelError:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ModelError(f"{path}: {field or 'the config'} is {shown}, not {expected}; correct the file")


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # False for NaN too.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
