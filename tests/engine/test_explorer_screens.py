"""The explorer's screens of images in a real browser, driven as a user would, against the store's own numbers."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image, ImageDraw

import headspan as hs
from headspan.concepts.labelled_heads import heads_of
from headspan.head_names import head_name
from headspan.store.head_space import Head
from tests.engine.explorer_browser import Page, address, answer, browser, expect, page, scenes
from tests.tolerances import FLOAT16_STORE

__all__ = ["address", "browser", "page", "scenes"]
pytestmark = pytest.mark.browser

TEXT = "a red circle"
# Two of these would be formulas in a spreadsheet.
AWKWARD = ("a red circle", "a blue square", "=1+2", '@a green star, "dotted"')
WHOLE = {"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0}
MAP = "figure.overlay"


@pytest.fixture(scope="module")
def store(scenes: Path) -> hs.Store:
    return hs.open(scenes / "run.zarr")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A picture that is twice as wide as high, with a red disc near its middle; the model sees the middle square."""
    picture = Image.new("RGB", (300, 150), (235, 225, 130))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((160, 40, 220, 100), fill=(215, 30, 40))
    draw.rectangle((10, 60, 60, 110), fill=(20, 60, 200))
    path = tmp_path / "wide.png"
    picture.save(path)
    return path


def asked(page: Page, path: str, **parameters: Any) -> Any:
    """An answer about the store run."""
    return answer(page.address, f"stores/run{path and '/' + path}?{urlencode(parameters, doseq=True)}")


def unit(vector: np.ndarray) -> np.ndarray:
    found = vector.astype(np.float64)
    return np.asarray(found / np.linalg.norm(found))


def drop(tab: Any, path: Path, kind: str) -> None:
    """Drop a file on the page, as from the desktop."""
    tab.get_by_role("heading", level=1).wait_for()
    tab.evaluate(
        """([bytes, name, type]) => {
            const dataTransfer = new DataTransfer();
            const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
            dataTransfer.items.add(new File([content], name, { type }));
            for (const event of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(event, { bubbles: true, cancelable: true, dataTransfer }));
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name, kind],
    )


def opened(page: Page, path: Path) -> str:
    """Drop an image in; return its id."""
    drop(page.tab, path, "image/png")
    page.tab.wait_for_url("**/#/run/image/upload-*")
    return page.place().rsplit("/", 1)[1]


def drawn(page: Page, maps: int = 1) -> None:
    """Wait until maps are shown and nothing is asked for."""
    for place in range(maps):
        page.tab.locator(f"{MAP} figcaption").nth(place).wait_for()
    page.settled()
    busy = page.tab.locator("[aria-busy=true], .loading")
    for _ in range(2):
        # What the page has just been told is asked for when its next picture is drawn.
        page.tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        expect(busy).to_have_count(0)


def pixels(page: Page, place: int = 0) -> np.ndarray:
    """What a canvas shows, as height × width × RGB."""
    encoded = page.tab.locator(f"{MAP} canvas").nth(place).evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(encoded.split(",")[1]))) as picture:
        return np.asarray(picture.convert("RGB"), np.int64)


def signs(picture: np.ndarray, seen: dict[str, float], shape: tuple[int, ...]) -> np.ndarray:
    """1, −1 or 0 for each patch whose middle is orange, blue or grey, if the map lies over the part `seen`."""
    found = np.zeros(shape, np.int64)
    for row, column in np.ndindex(*shape):
        x = seen["left"] + (seen["right"] - seen["left"]) * (column + 0.5) / shape[1]
        y = seen["top"] + (seen["bottom"] - seen["top"]) * (row + 0.5) / shape[0]
        red, _, blue = picture[int(y * len(picture)), int(x * picture.shape[1])]
        found[row, column] = 0 if abs(red - blue) < 8 else 1 if red > blue else -1
    return found


def coloured(values: np.ndarray, full: float, threshold: float) -> np.ndarray:
    """The signs that a map of these values shows."""
    return np.where(np.abs(values) > threshold * full, np.sign(values), 0).astype(np.int64)


def map_of(page: Page, image: int | str, text: str = TEXT, through: str = "all") -> tuple[np.ndarray, float]:
    """A map's values, and its value of full colour."""
    found = asked(page, f"images/{image}/maps", text=text, through=through)
    return np.array(found["maps"][0]["values"]), found["full"]


def rows_in(tab: Any, name: str) -> list[int]:
    """The rows of the images in a list, in order."""
    items = tab.get_by_role("list", name=name, exact=True).locator("li")
    items.nth(11).wait_for()
    return [int(row) for row in items.evaluate_all("items => items.map((item) => item.dataset.row)")]


def requests_of(tab: Any) -> list[str]:
    """The answers and pictures that the page asks for from now on; it asks for the server's state every few seconds."""
    found: list[str] = []

    def note(request: Any) -> None:
        if "/api/" in request.url and not request.url.endswith("/api/status"):
            found.append(request.url)

    tab.on("request", note)
    return found


def nearest(store: hs.Store, vectors: np.ndarray, image: int) -> list[int]:
    """The rows of the twelve images with the largest dot products, without the image itself."""
    order = np.argsort(-(vectors @ vectors[image]), kind="stable")
    return [int(store.rows[each]) for each in order if each != image][:12]


def through(store: hs.Store, heads: Sequence[Head]) -> np.ndarray:
    """Each image's mean contribution through some heads."""
    return np.asarray(np.mean([store.head(*head).astype(np.float64) for head in heads], axis=0))


def test_an_own_picture_leads_to_its_heads_maps_and_neighbours_without_a_further_click(page: Page, wide: Path) -> None:
    tab = page.open("run")
    opened(page, wide)
    drawn(page)
    tab.locator("[data-component]").nth(19).wait_for()
    for column in (1, 2, 3):
        assert len(set(rows_in(tab, f"Nearest: column {column}"))) == 12
    expect(tab.get_by_text("You dropped this image in")).to_be_visible()


def test_a_picture_is_pasted_into_the_screen_that_is_shown(page: Page, wide: Path) -> None:
    label = asked(page, "")["properties"][0]["label"]
    tab = page.open(f"run/property/{label}?text={TEXT}")
    drawn(page, 0)
    tab.evaluate(
        """(bytes) => {
            const clipboardData = new DataTransfer();
            const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
            clipboardData.items.add(new File([content], "pasted.png", { type: "image/png" }));
            const about = { bubbles: true, cancelable: true, clipboardData };
            document.body.dispatchEvent(new ClipboardEvent("paste", about));
        }""",
        base64.b64encode(wide.read_bytes()).decode(),
    )
    tab.wait_for_url("**image=upload-*")
    name = page.place().rsplit("image=", 1)[1]
    drawn(page, 0)
    found = asked(page, "neighbours", image=name, through=f"label:{label}")
    assert rows_in(tab, "Nearest: through the property") == [hit["row"] for hit in found["hits"]]


def test_a_picture_is_chosen_with_the_keyboard(page: Page, wide: Path) -> None:
    tab = page.open("run/image")
    # Once somebody listens, Chromium asks the test for files instead of the user.
    tab.on("filechooser", lambda chooser: chooser.set_files(wide))
    drawn(page, 0)
    tab.get_by_role("button", name="Choose an image").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/#/run/image/upload-*")


def test_a_file_that_is_no_image_is_refused_in_a_sentence(page: Page, tmp_path: Path) -> None:
    page.allow_refusals()
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    tab = page.open("run")
    drop(tab, notes, "text/plain")
    message = tab.get_by_role("status").filter(has=tab.get_by_role("button", name="Close"))
    message.wait_for()
    assert "image" in message.inner_text()
    message.get_by_role("button", name="Close").click()
    message.wait_for(state="detached")
    assert page.place() == "run"


def test_the_bars_are_those_of_the_store_and_sum_to_the_cosine(page: Page, store: hs.Store) -> None:
    (vector,) = hs.text_vectors(store, [TEXT])
    cosine = float(unit(vector) @ unit(store.embedding[3]))
    tab = page.open(f"run/image/3?text={TEXT}")
    tab.get_by_role("button", name="Show all 44").click()
    read = "bars => bars.map((bar) => [bar.dataset.component, Number(bar.dataset.value)])"
    bars = dict(tab.locator("[data-component]").evaluate_all(read))
    assert len(bars) == 44
    assert sum(bars.values()) == pytest.approx(cosine, abs=FLOAT16_STORE)
    # The page's own sum, in words, is of the very numbers that it draws.
    assert float(tab.locator("[data-sum]").get_attribute("data-sum")) == pytest.approx(sum(bars.values()), abs=1e-12)
    said = tab.locator("[data-sum], [data-cosine]").all_inner_texts()
    assert f"{sum(bars.values()):+.4f}".replace("-", "−") in said[0]
    assert said[1] == f"{cosine:+.4f}".replace("-", "−")
    dense = store.head(5, 2)[3].astype(np.float64) @ unit(vector)
    assert bars["L5.H2"] == pytest.approx(dense, abs=FLOAT16_STORE)
    # The same components in groups: six heads and an MLP.
    tab.get_by_role("button", name="By layer").click()
    tab.get_by_role("button", name="layer 5", exact=True).click()
    of_layer = dict(tab.get_by_role("list", name="Components by layer").locator("[data-component]").evaluate_all(read))
    assert set(of_layer) == {*(f"L5.H{head}" for head in range(6)), "MLP of layer 5"}
    assert page.place().endswith("sort=layer")


def test_a_bar_leads_to_the_map_through_its_head_and_back_returns(page: Page) -> None:
    tab = page.open(f"run/image/3?text={TEXT}&opacity=1")
    drawn(page)
    whole = pixels(page)
    bar = tab.get_by_role("button", name="Maps through L5.H0")
    bar.click()
    drawn(page)
    assert tab.get_by_label("The map goes through").input_value() == "L5.H0"
    assert bar.get_attribute("aria-pressed") == "true"
    values, full = map_of(page, 3, through="L5.H0")
    np.testing.assert_array_equal(signs(pixels(page), WHOLE, values.shape), coloured(values, full, 0.2))
    tab.go_back()
    drawn(page)
    np.testing.assert_array_equal(pixels(page), whole)


def test_the_map_lies_over_what_the_model_saw_of_a_wide_picture(page: Page, wide: Path) -> None:
    tab = page.open("run")
    name = opened(page, wide)
    seen = asked(page, f"images/{name}")["seen"]
    assert seen == pytest.approx({"left": 0.25, "top": 0, "right": 0.75, "bottom": 1}, abs=0.01)
    values, full = map_of(page, name)
    threshold = 0.15
    wanted = coloured(values, full, threshold)
    assert 0.05 < np.mean(wanted != 0) < 0.95
    page.open(f"run/image/{name}?text={TEXT}&opacity=1&threshold={threshold}")
    drawn(page)
    picture = pixels(page)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(2, rel=0.02)
    np.testing.assert_array_equal(signs(picture, seen, values.shape), wanted)
    # Beside the square, nothing has a colour.
    beside = picture[:, : int(0.24 * picture.shape[1])]
    assert np.ptp(beside, axis=-1).max() < 8
    expect(tab.get_by_text("the model did not see the shaded part")).to_be_visible()


def test_the_sliders_recolour_the_map_without_a_request(page: Page) -> None:
    tab = page.open(f"run/image/3?text={TEXT}&opacity=1&threshold=0.05")
    drawn(page)
    values, full = map_of(page, 3)
    before = signs(pixels(page), WHOLE, values.shape)
    np.testing.assert_array_equal(before, coloured(values, full, 0.05))
    requests = requests_of(tab)
    slider = tab.get_by_label("Threshold")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 0.1 * box["width"], middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.6 * box["width"], middle, steps=5)
    tab.mouse.up()
    threshold = float(slider.input_value())
    assert 0.5 < threshold < 0.7
    assert f"threshold={threshold:.2f}" in page.place()
    after = signs(pixels(page), WHOLE, values.shape)
    assert (after != before).any()
    np.testing.assert_array_equal(after, coloured(values, full, threshold))
    # Without opacity, only the picture in its colours is left.
    sharp = pixels(page)
    tab.get_by_label("Opacity").fill("0")
    assert np.ptp(pixels(page), axis=-1).max() > 40
    tab.get_by_label("Opacity").fill("1")
    np.testing.assert_array_equal(pixels(page), sharp)
    tab.get_by_label("Smooth between patches").check()
    assert (pixels(page) != sharp).any()
    assert "smooth=1" in page.place()
    assert requests == []


def test_the_value_of_a_patch_is_read_with_the_pointer_and_the_arrow_keys(page: Page) -> None:
    tab = page.open(f"run/image/3?text={TEXT}")
    drawn(page)
    values, _ = map_of(page, 3)
    canvas, said = tab.locator(f"{MAP} canvas"), tab.locator(f"{MAP} figcaption b")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 2.5 / 8, "y": box["height"] * 5.5 / 8})
    tab.get_by_text("Row 6, column 3:").wait_for()
    assert float(said.inner_text().replace("−", "-")) == pytest.approx(values[5, 2], abs=5.1e-5)
    canvas.focus()
    tab.keyboard.press("ArrowRight")
    tab.get_by_text("Row 6, column 4:").wait_for()
    assert float(said.inner_text().replace("−", "-")) == pytest.approx(values[5, 3], abs=5.1e-5)
    high = np.unravel_index(values.argmax(), values.shape)
    assert f"at row {high[0] + 1}, column {high[1] + 1} (" in canvas.get_attribute("aria-label")


def test_two_maps_are_subtracted_on_one_scale_and_swapping_the_texts_swaps_the_colours(page: Page) -> None:
    other = "a blue square"
    tab = page.open(f"run/contrast?image=3&image=8&text={TEXT}&against={other}&opacity=1")
    drawn(page, 2)
    maps = [map_of(page, image)[0] - map_of(page, image, other)[0] for image in (3, 8)]
    wanted = [coloured(each, float(np.quantile(np.abs(np.stack(maps)), 0.99)), 0.2) for each in maps]
    found = [signs(pixels(page, place), WHOLE, (8, 8)) for place in range(2)]
    np.testing.assert_array_equal(found, wanted)
    assert {-1, 0, 1} == set(np.unique(wanted))
    requests = requests_of(tab)
    difference = pixels(page)
    tab.get_by_role("button", name="First text").click()
    assert (pixels(page) != difference).any()
    tab.get_by_role("button", name="Difference").click()
    np.testing.assert_array_equal(pixels(page), difference)
    assert requests == []
    tab.get_by_role("button", name="Swap").click()
    tab.get_by_text(f"“{other}” minus “{TEXT}”").wait_for()
    drawn(page, 2)
    found = [signs(pixels(page, place), WHOLE, (8, 8)) for place in range(2)]
    np.testing.assert_array_equal(found, [-each for each in wanted])
    tab.get_by_role("button", name="Remove image 3").click()
    tab.locator(MAP).nth(1).wait_for(state="detached")
    assert "image=3" not in page.place()


def test_leaving_a_head_out_of_a_property_changes_what_is_near(page: Page, store: hs.Store) -> None:
    labels = [each["label"] for each in asked(page, "")["properties"] if len(each["heads"]) > 1]
    heads = heads_of(store, labels[0])
    tab = page.open(f"run/property/{labels[0]}?image=3")
    everything = rows_in(tab, "Nearest: through the property")
    assert everything == nearest(store, through(store, heads), 3)
    assert len(rows_in(tab, "Nearest: through the whole embedding")) == 12
    left_out = head_name(*heads[0])
    tab.get_by_role("button", name=f"Leave {left_out} out").click()
    fewer = rows_in(tab, f"Nearest: without {left_out}")
    assert fewer == nearest(store, through(store, heads[1:]), 3)
    new = len(set(fewer) - set(everything))
    column = tab.get_by_role("list", name=f"Nearest: without {left_out}")
    expect(column.locator("a.marked")).to_have_count(new)
    expect(tab.get_by_text(f"{new} of 12 are new (framed).")).to_be_visible()
    # One head at a time.
    tab.get_by_role("button", name=f"Leave {head_name(*heads[1])} out").click()
    column.wait_for(state="detached")
    assert page.place().endswith(f"without={head_name(*heads[1])}")
    tab.get_by_role("button", name=f"Take {head_name(*heads[1])} back").click()
    tab.get_by_role("list", name=f"Nearest: without {head_name(*heads[1])}").wait_for(state="detached")


def test_random_heads_are_drawn_again_and_a_text_is_searched_through_a_property(page: Page) -> None:
    label = asked(page, "")["properties"][0]["label"]
    tab = page.open(f"run/property/{label}")
    tab.get_by_label("Text to search").fill(TEXT)
    tab.keyboard.press("Enter")
    found = asked(page, "neighbours", text=TEXT, through=f"label:{label}")
    assert rows_in(tab, "Nearest: through the property") == [hit["row"] for hit in found["hits"]]
    tab.get_by_role("button", name="draw others").click()
    drawn(page, 0)
    names = tab.locator(f"[data-through='random:{label}:1'] a .mono").all_inner_texts()
    heads = asked(page, "neighbours", text=TEXT, through=f"random:{label}:1")["heads"]
    assert names == [head["name"] for head in heads]


def test_two_stores_are_compared_on_their_images(page: Page, scenes: Path) -> None:
    tab = page.open("run/compare?with=bare&image=3")
    tab.get_by_text("240 images are in both stores").wait_for()
    near = []
    for name in ("run", "bare"):
        store = hs.open(scenes / f"{name}.zarr")
        near.append(nearest(store, np.stack([unit(each) for each in store.embedding[:]]), 3))
        assert rows_in(tab, f"Nearest in {name}") == near[-1]
    shared = len(set(near[0]) & set(near[1]))
    expect(tab.get_by_text(f"{shared} of 12 neighbours are shared")).to_be_visible()
    expect(tab.get_by_role("list", name="Nearest in run").locator("a.marked")).to_have_count(shared)
    labels = [each["label"] for each in asked(page, "")["properties"]]
    assert sorted(tab.locator("tbody th").all_inner_texts()) == sorted(labels)


def test_replacing_heads_changes_everything_at_once_and_taking_them_back_restores_it(page: Page) -> None:
    texts = ["a red circle", "a blue square", "a green star"]
    tab = page.open(f"run/what-if/3?{urlencode({'text': texts}, doseq=True)}")
    before = rows_in(tab, "Nearest with all heads")
    drawn(page, 2)
    assert rows_in(tab, "Nearest without the chosen heads") == before
    np.testing.assert_array_equal(pixels(page, 0), pixels(page, 1))
    assert all(len(set(each.split())) == 2 for each in tab.locator("[data-text] .numbers").all_inner_texts())
    # The grid is one stop of the tabulator key; the arrow keys move in it.
    tab.locator("[data-head='L5.H0']").focus()
    for key in ("ArrowDown", "ArrowRight", "Space"):
        tab.keyboard.press(key)
    assert tab.locator("[data-head='L4.H1']").get_attribute("aria-pressed") == "true"
    tab.get_by_role("button", name="Layer 5: all heads").click()
    drawn(page, 2)
    removed = ["L4.H1", *(f"L5.H{head}" for head in range(6))]
    found = asked(page, "what-if/3", without=",".join(removed), text=texts)
    after = [hit["row"] for hit in found["neighbours_after"]["hits"]]
    assert rows_in(tab, "Nearest without the chosen heads") == after
    assert rows_in(tab, "Nearest with all heads") == before
    marked = tab.get_by_role("list", name="Nearest without the chosen heads").locator("a.marked")
    assert marked.count() == len(set(after) - set(before)) > 0
    for each in found["after"]:
        shown = tab.locator(f"[data-text='{each['text']}'] .numbers span").nth(1).inner_text()
        assert shown == f"{100 * each['probability']:.1f} %"
    assert (pixels(page, 0) != pixels(page, 1)).any()
    tab.get_by_role("button", name="Take all back").click()
    drawn(page, 2)
    assert rows_in(tab, "Nearest without the chosen heads") == before
    np.testing.assert_array_equal(pixels(page, 0), pixels(page, 1))


def test_the_accuracy_over_all_images_is_shown_for_a_column_of_their_metadata(page: Page, store: hs.Store) -> None:
    styles = {"blurred": "a blurred picture", "grainy": "a grainy picture", "outlined": "an outlined shape"}
    embeddings = np.stack([unit(each) for each in store.embedding[:]])
    vectors = np.stack([unit(each) for each in hs.text_vectors(store, list(styles.values()))])
    truth = [json.loads(each)["style"] for each in store.samples()["metadata"].to_pylist()]
    known = np.array([style in styles for style in truth])
    right = (embeddings @ vectors.T).argmax(axis=1) == [
        list(styles).index(each) if each in styles else -1 for each in truth
    ]
    tab = page.open(f"run/what-if/3?{urlencode({'text': list(styles.values())}, doseq=True)}&without=L5.H2")
    tab.get_by_label("Classes of the images").select_option("style")
    said = tab.get_by_text(f"of {known.sum()} images get the right text")
    said.wait_for()
    before = f"{100 * right[known].mean():.1f} %"
    after = asked(page, "what-if/accuracy", text=list(styles.values()), without="L5.H2", column="style")["after"]
    assert said.locator("b").all_inner_texts() == [before, f"{100 * after:.1f} %"]
    tab.get_by_role("button", name="Compare its 6 values").click()
    drawn(page, 2)
    assert set(tab.locator("[data-text] .text").all_inner_texts()) == set(truth)


def test_an_image_whose_shard_is_gone_shows_what_the_store_holds(page: Page, scenes: Path) -> None:
    page.allow_refusals()
    shards = (scenes / "shards").rename(scenes / "moved")
    try:
        tab = page.open(f"run/image/77?text={TEXT}&opacity=1")
        drawn(page)
        assert tab.get_by_role("alert").first.inner_text().startswith("the picture cannot be shown")
        tab.locator("[data-component]").nth(19).wait_for()
        values, full = map_of(page, 77)
        np.testing.assert_array_equal(signs(pixels(page), WHOLE, values.shape), coloured(values, full, 0.2))
    finally:
        shards.rename(scenes / "shards")


def test_the_page_says_that_the_model_is_loading_and_goes_on_by_itself(page: Page) -> None:
    page.allow_refusals()
    refused: list[str] = []
    sentence = "the model is being loaded; ask again in a moment"

    def loading(route: Any) -> None:
        if refused:
            route.fallback()
        else:
            refused.append(route.request.url)
            route.fulfill(status=503, json={"error": sentence, "kind": "model_loading"})

    page.tab.route("**/bars?*", loading)
    tab = page.open("run/image/3?text=a green star")
    tab.get_by_text(sentence).wait_for()
    tab.locator("[data-component]").first.wait_for()
    assert len(refused) == 1


def test_downloads_are_what_is_shown_and_no_cell_is_a_formula(page: Page) -> None:
    tab = page.open(f"run/image/3?{urlencode({'text': TEXT, 'texts': AWKWARD}, doseq=True)}")
    drawn(page)

    def saved(group: str, kind: str) -> bytes:
        with tab.expect_download() as download:
            tab.get_by_role("group", name=group).get_by_role("button", name=kind).click()
        assert download.value.suggested_filename.endswith(f".{kind.lower()}")
        return Path(download.value.path()).read_bytes()

    table = list(csv.DictReader(io.StringIO(saved("Download run texts 3", "CSV").decode("utf-8-sig"))))
    found = asked(page, "images/3/zero-shot", text=AWKWARD)
    assert [row["text"] for row in table] == [f"'{text}" if text[0] in "=@" else text for text in AWKWARD]
    assert [float(row["cosine"]) for row in table] == [each["cosine"] for each in found]
    assert [each["text"] for each in json.loads(saved("Download run texts 3", "JSON"))] == list(AWKWARD)
    bars = json.loads(saved("Download run bars 3", "JSON"))
    assert bars == asked(page, "images/3/bars", text=TEXT)
    with Image.open(io.BytesIO(saved("Download run map 3", "PNG"))) as picture:
        # The picture, and the legend below it.
        assert picture.format == "PNG"
        assert picture.height > picture.width == 1024


@pytest.mark.parametrize(
    "place",
    [
        f"run/image/3?text={TEXT}",
        f"run/contrast?image=3&image=8&text={TEXT}&against=a blue square",
        "run/property",
        "run/property/shapes?image=3",
        "run/compare?with=bare&image=3",
        "run/what-if/3?without=L5.H0",
        "run/image",
        "run/image/999",
    ],
)
def test_a_screen_fits_a_phone_and_names_what_it_holds(page: Page, place: str) -> None:
    page.allow_refusals()
    page.tab.set_viewport_size({"width": 400, "height": 800})
    tab = page.open(place)
    drawn(page, 0)
    assert page.wide() <= 0
    unnamed = tab.evaluate(
        """[...document.querySelectorAll("main :is(button, a, input, select, textarea, canvas)")]
             .filter((one) => !one.closest("[aria-hidden=true]"))
             .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length
                                || one.querySelector("img")?.alt))
             .map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
