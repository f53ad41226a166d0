"""The command `features use edit`: images with one class of the features of other images or of texts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headspan.cli.chance_flags import check_counts
from headspan.cli.commands import described
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.features_use import chance_of_features, classes_flag, dictionary_flags, opened
from headspan.cli.flag_parser import Parser
from headspan.cli.progress import ProgressPrinter
from headspan.cli.query_flags import chosen_image, text_flag
from headspan.cli.shared_flags import comma_separated
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import SettingsError, counted, percent
from headspan.features.uses.chosen import DECIDED
from headspan.store.reader import Store

if TYPE_CHECKING:
    from headspan.features.uses.edit_result import EditedImage, EditStudy

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
    what.add_argument("--count", type=int, default=10, metavar="N", help="how many neighbours (10)")
    pairs = command.add_argument_group("many pairs")
    pairs.add_argument("--pairs", type=int, default=100, metavar="N", help="how many (100)")
    pairs.add_argument(
        "--donors", choices=("images", "captions"), default="images", help="what donors are (default: images)"
    )
    chance_of_features(command.add_argument_group("chance"), 5, None)
    export_flags(command)


def _edit(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    check_counts(flags, {"draws": 0, "seed": 0, "count": 1, "pairs": 1})
    factors = comma_separated(flags.factors)
    taken = tuple(dict.fromkeys(flags.take or DECIDED))
    given = [name for name, value in (("--donor", flags.donor), ("--text", flags.text)) if value is not None]
    if flags.image is not None and (len(given) != 1 or flags.take is None or len(taken) != 1):
        raise SettingsError(
            "--image is edited with one class of features of one donor: give --take CLASS, and --donor or --text"
        )
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
    }
    if flags.image is None:
        from headspan.features.uses.edit_study import edit_study

        study = edit_study(
            *(store, dictionary, scores, factors, progress),
            classes=taken,
            donors=flags.donors,
            pairs=flags.pairs,
            **common,
        )
        progress.close()
        export(flags, study)
        if not alone:
            _print_study(study)
        return 0
    from headspan.features.uses.edit import edit

    donor = flags.text if flags.donor is None else _index(store, flags.donor, "--donor")
    found = edit(
        *(store, dictionary, scores, _index(store, flags.image, "--image"), donor, taken[0], progress),
        factors=factors,
        **common,
    )
    progress.close()
    export(flags, found)
    if not alone:
        _print(found)
    return 0


def _index(store: Store, given: str, flag: str) -> int:
    found = chosen_image(store, given)
    if not isinstance(found, int):
        raise SettingsError(f"{flag} {given}: is a file; give the index or the key of an image of the store")
    return found


def _print(found: EditedImage) -> None:
    say(f"{found.source} with the {found.features} features of {found.donor}")
    print_table(
        [
            ("key", "image", "cosine"),
            *(
                (key, f"{image}", f"{score:.3f}")
                for key, image, score in zip(found.keys, found.images.tolist(), found.scores.tolist(), strict=True)
            ),
        ]
    )
    if found.factors:
        print_table(
            [
                ("neighbours with the value of", "source", "donor", "source, all images", "donor, all images"),
                *(
                    (name, *(map(_share, (each.source, each.donor, each.source_base, each.donor_base))))
                    for name, each in found.factors.items()
                ),
            ]
        )
        for number, control in enumerate(found.controls, 1):
            for name, each in control.factors.items():
                say(f"random features, set {number}: {name}: source {_share(each.source)}, donor {_share(each.donor)}")
    say(f"cosine with the source {found.source_cosine:.3f}, with the donor {found.donor_cosine:.3f}")
    for remark in found.remarks:
        say(f"note: {remark}")


def _print_study(found: EditStudy) -> None:
    rows: list[tuple[str, ...]] = [
        ("neighbours of", "factor", "source's value", "donor's value", "range", "all images", "pairs")
    ]
    names = {"source": "the source", "donor": "the donor", "class": "{} taken", "random": "  as many random features"}
    for each in found.rows:
        ends = (
            "-"
            if each.donor_low is None or each.donor_high is None
            else (f"{percent(each.donor_low)} to {percent(each.donor_high)}")
        )
        rows.append(
            (
                names[each.kind].format(each.exchanged),
                each.factor,
                percent(each.source),
                percent(each.donor),
                ends,
                percent(each.donor_base),
                f"{each.pairs}",
            )
        )
    print_table(rows)
    say(
        f"{counted(found.pairs, 'pair')}, {counted(found.neighbours, 'neighbour')} each; shares of neighbours that "
        f"have the source's and the donor's value of a factor in which both differ; residual {found.residual}"
    )
    for remark in found.remarks:
        say(f"note: {remark}")


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)
