"""Plots draw the numbers of the results, in the report's colours, and change nothing else of matplotlib."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

import headspan as hs
from headspan.concepts.consistency import ConceptConsistency
from headspan.errors import HeadspanError, SettingsError, StoreError
from headspan.explore.maps.centred_maps import full_colour, sampled
from headspan.plots.axes import fitted, theme_of
from headspan.plots.colours import AGAINST, DARK, FOR, LIGHT, Theme
from headspan.report.maps import overlay
from headspan.spans.result import HeadSpans
from tests.conftest import ToyRun, image_members
from tests.tolerances import relative_error

CONCEPTS = ("animals", "vehicles", "food", "weather")


@pytest.fixture(autouse=True)
def _no_figures() -> Iterator[None]:
    """Close the figures of every test, and use a backend that needs no display."""
    mpl.use("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def spans(toy_store: hs.Store, tmp_path_factory: pytest.TempPathFactory) -> HeadSpans:
    pool = tmp_path_factory.mktemp("pool") / "pool.txt"
    pool.write_text("".join(f"a text with ${number}$\t{CONCEPTS[number % 3]}\n" for number in range(41)))
    return hs.textspan(toy_store, pool, texts_per_head=7)


@pytest.fixture(scope="module")
def ccs(toy_store: hs.Store, spans: HeadSpans) -> ConceptConsistency:
    return hs.concepts.concept_consistency(toy_store, hs.concepts.label_heads(toy_store, spans))


def mesh_of(ax: Axes) -> QuadMesh:
    (mesh,) = (each for each in ax.collections if isinstance(each, QuadMesh))
    return mesh


def rings(ax: Axes) -> set[tuple[int, int]]:
    """Row and column of every head with a ring."""
    points = [each.get_offsets() for each in ax.collections if isinstance(each, PathCollection)]
    return {(int(np.floor(y + 0.5)), int(np.floor(x + 0.5))) for each in points for x, y in np.asarray(each)}


def test_the_grid_shows_every_heads_excess_and_greys_those_not_above_chance(spans: HeadSpans) -> None:
    ax = spans.plot()
    assert spans.null is not None
    drawn, own = spans.null.explained[:, :, :, 4].astype(float), spans.explained[:, :, 4].astype(float)
    excess = own - drawn.mean(axis=0)
    p = (1 + (drawn >= own - 1e-6).sum(axis=0)) / (1 + len(drawn))
    bounds = [0.05, 0.1, 0.2, 0.3]
    levels = np.where(p <= 0.05, 1 + np.searchsorted(bounds, excess, side="right"), 0)
    values = mesh_of(ax).get_array()
    assert values is not None
    assert np.asarray(values).reshape(own.shape).tolist() == levels.tolist()
    words = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in ax.texts}
    for (row, column), value in np.ndenumerate(excess):
        assert int(words[row, column].replace("−", "-")) == round(100 * value)
    assert rings(ax) == set(zip(*np.nonzero(p > 0.05), strict=True))
    assert ax.get_title(loc="left").startswith(f"{int((p <= 0.05).sum())} of {own.size} heads above chance")
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"L{layer}" for layer in spans.layers]


def test_a_run_without_draws_shows_shares_and_says_that_there_is_no_chance(toy_store: hs.Store) -> None:
    spans = hs.textspan(toy_store, [f"text {number}" for number in range(9)], texts_per_head=3, draws=0)
    ax = spans.plot()
    values = mesh_of(ax).get_array()
    assert values is not None
    wanted = np.searchsorted([0.2, 0.4, 0.6, 0.7, 0.8], spans.explained[:, :, 2], side="right")
    assert np.asarray(values).reshape(wanted.shape).tolist() == wanted.tolist()
    assert "no chance" in ax.get_legend().get_title().get_text()  # type: ignore[union-attr]
    assert len(spans.plot(0, 0).lines) == 1


def test_the_curve_of_a_head_stands_beside_the_draws_and_the_ceiling(spans: HeadSpans) -> None:
    ax = spans.plot(2, 1)
    assert spans.null is not None
    drawn = spans.null.explained[:, 2, 1].astype(float)
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}
    np.testing.assert_allclose(lines["the head’s texts"], spans.explained[2, 1], rtol=1e-6)
    np.testing.assert_allclose(lines["chance, mean"], drawn.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(lines["ceiling: random directions"], spans.null.ceiling[2, 1], rtol=1e-6)
    (band,) = ax.collections
    edges = band.get_paths()[0].vertices
    # With forty draws, the 95 % range is from the lowest to the highest, of which a quantile of 41 intervals is taken.
    ordered = np.sort(drawn, axis=0)
    for place in range(7):
        at = edges[edges[:, 0] == place + 1][:, 1]
        assert ordered[0, place] <= at.min() <= ordered[1, place]
        assert ordered[-2, place] <= at.max() <= ordered[-1, place]
    first = spans.texts(2, 1, 1)[0]
    assert ax.get_title(loc="left") == f"L2.H1: “{first}”"
    # Dollar signs are shown, not set as formulas.
    ax.get_figure().canvas.draw()  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match="give both for one head's curve, or neither"):
        spans.plot(2)
    with pytest.raises(SettingsError, match="layer 2, head 9: not in this result"):
        spans.plot(2, 9)


def test_scores_are_drawn_with_the_labels_that_beat_chance(ccs: ConceptConsistency) -> None:
    ax = ccs.plot()
    values = mesh_of(ax).get_array()
    assert values is not None
    assert np.asarray(values).reshape(ccs.scores.shape).tolist() == ccs.scores.tolist()
    assert ccs.chance is not None
    words = [text.get_text() for text in ax.texts]
    for (row, column), p in np.ndenumerate(ccs.chance.p):
        label = ccs.labels.names[row][column] if p < 0.05 else "unlabelled"
        assert words[2 * (row * ccs.scores.shape[1] + column) :][:2] == [f"{ccs.scores[row, column]}", label]
    assert rings(ax) == set(zip(*np.nonzero(ccs.chance.p >= 0.05), strict=True))


def test_counts_of_scores_stand_beside_the_expected_ones(ccs: ConceptConsistency) -> None:
    ax = ccs.plot("score")
    counts = Counter(ccs.scores.ravel().tolist())
    assert [patch.get_height() for patch in ax.patches] == [counts[score] for score in range(6)]
    (marks,) = ax.collections
    assert ccs.chance is not None
    expected = [part.vertices[0, 1] for part in marks.get_paths()]
    np.testing.assert_allclose(expected, ccs.chance.distribution.sum(axis=(0, 1)), atol=1e-12)
    with pytest.raises(SettingsError, match="by 'layer': plot draws by 'head' or by 'score'"):
        ccs.plot("layer")


def test_maps_are_centred_and_scaled_by_a_sample(toy_store: hs.Store) -> None:
    vector = np.random.default_rng(3).standard_normal(toy_store.joint).astype(np.float32)
    maps = hs.explore.head_maps(toy_store, vector, (1, 2), [7, 0, 7])
    assert (maps.images, maps.sample, maps.text) == ((7, 0, 7), 67, None)
    assert maps.keys == tuple(toy_store.samples([7, 0, 7])["key"].to_pylist())

    def dense(image: int) -> np.ndarray:
        patches = toy_store.patches(image, 1)[toy_store.prefix_tokens :, 2].astype(np.float64)
        return (patches @ vector).reshape(4, 4)

    every = np.stack([dense(image) for image in sampled(toy_store)])
    deviation = np.sqrt(every.var(axis=0, ddof=1).mean())
    assert maps.deviation == pytest.approx(deviation, rel=1e-4)
    wanted = (np.stack([dense(7), dense(0), dense(7)]) - every.mean(axis=0)) / deviation
    assert relative_error(maps.deviations, wanted) < 1e-4
    outside = np.abs((every - every.mean(axis=0)) / deviation) > maps.threshold
    assert 0.03 < outside.mean() <= 0.06
    np.testing.assert_allclose(maps.coloured, (np.abs(wanted) > maps.threshold).mean(axis=(1, 2)), atol=1e-6)
    assert repr(maps) == "HeadMaps(L1.H2: 3 images, 4 × 4 patches)"


def test_the_map_of_a_text_is_that_of_its_vector(toy_store: hs.Store) -> None:
    (vector,) = hs.text_vectors(toy_store, ["a cat"])
    by_text = hs.explore.head_maps(toy_store, "a cat", (0, 0), [3])
    np.testing.assert_array_equal(by_text.deviations, hs.explore.head_maps(toy_store, vector, (0, 0), [3]).deviations)
    assert repr(by_text) == "HeadMaps(L0.H0: “a cat”: 1 image, 4 × 4 patches)"


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"images": []}, "the list of images is empty"),
        ({"images": [67]}, "67"),
        ({"head": (0, 7)}, "7"),
        ({"head": (9, 0)}, "9"),
        ({"text": np.ones(5, np.float32)}, r"vectors of shape \(1, 5\): give \[text, 24\]"),
        ({"text": np.zeros(24, np.float32)}, r"the maps of L0\.H0 do not vary; choose another head"),
    ],
)
def test_maps_that_cannot_be_made_are_refused(toy_store: hs.Store, changed: dict[str, object], complaint: str) -> None:
    given = {"text": np.ones(24, np.float32), "head": (0, 0), "images": [0], **changed}
    with pytest.raises(HeadspanError, match=complaint):
        hs.explore.head_maps(toy_store, **given)  # type: ignore[arg-type]


def test_maps_are_drawn_on_one_scale_in_the_colours_of_the_report(toy_store: hs.Store) -> None:
    maps = hs.explore.head_maps(toy_store, "a cat", (1, 2), range(9))
    shown = maps.plot(hs.read_pictures(toy_store, maps.images))
    full = full_colour(list(maps.deviations), maps.threshold)
    assert len(shown) == 9
    for ax, deviations in zip(shown, maps.deviations, strict=True):
        with Image.open(io.BytesIO(overlay(deviations, maps.threshold, full))) as image:
            wanted = np.asarray(image.convert("RGBA"))
        grey, drawn = ax.images
        assert np.asarray(drawn.get_array()).tolist() == wanted.tolist()
        assert (wanted[np.abs(deviations) <= maps.threshold, 3] == 0).all()
        # The picture in grey lies under the map, and both cover the same place.
        assert grey.get_extent() == drawn.get_extent()
    with pytest.raises(SettingsError, match="2 pictures for 9 images: give one for each"):
        maps.plot([np.zeros((4, 4, 3), np.uint8)] * 2)
    figure, axes = plt.subplots(1, 2)
    with pytest.raises(SettingsError, match="ax has 2 for 9 images"):
        maps.plot(ax=axes)
    two = hs.explore.head_maps(toy_store, "a cat", (1, 2), [0, 1])
    assert two.plot(ax=axes, colorbar=False) == list(axes)
    assert len(figure.axes) == 2


def test_pictures_are_the_images_as_the_model_sees_them(toy_store: hs.Store, toy_run: ToyRun, tmp_path: Path) -> None:
    pictures = hs.read_pictures(toy_store, [66, 0, 66])
    assert (pictures[0] == pictures[2]).all()
    for image, picture in ((66, pictures[0]), (0, pictures[1])):
        row = int(toy_store.rows[image])
        _, encoded = image_members([row])[0]
        with Image.open(io.BytesIO(encoded)) as original:
            side = min(original.size)
            left, top = (original.width - side) // 2, (original.height - side) // 2
            square = original.convert("RGB").crop((left, top, left + side, top + side))
        wanted = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)).astype(float)
        assert picture.shape == (32, 32, 3)
        # Compression and the order of cropping and resizing change little; another image differs by far more.
        assert np.abs(picture - wanted).mean() < 12
    assert hs.read_pictures(toy_store, []) == []
    with pytest.raises(HeadspanError, match="67"):
        hs.read_pictures(toy_store, [67])
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w"):
        pass
    with pytest.raises(StoreError, match=r"1 of 1 images cannot be read \(first: .*has changed since"):
        hs.read_pictures(toy_store, [0], shards=[str(other), *map(str, toy_run.shards[1:])])


def test_plots_change_neither_settings_nor_other_figures_and_are_never_shown(
    spans: HeadSpans, ccs: ConceptConsistency, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a plot was shown")

    monkeypatch.setattr(plt, "show", never)
    other, axes = plt.subplots()
    before, backend = dict(mpl.rcParams), mpl.get_backend()
    for ax in (spans.plot(), spans.plot(0, 0), ccs.plot(), ccs.plot("score")):
        assert ax.get_figure() is not other
    assert dict(mpl.rcParams) == before
    assert mpl.get_backend() == backend
    assert not axes.has_data()
    figures = plt.get_fignums()
    assert spans.plot(ax=axes) is axes
    assert axes.has_data()
    assert plt.get_fignums() == figures


@pytest.mark.parametrize(("style", "theme"), [("default", LIGHT), ("dark_background", DARK), ("ggplot", LIGHT)])
def test_colours_follow_the_background(spans: HeadSpans, style: str, theme: Theme) -> None:
    with plt.style.context(style):
        ax = spans.plot()
        ax.get_figure().canvas.draw()  # type: ignore[union-attr]
        drawn = {to_hex(colour) for colour in mesh_of(ax).get_facecolor()}
    assert drawn <= set(theme.levels)
    assert [to_hex(patch.get_facecolor()) for patch in ax.get_legend().get_patches()] == list(  # type: ignore[union-attr]
        theme.levels
    )


def test_a_transparent_background_is_judged_by_what_is_behind_it() -> None:
    for style, theme in (("default", LIGHT), ("dark_background", DARK)):
        with plt.style.context(style):
            figure, ax = plt.subplots()
            ax.patch.set_alpha(0)
            assert theme_of(ax) is theme
            figure.patch.set_alpha(0)
            # Only the colour of words is left to tell.
            assert theme_of(ax) is theme


def luminance(colour: str | tuple[float, float, float]) -> float:
    """The relative luminance of WCAG 2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_levels_differ_in_lightness_and_their_words_can_be_read(theme: Theme) -> None:
    lightness = [luminance(colour) for colour in theme.levels]
    assert lightness in (sorted(lightness), sorted(lightness, reverse=True))
    assert all(contrast(one, other) > 1.1 for one, other in zip(theme.levels, theme.levels[1:], strict=False))
    assert all(contrast(one, other) >= 4.5 for one, other in zip(theme.levels, theme.on_levels, strict=True))
    assert contrast(theme.page, theme.ink) >= 7
    assert contrast(theme.page, theme.soft) >= 4.5


# Machado, Oliveira, Fernandes, 2009: dichromats' view of linear colours.
DICHROMATS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", DICHROMATS)
def test_dichromats_can_tell_for_from_against(kind: str) -> None:
    seen = [
        np.clip(np.array(DICHROMATS[kind]) @ (np.array(colour) / 255) ** 2.2, 0, 1) ** (1 / 2.2)
        for colour in (FOR, AGAINST)
    ]
    assert np.abs(seen[0] - seen[1]).max() > 0.25


def test_the_report_has_the_same_colours() -> None:
    from headspan.report.page import _colour_rules

    rules = _colour_rules()
    light, dark = rules.split("@media")
    for part, theme in ((light, LIGHT), (dark, DARK)):
        assert all(f"--c{level}:{colour}" in part for level, colour in enumerate(theme.levels))
        assert f"--ink:{theme.ink}" in part
    assert f"--for:{FOR[0]} {FOR[1]} {FOR[2]}" in light


def test_words_that_do_not_fit_are_cut() -> None:
    assert fitted("backgrounds", 2.0, 8.0) == "backgrounds"
    assert fitted("backgrounds", 0.5, 8.0) == "backgro…"
    assert fitted("ab", 0.1, 8.0) == "a…"


def test_without_matplotlib_the_error_says_what_to_install(
    spans: HeadSpans, ccs: ConceptConsistency, toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = hs.explore.head_maps(toy_store, "a cat", (0, 0), [0])
    for name in [name for name in sys.modules if name == "matplotlib" or name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    for plot in (spans.plot, lambda: spans.plot(0, 0), ccs.plot, lambda: ccs.plot("score"), maps.plot):
        with pytest.raises(HeadspanError, match=r"needs matplotlib, .*; pip install 'headspan\[plot\]'"):
            plot()


def test_analyses_do_not_import_matplotlib() -> None:
    code = (
        "import sys, headspan as hs; hs.textspan, hs.write_report, hs.read_pictures, hs.explore.head_maps, "
        "hs.concepts.concept_consistency; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
