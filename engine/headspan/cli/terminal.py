"""The only module that prints: lines to standard output and standard error.

Each call prints one line. Control characters, and letters that the stream's encoding lacks, are escaped. If output is
impossible (a closed stream, a full disk, a closed pipe), the command continues with its usual exit code, and `conclude`
reports the loss in one sentence; after a closed pipe it reports nothing, since the reader wanted no more.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from headspan.escapes import escaped


class Guarded:
    """Standard output or standard error, looked up at each write; writing never raises."""

    def __init__(self, name: str) -> None:
        self._name = name
        # The error after which nothing more is written.
        self.refused: OSError | ValueError | None = None

    @property
    def _stream(self) -> TextIO | None:
        found: TextIO | None = getattr(sys, self._name)
        return found

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write `text`; only letters that the encoding lacks are escaped."""
        if self.refused is None:
            stream = self._stream
            try:
                if stream is None:
                    raise ValueError("it is closed")
                try:
                    stream.write(text)
                except UnicodeEncodeError:
                    stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError) as error:
                self._refuse(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream's buffer."""
        if self.refused is None and self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._refuse(error)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """The stream's file descriptor. Raises OSError if it has none."""
        if self._stream is None:
            raise OSError("it is closed")
        return self._stream.fileno()

    def _refuse(self, error: OSError | ValueError) -> None:
        self.refused = error
        # Python flushes the buffer again at its end; that would fail once more and change the exit code.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


OUT, ERR = Guarded("stdout"), Guarded("stderr")


def say(line: str = "") -> None:
    """Print one line of a command's result."""
    OUT.write(f"{escaped(line)}\n")


def say_row(*cells: object) -> None:
    """Print one line of cells, separated by tabs; tabs within a cell are escaped."""
    OUT.write("\t".join(escaped(str(cell)) for cell in cells) + "\n")


def redraw(lines: Sequence[str]) -> None:
    """Print lines that replace those of the last call on a terminal; elsewhere they follow them, after an empty line.

    On a terminal each line is cut to its width, so that a screen stays one screen.
    """
    texts = [escaped(line) for line in lines]
    if OUT.isatty():
        width = shutil.get_terminal_size().columns
        # To the top left corner; the rest of each line and of the screen is cleared.
        OUT.write("\x1b[H" + "".join(f"{text[:width]}\x1b[K\n" for text in texts) + "\x1b[J")
    else:
        OUT.write("\n".join(texts) + "\n\n")
    OUT.flush()


def tell(line: str) -> None:
    """Print one line about progress or an error on standard error."""
    ERR.write(f"{escaped(line)}\n")
    ERR.flush()


def prepare() -> None:
    """Prepare the streams for a command.

    Closed standard streams are opened on the null device. Otherwise a file that headspan opens could get the descriptor
    of standard error, and warnings of a library would be written into it.
    """
    OUT.refused = ERR.refused = None
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def conclude() -> None:
    """Flush the streams after a command, and say so if standard output could not be written."""
    OUT.flush()
    if OUT.refused is not None and not isinstance(OUT.refused, BrokenPipeError):
        why = getattr(OUT.refused, "strerror", None) or OUT.refused
        tell(f"headspan: standard output cannot be written ({why}); the command ran, but part of its output is missing")
    ERR.flush()
