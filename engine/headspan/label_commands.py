"""The commands about labels, scores and written pools, and what they print."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from headspan.analyse.agreement import Agreement, Measure
from headspan.analyse.answers import read_records
from headspan.analyse.ccs import NO_VOTE, UNSOURCED, ConceptConsistency, concept_consistency, read_scores
from headspan.analyse.compare import Compared, compare
from headspan.analyse.examples import read_examples
from headspan.analyse.judging import all_vote_questions, judge_heads, missing_votes
from headspan.analyse.labels import Labels, label_heads, read_labels
from headspan.analyse.model_labels import label_by_model, label_questions
from headspan.analyse.model_pool import Draft, PoolRequest, write_pool
from headspan.analyse.people import read_votes, write_spans
from headspan.analyse.raters import rater_agreement
from headspan.analyse.results import runs
from headspan.analyse.spans import read_spans
from headspan.asking_flags import add_asking_flags, asker_of, go_ahead, refuse_asking_flags, value_of
from headspan.errors import SettingsError
from headspan.llm.asking import Asker
from headspan.records import Listener
from headspan.store.reader import Store

_SHOWN_CONCEPTS = 12
Run = Callable[[argparse.Namespace, Listener], int]


def add_label_commands(
    add: Callable[[str, Run, str], argparse.ArgumentParser], run_flag: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add the commands to the parser; `add` makes one, `run_flag` gives it `--run`."""
    label = add("label", _label, "one concept a head: the pool's, or a language model's")
    label.add_argument("store")
    run_flag(label)
    label.add_argument("--llm", metavar="MODEL", help="let this language model label (default: the pool's concepts)")
    label.add_argument("--examples", action="append", metavar="FILE", help="more labelled heads to show it (TOML)")
    add_asking_flags(label)
    ccs = add("ccs", _ccs, "Concept Consistency Scores, from the pool's concepts or from judges")
    ccs.add_argument("store")
    run_flag(ccs)
    ccs.add_argument("--judge", action="append", metavar="MODEL", help="a language model that votes; may be repeated")
    ccs.add_argument("--add", action="store_true", default=None, help="keep the votes of other judges that are there")
    add_asking_flags(ccs)
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
    pool = add("pool", _pool, "a text pool written by a language model")
    pool.add_argument("--llm", metavar="MODEL", required=True)
    pool.add_argument("--ask", required=True, help='what to write, as in "general image descriptions"')
    pool.add_argument("--count", type=int, required=True, help="how many different texts")
    pool.add_argument("--out", required=True, help="the pool's file; going on, the same one")
    pool.add_argument("--concepts", action="store_true", help="ask for the concept of each text too")
    pool.add_argument("--per-call", type=int, default=20, help="texts to ask for at once (default: %(default)s)")
    add_asking_flags(pool)


def _label(flags: argparse.Namespace, progress: Listener) -> int:
    if flags.llm is None:
        refuse_asking_flags(flags, "--llm", "examples")
        labels = label_heads(Store(flags.store), flags.run_name)
    else:
        store, examples = Store(flags.store), read_examples(flags.examples or ())
        asker, answer_tokens = asker_of(flags), int(value_of(flags, "answer_tokens"))
        questions = label_questions(read_spans(store, flags.run_name), flags.llm, examples, answer_tokens)
        if not go_ahead(asker, list(questions.values()), flags):
            return 0
        labels = label_by_model(store, asker, flags.llm, flags.run_name, examples, answer_tokens, progress)
        _print_spent(asker)
    print(f"by {labels.source}")
    for layer, names in zip(labels.layers, labels.names, strict=True):
        for head, name in enumerate(names):
            print(f"L{layer}.H{head}\t{name or '-'}")
    if labels.free:
        _print_merged(labels)
    return 0


def _print_merged(labels: Labels) -> None:
    joined: dict[str, set[str]] = {}
    for names, concepts in zip(labels.names, labels.concepts, strict=True):
        for name, concept in zip(names, concepts, strict=True):
            if name is not None and concept is not None:
                joined.setdefault(concept, set()).add(name)
    for concept, names_of_one in sorted(joined.items()):
        if len(names_of_one) > 1:
            print(f"counted as one: {', '.join(sorted(names_of_one))} (as {concept})")
    without = sum(name is None for row in labels.names for name in row)
    if without:
        print(f"{without} heads have no label: they have no texts, or no answer was one")


def _print_spent(asker: Asker) -> None:
    print(f"{asker.budget.calls:,} calls were made and {asker.budget.tokens:,} tokens used")


def _ccs(flags: argparse.Namespace, progress: Listener) -> int:
    store = Store(flags.store)
    if not flags.judge:
        refuse_asking_flags(flags, "--judge", "add")
    if not runs(store, "labels"):
        if flags.dry_run:
            raise SettingsError(f"{store.path}: no head is labelled yet; run headspan label, then --dry-run")
        label_heads(store, flags.run_name)
    if flags.judge:
        asker, answer_tokens = asker_of(flags), int(value_of(flags, "answer_tokens"))
        asked = all_vote_questions(store, flags.judge, flags.run_name, answer_tokens)
        if not go_ahead(asker, [one for questions in asked.values() for one in questions.values()], flags):
            return 0
        found = judge_heads(store, asker, flags.judge, flags.run_name, bool(flags.add), answer_tokens, progress)
        _print_spent(asker)
    else:
        found = concept_consistency(store, flags.run_name)
    _print_scores(found)
    return 0


def _print_scores(found: ConceptConsistency) -> None:
    labels = found.labels
    for layer, scores in zip(labels.layers, found.scores.tolist(), strict=True):
        for head, score in enumerate(scores):
            print(f"L{layer}.H{head}\t{score}\t{labels.name(layer, head) or '-'}")
    print(f"labels by {labels.source}\nvotes by {found.votes.source}")
    for judge, missing in missing_votes(found).items():
        if missing:
            print(f"{judge} gives no vote on {missing:,} texts; run the same command to ask again")
    print(", ".join(f"{name} {count}" for name, count in found.groups.items()))
    print("  ".join(f"CCS@{k} {share:.3f}" for k, share in enumerate(found.at_k)))
    print(f"CCR {found.ccr:.3f}")
    shown = list(found.heads_per_concept.items())[:_SHOWN_CONCEPTS]
    left = len(found.heads_per_concept) - len(shown)
    print("heads per label: " + ", ".join(f"{name} {count}" for name, count in shown) + f", {left} more" * (left > 0))
    rows = [_score_row("all", found), *(_score_row(f"L{layer}", found.layer(layer)) for layer in labels.layers)]
    _print_table([("layer", *_SCORE_COLUMNS), *rows])
    _print_unsourced(found)


_SCORE_COLUMNS = (
    *("heads", "high", "moderate", "low"),
    *(f"CCS@{k}" for k in range(6)),
    *("CCR", "association*", "entanglement*"),
)


def _score_row(name: str, found: ConceptConsistency) -> tuple[str, ...]:
    groups = found.groups
    shares = [*found.at_k, found.ccr, found.association, found.entanglement]
    return (name, *(f"{count}" for count in (found.scores.size, *groups.values())), *map(_share, shares))


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join((row[0].ljust(len(first)), *others)))


def _print_unsourced(*found: ConceptConsistency) -> None:
    print(f"* [unsourced], our reading: {UNSOURCED['association']}; {UNSOURCED['entanglement']}")
    if any(len(one.votes.judges) > 1 for one in found):
        print(f"[unsourced] too: {UNSOURCED['majority']}")


def _votes(flags: argparse.Namespace, progress: Listener) -> int:
    store = Store(flags.store)
    found = read_scores(store, flags.run_name)
    labels, votes = found.labels, found.votes
    spans = read_spans(store, labels.run)
    chosen = _head_of(flags.head, found) if flags.head else None
    said = {(record["layer"], record["head"]): record for record in read_records(store, "labels", labels.run, "label")}
    voted = {
        (record["judge"], record["layer"], record["head"], record["text"]): record
        for record in read_records(store, "ccs", labels.run, "ccs")
    }
    print(f"labels by {labels.source}\nvotes by {votes.source}")
    for kept, layer in enumerate(labels.layers):
        for head, name in enumerate(labels.names[kept]):
            if chosen not in (None, (layer, head)):
                continue
            print(f"L{layer}.H{head}  {name or '-'}  CCS {found.scores[kept, head]}")
            _print_replies("    label", said.get((layer, head)))
            for place, text in enumerate(spans.texts(layer, head, found.consistent.shape[2])):
                print(f"    {'+' if found.consistent[kept, head, place] else '-'} {text}")
                for judge, cast in zip(votes.judges, votes.cast[:, kept, head, place].tolist(), strict=True):
                    print(f"        {'no vote' if cast == NO_VOTE else cast}  {judge}")
                    _print_replies("           ", voted.get((judge, layer, head, place + 1)))
    return 0


def _head_of(text: str, found: ConceptConsistency) -> tuple[int, int]:
    named = re.fullmatch(r"L(\d+)\.H(\d+)", text)
    head = (int(named[1]), int(named[2])) if named else (-1, -1)
    if head[0] not in found.labels.layers or head[1] >= found.scores.shape[1]:
        raise SettingsError(f"--head {text}: no such head here; write L{found.labels.layers[0]}.H0, say")
    return head


def _print_replies(indent: str, record: dict[str, object] | None) -> None:
    replies = record["replies"] if record is not None else []
    assert isinstance(replies, list)
    for reply in replies:
        words = " ".join((reply["content"] or reply["refusal"] or "").split())
        print(f"{indent} ← {words or 'nothing'}")


def _agreement(flags: argparse.Namespace, progress: Listener) -> int:
    store = Store(flags.store)
    labels = read_labels(store, flags.run_name)
    spans = read_spans(store, labels.run)
    if flags.write:
        written = write_spans(spans, labels, flags.write, flags.count, flags.seed)
        print(f"{written} texts written to {flags.write}: fill the column associated with 1 or 0, then give --human")
        return 0
    people = {str(path): read_votes(spans, labels, path) for path in flags.human or ()}
    found = read_scores(store, labels.run)
    pairs = rater_agreement(found, people)
    if not pairs:
        raise SettingsError(
            f"votes of run {labels.run!r} are by {found.votes.source} alone, and agreement takes two; add a judge with "
            "headspan ccs --judge, or a person with --write and --human"
        )
    print(f"labels by {labels.source}")
    for pair in pairs:
        print(f"{pair.first} and {pair.second}")
        _print_agreement("texts", pair.texts)
        _print_agreement("scores of heads", pair.heads)
    print("95 % intervals from 1,000 bootstrap samples of heads; - where a rater never varies. Of votes of 0 and 1, ρ")
    print("and τ-b are one number. κ of scores is unweighted.")
    if len(found.votes.judges) > 1:
        print(f"[unsourced]: {UNSOURCED['majority']}")
    return 0


def _print_agreement(what: str, found: Agreement) -> None:
    if not found.pairs:
        print(f"    {what}: none that both rated")
        return
    measures = (("κ", found.kappa), ("ρ", found.spearman), ("τ-b", found.kendall))
    shown = "  ".join(f"{name} {_measure(measure)}" for name, measure in measures)
    print(f"    {found.pairs:,} {what}, {found.same:.1%} the same  {shown}")


def _measure(measure: Measure) -> str:
    if math.isnan(measure.value):
        return "-"
    return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]".replace("nan", "-")


def _compare(flags: argparse.Namespace, progress: Listener) -> int:
    compared = compare([Store(path) for path in flags.stores], flags.run_name)
    ways = list(dict.fromkeys(one.way for one in compared))
    rows = [_compared_row(one, ways.index(one.way) + 1) for one in compared]
    _print_table([("model", "store", "run", "way", *_SCORE_COLUMNS), *rows])
    for number, (pool, labeller, judges) in enumerate(ways, start=1):
        print(f"way {number}: texts of pool {pool}, labels by {labeller}, votes by {judges}")
    if len(ways) > 1:
        print("scores made in different ways do not compare")
    _print_unsourced(*(one.found for one in compared))
    return 0


def _compared_row(one: Compared, way: int) -> tuple[str, ...]:
    name, *scores = _score_row(one.model, one.found)
    return (name, Path(one.store).name, one.run, f"{way}", *scores)


def _pool(flags: argparse.Namespace, progress: Listener) -> int:
    if flags.answer_tokens is not None:
        raise SettingsError("--answer-tokens has no say here; ask for fewer texts at once with --per-call")
    request = PoolRequest(flags.llm, flags.ask, flags.concepts, flags.per_call)
    asker = asker_of(flags)
    draft = Draft.open(Path(flags.out), request)
    expected = draft.expected(flags.count, asker.endpoint.parallel)
    if flags.dry_run:
        print("later lists are asked for with the texts that are there by then, here x in their place\n")
    if not go_ahead(asker, expected, flags):
        return 0
    # For all rounds together, as it was printed.
    calls, tokens = asker.limits(asker.plan(expected))
    asker = Asker(asker.endpoint, asker.cache, calls, tokens)
    written = write_pool(asker, request, flags.count, flags.out, progress)
    _print_spent(asker)
    print(f"{written.texts:,} texts by {flags.llm} at {asker.endpoint.shown_url} written to {written.path}")
    print(f"the model repeated {written.repeated:,} texts; its raw answers are in {draft.answers_path}")
    return 0
