"""Results of uses of features in words: the tables and sentences that the command line and the report show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headspan.errors import counted, percent
from headspan.features.uses.attack_result import UNTARGETED, AttackRow, AttackStudy
from headspan.features.uses.bias_result import BiasProbe, BiasRow
from headspan.features.uses.edit_result import EditedImage, EditRow, EditStudy
from headspan.features.uses.use import Use

_RANDOM = "  as many random features"
_BIAS_KINDS = {
    "untouched": "untouched",
    "reconstruction": "all features",
    "class": "without {}",
    "random": _RANDOM,
}
# More groups are not shown, since their table would be too wide to read.
_GROUPS = 8
_EDIT_KINDS = {"source": "the source", "donor": "the donor", "class": "{} taken", "random": _RANDOM}


@dataclass(frozen=True, slots=True)
class UseTable:
    """A table: what it is about, empty where it needs no words, and its rows, the head first."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    # The places among the rows of random features.
    controls: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class UseInWords:
    """A result in words."""

    tables: tuple[UseTable, ...]
    # Sentences about how the numbers came about, and what limits them; without a full stop.
    notes: tuple[str, ...]
    remarks: tuple[str, ...]


def in_words(found: Use) -> UseInWords:
    """The tables and sentences of a result."""
    if isinstance(found, BiasProbe):
        tables, notes = [_bias_table(found)], [_bias_note(found)]
    elif isinstance(found, AttackStudy):
        tables, notes = list(_attack_tables(found)), [_attack_note(found)]
    elif isinstance(found, EditStudy):
        tables, notes = [_edits_table(found)], [_edits_note(found)]
    else:
        assert isinstance(found, EditedImage), type(found)
        tables, notes = list(_edit_tables(found)), [_edit_note(found)]
    return UseInWords(tuple(tables), tuple(notes), found.remarks)


def _bias_table(found: BiasProbe) -> UseTable:
    others = [name for name in found.rows[0].figures if name not in (found.headline, "chance", *_groups(found))]
    shown = [*others, *(_groups(found) if len(_groups(found)) <= _GROUPS else ())]
    head = ("read by", "images", "features", "energy", "lost", found.headline, "change", "interval", "p", *shown)
    rows: list[tuple[str, ...]] = [head]
    for each in found.rows:
        change = each.change
        rows.append(
            (
                each.reader,
                _BIAS_KINDS[each.kind].format(each.removed),
                f"{each.features:,}",
                percent(each.energy),
                f"{each.lost:.3f}",
                percent(each.figures[found.headline]),
                f"{100 * change.value:+.1f}",
                f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
                "-" if each.p_random is None else f"{each.p_random:.2f}",
                *(percent(each.figures[name]) for name in shown),
            )
        )
    return UseTable("", tuple(rows), _controls(found.rows))


def _bias_note(found: BiasProbe) -> str:
    return (
        f"{counted(found.test_images, 'test image')}, {counted(found.train_images, 'image')} trained the probes; "
        f"residual {found.residual}; changes in points, with the 95 % interval over test images, and for random "
        f"features the range over sets, whose energy is that of the class within {percent(found.tolerance, 0)}; p is "
        "the share of random sets that cost at least as much"
        + (
            f"; figures of {groups} groups are in the exported table"
            if (groups := len(_groups(found))) > _GROUPS
            else ""
        )
    )


def _groups(found: BiasProbe) -> list[str]:
    """The names of groups of images, whose accuracies are figures; a group is named by its class and its values."""
    return [name for name in found.rows[0].figures if ", " in name]


def _attack_tables(found: AttackStudy) -> Iterator[UseTable]:
    for goal in dict.fromkeys(each.goal for each in found.rows):
        attacked = [row for row in found.rows if row.goal == goal]
        what = "named rightly" if goal == UNTARGETED else "named as the attack wants"
        rows: list[tuple[str, ...]] = [
            ("classifier", "features", "energy", "level", "clean", "noise", "transferred", "adaptive", "interval")
        ]
        for each in attacked:
            rows.append(
                (
                    f"  as many random, {each.classifier}" if each.kind == "random" else each.classifier,
                    f"{each.features:,}" if each.features else "-",
                    percent(each.energy),
                    f"{255 * each.epsilon:.3g}",
                    *(percent(share) for share in (each.clean, each.noise, each.transferred, each.adaptive.value)),
                    f"{percent(each.adaptive.low)} to {percent(each.adaptive.high)}",
                )
            )
        yield UseTable(f"{goal}: share of images {what}", tuple(rows), _controls(attacked))


def _attack_note(found: AttackStudy) -> str:
    return (
        f"{counted(found.images, 'image')}; {counted(found.steps, 'step')} of {found.step_share:.3g} ε, "
        f"{counted(found.restarts, 'random start')}; residual {found.residual}; 95 % intervals over images, and for "
        "random features the range over sets"
    )


def _edits_table(found: EditStudy) -> UseTable:
    rows: list[tuple[str, ...]] = [
        ("neighbours of", "factor", "source's value", "donor's value", "range", "all images", "pairs")
    ]
    for each in found.rows:
        ends = (
            "-"
            if each.donor_low is None or each.donor_high is None
            else (f"{percent(each.donor_low)} to {percent(each.donor_high)}")
        )
        rows.append(
            (
                _EDIT_KINDS[each.kind].format(each.exchanged),
                each.factor,
                percent(each.source),
                percent(each.donor),
                ends,
                percent(each.donor_base),
                f"{each.pairs}",
            )
        )
    return UseTable("", tuple(rows), _controls(found.rows))


def _edits_note(found: EditStudy) -> str:
    return (
        f"{counted(found.pairs, 'pair')}, donors are {found.donors}, {counted(found.neighbours, 'neighbour')} each; "
        "shares of neighbours that have the source's and the donor's value of a factor in which both differ; residual "
        f"{found.residual}"
    )


def _edit_tables(found: EditedImage) -> Iterator[UseTable]:
    neighbours = zip(found.keys, found.images.tolist(), found.scores.tolist(), strict=True)
    yield UseTable(
        f"{found.source} with the {found.features} features of {found.donor}",
        (("key", "image", "cosine"), *((key, f"{image}", f"{score:.3f}") for key, image, score in neighbours)),
    )
    if found.factors:
        rows: list[tuple[str, ...]] = [
            ("neighbours with the value of", "source", "donor", "range", "source, all images", "donor, all images")
        ]
        for name, each in found.factors.items():
            bases = _share(each.source_base), _share(each.donor_base)
            rows.append((name, _share(each.source), _share(each.donor), "-", *bases))
            if found.controls:
                drawn = [control.factors[name] for control in found.controls]
                source = [one.source for one in drawn if one.source is not None]
                donor = [one.donor for one in drawn if one.donor is not None]
                ends = f"{percent(min(donor))} to {percent(max(donor))}" if donor else "-"
                rows.append((_RANDOM, _share(_mean(source)), _share(_mean(donor)), ends, *bases))
        yield UseTable("", tuple(rows), tuple(place for place, row in enumerate(rows) if row[0] == _RANDOM))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _edit_note(found: EditedImage) -> str:
    note = f"cosine with the source {found.source_cosine:.3f}, with the donor {found.donor_cosine:.3f}"
    if not found.controls:
        return note
    return (
        f"{note}; random features are the mean of {counted(len(found.controls), 'set')}, with the range of the donor's"
    )


def _controls(rows: Sequence[BiasRow | AttackRow | EditRow]) -> tuple[int, ...]:
    """The places of random features in a table of these rows, behind its head."""
    return tuple(place for place, each in enumerate(rows, 1) if each.kind == "random")


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)
