"""Say in words what scheduling and records of a simulated run cost, as `bench_scheduling` recorded it last."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from benchmarks import bench_scheduling
from benchmarks.measure import latest_lines

BEGIN, END = "   <!-- simulated run: python -m benchmarks.scale -->", "   <!-- end of the simulated run -->"
# The paragraph is part of a list.
_INDENT, _WIDTH = "   ", 120


def with_paragraph(page: str) -> str:
    """The page with its paragraph about the simulated run up to date."""
    before, rest = page.split(BEGIN)
    lines = textwrap.wrap(paragraph(), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END}{rest.split(END)[1]}"])


def paragraph() -> str:
    """What the simulated run took, in one paragraph."""
    line = next(line for (question, _), line in latest_lines().items() if question == bench_scheduling.QUESTION)
    run, opening = line["bucket"], line["opening"]
    tenths, workers = run["tenths"], run["workers"]
    twice = run["computed_twice"]
    return (
        f"A run of {opening['images']:,} images in {run['units']:,} units by {workers} workers was simulated on "
        f"{line['cores']} cores, without arrays (`bench_scheduling`, commit {line['commit']}). From the second to the "
        f"ninth tenth of the run, choosing a unit takes {_range(tenths[1:-1], 'choosing_ms')} ms and "
        f"{_range(tenths[1:-1], 'choosing_requests')} requests, and its records "
        f"{_range(tenths[1:-1], 'committing_requests')} requests, whatever is finished. In the first tenth, choosing "
        f"takes {tenths[0]['choosing_requests']:.1f} requests; in the last, in which workers share what is left, "
        f"{tenths[-1]['choosing_ms']:.1f} ms and {tenths[-1]['choosing_requests']:.1f} requests. "
        f"{f'{twice:,}' if twice else 'No'} units are computed twice. "
        f"A worker joins with {run['start']['requests'] / workers:.1f} "
        f"requests. After the last unit is committed, all workers together need {run['end']['requests']:,} requests. "
        f"An open store takes {opening['seconds']['open']:.2f} s and {opening['bytes'] / 1e6:.1f} MB; all its records, "
        f"which few commands need, {opening['seconds']['records']:.1f} s and {opening['records_bytes'] / 1e6:,.0f} MB."
    )


def _range(tenths: Sequence[Mapping[str, float]], what: str) -> str:
    numbers = [tenth[what] for tenth in tenths]
    return " to ".join(dict.fromkeys(f"{each:.1f}" for each in (min(numbers), max(numbers))))
