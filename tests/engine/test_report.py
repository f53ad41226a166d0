"""The report: valid HTML, everything escaped, nothing loaded, and the numbers of the store.

The store is a tiny one of its own, with captions, keys and texts that would run if they were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import headspan
from headspan.cli.main import main
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.errors import StoreError
from headspan.events import Progress
from headspan.originals.pictures import read_images
from headspan.report.collect import write_report
from headspan.report.content import Content, Section, Shot
from headspan.report.described_head import DescribedHead, Scores, Share
from headspan.report.page import render
from headspan.shards.samples import BadImage
from headspan.spans.nulls import Chance, HeadsAbove
from headspan.spans.saved import read_spans
from headspan.store import results
from tools import picture

ATTACK = "<script>document.title='owned'</script>"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
COLOURS = ("red", "green", "blue", "black", "white", "grey", "pink")
THINGS = ("dog", "cat", "car", "tree", "house", "boat", "bird")
POOL = headspan.Pool(
    "awkward",
    (*(f"a {name} {ATTACK}" for name in COLOURS), *(f'a photo of a {name} "&' for name in THINGS)),
    (*["<b>colours</b>"] * len(COLOURS), *["things"] * len(THINGS)),
)
VOID = {"meta", "img", "input", "br", "link", "hr"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def write_shards(path: Path) -> None:
    """Twelve images, one of them broken, most with a caption."""
    random = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        for number in range(12):
            key = f"<script>{number:02d}" if number % 2 else f"{number:02d}&"
            small = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(small).resize((61, 47), Image.Resampling.BICUBIC).save(buffer, "JPEG")
            add(f"{key}.jpg", buffer.getvalue() if number != 7 else b"no image")
            if number != 4:
                add(f"{key}.txt", f"{ATTACK} \"quoted\" & 'more' http://example.org/{number}".encode())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    config = folder / "report-test-vit.json"
    config.write_text(json.dumps(CONFIG))
    write_shards(folder / "shard.tar")
    for name, emit in (("maps.zarr", ("heads", "patches")), ("plain.zarr", ("heads",))):
        headspan.precompute(
            str(folder / "shard.tar"),
            folder / name,
            model=str(config),
            pretrained="random:0",
            layers="all",
            emit=emit,
            device="cpu",
            workers=1,
        )
        store = headspan.open(folder / name)
        headspan.textspan(store, POOL, texts_per_head=6, save=True)
        label_heads(store, save=True)
        concept_consistency(store, save=True)
    return folder


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    path = write_report(headspan.open(made / "maps.zarr"), made / "report.html")
    assert path == made / "report.html"
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Tags with their attributes, the texts, and a complaint for each tag that does not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.complaints: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.complaints.append(f"</{tag}> at {self.getpos()} within {self.open}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def body_texts(self) -> list[str]:
        """All text a reader sees, in order."""
        texts = [text for tag, text in self.texts if tag not in ("style", "script", "title")]
        assert texts
        return texts

    def ids(self) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get("id"))]


def test_every_tag_is_closed_and_every_id_is_unique(page: str) -> None:
    outline = Outline(page)
    assert outline.complaints == []
    assert outline.open == []
    assert len(outline.ids()) == len(set(outline.ids()))
    links = {str(attributes["href"]) for tag, attributes in outline.tags if tag == "a"}
    assert all(link.startswith("#") for link in links)
    assert {f"#L{layer}.H{head}" for layer in (0, 1) for head in range(3)} <= links
    assert {link.removeprefix("#") for link in links} <= set(outline.ids())


def test_the_check_of_tags_finds_open_and_crossed_tags() -> None:
    assert Outline("<p>a<b>c</p></b>").complaints
    assert Outline("<p>a<b>c</b>").open == ["p"]


def test_texts_from_shards_and_pools_are_shown_and_never_run(page: str) -> None:
    outline = Outline(page)
    assert sum(tag == "script" for tag, _ in outline.tags) == 1
    texts = outline.body_texts()
    # A caption, a text of the pool, a concept, and the key of the bad image.
    assert any(text.startswith(f"{ATTACK} \"quoted\" & 'more'") for text in texts)
    assert any(text.startswith("a ") and text.endswith(ATTACK) for text in texts)
    assert "<script>07" in texts
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    outline = Outline(page)
    for tag, attributes in outline.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/webp;base64,")), (tag, name, value)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    rules = [re.sub(r"url\(data:image/webp;base64,[A-Za-z0-9+/=]+\)", "", style) for style in styles]
    assert len(rules[1]) < len(styles[1])
    assert not re.search(r"url\(|@import|https?:|//[a-z]", "".join(rules))
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script
    assert not re.search(r"fetch|XMLHttp|import\(|https?:|eval|innerHTML", script[1])


def test_the_content_policy_allows_only_the_pages_script(page: str) -> None:
    policy = next(str(a["content"]) for _, a in Outline(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def test_random_weights_are_named_in_the_first_line(page: str) -> None:
    first = Outline(page).body_texts()[0]
    assert first.startswith("The model has random weights (random:0).")
    assert "its labels and texts mean nothing. Few data: 11 images for heads with" in first


def test_a_trained_model_gets_no_warning() -> None:
    first, second = Outline(render(some_content())).body_texts()[:2]
    assert (first, second) == ("Attention heads, read with headspan", "ViT-<b>")


def test_the_summary_counts_images_layers_and_bytes(made: Path, page: str) -> None:
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd></div>", page))
    assert facts["Images"] == "11 good, 1 bad"
    assert facts["Layers"] == "0-1 of 2"
    # 2 layers of 3 heads of 16 numbers, with 17 source tokens, in 16 bits; embedding, norm and ok.
    assert facts["Store"].endswith(
        f" on disk; {2 * 3 * 16 * 2 * (1 + 17) + (32 + 3) * 4 + 1:,} bytes per image, the rest once per store"
    )
    used = sum(path.stat().st_size for path in (made / "maps.zarr").rglob("*") if path.is_file())
    assert float(facts["Store"].split()[0]) == pytest.approx(used / 1000, rel=0.01)
    assert facts["Text pool"] == "awkward, 14 texts, 2 concepts"


def test_the_table_holds_what_the_analyses_found(made: Path, page: str) -> None:
    store = headspan.open(made / "maps.zarr")
    spans, found = read_spans(store), concept_consistency(store)
    names = [re.sub("<.*?>", "", name) for name in re.findall(r"<th scope=.col.[^>]*>(.*?)</th>", table_of(page))]
    rows = {name: dict(zip(names, cells, strict=True)) for name, cells in table_rows(page).items()}
    assert list(rows) == [f"L{layer}.H{head}" for layer in (0, 1) for head in range(3)]
    for layer, head in spans.heads():
        cells = {name: Outline(cell) for name, cell in rows[f"L{layer}.H{head}"].items()}
        said = {name: [text for _, text in cell.texts] for name, cell in cells.items()}
        assert said["Head"] == [f"L{layer}.H{head}"]
        assert said["Label"][0] == found.labels.name(layer, head)
        assert said["CCS"] == [str(found.scores[layer, head])]
        assert said["Group"] == [found.group(layer, head) or "–"]
        assert said["First 5 texts"] == spans.texts(layer, head, 5)
        marks = [attributes["class"] == "yes" for tag, attributes in cells["First 5 texts"].tags if tag == "li"]
        assert marks == found.labels.consistent[layer, head].tolist()
        for name, place in (("First 5 explain", 4), ("All 6 explain", 5)):
            assert said[name] == [f"{100 * spans.explained[layer, head, place]:.1f}\u202f%"]


def table_of(page: str) -> str:
    return page[page.index('<table id="heads"') :].split("</table>")[0]


def table_rows(page: str) -> dict[str, list[str]]:
    """The cells of each row of the table of heads, by the head's name."""
    rows = re.findall(r'<tr id="row-(L\d+\.H\d+)">(.*?)</tr>', table_of(page))
    return {name: re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row) for name, row in rows}


def sections_of(page: str) -> dict[str, str]:
    """The section of each head, by the head's name."""
    found = re.findall(r'<section class="head[^"]*" id="(L\d+\.H\d+)">(.*?)</section>', page, re.DOTALL)
    return dict(found)


def strips_of(section: str) -> dict[str, list[str]]:
    """The figures of each strip of a section, by the strip's title."""
    parts = re.split(r"<h4>(.*?)</h4>", section)[1:]
    figures = [re.findall(r"<figure>.*?</figure>", part) for part in parts[1::2]]
    return dict(zip(parts[::2], figures, strict=True))


def test_every_head_has_the_images_at_both_ends_of_its_first_text_and_others(made: Path, page: str) -> None:
    store = headspan.open(made / "maps.zarr")
    spans = read_spans(store)
    vectors = results.load(store, "texts", "awkward")[0]["vectors"]
    keys = store.samples()["key"].to_pylist()
    sections = sections_of(page)
    assert list(sections) == [f"L{layer}.H{head}" for layer in (0, 1) for head in range(3)]
    for (layer, head), section in zip(spans.heads(), sections.values(), strict=True):
        products = store.head(layer, head) @ vectors[spans.indices[layer, head, 0]]
        far = (products - products.mean()) / products.std()
        shown = {}
        for title, figures in strips_of(section).items():
            outlines = [Outline(figure) for figure in figures]
            names = [
                [a["title"] for tag, a in each.tags if tag == "span" and a.get("title") in keys] for each in outlines
            ]
            shown[title] = [keys.index(name[0]) for name in names]
            for image, outline in zip(shown[title], outlines, strict=True):
                far_words = f"{far[image]:+.1f}".replace("-", "−") if abs(far[image]) >= 0.05 else "0.0"
                assert outline.texts[0][1] == f"{far_words} sd"
                said = float(outline.texts[1][1].split(" · ")[0].replace("−", "-"))
                # Two digits of the standard deviation.
                assert abs(said - products[image]) < 0.06 * products.std()
        order = np.argsort(-products)
        assert shown["Most"] == order[:4].tolist()
        assert shown["Least"] == order[::-1][:4].tolist()
        # The other three of eleven images; none is shown twice.
        assert sorted(shown["At random"]) == sorted(order[4:-4].tolist())


def test_every_picture_is_in_the_page_once_and_captions_name_the_other_heads(page: str) -> None:
    rules = re.findall(r"^\.p(\d+)\{background-image:url\((data:[^)]*)\)\}$", page, re.MULTILINE)
    assert [int(place) for place, _ in rules] == list(range(11))
    assert len({uri for _, uri in rules}) == 11
    shown: dict[str, list[str]] = {}
    for name, section in sections_of(page).items():
        for figures in strips_of(section).values():
            for figure in figures:
                shown.setdefault(str(re.search(r"pic p(\d+)", figure)[1]), []).append(name)  # type: ignore[index]
                said = re.search(r"also in (.*?)</small>", figure)
                # Six heads show all eleven images.
                assert said
                assert said[1] == "5 other heads"
    assert all(len(names) == len(set(names)) == 6 for names in shown.values())


def test_pictures_are_the_pixels_that_the_model_sees(made: Path, page: str) -> None:
    store = headspan.open(made / "maps.zarr")
    read, failed = read_images(store, store.samples().to_pylist())
    assert failed == {}
    uris = re.findall(r"^\.p\d+\{background-image:url\(data:image/webp;base64,([^)]*)\)\}$", page, re.MULTILINE)
    assert [base64.b64decode(uri) for uri in uris] == [read[row] for row in sorted(read)]
    with tarfile.open(made / "shard.tar") as tar, Image.open(tar.extractfile("00&.jpg")) as image:  # type: ignore[arg-type]
        # The shorter side becomes 32, and the middle is cut out.
        seen = image.convert("RGB").resize((round(61 * 32 / 47), 32), Image.Resampling.BICUBIC).crop((4, 0, 36, 32))
    with Image.open(io.BytesIO(read[0])) as shown:
        assert shown.size == (32, 32)
        pixels = np.asarray(shown.convert("L")).astype(int)
    # WebP keeps the colours of every second pixel only, and these images have little but coloured noise.
    assert np.abs(pixels - np.asarray(seen.convert("L"))).mean() < 8
    assert np.abs(pixels[:, ::-1] - np.asarray(seen.convert("L"))).mean() > 24


def test_the_page_names_data_set_date_and_the_command_that_writes_it_again(made: Path, page: str) -> None:
    said = dict(re.findall(r"<dt>(Data set|Written|Command)</dt><dd>(.*?)</dd>", page))
    assert said["Data set"] == "shard.tar"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", said["Written"])
    words = shlex.split(Outline(said["Command"]).texts[0][1])
    assert words[:2] == ["headspan", "report"]
    before = Path.cwd()
    os.chdir(made)
    try:
        assert main([*words[1:], "--out", "again.html"]) == 0
    finally:
        os.chdir(before)
    again = (made / "again.html").read_text().replace("again.html", "report.html")
    assert again.replace(said["Written"], "") == page.replace(said["Written"], "")


def test_the_report_says_over_how_many_stores_heads_are_described(made: Path, tmp_path: Path) -> None:
    other = headspan.open(made / "plain.zarr")
    store = headspan.open(shutil.copytree(other.path, tmp_path / "copy.zarr"))
    headspan.textspan(store, POOL, texts_per_head=6, also=[other], overwrite=True, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    page = write_report(store, tmp_path / "report.html").read_text()
    assert f"awkward, over {2 * other.images} images of 2 stores" in Outline(page).body_texts()
    assert f"its contribution to {2 * other.images} image embeddings" in page


def test_without_patches_the_report_says_how_to_get_maps(made: Path) -> None:
    events: list[Progress] = []
    plain = write_report(headspan.open(made / "plain.zarr"), made / "plain.html", on_progress=events.append).read_text()
    assert "run precompute with --emit heads,patches" in plain
    # Eleven images: four at each end, and three at random.
    assert plain.count("<figure>") == plain.count('<span class="pic p') == 6 * 11
    assert 'class="overlay"' not in plain
    assert "per patch</span>" not in plain
    assert [(event.done, event.total) for event in events] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("change", ["gone", "longer", "a command", "a network"])
def test_shards_that_cannot_be_read_cost_only_the_thumbnails(made: Path, tmp_path: Path, change: str) -> None:
    shard = tmp_path / "moved.tar"
    shutil.copyfile(made / "shard.tar", shard)
    url = f"pipe:touch {tmp_path}/ran; cat {shard}" if change == "a command" else str(shard)
    if change == "a network":
        url = "memory://report/shard.tar"
        MemoryFileSystem().pipe_file("/report/shard.tar", shard.read_bytes())
    store_path = tmp_path / "moved.zarr"
    config = made / "report-test-vit.json"
    made_with = {"model": str(config), "pretrained": "random:0", "layers": "all", "device": "cpu", "workers": 1}
    headspan.precompute(url, store_path, allow_pipe=True, **made_with)
    (tmp_path / "ran").unlink(missing_ok=True)
    store = headspan.open(store_path)
    headspan.textspan(store, POOL, texts_per_head=6, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    if change == "gone":
        shard.unlink()
    elif change == "longer":
        shard.write_bytes(shard.read_bytes() + bytes(512))
    page = write_report(store, tmp_path / "report.html").read_text()
    assert 'class="pic' not in page
    assert "data:image" not in page
    assert Outline(page).complaints == []
    said = next(text for text in Outline(page).body_texts() if "could not be read" in text)
    assert {
        "gone": "cannot be read",
        "longer": "has changed",
        "a command": "is not run to read images",
        "a network": "is remote",
    }[change] in said
    assert page.count("<figure>") == 6 * 11
    assert not (tmp_path / "ran").exists()
    if change == "a network":
        assert 'class="pic' in write_report(store, tmp_path / "report.html", shards=[url]).read_text()


def test_images_are_read_from_the_shards_that_the_caller_names(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "maps.zarr", tmp_path / "maps.zarr")
    moved = str(shutil.copy2(made / "shard.tar", tmp_path / "moved.tar"))
    hidden = (made / "shard.tar").rename(made / "hidden.tar")
    try:
        command = ["report", str(tmp_path / "maps.zarr"), "--out", str(tmp_path / "report.html")]
        assert main(command) == 0
        assert "data:image" not in (tmp_path / "report.html").read_text()
        assert "1 of 1 shards was not found: " in capsys.readouterr().err
        assert main([*command, "--shards", moved]) == 0
        assert (tmp_path / "report.html").read_text().count("{background-image:url(") == 11
        assert main([*command, "--shards", moved, str(hidden)]) == 2
        assert "2 shards are named, but the store was planned over 1" in capsys.readouterr().err
    finally:
        hidden.rename(made / "shard.tar")


def test_an_unreadable_image_does_not_affect_the_others(made: Path) -> None:
    store = headspan.open(made / "plain.zarr", include_failed=True)
    samples = store.samples().to_pylist()
    images, failed = read_images(store, samples)
    assert sorted(images) == [row for row in range(12) if row != 7]
    assert list(failed) == [7]
    assert failed[7].endswith("not an image, or its header is broken")
    for encoded in images.values():
        with Image.open(io.BytesIO(encoded)) as image:
            assert (image.format, image.size) == ("WEBP", (32, 32))


def test_bad_images_are_never_among_the_examples(made: Path, tmp_path: Path) -> None:
    shown = write_report(headspan.open(made / "maps.zarr", include_failed=True), tmp_path / "page.html").read_text()
    assert shown == write_report(headspan.open(made / "maps.zarr"), tmp_path / "page.html").read_text()


def some_content(layers: int = 2, heads: int = 3, bad: int = 23) -> Content:
    """A page's content with missing and extreme values: no label, no share, few texts, many bad images."""
    texts = (("a <text>", True), ("another", False))
    shares = (Share(1, float("nan")), Share(2, 0.5))
    described = [
        DescribedHead(layer, head, shares, texts, None if head else "x & y", head % 6)
        for layer in range(layers)
        for head in range(heads)
    ]
    return Content(
        notices=[],
        model="ViT-<b>",
        weights="",
        data_set="a.tar",
        date="2026-01-01",
        command="headspan report run.zarr",
        facts=[("Model", "<b>")],
        images=1,
        layers=tuple(range(layers)),
        heads=described,
        texts_per_head=2,
        above=None,
        scores=Scores([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], {"high": 0, "moderate": 0, "low": 6}, float("nan")),
        why_no_scores="",
        truth=None,
        bad=[BadImage(row, f"key<{row}>", "u&r&l", "no <reason>") for row in range(bad)],
        sections=[Section(described[0], (Shot("k" * 999, None, -0.5, -1.25),))],
        pictures=[],
        input_size=(32, 32),
    )


def test_missing_values_and_long_texts_are_shown_readably() -> None:
    outline = Outline(render(some_content()))
    texts = outline.body_texts()
    assert outline.complaints == []
    assert any("variance that its first 2 texts explain" in text for text in texts)
    assert "no high heads" in texts
    assert "23 images could not be used" in texts
    assert "key<19>" in texts
    assert "key<20>" not in texts
    assert "3 more: headspan info --bad lists all." in texts
    # Long words are cut, and numbers have a typographic minus.
    assert "k" * 199 + "…" in texts
    assert "−0.500" in texts


def test_what_chance_explains_as_well_is_marked_in_grid_table_and_section() -> None:
    weak = Chance(5, 0.5, 0.4, 0.3, 0.6, 0.1, 0.7, 3, 19, 0.85)
    strong = Chance(5, 0.5, 0.3, 0.2, 0.35, 0.2, 0.7, 19, 19, 0.05)
    heads = [
        DescribedHead(0, 0, (Share(5, 0.5, weak),), (("a", True),), "things", 2, None, 0.4, labelled=False),
        DescribedHead(0, 1, (Share(5, 0.5, strong),), (("b", True),), "colours", 5, "high", 0.001, low_magnitude=True),
    ]
    heads = [replace(head, variance_share=0.25, squared_length_share=0.5) for head in heads]
    above = HeadsAbove(0.05, 5, 1, 2, 0.1, 0.0, 1.0, 0.1)
    content = replace(some_content(), layers=(0,), heads=heads, above=above, sections=[Section(head) for head in heads])
    page = render(content)
    cells = re.findall(r'<a class="([^"]*)" href="#(L\d\.H\d)"[^>]*>(.*?)</a>', page)
    assert [(name, set(words.split())) for words, name, _ in cells] == [
        ("L0.H0", {"ex0", "ma5", "cc2", "no-effect"}),
        ("L0.H1", {"ex4", "ma0", "cc5", "low"}),
    ]
    assert [re.findall(r"<b [^>]*>(.*?)</b>", cell) for *_, cell in cells] == [["+10", "25", "2"], ["+20", "25", "5"]]
    assert ["unlabelled" in cell for *_, cell in cells] == [True, False]
    assert "1 labelled head has no effect or a low magnitude, so its label says little about the model." in page
    weak_words, strong_words = (" ".join(Outline(each).body_texts()) for each in sections_of(page).values())
    assert "No effect: a pool without meaning explains as much (p = 0.85)" in weak_words
    assert "unlabelled (chance)" in weak_words
    assert "with a probability of 0.4." in weak_words
    assert "No effect" not in strong_words
    assert "Low magnitude: " in strong_words
    assert "+20.0 points; above 19 of 19 draws; ceiling 70.0\u202f%" in strong_words
    assert [("○" in row, "▽" in row) for row in map("".join, table_rows(page).values())] == [
        (True, False),
        (False, True),
    ]


def test_without_scores_the_report_has_grid_spans_and_images_and_says_what_to_do(made: Path, tmp_path: Path) -> None:
    store = headspan.open(shutil.copytree(made / "maps.zarr", tmp_path / "run.zarr"))
    words = [f"a photo of a {name}" for name in (*COLOURS, *THINGS)]
    spans = headspan.textspan(store, words, texts_per_head=3, save=True)
    page = write_report(store, tmp_path / "report.html", run=spans.run).read_text()
    outline = Outline(page)
    assert outline.complaints == []
    assert any("have no concepts, so the heads have no labels and no scores" in text for text in outline.body_texts())
    assert "CCS" not in "".join(sections_of(page).values())
    assert '<input type="radio" name="measure" id="by-ccs"' not in page
    for (layer, head), section in zip(spans.heads(), sections_of(page).values(), strict=True):
        assert [Outline(part).texts[0][1] for part in re.findall(r"<li>.*?</li>", section)] == spans.texts(layer, head)
        assert set(strips_of(section)) == {"Most", "Least", "At random"}
    assert page.count('class="overlay"') == 6 * 11


def test_scores_of_an_earlier_textspan_run_are_not_shown_with_a_new_one(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "plain.zarr", tmp_path / "run.zarr")
    store = headspan.open(tmp_path / "run.zarr")
    headspan.textspan(store, POOL, texts_per_head=6, rank=1, overwrite=True, save=True)
    page = write_report(store, tmp_path / "report.html").read_text()
    assert "The scores are of an older textspan/awkward, which was replaced since, and are left out" in page
    assert "CCS" not in "".join(sections_of(page).values())
    label_heads(store, overwrite=True, save=True)
    concept_consistency(store, overwrite=True, save=True)
    assert "the number of its first 5 texts" in write_report(store, tmp_path / "report.html").read_text()


def test_without_a_textspan_run_the_error_names_the_next_command(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "plain.zarr", tmp_path / "run.zarr")
    for kind in ("textspan", "labels", "ccs"):
        shutil.rmtree(tmp_path / "run.zarr" / kind)
    with pytest.raises(StoreError, match="has no textspan run; run headspan textspan"):
        write_report(headspan.open(tmp_path / "run.zarr"), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_script_of_a_page_finds_every_element_that_it_names_with_heads_and_without() -> None:
    some = some_content()
    for content in (some, replace(some, layers=(), heads=[], sections=[], scores=None)):
        outline = Outline(render(content))
        script = "".join(text for tag, text in outline.texts if tag == "script")
        named = set(re.findall(r'getElementById\("([^"]*)"\)', script))
        assert ("filter" in named) == bool(content.heads)
        assert "large" in named
        assert named <= set(outline.ids())


# Sorts by score, filters, focuses a cell, and returns what the page shows after each.
PROBE = """
const heads = () =>
  [...document.querySelectorAll("#heads tbody tr:not([hidden])")].map((row) => row.id.slice(4)).join(" ");
const said = {};
document.querySelectorAll("#heads thead button")[2].click();
said.sorted = heads();
const box = document.getElementById("filter");
box.value = "L1.h2";
box.dispatchEvent(new Event("input"));
said.filtered = heads();
const cell = document.querySelector("#grid a");
cell.focus();
said.tip = document.getElementById("tip").hidden ? "" : document.getElementById("tip").textContent;
cell.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
said.next = document.activeElement.getAttribute("href");
document.getElementById("close").click();
said.closed = document.querySelectorAll("section.head > details[open]").length;
document.activeElement.click();
said.opened = [...document.querySelectorAll("section.head > details[open]")].map((each) => each.parentElement.id);
const measures = () => [...document.querySelectorAll("#grid a:first-child b")].slice(0, 3)
  .map((word) => getComputedStyle(word).display !== "none");
said.first = measures();
document.getElementById("by-ccs").click();
said.second = measures();
document.querySelector('section.head a[href="#about-excess"]').click();
said.explained = measures();
document.getElementById("L0.H1").querySelector("figure button").click();
said.large = [document.getElementById("large").open, document.querySelectorAll("#large .pic").length];
said.width = document.documentElement.scrollWidth;
document.documentElement.dataset.said = JSON.stringify(said);
"""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=500,800",
    "--dump-dom",
)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")
def test_in_a_browser_the_grid_has_tips_and_the_table_sorts_and_filters(made: Path, page: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    # The policy forbids a second script, so the hash of the test's script is added to it.
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = page.replace("script-src ", f"script-src 'sha256-{digest}' ").replace(
        "</body>", f"<script>{PROBE}</script></body>"
    )
    (tmp_path / "probe.html").write_text(probed, encoding="utf-8")
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={tmp_path}/profile", (tmp_path / "probe.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    root = dict(Outline(done.stdout).tags[0][1])
    assert "data-error" not in root
    assert root["data-ready"] == "6"
    said = json.loads(str(root["data-said"]))
    store = headspan.open(made / "maps.zarr")
    found = concept_consistency(store)
    places = [(layer, head) for layer in (0, 1) for head in range(3)]
    by_score = sorted(places, key=lambda place: (-int(found.scores[place]), place))
    assert said["sorted"].split() == [f"L{layer}.H{head}" for layer, head in by_score]
    assert said["filtered"] == "L1.H2"
    # The label does not beat chance.
    assert said["tip"].startswith(f"L0.H0 {found.labels.name(0, 0)} (chance)CCS {found.scores[0, 0]}")
    assert re.search(r", [+−]?[\d.]+ points against chance; ", said["tip"])
    assert read_spans(store).texts(0, 0, 1)[0] in said["tip"]
    assert said["next"] == "#L0.H1"
    assert (said["closed"], said["opened"]) == (0, ["L0.H1"])
    # One measure of a cell is shown at a time.
    assert said["first"] == [True, False, False]
    assert said["second"] == [False, False, True]
    # A link to what a measure means shows that measure.
    assert said["explained"] == [True, False, False]
    assert said["large"] == [True, 2]
    # The page does not scroll sideways.
    assert said["width"] <= 500
    assert "owned" not in (re.search(r"<title>(.*?)</title>", done.stdout) or [""])[0]


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")
def test_the_picture_of_a_report_is_its_top(made: Path, page: str, tmp_path: Path) -> None:
    picture.main([str(made / "report.html"), "--out", str(tmp_path / "report.png")])
    with Image.open(tmp_path / "report.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1200
    # Cut after the second head; the whole page is much longer.
    assert 600 < pixels.shape[0] < 2600
    for edge in (pixels[:10], pixels[-10:]):
        assert (edge == pixels[0, 0]).all()
    assert np.ptp(pixels) > 200
