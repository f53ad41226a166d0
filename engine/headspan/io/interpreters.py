"""What every start of another Python needs: its folders of modules, signals that it must not receive, and its end.

headspan starts new interpreters and never forks, and they do not import the user's script. So a script without a
`__main__` guard works.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def module_folders() -> list[str]:
    """Where this process finds modules. Entries that are not strings are left out, as Python ignores them too."""
    return [folder for folder in sys.path if isinstance(folder, str)]


def module_folders_line() -> bytes:
    """`module_folders` as a line of JSON, which a new Python reads from its standard input before it imports."""
    return json.dumps(module_folders()).encode() + b"\n"


@contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block signals. A process that starts in the `with` block inherits that, so it never receives them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def signal_name(code: int) -> str:
    """The name of the signal that ended a process with the negative exit code `code`."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
