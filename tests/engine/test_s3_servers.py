"""A store in a bucket of a real S3 server has the bytes of one on disk, also when its writers are killed.

The server is the one at HEADSPAN_TEST_S3, with credentials in the usual variables, such as a gateway of Ceph; otherwise
the program `minio`, where it is on the PATH. Without either, the tests are skipped.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import google_crc32c
import pytest

from headspan.io import object_store, staged_upload
from headspan.io.buckets import server_time
from headspan.io.files import new_token
from headspan.io.locations import StoreURL
from headspan.io.object_store import STAGED, ObjectStorage
from headspan.store.worker_states import WORKERS
from headspan.store.write.unit import StoreWriter
from tests.conftest import image_members, relative_files, write_tar
from tests.engine.image_sources import TINY
from tests.engine.kill_checks import killed_runs
from tests.engine.test_object_store import fill
from tests.engine.test_unit_writer import new_store

RUNNING = os.environ.get("HEADSPAN_TEST_S3")
pytestmark = pytest.mark.skipif(
    RUNNING is None and shutil.which("minio") is None, reason="HEADSPAN_TEST_S3 is not set, nor is minio on the PATH"
)
# The least that S3 allows for a part.
PART = 5 << 20
# The longest test takes half a minute for each.
KILLS = int(os.environ.get("HEADSPAN_TEST_KILLS", "2"))


@contextmanager
def minio(folder: Path) -> Iterator[dict[str, str]]:
    """Run MinIO, and yield the variables of the environment with which it is found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"MINIO_ROOT_USER": "headspan", "MINIO_ROOT_PASSWORD": "headspan-tests"}
    found = {
        "AWS_ACCESS_KEY_ID": names["MINIO_ROOT_USER"],
        "AWS_SECRET_ACCESS_KEY": names["MINIO_ROOT_PASSWORD"],
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    command = ["minio", "server", str(folder), "--address", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, env={**os.environ, **names}) as server:
        try:
            until = time.monotonic() + 30
            with patch.dict(os.environ, found):
                while server_time("s3://bucket") is None:
                    assert server.poll() is None
                    assert time.monotonic() < until
                    time.sleep(0.1)
            yield found
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A new bucket, which is deleted at the end."""
    import boto3

    name = f"headspan-tests-{new_token()}"
    running = {"AWS_ENDPOINT_URL": str(RUNNING)}
    with (
        minio(tmp_path_factory.mktemp("disk")) if RUNNING is None else nullcontext(running) as found,
        patch.dict(os.environ, {"AWS_REGION": "us-east-1", **found}),
    ):
        server = boto3.resource("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
        made = server.create_bucket(Bucket=name)
        yield name
        made.objects.all().delete()
        made.delete()


@pytest.fixture
def url(bucket: str, monkeypatch: pytest.MonkeyPatch) -> StoreURL:
    """An address without objects."""
    monkeypatch.setattr(object_store, "_fit", set())
    return StoreURL(f"s3://{bucket}/{new_token()}/run.zarr")


def files_of(url: StoreURL) -> dict[str, bytes]:
    """The content of every file of a store, but what killed writers staged and said of themselves."""
    found = ObjectStorage(url)
    return {key: found.get(key) for key in found.list() if not key.startswith((f"{STAGED}/", f"{WORKERS}/"))}


def test_two_writers_leave_the_store_on_disk_in_a_bucket(url: StoreURL, tmp_path: Path) -> None:
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
    assert files_of(url) == relative_files(local)
    assert len([*writers[0].storage.list()]) == len(relative_files(local))


def test_uploads_are_conditional_checked_and_removed_when_abandoned(
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


def test_only_one_of_several_writers_puts_an_object_that_was_absent(url: StoreURL) -> None:
    writers = [ObjectStorage(url) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for claim in map(str, range(8)):
            won = list(threads.map(lambda each, key=claim: each.put_if_absent(key, each.token.encode()), writers))
            assert won.count(True) == 1
            assert writers[0].get(claim).decode() == writers[won.index(True)].token


def test_killed_runs_are_resumed_to_the_store_on_disk(url: StoreURL, tmp_path: Path) -> None:
    config = tmp_path / "headspan-tiny.json"
    config.write_text(json.dumps(TINY))
    settings = {
        "shards": [str(write_tar(tmp_path / "0.tar", image_members(range(7), (2,))))],
        "model": str(config),
        "pretrained": "random:0",
        "layers": "all",
        "emit": ["heads", "mlps"],
        "device": "cpu",
        "batch_size": 2,
        "workers": 2,
        "unit_images": 2,
    }
    draw = random.Random(0)
    with killed_runs(settings) as runs:
        assert runs.run(tmp_path / "run.zarr")["status"] == 0
        wanted = relative_files(tmp_path / "run.zarr")
        whole = runs.run(url, whole=True)
        assert (whole["status"], files_of(url)) == (0, wanted)
        for number, last in enumerate(draw.sample(range(len(whole["steps"])), KILLS)):
            place = StoreURL(f"{url}/{number}")
            killed = runs.run(place, whole=True, last=last)
            again = runs.run(place, whole=True)
            assert (killed["status"], again["status"]) == (-9, 0)
            assert files_of(place) == wanted, last
        place = StoreURL(f"{url}/several")
        assert runs.run(place, whole=True, writers=3)["status"] == 0
        assert files_of(place) == wanted
