"""The only place that prints: lines to standard output and standard error, whatever these can take.

Each call is one line, with what steers a terminal escaped. Letters that the encoding lacks are escaped. Where output
is impossible (a closed stream, a full disk, a reader that has gone), a command goes on, its exit code stays, and
`conclude` says so in one sentence; a reader that has gone has seen enough and is told nothing.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from headspan.escapes import escaped


class Guarded:
    """One of the two standard streams, as it is at the time of each write; writing to it never raises."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Why nothing can be written any more.
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
        """Write `text` as it is, but for letters that the encoding lacks."""
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
        """Have the stream write what it holds back."""
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
        """The stream's descriptor; OSError where it has none."""
        if self._stream is None:
            raise OSError("it is closed")
        return self._stream.fileno()

    def _refuse(self, error: OSError | ValueError) -> None:
        self.refused = error
        # What the stream still holds back would be refused again at the interpreter's end, and change the exit code.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


OUT, ERR = Guarded("stdout"), Guarded("stderr")


def say(line: str = "") -> None:
    """Print one line of a command's result."""
    OUT.write(f"{escaped(line)}\n")


def say_row(*cells: object) -> None:
    """Print one line of cells with tabs between, and nowhere else."""
    OUT.write("\t".join(escaped(str(cell)) for cell in cells) + "\n")


def tell(line: str) -> None:
    """Print one line about what goes on, or went wrong, on standard error."""
    ERR.write(f"{escaped(line)}\n")
    ERR.flush()


def prepare() -> None:
    """Begin a command.

    Standard streams that are closed are opened on nothing, so that no file of ours takes the place of one and has a
    library's complaints written into it.
    """
    OUT.refused = ERR.refused = None
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def conclude() -> None:
    """End a command: write what is held back, and say where standard output took less than all."""
    OUT.flush()
    if OUT.refused is not None and not isinstance(OUT.refused, BrokenPipeError):
        why = getattr(OUT.refused, "strerror", None) or OUT.refused
        tell(
            f"headspan: standard output cannot be written ({why}); the command ran, but not all that it prints is there"
        )
    ERR.flush()
