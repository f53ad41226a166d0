"""Frames of videos: the right ones, from every container, and every video that does not decode is listed.

Grey bars in each frame tell its number, which survives encoding.
"""

from __future__ import annotations

import gzip
import io
import json
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from headspan.cli.main import main
from headspan.errors import HeadspanError, SettingsError, SourceError
from headspan.events import Progress
from headspan.video import WrittenFrames, decode, pipeline, write_frames
from headspan.video.decode import read_frames, turned
from tests.conftest import write_tar
from tests.engine.moving import FORMATS, encode, number_of, numbered


def frames_in(tar: Path) -> dict[str, list[np.ndarray]]:
    """The frames of each key of a tar, in order."""
    found: dict[str, list[np.ndarray]] = {}
    with tarfile.open(tar) as members:
        for member in members:
            key, _, field = member.name.partition(".")
            if field.endswith(("jpg", "png", "webp")):
                file = members.extractfile(member)
                assert file is not None
                found.setdefault(key, []).append(np.asarray(Image.open(io.BytesIO(file.read()))))
    return found


def companion(tar: Path, name: str) -> str:
    with tarfile.open(tar) as members:
        file = members.extractfile(name)
        assert file is not None
        return file.read().decode()


def numbers(data: bytes, count: int) -> list[int]:
    taken: list[int] = read_frames(io.BytesIO(data), count, number_of).taken
    return taken


def shown_at_middles(stamps: list[int], end: int, count: int) -> list[int]:
    """By a plain search: the last frame that begins before the middle of each span."""
    middles = [stamps[0] + (span + 0.5) * (end - stamps[0]) / count for span in range(count)]
    return [max(place for place, stamp in enumerate(stamps) if stamp < middle) for middle in middles]


CODECS = [
    ("mp4", "libx264", {"g": "8", "bf": "3"}),
    ("mp4", "libx264", {"g": "250", "x264-params": "open-gop=1:keyint=7:bframes=3"}),
    ("mp4", "libx265", {"x265-params": "keyint=9:log-level=none"}),
    ("mp4", "mpeg4", {"g": "11"}),
    ("webm", "libvpx", {"g": "9", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("webm", "libvpx-vp9", {"g": "9", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("avi", "mpeg4", {"bf": "2", "g": "9"}),
    ("avi", "mjpeg", {}),
    ("avi", "libx264", {"bf": "3", "g": "9"}),
    ("mkv", "libx264", {"g": "8", "bf": "3"}),
    ("mkv", "ffv1", {}),
]


@pytest.mark.parametrize(("kind", "codec", "options"), CODECS)
@pytest.mark.parametrize(("frames", "count"), [(60, 12), (61, 12), (60, 7), (25, 12), (12, 12), (100, 1)])
def test_frames_are_those_at_the_middles_of_equal_spans(
    kind: str, codec: str, options: dict[str, str], frames: int, count: int
) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    data = encode(numbered(frames), kind, codec=codec, options=options, pixels=pixels)
    assert numbers(data, count) == shown_at_middles(list(range(frames)), frames, count)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_last_frame_of_a_short_video_is_repeated(kind: str) -> None:
    for frames in (1, 3, 11):
        data = encode(numbered(frames), kind)
        found = read_frames(io.BytesIO(data), 12, number_of)
        assert found.taken == [*range(frames), *[frames - 1] * (12 - frames)]
        assert found.is_short


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv"])
def test_spans_are_of_time_when_the_frame_rate_varies(kind: str) -> None:
    # The first frames last a second each, the others a tenth.
    stamps = [*range(0, 100, 10), *range(100, 130)]
    data = encode(numbered(len(stamps)), kind, stamps=stamps, rate=10)
    found = read_frames(io.BytesIO(data), 13, number_of)
    assert found.taken == shown_at_middles(stamps, 130, 13)
    assert found.taken[:9] == list(range(9))
    # WebM counts milliseconds, and states no duration of the last frame.
    assert found.duration_seconds == pytest.approx(13.0, abs=0.02)
    np.testing.assert_allclose(found.times, [stamps[frame] / 10 for frame in found.taken], atol=0.002)


def test_the_published_rule_gives_the_same_frames_if_every_span_has_as_many() -> None:
    for frames, count in ((24, 12), (36, 12), (60, 12), (96, 32), (64, 32)):
        ends = np.linspace(0, frames, count + 1).astype(int)
        published = [int(first + last - 1) // 2 for first, last in pairwise(ends)]
        assert numbers(encode(numbered(frames)), count) == published


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_only_the_groups_of_pictures_with_chosen_frames_are_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(numbered(120), kind, options={"g": "6", "bf": "0"})
    counts: list[int] = []
    # Packets cannot be patched, so decoded frames are counted where their numbers are looked up.
    whole = decode._frame_at
    monkeypatch.setattr(decode, "_frame_at", lambda *given: (counts.append(1), whole(*given))[1])
    assert numbers(data, 5) == shown_at_middles(list(range(120)), 120, 5)
    assert 5 <= len(counts) <= 5 * 8


@pytest.mark.parametrize(("kind", "codec", "options"), CODECS)
def test_pixels_are_those_of_a_plain_loop_that_decodes_every_frame(
    kind: str, codec: str, options: dict[str, str]
) -> None:
    """Frames that refer to one another: a random picture that moves."""
    picture = np.random.default_rng(4).integers(0, 256, (12, 20, 3), np.uint8)
    whole = np.asarray(Image.fromarray(picture).resize((200, 120), Image.Resampling.BICUBIC))
    pictures = np.stack([whole[step : step + 48, 2 * step : 2 * step + 64] for step in range(60)])
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    data = encode(pictures, kind, codec=codec, options=options, pixels=pixels)
    with av.open(io.BytesIO(data)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(every) == 60
    for count in (4, 12, 60):
        found = read_frames(io.BytesIO(data), count, np.copy).taken
        np.testing.assert_array_equal(found, [every[frame] for frame in shown_at_middles(list(range(60)), 60, count)])


@pytest.mark.parametrize(("width", "height"), [(67, 45), (16, 17), (112, 48)])
@pytest.mark.parametrize("kind", ["mkv", "avi"])
def test_pixels_have_the_videos_size_and_colours_whatever_its_sides(width: int, height: int, kind: str) -> None:
    random = np.random.default_rng(0)
    pictures = np.broadcast_to(random.integers(0, 256, (5, 1, 1, 3), np.uint8), (5, height, width, 3)).copy()
    for codec, pixels in (("ffv1", "yuv444p"), ("ffv1", "bgr0"), ("ffv1", "gray"), ("ffv1", "bgra")):
        data = encode(pictures, kind, codec=codec, pixels=pixels)
        found = read_frames(io.BytesIO(data), 5, np.copy).taken
        wanted = pictures.astype(float)
        if pixels == "gray":
            wanted = np.repeat((pictures @ [0.299, 0.587, 0.114])[..., None], 3, axis=3)
        np.testing.assert_allclose(np.stack(found), wanted, atol=4)


def test_a_video_with_sound_gives_the_frames_of_its_pictures() -> None:
    for kind, length in (("mp4", 6.0), ("mp4", 3.0), ("webm", 6.0), ("mkv", 2.0)):
        data = encode(numbered(30), kind, sound_seconds=length)
        assert numbers(data, 6) == shown_at_middles(list(range(30)), 30, 6)


# Rows `a b u`, `c d v`, `x y w` of the display matrix, and what a viewer sees.
MATRICES = [
    ((1, 0, 0, 1), lambda pixels: pixels),
    # Clockwise by 90°, by 180°, and counterclockwise by 90°.
    ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
    ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
    ((0, -1, 1, 0), lambda pixels: np.rot90(pixels)),
    ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
]


def rotated(mp4: bytes, signs: tuple[int, ...]) -> bytes:
    """The video with another matrix in its track's header."""
    start = mp4.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (sign << 16 for sign in signs)
    return mp4[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[start + 36 :]


@pytest.mark.parametrize(("signs", "seen"), MATRICES)
def test_a_rotation_that_the_container_states_is_carried_out(signs: tuple[int, ...], seen: Any) -> None:
    corner = np.zeros((4, 32, 64, 3), np.uint8)
    corner[:, :16, :16] = 200
    corner[:, :16, 48:] = 100
    data = encode(corner, options={"crf": "5"})
    found = read_frames(io.BytesIO(rotated(data, signs)), 2, np.copy).taken[0]
    wanted = seen(corner[0])
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.astype(int), wanted, atol=25)
    matrix = struct.pack("=9i", *(sign << 16 for sign in (*signs[:2], 0, *signs[2:], 0, 0, 0, 0)))
    np.testing.assert_array_equal(turned(corner[0], matrix), wanted)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad videos with captions."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    good = encode(numbered(30), "webm")
    (folder / "a.mp4").write_bytes(encode(numbered(24)))
    (folder / "a.txt").write_text("first of a\n\nsecond of a\n")
    (folder / "sub" / "b.c.webm").write_bytes(good)
    (folder / "sub" / "b.c.json").write_text('{"captions": ["first of b", "second of b"], "place": "park"}')
    (folder / "d.avi").write_bytes(encode(numbered(5), "avi"))
    (folder / "d.json").write_text("not JSON")
    (folder / "e.mkv").write_bytes(b"no video at all" * 99)
    (folder / "f.mp4").write_bytes(b"")
    (folder / "g.webm").write_bytes(good[: len(good) // 2])
    (folder / "h.mp4").write_bytes(encode(numbered(24))[:-300])
    (folder / "i.mp4").write_bytes(sound_alone())
    (folder / "notes.pdf").write_bytes(b"x")
    return folder


def sound_alone() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream: Any = out.add_stream("aac", rate=48000)
        for first in range(0, 48000, 1024):
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
            quiet.sample_rate, quiet.pts, quiet.time_base = 48000, first, Fraction(1, 48000)
            out.mux(stream.encode(quiet))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def test_videos_that_do_not_decode_are_listed_with_their_reasons(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "frames.tar"
    assert main(["frames", str(videos), str(out), "--count", "6"]) == 0
    printed = capsys.readouterr()
    assert f"18 frames of 3 videos in {out}\n" in printed.out
    assert "fewer than 6 frames, so the last one is repeated: 1 video" in printed.out
    assert "without a caption: 1 video" in printed.out
    assert "d.avi" in printed.err
    assert "its .json is not used" in printed.err
    assert "1 file beside the videos are neither" in printed.err
    lines = [json.loads(line) for line in (tmp_path / "frames.set-aside.jsonl").read_text().splitlines()]
    reasons = {line["video"]: line["reason"] for line in lines}
    assert list(reasons) == ["e.mkv", "f.mp4", "g.webm", "h.mp4", "i.mp4"]
    for name, words in (
        ("e.mkv", "cannot be decoded (Invalid data"),
        ("f.mp4", "is empty"),
        ("g.webm", "it is truncated"),
        ("h.mp4", "cannot be decoded"),
        ("i.mp4", "holds no video stream, only audio"),
    ):
        assert words in reasons[name]
        assert f"  {name} in {videos / name}: {reasons[name]}\n" in printed.out
    assert sorted(each.name for each in tmp_path.iterdir()) == ["frames.set-aside.jsonl", "frames.tar"]


def test_captions_and_metadata_come_from_companions_and_keys_have_no_dots(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "frames.tar"
    written = write_frames(videos, out, 6)
    assert (written.videos, written.short, written.without_caption, len(written.set_aside)) == (3, 1, 1, 5)
    content = json.loads(companion(out, "sub/b_c.json"))
    assert content == {
        "place": "park",
        "video": "sub/b.c.webm",
        "count": 6,
        "duration": 3.0,
        "times": [0.2, 0.7, 1.2, 1.7, 2.2, 2.7],
        "captions": ["first of b", "second of b"],
    }
    assert companion(out, "a.txt") == "first of a"
    assert [number_of(each) for each in frames_in(out)["a"]] == [1, 5, 9, 13, 17, 21]


def test_a_run_where_no_video_decodes_says_so_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.mp4").write_bytes(b"x" * 500)
    assert main(["frames", str(tmp_path / "v.mp4"), str(tmp_path / "out.tar")]) == 1
    assert "0 frames of 0 videos" in capsys.readouterr().out
    assert not (tmp_path / "out.tar").exists()
    assert (tmp_path / "out.set-aside.jsonl").exists()


def shard(path: Path, first: int, count: int, mode: str = "") -> Path:
    members = []
    for number in range(first, first + count):
        members.append((f"v{number:03d}.txt", f"caption {number}".encode()))
        members.append((f"v{number:03d}.mp4", encode(numbered(10 + number % 3, 28, 16))))
    write_tar(path, members)
    if mode == "gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def test_tars_compressed_ones_folders_and_commands_give_the_same_bytes(tmp_path: Path) -> None:
    plain = shard(tmp_path / "v.tar", 0, 5)
    packed = shard(tmp_path / "p.tar.gz", 0, 5, "gz")
    with tarfile.open(plain) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    wanted = None
    for number, (source, workers) in enumerate(
        [(plain, 1), (plain, 4), (packed, 2), (tmp_path / "folder", 3), (f"pipe:cat {plain}", 1)]
    ):
        out = tmp_path / f"{number}.tar"
        write_frames(source, out, 4, workers=workers, allow_pipe=True)
        wanted = wanted or out.read_bytes()
        assert out.read_bytes() == wanted
    assert list(frames_in(tmp_path / "0.tar")) == [f"v{number:03d}" for number in range(5)]
    with pytest.raises(SourceError, match="--allow-pipe"):
        write_frames(f"pipe:cat {plain}", tmp_path / "no.tar")


def test_a_compressed_tar_is_unpacked_twice_however_many_videos_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to list the videos, and once to read them."""
    packed = shard(tmp_path / "p.tar.gz", 0, 9, "gz")
    opened: list[str] = []
    plain = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *given, **named: (opened.append(path.name), plain(path, *given, **named))[1]
    )
    assert write_frames(packed, tmp_path / "out.tar", 3, workers=2).videos == 9
    assert opened.count("p.tar.gz") == 2


def test_equal_names_in_several_tars_get_keys_of_their_own(tmp_path: Path) -> None:
    for name in ("x", "y"):
        shard(tmp_path / f"{name}.tar", 7, 1)
    write_frames(str(tmp_path / "{x,y}.tar"), tmp_path / "out.tar", 2)
    assert list(frames_in(tmp_path / "out.tar")) == ["v007", "v007_2"]


def test_a_folder_gets_tars_of_whole_videos(tmp_path: Path) -> None:
    source = shard(tmp_path / "v.tar", 0, 7)
    write_frames(source, tmp_path / "out", 4, images_per_shard=9)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert names == ["000000.tar", "000001.tar", "000002.tar", "000003.tar"]
    keys = [key for name in names for key in frames_in(tmp_path / "out" / name)]
    assert keys == [f"v{number:03d}" for number in range(7)]
    assert [len(frames_in(tmp_path / "out" / name)) for name in names] == [2, 2, 2, 1]


class Stop(Exception):
    """Stands for an interruption."""


def test_an_interrupted_run_leaves_whole_tars_and_continues(tmp_path: Path) -> None:
    source, out = shard(tmp_path / "v.tar", 0, 6), tmp_path / "out"
    with tarfile.open(source, "a") as tar:
        broken = tarfile.TarInfo("broken.mp4")
        tar.addfile(broken)
    write_frames(source, tmp_path / "whole", 4, images_per_shard=8)

    def stop(event: Progress) -> None:
        if event.stage == "frames" and event.done == 5:
            raise Stop

    with pytest.raises(Stop):
        write_frames(source, out, 4, images_per_shard=8, on_progress=stop)
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "000001.tar", "frames.json"]
    before = (out / "000000.tar").stat().st_mtime_ns
    (out / ".000002.tar.0123abcd.tmp").write_bytes(b"left by a killed process")
    done = write_frames(source, out, 4, images_per_shard=8)
    assert (done.videos, done.earlier, [each.video for each in done.set_aside]) == (6, 4, ["broken.mp4"])
    assert (out / "000000.tar").stat().st_mtime_ns == before
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    assert write_frames(source, out, 4, images_per_shard=8).earlier == 6
    with pytest.raises(SettingsError, match="was begun with other count"):
        write_frames(source, out, 3, images_per_shard=8)
    with pytest.raises(SettingsError, match="was begun with other videos, captions or images per shard"):
        write_frames(source, out, 4, images_per_shard=40)


def test_a_killed_run_leaves_no_tar_under_the_final_name(tmp_path: Path) -> None:
    source, out = shard(tmp_path / "v.tar", 0, 40), tmp_path / "out.tar"
    command = [sys.executable, "-m", "headspan", "frames", str(source), str(out), "--count", "10", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(tmp_path.glob(".out.tar.*.tmp")):
        assert process.poll() is None
        # Waiting takes no time from the process.
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    write_frames(source, out, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "v.tar"]


def test_two_processes_do_not_write_the_same_tar(tmp_path: Path) -> None:
    source, out = shard(tmp_path / "v.tar", 0, 3), tmp_path / "out.tar"
    seen: list[str] = []

    def meanwhile(event: Progress) -> None:
        if event.stage == "frames" and not seen:
            with pytest.raises(SettingsError) as refused:
                write_frames(source, out)
            seen.append(str(refused.value))

    write_frames(source, out, on_progress=meanwhile)
    assert "another process is writing it" in seen[0]
    with pytest.raises(SettingsError, match=r"out\.tar: exists; name another tar, or remove it"):
        write_frames(source, out)


def test_captions_come_from_a_table_and_a_list_chooses_videos(tmp_path: Path, capsys: Any) -> None:
    source = shard(tmp_path / "v.tar", 0, 4)
    (tmp_path / "c.json").write_text(json.dumps({"v001.mp4": ["one", " one\n", "two"], "v003": "three", "v999": ["x"]}))
    (tmp_path / "list.txt").write_text("v001\n\nv003.mp4\nv888\nv002\n")
    out = tmp_path / "out.tar"
    flags = ["--captions", str(tmp_path / "c.json"), "--list", str(tmp_path / "list.txt")]
    assert main(["frames", str(source), str(out), "--count", "2", *flags]) == 0
    assert list(frames_in(out)) == ["v001", "v002", "v003"]
    assert json.loads(companion(out, "v001.json"))["captions"] == ["one", "two"]
    assert companion(out, "v003.txt") == "three"
    printed = capsys.readouterr()
    assert "without a caption: 1 video" in printed.out
    assert f"v888 in {tmp_path / 'list.txt'}: is in the list, but not among the videos" in printed.out
    assert "no captions for 1 video (v002.mp4)" in printed.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "is a JSON list; map each video's name to a list of captions"),
        ("{}", "without entries for videos"),
        ('{"v000": 3}', "the captions of v000 are 3; give a list of strings"),
        ("{", "cannot be read"),
        ('{"other": ["x"]}', "has captions for none of the videos, but for other"),
    ],
)
def test_a_table_of_captions_that_cannot_be_used_is_refused(content: str, words: str, tmp_path: Path) -> None:
    source = shard(tmp_path / "v.tar", 0, 1)
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(HeadspanError, match=words):
        write_frames(source, tmp_path / "out.tar", captions=tmp_path / "c.json")


def test_arguments_that_cannot_be_used_are_refused(tmp_path: Path, videos: Path) -> None:
    source = shard(tmp_path / "v.tar", 0, 1)
    for words, given in (
        ("count is 0; give at least 1", {"count": 0}),
        ("workers is 0; give at least 1", {"workers": 0}),
        ("encode 'gif' is unknown; use png, jpeg, webp", {"encode": "gif"}),
    ):
        with pytest.raises(SettingsError, match=words):
            write_frames(source, tmp_path / "out.tar", **given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no video was found"):
        write_frames(tmp_path / "empty", tmp_path / "out.tar")
    (tmp_path / "table.parquet").write_bytes(b"x")
    with pytest.raises(SourceError, match="is a Parquet file; name tars, folders or files of videos"):
        write_frames(tmp_path / "table.parquet", tmp_path / "out.tar")
    with pytest.raises(SourceError, match="named twice"):
        write_frames([source, source], tmp_path / "out.tar")
    with pytest.raises(SettingsError, match="exists and is not an empty directory"):
        write_frames(source, videos)
    with pytest.raises(SettingsError, match=r"out\.tar\.gz: frames are encoded already, so tars are not packed"):
        write_frames(source, tmp_path / "out.tar.gz")
    with pytest.raises(SettingsError, match="cannot be written"):
        write_frames(source, tmp_path / "table.parquet" / "out.tar")
    with pytest.raises(SourceError, match="no such file"):
        write_frames(tmp_path / "missing.mp4", tmp_path / "out.tar")
    assert not list(tmp_path.glob(".*"))


def test_without_pyav_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(HeadspanError, match=r"pip install 'headspan\[video\]'"):
        write_frames("v.tar", tmp_path / "out.tar")


def test_a_playlist_that_names_other_files_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(encode(numbered(10)))
    folder = tmp_path / "v"
    folder.mkdir()
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    (folder / "hls.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    written = write_frames(folder, tmp_path / "out.tar")
    assert (written.videos, len(written.set_aside)) == (0, 2)


def test_videos_in_flight_are_bounded_and_decoded_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shard(tmp_path / "v.tar", 0, 12)
    started: list[int] = []
    threads: set[int] = set()
    whole = pipeline._frames

    def counting(job: Any, *rest: Any) -> Any:
        started.append(job.place)
        threads.add(threading.get_ident())
        return whole(job, *rest)

    monkeypatch.setattr(pipeline, "_frames", counting)
    ahead: list[int] = []

    def listen(event: Progress) -> None:
        if event.stage == "frames":
            ahead.append(len(started) - event.done)

    written: WrittenFrames = write_frames(source, tmp_path / "out.tar", workers=2, on_progress=listen)
    assert written.videos == 12
    assert len(threads) == 2
    assert max(ahead) <= 2 * 2 + 1
