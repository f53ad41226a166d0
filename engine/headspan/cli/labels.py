"""The commands that label and score heads: `label` and `ccs`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from math import isnan
from typing import TypeVar

from headspan.cli.commands import Section
from headspan.cli.exports import Table, export, export_flags, only_export
from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.llm_flags import (
    add_asking_flags,
    asker_of,
    asking_group,
    go_ahead,
    print_spent,
    refuse_asking_flags,
    value_of,
)
from headspan.cli.magnitudes import variance_in_words
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.shared_flags import overwrite_flag, run_flag, store_argument
from headspan.cli.tables import SCORE_COLUMNS, label_cells, print_table, print_unsourced, score_row, with_chance
from headspan.cli.terminal import say, say_row
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.examples import read_examples
from headspan.concepts.labels import Labels, label_heads, spans_of
from headspan.concepts.llm_judges import judge_heads, missing_votes, open_ballot
from headspan.concepts.llm_labels import label_by_model, label_questions, open_label_questions
from headspan.concepts.nulls import CHANCE_COLUMNS, LEVEL, ConsistencyChance, consistency_chance
from headspan.errors import SettingsError, StoreError, counted
from headspan.head_names import head_name
from headspan.spans.saved import read_spans
from headspan.store.head_space import Head
from headspan.store.magnitudes import Magnitudes
from headspan.store.reader import Store
from headspan.store.results import runs

_SHOWN_CONCEPTS = 12
_LONGEST_NAME = 60
T = TypeVar("T")


def add_labels(section: Section) -> None:
    """Add `label` and `ccs`."""
    label = section.add(
        "label",
        _label,
        "headspan label run.zarr",
        "The label is the concept that most of the head's first texts have in the pool, or the answer of a language "
        "model (--llm).",
    )
    store_argument(label)
    result = label.add_argument_group("result")
    run_flag(result)
    overwrite_flag(result, "scores")
    head_flag(result)
    export_flags(label)
    asking = asking_group(label)
    asking.add_argument(
        "--llm", metavar="MODEL", help="the model that labels (default: none; labels are the pool's concepts)"
    )
    asking.add_argument(
        "--examples",
        action="append",
        metavar="FILE",
        help="a TOML file of labelled heads to show the model after headspan's own examples; may be repeated",
    )
    add_asking_flags(label, asking)

    ccs = section.add(
        "ccs",
        _ccs,
        "headspan ccs run.zarr --judge gpt-4o --dry-run",
        "The Concept Consistency Score of a head is the number of its first five texts that match its label, according "
        "to the concepts of the pool, or to language models that vote (--judge).",
    )
    store_argument(ccs)
    result = ccs.add_argument_group("result")
    run_flag(result)
    overwrite_flag(result)
    head_flag(result)
    export_flags(ccs)
    result.add_argument(
        "--by-layer", action="store_true", help="write the table by layer to --csv, --json or --parquet, not by head"
    )
    asking = asking_group(ccs)
    asking.add_argument(
        "--judge",
        action="append",
        metavar="MODEL",
        help="a model that votes; may be repeated (default: none; votes follow the pool's concepts)",
    )
    asking.add_argument(
        "--add", action="store_true", default=None, help="keep the votes of the other judges, and add these"
    )
    add_asking_flags(ccs, asking)


def _label(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    store = Store(flags.store)
    chosen_heads(flags.heads, store.layers, store.heads_per_layer)
    if flags.llm is None:
        refuse_asking_flags(flags, "--llm", "examples")
        labels, unsaved = saved_or_not(lambda: label_heads(store, flags.run_name, flags.overwrite, progress, save=True))
    else:
        examples = read_examples(flags.examples or ())
        asker, answer_tokens = asker_of(flags), int(value_of(flags, "answer_tokens"))
        spans = read_spans(store, flags.run_name)
        questions = label_questions(spans, flags.llm, examples, answer_tokens)
        wanted = _open_questions(lambda overwrite: open_label_questions(store, spans, questions, overwrite), flags)
        if not go_ahead(asker, list(wanted.values()), flags):
            return 0
        given = (flags.llm, flags.run_name, examples, answer_tokens, progress, flags.overwrite)
        labels, unsaved = saved_or_not(lambda: label_by_model(store, asker, *given, save=True))
        print_spent(asker)
    spans = spans_of(store, labels)
    chance = consistency_chance(spans, labels)
    heads = chosen_heads(flags.heads, labels.layers, len(labels.names[0]))
    magnitudes = store.magnitudes(images=spans.selection)
    unknown = {name: [None] * labels.labelled.size for name in CHANCE_COLUMNS}
    table = Table({**labels._columns(), **(chance.columns() if chance else unknown)})
    if not export(flags, Table.of_heads(table, heads, magnitudes)):
        _print_labels(labels, chance, heads, magnitudes)
    tell_unsaved(unsaved)
    return 0


def _print_labels(
    labels: Labels, chance: ConsistencyChance | None, heads: Sequence[Head], magnitudes: Magnitudes
) -> None:
    say(f"labels by {labels.source}")
    for layer, head in heads:
        magnitude = variance_in_words(magnitudes, layer, head)
        say_row(head_name(layer, head), *label_cells(labels, chance, layer, head), magnitude)
    if labels.free:
        _print_merged(labels)
    _print_chance(labels, chance)


def _print_chance(labels: Labels, chance: ConsistencyChance | None) -> None:
    """How many heads beat chance beside the expected number, or why chance is not known."""
    if chance is None:
        say("chance is not known, since labels or votes do not follow from the pool's concepts")
        return
    beating = with_chance(int(chance.beating().sum()), chance.expected_beating())
    say(
        f"labelled {beating} of {counted(chance.p.size, 'head')}, at p < {LEVEL}; in brackets: the expected number by "
        "chance"
    )
    say(chance.about_p)
    say("p is adjusted for the number of heads after Benjamini and Hochberg")


def _open_questions(opened: Callable[[bool], T], flags: argparse.Namespace) -> T:
    """The questions to ask, from `opened(overwrite)`.

    A dry run shows them even if the store has other results, for which the command itself would need --overwrite.
    """
    try:
        return opened(flags.overwrite)
    except StoreError:
        if not flags.dry_run:
            raise
        return opened(True)


def _print_merged(labels: Labels) -> None:
    joined: dict[str, set[str]] = {}
    for names, concepts in zip(labels.names, labels.concepts, strict=True):
        for name, concept in zip(names, concepts, strict=True):
            if name is not None and concept is not None:
                joined.setdefault(concept, set()).add(name)
    for concept, names_of_one in sorted(joined.items()):
        if len(names_of_one) > 1:
            say(f"labels counted as one: {', '.join(sorted(names_of_one))} (as {concept})")
    without = sum(name is None for row in labels.names for name in row)
    if without:
        say(f"heads without a label: {without} (no texts, or no usable answer)")


def _ccs(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    store = Store(flags.store)
    chosen_heads(flags.heads, store.layers, store.heads_per_layer)
    if flags.by_layer and not (flags.csv or flags.json or flags.parquet):
        raise SettingsError("--by-layer: chooses the table for a file; name the file with --csv, --json or --parquet")
    if flags.by_layer and flags.heads:
        raise SettingsError("--by-layer and --head: a table by layer has no heads; leave one out")
    if not flags.judge:
        refuse_asking_flags(flags, "--judge", "add")
    run: str | Labels | None = flags.run_name
    unsaved = None
    if not runs(store, "labels"):
        if flags.dry_run:
            raise SettingsError(f"{store.path}: no head has a label yet; run headspan label, then this command again")
        labels, unsaved = saved_or_not(lambda: label_heads(store, flags.run_name, on_progress=progress, save=True))
        run = run if unsaved is None else labels
    saving = unsaved is None
    if flags.judge:
        asker, answer_tokens = asker_of(flags), int(value_of(flags, "answer_tokens"))
        given = (run, bool(flags.add), answer_tokens)
        asked = _open_questions(
            lambda overwrite: open_ballot(store, flags.judge, *given, overwrite, saving), flags
        ).open
        if not go_ahead(asker, [one for questions in asked.values() for one in questions.values()], flags):
            return 0
        found, not_saved = saved_or_not(
            lambda: judge_heads(store, asker, flags.judge, *given, progress, flags.overwrite, save=saving)
        )
        print_spent(asker)
    else:
        found, not_saved = saved_or_not(lambda: concept_consistency(store, run, flags.overwrite, progress, save=saving))
    heads = chosen_heads(flags.heads, found.labels.layers, found.scores.shape[1])
    magnitudes = store.magnitudes(images=spans_of(store, found.labels).selection)
    if not export(flags, found.by_layer() if flags.by_layer else Table.of_heads(found, heads, magnitudes)):
        _print_scores(found, heads, magnitudes)
    tell_unsaved(unsaved or not_saved)
    return 0


def _print_scores(found: ConceptConsistency, heads: Sequence[Head], magnitudes: Magnitudes) -> None:
    labels, chance = found.labels, found.chance
    for layer, head in heads:
        cells = label_cells(labels, chance, layer, head)
        say_row(head_name(layer, head), found.score(layer, head), *cells, variance_in_words(magnitudes, layer, head))
    say(f"labels by {labels.source}")
    say(f"votes by {found.votes.source}")
    for judge, missing in missing_votes(found).items():
        if missing:
            say(f"{judge} gave no usable vote on {counted(missing, 'text')}; run the same command to ask again")
    _print_chance(labels, chance)
    expected = chance.expected if chance else {}
    say(", ".join(f"{name} {with_chance(count, expected.get(name))}" for name, count in found.groups.items()))
    say("  ".join(f"CCS@{k} {share:.3f}" for k, share in enumerate(found.at_k)))
    if chance is not None:
        say("  ".join(f"CCS@{k} {share:.3f}" for k, share in enumerate(chance.expected_at_k)) + "  by chance")
    _print_ccr(found)
    by_concept = found.heads_per_concept if chance is None else _beating_per_concept(labels, chance)
    shown = list(by_concept.items())[:_SHOWN_CONCEPTS]
    left = len(by_concept) - len(shown)
    each = ", ".join(f"{name} {count}" for name, count in shown) or "none"
    say(f"heads per label: {each}" + f", {left} more" * (left > 0))
    rows = [score_row("all", found), *(score_row(f"L{layer}", found.layer(layer)) for layer in labels.layers)]
    print_table([("layer", *SCORE_COLUMNS), *rows])
    print_unsourced(found)


def _print_ccr(found: ConceptConsistency) -> None:
    if isnan(found.ccr):
        say("CCR undefined, because no head is high (CCS 5)")
        return
    high = found.groups["high"]
    expected = found.chance.expected_ccr(high) if found.chance else float("nan")
    by_chance = "" if isnan(expected) else f" ({expected:.3f} for {counted(high, 'high head')} by chance)"
    say(f"CCR {found.ccr:.3f}{by_chance}")


def _beating_per_concept(labels: Labels, chance: ConsistencyChance) -> dict[str, int]:
    """How many heads that beat chance have each label, most common first, then by name."""
    beating = zip((name for row in labels.concepts for name in row), chance.beating().ravel().tolist(), strict=True)
    counts = Counter(name for name, beats in beating if beats and name is not None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
