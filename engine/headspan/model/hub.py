"""Files of Hugging Face repositories: from the network, or from the local cache alone.

Nothing here knows a model. A fetch that takes longer than two seconds is announced to the listener.
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
# The names under which open_clip looks for weights in a repository, in its order.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_QUIET_SECONDS = 2.0
_SNAPSHOT = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/[^/]+/")
_BLOCK_BYTES = 1 << 22
# As many links on the way to a file as Linux follows.
_MOST_LINKS = 40


def fetch(repository: str, names: Sequence[str], download: bool) -> Path:
    """The local path of the first file of `names` that the repository has.

    With `download` False only the local cache is looked at. Raises ModelError, whose text is the reason alone.
    """
    reason = ""
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, local_files_only=not download))
        except (OSError, RuntimeError, ValueError) as error:
            reason = one_line(error).rstrip(".")
    raise ModelError(reason)


@contextmanager
def offline(active: bool) -> Iterator[None]:
    """Keep everything that uses Hugging Face's client from the network, where `active`."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or active
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def announced(on_progress: Listener, what: str) -> Iterator[None]:
    """Tell the listener `what` is going on, if it is still going on after two seconds."""
    timer = threading.Timer(_QUIET_SECONDS, on_progress, [Progress(NOTE, 0, None, what)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def repository_of(path: Path) -> str | None:
    """The repository whose snapshot in a hub cache `path` is a file of, or a link to one; None for a file elsewhere."""
    found = next(filter(None, (_SNAPSHOT.search(place.as_posix()) for place in places_of(path))), None)
    return f"{found[1]}/{found[2]}" if found else None


def places_of(path: Path) -> Iterator[Path]:
    """The absolute path, and where it is a link, what each link on the way points to.

    A file of a snapshot is itself a link, to a file that is named by its checksum; so links are followed one by one.
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
            # A link that leads in a circle, or through a folder that may not be read.
            return


def beside(path: Path, name: str) -> Path | None:
    """The file called `name` in the folder of `path`, or of what it links to; None where there is none."""
    found = (place.with_name(name) for place in places_of(path))
    return next((file for file in found if file.is_file()), None)


def has_bytes(repository: str, name: str, size: int, sha256: Callable[[], str]) -> bool:
    """Whether the local cache has the file `name` of the repository with this size, and then with this checksum."""
    cached = huggingface_hub.try_to_load_from_cache(repository, name)
    if not isinstance(cached, str) or Path(cached).stat().st_size != size:
        return False
    # The cache calls a large file by its checksum.
    known = Path(cached).resolve().name
    return sha256() == (known if re.fullmatch(r"[0-9a-f]{64}", known) else checksum(Path(cached)))


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
