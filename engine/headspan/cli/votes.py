"""The commands that show votes and scores: `votes`, `agreement` and `compare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from headspan.cli.commands import Section
from headspan.cli.exports import Table, export, export_flags, only_export
from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.magnitudes import variance_in_words
from headspan.cli.numbers import FROM_0, FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import run_flag, store_argument
from headspan.cli.tables import SCORE_COLUMNS, print_table, print_unsourced, score_row
from headspan.cli.terminal import say
from headspan.concepts.agreement import Agreement, rater_agreement
from headspan.concepts.ccs import read_scores
from headspan.concepts.comparison import ComparedStore, compare
from headspan.concepts.consistency import UNSOURCED
from headspan.concepts.human_votes import read_vote_sheet, write_vote_sheet
from headspan.concepts.labels import read_labels, spans_of
from headspan.concepts.nulls import LEVEL, UNLABELLED
from headspan.concepts.votes import VotesOnHead, read_votes
from headspan.errors import SettingsError, counted, percent
from headspan.head_names import head_name
from headspan.store.lineage import refuse_older
from headspan.store.reader import Store


def add_votes(section: Section) -> None:
    """Add `votes` and `agreement`."""
    votes = section.add("votes", _votes, "headspan votes run.zarr --head L22.H13")
    store_argument(votes)
    head_flag(votes)
    run_flag(votes)
    export_flags(votes)

    agreement = section.add(
        "agreement",
        _agreement,
        "headspan agreement run.zarr --write to_judge.csv --count 100",
    )
    store_argument(agreement)
    run_flag(agreement)
    export_flags(agreement)
    people = agreement.add_argument_group("people's votes")
    people.add_argument("--write", metavar="CSV", help="write texts and labels for a person to judge")
    people.add_argument(
        "--count", type=FROM_1, metavar="N", default=100, help="how many texts to write (default: %(default)s)"
    )
    people.add_argument(
        "--seed", type=FROM_0, metavar="N", default=0, help="seed of the random choice of heads (default: %(default)s)"
    )
    people.add_argument(
        "--human", action="append", metavar="CSV", help="a file of --write with votes filled in; may be repeated"
    )


def add_compare(section: Section) -> None:
    """Add `compare`."""
    table = section.add("compare", _compare, "headspan compare a.zarr b.zarr")
    table.add_argument("stores", nargs="+", metavar="STORE", help="stores with scores")
    run_flag(table)
    export_flags(table)


def _votes(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    store = Store(flags.store)
    found = read_votes(store, flags.run_name)
    chosen = chosen_heads(flags.heads, found.layers, len(found.heads) // len(found.layers))
    magnitudes = store.magnitudes()
    if export(flags, Table.of_heads(found, chosen, magnitudes)):
        return 0
    say(f"labels by {found.labels_source}")
    say(f"votes by {found.votes_source}; + marks texts that match the label by majority, - other texts")
    for head in (found.head(*each) for each in chosen):
        magnitude = variance_in_words(magnitudes, head.layer, head.head)
        say(f"{head_name(head.layer, head.head)}  {head.label or '-'}  CCS {head.score}{_chance(head)}  {magnitude}")
        _print_replies("    label", head.label_replies)
        for text in head.texts:
            say(f"    {'+' if text.consistent else '-'} {text.text}")
            for vote in text.votes:
                say(f"        {'no vote' if vote.fits is None else int(vote.fits)}  {vote.judge}")
                _print_replies("           ", vote.replies)
    return 0


def _chance(head: VotesOnHead) -> str:
    if head.p is None or head.label is None:
        return ""
    return f"  p {head.p:.2g}" + f", {UNLABELLED}" * (head.p >= LEVEL)


def _print_replies(indent: str, replies: Sequence[str]) -> None:
    for reply in replies:
        say(f"{indent} ← {reply or 'nothing'}")


def _agreement(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    store = Store(flags.store)
    labels = read_labels(store, flags.run_name)
    spans = spans_of(store, labels)
    if flags.write:
        if flags.csv or flags.json or flags.parquet:
            raise SettingsError("--write measures nothing, so there is no table to write; measure in a second command")
        written = write_vote_sheet(spans, labels, flags.write, flags.count, flags.seed)
        say(
            f"{counted(written, 'text')} written to {flags.write}; write 1 or 0 into the column associated, then give "
            "the file with --human"
        )
        return 0
    people = {str(path): read_vote_sheet(spans, labels, path) for path in flags.human or ()}
    found = read_scores(store, labels.run)
    refuse_older(store, "ccs", labels.run)
    pairs = rater_agreement(found, people)
    if not pairs.pairs:
        raise SettingsError(
            f"run {labels.run!r} has votes by {found.votes.source} only, but agreement needs two raters; add a judge "
            "with headspan ccs --judge, or a person with --write and --human"
        )
    if export(flags, pairs):
        return 0
    say(f"labels by {labels.source}")
    for pair in pairs:
        say(f"{pair.first} and {pair.second}")
        _print_agreement("texts", pair.texts)
        _print_agreement("scores of heads", pair.heads)
    say("In brackets: 95 % intervals from 1,000 bootstrap samples of heads. - means undefined, as when a rater always")
    say("gives the same vote. For votes of 0 and 1, ρ and τ-b are equal. κ of scores is unweighted.")
    if len(found.votes.judges) > 1:
        say(f"[unsourced]: {UNSOURCED['majority']}")
    return 0


def _print_agreement(what: str, found: Agreement) -> None:
    if not found.pairs:
        say(f"    {what}: the raters have none in common")
        return
    say(
        f"    {found.pairs:,} {what}, {percent(found.same)} the same  κ {found.kappa}  ρ {found.spearman}  "
        f"τ-b {found.kendall}"
    )


def _compare(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    compared = compare([Store(path) for path in flags.stores], flags.run_name)
    if export(flags, compared):
        return 0
    methods = compared.methods
    rows = [_compared_row(one, methods.index(one.method) + 1) for one in compared]
    print_table([("model", "store", "run", "method", *SCORE_COLUMNS), *rows])
    for number, method in enumerate(methods, start=1):
        say(f"method {number}: texts of pool {method.pool}, labels by {method.labels}, votes by {method.votes}")
    if any(one.found.chance for one in compared):
        say(f"labelled: heads with p < {LEVEL}, or with a label where chance is not known; in brackets: by chance")
    if not compared.comparable:
        say("scores made by different methods cannot be compared")
    print_unsourced(*(one.found for one in compared))
    return 0


def _compared_row(one: ComparedStore, way: int) -> tuple[str, ...]:
    name, *scores = score_row(one.model, one.found)
    return (name, Path(one.store).name, one.run, f"{way}", *scores)
