"""Videos as shards of frames."""

from headspan.video.write import SetAside, WrittenFrames, write_frames

__all__ = ["SetAside", "WrittenFrames", "write_frames"]
