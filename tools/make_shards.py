"""A folder of images to numbered tars that headspan and webdataset read.

    python tools/make_shards.py IMAGES OUT [--captions captions.csv] [--images-per-shard 1000] [--shuffle SEED]
    python tools/make_shards.py --world 100000 OUT [--seed 0] [--split train] [--side 64]

Where every image lies in a subfolder, the subfolder is its class: `cls` holds the class's number, and
OUT/classes.txt the names, one a line. `json` holds the image's path in IMAGES. The same folder always gives
the same bytes. Without `--captions`, a text file beside an image, of the same name, is its caption. Images are copied
as they are, unopened: `headspan precompute` sets the broken ones aside.
With `--world`, scenes of the image world are drawn instead, with captions, metadata and masks.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from webdataset.writer import TarWriter

from headspan.errors import HeadspanError, SettingsError, SourceError
from headspan.plan import IMAGE_EXTENSIONS
from headspan.records import Progress
from headspan.world import write_world_shards
from headspan.world.factors import SPLITS
from headspan.world.shards import numbered


def make_shards(
    images: Path,
    out: Path,
    captions: Path | None = None,
    images_per_shard: int = 1000,
    shuffle: int | None = None,
) -> str:
    """Write `out/000000.tar` and so on; the pattern that names them all.

    Images are taken in the order of their paths, or shuffled with the seed `shuffle`. `captions` is a CSV
    file with the columns `file` (a path in `images`) and `caption`; an image that it leaves out has no
    caption. Without it, captions are text files beside the images. Raises HeadspanError where there is no
    image, `out` is not empty, or a caption has no image.
    """
    if images_per_shard < 1:
        raise SettingsError(f"--images-per-shard {images_per_shard} is too small; give at least 1")
    files = _find_images(images)
    texts = _captions_beside(images, files) if captions is None else _read_captions(captions, files)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out}: exists and is not an empty directory; name another, or remove it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{out}: cannot be written ({error.strerror}); name another directory") from error

    names = sorted({file.parts[0] for file in files}) if all(len(file.parts) > 1 for file in files) else []
    if names:
        (out / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    labels = {name: label for label, name in enumerate(names)}
    if shuffle is not None:
        random.Random(shuffle).shuffle(files)

    starts = range(0, len(files), images_per_shard)
    with tqdm(total=len(files), unit="image", disable=None) as progress:
        for shard, start in enumerate(starts):
            # A fixed time, since the same images should give the same bytes.
            with TarWriter(str(out / f"{shard:06d}.tar"), mtime=0) as tar:
                for index, file in enumerate(files[start : start + images_per_shard], start):
                    # A number rather than the path: webdataset cuts keys at their first dot.
                    sample: dict[str, str | bytes] = {"__key__": f"{index:09d}"}
                    sample[file.suffix[1:].lower()] = (images / file).read_bytes()
                    sample["json"] = json.dumps({"file": file.as_posix()}, ensure_ascii=False)
                    if names:
                        sample["cls"] = str(labels[file.parts[0]])
                    if file in texts:
                        sample["txt"] = texts[file]
                    tar.write(sample)
                    progress.update()
    return numbered(out, len(starts))


def _find_images(images: Path) -> list[Path]:
    """Paths relative to `images`, sorted; hidden files and folders are left out."""
    if not images.is_dir():
        raise SourceError(f"{images}: not a directory; name the folder that holds the images")
    paths = (path.relative_to(images) for path in images.rglob("*") if path.is_file())
    files = sorted(
        (
            path
            for path in paths
            if path.suffix[1:].lower() in IMAGE_EXTENSIONS
            and not any(part.startswith((".", "__MACOSX")) for part in path.parts)
        ),
        key=Path.as_posix,
    )
    if not files:
        wanted = ", ".join(f".{extension}" for extension in sorted(IMAGE_EXTENSIONS))
        raise SourceError(f"{images}: no image in this folder or below; files that end in {wanted} are taken")
    return files


def _captions_beside(images: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Of the images that have a text file of their name beside them, its text."""
    texts: dict[Path, str] = {}
    for file in files:
        path = images / file.with_suffix(".txt")
        if path.is_file():
            try:
                texts[file] = path.read_text(encoding="utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{path}: this caption is not UTF-8 ({error.reason}); convert it, or move it"
                ) from error
    return texts


def _read_captions(path: Path, files: Sequence[Path]) -> dict[Path, str]:
    known = set(files)
    texts: dict[Path, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, strict=True)
            if missing := {"file", "caption"} - set(table.fieldnames or ()):
                raise SourceError(
                    f"{path}: no column {' nor '.join(sorted(missing))}; begin the file with the line file,caption"
                )
            for row in table:
                file, where = Path(row["file"] or ""), f"{path}, line {table.line_num}"
                if row["caption"] is None or None in row:
                    raise SourceError(f"{where}: not as many values as columns; put quotes around commas")
                if file not in known:
                    raise SourceError(f"{where}: {file} is no image of the folder; give paths relative to it")
                if file in texts:
                    raise SourceError(f"{where}: {file} has a caption already; keep one line an image")
                texts[file] = row["caption"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read ({error}); give a CSV file in UTF-8") from error
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints the command that comes next and returns 0, or one sentence and 2."""
    parser = argparse.ArgumentParser(description="Write images as numbered tars.")
    parser.add_argument(
        "images", type=Path, nargs="?", help="a folder; subfolders, if all images lie in some, are classes"
    )
    parser.add_argument("out", type=Path, help="a directory that is new or empty")
    parser.add_argument("--images-per-shard", type=int, default=1000, help="1000 if not given")
    folder = parser.add_argument_group("from a folder")
    folder.add_argument("--captions", type=Path, help="a CSV file: file,caption (default: X.txt beside X.jpg)")
    folder.add_argument("--shuffle", type=int, metavar="SEED", help="a seed; without it the order is by path")
    world = parser.add_argument_group("from the image world")
    world.add_argument("--world", type=int, metavar="SCENES", help="draw so many scenes, and take no folder")
    world.add_argument("--seed", type=int, default=0, help="0 if not given, as in training")
    world.add_argument("--split", choices=SPLITS, default="train", help="train if not given")
    world.add_argument("--side", type=int, default=64, help="pixels; 64 if not given")
    chosen = parser.parse_args(arguments)
    if (chosen.images is None) == (chosen.world is None):
        parser.error("give a folder of images, or --world SCENES without one")
    try:
        pattern, model = _make(chosen)
    except HeadspanError as error:
        print(f"make_shards: {error}", file=sys.stderr)
        return 2
    print(f"headspan precompute '{pattern}' --model {model} --out run.zarr")
    return 0


def _make(chosen: argparse.Namespace) -> tuple[str, str]:
    """The shards' pattern, and a model that suits them."""
    if chosen.world is None:
        pattern = make_shards(chosen.images, chosen.out, chosen.captions, chosen.images_per_shard, chosen.shuffle)
        return pattern, "ViT-B-32 --pretrained laion2b_s34b_b79k"
    with tqdm(total=chosen.world, unit="image", disable=None) as progress:

        def listen(event: Progress) -> None:
            progress.update(event.done - progress.n)

        pattern = write_world_shards(
            chosen.out,
            chosen.world,
            chosen.seed,
            images_per_shard=chosen.images_per_shard,
            side=chosen.side,
            split=chosen.split,
            listen=listen,
        )
    return pattern, "reference"


if __name__ == "__main__":
    sys.exit(main())
