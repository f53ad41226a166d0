"""Report how many of a store's images are finished."""

from __future__ import annotations

from headspan.events import Listener, Progress
from headspan.store.write.commits import UnitRecord
from headspan.store.write.unit import StoreWriter


class ImageProgress:
    """Counts the images of finished units, whichever process finished them, and passes the counts to a listener."""

    def __init__(self, store: StoreWriter, on_progress: Listener) -> None:
        self._store = store
        self._on_progress = on_progress
        self._finished = 0
        # Rows of units that are computed and are being committed.
        self._committing = 0
        self._bad = 0

    def begin(self) -> None:
        """Count what is finished already, and report it."""
        self._finished = self._store.finished_rows
        self._committing = 0
        self._bad = 0
        self.report(0)

    def report(self, rows: int) -> None:
        """Report the units that are computed, and `rows` of the unit that is being computed."""
        total = self._store.size.images
        note = f"{self._bad} bad" if self._bad else ""
        self._on_progress(Progress("images", min(self._finished + self._committing + rows, total), total, note))

    def computed(self, rows: int) -> None:
        """Report a unit of `rows` rows that is computed and will be committed."""
        self._committing += rows
        self.report(0)

    def finish(self, rows: int, record: UnitRecord | None) -> None:
        """Count a finished unit of `rows` rows; `record` is None if another worker committed it."""
        self._finished += rows
        self._committing -= rows
        self._bad += len(record.bad) if record is not None else 0
