"""A store in a bucket of MinIO has the bytes of one on disk; for machines on which the program `minio` is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import google_crc32c
import pytest

from headspan.io import object_store, staged_upload
from headspan.io.buckets import server_time
from headspan.io.locations import StoreURL
from headspan.io.object_store import ObjectStorage
from headspan.store.write.unit import StoreWriter
from tests.conftest import relative_files
from tests.engine.test_object_store import fill
from tests.engine.test_unit_writer import new_store

pytestmark = pytest.mark.skipif(shutil.which("minio") is None, reason="the program minio is not on PATH")
# The least that S3 allows for a part.
PART = 5 << 20


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreURL]:
    """An address in an empty bucket of a new server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A folder of the server's disk is a bucket.
    (tmp_path / "disk" / "bucket").mkdir(parents=True)
    names = {"MINIO_ROOT_USER": "headspan", "MINIO_ROOT_PASSWORD": "headspan-tests"}
    command = ["minio", "server", str(tmp_path / "disk"), "--address", f"127.0.0.1:{port}"]
    environment = {
        "AWS_ACCESS_KEY_ID": names["MINIO_ROOT_USER"],
        "AWS_SECRET_ACCESS_KEY": names["MINIO_ROOT_PASSWORD"],
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    monkeypatch.setattr(object_store, "_fit", set())
    place = StoreURL("s3://bucket/run.zarr")
    with patch.dict(os.environ, environment), subprocess.Popen(command, env={**os.environ, **names}) as server:
        try:
            until = time.monotonic() + 30
            while server_time(place) is None:
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
            yield place
        finally:
            server.terminate()


def test_two_writers_leave_the_store_on_disk_in_a_bucket_of_minio(url: StoreURL, tmp_path: Path) -> None:
    local = new_store(tmp_path / "run.zarr")
    new_store(url)
    writers = [StoreWriter(url), StoreWriter(url)]
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(fill, writers)
    assert [a != b for a, b in zip(one, two, strict=True)] == [True] * len(writers[0].units)
    writers[0].finish()
    store = StoreWriter(local)
    fill(store)
    store.finish()
    found = ObjectStorage(url)
    assert {key: found.get(key) for key in found.list()} == relative_files(local)


def test_uploads_to_minio_are_conditional_checked_and_removed_when_abandoned(
    url: StoreURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_upload, "PART_BYTES", PART)
    one, other, data = ObjectStorage(url), ObjectStorage(url), bytes(range(256)) * (48 << 10)
    assert len(data) > 2 * PART
    with one.stage("large") as staged:
        staged.write(data)
        assert staged.finish() == (len(data), google_crc32c.value(data))
    assert other.publish("large", one.token)
    assert one.get("large") == data
    assert [each.put_if_absent("claim", each.token.encode()) for each in (one, other)] == [True, False]
    with one.stage("left") as staged:
        staged.finish()
    monkeypatch.setattr(object_store, "LEFT_SECONDS", -3600.0)
    other.remove_abandoned([one.token])
    assert [*other.staged()] == [("left", one.token)]
    other.remove_abandoned()
    assert sorted(other.list()) == ["claim", "large"]
