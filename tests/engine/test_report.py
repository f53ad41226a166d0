"""The report: valid HTML, everything escaped, nothing loaded, and the numbers of the store.

The store is a tiny one of its own, with captions, keys and texts that would run if they were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
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
from headspan.report.collect import write_report
from headspan.report.images import data_uri, overlay, read_images
from headspan.report.page import Content, DescribedHead, Example, HeadExamples, render
from headspan.shards.samples import BadImage
from headspan.spans.over_store import read_spans
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
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert {str(link).removeprefix("#") for link in links} == {
        f"L{layer}.H{head}" for layer in (0, 1) for head in range(3)
    }
    assert {str(link).removeprefix("#") for link in links} <= set(outline.ids())


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
            assert value is None or value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value)
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    assert style
    assert script
    assert not re.search(r"url\(|@import|https?:|//[a-z]", style[1])
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
    assert first.endswith("its labels and texts mean nothing.")


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
    spans, found = read_spans(store), concept_consistency(store, save=True)
    rows = dict(re.findall(r'<tr id="(L\d+\.H\d+)">(.*?)</tr>', page))
    assert list(rows) == [f"L{layer}.H{head}" for layer in (0, 1) for head in range(3)]
    for layer, head in spans.heads():
        row = Outline(rows[f"L{layer}.H{head}"])
        cells = [text for _, text in row.texts]
        assert cells[0] == f"L{layer}.H{head}"
        assert cells[1] == found.labels.name(layer, head)
        assert cells[2] == str(found.scores[layer, head])
        assert cells[3] == (found.group(layer, head) or "–")
        assert cells[4:9] == spans.texts(layer, head, 5)
        marks = [attributes["class"] == "yes" for tag, attributes in row.tags if tag == "li"]
        assert marks == found.labels.consistent[layer, head].tolist()
        assert cells[9:] == [f"{100 * spans.explained[layer, head, place]:.1f}\u202f%" for place in (4, 5)]


def test_the_images_shown_are_those_with_the_largest_dot_products(made: Path, page: str) -> None:
    store = headspan.open(made / "maps.zarr")
    spans = read_spans(store)
    vectors = results.load(store, "texts", "awkward")[0]["vectors"]
    keys = store.samples()["key"].to_pylist()
    sections = re.findall(r'<section class="head">.*?</section>', page, re.DOTALL)
    assert len(sections) == 6
    scores = []
    for section in sections:
        outline = Outline(section)
        name = re.match(r"#L(\d+)\.H(\d+)", str(next(a["href"] for tag, a in outline.tags if tag == "a")))
        assert name
        layer, head = int(name[1]), int(name[2])
        products = store.head(layer, head) @ vectors[spans.indices[layer, head, 0]]
        shown = [keys.index(a["title"]) for tag, a in outline.tags if tag == "span" and a.get("title") in keys]
        assert shown == np.argsort(-products)[:4].tolist()
        scores.append(concept_consistency(store, save=True).scores[layer, head])
        assert sum(tag == "img" for tag, _ in outline.tags) == 8
    assert scores == sorted(scores, reverse=True)


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
    assert plain.count("<img") == 6 * 6
    assert "per patch</span>" not in plain
    assert [(event.done, event.total) for event in events] == [(done, 6) for done in range(1, 7)]


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
    assert "<img" not in page
    assert Outline(page).complaints == []
    said = next(text for text in Outline(page).body_texts() if "could not be read" in text)
    assert {
        "gone": "cannot be read",
        "longer": "has changed",
        "a command": "do not run commands",
        "a network": "is remote",
    }[change] in said
    assert page.count("<figure>") == 6 * 6
    assert not (tmp_path / "ran").exists()
    if change == "a network":
        assert "<img" in write_report(store, tmp_path / "report.html", shards=[url]).read_text()


def test_images_are_read_from_the_shards_that_the_caller_names(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "maps.zarr", tmp_path / "maps.zarr")
    moved = str(shutil.copy2(made / "shard.tar", tmp_path / "moved.tar"))
    hidden = (made / "shard.tar").rename(made / "hidden.tar")
    try:
        command = ["report", str(tmp_path / "maps.zarr"), "--out", str(tmp_path / "report.html")]
        assert main(command) == 0
        assert "<img" not in (tmp_path / "report.html").read_text()
        assert main([*command, "--shards", moved]) == 0
        assert (tmp_path / "report.html").read_text().count("<img") > 10
        assert main([*command, "--shards", moved, str(hidden)]) == 2
        assert "2 shards are named, but the store was planned over 1" in capsys.readouterr().err
    finally:
        hidden.rename(made / "shard.tar")


def test_an_unreadable_image_does_not_affect_the_others(made: Path) -> None:
    store = headspan.open(made / "plain.zarr", include_failed=True)
    samples = store.samples().to_pylist()
    images, failed = read_images(store.path, store.attributes["preprocess"], samples)
    assert sorted(images) == [row for row in range(12) if row != 7]
    assert list(failed) == [7]
    assert failed[7].endswith("not an image, or its header is broken")
    assert all(image.size == (160, 160) for image in images.values())


def test_bad_images_are_never_among_the_examples(made: Path, tmp_path: Path) -> None:
    shown = write_report(headspan.open(made / "maps.zarr", include_failed=True), tmp_path / "kept.html").read_text()
    assert shown == write_report(headspan.open(made / "maps.zarr"), tmp_path / "good.html").read_text()


def test_a_map_is_orange_for_the_text_and_blue_against_it() -> None:
    grey = Image.new("RGB", (90, 60), (120, 120, 120))
    contributions = np.zeros((2, 3))
    contributions[0, 0], contributions[1, 2] = 0.5, -0.5
    pixels = np.asarray(overlay(grey, contributions, strongest=0.5)).astype(int)
    red_over_blue = pixels[..., 0] - pixels[..., 2]
    assert red_over_blue[10, 10] > 100
    assert red_over_blue[50, 80] < -80
    assert abs(red_over_blue[30, 45]) < 20
    assert np.asarray(overlay(grey, np.zeros((2, 3)), strongest=0.0)).std() == 0


def test_a_data_uri_holds_the_image() -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((160, 93))
    content = base64.b64decode(data_uri(image).removeprefix("data:image/jpeg;base64,"))
    assert len(content) < 10_000
    with Image.open(io.BytesIO(content)) as shown:
        assert shown.size == (160, 93)
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(image)).max() < 12


def some_content(layers: int = 2, heads: int = 3, bad: int = 23) -> Content:
    """A page's content with missing and extreme values: no label, no share, few texts, many bad images."""
    texts = (("a <text>", True), ("another", False))
    described = [
        DescribedHead(layer, head, None if head else "x & y", head % 6, None, texts, float("nan"), 0.5)
        for layer in range(layers)
        for head in range(heads)
    ]
    return Content(
        notices=[],
        model="ViT-<b>",
        weights="",
        facts=[("Model", "<b>")],
        images=1,
        layers=tuple(range(layers)),
        heads=described,
        texts_per_head=2,
        at_k=[1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        groups={"high": 0, "moderate": 0, "low": 6},
        ccr=float("nan"),
        truth=None,
        bad=[BadImage(row, f"key<{row}>", "u&r&l", "no <reason>") for row in range(bad)],
        examples=[HeadExamples(described[0], [Example("k" * 999, None, -0.5)], 0.0)],
        missing={},
        has_maps=False,
    )


def test_missing_values_and_long_texts_are_shown_readably() -> None:
    outline = Outline(render(some_content()))
    texts = outline.body_texts()
    assert outline.complaints == []
    assert "no high heads" in texts
    assert "23 images could not be used" in texts
    assert "key<19>" in texts
    assert "key<20>" not in texts
    assert "3 more: headspan info --bad lists all." in texts
    # Long words are cut, and numbers have a typographic minus.
    assert "k" * 199 + "…" in texts
    assert "−0.5" in texts


def test_the_largest_models_page_stays_under_three_megabytes() -> None:
    content = some_content(layers=48, heads=16)
    uri = "data:image/jpeg;base64," + "A" * 14_000
    examples = [
        HeadExamples(content.heads[0], [Example("key", "words " * 99, 0.1, uri, uri)] * 4, 0.1) for _ in range(6)
    ]
    long = tuple((f"a text of some fifty characters, as pools have them {place}", True) for place in range(5))
    heads = [DescribedHead(head.layer, head.head, "time-of-day", 5, "high", long, 0.5, 0.9) for head in content.heads]
    page = render(
        Content(**{name: getattr(content, name) for name in Content.__slots__} | {"examples": examples, "heads": heads})
    )
    assert len(page.encode()) < 3_000_000


def test_without_a_ccs_run_the_error_names_the_next_command(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "plain.zarr", tmp_path / "run.zarr")
    shutil.rmtree(tmp_path / "run.zarr" / "ccs")
    with pytest.raises(
        StoreError, match="is of an older textspan/awkward, which was replaced since; run headspan label"
    ):
        write_report(headspan.open(tmp_path / "run.zarr"), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_scores_of_an_earlier_textspan_run_are_not_shown_with_a_new_one(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "plain.zarr", tmp_path / "run.zarr")
    store = headspan.open(tmp_path / "run.zarr")
    headspan.textspan(store, POOL, texts_per_head=6, rank=1, overwrite=True, save=True)
    with pytest.raises(
        StoreError, match="is of an older textspan/awkward, which was replaced since; run headspan label"
    ):
        write_report(store, tmp_path / "report.html")
    label_heads(store, save=True, overwrite=True)
    concept_consistency(store, save=True, overwrite=True)
    assert write_report(store, tmp_path / "report.html").is_file()


# Sorts by score, filters, focuses a cell, and returns what the page shows after each.
PROBE = """
const heads = () => [...document.querySelectorAll("#heads tbody tr:not([hidden])")].map((row) => row.id).join(" ");
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
document.activeElement.click();
said.revealed = heads();
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
    found = concept_consistency(store, save=True)
    places = [(layer, head) for layer in (0, 1) for head in range(3)]
    by_score = sorted(places, key=lambda place: (-int(found.scores[place]), place))
    assert said["sorted"].split() == [f"L{layer}.H{head}" for layer, head in by_score]
    assert said["filtered"] == "L1.H2"
    assert said["tip"].startswith(f"L0.H0 {found.labels.name(0, 0)}CCS {found.scores[0, 0]}")
    assert read_spans(store).texts(0, 0, 1)[0] in said["tip"]
    assert said["next"] == "#L0.H1"
    assert len(said["revealed"].split()) == 6
    # The page does not scroll sideways.
    assert said["width"] <= 500
    assert "owned" not in (re.search(r"<title>(.*?)</title>", done.stdout) or [""])[0]


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")
def test_the_readmes_picture_is_the_top_of_a_report(made: Path, page: str, tmp_path: Path) -> None:
    picture.main([str(made / "report.html"), "--out", str(tmp_path / "report.png")])
    with Image.open(tmp_path / "report.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1200
    # Cut after the second head; the whole page is much longer.
    assert 600 < pixels.shape[0] < 1500
    for edge in (pixels[:10], pixels[-10:]):
        assert (edge == pixels[0, 0]).all()
    assert np.ptp(pixels) > 200
