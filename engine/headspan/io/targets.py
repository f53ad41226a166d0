"""Write a file or a folder beside its final place, and give it its name when it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headspan.errors import StoreError, one_line
from headspan.io.files import delete_folder, move, new_token, staged, sync_folder, sync_tree


@contextmanager
def new_target(path: Path, flag: str, overwrite: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the path of a file or folder to write, which is named `path` at the end of the block.

    After any exception nothing is left, and an earlier `path` is as it was. An earlier one is replaced if `overwrite`
    is true and `replaceable(path)` says that it may be; `flag` names `path` in messages. Raises StoreError if there is
    one that is not replaced, or if the file system refuses.
    """
    refuse_existing(path, flag, overwrite, replaceable)
    token = new_token()
    temporary, earlier = staged(path, token), staged(path, new_token())
    try:
        yield temporary
        if temporary.is_dir():
            sync_tree(temporary)
        else:
            sync_file(temporary)
        # Another process may have written there meanwhile.
        refuse_existing(path, flag, overwrite, replaceable)
        if path.exists():
            move(path, earlier)
        try:
            move(temporary, path)
        except BaseException:
            if earlier.exists():
                move(earlier, path)
            raise
        sync_folder(path.parent)
    except OSError as error:
        # Arrow's errors have another text.
        why = os.strerror(error.errno) if error.errno else one_line(error)
        raise StoreError(
            f"{path}: cannot be written ({why}); free disk space, correct its permissions, or choose another {flag}"
        ) from error
    finally:
        for left in (temporary, earlier):
            if left.is_dir():
                delete_folder(left)
            else:
                with suppress(OSError):
                    left.unlink(missing_ok=True)


def refuse_existing(path: Path, flag: str, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    """Raise StoreError if `path` exists and is not to be replaced."""
    if not path.exists() and not path.is_symlink():
        return
    if not replaceable(path):
        raise StoreError(
            f"{path}: exists and is not an export of this format, so it is never replaced; choose another {flag}"
        )
    if not overwrite:
        raise StoreError(
            f"{path}: already exists; give --overwrite (in Python overwrite=True) to replace it, or choose another "
            f"{flag}"
        )


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
