"""Import PyAV, which only frames of videos need."""

from __future__ import annotations

from types import ModuleType

from headspan.errors import HeadspanError


def import_av() -> ModuleType:
    """PyAV. Raises HeadspanError if it is not installed."""
    try:
        import av
        import av.error
        import av.sidedata.sidedata
    except ImportError as error:
        raise HeadspanError(
            "frames of videos need PyAV, which is not installed; pip install 'headspan[video]'"
        ) from error
    found: ModuleType = av
    return found
