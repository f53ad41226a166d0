"""The command `frames`, and the summary that it prints."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.numbers import FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import pipe_flag
from headspan.cli.terminal import say
from headspan.errors import counted
from headspan.escapes import shell_command
from headspan.shard_writer.encoded import FORMATS
from headspan.video.write import WrittenFrames, write_frames

_SHOWN = 10


def add_frames(section: Section) -> None:
    """Add `frames`."""
    command = section.add(
        "frames",
        _frames,
        "headspan frames 'videos/{000..009}.tar' frames.tar --count 12",
        "The frames are those at the middles of equal spans of the duration; the last frame of a short video is "
        "repeated. Videos that do not decode are listed in a file beside the output.",
    )
    command.set_defaults(kept="finished tars of a folder")
    command.add_argument(
        "videos",
        nargs="+",
        help="tars, folders of videos, or videos (mp4, webm, avi, mkv, mov and others): paths, brace patterns, globs "
        "or URLs",
    )
    command.add_argument("out", help="the tar to write, such as frames.tar, or a folder for several tars")
    command.add_argument(
        "--count", type=FROM_1, default=12, metavar="N", help="frames of a video (default: %(default)s)"
    )
    command.add_argument(
        "--captions",
        metavar="FILE",
        help="a JSON file that maps names of videos to lists of captions (default: X.txt and X.json beside X.mp4)",
    )
    command.add_argument(
        "--list", dest="only", metavar="FILE", help="use only the videos that this file names, one a line"
    )
    command.add_argument(
        "--encode",
        default="jpeg",
        metavar="FORMAT",
        help=f"how frames are stored: {', '.join(sorted(FORMATS))}; jpeg has quality 95 and colours at full "
        "resolution, png is without loss (default: %(default)s)",
    )
    command.add_argument(
        "--images-per-shard",
        type=FROM_1,
        default=1000,
        metavar="N",
        help="about how many frames a tar of a folder holds (default: %(default)s)",
    )
    command.add_argument(
        "--workers", type=FROM_1, metavar="N", help="videos that are decoded at the same time (default: one per core)"
    )
    pipe_flag(command)


def _frames(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    written = write_frames(
        flags.videos,
        flags.out,
        flags.count,
        captions=flags.captions,
        only=flags.only,
        encode=flags.encode,
        images_per_shard=flags.images_per_shard,
        workers=flags.workers,
        allow_pipe=bool(flags.allow_pipe),
        on_progress=progress,
    )
    progress.close()
    _print_summary(written)
    return 0 if written.videos else 1


def _print_summary(written: WrittenFrames) -> None:
    frames = counted(written.videos * written.count, "frame")
    say(f"{frames} of {counted(written.videos, 'video')} in {written.path}")
    if written.earlier:
        say(f"written by an earlier call: those of {counted(written.earlier, 'video')}")
    if written.short:
        short = counted(written.short, "video")
        say(f"fewer than {counted(written.count, 'frame')}, so the last one is repeated: {short}")
    if written.without_caption:
        say(f"without a caption: {counted(written.without_caption, 'video')}")
    if written.set_aside:
        say(f"{counted(len(written.set_aside), 'video')} could not be used:")
        for each in written.set_aside[:_SHOWN]:
            say(f"  {each.video} in {each.source}: {each.reason}")
        more = len(written.set_aside) - _SHOWN
        say(f"  {f'and {more:,} more; ' if more > 0 else ''}{written.listed_in} lists {'all' if more > 0 else 'them'}")
    if written.videos:
        say(f"continue with {shell_command(['headspan', 'precompute', written.path, '--out', 'run.zarr'])}")
