"""Errors of requests that have a status of their own."""

from __future__ import annotations

from headspan.errors import SettingsError


class Missing(SettingsError):
    """The address names a store, head or image that is not here; the answer has the status 404."""
