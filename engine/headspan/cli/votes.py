"""The commands that look at votes: one by one, how far their givers agree, and several models side by side."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from headspan.cli.tables import SCORE_COLUMNS, print_table, print_unsourced, score_row
from headspan.cli.terminal import say
from headspan.concepts.agreement import Agreement, rater_agreement
from headspan.concepts.ccs import UNSOURCED, read_scores
from headspan.concepts.comparison import ComparedStore, compare
from headspan.concepts.human_votes import read_vote_sheet, write_vote_sheet
from headspan.concepts.labels import read_labels
from headspan.concepts.votes import VotesOfRun, VotesOnHead, read_votes
from headspan.errors import SettingsError, counted
from headspan.events import Listener
from headspan.spans.result import read_spans
from headspan.store.reader import Store

Run = Callable[[argparse.Namespace, Listener], int]


def add_vote_commands(
    add: Callable[[str, Run, str], argparse.ArgumentParser], run_flag: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add `votes`, `agreement` and `compare` to the parser, as `add_label_commands` does its own."""
    votes = add("votes", _votes, "every vote on every text, with the raw answers")
    votes.add_argument("store")
    votes.add_argument("--head", help="of one head alone, as in L22.H13")
    run_flag(votes)
    agreement = add("agreement", _agreement, "how far judges, and people, agree")
    agreement.add_argument("store")
    run_flag(agreement)
    agreement.add_argument("--write", metavar="CSV", help="write texts and labels for a person to judge")
    agreement.add_argument("--count", type=int, default=100, help="how many to write (default: %(default)s)")
    agreement.add_argument("--seed", type=int, default=0, help="which heads to draw (default: %(default)s)")
    agreement.add_argument("--human", action="append", metavar="CSV", help="such a file, filled in; may be repeated")
    table = add("compare", _compare, "several models' scores side by side")
    table.add_argument("stores", nargs="+", metavar="STORE")
    run_flag(table)


def _votes(flags: argparse.Namespace, progress: Listener) -> int:
    found = read_votes(Store(flags.store), flags.run_name)
    heads = [_head_of(flags.head, found)] if flags.head else found.heads
    say(f"labels by {found.labels_source}")
    say(f"votes by {found.votes_source}; by majority + fits the label, - does not")
    for head in heads:
        say(f"L{head.layer}.H{head.head}  {head.label or '-'}  CCS {head.score}")
        _print_replies("    label", head.label_replies)
        for text in head.texts:
            say(f"    {'+' if text.consistent else '-'} {text.text}")
            for vote in text.votes:
                say(f"        {'no vote' if vote.fits is None else int(vote.fits)}  {vote.judge}")
                _print_replies("           ", vote.replies)
    return 0


def _head_of(text: str, found: VotesOfRun) -> VotesOnHead:
    named = re.fullmatch(r"L(\d+)\.H(\d+)", text)
    try:
        return found.head(int(named[1]) if named else -1, int(named[2]) if named else -1)
    except SettingsError:
        raise SettingsError(f"--head {text}: no such head here; write L{found.layers[0]}.H0, say") from None


def _print_replies(indent: str, replies: Sequence[str]) -> None:
    for reply in replies:
        say(f"{indent} ← {reply or 'nothing'}")


def _agreement(flags: argparse.Namespace, progress: Listener) -> int:
    store = Store(flags.store)
    labels = read_labels(store, flags.run_name)
    spans = read_spans(store, labels.run)
    if flags.write:
        written = write_vote_sheet(spans, labels, flags.write, flags.count, flags.seed)
        texts = counted(written, "text")
        say(f"{texts} written to {flags.write}: fill the column associated with 1 or 0, then give --human")
        return 0
    people = {str(path): read_vote_sheet(spans, labels, path) for path in flags.human or ()}
    found = read_scores(store, labels.run)
    pairs = rater_agreement(found, people)
    if not pairs.pairs:
        raise SettingsError(
            f"votes of run {labels.run!r} are by {found.votes.source} alone, and agreement takes two; add a judge with "
            "headspan ccs --judge, or a person with --write and --human"
        )
    say(f"labels by {labels.source}")
    for pair in pairs:
        say(f"{pair.first} and {pair.second}")
        _print_agreement("texts", pair.texts)
        _print_agreement("scores of heads", pair.heads)
    say("95 % intervals from 1,000 bootstrap samples of heads; - where a rater never varies. Of votes of 0 and 1, ρ")
    say("and τ-b are one number. κ of scores is unweighted.")
    if len(found.votes.judges) > 1:
        say(f"[unsourced]: {UNSOURCED['majority']}")
    return 0


def _print_agreement(what: str, found: Agreement) -> None:
    if not found.pairs:
        say(f"    {what}: none that both rated")
        return
    say(
        f"    {found.pairs:,} {what}, {found.same:.1%} the same  κ {found.kappa}  ρ {found.spearman}  "
        f"τ-b {found.kendall}"
    )


def _compare(flags: argparse.Namespace, progress: Listener) -> int:
    compared = compare([Store(path) for path in flags.stores], flags.run_name)
    methods = compared.methods
    rows = [_compared_row(one, methods.index(one.method) + 1) for one in compared]
    print_table([("model", "store", "run", "way", *SCORE_COLUMNS), *rows])
    for number, method in enumerate(methods, start=1):
        say(f"way {number}: texts of pool {method.pool}, labels by {method.labels}, votes by {method.votes}")
    if not compared.comparable:
        say("scores made in different ways do not compare")
    print_unsourced(*(one.found for one in compared))
    return 0


def _compared_row(one: ComparedStore, way: int) -> tuple[str, ...]:
    name, *scores = score_row(one.model, one.found)
    return (name, Path(one.store).name, one.run, f"{way}", *scores)
