"""What the repository promises about its shape: imports that flow one way, no torch on a laptop, a true map.

Sources are parsed, not imported, except where the question is what an import pulls in.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tools.file_map import GUIDE, ORDER, file_map, with_map

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "engine" / "headspan"
KERNELS = ROOT / "kernels" / "headspan_kernels"

RANK = {name: rank for rank, name in enumerate(ORDER)}

# Packages that a machine that only reads stores does not need.
HEAVY = ("torch", "open_clip", "torchvision", "triton")


@cache
def nodes_of(source: str) -> list[ast.AST]:
    """All nodes of a module's source."""
    return list(ast.walk(ast.parse(source)))


def module_name(path: Path, source_root: Path) -> str:
    """`…/headspan/store/reader.py` → `headspan.store.reader`; a package's `__init__.py` → the package."""
    parts = path.relative_to(source_root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every import, anywhere in the file.

    `from a import b` gives `a.b`, which may be a module or a name in one; relative imports are resolved.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def place_of(module: str) -> str | None:
    """The entry of ORDER that a module of headspan belongs to: the longest one that its name begins with."""
    name = module.removeprefix("headspan.")
    found = [place for place in ORDER if is_in(name, place)]
    return max(found, key=len) if found else None


def order_complaints(source: str, module: str, is_package: bool) -> list[str]:
    """What is wrong with the imports of one engine module, one sentence for each import."""
    own = place_of(module)
    if own is None:
        return [f"{module}: has no place in the order of imports; give it one in ORDER"]
    complaints = []
    for line, name in imported_modules(source, module, is_package):
        if not is_in(name, "headspan"):
            continue
        target = place_of(name)
        if target is None:
            complaints.append(f"{module}, line {line}: imports {name}, which has no place in ORDER")
        elif RANK[target] > RANK[own]:
            complaints.append(f"{module}, line {line}: imports {name}, which comes after `{own}` in ORDER")
    return complaints


def imports_of(path: Path, source_root: Path) -> set[str]:
    found = imported_modules(path.read_text(), module_name(path, source_root), path.name == "__init__.py")
    return {name for _, name in found}


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def engine_modules() -> dict[str, Path]:
    """Every module of the engine by its dotted name, except the package itself, which re-exports names lazily."""
    found = {module_name(path, ENGINE.parent): path for path in sorted(ENGINE.rglob("*.py"))}
    del found["headspan"]
    return found


def test_every_module_imports_only_from_folders_before_its_own() -> None:
    complaints = [
        complaint
        for module, path in engine_modules().items()
        for complaint in order_complaints(path.read_text(), module, path.name == "__init__.py")
    ]
    assert not complaints, "\n".join(complaints)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others."""
    reached: dict[str, set[str]] = {}
    for module in imports:
        seen: set[str] = set()
        waiting = [module]
        while waiting:
            for name in imports.get(waiting.pop(), set()) - seen:
                seen.add(name)
                waiting.append(name)
        reached[module] = seen
    groups = {frozenset(other for other in reached[module] if module in reached[other]) for module in imports}
    return sorted(sorted(group) for group in groups if group)


def test_no_modules_import_one_another_in_a_circle() -> None:
    modules = engine_modules()
    imports = {}
    for module, path in modules.items():
        found = {name for _, name in imported_modules(path.read_text(), module, path.name == "__init__.py")}
        # `from headspan.a import b`: the module a.b, or a name in the module a.
        named = {name if name in modules else name.rpartition(".")[0] for name in found}
        imports[module] = (named & modules.keys()) - {module}
    assert circles(imports) == []


def test_the_search_for_circles_finds_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def prints(source: str) -> list[int]:
    """The lines on which a module prints or writes to a standard stream itself."""
    found = []
    for node in nodes_of(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(node.lineno)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys":
            found += [node.lineno] * (node.attr in ("stdout", "stderr"))
    return found


def test_only_one_file_prints() -> None:
    found = {str(path.relative_to(ENGINE)): prints(path.read_text()) for path in sorted(ENGINE.rglob("*.py"))}
    # The parser of flags only compares argparse's stream with standard output.
    assert {name: len(lines) for name, lines in found.items() if lines} == {"cli/flag_parser.py": 1}
    assert "getattr(sys, self._name)" in (ENGINE / "cli" / "terminal.py").read_text()


def test_the_check_of_printing_finds_every_print() -> None:
    assert prints("import sys\nprint(1)\nsys.stderr.write('x')\nsys.exit()") == [2, 3]


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("headspan.decode.decoder", "from headspan.shards.plan import plan", None),
        ("headspan.config", "import headspan.errors", None),
        ("headspan.store.reader", "from .schema import FORMAT\nfrom ..decompose import fold", None),
        ("headspan.store.write.commits", "from headspan.store import schema", None),
        ("headspan.store.reader", "from headspan.store.write import commits", "comes after `store`"),
        ("headspan.llm.cache", "from headspan.concepts import ccs", "comes after `llm`"),
        ("headspan.shards.plan", "from headspan.decode.decoder import Decoder", "comes after `shards`"),
        ("headspan.shards.plan", "def late():\n    import headspan.cli", "line 2: imports headspan.cli"),
        ("headspan.decompose.fold", "from headspan import open", "imports headspan.open, which has no place"),
        ("headspan.decompose.fold", "import headspan", "imports headspan, which has no place"),
        ("headspan.helpers", "", "has no place in the order"),
    ],
)
def test_the_check_of_the_order_finds_wrong_imports_only(module: str, source: str, complaint: str | None) -> None:
    found = order_complaints(source, module, is_package=False)
    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1
        assert complaint in found[0]


def test_kernels_never_import_the_engine() -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in sorted(KERNELS.rglob("*.py"))
        for name in imports_of(path, KERNELS.parent)
        if is_in(name, "headspan")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_reference_ops_never_import_triton() -> None:
    waiting, seen = [KERNELS / "reference.py"], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imports_of(path, KERNELS.parent):
            assert not is_in(name, "triton"), f"{path.name} imports {name}"
            # `from headspan_kernels.a import b`: either a.py has b, or a/b.py is meant.
            parts = name.split(".")
            for end in range(2, len(parts) + 1):
                sibling = KERNELS.parent.joinpath(*parts[:end]).with_suffix(".py")
                if parts[0] == "headspan_kernels" and sibling.exists() and sibling not in seen:
                    waiting.append(sibling)


IMPORT_WITHOUT = """
import importlib, importlib.abc, json, sys, traceback

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

heavy, modules = json.loads(sys.argv[1])
sys.meta_path.insert(0, Blocker())
failures = {}
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError:
        failures[module] = traceback.format_exc(limit=-3)
print(json.dumps(failures))
"""


def failures_without(heavy: tuple[str, ...], modules: list[str]) -> dict[str, str]:
    """Import `modules` in a fresh process without the packages `heavy`; returns the traceback of each failure."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, json.dumps([heavy, modules])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failures: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return failures


# The parts that run without torch over a finished store: its reader and every analysis.
WITHOUT_TORCH = (
    "plots",
    "store",
    "texts",
    "explore",
    "spans",
    "prune",
    "concepts",
    "features.pairs",
    "world",
    "report",
    "llm",
)


def test_stores_are_read_and_analysed_without_torch() -> None:
    modules = [module for module in engine_modules() if place_of(module) in WITHOUT_TORCH]
    failures = failures_without(HEAVY, ["headspan", "headspan.run.verify", *modules])
    assert not failures, "\n".join(f"{module}\n{trace}" for module, trace in failures.items())


def test_the_check_without_torch_would_notice_torch() -> None:
    assert "blocked" in failures_without(("torch",), ["torch.nn"])["torch.nn"]


def test_the_file_map_equals_the_generated_one() -> None:
    page = GUIDE.read_text()
    assert page == with_map(page), "engine/README.md: the file map is out of date; run python -m tools.file_map"


def test_the_file_map_names_every_module() -> None:
    named = re.findall(r"^ *(\w+\.py)  \S", file_map(), re.MULTILINE)
    folders = (ENGINE, KERNELS, ROOT / "benchmarks", ROOT / "tools")
    modules = [path.name for folder in folders for path in folder.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(modules)


def test_the_tests_that_reliability_md_names_exist() -> None:
    promises = (ROOT / "engine" / "RELIABILITY.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", promises))
    there = {
        function
        for path in (ROOT / "tests").rglob("test_*.py")
        for function in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 12
    assert named <= there, f"no such tests: {sorted(named - there)}"


# Written in halves, so that this file does not contain them.
MACHINE_PATHS = tuple(
    (a + b).encode()
    for a, b in [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/"), ("pypi.org", "/simple")]
)


def test_no_file_contains_a_path_of_somebodys_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of the repository's files")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert Path(__file__).resolve() in paths
    wrong = [
        f"{path.relative_to(ROOT)} holds {found.decode()}"
        for path in paths
        # A file that is deleted but not yet committed is still listed.
        if path.is_file()
        for found in MACHINE_PATHS
        if found in path.read_bytes()
    ]
    assert not wrong, "\n".join(wrong)


LONGEST_MODULE = 300
# An op stays in one file, and the signatures of Triton's kernels list every stride.
LONGER = {"kernels/headspan_kernels/attention.py": 340}


def test_no_module_is_longer_than_three_hundred_lines() -> None:
    folders = (ENGINE, KERNELS, ROOT / "benchmarks")
    paths = {str(path.relative_to(ROOT)): path for folder in folders for path in folder.rglob("*.py")}
    lengths = {name: len(path.read_text().splitlines()) for name, path in paths.items()}
    long = [f"{name}: {length}" for name, length in lengths.items() if length > LONGER.get(name, LONGEST_MODULE)]
    assert not long, "cut these by purpose:\n" + "\n".join(long)


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


PAGES = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "node_modules", "demo"} & set(path.parts))


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_between_pages_lead_to_existing_targets(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    broken = []
    for target in targets:
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            broken.append(target)
    assert not broken, f"{page.relative_to(ROOT)}: {broken}"


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to a page's headings in links."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# What changes or locks files so that a store's promises depend on it; Path.replace takes one argument, str.replace two.
FILE_MODULES = ("fcntl", "mmap")
FILE_CALLS = ("fsync", "fdatasync", "flock", "lockf", "link", "hardlink_to", "rename", "renames", "mmap", "rmtree")


def file_operations(source: str) -> list[int]:
    """The lines on which a module links, renames, locks, maps or syncs files itself, in order."""
    found = set()
    for node in nodes_of(source):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            found |= {node.lineno} if set(names) & {*FILE_MODULES, *FILE_CALLS} else set()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
            replaces = node.func.attr == "replace" and (of_os or (len(node.args) == 1 and not node.keywords))
            moves = node.func.attr == "move" and of_os
            found |= {node.lineno} if node.func.attr in FILE_CALLS or replaces or moves else set()
    return sorted(found)


def test_only_io_links_renames_locks_maps_and_syncs_files() -> None:
    example = (
        "import os, shutil, mmap\nfrom fcntl import flock\nos.link(a, b)\nos.fsync(1)\n"
        "path.rename(b)\npath.replace(b)\nos.replace(a, b)\nshutil.move(a, b)\n"
        "text.replace('a', 'b')\nreplace(value, a=1)\nvalue.replace(tzinfo=None)\nos.open(a, 1)\npath.unlink()"
    )
    assert file_operations(example) == [1, 2, 3, 4, 5, 6, 7, 8]
    io = [path for path in sorted((ENGINE / "io").glob("*.py")) if file_operations(path.read_text())]
    assert [path.name for path in io] == [
        "array_file.py",
        "files.py",
        "local.py",
        "locks.py",
        "memory.py",
        "targets.py",
    ]
    wrong = [
        f"{module}, line {line}: changes files itself; use headspan.io"
        for module, path in engine_modules().items()
        if not is_in(module, "headspan.io")
        for line in file_operations(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_only_tests_import_tests() -> None:
    folders = (ENGINE, KERNELS, ROOT / "benchmarks", ROOT / "tools")
    importing = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in folder.rglob("*.py")
        if any(is_in(name, "tests") for _, name in imported_modules(path.read_text(), "module", False))
    ]
    assert importing == []
