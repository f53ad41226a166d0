"""The command `features use edit`: images with one class of the features of other images or of texts."""

from __future__ import annotations

import argparse

from headspan.cli.commands import described
from headspan.cli.exports import only_export
from headspan.cli.features_use import (
    chance_of_features,
    classes_flag,
    dictionary_flags,
    opened,
    result_flags,
    show_made,
    show_saved,
)
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.query_flags import chosen_image, text_flag
from headspan.cli.shared_flags import comma_separated
from headspan.errors import SettingsError
from headspan.features.uses.chosen import DECIDED
from headspan.features.uses.edit_result import EditedImage, EditStudy
from headspan.store.reader import Store

_DETAILS = (
    "The embedding is edited, and its nearest images in the store show what it has become. Without --image, many "
    "random pairs are edited, and the table says which factors of their neighbours move."
)


def add_edit(parser: Parser, text: str) -> None:
    """Describe `features use edit`, and add its flags."""
    example = "headspan features use edit run.zarr --image 7 --donor 12 \\\n    --take image-dominant"
    command = described(parser, text, _edit, example, _DETAILS)
    dictionary_flags(command, "kept")
    what = command.add_argument_group("what is edited")
    what.add_argument(
        "--image", metavar="IMAGE", help="the source: an index or a key of the store (default: many pairs)"
    )
    what.add_argument("--donor", metavar="IMAGE", help="the image whose features are taken")
    text_flag(what)
    classes_flag(what, "--take", "features that are taken from the donor; may be repeated without --image")
    what.add_argument("--factors", default="", metavar="KEYS", help="keys of the metadata, as in style,objects.colour")
    what.add_argument("--count", type=FROM_1, default=10, metavar="N", help="how many neighbours (10)")
    pairs = command.add_argument_group("many pairs")
    pairs.add_argument("--pairs", type=FROM_1, default=100, metavar="N", help="how many (100)")
    pairs.add_argument(
        "--donors", choices=("images", "captions"), default="images", help="what donors are (default: images)"
    )
    chance_of_features(command.add_argument_group("chance"), 5, None, "pairs and draws")
    result_flags(command, "--image and --factors")


def _edit(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    factors = comma_separated(flags.factors)
    taken = tuple(dict.fromkeys(flags.take or DECIDED))
    given = [name for name, value in (("--donor", flags.donor), ("--text", flags.text)) if value is not None]
    if flags.image is not None and (len(given) != 1 or flags.take is None or len(taken) != 1):
        raise SettingsError(
            "--image is edited with one class of features of one donor: give --take CLASS, and --donor or --text"
        )
    if flags.image is None and not given and not factors and flags.run_name is not None:
        return show_saved(flags, progress, (EditedImage, EditStudy), "edit")
    if flags.image is None and (given or not factors):
        needs = f"{given[0]} goes with --image" if given else "many pairs are judged by factors"
        raise SettingsError(f"{needs}; give --image for one edit, or --factors for many pairs")
    store, dictionary, scores = opened(flags)
    common = {
        "residual": flags.residual,
        "count": flags.count,
        "draws": flags.draws,
        "seed": flags.seed,
        "weights": flags.weights,
        "run": flags.run_name,
        "overwrite": flags.overwrite,
    }
    if flags.image is None:
        from headspan.features.uses.edit_study import edit_study

        return show_made(
            flags,
            progress,
            lambda: edit_study(
                *(store, dictionary, scores, factors, progress),
                classes=taken,
                donors=flags.donors,
                pairs=flags.pairs,
                **common,
            ),
        )
    from headspan.features.uses.edit import edit

    source = _index(store, flags.image, "--image")
    donor = flags.text if flags.donor is None else _index(store, flags.donor, "--donor")
    return show_made(
        flags,
        progress,
        lambda: edit(
            *(store, dictionary, scores, source, donor, taken[0], progress),
            factors=factors,
            **common,
        ),
    )


def _index(store: Store, given: str, flag: str) -> int:
    found = chosen_image(store, given)
    if not isinstance(found, int):
        raise SettingsError(f"{flag} {given}: is a file; give the index or the key of an image of the store")
    return found
