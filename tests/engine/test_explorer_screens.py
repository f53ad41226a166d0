"""The explorer's screens of images in a real browser, driven as a user would, against the store's own numbers.

The browser is Chromium; without it, or without Playwright, the tests are skipped.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import headspan as hs
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labelled_heads import heads_of
from headspan.concepts.labels import label_heads
from headspan.config import PrecomputeSettings
from headspan.head_names import head_name
from headspan.run.precompute import precompute
from headspan.spans.over_store import textspan
from headspan.world import write_world_shards
from tests.engine.explorer_browser import Browser, open_browser, served

IMAGES = 40
# Two of its texts would be formulas in a spreadsheet.
TEXTS = ("a red circle", "a blue square", "=1+2", "@a green star, dotted")
# A picture that is wider than high; the model sees its middle.
WIDE = (300, 150)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, hs.Store]:
    """The trained reference model and random weights on the same scenes; the shard of the second is gone."""
    folder = tmp_path_factory.mktemp("screens")
    shard = Path(write_world_shards(folder / "shards", IMAGES, 5, images_per_shard=IMAGES, split="held_out"))
    moved = Path(shutil.copy(shard, folder / "moved.tar"))
    found = {}
    for name, path, pretrained in (("run", shard, None), ("other", moved, "random:0")):
        settings = PrecomputeSettings(
            shards=(str(path),),
            out=str(folder / f"{name}.zarr"),
            model="reference",
            pretrained=pretrained,
            layers="all",
            emit=("heads", "patches", "mlps"),
        )
        precompute(settings)
        store = hs.open(settings.out)
        textspan(store, "world", texts_per_head=5, layers=store.layers[-2:], save=True)
        label_heads(store, save=True)
        concept_consistency(store, save=True)
        found[name] = hs.open(settings.out)
    moved.unlink()
    return found


@pytest.fixture(scope="module")
def browser(stores: dict[str, hs.Store]) -> Iterator[Browser]:
    with served([store.path for store in stores.values()]) as address, open_browser(address) as found:
        yield found


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A picture with a red disc right of its middle."""
    picture = Image.new("RGB", WIDE, (235, 225, 130))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((160, 40, 220, 100), fill=(215, 30, 40))
    draw.rectangle((10, 60, 60, 110), fill=(20, 60, 200))
    path = tmp_path / "wide.png"
    picture.save(path)
    return path


def unit(vector: np.ndarray) -> np.ndarray:
    wide = vector.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide))


def pixels(page: Any, place: int = 0) -> np.ndarray:
    """What a canvas shows, as height × width × RGB."""
    width, height, values = page.locator("figure.overlay canvas").nth(place).evaluate(
        """canvas => [canvas.width, canvas.height,
                      [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]]"""
    )
    return np.array(values, np.int64).reshape(height, width, 4)[..., :3]


def signs(picture: np.ndarray, seen: dict[str, float], rows: int, columns: int) -> np.ndarray:
    """1, −1 or 0 for each patch whose middle is orange, blue or grey, if the map lies over the part that was seen."""
    height, width = picture.shape[:2]
    found = np.zeros((rows, columns), np.int64)
    for row in range(rows):
        for column in range(columns):
            x = seen["left"] + (seen["right"] - seen["left"]) * (column + 0.5) / columns
            y = seen["top"] + (seen["bottom"] - seen["top"]) * (row + 0.5) / rows
            red, _, blue = picture[int(y * height), int(x * width)]
            found[row, column] = 0 if abs(red - blue) < 8 else 1 if red > blue else -1
    return found


def expected(values: np.ndarray, full: float, threshold: float) -> np.ndarray:
    return np.where(np.abs(values) > threshold * full, np.sign(values), 0).astype(np.int64)


def rows_in(page: Any, label: str) -> list[int]:
    """The rows of the images in a list, in order."""
    return [int(row) for row in page.get_by_role("list", name=label).locator("li").evaluate_all("all => all.map(one => one.dataset.row)")]


def dropped(page: Any, path: Path, kind: str) -> None:
    """Drop a file on the page, as from the desktop."""
    page.evaluate(
        """([bytes, name, kind]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type: kind }));
            for (const type of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: data }));
        }""",
        [list(path.read_bytes()), path.name, kind],
    )


def drawn(page: Any, count: int = 1) -> None:
    """Wait until maps are shown."""
    for place in range(count):
        page.locator("figure.overlay figcaption").nth(place).wait_for()


def test_an_own_picture_leads_to_its_heads_maps_and_neighbours_without_a_further_click(browser: Browser, wide: Path) -> None:
    with browser.page("run") as page:
        dropped(page, wide, "image/png")
        page.wait_for_url("**/#/run/image/upload-*")
        drawn(page)
        page.locator("[data-component]").first.wait_for()
        assert page.locator("[data-component]").count() >= 20
        page.get_by_role("list", name="Nearest: column 3").locator("li").nth(11).wait_for()
        for column in (1, 2, 3):
            assert len(set(rows_in(page, f"Nearest: column {column}"))) == 12
        assert page.get_by_text("You dropped this image in").count() == 1


def test_a_picture_is_chosen_with_the_keyboard(browser: Browser, wide: Path) -> None:
    with browser.page("run/image") as page:
        page.get_by_role("button", name="Choose an image").focus()
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(wide)
        page.wait_for_url("**/#/run/image/upload-*")


def test_a_file_that_is_no_image_is_refused_in_a_sentence(browser: Browser, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    with browser.page("run", expected=["400"]) as page:
        dropped(page, notes, "text/plain")
        message = page.locator(".toast span")
        message.wait_for()
        assert "image" in message.inner_text()
        page.get_by_role("button", name="Close").click()
        assert not message.is_visible()


def test_the_bars_are_those_of_the_store_and_sum_to_the_cosine(browser: Browser, stores: dict[str, hs.Store]) -> None:
    store, text = stores["run"], "a red circle"
    (vector,) = hs.text_vectors(store, [text])
    cosine = float(unit(vector) @ unit(store.embedding[3]))
    with browser.page(f"run/image/3?text={text}") as page:
        page.get_by_role("button", name="Show all 44").click()
        bars = dict(page.locator("[data-component]").evaluate_all("all => all.map(one => [one.dataset.component, Number(one.dataset.value)])"))
        assert len(bars) == 44
        assert sum(bars.values()) == pytest.approx(cosine, abs=2e-5)
        said = page.locator("[data-sum]").get_attribute("data-sum"), page.locator("[data-cosine]").get_attribute("data-cosine")
        assert [float(each) for each in said] == pytest.approx([cosine, cosine], abs=2e-5)
        assert f"+{cosine:.4f}" in page.locator(".sum").inner_text()
        dense = float(store.head(5, 2)[3].astype(np.float64) @ unit(vector))
        assert bars["L5.H2"] == pytest.approx(dense, abs=2e-5)
        # The same components in groups, whose sums are those of their bars.
        page.get_by_role("button", name="By layer").click()
        page.get_by_role("button", name="layer 5", exact=True).click()
        shown = page.get_by_role("list", name="Components by layer").locator("[data-component]")
        assert shown.count() == 7
        assert page.evaluate("location.hash").endswith("sort=layer")


def test_a_bar_leads_to_the_map_through_its_head(browser: Browser) -> None:
    with browser.page("run/image/3?text=a red circle") as page:
        bar = page.get_by_role("button", name="Maps through L5.H0")
        with page.expect_response("**/maps?*through=L5.H0*") as answer:
            bar.click()
        assert [head["name"] for head in answer.value.json()["heads"]] == ["L5.H0"]
        assert page.get_by_label("The map goes through").input_value() == "L5.H0"
        assert bar.get_attribute("aria-pressed") == "true"
        page.go_back()
        page.wait_for_function("document.querySelector('[aria-label=\"The map goes through\"]').value === 'all'")


def test_the_map_lies_over_what_the_model_saw_of_a_wide_picture(browser: Browser, wide: Path) -> None:
    with browser.page("run") as page:
        dropped(page, wide, "image/png")
        page.wait_for_url("**/#/run/image/upload-*")
        name = page.url.rsplit("/", 1)[1]
        about = browser.answer(f"stores/run/images/{name}")
        # The middle square of a picture that is twice as wide as high.
        assert about["seen"] == pytest.approx({"left": 0.25, "top": 0, "right": 0.75, "bottom": 1}, abs=0.01)
        found = browser.answer(f"stores/run/images/{name}/maps", text="a red circle")
        values = np.array(found["maps"][0]["values"])
        page.goto(f"{browser.address}#/run/image/{name}?text=a red circle&opacity=1&threshold=0.3")
        drawn(page)
        picture = pixels(page)
        assert picture.shape[1] / picture.shape[0] == pytest.approx(2, rel=0.02)
        wanted = expected(values, found["full"], 0.3)
        assert (wanted != 0).any() and (wanted == 0).any()
        np.testing.assert_array_equal(signs(picture, about["seen"], *values.shape), wanted)
        # Beside the square, nothing has a colour.
        beside = picture[:, : int(0.24 * picture.shape[1])]
        assert (beside.max(axis=-1) - beside.min(axis=-1)).max() < 8


def test_the_sliders_recolour_the_map_without_a_request(browser: Browser) -> None:
    with browser.page("run/image/3?text=a red circle&opacity=1&threshold=0.05") as page:
        drawn(page)
        browser.settle(page)
        found = browser.answer("stores/run/images/3/maps", text="a red circle")
        values, whole = np.array(found["maps"][0]["values"]), {"left": 0, "top": 0, "right": 1, "bottom": 1}
        before = signs(pixels(page), whole, *values.shape)
        np.testing.assert_array_equal(before, expected(values, found["full"], 0.05))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        slider = page.get_by_label("Threshold")
        box = slider.bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 0.1 * box["width"], middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], middle, steps=5)
        page.mouse.up()
        threshold = float(slider.input_value())
        assert 0.5 < threshold < 0.7
        page.wait_for_function("location.hash.includes('threshold=0.')")
        after = signs(pixels(page), whole, *values.shape)
        assert (after != before).any()
        np.testing.assert_array_equal(after, expected(values, found["full"], threshold))
        # Without opacity, only the picture is left; with smoothing, patches have no edges.
        page.get_by_label("Opacity").fill("0")
        page.wait_for_function("location.hash.includes('opacity=0.00')")
        plain = pixels(page)
        assert (plain.max(axis=-1) - plain.min(axis=-1)).max() > 40
        page.get_by_label("Opacity").fill("1")
        page.get_by_label("Smooth between patches").check()
        page.wait_for_function("location.hash.includes('smooth=1')")
        assert (pixels(page) != plain).any()
        assert [url for url in asked if not url.endswith("/api/status")] == []


def test_the_value_of_a_patch_is_read_with_the_pointer_and_the_arrow_keys(browser: Browser) -> None:
    with browser.page("run/image/3?text=a red circle") as page:
        drawn(page)
        values = np.array(browser.answer("stores/run/images/3/maps", text="a red circle")["maps"][0]["values"])
        canvas, caption = page.locator("figure.overlay canvas"), page.locator("figure.overlay figcaption b")
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 2.5 / 8, box["y"] + box["height"] * 5.5 / 8)
        page.get_by_text("Row 6, column 3:").wait_for()
        assert float(caption.inner_text().replace("−", "-")) == pytest.approx(values[5, 2], rel=0.01, abs=1e-5)
        canvas.focus()
        page.keyboard.press("ArrowRight")
        page.get_by_text("Row 6, column 4:").wait_for()
        assert float(caption.inner_text().replace("−", "-")) == pytest.approx(values[5, 3], rel=0.01, abs=1e-5)
        assert "8 × 8 patches" in canvas.get_attribute("aria-label")


def test_two_maps_are_subtracted_on_one_scale_and_swapping_the_texts_swaps_the_colours(browser: Browser) -> None:
    query = "image=3&image=8&text=a red circle&against=a blue square&opacity=1"
    with browser.page(f"run/contrast?{query}") as page:
        drawn(page, 2)
        browser.settle(page)
        maps = []
        for image in (3, 8):
            found = browser.answer(f"stores/run/images/{image}/maps", text=["a red circle", "a blue square"])["maps"]
            maps.append(np.array(found[0]["values"]) - np.array(found[1]["values"]))
        full = float(np.quantile(np.abs(np.stack(maps)), 0.99))
        whole = {"left": 0, "top": 0, "right": 1, "bottom": 1}
        for place, values in enumerate(maps):
            np.testing.assert_array_equal(signs(pixels(page, place), whole, 8, 8), expected(values, full, 0.2))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_role("button", name="First text").click()
        page.wait_for_function("location.hash.includes('show=first')")
        page.get_by_role("button", name="Difference").click()
        page.wait_for_function("!location.hash.includes('show=')")
        assert [url for url in asked if "/maps" in url] == []
        page.get_by_role("button", name="Swap").click()
        page.get_by_text("“a blue square” minus “a red circle”").wait_for()
        browser.settle(page)
        for place, values in enumerate(maps):
            np.testing.assert_array_equal(signs(pixels(page, place), whole, 8, 8), -expected(values, full, 0.2))
        page.get_by_role("button", name="Remove image 3").click()
        page.wait_for_function("document.querySelectorAll('figure.overlay').length === 1")


def nearest_rows(store: hs.Store, image: int, heads: list[tuple[int, int]], count: int) -> list[int]:
    """The images whose mean contribution through `heads` has the largest dot product with that of `image`."""
    through = np.mean([store.head(*head).astype(np.float64) for head in heads], axis=0)
    order = [int(each) for each in np.argsort(-(through @ through[image]), kind="stable") if each != image]
    return [int(store.rows[each]) for each in order[:count]]


def test_leaving_a_head_out_of_a_property_changes_what_is_near(browser: Browser, stores: dict[str, hs.Store]) -> None:
    store = stores["run"]
    label, heads = next(
        (label, heads)
        for label in dict.fromkeys(each for each in browser.labels("run"))
        if len(heads := heads_of(store, label)) > 1
    )
    with browser.page(f"run/property/{label}?image=3") as page:
        page.get_by_role("list", name="Nearest: through the property").locator("li").nth(11).wait_for()
        assert rows_in(page, "Nearest: through the property") == nearest_rows(store, 3, heads, 12)
        out = head_name(*heads[0])
        page.get_by_role("button", name=f"Leave {out} out").click()
        name = f"Nearest: without {out}"
        page.get_by_role("list", name=name).locator("li").nth(11).wait_for()
        assert rows_in(page, name) == nearest_rows(store, 3, heads[1:], 12)
        new = set(rows_in(page, name)) - set(rows_in(page, "Nearest: through the property"))
        marked = page.get_by_role("list", name=name).locator("a.marked").count()
        assert marked == len(new)
        assert page.get_by_text(f"{len(new)} of 12 are new").count() == 1
        page.get_by_role("button", name="draw others").click()
        page.wait_for_function("location.hash.includes('seed=1')")
        page.get_by_role("button", name=f"Take {out} back").click()
        page.get_by_role("list", name=name).wait_for(state="detached")


def test_a_text_is_searched_through_a_property(browser: Browser) -> None:
    label = browser.labels("run")[0]
    with browser.page(f"run/property/{label}") as page:
        page.get_by_label("Text to search").fill("a red circle")
        page.keyboard.press("Enter")
        page.get_by_role("list", name="Nearest: through the property").locator("li").nth(11).wait_for()
        found = browser.answer("stores/run/neighbours", text="a red circle", through=f"label:{label}")
        assert rows_in(page, "Nearest: through the property") == [hit["row"] for hit in found["hits"]]


def test_two_stores_are_compared_on_their_images(browser: Browser, stores: dict[str, hs.Store]) -> None:
    with browser.page("run/compare?with=other&image=3", expected=["404"]) as page:
        page.get_by_text(f"{IMAGES} images are in both stores").wait_for()
        near = []
        for name, store in stores.items():
            embedding = np.stack([unit(each) for each in store.embedding[:]])
            order = [int(each) for each in np.argsort(-(embedding @ embedding[3]), kind="stable") if each != 3]
            near.append(order[:12])
            page.get_by_role("list", name=f"Nearest in {name}").locator("li").nth(11).wait_for()
            assert rows_in(page, f"Nearest in {name}") == near[-1]
        shared = set(near[0]) & set(near[1])
        assert page.get_by_text(f"{len(shared)} of 12 neighbours are shared").count() == 1
        assert page.get_by_role("list", name="Nearest in run").locator("a.marked").count() == len(shared)
        assert page.locator("tbody tr").count() == len({*browser.labels("run"), *browser.labels("other")})


def test_replacing_heads_changes_texts_neighbours_and_maps_and_taking_them_back_restores_them(browser: Browser) -> None:
    query = "&".join(f"text={text}" for text in ("a red circle", "a blue square", "a green star"))
    with browser.page(f"run/what-if/3?{query}") as page:
        page.get_by_role("list", name="Nearest with all heads").locator("li").nth(11).wait_for()
        drawn(page, 2)
        browser.settle(page)
        assert rows_in(page, "Nearest with all heads") == rows_in(page, "Nearest without the chosen heads")
        np.testing.assert_array_equal(pixels(page, 0), pixels(page, 1))
        numbers = lambda: page.locator("[data-text] .numbers").all_inner_texts()  # noqa: E731
        assert all(len(set(each.split("\n"))) == 1 for each in numbers())
        # The grid is one stop of the tabulator; the arrow keys move in it.
        page.locator('[data-head="L5.H0"]').focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        assert page.locator('[data-head="L4.H1"]').get_attribute("aria-pressed") == "true"
        page.get_by_role("button", name="Layer 5: all heads").click()
        page.wait_for_function("location.hash.includes('without=')")
        browser.settle(page)
        removed = ",".join(["L4.H1", *(f"L5.H{head}" for head in range(6))])
        found = browser.answer("stores/run/what-if/3", without=removed, text=["a red circle", "a blue square", "a green star"])
        assert rows_in(page, "Nearest without the chosen heads") == [hit["row"] for hit in found["neighbours_after"]["hits"]]
        late = {each["text"]: each["probability"] for each in found["after"]}
        for line in page.locator("[data-text]").all():
            assert line.locator(".numbers span").nth(1).inner_text() == f"{100 * late[line.get_attribute('data-text')]:.1f} %"
        assert (pixels(page, 0) != pixels(page, 1)).any()
        assert page.get_by_text("Replaced: L4.H1").count() == 1
        page.get_by_role("button", name="Take all back").click()
        browser.settle(page)
        np.testing.assert_array_equal(pixels(page, 0), pixels(page, 1))


def test_an_image_whose_shard_is_gone_shows_what_the_store_holds(browser: Browser) -> None:
    with browser.page("other/image/3?text=a red circle", expected=["404"]) as page:
        drawn(page)
        page.get_by_text("moved.tar").first.wait_for()
        assert page.get_by_role("alert").first.inner_text().startswith("the picture cannot be shown")
        assert page.locator("[data-component]").count() >= 20
        values = np.array(browser.answer("stores/other/images/3/maps", text="a red circle")["maps"][0]["values"])
        assert f"{abs(values.sum()):.4f}" in page.locator("figure.overlay figcaption").inner_text()


def test_the_page_says_that_the_model_is_loading_and_goes_on_by_itself(browser: Browser) -> None:
    with browser.page("", expected=["503"]) as page:
        refused: list[str] = []

        def loading(route: Any) -> None:
            if refused:
                route.fallback()
                return
            refused.append(route.request.url)
            sentence = "the model is being loaded; ask again in a moment"
            route.fulfill(status=503, content_type="application/json", body=json.dumps({"error": sentence, "kind": "model_loading"}))

        page.route("**/bars?*", loading)
        page.goto(f"{browser.address}#/run/image/3?text=a green star")
        page.get_by_text("the model is being loaded").wait_for()
        page.locator("[data-component]").first.wait_for()
        assert len(refused) == 1


def test_downloads_are_what_is_shown_and_no_cell_is_a_formula(browser: Browser) -> None:
    query = "&".join(f"texts={text.replace('+', '%2B')}" for text in TEXTS)
    with browser.page(f"run/image/3?text=a red circle&{query}") as page:
        group = page.get_by_role("group", name="Download run texts 3")
        with page.expect_download() as download:
            group.get_by_role("button", name="CSV").click()
        encoded = Path(download.value.path()).read_bytes()
        table = list(csv.DictReader(io.StringIO(encoded.decode("utf-8-sig"))))
        answers = {each["text"]: each for each in browser.answer("stores/run/images/3/zero-shot", text=list(TEXTS))}
        assert [row["text"] for row in table] == [f"'{text}" if text[0] in "=@" else text for text in TEXTS]
        for row, text in zip(table, TEXTS, strict=True):
            assert float(row["cosine"]) == answers[text]["cosine"]
        with page.expect_download() as download:
            group.get_by_role("button", name="JSON").click()
        assert [each["text"] for each in json.loads(Path(download.value.path()).read_text("utf-8"))] == list(TEXTS)
        drawn(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="PNG").click()
        with Image.open(download.value.path()) as picture:
            # The picture, and the legend below it.
            assert picture.format == "PNG"
            assert picture.width == 1024
            assert picture.height > 1024


@pytest.mark.parametrize(
    "address",
    [
        "run/image/3?text=a red circle",
        "run/contrast?image=3&image=8&text=a red circle&against=a blue square",
        "run/property",
        "run/property/colours?image=3",
        "run/compare?with=other&image=3",
        "run/what-if/3?without=L5.H0",
        "run/image",
        "run/image/999",
    ],
)
def test_a_screen_fits_a_phone_and_names_what_it_holds(browser: Browser, address: str) -> None:
    with browser.page(address, width=400, expected=["404"]) as page:
        browser.settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        unnamed = page.evaluate(
            """[...document.querySelectorAll("main button, main a, main input, main select, main textarea, main canvas")]
                 .filter(one => !one.closest("[aria-hidden=true]") && one.getAttribute("aria-hidden") !== "true")
                 .filter(one => !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length
                                  || one.querySelector("img")?.alt))
                 .map(one => one.outerHTML.slice(0, 200))"""
        )
        assert unnamed == []


