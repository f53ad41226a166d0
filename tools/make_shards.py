"""A folder of images to numbered tars that headspan and webdataset read.

    python tools/make_shards.py IMAGES OUT [--captions captions.csv] [--images-per-shard 1000] [--shuffle SEED]
    python tools/make_shards.py --world 100000 OUT [--seed 0] [--split train] [--side 64]

A sample's key is the image's path in IMAGES without its extension, dots written as `_`, since webdataset cuts keys at
their first dot. The `.txt`, `.json` and `.cls` beside an image, of the same name, are its caption, metadata and class;
an image without a `.json` gets one that holds its path. Where every image lies in a subfolder, the subfolder is its
class, unless images have `.cls` files or all subfolders are numbered as shards are: `cls` holds the class's number, and
OUT/classes.txt the names, one a line. Links are followed. What is left out is counted, and listed in OUT/left-out.txt;
control characters in names are escaped there. The same folder always gives the same bytes. Images are copied as they
are, unopened: `headspan precompute` sets the broken ones aside.
With `--world`, scenes of the image world are drawn instead, with captions, metadata and masks.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm
from webdataset.writer import TarWriter

from headspan.errors import HeadspanError, SettingsError, SourceError
from headspan.escapes import escaped, shell_command
from headspan.events import Progress
from headspan.shards.image_folder import CLASSES, ImageFolder, left_out, read_folder
from headspan.world import write_world_shards
from headspan.world.factors import SPLITS
from headspan.world.shards import numbered


def make_shards(
    images: Path,
    out: Path,
    captions: Path | None = None,
    images_per_shard: int = 1000,
    shuffle: int | None = None,
    classes: str = "auto",
    say: Callable[[str], None] = lambda sentence: None,
) -> str:
    """Write `out/000000.tar` and so on; the pattern that names them all. `say` hears what was done.

    Images are taken in the order of their paths, or shuffled with the seed `shuffle`. `captions` is a CSV
    file with the columns `file` (a path in `images`) and `caption`; an image that it leaves out has no
    caption. Without it, captions are text files beside the images. `classes` is one of CLASSES, as
    `ImageFolder.classes` has them. Raises HeadspanError where there is no image, `out` is not empty, or a caption has
    no image.
    """
    if images_per_shard < 1:
        raise SettingsError(f"--images-per-shard {images_per_shard} is too small; give at least 1")
    folder = read_folder(images)
    names, classes_sentence = folder.classes(classes)
    if captions is None:
        texts = _captions_beside(folder)
    else:
        texts = _read_captions(captions, folder.images)
        folder.leave_out("txt", "--captions was given")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out}: exists and is not an empty directory; name another, or remove it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if names:
            _write_lines(out / "classes.txt", map(escaped, names))
        if folder.left_out:
            lines = [f"{escaped(path.as_posix())}\t{escaped(why)}" for path, why in folder.left_out]
            _write_lines(out / "left-out.txt", lines)
        shards = _write(folder, out, texts, names, images_per_shard, shuffle)
    except OSError as error:
        raise SettingsError(
            f"{error.filename or out}: cannot be read or written ({error.strerror}); mend that and begin again with "
            "another directory"
        ) from error
    kept = sum("json" in companions for companions in folder.companions.values())
    say(
        f"{len(folder.images):,} images in {shards:,} shards, {len(texts):,} with captions, {kept:,} with metadata of "
        f"their own; {classes_sentence}"
    )
    if folder.left_out:
        say(f"{left_out(folder)}; {out / 'left-out.txt'} has all of them and the reasons")
    return numbered(out, shards)


def _write(
    folder: ImageFolder, out: Path, texts: dict[Path, str], names: list[str], images_per_shard: int, seed: int | None
) -> int:
    """Write the tars; returns how many."""
    labels = {name: label for label, name in enumerate(names)}
    keys = _keys(folder.images)
    files = list(folder.images)
    if seed is not None:
        random.Random(seed).shuffle(files)
    starts = range(0, len(files), images_per_shard)
    with tqdm(total=len(files), unit="image", disable=None) as progress:
        for shard, start in enumerate(starts):
            # A fixed time, since the same images should give the same bytes.
            with TarWriter(str(out / f"{shard:06d}.tar"), mtime=0) as tar:
                for file in files[start : start + images_per_shard]:
                    beside = folder.companions.get(file, {})
                    sample: dict[str, str | bytes] = {"__key__": keys[file]}
                    sample[file.suffix[1:].lower()] = (folder.root / file).read_bytes()
                    sample["json"] = json.dumps({"file": _utf8(file.as_posix())}, ensure_ascii=False)
                    sample |= {
                        kind: (folder.root / beside[kind]).read_bytes() for kind in ("json", "cls") if kind in beside
                    }
                    if names:
                        sample["cls"] = str(labels[file.parts[0]])
                    if file in texts:
                        sample["txt"] = texts[file]
                    tar.write(sample)
                    progress.update()
    return len(starts)


def _keys(files: Sequence[Path]) -> dict[Path, str]:
    """A key for each image that shows its path, and that no other image has."""
    keys: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        key = plain = _utf8(file.with_name(file.stem.replace(".", "_")).as_posix())
        if key.startswith("__"):
            # Webdataset passes over folders whose names begin and end so.
            key = plain = f"0{key}"
        number = 1
        while key in taken:
            number += 1
            key = f"{plain}_{number}"
        taken.add(key)
        keys[file] = key
    return keys


def _utf8(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _captions_beside(folder: ImageFolder) -> dict[Path, str]:
    """Of the images that have a text file of their name beside them, its text."""
    texts: dict[Path, str] = {}
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
                raise SourceError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from error
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
    folder.add_argument(
        "--classes",
        choices=CLASSES,
        default="auto",
        help="from subfolders or none; auto, if not given, takes subfolders that are not numbered as shards are",
    )
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
        print(f"make_shards: {escaped(str(error))}", file=sys.stderr)
        return 2
    # Quotes keep a shell from expanding the braces.
    word = f"'{pattern}'" if pattern.isprintable() and "'" not in pattern else shell_command([pattern])
    print(f"headspan precompute {word} --model {model} --out run.zarr")
    return 0


def _make(chosen: argparse.Namespace) -> tuple[str, str]:
    """The shards' pattern, and a model that suits them."""
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
        )
    return pattern, "reference"


if __name__ == "__main__":
    sys.exit(main())
