"""Write a data set of images as WebDataset tars, which `precompute` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headspan.errors import SettingsError
from headspan.escapes import escaped
from headspan.shard_writer.encoded import FORMATS, encoded
from headspan.shard_writer.rows import json_text, rows_of, split_metadata
from headspan.shard_writer.tars import TarShards, numbered
from headspan.shards.keys import Keys
from headspan.user_paths import expand_user


def write_shards(
    samples: Any,
    out: str | Path,
    images_per_shard: int = 1000,
    *,
    image: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    key: str | None = None,
    root: str | Path = ".",
    encode: str = "png",
) -> str:
    """Write images with captions, classes and metadata as `out/000000.tar` and so on; return their brace pattern.

    The result can be given to `precompute`. Encoded images are copied, never decoded. The same samples give the same
    bytes. A tar appears when it is complete.

    Args:
        samples: A `datasets.Dataset` with an image column; a pandas frame with a column of paths or encoded bytes; or
            an iterable of (key, image, metadata). There, an image is encoded bytes, a path, a PIL image or a uint8
            array `[row, column, channel]`; metadata are a dictionary, a caption, or None.
        out: A new or empty folder.
        images_per_shard: Images in a tar.
        image: The column of images; None for the image column of a data set, or one named `image`, `path`, `file`, ….
        caption: The column, or key of the metadata, of captions; None for one named `caption`, `text`, ….
        label: The same for classes: whole numbers, or names in a frame; None for one named `label`, `cls`, …. Names of
            classes are listed in `out/classes.txt`, one a line.
        key: The column of keys; None for one named `key`, or else the row's number. Dots in keys become `_`. All other
            columns become the `json` member.
        root: The folder of relative paths.
        encode: How pixels are encoded: `png`, without loss (TIFF if PNG has no such colours), `jpeg` or `webp`.

    Raises:
        SettingsError: If `out` is not empty or cannot be written, there is no sample, or a value cannot be used.
        SourceError: If an image cannot be read.
    """
    if encode not in FORMATS:
        raise SettingsError(f"encode {encode!r} is unknown; use {', '.join(FORMATS)}")
    folder, base = expand_user(str(out), SettingsError), expand_user(str(root), SettingsError)
    chosen = {"image": image, "caption": caption, "label": label, "key": key}
    source, keys = rows_of(samples, chosen), Keys()
    try:
        with TarShards(folder, images_per_shard) as tars:
            for number, (name, picture, columns) in enumerate(source.rows):
                # Numbers are unique, so they need not be remembered.
                own = f"{number:09d}" if name is None else keys.key_of(name)
                extension, data = encoded(picture, own, base, encode)
                sample: dict[str, str | bytes] = {"__key__": own, extension: data}
                text, class_number, metadata = split_metadata(columns, source.chosen)
                if text is not None:
                    sample["txt"] = str(text)
                if class_number is not None:
                    sample["cls"] = str(_whole(class_number, own))
                if metadata:
                    sample["json"] = json_text(metadata, own)
                tars.write(sample)
    except OSError as error:
        raise SettingsError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); solve that, and try again with another "
            "folder"
        ) from error
    if not tars.shards:
        raise SettingsError("there is no sample to write; give at least one")
    if source.classes:
        (folder / "classes.txt").write_text("".join(f"{escaped(name)}\n" for name in source.classes), encoding="utf-8")
    return numbered(folder, tars.shards)


def _whole(label: Any, key: str) -> int:
    """A class as a whole number. A frame with missing classes has them as floats."""
    if isinstance(label, (int, np.integer)) or (isinstance(label, (float, np.floating)) and label == int(label)):
        return int(label)
    raise SettingsError(f"the class of {key} is {label!r}, which is no whole number; number the classes from 0")
