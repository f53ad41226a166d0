"""Write a folder of images, or scenes of the image world, as numbered tars in WebDataset's format.

    python tools/make_shards.py IMAGES OUT [--captions captions.csv] [--images-per-shard 1000] [--shuffle SEED]
    python tools/make_shards.py --world 100000 OUT [--seed 0] [--split train] [--side 64]

* Key: the image's path in IMAGES without its extension. Dots become `_`, because webdataset cuts keys at the first dot.
* Companions: files with the image's name and the extension `.txt`, `.json` or `.cls` are its caption, metadata and
  class. An image without a `.json` gets one with its path.
* Classes: if every image is in a subfolder, the subfolder is its class, unless images have `.cls` files or all
  subfolders are numbered like shards. `cls` is the class's number, and OUT/classes.txt lists the names, one a line.
* Links are followed. All other files are counted and listed in OUT/left-out.txt, with control characters escaped.
* Images are copied without being decoded; `headspan precompute` reports those that cannot be decoded.

The same folder always gives the same bytes. With `--world`, the command draws scenes of the image world, and writes
them with captions, metadata and masks.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from headspan.errors import HeadspanError, SettingsError, SourceError
from headspan.escapes import escaped, shell_command
from headspan.events import Progress
from headspan.member_names import CLASSES
from headspan.shard_writer.tars import TarShards, numbered
from headspan.shards.captions_table import read_captions
from headspan.shards.image_folder import ImageFolder, class_folder, extension_of, keys_of, left_out, read_folder
from headspan.shards.keys import as_utf8
from headspan.world import write_world_shards
from headspan.world.factors import SPLITS
from headspan.world.telling import LEFT_OUT, WORDS


def make_shards(
    images: Path,
    out: Path,
    captions: Path | None = None,
    images_per_shard: int = 1000,
    shuffle: int | None = None,
    classes: str = "auto",
    say: Callable[[str], None] = lambda sentence: None,
) -> str:
    """Write the images of a folder as `out/000000.tar` and so on, and return a brace pattern of all shards.

    The order is that of the paths, or random with the seed `shuffle`. `captions` is a CSV file with the columns `file`
    (a path in `images`) and `caption`; images that it does not list have no caption. Without it, captions are text
    files next to the images. `classes` is one of CLASSES, as in `ImageFolder.classes`. `say` is called with sentences
    about the result. Raises HeadspanError if there is no image, if `out` is not empty, or if a caption belongs to no
    image.
    """
    if images_per_shard < 1:
        raise SettingsError(f"--images-per-shard {images_per_shard} is too small; give at least 1")
    folder = read_folder(images)
    names, classes_sentence = folder.classes(classes)
    if captions is None:
        texts = _captions_beside(folder)
    else:
        texts = read_captions(captions, folder.images)
        folder.leave_out("txt", "--captions was given")
    try:
        tars = TarShards(out, images_per_shard)
        if names:
            _write_lines(out / "classes.txt", map(escaped, names))
        if folder.left_out:
            lines = [f"{escaped(path)}\t{escaped(why)}" for path, why in folder.left_out]
            _write_lines(out / "left-out.txt", lines)
        shards = _write(folder, tars, texts, names, shuffle)
    except OSError as error:
        raise SettingsError(
            f"{error.filename or out}: cannot be read or written ({error.strerror}); solve that, and try again with "
            "another directory"
        ) from error
    with_metadata = sum("json" in companions for companions in folder.companions.values())
    say(
        f"{len(folder.images):,} images in {shards:,} shards, {len(texts):,} with captions, {with_metadata:,} with "
        f"metadata of their own; {classes_sentence}"
    )
    if folder.left_out:
        say(f"{left_out(folder)}; {out / 'left-out.txt'} lists all of them with the reasons")
    return numbered(out, shards)


def _write(folder: ImageFolder, tars: TarShards, texts: dict[str, str], names: list[str], seed: int | None) -> int:
    """Write the tars; return their number."""
    labels = {name: label for label, name in enumerate(names)}
    keys = dict(zip(folder.images, keys_of(folder.images), strict=True))
    files = list(folder.images)
    if seed is not None:
        random.Random(seed).shuffle(files)
    with tars, tqdm(total=len(files), unit="image", disable=None) as progress:
        for file in files:
            beside = folder.companions.get(file, {})
            sample: dict[str, str | bytes] = {"__key__": keys[file]}
            sample[extension_of(file)] = (folder.root / file).read_bytes()
            sample["json"] = json.dumps({"file": as_utf8(file)}, ensure_ascii=False)
            sample |= {kind: (folder.root / beside[kind]).read_bytes() for kind in ("json", "cls") if kind in beside}
            if names:
                sample["cls"] = str(labels[class_folder(file)])
            if file in texts:
                sample["txt"] = texts[file]
            tars.write(sample)
            progress.update()
    return tars.shards


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _captions_beside(folder: ImageFolder) -> dict[str, str]:
    """The captions of the images that have a text file of the same name next to them."""
    texts: dict[str, str] = {}
    for image, companions in folder.companions.items():
        if "txt" in companions:
            path = folder.root / companions["txt"]
            try:
                texts[image] = path.read_text(encoding="utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{path}: this caption is not UTF-8 ({error.reason}); convert it, or move it"
                ) from error
            except OSError as error:
                raise SourceError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Prints the command to run next and returns 0, or prints an error and returns 2."""
    parser = argparse.ArgumentParser(description="Write images as numbered tars.")
    parser.add_argument(
        "images", type=Path, nargs="?", help="a folder; its subfolders are classes if every image is in one"
    )
    parser.add_argument("out", type=Path, help="a new or empty directory")
    parser.add_argument("--images-per-shard", type=int, default=1000, help="default: %(default)s")
    folder = parser.add_argument_group("from a folder")
    folder.add_argument("--captions", type=Path, help="a CSV file: file,caption (default: X.txt beside X.jpg)")
    folder.add_argument(
        "--classes",
        choices=CLASSES,
        default="auto",
        help="from subfolders, or none; auto (default) uses subfolders unless they are numbered like shards",
    )
    folder.add_argument("--shuffle", type=int, metavar="SEED", help="a seed; without it, images are sorted by path")
    world = parser.add_argument_group("from the image world")
    world.add_argument(
        "--world", type=int, metavar="SCENES", help="draw this number of scenes instead of reading a folder"
    )
    world.add_argument("--seed", type=int, default=0, help="default: %(default)s, as in training")
    world.add_argument("--split", choices=SPLITS, default="train", help="default: %(default)s")
    world.add_argument("--side", type=int, default=64, help="pixels; default: %(default)s")
    world.add_argument(
        "--without", nargs="+", default=(), metavar="FACTOR", help=f"captions leave out: {', '.join(LEFT_OUT)}"
    )
    world.add_argument(
        "--words",
        nargs="+",
        default=(),
        metavar="KIND",
        help=f"captions hold words that no image shows: {', '.join(WORDS)}",
    )
    chosen = parser.parse_args(arguments)
    if (chosen.images is None) == (chosen.world is None):
        parser.error("give a folder of images, or --world SCENES without one")
    try:
        pattern, model = _make(chosen)
    except HeadspanError as error:
        print(f"make_shards: {escaped(str(error))}", file=sys.stderr)
        return 2
    # Quotes keep a shell from expanding the braces.
    word = f"'{pattern}'" if pattern.isprintable() and "'" not in pattern else shell_command([pattern])
    print(f"headspan precompute {word} --model {model} --out run.zarr")
    return 0


def _make(chosen: argparse.Namespace) -> tuple[str, str]:
    """Write the shards; return their pattern, and a suitable model for them."""
    if chosen.world is None:
        pattern = make_shards(
            chosen.images,
            chosen.out,
            chosen.captions,
            chosen.images_per_shard,
            chosen.shuffle,
            chosen.classes,
            say=lambda sentence: print(escaped(sentence), file=sys.stderr),
        )
        return pattern, "ViT-B-32 --pretrained laion2b_s34b_b79k"
    with tqdm(total=chosen.world, unit="image", disable=None) as progress:

        def on_progress(event: Progress) -> None:
            progress.update(event.done - progress.n)

        pattern = write_world_shards(
            chosen.out,
            chosen.world,
            chosen.seed,
            images_per_shard=chosen.images_per_shard,
            side=chosen.side,
            split=chosen.split,
            on_progress=on_progress,
            without=chosen.without,
            words=chosen.words,
        )
    return pattern, "reference"


if __name__ == "__main__":
    sys.exit(main())
