"""webdataset itself and headspan read the same awkward tars, and find the same samples under the same keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from headspan.shards.plan import scan
from tests.engine.tars import tar_bytes

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def compared(names: list[str], folder: Path) -> tuple[list[tuple[str, str, bytes]], list[tuple[str, str, bytes]]]:
    """Key, extension and caption of each image, as webdataset and as headspan give them."""
    members = [(name, f"data of {name}".encode()) for name in names]
    path = folder / "a.tar"
    path.write_bytes(tar_bytes(members))
    theirs = [
        (sample["__key__"], field, sample.get("txt", b""))
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        for field in sample
        if field in ("jpg", "png")
    ]
    _, samples = scan(str(path), 0, lambda note: None)
    ours = [
        (sample.key, sample.member.rpartition(".")[2].lower(), (sample.caption or "").encode()) for sample in samples
    ]
    return theirs, ours


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.txt", "b.txt", "b.png"],
        ["a/b/c.JPG", "a/b/c.Txt", "a/c.jpg"],
        ["a.b/c.jpg", "a.b/c.txt", "a.b/d.jpg"],
        ["./a.jpg", "./a.txt", "x y.jpg", "ü.png", "ü.txt"],
        ["0001.jpg", "0001.txt", "0001.json", "0001.extra.bin"],
        ["a.jpg", "noextension", "b.jpg", "b.txt"],
        ["a-b_c.jpg", "a-b_c.txt", "a-b.txt"],
    ],
)
def test_both_find_the_same_samples(names: list[str], tmp_path: Path) -> None:
    theirs, ours = compared(names, tmp_path)
    assert theirs
    assert ours == theirs


# Unlike names, so that no key comes back later in the tar: there, headspan joins what webdataset does not.
PART = st.text("ab_.-é", min_size=1, max_size=4).filter(
    lambda text: not text.startswith((".", "__")) and text[-1] != "."
)


@settings(max_examples=100, deadline=None)
@given(
    bases=st.lists(st.tuples(PART, st.text("cdA0", min_size=1, max_size=4)), unique=True, max_size=6), data=st.data()
)
def test_both_find_the_same_samples_under_random_names(
    tmp_path_factory: pytest.TempPathFactory, bases: list[tuple[str, str]], data: st.DataObject
) -> None:
    names = []
    for folder, base in bases:
        for extension in data.draw(st.sampled_from([["jpg"], ["JPG", "txt"], ["txt", "png"], ["txt"]])):
            names.append(f"{folder}/{base}.{extension}")
    theirs, ours = compared(names, tmp_path_factory.getbasetemp())
    assert ours == theirs


def test_hidden_metadata_members_are_no_samples_of_webdataset_but_images_there_are_rows(tmp_path: Path) -> None:
    # The one difference of the key rules: headspan drops no image silently.
    theirs, ours = compared(["__metadata__", "__x__/a.jpg", "b.jpg", "b.txt"], tmp_path)
    assert theirs == [("b", "jpg", b"data of b.txt")]
    assert ours == [("__x__/a", "jpg", b""), *theirs]
