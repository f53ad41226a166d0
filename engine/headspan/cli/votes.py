"""The commands that look at votes: one by one, how far their givers agree, and several models side by side."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from headspan.cli.tables import SCORE_COLUMNS, print_table, print_unsourced, score_row
from headspan.cli.terminal import say
from headspan.concepts.agreement import Agreement, Measure
from headspan.concepts.answers import Record, read_records
from headspan.concepts.ccs import NO_VOTE, UNSOURCED, ConceptConsistency, read_scores
from headspan.concepts.compare import Compared, compare
from headspan.concepts.human_votes import read_votes, write_spans
from headspan.concepts.labels import read_labels
from headspan.concepts.raters import rater_agreement
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
    store = Store(flags.store)
    found = read_scores(store, flags.run_name)
    labels, votes = found.labels, found.votes
    spans = read_spans(store, labels.run)
    chosen = _head_of(flags.head, found) if flags.head else None
    said = {(record["layer"], record["head"]): record for record in read_records(store, "labels", labels.run)}
    voted = {
        (record["judge"], record["layer"], record["head"], record["text"]): record
        for record in read_records(store, "ccs", labels.run)
    }
    say(f"labels by {labels.source}")
    say(f"votes by {votes.source}; by majority + fits the label, - does not")
    for kept, layer in enumerate(labels.layers):
        for head, name in enumerate(labels.names[kept]):
            if chosen not in (None, (layer, head)):
                continue
            say(f"L{layer}.H{head}  {name or '-'}  CCS {found.scores[kept, head]}")
            _print_replies("    label", said.get((layer, head)))
            for place, text in enumerate(spans.texts(layer, head, found.consistent.shape[2])):
                say(f"    {'+' if found.consistent[kept, head, place] else '-'} {text}")
                for judge, cast in zip(votes.judges, votes.cast[:, kept, head, place].tolist(), strict=True):
                    say(f"        {'no vote' if cast == NO_VOTE else cast}  {judge}")
                    _print_replies("           ", voted.get((judge, layer, head, place + 1)))
    return 0


def _head_of(text: str, found: ConceptConsistency) -> tuple[int, int]:
    named = re.fullmatch(r"L(\d+)\.H(\d+)", text)
    head = (int(named[1]), int(named[2])) if named else (-1, -1)
    if head[0] not in found.labels.layers or head[1] >= found.scores.shape[1]:
        raise SettingsError(f"--head {text}: no such head here; write L{found.labels.layers[0]}.H0, say")
    return head


def _print_replies(indent: str, record: Record | None) -> None:
    for reply in record["replies"] if record is not None else ():
        words = " ".join((reply["content"] or reply["refusal"] or "").split())
        say(f"{indent} ← {words or 'nothing'}")


def _agreement(flags: argparse.Namespace, progress: Listener) -> int:
    store = Store(flags.store)
    labels = read_labels(store, flags.run_name)
    spans = read_spans(store, labels.run)
    if flags.write:
        written = write_spans(spans, labels, flags.write, flags.count, flags.seed)
        texts = counted(written, "text")
        say(f"{texts} written to {flags.write}: fill the column associated with 1 or 0, then give --human")
        return 0
    people = {str(path): read_votes(spans, labels, path) for path in flags.human or ()}
    found = read_scores(store, labels.run)
    pairs = rater_agreement(found, people)
    if not pairs:
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
    measures = (("κ", found.kappa), ("ρ", found.spearman), ("τ-b", found.kendall))
    shown = "  ".join(f"{name} {_measure(measure)}" for name, measure in measures)
    say(f"    {found.pairs:,} {what}, {found.same:.1%} the same  {shown}")


def _measure(measure: Measure) -> str:
    if math.isnan(measure.value):
        return "-"
    return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]".replace("nan", "-")


def _compare(flags: argparse.Namespace, progress: Listener) -> int:
    compared = compare([Store(path) for path in flags.stores], flags.run_name)
    ways = list(dict.fromkeys(one.way for one in compared))
    rows = [_compared_row(one, ways.index(one.way) + 1) for one in compared]
    print_table([("model", "store", "run", "way", *SCORE_COLUMNS), *rows])
    for number, (pool, labeller, judges) in enumerate(ways, start=1):
        say(f"way {number}: texts of pool {pool}, labels by {labeller}, votes by {judges}")
    if len(ways) > 1:
        say("scores made in different ways do not compare")
    print_unsourced(*(one.found for one in compared))
    return 0


def _compared_row(one: Compared, way: int) -> tuple[str, ...]:
    name, *scores = score_row(one.model, one.found)
    return (name, Path(one.store).name, one.run, f"{way}", *scores)
