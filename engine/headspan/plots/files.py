"""Write a plot as a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, cast

from headspan.errors import SettingsError
from headspan.frames import write_result
from headspan.plots.axes import pyplot
from headspan.user_paths import file_to_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ENDINGS = (".png", ".svg", ".pdf")
_DPI = 200


def check_plot(path: str | Path) -> str:
    """The format that a file's ending names, checked before the work whose result is drawn.

    Raises SettingsError for another ending, StoreError if there is no folder for the file, and HeadspanError if
    matplotlib is not installed.
    """
    ending = file_to_write(path, "plot").suffix.lower()
    if ending not in _ENDINGS:
        raise SettingsError(f"{path}: plots are written as {', '.join(_ENDINGS)}; name a file with such an ending")
    pyplot()
    return ending[1:]


def write_plot(ax: Axes, path: str | Path) -> None:
    """Write the figure of `ax` in the format that the file's ending names, and close it.

    Raises as `check_plot` does, and StoreError if the file cannot be written.
    """
    figure = cast("Figure", ax.figure)
    try:
        data = io.BytesIO()
        figure.savefig(data, format=check_plot(path), dpi=_DPI)
    finally:
        pyplot().close(figure)
    write_result(path, data.getvalue(), "plot")
