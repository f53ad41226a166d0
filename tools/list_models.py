"""Write into the guide (engine/README.md) how many of open_clip's models headspan supports.

    python -m tools.list_models      # rewrites the sentence between the markers

The counts come from `headspan.model.convert.catalogue`, as those of `headspan models` do.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from headspan.model.convert import catalogue

README = Path(__file__).parent.parent / "engine" / "README.md"
BEGIN, END = "<!-- models: python -m tools.list_models -->", "<!-- end of models -->"


def sentence(reasons: dict[str, str | None]) -> str:
    """The counts as a sentence of Markdown; `reasons` says why a model is not supported, or None if it is."""
    supported = sum(reason is None for reason in reasons.values())
    return (
        f"**{supported}** of the {len(reasons)} models of open_clip {version('open_clip_torch')} are decomposed, and "
        f"the other {len(reasons) - supported} are refused with a reason."
    )


def with_count(readme: str, reasons: dict[str, str | None]) -> str:
    """The README's text with the current counts between its markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{sentence(reasons)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_count(README.read_text(encoding="utf-8"), catalogue()), encoding="utf-8")
