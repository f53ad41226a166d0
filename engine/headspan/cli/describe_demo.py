"""The flag `describe --demo`: descriptions of the image world by the included models, from start to end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from headspan.cli.progress import ProgressPrinter
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import percent

if TYPE_CHECKING:
    from headspan.describe.descriptions.result import Descriptions
    from headspan.describe.inspecting.summary import InspectionSummary
    from headspan.describe_demo import DescribeDemoResult

OUT = "headspan-describe-demo"
# Classes whose descriptions are printed.
_SHOWN = 3


def describe_demo(out: str, progress: ProgressPrinter) -> int:
    """Run the demo in the folder `out`, and say what it found."""
    # Needs torch and the packages of language models.
    from headspan.describe_demo import run

    began = time.monotonic()
    result = run(out, progress)
    progress.close()
    _print(result)
    say(f"finished in {time.monotonic() - began:.0f} s")
    say(f"open {result.report} in a browser, or run headspan explore {result.store}")
    return 0


def _print(result: DescribeDemoResult) -> None:
    trained, untrained = result.descriptions, result.untrained
    best_of = f"best_of_{result.best_of}"
    columns = ("", "reward", "KL", "spurious", "visual", "non-visual")
    rows = [
        ("untrained", *_figures(untrained, result.untrained_inspected)),
        (best_of.replace("_", " "), *(f"{trained.quality[f'{best_of}_{name}']:.2f}" for name in ("reward", "kl"))),
        ("trained", *_figures(trained, result.inspected)),
        ("best sentence", f"{sum(each.reward for each in result.best) / len(result.best):.2f}"),
    ]
    print_table([columns, *((*row, *[""] * (len(columns) - len(row))) for row in rows)])
    for number, best in enumerate(result.best[:_SHOWN]):
        say(f"{best.name}: untrained {_greedy(untrained, number)!r}, trained {_greedy(trained, number)!r}")
        say(f"  best of the sentences of two values: {best.sentence.text!r}")


def _figures(found: Descriptions, summary: InspectionSummary) -> tuple[str, ...]:
    shares = (percent(summary.every.shares[name].value) for name in ("spurious", "visual", "non-visual"))
    return f"{found.quality['reward']:.2f}", f"{found.quality['kl']:.2f}", *shares


def _greedy(found: Descriptions, number: int) -> str:
    """The greedy answer to the first question about a class."""
    answers = [
        text
        for text, greedy, of in zip(found.texts, found.greedy, found.class_of, strict=True)
        if greedy and of == number
    ]
    return answers[0] if answers else ""
