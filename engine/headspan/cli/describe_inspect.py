"""The command `describe inspect`: what descriptions teach about their classes, according to judges."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from headspan.cli.commands import described
from headspan.cli.exports import Table, export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.llm_flags import (
    add_asking_flags,
    asker_of,
    asking_group,
    go_ahead,
    print_spent,
    refuse_asking_flags,
    value_of,
)
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.shared_flags import store_argument
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.describe.descriptions.result import UNDECIDED, VERDICTS, Descriptions
from headspan.describe.descriptions.saved import read_descriptions
from headspan.describe.inspecting.ballot import Votes, open_ballot
from headspan.describe.inspecting.comparison import compare_inspections, shown
from headspan.describe.inspecting.inspect_run import inspect, missing_verdicts
from headspan.describe.inspecting.summary import SHARES, InspectionSummary, VerdictShares, inspected, inspection_summary
from headspan.describe.inspecting.verdict import Judge
from headspan.describe.inspecting.verdict_sheet import read_verdict_sheet, write_verdict_sheet
from headspan.errors import SettingsError, counted, percent
from headspan.store import results
from headspan.store.reader import Store

_DETAILS = (
    "Judges say of each text whether it teaches anything about its class (if not, it is spurious), whether that can be "
    "seen in images, and which attribute it is about. The verdict is that of most judges. All votes are saved with the "
    "descriptions. Without a judge, the command shows the saved inspection."
)
_ANNOTATIONS = "annotations"


def add_inspect(parser: Parser, text: str) -> None:
    """Describe `describe inspect`, and add its flags."""
    command = described(parser, text, _inspect, "headspan describe inspect run.zarr --judge gpt-4o --dry-run", _DETAILS)
    store_argument(command)
    command.add_argument(
        "--run", dest="run_name", metavar="RUN", help="which descriptions are meant (default: the only run)"
    )
    judges = command.add_argument_group("judges")
    judges.add_argument(
        "--human", action="append", default=[], metavar="CSV", help="a filled file of --write; may be repeated"
    )
    judges.add_argument(
        "--annotations",
        action="store_true",
        help="judge by what is known of every image, for stores of the image world",
    )
    judges.add_argument("--add", action="store_true", help="keep the votes of the other judges, and add these")
    judges.add_argument("--overwrite", action="store_true", help="replace all votes")
    asking = asking_group(command)
    asking.add_argument(
        "--judge", action="append", default=[], metavar="MODEL", help="a language model that judges; may be repeated"
    )
    add_asking_flags(command, asking)
    people = command.add_argument_group("people's votes")
    people.add_argument("--write", metavar="CSV", help="write descriptions for a person to judge, and do nothing else")
    people.add_argument(
        "--count", type=int, metavar="N", default=100, help="how many texts to write (default: %(default)s)"
    )
    people.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of the choice of texts, and of intervals (0)"
    )
    command.add_argument(
        "--compare", nargs="+", metavar="STORE", help="compare with the inspected descriptions of these stores"
    )
    export_flags(command)


def _inspect(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    store = Store(flags.store)
    if not flags.judge:
        refuse_asking_flags(flags, "--judge")
    descriptions = read_descriptions(store, flags.run_name)
    if flags.write:
        return _write_sheet(flags, descriptions)
    others = _other_judges(flags, store, descriptions)
    people = _people(flags, descriptions)
    unsaved = None
    if flags.judge or others or people:
        given = (bool(flags.add), bool(flags.overwrite), int(value_of(flags, "answer_tokens")))
        asker = None
        if flags.judge:
            asker = asker_of(flags)
            ballot = open_ballot(descriptions, flags.judge, [*others, *people], *given)
            if not go_ahead(asker, ballot.open, flags):
                return 0
        descriptions, unsaved = saved_or_not(
            lambda: inspect(
                *(store, descriptions.run),
                models=flags.judge,
                asker=asker,
                judges=others,
                people=people,
                add=given[0],
                overwrite=given[1],
                answer_tokens=given[2],
                on_progress=progress,
            )
        )
        progress.close()
        if asker is not None and not alone:
            print_spent(asker)
    elif flags.add or flags.overwrite:
        raise SettingsError("--add and --overwrite are about the votes of judges; name one with --judge, --human or "
                            "--annotations")  # fmt: skip
    if flags.compare:
        shown_runs = {(str(store.path), descriptions.run): descriptions, **_inspected_in(flags.compare)}
        compared = compare_inspections([(path, each) for (path, _), each in shown_runs.items()], seed=flags.seed)
        if not export(flags, compared):
            print_table(compared.rows())
            if not compared.comparable:
                say("shares of runs with other classes or judges cannot be compared")
    elif not export(flags, _table(descriptions)):
        _print(inspection_summary(descriptions, seed=flags.seed), descriptions)
    tell_unsaved(unsaved)
    return 0


def _write_sheet(flags: argparse.Namespace, descriptions: Descriptions) -> int:
    if flags.judge or flags.human or flags.annotations or flags.csv or flags.json or flags.parquet:
        raise SettingsError("--write judges nothing; name judges and tables in a second command")
    written = write_verdict_sheet(descriptions, flags.write, flags.count, flags.seed)
    say(
        f"{counted(written, 'text')} written to {flags.write}; write {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]} into "
        "the column verdict, an attribute such as colour beside it, then give the file with --human"
    )
    return 0


def _other_judges(flags: argparse.Namespace, store: Store, descriptions: Descriptions) -> dict[str, Judge]:
    if not flags.annotations:
        return {}
    # Imported here, since most inspections are not of the image world.
    from headspan.world.annotated_judge import annotated_judge

    return {_ANNOTATIONS: annotated_judge(store, descriptions)}


def _people(flags: argparse.Namespace, descriptions: Descriptions) -> dict[str, Votes]:
    """The votes of each person, who is named after the file."""
    names = [Path(path).stem for path in flags.human]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"--human {twice[0]}: two files have this name, which is the judge's; rename one of them")
    return {name: read_verdict_sheet(descriptions, path) for name, path in zip(names, flags.human, strict=True)}


def _inspected_in(stores: list[str]) -> dict[tuple[str, str], Descriptions]:
    """All inspected descriptions of some stores, by store and run. Raises SettingsError for a store without any."""
    found: dict[tuple[str, str], Descriptions] = {}
    for path in stores:
        store = Store(path)
        runs = [read_descriptions(store, run) for run in results.runs(store, "descriptions")]
        own = {(str(store.path), each.run): each for each in runs if each.inspection is not None}
        if not own:
            raise SettingsError(f"--compare {path}: has no inspected descriptions; run headspan describe inspect on it")
        found |= own
    return found


def _table(descriptions: Descriptions) -> Table:
    """A row for each description, with the vote of each judge."""
    inspection = inspected(descriptions)
    votes = {
        f"vote of {judge}": [None if vote == UNDECIDED else VERDICTS[vote] for vote in cast]
        for judge, cast in zip(inspection.judges, inspection.votes.tolist(), strict=True)
    }
    return Table({**descriptions._columns(), **votes})


def _print(found: InspectionSummary, descriptions: Descriptions) -> None:
    inspection = inspected(descriptions)
    say(f"descriptions/{found.run} by {descriptions.model}, rewarded for {descriptions.target}")
    say(f"judged by {', '.join(found.judges)}")
    rows = [("class", "texts", "sampled", *SHARES), _row("all", found.every)]
    print_table([*rows, *(_row(name, shares) for name, shares in found.classes.items())])
    say("shares of sampled descriptions, in brackets 95 % intervals: over classes for all, over questions for a class")
    for verdict, attributes in found.attributes.items():
        say(f"{verdict}: {_listed(attributes)}")
    for pair in found.agreement:
        if not pair.verdicts.pairs:
            say(f"{pair.first} and {pair.second} judged no text in common")
            continue
        same = "" if pair.same_attribute != pair.same_attribute else f", attribute {percent(pair.same_attribute)}"
        say(
            f"{pair.first} and {pair.second}: {counted(pair.verdicts.pairs, 'text')}, verdict "
            f"{percent(pair.verdicts.same)} the same{same}, κ {pair.verdicts.kappa}"
        )
    for judge, missing in missing_verdicts(inspection).items():
        if missing:
            say(f"{judge} gave no verdict on {counted(missing, 'description')}")


def _row(name: str, found: VerdictShares) -> tuple[str, ...]:
    return (name, f"{found.texts:,}", f"{found.times:,}", *(shown(found.shares[share]) for share in SHARES))


def _listed(attributes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in attributes.items()) or "none"
