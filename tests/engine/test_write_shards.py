"""Data sets, frames and iterables as tars: webdataset reads them back, and `precompute` runs on them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image

import headspan as hs
from headspan.errors import SettingsError, SourceError
from headspan.shards.plan import list_samples
from headspan.shards.samples import BadImage
from headspan.shards.urls import expand, stored_names
from tests.conftest import ToyRun, encoded_image

# webdataset leaves the closing of its shards to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def read_back(pattern: str) -> list[dict[str, Any]]:
    """The samples as webdataset reads them, without its own fields but for the key."""
    data = webdataset.WebDataset(pattern, shardshuffle=False)
    return [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")} for sample in data
    ]


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_an_iterable_is_written_in_shards_that_webdataset_reads(tmp_path: Path) -> None:
    jpeg = encoded_image(1)
    (tmp_path / "one.webp").write_bytes(encoded_image(2, kind="WEBP"))
    samples = [
        ("a/b.c", jpeg, {"caption": "a dog", "cls": 3, "size": np.int64(7), "none": None, "nan": float("nan")}),
        ("a/b_c", tmp_path / "one.webp", "a cat"),
        ("pil", Image.fromarray(PIXELS), None),
        ("array", PIXELS[..., 0]),
        ("__x__", PIXELS[..., :1], {"text": "grey"}),
    ]
    pattern = hs.write_shards(iter(samples), tmp_path / "out", images_per_shard=2)
    assert pattern == str(tmp_path / "out" / "{000000..000002}.tar")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.tar", "000001.tar", "000002.tar"]
    found = read_back(pattern)
    assert found[0] == {"__key__": "a/b_c", "jpg": jpeg, "txt": b"a dog", "cls": b"3", "json": b'{"size": 7}'}
    assert found[1] == {"__key__": "a/b_c_2", "webp": (tmp_path / "one.webp").read_bytes(), "txt": b"a cat"}
    assert [sample["__key__"] for sample in found[2:]] == ["pil", "array", "0__x__"]
    assert (decoded(found[2]["png"]) == PIXELS).all()
    assert (decoded(found[3]["png"]) == PIXELS[..., 0]).all()
    assert (decoded(found[4]["png"]) == PIXELS[..., 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_bytes_get_the_extension_of_their_format(kind: str, tmp_path: Path) -> None:
    data = encoded_image(3, kind=kind)
    (sample,) = read_back(hs.write_shards([("k", data)], tmp_path / "out"))
    extension = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    assert sample == {"__key__": "k", extension: data}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pixels_are_encoded_without_loss(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    (sample,) = read_back(hs.write_shards([("k", image)], tmp_path / "out"))
    back = Image.open(io.BytesIO(sample["tif" if mode in ("CMYK", "YCbCr") else "png"]))
    assert back.mode == mode
    assert (np.asarray(back) == np.asarray(image)).all()


def test_pixels_are_encoded_as_jpeg_on_request(tmp_path: Path) -> None:
    smooth = Image.fromarray(PIXELS).resize((64, 64), Image.Resampling.BICUBIC)
    (sample,) = read_back(hs.write_shards([("k", smooth)], tmp_path / "out", encode="jpeg"))
    assert np.abs(decoded(sample["jpg"]).astype(int) - np.asarray(smooth)).mean() < 4


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [encoded_image(row) for row in range(5)], "text": list("abcde")})
    for name in "ab":
        hs.write_shards(frame, tmp_path / name, images_per_shard=3)
    for shard in ("000000.tar", "000001.tar"):
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_a_frame_of_paths_keeps_its_other_columns_as_metadata(tmp_path: Path) -> None:
    for row in range(3):
        (tmp_path / f"{row}.jpg").write_bytes(encoded_image(row))
    frame = pd.DataFrame(
        {
            "Path": [f"{row}.jpg" for row in range(3)],
            "Text": ["a dog", None, "a cat"],
            "label": ["dog", None, "cat"],
            "score": [0.5, float("nan"), 2.0],
            "when": pd.to_datetime(["2026-01-01", None, "2026-01-03"]),
        }
    )
    found = read_back(hs.write_shards(frame, tmp_path / "out", root=tmp_path))
    assert [sample["jpg"] for sample in found] == [encoded_image(row) for row in range(3)]
    assert [sample.get("txt") for sample in found] == [b"a dog", None, b"a cat"]
    assert [sample.get("cls") for sample in found] == [b"1", None, b"0"]
    assert [sample["__key__"] for sample in found] == ["000000000", "000000001", "000000002"]
    assert (tmp_path / "out" / "classes.txt").read_text() == "cat\ndog\n"
    assert json.loads(found[1]["json"]) == {"Path": "1.jpg"}
    assert json.loads(found[2]["json"]) == {"Path": "2.jpg", "score": 2.0, "when": "2026-01-03T00:00:00"}


def test_columns_may_be_named_and_whole_floats_are_classes(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"a": [encoded_image(0)] * 2, "b": ["x", "y"], "c": [4.0, None], "d": ["k.1", "l"], "text": ["", "z"]}
    )
    found = read_back(hs.write_shards(frame, tmp_path / "out", image="a", caption="b", label="c", key="d"))
    assert [sample["__key__"] for sample in found] == ["k_1", "l"]
    assert [sample["txt"] for sample in found] == [b"x", b"y"]
    assert [sample.get("cls") for sample in found] == [b"4", None]
    assert json.loads(found[1]["json"]) == {"text": "z"}


def test_a_data_set_keeps_the_encoded_bytes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "on-disk.png").write_bytes(encoded_image(9, kind="PNG"))
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "text": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["dog", "cat"]),
            "width": datasets.Value("int64"),
        }
    )
    rows = {
        "picture": [{"bytes": encoded_image(0), "path": None}, {"bytes": None, "path": str(tmp_path / "on-disk.png")}],
        "text": ["a dog", "a cat"],
        "kind": ["dog", "cat"],
        "width": [37, 38],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    for number, each in enumerate((data, data.to_iterable_dataset())):
        found = read_back(hs.write_shards(each, tmp_path / f"out{number}"))
        assert [sample.get("jpg", sample.get("png")) for sample in found] == [
            encoded_image(0),
            encoded_image(9, kind="PNG"),
        ]
        assert [sample["txt"] for sample in found] == [b"a dog", b"a cat"]
        assert [sample["cls"] for sample in found] == [b"0", b"1"]
        assert json.loads(found[1]["json"]) == {"width": 38}
        assert (tmp_path / f"out{number}" / "classes.txt").read_text() == "dog\ncat\n"
    with pytest.raises(SettingsError, match=r"holds several splits \(train\)"):
        hs.write_shards(datasets.DatasetDict(train=data), tmp_path / "c")


def test_precompute_reads_what_was_written(toy_run: ToyRun, tmp_path: Path) -> None:
    samples = [(f"{row}", encoded_image(row), f"caption {row}") for row in range(5)] + [("bad", b"no image")]
    pattern = hs.write_shards(samples, tmp_path / "shards", images_per_shard=4)
    summary = hs.precompute(
        pattern,
        tmp_path / "run.zarr",
        model=str(toy_run.config),
        pretrained=str(toy_run.weights),
        layers="all",
        device="cpu",
    )
    table = hs.open(tmp_path / "run.zarr").samples()
    assert table.column("key").to_pylist() == [f"{row}" for row in range(5)]
    assert table.column("caption").to_pylist() == [f"caption {row}" for row in range(5)]
    assert [bad.key for bad in summary.bad] == ["bad"]


def test_keys_captions_and_classes_are_in_the_plan(tmp_path: Path) -> None:
    pattern = hs.write_shards([("k", PIXELS, {"caption": "é\nx", "label": 12, "n": [1, 2]})], tmp_path / "out")
    notes: list[BadImage] = []
    ((_, samples),) = list_samples(stored_names(expand([pattern])), on_note=notes.append)
    (sample,) = samples
    assert (sample.key, sample.caption, sample.label) == ("k", "é\nx", 12)
    assert json.loads(sample.metadata or "") == {"n": [1, 2]}
    assert not notes


def test_an_interrupted_shard_leaves_only_whole_tars(tmp_path: Path) -> None:
    def samples() -> Any:
        for row in range(5):
            yield f"{row}", PIXELS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hs.write_shards(samples(), tmp_path / "out", images_per_shard=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.tar", "000001.tar"]
    with pytest.raises(SettingsError, match="is not an empty directory"):
        hs.write_shards([("k", PIXELS)], tmp_path / "out")


@pytest.mark.parametrize(
    ("samples", "settings", "said"),
    [
        ([], {}, "there is no sample"),
        ([("k", PIXELS)], {"images_per_shard": 0}, "0 images per shard are too few"),
        ([("k", PIXELS)], {"encode": "gif"}, "encode 'gif' is unknown; use png, jpeg, webp"),
        (["k"], {}, "sample 0 is of type str"),
        ([("k", 3)], {}, "the image of k is of type int"),
        ([("k", PIXELS / 255)], {}, r"the image of k is an array \[9, 7, 3\] of float64"),
        ([("k", PIXELS, 7)], {}, "the metadata of k are of type int"),
        ([("k", PIXELS, {"label": "dog"})], {}, "the class of k is 'dog', which is no whole number"),
        ([("k", PIXELS, {"x": b"1"})], {}, "the metadata of k cannot be written as JSON"),
        ([("k", PIXELS, {"x": [float("inf")]})], {}, "the metadata of k cannot be written as JSON"),
        (pd.DataFrame({"image": [b"1"]}), {"caption": "y"}, "caption='y': there is no such column"),
        (pd.DataFrame({"a": [1]}), {}, "no column is named like an image"),
        ("folder", {}, "samples are of type str"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_in_one_sentence(
    samples: Any, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        hs.write_shards(samples, tmp_path / "out", **settings)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.jpg: the image of k cannot be read"):
        hs.write_shards([("k", "nothing.jpg")], tmp_path / "out", root=tmp_path)
