"""The name `reference` for the small language model that ships with headspan."""

from __future__ import annotations

from pathlib import Path

from headspan.user_paths import expand_user

REFERENCE = "reference"
REFERENCE_FOLDER = Path(__file__).parents[2] / "world" / "language"


def language_model_path(name: str | Path) -> Path:
    """Where a language model lies if it is local: the included one's folder for `reference`, else the name as a path.

    A folder of that name is `./reference`.
    """
    return REFERENCE_FOLDER if str(name) == REFERENCE else expand_user(name)
