"""The explorer's page, driven by a browser: its map of heads, a head, a text, a selection; and its build's record."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headspan as hs
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.errors import counted
from headspan.features.saved import read_scores
from headspan.features.uses.edit_result import EditedImage
from headspan.features.uses.saved import read_use
from tests.engine.explorer_browser import STATIC, Page, address, answer, browser, expect, page, scenes
from tests.engine.hand_made_descriptions import ROWS
from tools.build_page import RECORD, checksum_of_api, checksum_of_sources

__all__ = ["address", "browser", "page", "scenes"]
BUILD = "python -m tools.build_page"


def test_the_built_page_is_as_new_as_its_sources() -> None:
    assert RECORD.exists(), f"the page is not built; run {BUILD}"
    record = json.loads(RECORD.read_text())
    assert record["sources"] == checksum_of_sources(), f"the page's sources changed since it was built; run {BUILD}"
    assert record["api"] == checksum_of_api(), f"the HTTP API changed since the page was built; run {BUILD}"


def test_the_built_page_asks_no_other_server_and_has_no_inline_scripts() -> None:
    index = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", index) == []
    assert re.findall(r"\b(?:src|href)=\"(?!\./)", index) == []
    assert "style=" not in index


@pytest.mark.browser
def test_three_clicks_lead_from_the_first_screen_to_where_a_head_sees_stripes(page: Page, scenes: Path) -> None:
    tab = page.open()
    tab.get_by_role("combobox", name="Search heads").fill("stripes")
    tab.get_by_role("option", name=re.compile("Which heads carry")).click()
    best = answer(page.address, "stores/run/texts?text=stripes")["heads"][0]
    first = tab.get_by_role("table").get_by_role("link").first
    assert first.inner_text().split() == [best["name"], best["label"]]
    assert best["label"] == "textures"
    first.click()
    top = answer(page.address, f"stores/run/heads/{best['name']}/extremes?text=stripes&count=1")["top"][0]
    scene = json.loads(hs.open(scenes / "run.zarr").samples()["metadata"][top["row"]].as_py())
    assert "striped" in [each["texture"] for each in scene["objects"]]
    tab.get_by_role("list", name=re.compile("highest")).get_by_role("link").first.click()
    tab.get_by_role("heading", name="Where", exact=True).wait_for()
    assert page.place() == f"run/image/{top['row']}?text=stripes&through={best['name']}"
    page.settled()
    tab.locator("canvas").first.wait_for()


@pytest.mark.browser
def test_the_map_shows_every_head_and_arrow_keys_move_over_it(page: Page) -> None:
    tab = page.open("run")
    grid = tab.get_by_role("grid", name=re.compile("Heads by layer"))
    heads = answer(page.address, "stores/run/grid")["heads"]
    expect(grid.get_by_role("gridcell")).to_have_count(len(heads))
    for head in heads[-3:]:
        assert head["label"] in (grid.locator(f"[data-head='{head['name']}']").get_attribute("aria-label") or "")
    # The last layer is on top.
    grid.locator("[data-head='L5.H0']").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        tab.keyboard.press(key)
    assert tab.evaluate("document.activeElement.dataset.head") == "L4.H2"
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", level=1, name=re.compile("L4.H2")).wait_for()
    assert page.place().startswith("run/head/L4.H2")


@pytest.mark.browser
def test_colours_of_the_map_are_in_the_address_and_back_returns_to_them(page: Page) -> None:
    tab = page.open("run")
    cell = tab.locator("[data-head='L2.H0']")
    cell.wait_for()
    before = cell.evaluate("node => getComputedStyle(node).backgroundColor")
    tab.get_by_text("Variance share", exact=True).first.click()
    assert page.place() == "run?colour=variance"
    assert cell.evaluate("node => getComputedStyle(node).backgroundColor") != before
    share = next(head for head in answer(page.address, "stores/run/grid")["heads"] if head["name"] == "L2.H0")
    assert f"{100 * share['variance_share']:.1f} %" in (cell.get_attribute("aria-label") or "")
    tab.go_back()
    assert page.place() == "run"
    assert cell.evaluate("node => getComputedStyle(node).backgroundColor") == before


@pytest.mark.browser
def test_a_head_shows_its_texts_with_what_they_explain_and_the_images_along_them(page: Page, scenes: Path) -> None:
    tab = page.open("run/head/L4.H3")
    rows = tab.get_by_role("table").first.locator("tbody tr")
    rows.first.wait_for()
    spans = hs.spans.read_spans(hs.open(scenes / "run.zarr"))
    texts = list(spans.texts(4, 3))
    assert [row.get_by_role("button").inner_text() for row in rows.all()] == texts
    explained = f"{100 * spans.explained[spans.layers.index(4), 3, 1]:.1f} %"
    assert explained in rows.nth(1).inner_text()
    rows.nth(1).get_by_role("button").click()
    page.settled()
    highest = tab.get_by_role("list", name=f"Images with the highest scores along {texts[1]}")
    scores = hs.open(scenes / "run.zarr").head(4, 3) @ text_vector(scenes, texts[1])
    wanted = np.argsort(-scores, kind="stable")[:5]
    found = [link.get_attribute("href") for link in highest.get_by_role("link").all()[:5]]
    assert [int(re.search(r"image/(\d+)", href or "")[1]) for href in found] == wanted.tolist()  # type: ignore[index]


def text_vector(scenes: Path, text: str) -> np.ndarray:
    found = hs.texts.text_vectors(hs.open(scenes / "run.zarr"), [text])
    return np.asarray(found[0], np.float64)


@pytest.mark.browser
def test_a_click_on_the_plane_opens_the_image_there_and_encircled_ones_become_a_selection(page: Page) -> None:
    tab = page.open("run/head/L4.H3")
    canvas = tab.get_by_role("application")
    canvas.scroll_into_view_if_needed()
    page.settled()
    rows, xy = points(page.address, "L4.H3")
    box = canvas.bounding_box()
    x0, x1, y0, y1 = answer(page.address, "stores/run/planes/L4.H3")["extent"]
    per_pixel = 1.06 * max((x1 - x0) / box["width"], (y1 - y0) / box["height"])
    pixels = (xy - [(x0 + x1) / 2, (y0 + y1) / 2]) / per_pixel * [1, -1] + [box["width"] / 2, box["height"] / 2]
    # The point that is farthest from all others, so that no other one is meant.
    distances = np.linalg.norm(pixels[:, None] - pixels[None], axis=2) + np.where(np.eye(len(pixels)), 1e9, 0)
    alone = int(distances.min(axis=1).argmax())
    canvas.click(position={"x": pixels[alone, 0], "y": pixels[alone, 1]})
    page.wait_until("location.hash.includes('image/')")
    assert page.place() == f"run/image/{rows[alone]}?through=L4.H3"
    tab.go_back()

    canvas.scroll_into_view_if_needed()
    page.settled()
    tab.get_by_role("button", name="Encircle").click()
    left, top, right, bottom = 0.3 * box["width"], 20, 0.62 * box["width"], 0.5 * box["height"]
    box = canvas.bounding_box()
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top + 1)]
    tab.mouse.move(box["x"] + left, box["y"] + top)
    tab.mouse.down()
    for x, y in corners:
        tab.mouse.move(box["x"] + x, box["y"] + y, steps=8)
    tab.mouse.up()
    inside = ((pixels > [left, top]) & (pixels < [right, bottom])).all(axis=1)
    near = (np.abs(pixels - [left, top]) < 1.5) | (np.abs(pixels - [right, bottom]) < 1.5)
    tab.get_by_role("heading", level=1, name="Selection").wait_for()
    page.settled()
    shown = int(tab.get_by_role("heading", name=re.compile(r"^\d+ images?$")).inner_text().split()[0])
    assert abs(shown - inside.sum()) <= near.any(axis=1).sum()
    assert 3 < shown < len(rows)


def points(address: str, of: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and places of every point of a plane, as the HTTP API describes them."""
    rows, places = [], []
    for part in range(answer(address, f"stores/run/planes/{of}")["parts"]):
        content = answer(address, f"stores/run/planes/{of}/points?part={part}")
        count = int(np.frombuffer(content, "<u4", 1)[0])
        rows.append(np.frombuffer(content, "<u4", count, 4))
        places.append(np.frombuffer(content, "<f4", 2 * count, 4 + 4 * count).reshape(2, count).T)
    return np.concatenate(rows), np.concatenate(places)


@pytest.mark.browser
@pytest.mark.parametrize("webgl", [True, False])
def test_points_take_the_colours_of_their_category_with_webgl_and_without(page: Page, webgl: bool) -> None:
    if not webgl:
        page.tab.add_init_script(
            "const get = HTMLCanvasElement.prototype.getContext;"
            "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
            "  return kind === 'webgl2' ? null : get.call(this, kind, ...rest);"
            "};"
        )
    tab = page.open("run/head/L4.H3?by=column:style")
    legend = tab.get_by_role("list", name="Categories")
    legend.wait_for()
    canvas = tab.get_by_role("application")
    canvas.scroll_into_view_if_needed()
    page.settled()
    if webgl:
        # A graphics driver that starts anew takes the context away and gives another one.
        tab.evaluate(
            "async () => {"
            "  const canvas = document.querySelector('[role=application]');"
            "  const lose = canvas.getContext('webgl2').getExtension('WEBGL_lose_context');"
            "  lose.loseContext();"
            "  await new Promise(resolve => setTimeout(resolve, 100));"
            "  lose.restoreContext();"
            "  await new Promise(resolve => setTimeout(resolve, 200));"
            "}"
        )
    swatches = legend.locator("i").evaluate_all("nodes => nodes.map(node => getComputedStyle(node).backgroundColor)")
    assert len(swatches) > 3
    seen = colours(canvas.screenshot())
    for swatch in swatches:
        wanted = np.array([int(number) for number in re.findall(r"\d+", swatch)[:3]])
        # Points are blended with what lies below them.
        assert np.abs(seen - wanted).max(axis=1).min() < 48, swatch


def colours(screenshot: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(screenshot)) as image:
        return np.unique(np.asarray(image.convert("RGB"), np.int64).reshape(-1, 3), axis=0)


@pytest.mark.browser
def test_a_selection_is_that_of_the_captions_and_shows_what_heads_say_about_it(page: Page, scenes: Path) -> None:
    tab = page.open("run/selection")
    tab.get_by_label("Caption has the word").fill("striped")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Remove the word striped").wait_for()
    page.settled()
    captions = hs.open(scenes / "run.zarr").samples()["caption"].to_pylist()
    striped = sum("striped" in re.findall(r"\w+", caption) for caption in captions)
    expect(tab.get_by_role("heading", name=f"{striped} images")).to_be_visible()
    assert page.place() == "run/selection?words=striped"
    expect(tab.get_by_role("grid").get_by_role("gridcell")).to_have_count(36)


@pytest.mark.browser
def test_features_are_filtered_by_a_bar_a_class_and_words_and_lead_to_what_activates_one(
    page: Page, scenes: Path
) -> None:
    scores = read_scores(scenes / "run.zarr")
    tab = page.open("run/features")
    table = tab.get_by_role("table")
    classes = tab.get_by_role("list", name="Classes of features")
    for title, number in (("Image-dominant", 2), ("Cross-modal", 1), ("Text-dominant", 0), ("Undecided", -1)):
        count = int((scores.class_by_spread == number).sum())
        assert f"{title} {count} " in " ".join(classes.get_by_role("button", name=title).inner_text().split())

    numbers = table.locator("tbody .name .mono")

    def shows(features: Any) -> None:
        expect(numbers).to_have_text([str(each) for each in features])

    # The table begins with the features that are active in most pairs.
    shows(np.argsort(-scores.active, kind="stable")[:50])
    # The arrow keys move over the bars, and Enter chooses one.
    bars = tab.get_by_role("toolbar", name="Features by MDS").get_by_role("button")
    high = int(np.nanargmax(scores.mds))
    bar = int(scores.mds[high] * bars.count())
    bars.first.focus()
    for _ in range(bar):
        tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    inside = (scores.mds >= bar / 40) & (scores.mds < (bar + 1) / 40)
    shows(sorted(np.flatnonzero(inside).tolist(), key=lambda each: -scores.active[each]))
    assert page.place() == f"run/features?low={bar / 40:g}&high={(bar + 1) / 40:g}"
    assert bars.nth(bar).get_attribute("aria-pressed") == "true"
    assert f": {counted(int(inside.sum()), 'feature')}, image-dominant; " in bars.nth(bar).get_attribute("aria-label")
    tab.get_by_role("button", name="Show all features").click()
    classes.get_by_role("button", name="Text-dominant").click()
    tab.get_by_role("columnheader", name="MDS").get_by_role("button").click()
    chosen = np.flatnonzero(scores.class_by_spread == 0)
    chosen = chosen[np.argsort(-scores.mds[chosen])]
    shows(chosen)
    # The names of a feature are "text NUMBER" and "<b>NUMBER</b>"; no caption has an angle bracket.
    tab.get_by_role("searchbox", name="Search features").fill("4</B>")
    wanted = [each for each in chosen.tolist() if each % 10 == 4]
    shows(wanted)
    tab.reload()
    shows(wanted)
    with tab.expect_download() as download:
        tab.get_by_role("group", name="Download run features hand").get_by_role("button", name="CSV").click()
    rows = Path(download.value.path()).read_text("utf-8-sig").splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == wanted

    each = wanted[0]
    table.get_by_role("link", name=f"{each} text {each}", exact=True).click()
    tab.get_by_role("heading", level=1, name=f"{each} text {each}").wait_for()
    page.settled()
    assert page.place() == f"run/feature/{each}"
    images = tab.get_by_role("list", name="Images with the largest codes").locator("li")
    assert [int(row) for row in images.evaluate_all("all => all.map(one => one.dataset.row)")] == (
        scores.top_images[each].tolist()
    )
    assert images.first.inner_text().strip() == f"{scores.top_image_codes[each, 0]:.3f}"
    captions = hs.open(scenes / "run.zarr").samples()["caption"].to_pylist()
    said = tab.get_by_role("list", name="Captions with the largest codes").locator("bdi").all_inner_texts()
    assert said == list(dict.fromkeys(captions[index] for index in scores.top_captions[each]))
    # Names are texts, whatever they hold.
    assert tab.get_by_role("list", name="Nearest texts").locator("bdi").all_inner_texts()[1] == f"<b>{each}</b>"
    assert f"{100 * scores.mds[each]:.0f} % of the two codes together" in tab.get_by_role("table").inner_text()
    images.first.get_by_role("link").click()
    tab.get_by_role("link", name="Features it activates most").click()
    assert page.place() == f"run/features?image={scores.top_images[each, 0]}"
    among = np.flatnonzero((scores.top_images == scores.top_images[each, 0]).any(axis=1)).tolist()
    shows(sorted(among, key=lambda each: -scores.active[each]))

    # Saved uses stand below the list, one at a time, with their controls.
    page.open("run/features")
    tab.get_by_role("button", name="2 saved uses below").click()
    rows = tab.get_by_role("table", name="Use probe").locator("tbody tr")
    expect(rows).to_have_count(2)
    assert rows.nth(1).locator("td").all_inner_texts()[1].strip() == "as many random features"
    expect(tab.get_by_text("a <b> remark.")).to_be_visible()
    tab.get_by_role("group", name="Saved use").get_by_text("swap").click()
    nearest = tab.get_by_role("list", name="Nearest images").locator("li")
    expect(nearest).to_have_count(3)
    edited = read_use(scenes / "run.zarr", "swap")
    assert isinstance(edited, EditedImage)
    assert [
        int(row) for row in nearest.evaluate_all("all => all.map(one => one.dataset.row)")
    ] == edited.images.tolist()
    assert page.place() == "run/features?use=swap"


@pytest.mark.browser
def test_a_store_without_features_and_a_feature_that_is_not_there_say_what_to_do(page: Page) -> None:
    page.allow_refusals()
    tab = page.open("bare/features")
    tab.get_by_text("has no scores of features").wait_for()
    expect(tab.get_by_role("button", name=re.compile("headspan features train .*bare.zarr"))).to_be_visible()
    page.open("run/feature/999")
    assert "features go from 0 to 66" in tab.get_by_role("alert").inner_text()
    tab.get_by_role("link", name="See all features").click()
    tab.get_by_role("heading", level=1, name="Features").wait_for()


@pytest.mark.browser
def test_descriptions_are_filtered_by_a_class_and_a_verdict_and_stand_beside_those_of_a_head(page: Page) -> None:
    tab = page.open("run/descriptions")
    listed = tab.get_by_role("table").last.locator("tbody .text bdi")
    expect(listed).to_have_text([ROWS[each][0] for each in (1, 3, 0, 2, 4)])
    tab.get_by_role("list", name="Verdicts").get_by_role("button", name=re.compile("^Visual 12 67 %")).click()
    expect(listed).to_have_text([ROWS[3][0], ROWS[0][0]])
    tab.get_by_role("button", name="ball", exact=True).first.click()
    expect(listed).to_have_text([ROWS[0][0]])
    assert page.place() == "run/descriptions?verdict=visual&class=ball"
    # Pictures of the class lead to its images.
    tab.get_by_role("link", name="Image 0", exact=True).wait_for()
    tab.get_by_role("combobox", name="Run beside it", exact=True).select_option("of-head")
    figures = tab.get_by_role("table").first
    expect(figures.locator("tbody tr").first.locator("td.beside")).to_have_text("7.25")
    tab.get_by_role("button", name="Show all descriptions").click()
    tab.get_by_role("searchbox", name="Search descriptions").fill("<b>")
    # Descriptions are texts, whatever they hold.
    expect(listed).to_have_text([ROWS[2][0]])
    page.open("run/head/L4.H3").get_by_role("link", name="What it wants to hear").click()
    tab.get_by_text("Rewarded for: L4.H3").wait_for()


@pytest.mark.browser
def test_a_page_that_is_left_open_shows_results_that_are_added_to_its_store(page: Page, scenes: Path) -> None:
    tab = page.open("bare")
    cell = tab.locator("[data-head='L5.H1']")
    cell.wait_for()
    assert "no label" in cell.get_attribute("aria-label")
    tab.mouse.wheel(0, 120)
    page.wait_until("scrollY > 50")
    before = tab.evaluate("scrollY")
    store = hs.open(scenes / "bare.zarr")
    hs.textspan(store, "world", texts_per_head=5, layers=store.layers[-4:], draws=0, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    labels = hs.concepts.read_labels(store)
    tab.locator("[data-head='L5.H1']:not([aria-label*='no label'])").wait_for()
    assert labels.name(5, 1) in cell.get_attribute("aria-label")
    assert tab.evaluate("scrollY") == before


@pytest.mark.browser
def test_the_colours_that_the_user_chose_are_kept(page: Page) -> None:
    tab = page.open("run")
    button = tab.get_by_role("button", name=re.compile("Colours"))
    button.wait_for()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    for _ in range(2):
        button.click()
    dark = tab.evaluate(ground)
    assert dark != light
    tab.reload()
    button.wait_for()
    assert tab.evaluate(ground) == dark


@pytest.mark.browser
def test_places_that_are_not_there_say_what_to_do(page: Page) -> None:
    page.allow_refusals()
    tab = page.open("run/head/L9.H0")
    assert "stored are layers" in tab.get_by_role("alert").inner_text()
    page.open("nowhere")
    tab.get_by_text("There is no store “nowhere” here.").wait_for()
    page.open("run/nothing")
    tab.get_by_text("There is no screen “nothing”.").wait_for()
    page.open("run/selection?words=striped&words=striped")
    tab.get_by_role("button", name="Remove the word striped").wait_for()
    expect(tab.get_by_role("button", name="Remove the word striped")).to_have_count(1)
    page.open("run/text?text=" + "many%20" * 300)
    tab.get_by_text("The text is longer than the model reads").wait_for()


@pytest.mark.browser
@pytest.mark.parametrize(
    "place",
    [
        "run",
        "run/head/L4.H3",
        "run/text?text=stripes",
        "run/selection?words=striped",
        "run/features?class=cross-modal",
        "run/feature/4",
        "run/descriptions?beside=of-head",
    ],
)
def test_screens_fit_a_phone_and_name_what_they_show(page: Page, place: str) -> None:
    page.tab.set_viewport_size({"width": 400, "height": 800})
    tab = page.open(place)
    tab.get_by_role("heading", level=1).wait_for(state="attached")
    page.settled()
    assert page.wide() == 0
    assert unnamed(tab) == []


def unnamed(tab: Any) -> list[str]:
    """Images without a text, and controls without a name."""
    found: list[str] = tab.evaluate(
        "() => [...document.querySelectorAll('img:not([alt]), button, a, input, select')]"
        ".filter(node => node.tagName === 'IMG' || !(node.getAttribute('aria-label') || node.textContent.trim()"
        " || node.labels?.length || node.querySelector('img[alt]')?.alt))"
        ".map(node => node.outerHTML.slice(0, 120))"
    )
    return found
