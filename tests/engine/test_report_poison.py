"""No string of a store becomes markup in the report: all elements, attributes and scripts are headspan's own."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headspan as hs
from headspan.concepts.answers import as_array
from headspan.concepts.ccs import concept_consistency, read_scores
from headspan.concepts.labels import label_heads
from headspan.errors import HeadspanError, StoreError
from headspan.features.naming import name_features
from headspan.report.collect import write_report
from headspan.report.content import Content, MapScale, Section, Shot
from headspan.report.described_head import DescribedHead, Scores, Share
from headspan.report.features import Bin, FeatureShot, ShownClass, ShownFeature, ShownFeatures
from headspan.report.page import render
from headspan.shards.samples import BadImage
from headspan.spans.nulls import Chance, HeadsAbove
from headspan.store import results
from headspan.store.write import analyses
from headspan.tasks.zero_shot import Accuracy
from headspan.texts.stored import stored_pool
from headspan.world.checks import (
    Ablation,
    ContrastCheck,
    GroundTruth,
    MapCheck,
    NeighbourCheck,
    RankingCheck,
    TextMapCheck,
)
from headspan.world.compared import Compared, Draws
from tests.engine.hand_made_features import hand_made_scores
from tests.engine.test_labels_and_ccs import HEADS, keep

POISONS = (
    "<script>alert(1)</script>",
    '<meta http-equiv=refresh content="0;url=https://example.org">',
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" style="position:fixed" onclick="alert(1)',
    "</title></style></script><script>alert(1)</script>",
    "<!--<script>",
    "--><svg onload=alert(1)><![CDATA[",
    "]]></textarea></select></table><base href=//example.org><form action=//example.org>",
    "{{ 7 * 7 }}{% raw %}&lt;script&gt;&#60;b&#62;",
    "javascript:alert(1)//\x00<\x00b>",
    "\ud83d<b>",
    "\x1b]0;title\x07\u202e\u2066<b>",
)
# Of the values of one result, so many are changed, one at a time.
SOME_VALUES, MOST_VALUES = 4, 24
# Letters that steer a terminal, or the direction of writing.
STEERING = "\x00\x07\x1b\u202e\u2066\ud83d"
COMPARED = Compared(0.9, 0.8, Draws(0.6, 0.5, 0.7), 0.5)
CONTROL = GroundTruth(
    "hand",
    {"colour": Accuracy(0.9, 0.1, 2000), "background_colour": Accuracy(0.5, 0.4, 1800)},
    {"colours": 3, "shapes": 0},
    (NeighbourCheck("colours", ((1, 2),), 0.5, 0.4, 0.1, 100),),
    MapCheck(300, 0.5, 0.1, 0.7),
    (Ablation("colours", ((1, 2),), {"colour": 0.3, "background_colour": 0.56}),),
    "a model",
    text_maps=(TextMapCheck("colours", ((1, 2),), 100, 0.1, COMPARED, COMPARED, 0.98, 0.4),),
    contrasts=(ContrastCheck("colours", ((1, 2),), 80, COMPARED, COMPARED),),
    rankings=(RankingCheck("colour", 9, ((1, 2),), {"head pursuit": 0.9}, {"head pursuit": None}),),
)
TRUTH = replace(CONTROL, about="another model", controls={"control": CONTROL})


class Skeleton(HTMLParser):
    """A page without its words: tags with the names of their attributes, comments and declarations."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[tuple[str, ...]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        # Values of attributes that no reader sees must be the same too.
        fixed = [str(value) for name, value in attrs if name not in ("alt", "title", "src")]
        self.parts.append((tag, *names, *fixed))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self.parts.append((f"/{tag}",))
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            self.scripts.append(data)
        else:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.parts.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.parts.append(("declaration", decl))

    def handle_pi(self, data: str) -> None:
        self.parts.append(("instruction", data))

    def unknown_decl(self, data: str) -> None:
        self.parts.append(("unknown", data))


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every string in it changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {changed(key, change): changed(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(changed(each, change) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: changed(getattr(value, field.name), change) for field in fields(value)})
    return value


def some_features() -> ShownFeatures:
    """A run of features with everything that is shown of one."""
    shots = (FeatureShot("key", "caption", 0.5, 0), FeatureShot("key", None, 0.1, None))
    feature = ShownFeature(3, "0.9", "0.5", 20, "name", "0.7", True, shots, ("caption", "another"))
    bins = (Bin("0.00 to 0.50", 3, 1, 100.0, 33.3),)
    known = ShownClass("image-dominant", 3, 2, 1, (feature,))
    return ShownFeatures("run", "note", bins, (known,), (("figure", "0.5"),), True, ("remark",))


def content() -> Content:
    """Everything that a page can show."""
    texts = (("a text", True), ("another", False))
    shares = (Share(1, 0.5, Chance(1, 0.5, 0.4, 0.3, 0.5, 0.1, 0.8, 19, 19, 0.05)), Share(2, 0.9))
    heads = [
        DescribedHead(
            1, head, shares, texts, None if head else "x", head, "high", 0.5, head > 1, 0.1, 0.2, True, 3.5, 0.8
        )
        for head in range(3)
    ]
    shots = (Shot("key", "caption", 0.5, 2.5, 0, b"map", 0.5, ("L1.H1",)), Shot("key", None, 0.1, -1.0))
    return Content(
        notices=["one", "two"],
        model="model",
        weights="weights",
        data_set="data set",
        date="date",
        command="command",
        facts=[("name", "value")],
        images=1,
        layers=(1,),
        heads=heads,
        texts_per_head=2,
        above=HeadsAbove(0.05, 2, 1, 3, 0.1, 0.0, 1.0, 0.1),
        scores=Scores(
            [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
            {"high": 0, "moderate": 0, "low": 3},
            0.5,
            (0.1,) * 6,
            {"high": 0.1},
            0.1,
            0.2,
        ),
        why_no_scores="",
        truth=TRUTH,
        bad=[BadImage(row, "key", "url", "reason") for row in range(23)],
        sections=[Section(heads[0], shots, shots, shots, MapScale(0.01, 1.9, 5.0, 128)), Section(heads[1], shots)],
        pictures=[b"picture"],
        input_size=(32, 32),
        missing={3: "gone"},
        has_maps=True,
        features=(some_features(),),
        more_features=("further",),
    )


@pytest.mark.parametrize("poison", POISONS)
def test_no_string_of_a_pages_content_becomes_markup(poison: str) -> None:
    def poisoned(change: Callable[[str], str]) -> str:
        # The names of the groups come from the page.
        found = changed(content(), change)
        return render(replace(found, scores=content().scores))

    clean, page = poisoned(lambda text: f"x{text}"), poisoned(lambda text: f"{poison}{text}")
    assert Skeleton(page).parts == Skeleton(clean).parts
    assert Skeleton(page).scripts == Skeleton(clean).scripts
    assert "49" not in page.replace(clean, "")
    # The reader sees the poison itself, with control characters as escapes.
    seen = "".join(
        letter.encode("unicode_escape").decode() if letter in STEERING else letter
        for letter in " ".join(poison.split())
    )
    assert sum(seen in text for text in Skeleton(page).words) > 20
    assert not set(STEERING) & set(page)


def test_the_skeleton_of_a_page_changes_with_its_markup() -> None:
    for poison in ("<b>", "<!-- -->", '" onclick="', "</p>", "<script>1</script>"):
        pages = [Skeleton(f'<p title="{text}">{text}</p>') for text in ("x", poison)]
        assert (pages[0].parts, pages[0].scripts) != (pages[1].parts, pages[1].scripts), poison


@pytest.fixture(scope="module")
def full(toy_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the results of every analysis: text spans, labels, judges with their answers, ground truth."""
    path = Path(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("poison") / "run.zarr"))
    store = hs.open(path)
    keep(store, HEADS)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    found = read_scores(store)
    arrays, settings = results.load(store, "ccs", "hand")
    judges = {"judges": ["one", "two"], "judged_by": [{"name": "one", "endpoints": ["u"], "served_as": ["m"]}]}
    records = [
        {"judge": "one", "layer": 0, "head": 0, "text": 1, "prompt": "p", "value": 1, "replies": [{"content": "c"}]}
    ]
    arrays["votes"] = np.concatenate([arrays["votes"]] * 2)
    named = {name: (values, tuple("abcd"[: values.ndim])) for name, values in arrays.items()}
    analyses.save(store, "ccs", "hand", {**named, "answers": as_array(records)}, {**settings, **judges}, overwrite=True)
    analyses.save(store, "truth", "hand", {}, {"answers": asdict(TRUTH)})
    directions = np.random.default_rng(0).normal(size=(4, store.joint))
    features = hand_made_scores(directions, store.images, 3)
    name_features(store, features, stored_pool(store, "hand"), 2, saved=True)
    assert read_scores(store).scores.tolist() == found.scores.tolist()
    # Without the records of the results' files, as in older stores, the changes below are not refused as damage.
    shutil.rmtree(path / "records" / "results")
    return path


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path to every value that contains no others; of a list, only to its first item."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list):
        for place, each in enumerate(value[:1]):
            yield from leaves(each, (*path, place))
    else:
        yield path


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    """The leaf at the end of a path."""
    for step in path:
        value = value[step]
    return value


def put(value: Any, path: tuple[str | int, ...], leaf: Any) -> Any:
    """A copy of `value` with another leaf."""
    if not path:
        return leaf
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], leaf)
    return copy


def poison_tables(store: Path, change: Callable[[str], str]) -> None:
    """Change every string of every table."""
    for path in store.rglob("*.parquet"):
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
            schema = file.schema_arrow
        # The same number of row groups, since each belongs to a unit.
        with pq.ParquetWriter(path, schema) as writer:
            for group in groups:
                rows = [{name: changed(value, change) for name, value in row.items()} for row in group.to_pylist()]
                writer.write_table(pa.Table.from_pylist(rows, schema))


def attributes_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


@pytest.mark.parametrize("poison", [POISONS[1], POISONS[5]])
def test_no_string_of_a_store_becomes_markup(poison: str, full: Path, tmp_path: Path) -> None:
    def page(name: str, change: Callable[[str], str]) -> str:
        path = Path(shutil.copytree(full, tmp_path / name / "run.zarr"))
        poison_tables(path, change)
        for file in path.rglob("zarr.json"):
            kind = file.relative_to(path).parts[0]
            if kind in ("texts", "textspan", "labels", "ccs", "truth", "features"):
                about = attributes_of(file)
                kept = about["attributes"]
                about["attributes"] = changed_values(kept, change)
                file.write_text(json.dumps(about))
        # The pool's name and checksum determine where the pool is stored.
        checksum = stored_pool(hs.open(path), "hand").sha256
        file = path / "textspan" / "hand" / "zarr.json"
        about = attributes_of(file)
        about["attributes"] |= {"pool": "hand", "pool_sha256": checksum}
        file.write_text(json.dumps(about))
        return write_report(hs.open(path), tmp_path / name / "report.html").read_text(encoding="utf-8")

    clean, poisoned = page("clean", lambda text: f"x{text}"), page("poisoned", lambda text: f"{poison}{text}")
    assert Skeleton(poisoned).parts == Skeleton(clean).parts
    assert Skeleton(poisoned).scripts == Skeleton(clean).scripts
    # Captions, keys, URLs, reasons, texts, labels, judges, factors and concepts are all shown.
    assert sum(poison in text for text in Skeleton(poisoned).words) > 60


def changed_values(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every string changed; the names of headspan's own settings stay, those of data do not."""
    if isinstance(value, dict):
        data = {"colour", "colours", "background_colour", "shapes", "places", "animals"}
        return {change(key) if key in data else key: changed_values(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [changed_values(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


@pytest.mark.parametrize("kind", ["texts", "textspan", "labels", "ccs", "truth", "root"])
@pytest.mark.parametrize("most", [SOME_VALUES, pytest.param(MOST_VALUES, marks=pytest.mark.full_size)])
def test_a_value_of_another_type_is_shown_escaped_or_refused_in_a_sentence(
    kind: str, most: int, full: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(full, tmp_path / "run.zarr"))
    # Without the shards, pages are written faster.
    poison_tables(path, lambda text: text.replace(".tar", ".gone"))
    clean = Skeleton(write_report(hs.open(path), tmp_path / "report.html").read_text())
    file = path / "zarr.json" if kind == "root" else path / kind / "hand" / "zarr.json"
    good = attributes_of(file)
    ways = list(leaves(good["attributes"]))
    if kind == "root":
        # These numbers are sizes of arrays.
        ways = [way for way in ways if isinstance(at(good["attributes"], way), str)]
    assert len(ways) > 2
    # Values of one list are read by the same code.
    for way in random.Random(0).sample(ways, min(len(ways), most)):
        file.write_text(json.dumps({**good, "attributes": put(good["attributes"], way, POISONS[0])}))
        try:
            page = write_report(hs.open(path), tmp_path / "report.html").read_text()
        except HeadspanError:
            continue
        found = Skeleton(page)
        assert found.scripts == clean.scripts, way
        assert {part[0] for part in found.parts} <= {part[0] for part in clean.parts}, way
        assert [part for part in found.parts if part[0] in ("meta", "script", "style")] == [
            part for part in clean.parts if part[0] in ("meta", "script", "style")
        ], way


@pytest.mark.parametrize("content", ["years of work", "<!doctype html><p>another page", ""])
def test_a_report_replaces_a_report_and_no_other_file(content: str, full: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(content)
    with pytest.raises(StoreError, match=r"report\.html: exists, and is not a report that headspan wrote; choose"):
        write_report(hs.open(full), path)
    assert path.read_text() == content
    path.unlink()
    first = write_report(hs.open(full), path).read_bytes()
    assert write_report(hs.open(full), path).read_bytes() == first
    with pytest.raises(StoreError, match=r"the report cannot be written there \(it is a folder\); name a file"):
        write_report(hs.open(full), tmp_path)
