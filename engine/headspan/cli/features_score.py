"""The command `features score`: how much each feature belongs to images, to texts, or to both, beside nulls."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from headspan.cli.commands import described
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import FROM_0
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.selection_flags import selected, selection_flags
from headspan.cli.shared_flags import overwrite_flag, store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say, tell
from headspan.errors import counted, percent
from headspan.features.scores.classes import LEAST_PAIRS
from headspan.features.scores.result import CLASS_NAMES, UNDECIDED, FeatureScores
from headspan.features.table import FeatureTable
from headspan.store.reader import Store

_DETAILS = (
    "MDS is the mean share of the image's code in a pair's two codes: 1 for features of images alone, 0 for those of "
    "texts alone. Scores are saved as a run, which `headspan features show` lists."
)
_BINS, _BAR = 10, 40
# Features of each class that are printed.
_STRONGEST = 5


def add_score(parser: Parser, text: str) -> None:
    """Describe `features score`, and add its flags."""
    example = "headspan features score run.zarr --dictionary run.features"
    command = described(parser, text, _score, example, _DETAILS)
    store_argument(command)
    command.add_argument("--dictionary", required=True, metavar="FOLDER", help="the dictionary to score")
    how = command.add_argument_group("scores")
    how.add_argument(
        "--judged-by",
        metavar="STORE",
        help="a store of the same images by another model, which says how alike a feature's samples are "
        "(default: the embedding itself)",
    )
    how.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK",
        dest="tasks",
        help="classify with codes and with embeddings: a task's name or file; may be repeated",
    )
    how.add_argument("--images-only", action="store_true", help="score images alone, without captions")
    how.add_argument(
        "--keep-captions",
        metavar="FOLDER",
        help="where the vectors of captions are kept (default: the user's cache folder)",
    )
    how.add_argument(
        "--seed", type=FROM_0, default=0, metavar="N", help="seed of the order of pairs and of drawing (0)"
    )
    how.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")
    weights_flag(how)
    selection_flags(command)
    result = command.add_argument_group("result")
    result.add_argument(
        "--run", dest="run_name", metavar="NAME", help="name of the run (default: that of the dictionary's folder)"
    )
    overwrite_flag(result)
    export_flags(command)


def _score(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    store = Store(flags.store)
    judge = None if flags.judged_by is None else Store(flags.judged_by)
    images = selected(store, flags, progress)
    # As elsewhere, scores of a selection are saved only where a run is named.
    save = images is None or flags.run_name is not None
    # Imported here, since it takes torch a second to load, and wrong flags are refused before.
    from headspan.features.scoring import score

    scores, unsaved = saved_or_not(
        lambda: score(
            store,
            flags.dictionary,
            run=flags.run_name,
            captions=not flags.images_only,
            images=images,
            judge=judge,
            tasks=flags.tasks,
            seed=flags.seed,
            device=flags.device,
            save=save,
            overwrite=flags.overwrite,
            keep=flags.keep_captions,
            weights=flags.weights,
            on_progress=progress,
        )
    )
    progress.close()
    if not export(flags, FeatureTable(scores, np.arange(len(scores.active)))):
        print_scores(scores)
    if unsaved is None and save:
        (tell if alone else say)(f"saved as features/{scores.run} in {store.path}")
    tell_unsaved(unsaved)
    return 0


def print_scores(scores: FeatureScores) -> None:
    """Print classes, the histogram of MDS, nulls, quality, and the strongest features of each class."""
    features = counted(len(scores.active), "feature")
    of = "" if scores.space is None else f" of {scores.space}"
    say(f"{features}{of}, learned by {scores.learner}, over {counted(scores.pairs, 'pair')}")
    if not np.isnan(scores.mds).all():
        _print_classes(scores)
        _print_histogram(scores)
        _print_null(scores)
    _print_likeness(scores)
    _print_quality(scores)
    for number, name in CLASS_NAMES.items():
        if number != UNDECIDED:
            _print_strongest(scores, number, name)


def _print_classes(scores: FeatureScores) -> None:
    count = len(scores.active)
    rows = [("class", "by interval", "", "by mean ± std", "")]
    for number, name in CLASS_NAMES.items():
        by_interval, by_spread = (scores.class_by_interval == number).sum(), (scores.class_by_spread == number).sum()
        rows.append(
            (name, f"{by_interval:,}", percent(by_interval / count), f"{by_spread:,}", percent(by_spread / count))
        )
    print_table(rows)
    few = int((scores.active < LEAST_PAIRS).sum())
    say(
        f"undecided: {few:,} active in fewer than {LEAST_PAIRS} pairs; by interval also those whose interval crosses "
        "1/3 or 2/3"
    )
    if "mds_low" in scores.quality:
        say(f"mean ± std of MDS: {scores.quality['mds_low']:.3f} to {scores.quality['mds_high']:.3f}")


def _print_histogram(scores: FeatureScores) -> None:
    """The MDS of features with enough pairs, beside that with captions shuffled."""
    enough = scores.active >= LEAST_PAIRS
    own, null = (
        np.histogram(values[enough & ~np.isnan(values)], _BINS, (0, 1))[0]
        for values in (scores.mds, scores.shuffled_mds)
    )
    longest = max(1, int(own.max()))
    say()
    rows = [("MDS", "features", "shuffled", "")]
    for place in range(_BINS):
        low, high = place / _BINS, (place + 1) / _BINS
        bar = "#" * -(-int(own[place]) * _BAR // longest)
        rows.append((f"{low:.1f} to {high:.1f}", f"{own[place]:,}", f"{null[place]:,}", bar))
    print_table(rows, words=1)


def _print_null(scores: FeatureScores) -> None:
    """How often both sides are active, beside shuffled captions."""
    assert scores.shuffled_active is not None, "scores of pairs have the null"
    enough = scores.active >= LEAST_PAIRS
    if not enough.any():
        return
    each = scores.image_active + scores.text_active
    both = [((each - active)[enough] / active[enough]).mean() for active in (scores.active, scores.shuffled_active)]
    say(
        f"both sides active in {percent(both[0])} of a feature's pairs; with captions shuffled {percent(both[1])}. The "
        "energy score does not depend on the pairing"
    )


def _print_likeness(scores: FeatureScores) -> None:
    """EmbSim with WinRate by size, and monosemanticity."""
    say()
    rows = [("most active", "EmbSim", "captions", "WinRate", "p")]
    for place, size in enumerate(scores.similarity_sizes):
        captions = None if scores.caption_similarity is None else scores.caption_similarity[:, place]
        won, p = scores.quality.get(f"win_rate_{size}"), scores.quality.get(f"win_rate_{size}_p")
        rows.append((f"{size}", _mean(scores.similarity[:, place]), _mean(captions), _number(won), _number(p, ".2g")))
    print_table(rows)
    say(
        f"monosemanticity: mean {_mean(scores.monosemanticity)}, across sides {_mean(scores.cross_monosemanticity)}; "
        f"judged by {scores.judge}"
    )


def _print_quality(scores: FeatureScores) -> None:
    quality = scores.quality
    say()
    names = ("r2", "fvu", "cosine", "l0", "dead")
    rows: list[tuple[str, ...]] = [("reconstruction", "R²", "FVU", "cosine", "L0", "dead")]
    sides = [side for side in ("image", "text") if f"{side}_l0" in quality]
    rows += [(f"{side}s", *(_number(quality.get(f"{side}_{name}")) for name in names)) for side in sides]
    print_table(rows)
    say(f"dead on both sides: {percent(quality['dead'])}")
    compared = [name.removeprefix("codes_") for name in quality if name.startswith("codes_")]
    if compared:
        say()
        print_table(
            [
                ("with codes", "codes", "dense", "chance"),
                *(
                    (
                        name.replace("_r", " R@").replace("_", " ") if "_to_" in name else name.replace("_", " ", 1),
                        *(_number(quality.get(f"{kind}_{name}")) for kind in ("codes", "dense")),
                        _number(quality.get(f"chance_{name.rpartition('_')[2] if '_to_' in name else name}")),
                    )
                    for name in compared
                ),
            ]
        )


def _print_strongest(scores: FeatureScores, number: int, name: str) -> None:
    """The features of a class whose codes have the most energy."""
    chosen = np.flatnonzero(scores.class_by_interval == number)
    energy = scores.image_square + scores.text_square
    chosen = chosen[np.argsort(-energy[chosen], kind="stable")][:_STRONGEST]
    if len(chosen):
        say()
        rows = [(name, "MDS", "95 %", "shuffled", "energy", "pairs", "MS")]
        rows += [
            (
                f"feature {feature}",
                f"{scores.mds[feature]:.3f}",
                "{:.3f} to {:.3f}".format(*scores.mds_interval[feature]),
                _number(scores.shuffled_mds[feature]),
                f"{scores.energy[feature]:.3f}",
                f"{scores.active[feature]:,}",
                _number(scores.monosemanticity[feature]),
            )
            for feature in chosen.tolist()
        ]
        print_table(rows)


def _mean(values: Sequence[float] | np.ndarray | None) -> str:
    """The mean of the numbers that are there; a dash if there is none."""
    known = np.asarray([] if values is None else values)
    known = known[~np.isnan(known)]
    return f"{known.mean():.3f}" if len(known) else "-"


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None or np.isnan(value) else format(value, form)
