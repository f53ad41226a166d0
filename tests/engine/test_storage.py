"""LocalStorage keeps the promises of the Storage interface on which the commit algorithm relies."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import pytest

from headspan.errors import StoreError
from headspan.io.local import LocalStorage
from headspan.io.storage import StagedObject, Storage, named, total_bytes


def test_local_storage_implements_the_interface(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert isinstance(storage, Storage)
    with storage.stage("a") as staged:
        assert isinstance(staged, StagedObject)
        staged.finish()


def test_put_replaces_a_file_and_returns_its_checksum(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for content in (b"earlier", b"", b"later and longer"):
        wanted = (len(content), google_crc32c.value(content))
        assert storage.put("folder/file", [content[:3], content[3:]]) == wanted == storage.checksum("folder/file")
        assert (storage.get("folder/file"), storage.size("folder/file")) == (content, len(content))
    assert list(storage.list()) == ["folder/file"]


def test_only_one_of_several_writers_puts_a_file_that_was_absent(tmp_path: Path) -> None:
    writers = [LocalStorage(tmp_path) for _ in range(16)]
    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(lambda writer: writer.put_if_absent("claim", writer.token.encode()), writers))
    assert won.count(True) == 1
    assert writers[0].get("claim").decode() == writers[won.index(True)].token
    assert list(writers[0].list()) == ["claim"]


def test_a_staged_file_is_published_under_its_writers_token_alone(tmp_path: Path) -> None:
    first, second = LocalStorage(tmp_path), LocalStorage(tmp_path)
    for storage in (first, second):
        with storage.stage("a/b") as staged:
            staged.write(storage.token.encode())
            assert staged.finish() == (8, google_crc32c.value(storage.token.encode()))
    assert first.size("a/b") is None
    assert sorted(first.staged()) == sorted([("a/b", first.token), ("a/b", second.token)])
    # Any process may publish what another one has staged.
    assert second.publish("a/b", first.token)
    assert first.get("a/b").decode() == first.token
    assert not second.publish("a/b", first.token)
    assert not second.publish("not/there", first.token)
    second.discard("a/b", second.token)
    assert list(first.list()) == ["a/b"]


def test_an_exception_leaves_no_staged_file(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    def interrupted() -> None:
        with storage.stage("a") as staged:
            staged.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(storage.list()) == []


def test_only_names_with_a_token_count_as_staged(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for name in (".a.0badcafe.tmp", ".tmp", "a.tmp", ".a.tmp", ".a.0badcafe.tmp~"):
        (tmp_path / name).write_bytes(b"")
    assert list(storage.staged()) == [("a", "0badcafe")]


def test_names_are_found_in_their_folder_alone_and_in_order(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for name in ("unit-2.json", "unit-1.json", "._unit-1.json", "unit-1.json~", "g/unit-3.json", "../unit-4.json"):
        storage.put(f"f/{name}", [b"x"])
    assert named(storage, "f", r"unit-\d\.json") == ["f/unit-1.json", "f/unit-2.json"]
    assert named(storage, "missing", ".*") == []


def test_a_folder_is_moved_only_to_a_name_without_files(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("new/x", [b"new"])
    storage.put("old/x", [b"old"])
    os.utime(tmp_path / "new", (1, 1))
    assert storage.folder_age("new") > time.time() - 10
    with pytest.raises(FileExistsError):
        storage.move_folder("new", "old")
    assert storage.get("old/x") == b"old"
    storage.delete_folder("old")
    storage.move_folder("new", "old")
    assert storage.get("old/x") == b"new"
    assert storage.folder_age("old") < 3600
    assert storage.folder_age("new") == 0


def test_folders_without_files_do_not_keep_a_folder_from_its_name(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("new/x", [b"new"])
    (tmp_path / "old" / "embedding" / "c").mkdir(parents=True)
    storage.move_folder("new", "old")
    assert list(storage.list()) == ["old/x"]
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["x"]


def test_a_folder_that_cannot_be_listed_is_refused_and_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    for key in ("records/commits/unit", "lost+found/x", "file"):
        storage.put(key, [b"x"])
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith(("commits", "lost+found")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match=r"commits: cannot be listed \(Permission denied\); correct its permissions"):
        named(storage, "records/commits", ".*")
    # The root of a disk has such a folder, which belongs to nobody's store.
    assert list(storage.list()) == ["file"]
    assert list(storage.list("missing")) == list(storage.list("file")) == []


def test_files_that_are_renamed_while_they_are_counted_count_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a", [b"four"])
    monkeypatch.setattr(storage, "list", lambda: iter(["a", "gone"]))
    assert total_bytes(storage) == 4


def test_a_refused_operation_raises_a_store_error_about_its_file(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for operation in (
        lambda: storage.put("file/below", [b"x"]),
        lambda: storage.put_if_absent("file/below", b"x"),
        lambda: storage.stage("file/below"),
        lambda: storage.delete("folder/inner"),
    ):
        with pytest.raises(StoreError, match=r"(below|inner): cannot be written \(.*\); free disk space"):
            operation()
