"""Settings as frozen dataclasses that reject contradictions; they are stored with every output.

This module reads no files and knows no models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from headspan.errors import SettingsError
from headspan.escapes import escaped
from headspan.head_names import head_name, parse_heads
from headspan.member_names import CLASSES, MEMBER_SETTINGS, MemberNames
from headspan.user_paths import expand_user

EMISSIONS = ("heads", "patches", "mlps", "through_pool")
# A value that the run chooses by device, model and memory, or takes from the store that it resumes.
AUTO = "auto"
PRECISIONS = (AUTO, "fp32", "bf16", "fp16")
DECODERS = ("fast", "exact", "gpu")
# The resize modes of open_clip that headspan implements.
INTERPOLATIONS = ("bicubic", "bilinear")
RESIZE_MODES = ("shortest", "longest", "squash")
# Object stores in which a store may be, by the scheme of their URLs.
STORE_SCHEMES = ("s3", "r2", "gs", "az")
# More layers than any model has.
_MOST_LAYERS = 1000
# The value of a count that is chosen later; of the others it is None.
_UNSET = {"batch_size": AUTO}
# The largest value of each count. No machine needs more, and larger values overflow elsewhere.
MOST = {
    "image_size": 1 << 14,
    "batch_size": 1 << 20,
    "workers": 1 << 12,
    "unit_images": 1 << 30,
    "in_flight_bytes": 1 << 50,
}


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes the model's pixels; the fields and their meaning are open_clip's."""

    # Height and width in pixels.
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    # "shortest" side to size and centre crop, "longest" side and padding, or "squash".
    resize_mode: str = "shortest"
    fill_color: int = 0

    @property
    def pixel_bytes(self) -> int:
        """Memory of one image's pixels, as uint8 numbers."""
        height, width = self.size
        return height * width * 3

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise SettingsError(
                f"interpolation {self.interpolation!r} in the model's preprocessing; "
                "headspan knows bicubic and bilinear, so set one of them"
            )
        if self.resize_mode not in RESIZE_MODES:
            raise SettingsError(
                f"resize mode {self.resize_mode!r} in the model's preprocessing; "
                "headspan knows shortest, longest and squash, so set one of them"
            )


@dataclass(frozen=True, slots=True)
class PrecomputeSettings:
    """Everything that decides what `precompute` computes and where it puts it."""

    # Tars, folders of images, Parquet files and lists of images, in the order in which rows are given; also as brace
    # patterns, globs and directories.
    shards: tuple[str, ...]
    # The store to write, a local folder or a place in a bucket, such as s3://bucket/run.zarr.
    out: str
    # An open_clip model name, `hf-hub:…`, `local-dir:…`, or the path of an open_clip config (.json).
    model: str = "ViT-B-32"
    # An open_clip tag, a local .pt or .safetensors file, or `random:SEED`; None if `model` includes its weights.
    pretrained: str | None = None
    # Where the weights that `pretrained` (or `model`) names are now: a file, a folder, or `hf-hub:…`.
    weights: str | None = None
    # The layers whose heads (and patches) are stored: `all`, `last4`, `8-11`, or numbers with commas.
    layers: str = "last4"
    # What is stored beside `heads` and `moments`, which always are; `through_pool` is for attention pooling.
    emit: tuple[str, ...] = ("heads",)
    # Heads of any layers that write nothing, by name (`L22.H13`): their slices of the output projections are zero.
    without: tuple[str, ...] = ()
    # Height and width of the model's input images in pixels; None means the model's own.
    image_size: int | None = None
    # `auto`: every visible GPU, or the CPU if there is none. `cpu`, `cuda`, `cuda:0`, or several separated by commas:
    # each gets a process of its own.
    device: str = AUTO
    # Of the encoder's weights and activations. `auto`: fp32 on a CPU, 16 bits on a GPU.
    precision: str = AUTO
    # Images per forward pass. `auto`: 32 on a CPU; on a GPU by the model's tokens and the free memory.
    batch_size: int | str = AUTO
    # `exact`: open_clip's pixels, bit for bit. `fast`: JPEGs differ by at most two grey levels, in half the time.
    # `gpu`: JPEGs are decoded and resized on the GPU that the model runs on; they differ by some more.
    decode: str = "fast"
    # Threads or processes that decode images, for each device. None means a thread per core if the model runs on a CPU,
    # and a process per core but one if it runs on a GPU; several devices share the cores.
    workers: int | None = None
    # Images in a unit; units that were in flight when a run was killed are computed again. None means 256 on a CPU, and
    # on a GPU 16,384, or with patches up to 1,024 that take at most 2 GB; fewer if a small job has several devices.
    unit_images: int | None = None
    # Fields of a sample that are its image and its caption, as in MemberNames; None means by their extensions.
    image_member: str | None = None
    caption_member: str | None = None
    # A key of the sample's JSON that holds the caption.
    caption_json: str | None = None
    # Columns of Parquet files and lists, as in MemberNames; None means by their usual names.
    image_column: str | None = None
    caption_column: str | None = None
    class_column: str | None = None
    key_column: str | None = None
    # Of folders of images: a CSV file with the columns file and caption, and one of CLASSES (None means `auto`).
    captions: str | None = None
    classes: str | None = None
    # Whether shards may be `pipe:` commands, which are then run.
    allow_pipe: bool = False
    # How many images may be bad before the run ends: `1%` of all, or a number. None means any number.
    max_bad: str | int | None = None
    # Memory in bytes that encoded and decoded images between the stages may take, for each device. None means 256 MiB
    # on a CPU, and on a GPU room for eight batches of pixels if that is more.
    in_flight_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.shards:
            raise SettingsError("no shards were given; name at least one tar, folder of images, Parquet file or list")
        if not self.out:
            raise SettingsError("--out is empty; name the store to write, a folder such as run.zarr")
        object.__setattr__(self, "out", str(expand_user(self.out)) if self.out.startswith("~") else self.out)
        if isinstance(self.weights, Path):
            object.__setattr__(self, "weights", str(self.weights))
        if "://" in self.out and self.out.partition("://")[0] not in STORE_SCHEMES:
            raise SettingsError(
                f"--out {self.out}: stores are written to folders and buckets; give a local path, or a URL that begins "
                f"with {', '.join(f'{scheme}://' for scheme in STORE_SCHEMES)}"
            )
        unknown = [name for name in self.emit if name not in EMISSIONS]
        if "carried" in unknown:
            raise SettingsError("--emit carried: this is called through_pool now; write --emit heads,through_pool")
        if unknown:
            raise SettingsError(f"--emit {','.join(unknown)} is unknown; choose from {', '.join(EMISSIONS)}")
        if self.precision not in PRECISIONS:
            raise SettingsError(f"--precision {self.precision} is unknown; choose from {', '.join(PRECISIONS)}")
        if self.decode not in DECODERS:
            raise SettingsError(f"--decode {self.decode} is unknown; choose from {', '.join(DECODERS)}")
        # The number of the model's layers is not known yet.
        parse_layers(self.layers, _MOST_LAYERS)
        for name, most in MOST.items():
            value = getattr(self, name)
            if value == _UNSET.get(name):
                continue
            flag = f"--{name.replace('_', '-')}"
            if not isinstance(value, Integral) or isinstance(value, bool):
                given = value if isinstance(value, str) else repr(value)
                also = f", or {AUTO}" if name == "batch_size" else ""
                raise SettingsError(f"{flag} {given} is not a whole number; give one from 1 to {most:,}{also}")
            if int(value) < 1:
                raise SettingsError(f"{flag} {value} is too small; give at least 1")
            if int(value) > most:
                raise SettingsError(f"{flag} is too large; give at most {most:,}")
            # A number of NumPy cannot be written as JSON.
            object.__setattr__(self, name, int(value))
        if self.caption_member is not None and self.caption_json is not None:
            raise SettingsError(
                f"--caption-member {self.caption_member} and --caption-json {self.caption_json} name two captions; "
                "give one of them"
            )
        for name in ("image_member", "caption_member"):
            value = getattr(self, name)
            if value is not None and any(not part.strip() or "/" in part for part in value.split(",")):
                raise SettingsError(
                    f"--{name.replace('_', '-')} {value}: write the part of a member's name after its first dot, as in "
                    "input.jpg; separate several with commas"
                )
        if isinstance(self.captions, Path):
            object.__setattr__(self, "captions", str(self.captions))
        if self.classes not in (None, *CLASSES):
            raise SettingsError(f"--classes {self.classes} is unknown; choose from {', '.join(CLASSES)}")
        # One value for one meaning: a store without the setting was made with `auto`.
        object.__setattr__(self, "classes", None if self.classes == AUTO else self.classes)
        for name in MEMBER_SETTINGS:
            value = getattr(self, name)
            if value is not None and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise SettingsError(
                    f"--{name.replace('_', '-')} {escaped(value)} is not UTF-8; write the name in UTF-8"
                )
        if self.max_bad is not None:
            bad_limit(self.max_bad, 0)
            if isinstance(self.max_bad, Integral):
                object.__setattr__(self, "max_bad", int(self.max_bad))
        # In one order, so that the same heads are the same setting.
        without = tuple(head_name(*head) for head in parse_heads(self.without, "--without"))
        object.__setattr__(self, "without", without)
        # `heads` is always stored, whether it is named or not.
        object.__setattr__(self, "emit", tuple(name for name in EMISSIONS if name == "heads" or name in self.emit))

    @property
    def member_names(self) -> MemberNames:
        """Which members of a sample are its image and its caption."""
        return MemberNames(*(getattr(self, name) for name in MEMBER_SETTINGS))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PrecomputeSettings:
        """Settings from plain values, such as those of flags or JSON.

        `shards` may be a string or a list, `emit` names with commas or a list, `layers` a string or a list of numbers,
        `without` names with commas or a list of names or of (layer, head).
        Raises SettingsError for an unknown key or a value that is not possible.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SettingsError(f"unknown setting {', '.join(unknown)}; precompute knows {', '.join(sorted(known))}")
        plain = dict(values)
        if isinstance(plain.get("shards"), str):
            plain["shards"] = [plain["shards"]]
        if isinstance(plain.get("emit"), str):
            plain["emit"] = [name.strip() for name in plain["emit"].split(",") if name.strip()]
        if not isinstance(plain.get("layers", ""), str):
            plain["layers"] = ",".join(map(str, plain["layers"]))
        if "without" in plain:
            heads = parse_heads(plain["without"] or (), "--without")
            plain["without"] = tuple(head_name(*head) for head in heads)
        for name in ("shards", "emit"):
            if name in plain:
                plain[name] = tuple(plain[name])
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class ResolvedSettings(PrecomputeSettings):
    """Settings of a run in which every `auto` has been replaced by a value."""

    # Defaults only because all fields before these have them.
    precision: str = "fp32"
    batch_size: int = 32
    in_flight_bytes: int = 256 << 20


def bad_limit(text: str | int, images: int) -> float:
    """How many of `images` may be bad if `--max-bad` is `text`: `1%`, `0.5%`, or a number of images.

    Raises SettingsError if `text` is neither.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*|\s*(\d+)\s*", str(text))
    if not found:
        raise SettingsError(
            f"--max-bad {text}: write a percentage of the images, as in 1%, or a number of images, as in 100"
        )
    return images * float(found[1]) / 100 if found[1] else float(found[2])


def parse_layers(text: str, total: int) -> tuple[int, ...]:
    """The layers that `text` names in a model of `total` layers, ascending: `all`, `last4`, `8-11`, `0,3,8-11`.

    Raises SettingsError if `text` has another form, or names a layer that the model does not have.
    """
    if text == "all":
        return tuple(range(total))
    if last := re.fullmatch(r"last(\d{1,9})", text):
        count = int(last[1])
        if not 1 <= count <= total:
            raise SettingsError(f"--layers {text}: the model has {total} layers; ask for last1 to last{total}")
        return tuple(range(total - count, total))
    layers: set[int] = set()
    for part in text.split(","):
        span = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if not span:
            raise SettingsError(f"--layers {text}: write all, last4, 8-11 or 0,3,8-11, counting from 0")
        first, last_layer = int(span[1]), int(span[2] or span[1])
        if last_layer < first:
            raise SettingsError(f"--layers {text}: {part.strip()} runs backwards; write {last_layer}-{first}")
        if last_layer >= total:
            raise SettingsError(f"--layers {text}: the model's layers are 0 to {total - 1}; choose among them")
        layers.update(range(first, last_layer + 1))
    return tuple(sorted(layers))


def as_ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers in a short form: `0-3, 8, 10-11`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
