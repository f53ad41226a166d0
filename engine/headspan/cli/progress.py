"""Progress on standard error: bars on a terminal, plain lines every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from headspan.cli.terminal import ERR, tell
from headspan.errors import counted, percent
from headspan.escapes import escaped
from headspan.events import NOTE, Progress

if TYPE_CHECKING:
    from tqdm import tqdm

_LINE_SECONDS = 5.0
# A rate measured over less time is noise.
_RATE_SECONDS = 1.0
_UNITS = {
    "plan": "tar",
    "images": "image",
    "texts": "text",
    "captions": "caption",
    "verify": "unit",
    "shards": "image",
    "answers": "answer",
    "pool": "text",
    "export": "image",
    "maps": "image",
    "mean maps": "image",
    "videos": "video",
    "frames": "video",
}


class ProgressPrinter:
    """A listener that prints the events it is called with."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}
        # By stage: time and count of the first event, time of the last line, and the total of a finished stage.
        self._started: dict[str, tuple[float, int]] = {}
        self._printed: dict[str, float] = {}
        self._finished: dict[str, int | None] = {}
        self._on_terminal = ERR.isatty()

    def __call__(self, event: Progress) -> None:
        if event.stage in ("planned", NOTE):
            self.close()
            images = f"{counted(event.done, 'image')}: " if event.stage == "planned" else ""
            tell(images + event.note)
        elif self._on_terminal:
            self._draw(event)
        else:
            self._print_line(event)

    def close(self) -> None:
        """Stop drawing the bars and leave them on the screen as they are."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

    def _draw(self, event: Progress) -> None:
        bar = self._bars.get(event.stage)
        if bar is None:
            # Bars are drawn on terminals only, and importing them takes longer than most commands.
            from tqdm import tqdm

            unit = f" {_unit(event)}"
            bar = tqdm(desc=event.stage, total=event.total, initial=event.done, unit=unit, file=ERR, dynamic_ncols=True)
            self._bars[event.stage] = bar
        bar.set_postfix_str(escaped(event.note), refresh=False)
        bar.update(event.done - bar.n)

    def _print_line(self, event: Progress) -> None:
        now = time.monotonic()
        began, done_then = self._started.setdefault(event.stage, (now, event.done))
        last = event.total is not None and event.done >= event.total
        if event.total is not None and self._finished.get(event.stage) == event.total:
            return
        if last:
            self._finished[event.stage] = event.done
        if not last and now - self._printed.setdefault(event.stage, now) < _LINE_SECONDS:
            return
        self._printed[event.stage] = now
        rate = (event.done - done_then) / (now - began) if now - began > _RATE_SECONDS else 0.0
        parts = [f"{event.stage}: {event.done:,}"]
        if event.total:
            parts[0] += f" of {event.total:,} ({percent(event.done / event.total, 0)})"
        if rate:
            parts.append(f"{rate:,.1f} {_unit(event)}/s")
            if event.total and not last:
                parts.append(f"{(event.total - event.done) / rate:,.0f} s left")
        if event.note:
            parts.append(event.note)
        tell(", ".join(parts))


def _unit(event: Progress) -> str:
    return f"{_UNITS.get(event.stage, 'step')}s"
