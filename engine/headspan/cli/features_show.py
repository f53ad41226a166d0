"""The command `features show`: list features with their scores and names, or show what some of them are active on."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from headspan.cli.commands import described
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import FROM_0, FROM_1, ZERO_OR_MORE
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.shared_flags import overwrite_flag, refuse_picture, shards_flag, store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say, tell
from headspan.errors import SettingsError, counted, shortened
from headspan.features.most_active import TopSamples, top_samples
from headspan.features.naming import COUNT as NAMES
from headspan.features.naming import name_features
from headspan.features.saved import read_scores
from headspan.features.scores.result import CLASS_NAMES, FeatureScores
from headspan.features.strips import feature_strips
from headspan.features.table import SORTS, FeatureTable, class_counts, feature_table
from headspan.plots.png import write_png
from headspan.store.reader import Store

_DETAILS = (
    "Classes are by intervals: the whole 95 % interval of MDS lies below 1/3 (text-dominant), above 2/3 "
    "(image-dominant) or between (cross-modal); others are undecided. With --feature, the images and captions that a "
    "feature is most active on are listed. --texts names the features, and keeps the names in the run."
)
# Letters of a name and of a caption in a line.
_NAME, _CAPTION = 44, 100


def add_show(parser: Parser, text: str) -> None:
    """Describe `features show`, and add its flags."""
    example = "headspan features show run.zarr --class image-dominant --out strips.png"
    command = described(parser, text, _show, example, _DETAILS)
    store_argument(command)
    command.add_argument("--run", dest="run_name", metavar="NAME", help="the run of scores (default: the only one)")
    which = command.add_argument_group("which features")
    which.add_argument(
        "--feature",
        action="append",
        type=FROM_0,
        metavar="N",
        dest="features",
        help="this feature, with its top images and captions; may be repeated",
    )
    classes = tuple(CLASS_NAMES.values())
    which.add_argument(
        "--class", choices=classes, metavar="CLASS", dest="chosen", help=f"features of this class: {', '.join(classes)}"
    )
    which.add_argument(
        "--sort",
        choices=SORTS,
        metavar="BY",
        default="active",
        help=f"the largest first: {', '.join(SORTS)}; name is the cosine of the first name (default: active)",
    )
    which.add_argument("--ascending", action="store_true", help="the smallest first")
    which.add_argument(
        "--least-active", type=FROM_0, default=1, metavar="N", help="leave out features active in fewer pairs (1)"
    )
    which.add_argument("--count", type=FROM_0, default=20, metavar="N", help="how many features; 0 for all (20)")
    names = command.add_argument_group("names")
    names.add_argument(
        "--texts",
        metavar="POOL",
        help="name the features by the texts of this pool: general or world, which headspan includes, or a file",
    )
    names.add_argument("--names", type=FROM_1, default=NAMES, metavar="N", help=f"texts for each feature ({NAMES})")
    names.add_argument(
        "--coherence",
        type=ZERO_OR_MORE,
        metavar="X",
        help="choose texts by coherent pursuit with this weight, such as 0.3, instead of the nearest ones",
    )
    overwrite_flag(names)
    weights_flag(names)
    pictures = command.add_argument_group("pictures")
    pictures.add_argument("--out", metavar="FILE", help="write the top images of each listed feature as a PNG")
    shards_flag(pictures)
    export_flags(command)


def _show(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    refuse_picture(flags.out)
    if flags.texts is None and (flags.coherence is not None or flags.overwrite or flags.names != NAMES):
        raise SettingsError("--names, --coherence and --overwrite are about new names; give --texts with a pool too")
    store = Store(flags.store)
    scores, unsaved = read_scores(store, flags.run_name), None
    table = _chosen(flags, scores)
    if flags.texts is not None:
        scores, unsaved = saved_or_not(lambda: _named(store, scores, flags, progress))
        table = _chosen(flags, scores)
    if flags.out is not None:
        if not len(table):
            raise SettingsError("--out: no feature is listed, so there is no picture to write; choose other features")
        page = feature_strips(store, scores, table.features.tolist(), on_progress=progress, shards=flags.shards)
        progress.close()
        write_png(flags.out, page)
        tell(f"picture written to {flags.out}")
    progress.close()
    export(flags, table)
    if not alone:
        if flags.features:
            for samples in top_samples(store, scores, table.features.tolist()):
                _print_feature(scores, samples)
        else:
            _print_run(scores)
            _print_list(table)
    tell_unsaved(unsaved)
    if unsaved is None and flags.texts is not None:
        tell(f"names saved in features/{scores.run}")
    return 0


def _chosen(flags: argparse.Namespace, scores: FeatureScores) -> FeatureTable:
    """The features that the flags name, or those of a class in an order."""
    if flags.features:
        return FeatureTable.of(scores, flags.features)
    # Features are not named yet when the flags are checked first.
    sort = "active" if flags.sort == "name" and flags.texts is not None and not scores.names else flags.sort
    return feature_table(scores, flags.chosen, sort, flags.least_active, flags.count or None, ascending=flags.ascending)


def _named(store: Store, scores: FeatureScores, flags: argparse.Namespace, progress: ProgressPrinter) -> FeatureScores:
    return name_features(
        store,
        scores,
        flags.texts,
        flags.names,
        coherence=flags.coherence,
        saved=True,
        overwrite=flags.overwrite,
        on_progress=progress,
        weights=flags.weights,
    )


def _print_run(scores: FeatureScores) -> None:
    """What the run is of, its classes, and what chance gives for names."""
    say(f"{scores.run}: {counted(len(scores.mds), 'feature')} of {scores.learner} over {counted(scores.pairs, 'pair')}")
    counts = class_counts(scores)
    say("by intervals: " + ", ".join(f"{own} {name}" for name, (own, _) in counts.items()))
    say("by spread: " + ", ".join(f"{spread} {name}" for name, (_, spread) in counts.items()))
    # WinRates, each with its p, are for `features score` to print.
    quality = {name: value for name, value in scores.quality.items() if not name.startswith("win_rate")}
    if quality:
        say("dictionary: " + ", ".join(f"{name} {value:.3g}" for name, value in quality.items()))
    if scores.older is not None:
        say(f"the names are of an older {scores.older}; name the features again with --texts")
    chance = scores.name_chance
    if chance:
        say(
            f"names from {scores.name_pool}; by chance the best cosine is {chance['rotated_mean']:.3f} with a pool "
            f"without meaning, and {chance['mixtures_mean']:.3f} of random mixtures of features, which p counts"
        )


def _print_list(table: FeatureTable) -> None:
    scores = table.scores
    named = bool(scores.names)
    head = ("feature", "class", "MDS", "95 %", "shuffled", "energy", "pairs", "MS")
    rows: list[tuple[str, ...]] = [(*head, "cosine", "p", "nearest text") if named else head]
    for feature in table.features.tolist():
        low, high = scores.mds_interval[feature]
        row: tuple[str, ...] = (
            str(feature),
            CLASS_NAMES[int(scores.class_by_interval[feature])],
            _number(scores.mds[feature]),
            f"{_number(low)}-{_number(high)}" if math.isfinite(low) else "-",
            _number(scores.shuffled_mds[feature]),
            _number(scores.energy[feature]),
            f"{scores.active[feature]:,}",
            _number(scores.monosemanticity[feature]),
        )
        if named:
            cosines, p = scores.name_cosines, scores.name_mixture_p
            assert cosines is not None
            assert p is not None
            name = shortened(scores.names[feature][0], _NAME) if scores.names[feature] else "-"
            row = (*row, _number(cosines[feature, 0]), f"{p[feature]:.2g}", name)
        rows.append(row)
    if len(rows) == 1:
        say("no feature is of that class and active in so many pairs")
        return
    print_table(rows, words=1 if named else 0)


def _print_feature(scores: FeatureScores, samples: TopSamples) -> None:
    """The page of one feature."""
    feature = samples.feature
    say(f"feature {feature} of {scores.run}: {_classes(scores, feature)}")
    for name, value, interval, shuffled in (
        ("MDS", scores.mds, scores.mds_interval, scores.shuffled_mds),
        ("energy score", scores.energy, scores.energy_interval, scores.shuffled_energy),
    ):
        low, high = interval[feature]
        say(
            f"  {name} {_number(value[feature])} (95 % {_number(low)} to {_number(high)}), with captions shuffled "
            f"{_number(shuffled[feature])}"
        )
    say(
        f"  active in {scores.active[feature]:,} of {counted(scores.pairs, 'pair')}: {scores.image_active[feature]:,} "
        f"by the image, {scores.text_active[feature]:,} by the caption"
    )
    sizes = zip(scores.similarity_sizes, scores.similarity[feature], strict=True)
    say(
        f"  monosemanticity {_number(scores.monosemanticity[feature])}, across sides "
        f"{_number(scores.cross_monosemanticity[feature])}"
        + "".join(f", EmbSim of {size} {_number(value)}" for size, value in sizes)
    )
    _print_names(scores, feature)
    say("  top images:" if samples.images else "  no image activates it")
    for each in samples.images:
        say(f"    {each.code:.4g}  {each.key}" + (f"  {shortened(each.caption, _CAPTION)}" if each.caption else ""))
    say("  top captions:" if samples.captions else "  no caption activates it")
    for text in samples.captions:
        say(f"    {text.code:.4g}  {shortened(text.text, _CAPTION)}" + (f" (×{text.times})" if text.times > 1 else ""))


def _print_names(scores: FeatureScores, feature: int) -> None:
    if not scores.names:
        return
    names: Sequence[str] = scores.names[feature]
    if not names:
        say("  no names: its direction is that of the gap between the modalities, or zero")
        return
    assert scores.name_cosines is not None
    assert scores.name_mixture_p is not None
    assert scores.name_p is not None
    say(
        f"  nearest texts of {scores.name_pool} (p {scores.name_p[feature]:.2g} in a pool without meaning, "
        f"{scores.name_mixture_p[feature]:.2g} among mixtures of features):"
    )
    for name, cosine in zip(names, scores.name_cosines[feature].tolist(), strict=False):
        say(f"    {cosine:.3f}  {shortened(name, _CAPTION)}")


def _classes(scores: FeatureScores, feature: int) -> str:
    own, spread = (CLASS_NAMES[int(each[feature])] for each in (scores.class_by_interval, scores.class_by_spread))
    return own if own == spread else f"{own} by its interval, {spread} by spread"


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.3f}"
