"""Stop a run in which more images are bad than `--max-bad` allows."""

from __future__ import annotations

from collections.abc import Sequence

from headspan.config import bad_limit
from headspan.errors import SourceError, counted
from headspan.escapes import shell_command
from headspan.shards.samples import BadImage
from headspan.store.write.unit import StoreWriter


def refuse_bad(store: StoreWriter, bad: Sequence[BadImage], max_bad: str | int | None) -> None:
    """Raise SourceError if more images are bad than `max_bad` allows."""
    images = store.size.images
    if max_bad is not None and len(bad) > bad_limit(max_bad, images):
        last = bad[-1]
        lists = shell_command(["headspan", "info", str(store.path), "--bad"])
        raise SourceError(
            f"{store.path}: {len(bad):,} of {counted(images, 'image')} {'is' if len(bad) == 1 else 'are'} bad, "
            f"more than --max-bad {max_bad} allows "
            f"(row {last.row}, {last.key} in {last.url}: {last.reason}); `{lists}` lists them; repair "
            "the shards, or raise --max-bad to continue"
        )
