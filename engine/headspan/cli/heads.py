"""The command `heads`: which heads a list of words explains, and which carry a text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from headspan.cli.commands import Section
from headspan.cli.exports import Table, export, export_flags, only_export
from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.magnitudes import magnitude_cells, share_in_percent
from headspan.cli.numbers import FROM_0, FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.query_flags import text_flag
from headspan.cli.selection_flags import selected, selection_flags
from headspan.cli.shared_flags import comma_separated, store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import SettingsError, counted, percent
from headspan.explore.heads.pursuit import COUNT as WORDS
from headspan.explore.heads.pursuit import head_pursuit
from headspan.explore.heads.pursuit_result import HeadPursuit
from headspan.explore.heads.text_shares import TextShares, text_shares
from headspan.head_names import head_name
from headspan.spans.nulls import DRAWS, SEED
from headspan.store.head_space import Head
from headspan.store.magnitudes import Magnitudes
from headspan.store.reader import Store
from headspan.user_paths import expand_user

_HEADS_SHOWN = 10


def add_heads(section: Section) -> None:
    """Add `heads`."""
    command = section.add(
        "heads",
        _heads,
        'headspan heads run.zarr --for "red, green, blue"',
        "With --for, heads are ranked by the share of their variance that a few words of the list explain (head "
        "pursuit), beside what the list explains after a random rotation. With --text, by their share of the variance "
        "of the text's score. All follows from stored moments.",
    )
    store_argument(command)
    query = command.add_argument_group("question").add_mutually_exclusive_group(required=True)
    query.add_argument("--for", dest="listed", metavar="WORDS", help="words or texts, separated by commas")
    query.add_argument("--for-file", metavar="FILE", help="a file with a word or text on each line, or a pool's name")
    text_flag(query)
    about_words = command.add_argument_group("words")
    about_words.add_argument("--count", type=FROM_1, metavar="N", help=f"words that explain a head (default: {WORDS})")
    about_words.add_argument(
        "--draws", type=FROM_0, metavar="N", help=f"how often the list is rotated; 0 draws none (default: {DRAWS})"
    )
    about_words.add_argument(
        "--against",
        metavar="POOL",
        help="also what as many random texts of this pool explain: general, world or a file, as in textspan",
    )
    about_words.add_argument("--seed", type=FROM_0, metavar="N", help=f"seed of the draws (default: {SEED})")
    about_text = command.add_argument_group("text")
    about_text.add_argument(
        "--texts",
        metavar="POOL",
        help="the pool among whose texts the text's place is given, as in textspan (default: the largest pool in the "
        "store)",
    )
    about_text.add_argument(
        "--covariance",
        action="store_true",
        help="also the covariance shares, which sum to 100 %% over all components; reads the head outputs once",
    )
    selection_flags(command)
    result = command.add_argument_group("result")
    weights_flag(result)
    head_flag(result)
    result.add_argument(
        "--top", type=FROM_1, metavar="N", help=f"heads that are printed (default: {_HEADS_SHOWN}); files have all"
    )
    export_flags(command)


def _heads(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    store = Store(flags.store)
    heads = chosen_heads(flags.heads, store.layers, store.heads_per_layer)
    of_words, of_text = ("count", "draws", "seed", "against"), ("texts", "covariance")
    for name in of_words if flags.text is not None else of_text:
        if getattr(flags, name) not in (None, False):
            other = "--for or --for-file" if flags.text is not None else "--text"
            raise SettingsError(f"--{name} does not apply here; it goes with {other}")
    images = selected(store, flags, progress)
    if flags.text is not None:
        shares = text_shares(
            store,
            flags.text,
            progress,
            weights=flags.weights,
            pool=flags.texts,
            covariance=flags.covariance,
            images=images,
        )
        progress.close()
        order = [head for head in shares.ranking() if head in heads]
        columns = shares._columns()
        rows = [row for row, head in enumerate(shares.ranking()) if head in order]
        if not export(flags, Table({name: [values[row] for row in rows] for name, values in columns.items()})):
            _print_shares(shares, _shown(order, flags))
        return 0
    found = head_pursuit(
        store,
        _listed(flags),
        WORDS if flags.count is None else flags.count,
        progress,
        weights=flags.weights,
        against=flags.against,
        draws=DRAWS if flags.draws is None else flags.draws,
        seed=SEED if flags.seed is None else flags.seed,
        images=images,
    )
    progress.close()
    order = [head for head in found.ranking() if head in heads]
    magnitudes = store.magnitudes(images=images)
    if not export(flags, Table.of_heads(found, order, magnitudes)):
        _print_pursuit(found, _shown(order, flags), magnitudes)
    return 0


def _listed(flags: argparse.Namespace) -> str | Path | list[str]:
    if flags.listed is None:
        return expand_user(flags.for_file)
    words = comma_separated(flags.listed)
    if not words:
        raise SettingsError(f"--for {flags.listed!r}: contains no words; separate them by commas, as in 'red, blue'")
    return words


def _shown(order: list[Head], flags: argparse.Namespace) -> list[Head]:
    # Heads that were named are all shown.
    most = flags.top if flags.top is not None else len(order) if flags.heads else _HEADS_SHOWN
    return order[:most]


def _print_pursuit(found: HeadPursuit, heads: Sequence[Head], magnitudes: Magnitudes) -> None:
    most, known = found.explained.shape[-1], found.null is not None
    rows: list[tuple[str, ...]] = []
    for head in heads:
        chance = found.chance(*head) if known else None
        words = [f"{word} {percent(found.explained_by(*head, n), 0)}" for n, word in enumerate(found.texts(*head), 1)]
        rows.append(
            (
                head_name(*head),
                percent(found.explained_by(*head)),
                *(() if chance is None else (f"{percent(chance.low)} to {percent(chance.high)}",)),
                *(() if chance is None else (f"{100 * chance.excess:+.1f}", f"{chance.p:.3f}")),
                *(() if found.others is None else _beside_others(found, head)),
                percent(float(found.best[found.layers.index(head[0]), head[1], -1])),
                magnitude_cells(magnitudes, *head)[0],
                ", ".join(words) or "-",
            )
        )
    chance_columns = [] if not known else ["by chance", "excess", "p"]
    chance_columns += [] if found.others is None else ["other texts", "p"]
    header = ("head", "explained", *chance_columns, "best", "variance", "words, with the share explained so far")
    print_table([header, *rows], words=1)
    say(
        f"explained: share of a head's variance over {counted(found.images, 'image')} in the span of {most} of "
        f"{counted(len(found.words), 'word')}; best: of as many of its own principal directions"
    )
    say("variance: of the head's contributions, as a share of the unit embeddings'; small heads may be about words too")
    if found.others is not None:
        texts = counted(len(found.words), "text")
        say(f"other texts: what {texts} explain that are drawn from {found.against} at random")
    if known:
        above = found.above_chance()
        say(
            f"{above.above} of {counted(above.heads, 'head')} above chance (p ≤ {above.level}), which is the list "
            f"rotated at random; chance gives {above.expected:.1f}, at most {above.high:.0f} in 95 % of draws"
        )


def _beside_others(found: HeadPursuit, head: Head) -> tuple[str, str]:
    """The cells of the columns `other texts` and `p`."""
    beside = found.beside_others(*head)
    return f"{percent(beside.low)} to {percent(beside.high)}", f"{beside.p:.3f}"


def _print_shares(found: TextShares, heads: Sequence[Head]) -> None:
    columns = ["share", "mean", "random direction"]
    columns += [] if found.percentile is None else ["percentile"]
    columns += [] if found.covariance_share is None else ["covariance"]
    rows = []
    for layer, head in heads:
        at = found.layers.index(layer), head
        cells = [share_in_percent(found.share[at]), f"{found.mean[at]:+.4f}", share_in_percent(found.random[at])]
        cells += [] if found.percentile is None else [f"{100 * found.percentile[at]:.1f}"]
        cells += [] if found.covariance_share is None else [percent(found.covariance_share[at], 2)]
        rows.append((head_name(layer, head), *cells))
    print_table([("head", *columns), *rows])
    say(
        f"the text's score over {counted(found.images, 'image')}: mean {found.score_mean:.4f}, standard deviation "
        f"{found.score_deviation:.4f}"
    )
    say("share: of the score's variance; parts of different heads correlate, so shares need not sum to 100 %")
    say("mean: of the head's part of the score; random direction: the share that it gives on average")
    if found.percentile is not None:
        say(f"percentile: of the share, among {counted(found.pool_texts, 'text')} of the pool {found.pool}")
    if found.covariance_share is not None:
        sums = f"heads {percent(float(found.covariance_share.sum()))}"
        if found.term_covariance_share is not None:
            sums += f", initial state and MLPs {percent(float(found.term_covariance_share.sum()))}"
        say(f"covariance: share of the covariance with the score, sums to 100 % over all components; {sums}")
