"""Studies as plots and in the report: every number is where it belongs, and everything is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jinja2 import Environment, FunctionLoader

from headspan.errors import SettingsError
from headspan.prune.choice.groups import HeadGroup
from headspan.prune.studies.effects import GroupEffect, TaskEffects
from headspan.prune.studies.statistics import Interval, RankCorrelation
from headspan.prune.studies.study_plan import HeadSet
from headspan.prune.studies.study_result import Study
from headspan.report.page import _templates
from headspan.report.pruning import pruned_study

SETS = (
    HeadSet("group", "high", ((1, 0),)),
    HeadSet("random", "high", ((1, 1),)),
    HeadSet("random", "high", ((1, 2),)),
    *(HeadSet("single", f"L{layer}.H{head}", ((layer, head),)) for layer in range(2) for head in range(3)),
)
ATTACK = "<script>alert(1)</script>"


def effects(name: str = "pets") -> TaskEffects:
    return TaskEffects(
        name=name,
        title="Pets",
        metric="accuracy",
        headline="accuracy",
        higher_is_better=True,
        store="s.zarr",
        images=100,
        items=80,
        whole={"accuracy": 0.9, "chance": 0.25},
        values=(0.5, 0.8, 0.9, 0.9, 0.9, 0.9, 0.5, 0.8, 0.9),
        lost=(40, 10, 0, 0, 0, 0, 40, 10, 0),
        gained=(0,) * 9,
        groups={"high": GroupEffect({"accuracy": 0.5}, Interval(-0.4, -0.5, -0.3))},
        correlations={"loss": RankCorrelation(5, 0.5, 0.25, math.nan, math.nan)},
    )


STUDY = Study(
    "direct",
    "ViT-B-32 openai",
    "general",
    (HeadGroup("high", ((1, 0),)), HeadGroup("low", (), "no head has CCS 0 or 1")),
    SETS,
    (effects(), effects("more")),
    (5, 0, 3, 5, 1, None),
    (None,) * 6,
    1000,
    2,
    0,
    ("low: no head has CCS 0 or 1, so the study goes on without it",),
)


@pytest.fixture(autouse=True)
def _no_figures() -> Iterator[None]:
    """Close the figures of every test, and use a backend that needs no display."""
    mpl.use("agg")
    yield
    plt.close("all")


def test_groups_are_drawn_with_their_intervals_beside_random_heads() -> None:
    ax = STUDY.plot()
    assert [label.get_text().strip() for label in ax.get_yticklabels()] == ["pets", "high", "more", "high"]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == pytest.approx([-40, -40])
    intervals = [line.get_xdata() for line in ax.lines if np.allclose(line.get_xdata(), [-50, -30])]
    assert len(intervals) == 2
    low, high = np.quantile([-10, 0], [0.025, 0.975])
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    assert bars == [pytest.approx((low, high))] * 2
    # The first row is above the others.
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert "percentage points" in ax.get_xlabel()


def test_single_heads_are_drawn_at_their_scores_in_the_colours_of_their_layers() -> None:
    _, given = plt.subplots()
    ax = STUDY.plot("head", task="more", ax=given)
    assert ax is given
    first, second = (each.get_offsets() for each in ax.collections)
    # Heads of two layers stand beside one another; a head without a score is left out.
    assert np.rint(first).tolist() == [[5, 0], [0, 0], [3, 0]]
    assert np.rint(second).tolist() == [[5, 40], [1, 10]]
    assert (first[:, 0] < np.rint(first[:, 0])).all()
    assert (second[:, 0] > np.rint(second[:, 0])).all()
    colours = [tuple(each.get_facecolor()[0]) for each in ax.collections]
    assert sum(colours[0][:3]) > sum(colours[1][:3])


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(SettingsError, match="plot draws by 'group' or by 'head'"):
        STUDY.plot("layer")
    with pytest.raises(SettingsError, match="task 'cars': the study has pets, more; name one of them"):
        STUDY.plot("head", task="cars")
    with pytest.raises(SettingsError, match="no head has a Concept Consistency Score; run headspan ccs"):
        replace(STUDY, ccs=(None,) * 6).plot("head")
    tasks = tuple(replace(each, values=each.values[:3]) for each in STUDY.tasks)
    with pytest.raises(SettingsError, match="add 'single' to the groups"):
        replace(STUDY, sets=SETS[:3], tasks=tasks, ccs=(), labels=()).plot("head")


def page(study: Study) -> str:
    templates: Environment = _templates()
    assert isinstance(templates.loader, FunctionLoader)
    shown = (pruned_study("mine", study),)
    return templates.get_template("pruning.html").render(studies=shown, remark_length=2000)


def test_the_report_has_a_row_for_each_group_with_its_place_on_the_axis() -> None:
    text = page(replace(STUDY, tasks=(effects(),)))
    (row,) = re.findall(r"<tr><th scope=\"row\">high</th>(.*?)</tr>", text)
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[:2] == ["1", "50.0\u202f%"]
    assert cells[3:] == ["−40.0", "−50.0 to −30.0", "&lt; 0.001", "0.33"]
    # The axis reaches from the interval's end to zero, and 4 % of that beyond both.
    place = 100 * (0.1 + 0.04 * 0.5) / (0.5 + 2 * 0.04 * 0.5)
    assert re.search(r"<b style=\"left:([\d.]+)%", cells[2])[1] == f"{place:.2f}"  # type: ignore[index]
    assert '<th scope="row">chance</th><td>–</td><td>25.0\u202f%</td>' in text
    assert 'class="below">random, same layers</th><td>1</td><td>85.0\u202f%</td>' in text
    assert "80 items of 100 images" in text
    assert "Spearman +0.50 (p 0.25); with the layer as covariate – (p –)" in text
    assert "low: no head has CCS 0 or 1" in text


def test_the_report_shows_single_heads_by_their_scores() -> None:
    text = page(replace(STUDY, tasks=(effects(),)))
    dots = re.findall(r"<i class=\"c(\d)\" style=\"left:([\d.]+)%;top:([\d.]+)%\" title=\"(.*?)\">", text)
    assert [title for *_, title in dots] == [
        *("L0.H0, CCS 5: 0.0", "L0.H1, CCS 0: 0.0", "L0.H2, CCS 3: 0.0", "L1.H0, CCS 5: −40.0", "L1.H1, CCS 1: −10.0")
    ]
    assert {level for level, *_ in dots} == {"1", "5"}
    # What costs most is highest, within the field.
    tops = [float(top) for _, _, top, _ in dots]
    assert min(tops) == tops[3] > 0
    assert max(tops) == tops[0] < 100


def test_names_and_remarks_of_a_study_cannot_run_in_the_report() -> None:
    poisoned = replace(
        effects(),
        title=ATTACK,
        published={"whole": 90.0},
        published_note=ATTACK,
        headline=ATTACK,
        whole={ATTACK: 0.9},
        groups={ATTACK: effects().groups["high"]},
    )
    sets = tuple(replace(each, of=ATTACK) if each.kind == "group" else each for each in SETS)
    text = page(replace(STUDY, sets=sets, tasks=(poisoned,), remarks=(ATTACK,)))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5
