"""Write a plot as a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from headspan.errors import SettingsError
from headspan.frames import write_result
from headspan.plots.axes import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ENDINGS = (".png", ".svg", ".pdf")
_DPI = 200


def write_plot(ax: Axes, path: str | Path) -> None:
    """Write the figure of `ax` in the format that the file's ending names, and close it.

    Raises SettingsError for another ending, and StoreError if the file cannot be written.
    """
    figure, ending = ax.figure, Path(path).suffix.lower()
    try:
        if ending not in _ENDINGS:
            raise SettingsError(f"{path}: plots are written as {', '.join(_ENDINGS)}; name a file with such an ending")
        data = io.BytesIO()
        figure.savefig(data, format=ending[1:], dpi=_DPI)
    finally:
        pyplot().close(figure)
    write_result(path, data.getvalue(), "plot")
