"""The report of many heads: chosen sections, the page's size, and shards that have moved with their store."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError
from headspan.originals.find_shards import find_shards
from headspan.originals.pictures import encode
from headspan.report.choice import choose_heads
from headspan.report.collect import write_report
from headspan.report.content import MapScale, Section, Shot
from headspan.report.described_head import DescribedHead, Share
from headspan.report.images import BUDGET_BYTES, fitted
from headspan.report.maps import overlay
from headspan.report.page import render
from headspan.spans.nulls import Chance, HeadsAbove
from tests.conftest import ToyRun
from tests.engine.test_labels_and_ccs import HEADS, keep
from tests.engine.test_report import Outline, some_content

LARGEST = 25_000_000


def some_heads() -> list[DescribedHead]:
    return [
        DescribedHead(layer, head, (Share(5, (layer * 7 + head * 3) % 10 / 10),), (("a text", None),))
        for layer in (4, 5, 8)
        for head in range(3)
    ]


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, "L4.H0 L4.H1 L4.H2 L5.H0 L5.H1 L5.H2 L8.H0 L8.H1 L8.H2"),
        ("L5.H1", "L5.H1"),
        ("L8.*,L4.H2", "L4.H2 L8.H0 L8.H1 L8.H2"),
        (" l4.h0 , L4.H0", "L4.H0"),
        ("last2", "L5.H0 L5.H1 L5.H2 L8.H0 L8.H1 L8.H2"),
        ("last99", "L4.H0 L4.H1 L4.H2 L5.H0 L5.H1 L5.H2 L8.H0 L8.H1 L8.H2"),
        # Their shares are 0.9, 0.8 and 0.8.
        ("best2", "L4.H0 L8.H1"),
        ("best1,L5.H0", "L5.H0 L8.H1"),
    ],
)
def test_heads_are_chosen_by_name_layer_and_rank(chosen: str | None, names: str) -> None:
    assert [head.name for head in choose_heads(some_heads(), chosen)] == names.split()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("L9.H0", "--heads L9.H0: names no described head (layers 4 to 8, heads 0 to 2); write L5.H1"),
        ("best0", "names no described head"),
        ("heads", "--heads heads: is not the name of heads; write L5.H1"),
        ("L5", "is not the name of heads"),
        (",", "names no head; write"),
    ],
)
def test_heads_that_do_not_exist_are_refused_in_a_sentence(chosen: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        choose_heads(some_heads(), chosen)


def test_the_strongest_heads_are_those_with_the_largest_excess_over_chance() -> None:
    heads = [
        replace(head, shares=(Share(5, 0.9, Chance(5, 0.9, 0.0, 0.0, 0.0, float(excess), 0.0, 0, 0, 1.0)),))
        for head, excess in zip(some_heads(), np.arange(9) % 4 / 10, strict=True)
    ]
    assert [head.name for head in choose_heads(heads, "best2")] == ["L5.H0", "L8.H1"]


def photograph(seed: int, side: int = 224) -> np.ndarray:
    """Pixels that compress as badly as a busy photograph: noise on every scale."""
    random = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    for cells in (2, 5, 14, 37, 112):
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), float) / cells**0.4
    return np.clip(128 + (total - total.mean()) * 1.4, 0, 255).astype(np.uint8)


def test_pictures_are_made_smaller_until_they_fit_and_keep_their_contents() -> None:
    pictures = [encode(photograph(seed), 224, 80) for seed in range(9)]
    assert fitted(pictures, 10**9) == pictures
    total = sum(4 * -(-len(each) // 3) for each in pictures)
    for budget in (total // 2, total // 6):
        found = fitted(pictures, budget)
        assert sum(4 * -(-len(each) // 3) for each in found) <= budget
        for before, after in zip(pictures, found, strict=True):
            with Image.open(io.BytesIO(before)) as one, Image.open(io.BytesIO(after)) as other:
                small = np.asarray(one.convert("RGB").resize((28, 28), Image.Resampling.BOX)).astype(int)
                same = np.asarray(other.convert("RGB").resize((28, 28), Image.Resampling.BOX)).astype(int)
            assert np.abs(small - same).mean() < 12


@pytest.mark.slow
def test_a_page_of_384_heads_with_pictures_and_maps_stays_under_25_megabytes() -> None:
    random = np.random.default_rng(0)
    different = [encode(photograph(seed), 224, 80) for seed in range(24)]
    # Each head has eight images of its own, and four of a sample of 128.
    count = 384 * 8 + 128
    # The same pictures over and over need not be made smaller each.
    smaller = fitted(different, BUDGET_BYTES // -(-count // len(different)))
    pictures = [smaller[place % len(different)] for place in range(count)]
    assert sum(4 * -(-len(each) // 3) for each in pictures) <= BUDGET_BYTES
    # Each map of a page is a picture of its own, of the same size as these.
    drawn = [overlay(2 * random.standard_t(3, (16, 16)).astype(np.float32), 1.9, 6.0) for _ in range(257)]
    texts = tuple((f"a text of some fifty characters, as pools have them {place}", True) for place in range(5))
    chance = Chance(5, 0.5, 0.4, 0.3, 0.5, 0.1, 0.6, 19, 19, 0.05)
    shares = tuple(Share(texts, 0.5, chance) for texts in (1, 5, 20, 60))
    heads, sections = [], []
    for place in range(384):
        head = DescribedHead(*divmod(place, 16), shares, texts, "time-of-day", 5, "high", 0.001, True, 0.1, 0.1)
        shots = [
            Shot("0" * 20, "words " * 30, 0.1, 2.0, picture, drawn[picture % 257], 0.2, ("L1.H1", "L2.H2"))
            for picture in (*range(8 * place, 8 * place + 8), *random.integers(384 * 8, count, 4).tolist())
        ]
        heads.append(head)
        scale = MapScale(0.01, 1.9, 6.0, 128)
        sections.append(Section(head, tuple(shots[:4]), tuple(shots[4:8]), tuple(shots[8:]), scale))
    content = replace(
        some_content(),
        layers=tuple(range(24)),
        heads=heads,
        sections=sections,
        pictures=pictures,
        above=HeadsAbove(0.05, 5, 300, 384, 19.0, 0.0, 40.0, 0.02),
    )
    page = render(content)
    assert page.count('class="map"') == 384 * 12
    assert page.count("{background-image:url(") == count
    assert len(page.encode()) < LARGEST
    # So many sections are closed at first.
    assert not re.search(r'<section class="head[^"]*" id="[^"]*"><details open', page)


@pytest.fixture
def described(toy_copy: Path) -> Path:
    keep(hs.open(toy_copy), HEADS)
    return toy_copy


def test_only_chosen_heads_have_a_section_and_the_other_cells_lead_to_the_table(
    described: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(described), "--out", str(out), "--heads", "L0.H1,L1.*"]) == 0
    page = out.read_text()
    assert re.findall(r'<section class="head[^"]*" id="(.*?)"', page) == ["L0.H1", "L1.H0", "L1.H1", "L1.H2"]
    assert re.findall(r'href="#([^"]*)" data-row', page) == [
        "row-L0.H0",
        "L0.H1",
        "row-L0.H2",
        "L1.H0",
        "L1.H1",
        "L1.H2",
    ]
    assert "4 of 6 heads are shown." in page
    assert Outline(page).complaints == []
    assert main(["report", str(described), "--out", str(out), "--heads", "L7.H0"]) == 2


def test_a_head_without_texts_has_a_section_without_images(described: Path, tmp_path: Path) -> None:
    page = write_report(hs.open(described), tmp_path / "report.html").read_text()
    section = page[page.index('id="L1.H2"') :].split("</section>")[0]
    assert "The head has no texts, because its contributions do not vary." in section
    assert "<figure>" not in section


@pytest.mark.parametrize("where", ["beside the store", "in a folder of the same name", "in a folder of another name"])
def test_shards_that_moved_with_the_store_are_found(
    where: str, described: Path, toy_shards: tuple[Path, ...], tmp_path: Path
) -> None:
    named = {"beside the store": "", "in a folder of the same name": toy_shards[0].parent.name}
    folder = tmp_path / "new" / named.get(where, "other")
    folder.mkdir(parents=True)
    store = hs.open(shutil.copytree(described, tmp_path / "new" / "run.zarr"))
    for shard in toy_shards:
        shutil.copy2(shard, folder / shard.name)
        shard.rename(shard.with_suffix(".away"))
    try:
        urls, missing = find_shards(store)
    finally:
        for shard in toy_shards:
            shard.with_suffix(".away").rename(shard)
    if where in named:
        assert missing == []
        assert urls == {str(shard): str(folder / shard.name) for shard in toy_shards}
    else:
        assert missing == [str(shard) for shard in toy_shards]


def test_a_file_of_another_size_is_not_taken_for_a_shard(
    described: Path, toy_shards: tuple[Path, ...], tmp_path: Path
) -> None:
    store = hs.open(shutil.copytree(described, tmp_path / "run.zarr"))
    (tmp_path / toy_shards[1].name).write_bytes(b"another tar")
    toy_shards[1].rename(toy_shards[1].with_suffix(".away"))
    try:
        assert find_shards(store)[1] == [str(toy_shards[1])]
    finally:
        toy_shards[1].with_suffix(".away").rename(toy_shards[1])


def test_pictures_are_found_from_any_working_folder(
    toy_run: ToyRun, toy_shards: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run with relative names, started in the folder of the shards.
    folder = tmp_path / "run"
    folder.mkdir()
    for shard in toy_shards:
        shutil.copy2(shard, folder / shard.name)
    monkeypatch.chdir(folder)
    settings = toy_run.settings(shards=[shard.name for shard in toy_shards], emit=("heads",), layers="0,1")
    hs.precompute(out="relative.zarr", **settings)
    keep(hs.open("relative.zarr"), HEADS)
    first = write_report(hs.open("relative.zarr"), tmp_path / "report.html").read_text()
    assert first.count("background-image") > 30
    monkeypatch.chdir("/")
    assert write_report(hs.open(folder / "relative.zarr"), tmp_path / "report.html").read_text() == first
    # The folder moves as a whole: what was recorded is not there any more.
    folder.rename(tmp_path / "elsewhere")
    assert write_report(hs.open(tmp_path / "elsewhere/relative.zarr"), tmp_path / "report.html").read_text() == first
    # A shard is missing, and is named.
    (tmp_path / "elsewhere" / toy_shards[2].name).unlink()
    notes: list[str] = []
    page = write_report(
        hs.open(tmp_path / "elsewhere/relative.zarr"),
        tmp_path / "report.html",
        on_progress=lambda each: notes.append(each.note),
    ).read_text()
    assert f"1 of 3 shards was not found: {toy_shards[2].name}; --shards (in Python shards=) says" in "".join(notes)
    assert 0 < page.count("background-image") < first.count("background-image")
