"""Print a study: a table for each task, and sentences that say what was measured."""

from __future__ import annotations

import math

from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import counted, percent
from headspan.head_names import head_name
from headspan.prune.studies.effects import TaskEffects, is_share, places
from headspan.prune.studies.study_result import Study
from headspan.prune.studies.study_tables import study_rows

# The smallest p that is printed.
_LEAST_P = 1e-4
_NAMES = {
    "random": "  random, same layers",
    "unmatched": "  random, any layer",
    "equal": "equal numbers",
    "equal in layer": "equal in each layer",
}
_METHODS = {
    "direct": "direct effect: the heads' contributions to the embedding are at their means over images",
    "total": "total effect: the heads' output is zero in the live model, so later layers feel it",
}


def print_study(found: Study) -> None:
    """Print every task: the whole model, each group with its random heads, and equal numbers."""
    for task in found.tasks:
        _print_task(found, task)
        say()
    say(f"{_METHODS[found.mode]}; model {found.model}" + (f"; scores of run {found.scores}" if found.scores else ""))
    if places(found.sets, "group"):
        say(
            f"interval: 95 %, over {counted(found.samples, 'bootstrap sample')} of the items, drawn in pairs with the "
            "whole model; p: McNemar's exact test of items that became wrong and right"
        )
    if any(each.kind != "single" and each.kind != "group" for each in found.sets):
        say(
            f"random rows: mean and 95 % range over sets of as many heads, {found.draws} where there are so many; "
            "p random: share of sets that cost at least as much as the group, which counts as one of them"
        )
    for note in dict.fromkeys(each.published_note for each in found.tasks if each.published_note):
        say(f"published: {note}")
    for remark in found.remarks:
        say(f"note: {remark}")
    if found.older:
        say(f"note: of an older {found.older}")


def _print_task(found: Study, task: TaskEffects) -> None:
    say(f"{task.name}: {task.title}" if task.title else task.name)
    known = bool(task.published)
    columns = ["heads", task.headline, "change", "interval", "lost", "gained", "p", "p random"]
    rows = []
    for row in study_rows(found.sets, [task]):
        rows.append(
            (
                _name(row["kind"], row["of"]),
                f"{row['heads'] or '-'}",
                _value(task.headline, row["value"]),
                _signed(task, row["change"]),
                _range(task, row.get("change_low"), row.get("change_high")),
                *("-" if row.get(name) is None else f"{row[name]}" for name in ("lost", "gained")),
                *(_p(row.get(name)) for name in ("p", "p_random")),
                *([_published(row.get("published"))] if known else []),
            )
        )
        if row["kind"] == "whole" and task.chance is not None:
            chance = _value(task.headline, task.chance)
            rows.append(("chance", "-", chance, *("-" for _ in rows[0][3:])))
    print_table([("", *columns, *(["published"] if known else [])), *rows])
    others = task.other_figures
    if others and task.groups:
        shown = [("", *others), ("whole", *(_value(name, task.whole[name]) for name in others))]
        shown += [
            (name, *(_value(each, effect.figures[each]) for each in others)) for name, effect in task.groups.items()
        ]
        print_table(shown)
    items = "" if task.items == task.images else f"{counted(task.items, 'item')} of "
    say(f"{items}{counted(task.images, 'image')} of {task.store}")
    for measure, each in task.correlations.items():
        say(
            f"CCS and the {measure} without one head, over {counted(each.heads, 'head')}: Spearman {_rho(each.rho)} (p "
            f"{_p(each.p)}); with the layer as covariate {_rho(each.within_layers)} (p {_p(each.p_within_layers)})"
        )


def print_single_heads(found: Study) -> None:
    """Print the heads that were removed alone, for each task those first that cost most."""
    single = places(found.sets, "single")
    for task in found.tasks:
        say(f"{task.name}: {task.headline} {_value(task.headline, task.whole[task.headline])} with all heads")
        margins = task.margin_losses
        order = sorted(
            range(len(single)),
            key=lambda number: (
                task.sign * task.change(single[number]),
                0 if margins is None else -margins[number],
            ),
        )
        rows = []
        for number in order:
            test = task.mcnemar(single[number])
            rows.append(
                (
                    head_name(*found.sets[single[number]].heads[0]),
                    found.labels[number] or "-",
                    "-" if found.ccs[number] is None else f"{found.ccs[number]}",
                    _value(task.headline, task.values[single[number]]),
                    _signed(task, task.change(single[number])),
                    *(("-", "-", "-") if test is None else (f"{test.lost}", f"{test.gained}", _p(test.p))),
                    *([] if margins is None else [f"{margins[number]:+.4f}"]),
                )
            )
        columns = ["head", "label", "CCS", task.headline, "change", "lost", "gained", "p"]
        print_table([(*columns, *([] if margins is None else ["margin loss"])), *rows])
        say()
    say(_METHODS[found.mode])


def print_greedy(found: Study) -> None:
    """Print the heads that were removed one after the other, and each task's headline after each of them."""
    for task in found.tasks:
        if task.greedy is not None:
            say(f"{task.name}: {task.headline} {_value(task.headline, task.whole[task.headline])} with all heads")
            rows = [
                (f"{step}", head_name(layer, head), _value(task.headline, value))
                for step, (layer, head, value) in enumerate(task.greedy, 1)
            ]
            print_table([("step", "head", task.headline), *rows])
            say()
    say(f"each step removes the head that costs least beside those before it; {_METHODS['direct']}")


def print_every_set(found: Study) -> None:
    """Print every set of heads with what each task scores without it."""
    rows = [
        (
            _name(each.kind, each.of).strip(),
            *(_value(task.headline, task.values[place]) for task in found.tasks),
            ",".join(head_name(*head) for head in each.heads),
        )
        for place, each in enumerate(found.sets)
    ]
    whole = ("whole", *(_value(task.headline, task.whole[task.headline]) for task in found.tasks), "")
    names = (f"{task.name} {task.headline}" for task in found.tasks)
    print_table([("", *names, "heads"), whole, *rows], words=1)


def _name(kind: str, of: str) -> str:
    if kind in ("group", "whole"):
        return of or kind
    return f"{_NAMES[kind]}: {of}" if kind.startswith("equal") else _NAMES.get(kind, of)


def _value(figure: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return percent(value) if is_share(figure) else f"{value:.3f}"


def _signed(task: TaskEffects, change: float | None) -> str:
    if change is None or math.isnan(change):
        return "-"
    shown = f"{100 * change:+.1f}" if task.is_share else f"{change:+.3f}"
    # Neither +0.0 nor -0.0.
    return shown if shown.strip("+-0.") else shown[1:]


def _range(task: TaskEffects, low: float | None, high: float | None) -> str:
    return "-" if low is None or math.isnan(low) else f"{_signed(task, low)} to {_signed(task, high)}"


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"< {_LEAST_P:g}" if value < _LEAST_P else f"{value:.2g}"


def _rho(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _published(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
