"""What kind of shard a url names: a tar, a Parquet file, a folder of images, or a list of images."""

from __future__ import annotations

from pathlib import Path

from headspan.io.retry import is_remote
from headspan.shards.urls import local_path

TAR, PARQUET, FOLDER, LIST = "tar", "parquet", "folder", "list"
LISTS = (".csv", ".tsv", ".txt", ".jsonl")


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
