"""Write the map of the code in engine/README.md: each module with the first sentence of its docstring.

Folders stand in the order of imports, which is also the path of the data. `python -m tools.file_map` writes the map; a
test compares it with the code.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "engine" / "README.md"
BEGIN = "<!-- file map: python -m tools.file_map -->\n"
END = "<!-- end of file map -->\n"
ENGINE = ROOT / "engine" / "headspan"
# Folders, and the modules outside them, in the order of imports: each imports only entries before it.
ORDER = (
    "escapes",
    "redact",
    "timing",
    "events",
    "errors",
    "background",
    "forgetting",
    "user_paths",
    "member_names",
    "head_names",
    "config",
    "ray_settings",
    "io",
    "frames",
    "plots",
    "shards",
    "shard_writer",
    "video",
    "llm",
    "model",
    "decode",
    "decompose",
    "store",
    "store.write",
    "run",
    "loading",
    "originals",
    "texts",
    "spans",
    "concepts",
    "explore.query",
    "explore.nearest",
    "explore.maps",
    "explore.heads",
    "explore.atlas",
    "explore",
    "tasks",
    "prune.direct",
    "prune.total",
    "prune.choice",
    "prune.studies",
    "prune",
    "features.pairs",
    "features.learners",
    "features.training",
    "features.scores",
    "features.uses",
    "features",
    "describe.asked",
    "describe.rewards",
    "describe.policy",
    "describe.training",
    "describe.descriptions",
    "describe.writing",
    "describe.inspecting",
    "describe",
    "world",
    "report",
    "web",
    "demo_folder",
    "demo",
    "describe_demo",
    "calls",
    "cli",
    "__main__",
)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without the full stop; raises ValueError if it has none."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    sentence = " ".join(text.split("\n\n")[0].split())
    if not sentence:
        raise ValueError(f"{path.relative_to(ROOT)}: has no docstring; say in one sentence what the module does")
    head, stop, _ = sentence.partition(". ")
    return head if stop else sentence.rstrip(".")


@cache
def file_map() -> str:
    """The map, as the lines of a fenced block."""
    places = [place.replace(".", "/") for place in ORDER]
    # A folder inside another is listed with it.
    top = [place for place in places if "/" not in place]
    lines = ["engine/headspan/"]
    for name in top:
        path = ENGINE / name
        lines += _folder(path, 1) if path.is_dir() else [_line(path.with_suffix(".py"), 1)]
    for title, folder in (("kernels/headspan_kernels/", "kernels/headspan_kernels"), ("benchmarks/", "benchmarks")):
        lines += [title, *_modules(ROOT / folder, 1)]
    lines += ["tools/", *_modules(ROOT / "tools", 1)]
    return "```\n" + "\n".join(lines) + "\n```\n"


def _folder(folder: Path, depth: int) -> list[str]:
    """A folder's line, its modules, then the folders inside it that hold modules."""
    init = folder / "__init__.py"
    lines = ["  " * depth + f"{folder.name}/  {first_sentence(init)}", *_modules(folder, depth + 1)]
    for inside in sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file()):
        lines += _folder(inside, depth + 1)
    return lines


def _modules(folder: Path, depth: int) -> list[str]:
    return [_line(path, depth) for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]


def _line(path: Path, depth: int) -> str:
    return "  " * depth + f"{path.name}  {first_sentence(path)}"


def with_map(page: str) -> str:
    """`page` with the map between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{file_map()}{END}{after}"


if __name__ == "__main__":
    GUIDE.write_text(with_map(GUIDE.read_text()))
