"""What kind of shard a url names: a tar, a Parquet file, a folder of images, or a list of images."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from headspan.errors import SettingsError
from headspan.io.retry import is_remote
from headspan.member_names import MemberNames
from headspan.shards.urls import local_path

TAR, PARQUET, FOLDER, LIST = "tar", "parquet", "folder", "list"
LISTS = (".csv", ".tsv", ".txt", ".jsonl")


def refuse_unused(names: MemberNames, kinds: Collection[str]) -> None:
    """Raise SettingsError if `names` are for kinds of shards that are not among `kinds`."""
    for setting in ("captions", "classes"):
        if getattr(names, setting) is not None and FOLDER not in kinds:
            raise SettingsError(f"--{setting} is for folders of images, but no shard is one; leave it out")
    for setting in ("image_column", "caption_column", "class_column", "key_column"):
        if getattr(names, setting) is not None and not {PARQUET, LIST} & {*kinds}:
            flag = f"--{setting.replace('_', '-')}"
            raise SettingsError(f"{flag} is for Parquet files and lists, but no shard is one; leave it out")


def kind_of(url: str) -> str:
    """TAR, PARQUET, FOLDER or LIST. Nothing is opened; what is none of the others counts as a tar."""
    if url.startswith("pipe:"):
        return TAR
    # A query follows the name of a remote file.
    name = url.partition("?")[0] if is_remote(url) else url
    if name.lower().endswith(".parquet"):
        return PARQUET
    if is_remote(url):
        return TAR
    if name.lower().endswith(LISTS):
        return LIST
    return FOLDER if Path(local_path(url)).is_dir() else TAR
