"""Fetch files of Hugging Face repositories, from the network or only from the local cache.

A fetch that takes longer than two seconds is announced to the listener.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from headspan.errors import ModelError, one_line
from headspan.events import NOTE, Listener, Progress

PREFIX = "hf-hub:"
CONFIG = "open_clip_config.json"
# The names by which open_clip looks for weights in a repository, in its order.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_QUIET_SECONDS = 2.0
_SNAPSHOT = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/[^/]+/")
_BLOCK_BYTES = 1 << 22
# The number of links in a row that Linux follows.
_MOST_LINKS = 40


def fetch(repository: str, names: Sequence[str], download: bool) -> Path:
    """The local path of the first file of `names` that the repository has.

    With `download` False only the local cache is searched. Raises ModelError, whose text is only the reason, if none of
    the files can be fetched.
    """
    reason = ""
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, local_files_only=not download))
        except (OSError, RuntimeError, ValueError) as error:
            reason = one_line(error).rstrip(".")
    raise ModelError(reason)


def is_offline() -> bool:
    """Whether Hugging Face's client may not use the network, as HF_HUB_OFFLINE=1 in the environment says."""
    return constants.HF_HUB_OFFLINE


@contextmanager
def offline(active: bool) -> Iterator[None]:
    """If `active`, prevent Hugging Face's client from using the network."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or active
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def announced(on_progress: Listener, what: str) -> Iterator[None]:
    """Report `what` to the listener if the block runs for longer than two seconds."""
    timer = threading.Timer(_QUIET_SECONDS, on_progress, [Progress(NOTE, 0, None, what)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def repository_of(path: Path) -> str | None:
    """The repository of a file, or a link to a file, in a hub cache; None for a file elsewhere."""
    found = next(filter(None, (_SNAPSHOT.search(place.as_posix()) for place in places_of(path))), None)
    return f"{found[1]}/{found[2]}" if found else None


def places_of(path: Path) -> Iterator[Path]:
    """Yield the absolute path of a file, and, if it is a link, the target of each link that leads to the data.

    A file in a snapshot is itself a link to a file named by its checksum, so links are followed one by one.
    """
    path = path.absolute()
    yield path
    for _ in range(_MOST_LINKS):
        try:
            path = path.parent.resolve() / path.name
            yield path
            if not path.is_symlink():
                return
            path = path.parent / path.readlink()
        except (OSError, RuntimeError):
            # The links form a loop, or lead through a folder that may not be read.
            return


def beside(path: Path, name: str) -> Path | None:
    """The file `name` in the folder of `path`, or of the files that it links to; None if there is none."""
    found = (place.with_name(name) for place in places_of(path))
    return next((file for file in found if file.is_file()), None)


def has_bytes(repository: str, name: str, size: int, sha256: Callable[[], str]) -> bool:
    """Whether the local cache has the repository's file `name` with this size and checksum.

    `sha256` is called only if the sizes are equal.
    """
    cached = huggingface_hub.try_to_load_from_cache(repository, name)
    if not isinstance(cached, str) or Path(cached).stat().st_size != size:
        return False
    # The cache names a large file by its checksum.
    known = Path(cached).resolve().name
    return sha256() == (known if re.fullmatch(r"[0-9a-f]{64}", known) else checksum(Path(cached)))


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
