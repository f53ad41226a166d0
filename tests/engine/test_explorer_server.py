"""The explorer's server: what it refuses, pictures, dropped-in images, and stores that grow or go while it runs."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from PIL import Image
from starlette.routing import Route

import headspan as hs
from headspan.decode.exact import preprocess_image
from headspan.errors import SettingsError, StoreError
from headspan.explore.nearest.neighbours import nearest_to_image
from headspan.features.saved import save_scores
from headspan.originals.seen_part import stored_preprocess
from headspan.web.app import application
from headspan.web.guard import HEADERS, Guard
from headspan.web.state import open_stores
from headspan.web.state.bounded import Bounded
from headspan.web.state.explorer import Explorer
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
from tests.conftest import ToyRun, encoded_image, relative_files, write_tar
from tests.engine.hand_made_features import hand_made_scores
from tests.engine.model_in_process import InProcess
from tests.engine.test_store import unfinished  # noqa: F401  (a fixture)

HOST = "localhost:8000"
# An address that is always answered.
STATUS = "/api/status"


def client_of(*paths: Path, shards: tuple[str, ...] = ()) -> TestClient:
    explorer = Explorer(OpenStores(paths), InProcess(shards=shards), Uploads(), shards)
    return TestClient(application(explorer, [HOST]), base_url=f"http://{HOST}", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(toy_run: ToyRun) -> Iterator[TestClient]:
    # Entered, all requests are answered by one event loop, as in a server.
    with client_of(toy_run.path) as found:
        yield found


@pytest.fixture
def checked_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are compared with their files at every request, not only once a second."""
    monkeypatch.setattr(open_stores, "_CHECK_SECONDS", -1.0)


def refusal(answer: httpx.Response, status: int) -> str:
    """The sentence of an answer that refuses."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "kind"}
    sentence: str = answer.json()["error"]
    assert "\n" not in sentence
    return sentence


# What is refused


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost", "localhost:8001", "127.0.0.1.nip.io:8000", ""]
)
def test_a_request_for_another_host_is_refused(client: TestClient, host: str) -> None:
    for path in (STATUS, "/"):
        assert "answers only for localhost:8000" in refusal(client.get(path, headers={"Host": host}), 421)
    assert client.get(STATUS).status_code == 200
    assert client.get(STATUS, headers={"Host": "LOCALHOST:8000"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        # Another port of this machine.
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_get_no_answers(client: TestClient, headers: dict[str, str]) -> None:
    assert "only the explorer's own may ask" in refusal(client.get(STATUS, headers=headers), 403)
    answer = client.post("/api/stores/toy/uploads", content=encoded_image(1), headers=headers)
    assert answer.status_code == 403


def test_its_own_page_gets_answers_and_a_link_elsewhere_may_lead_to_it(client: TestClient) -> None:
    own = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    assert client.get(STATUS, headers=own).status_code == 200
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code != 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    refusal(client.request(method, STATUS), 405)


def test_post_is_accepted_only_for_uploads(client: TestClient) -> None:
    assert "does not accept POST" in refusal(client.post(STATUS), 405)
    refusal(client.post("/"), 405)


def test_head_has_the_headers_of_get_and_no_body(client: TestClient) -> None:
    got, head = client.get("/api/stores/toy/images/0/picture"), client.head("/api/stores/toy/images/0/picture")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers == got.headers


@pytest.mark.parametrize(
    "path", [STATUS, "/", "/nothing", "/api/nothing", "/api/docs", "/api/stores/toy/images/0/picture"]
)
def test_every_answer_says_what_pages_may_do(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert HEADERS.items() <= {name.title(): value for name, value in answer.headers.items()}.items() | HEADERS.items()
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "access-control-allow-origin" not in answer.headers


def asked(app: Any, body: AsyncIterator[bytes], **headers: str) -> tuple[httpx.Response, int]:
    """The answer to a body that is sent in parts, and how many parts were read."""

    async def ask() -> tuple[httpx.Response, int]:
        read = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal read
            async for part in body:
                read += 1
                yield part

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{HOST}") as client:
            return await client.post("/api/x", content=counted(), headers=headers), read

    return asyncio.run(ask())


def test_a_body_is_counted_while_it_arrives() -> None:
    sizes = []

    async def reads_all(scope: Any, receive: Any, send: Any) -> None:
        sizes.append(0)
        while True:
            message = await receive()
            sizes[-1] += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def parts(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(1 << 10)

    guard = Guard(reads_all, [HOST], most_bytes=10 << 10)
    answer, read = asked(guard, parts(10))
    assert (answer.status_code, sizes[-1], read) == (200, 10 << 10, 10)
    answer, read = asked(guard, parts(1000))
    assert "larger than" in refusal(answer, 413)
    assert read <= 12


def test_a_body_that_says_it_is_too_large_is_not_read(client: TestClient) -> None:
    headers = {"Content-Length": str(1 << 40)}
    assert "larger than 32 MB" in refusal(client.post("/api/stores/toy/uploads", content=b"x", headers=headers), 413)


def test_of_many_files_that_are_dropped_in_at_once_eight_are_received_and_the_others_after_them(
    toy_run: ToyRun,
) -> None:
    app = application(Explorer(OpenStores([toy_run.path]), InProcess(), Uploads()), [HOST])
    arriving: list[int] = []

    async def every() -> tuple[list[int], list[int]]:
        go_on = asyncio.Event()

        async def body(number: int) -> AsyncIterator[bytes]:
            arriving.append(number)
            await go_on.wait()
            yield encoded_image(number)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{HOST}") as client:
            sent = [
                asyncio.ensure_future(client.post("/api/stores/toy/uploads", content=body(number)))
                for number in range(12)
            ]
            while len(arriving) < 8:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            first = list(arriving)
            go_on.set()
            return first, [answer.status_code for answer in await asyncio.gather(*sent)]

    first, statuses = asyncio.run(every())
    assert len(first) == 8
    assert len(arriving) == 12
    assert statuses == [200] * 12


def test_a_mistake_is_one_sentence_for_the_page_and_a_traceback_for_the_terminal(
    toy_run: ToyRun, capfd: pytest.CaptureFixture[str]
) -> None:
    app = application(Explorer(OpenStores([toy_run.path]), InProcess(), Uploads()), [HOST])

    def broken(request: Request) -> None:
        raise ZeroDivisionError("secret detail")

    app.router.routes.insert(0, Route("/api/broken", broken))
    answer = TestClient(app, base_url=f"http://{HOST}").get("/api/broken")
    assert "secret" not in refusal(answer, 500)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "ZeroDivisionError: secret detail" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("/api/nothing", 404, "/api/nothing is no address of the explorer"),
        (
            "/api/stores/toy/images/0/picture?side=7",
            422,
            "side: '7' came, but input should be greater than or equal to 32",
        ),
        ("/api/stores/other/images/0/picture", 404, "there is no store 'other' here; the stores are: toy"),
        ("/api/stores/toy/images/70/picture", 404, "shows no image with row '70'"),
        # A broken image.
        ("/api/stores/toy/images/5/picture", 404, "shows no image with row '5'"),
        ("/api/stores/toy/images/..%2F..%2Fetc%2Fpasswd/picture", 404, "is no address"),
        ("/api/stores/toy/images/upload-0/picture", 404, "'upload-0' was not dropped in"),
    ],
)
def test_an_error_is_one_sentence(client: TestClient, address: str, status: int, sentence: str) -> None:
    assert sentence in refusal(client.get(address), status)


def test_the_description_of_the_api_is_a_page_without_scripts_and_lists_every_address(client: TestClient) -> None:
    page, described = client.get("/api/docs").text, client.get("/api/openapi.json").json()
    assert "<script" not in page
    assert "http" not in page.replace("HTTP", "")
    for path, methods in described["paths"].items():
        assert path in page
        for operation in methods.values():
            assert {"400", "404", "422", "503"} <= operation["responses"].keys()
            assert operation["description"], path
    assert client.get("/api/docs.css").headers["content-type"].startswith("text/css")


# Pictures


def picture_of(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def test_a_picture_is_the_whole_image_and_seen_is_what_the_model_sees(client: TestClient, toy_run: ToyRun) -> None:
    original = encoded_image(12, 33 + 12 % 9, 35 + 12 % 7, "PNG")
    whole = picture_of(client.get("/api/stores/toy/images/12/picture"))
    expected = Image.open(io.BytesIO(original)).convert("RGB")
    # Small pictures are not enlarged.
    assert whole.size == expected.size == (40, 36)
    assert _distance(whole, np.asarray(expected)) < 6
    assert max(picture_of(client.get("/api/stores/toy/images/12/picture?side=32")).size) == 32
    preprocess = stored_preprocess(hs.open(toy_run.path).attributes["preprocess"])
    seen = picture_of(client.get("/api/stores/toy/images/12/seen"))
    assert seen.size == (32, 32)
    assert _distance(seen, preprocess_image(original, preprocess)) < 6
    # The check can fail: another row's picture is far away.
    assert (
        _distance(picture_of(client.get("/api/stores/toy/images/13/seen")), preprocess_image(original, preprocess)) > 20
    )


def _distance(found: Image.Image, expected: np.ndarray) -> float:
    """The mean difference of two pictures, in levels."""
    return float(np.abs(np.asarray(found.convert("RGB"), float) - expected).mean())


def test_a_browser_that_has_a_picture_does_not_get_it_again(client: TestClient) -> None:
    address = "/api/stores/toy/images/12/picture?side=64"
    first = client.get(address)
    again = client.get(address, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(address, headers={"If-None-Match": '"other"'}).content == first.content
    assert client.get("/api/stores/toy/images/12/seen").headers["ETag"] != first.headers["ETag"]


def test_a_picture_without_its_shard_is_missing_and_says_so(toy_run: ToyRun, tmp_path: Path) -> None:
    shard = Path(shutil.copy(toy_run.shards[0], tmp_path / "a.tar"))
    hs.precompute(out=tmp_path / "a.zarr", **{**toy_run.settings(), "shards": [str(shard)]})
    client = client_of(tmp_path / "a.zarr")
    address = "/api/stores/a/images/0/picture"
    first = client.get(address)
    assert first.status_code == 200
    moved = shard.rename(tmp_path / "moved.tar")
    assert "a.tar" in refusal(client.get(address), 404)
    # A picture in memory is not shown for a shard that has changed.
    shard.write_bytes(moved.read_bytes() + bytes(10240))
    assert "has changed" in refusal(client.get(address), 404)
    # The store still answers.
    assert client.get("/api/stores/a/images/0").json()["missing"]
    named = client_of(tmp_path / "a.zarr", shards=(str(moved),))
    assert named.get(address).content == first.content


def test_a_command_that_a_store_names_is_not_run(toy_run: ToyRun, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    shard = f"pipe:cat {toy_run.shards[1]}; touch {marker}"
    hs.precompute(out=tmp_path / "a.zarr", **{**toy_run.settings(), "shards": [shard]}, allow_pipe=True)
    marker.unlink()
    client = client_of(tmp_path / "a.zarr")
    for kind in ("picture", "seen", ""):
        answer = client.get(f"/api/stores/a/images/0/{kind}".rstrip("/"))
        assert "is a command, which is not run" in answer.text
    assert not marker.exists()


# Dropped-in images


def dropped(client: TestClient, encoded: bytes) -> httpx.Response:
    return client.post("/api/stores/toy/uploads", content=encoded)


def test_a_dropped_in_image_has_the_numbers_of_its_file(client: TestClient, toy_run: ToyRun, tmp_path: Path) -> None:
    encoded = encoded_image(99, 60, 90)
    found = dropped(client, encoded).json()
    assert (found["width"], found["height"]) == (90, 60)
    assert found == dropped(client, encoded).json()
    assert picture_of(client.get(f"/api/stores/toy/images/{found['id']}/picture")).size == (90, 60)
    (tmp_path / "photo.jpg").write_bytes(encoded)
    expected = nearest_to_image(hs.open(toy_run.path), tmp_path / "photo.jpg", count=5)
    near = client.get("/api/stores/toy/neighbours", params={"image": found["id"], "count": 5}).json()
    assert [hit["key"] for hit in near["hits"]] == list(expected.keys)
    np.testing.assert_allclose([hit["score"] for hit in near["hits"]], expected.scores, rtol=1e-5)


def test_a_picture_is_not_turned_and_has_no_metadata_of_its_file(client: TestClient) -> None:
    exif = Image.Exif()
    # Turned by a quarter, and a place where it was taken.
    exif[0x0112], exif[0x010E] = 6, "at home"
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), "red").save(buffer, "JPEG", exif=exif.tobytes(), comment=b"at home")
    found = dropped(client, buffer.getvalue()).json()
    assert (found["width"], found["height"]) == (90, 60)
    for kind in ("picture", "seen"):
        answer = client.get(f"/api/stores/toy/images/{found['id']}/{kind}")
        picture = picture_of(answer)
        assert not picture.getexif()
        assert b"at home" not in answer.content
        assert kind == "seen" or picture.size == (90, 60)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises that size, without pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("encoded", "sentence"),
    [
        (b"", "the request has no body"),
        (b"not an image", "is no picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture"),
        (encoded_image(1)[:200], "is no picture"),
        (encoded_image(1, 300, 300)[:-500], "cannot be decoded"),
        (png_of(30_000, 30_000), "more than 178,956,970 pixels"),
        (png_of(2, 80_000_000), "too long and narrow"),
    ],
    ids=["empty", "text", "svg", "eps", "header", "cut", "large", "narrow"],
)
def test_a_file_that_is_no_image_is_refused(client: TestClient, encoded: bytes, sentence: str) -> None:
    assert sentence in refusal(dropped(client, encoded), 400)


def test_the_oldest_dropped_in_images_are_forgotten() -> None:
    uploads = Uploads(kept_bytes=100)
    names = [uploads.add(bytes([number]) * 40) for number in range(3)]
    with pytest.raises(SettingsError, match="no longer kept"):
        uploads.get(names[0])
    assert uploads.get(names[2]) == bytes([2]) * 40


def test_values_in_memory_are_bounded_and_the_last_one_stays() -> None:
    kept: Bounded[bytes] = Bounded(100, len)
    for number in range(1000):
        kept.put(number % 30, bytes(number % 50))
    held = [kept.get(key) for key in range(30)]
    assert sum(len(value) for value in held if value is not None) <= 100
    kept.put("large", bytes(1000))
    assert kept.get("large") == bytes(1000)
    assert len(kept) == 1


# Stores


def status_of(client: TestClient) -> dict[str, Any]:
    (found,) = client.get(STATUS).json()["stores"]
    return dict(found)


@pytest.mark.usefixtures("checked_always")
def test_a_store_that_grows_is_shown_as_it_is_now(unfinished: Path, toy_run: ToyRun) -> None:  # noqa: F811
    client = client_of(unfinished)
    before = status_of(client)
    assert (before["images"], before["planned"], before["complete"]) == (36, 70, False)
    assert status_of(client)["version"] == before["version"]
    # Row 40 is in the unit that is missing.
    refusal(client.get("/api/stores/copy/images/40"), 404)
    earlier = client.get("/api/stores/copy/images/66").json()
    explorer: Explorer = client.app.state.explorer  # type: ignore[attr-defined]
    held = explorer.stores.get("copy")
    hs.precompute(out=unfinished, **toy_run.settings())
    after = status_of(client)
    assert (after["images"], after["complete"]) == (67, True)
    assert after["version"] != before["version"]
    assert client.get("/api/stores/copy/images/40").json()["key"] == "00040"
    # Rows are fixed, and a request that began before still reads its store.
    assert client.get("/api/stores/copy/images/66").json()["key"] == earlier["key"] == "00066"
    assert held.images == 36
    assert np.isfinite(held.head(0, 0)).all()


@pytest.mark.usefixtures("checked_always")
def test_a_new_result_changes_the_version(toy_copy: Path) -> None:
    client = client_of(toy_copy)
    versions = [status_of(client)["version"]]
    store = hs.open(toy_copy)
    for texts in (["a red car", "a blue dog", "a hat"], ["a red car", "a blue dog", "a coat"]):
        hs.textspan(store, texts, 2, run="own", overwrite=True, draws=0)
        versions.append(status_of(client)["version"])
    assert len(set(versions)) == 3
    assert status_of(client)["version"] == versions[-1]


@pytest.mark.usefixtures("checked_always")
def test_a_store_that_goes_and_comes_back_is_missing_meanwhile(toy_copy: Path, toy_run: ToyRun) -> None:
    client = client_of(toy_copy, toy_run.path)
    away = toy_copy.rename(toy_copy.with_name("away"))
    assert "is no longer there" in refusal(client.get("/api/stores/copy/images/0"), 404)
    copy, toy = client.get(STATUS).json()["stores"]
    assert "is no longer there" in copy["problem"]
    assert toy["problem"] is None
    assert client.get("/api/stores/toy/images/0").status_code == 200
    away.rename(toy_copy)
    assert client.get("/api/stores/copy/images/0").status_code == 200


def test_stores_are_looked_at_once_a_second(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores, looked = OpenStores([toy_copy]), []
    monkeypatch.setattr(open_stores, "state_of", lambda path: looked.append(path) or "")
    for _ in range(100):
        stores.get("copy")
    assert not looked


def test_stores_of_one_name_are_numbered_and_a_store_is_shown_once(toy_run: ToyRun, tmp_path: Path) -> None:
    other = Path(shutil.copytree(toy_run.path, tmp_path / "toy.zarr"))
    assert OpenStores([toy_run.path, other]).names == ["toy", "toy-2"]
    with pytest.raises(SettingsError, match="named twice"):
        OpenStores([other, tmp_path / "." / "toy.zarr"])
    with pytest.raises(StoreError):
        OpenStores([tmp_path])


def test_a_store_is_unchanged_after_every_kind_of_question(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    save_scores(store, hand_made_scores(np.ones((2, store.joint)), store.images))
    before = relative_files(toy_copy)
    times = {path: path.stat().st_mtime_ns for path in toy_copy.rglob("*")}
    client = client_of(toy_copy)
    described = client.get("/api/openapi.json").json()
    upload = client.post("/api/stores/copy/uploads", content=encoded_image(3)).json()["id"]
    values = {"store": "copy", "head": "L1.H0", "of": "embedding", "id": upload, "image": upload, "feature": 0}
    asked = {"text": "a dog", "by": "word:caption", "words": "caption", "without": "L0.H0", "image": upload, "part": 0}
    answered = 0
    for path, methods in described["paths"].items():
        for operation in methods.values():
            wanted = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
            answer = client.get(path.format(**values), params={name: asked[name] for name in wanted & asked.keys()})
            answered += answer.status_code == 200
    assert answered > 15
    assert relative_files(toy_copy) == before
    assert {path: path.stat().st_mtime_ns for path in toy_copy.rglob("*")} == times


def test_several_users_at_once_get_the_answers_that_each_gets_alone(client: TestClient) -> None:
    ids = [dropped(client, encoded_image(number, 40 + number, 50)).json()["id"] for number in range(4)]
    addresses = [
        *(f"/api/stores/toy/images/{name}/bars?text=a+{thing}" for name in (*ids, 0, 12) for thing in ("dog", "hat")),
        *(f"/api/stores/toy/images/{name}/picture?side=48" for name in (*ids, 0, 12, 13)),
        *(f"/api/stores/toy/neighbours?image={name}" for name in (*ids, 0, 12)),
    ]
    alone = [client.get(address) for address in addresses]
    assert {answer.status_code for answer in alone} == {200}
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(client.get, addresses * 3))
    assert [answer.content for answer in together] == [answer.content for answer in alone] * 3
    assert len({answer.content for answer in alone}) == len(addresses)


def test_shards_with_several_images_of_a_key_show_the_row_that_is_asked_for(toy_run: ToyRun, tmp_path: Path) -> None:
    images = [encoded_image(number, 40, 40, "PNG") for number in range(2)]
    shard = write_tar(tmp_path / "a.tar", [("a/x.png", images[0]), ("b/x.png", images[1])])
    hs.precompute(out=tmp_path / "a.zarr", **{**toy_run.settings(), "shards": [str(shard)]})
    client = client_of(tmp_path / "a.zarr")
    for row, encoded in enumerate(images):
        found = picture_of(client.get(f"/api/stores/a/images/{row}/picture"))
        assert _distance(found, np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))) < 6


def test_no_answer_holds_what_json_does_not_have(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    # Feature 3 is dead, and has no scores.
    save_scores(store, hand_made_scores(np.ones((5, store.joint)), store.images))
    client = client_of(toy_copy)
    for path in client.get("/api/openapi.json").json()["paths"]:
        answer = client.get(path.format(store="copy", head="L0.H0", of="embedding", id="0", image="0", feature="3"))
        if answer.headers["content-type"].startswith("application/json"):
            json.loads(answer.content, parse_constant=_refuse)


def _refuse(constant: str) -> Iterator[None]:
    raise AssertionError(f"{constant} is not JSON")
