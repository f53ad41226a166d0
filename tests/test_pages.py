"""The pages fit the code: their commands parse, their scripts exist, and their Python uses names that exist.

Nothing is run. The examples' calls are bound to the signatures of the functions that they name.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import headspan as hs
from headspan.cli.main import build_parser
from headspan.config import DECODERS, EMISSIONS, PRECISIONS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "engine/README.md")}
PARSER, COMMANDS = build_parser()


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in one language."""
    return [
        text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if name == language
    ]


def command_lines(page: str) -> list[list[str]]:
    """The words of every line of a page's shell blocks that calls headspan, without comments."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("headspan ")]


def prose(page: str) -> str:
    """A page without its fenced blocks, on one line."""
    return " ".join(re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL).split())


LINES = [(name, line) for name, page in PAGES.items() for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{name}: {shlex.join(line)}" for name, line in LINES])
def test_every_command_line_of_the_pages_parses(page: str, line: list[str]) -> None:
    flags = vars(PARSER.parse_args(line[1:]))
    assert callable(flags["run"])


def test_the_pages_have_the_command_lines_that_are_parsed() -> None:
    assert {line[1] for _, line in LINES} == {*COMMANDS.parsers} - {"models", "demo"}
    assert command_lines("```\nheadspan info a \\\n  --bad  # b\npip install headspan\n```\nheadspan c") == [
        ["headspan", "info", "a", "--bad"]
    ]


def test_a_command_line_with_an_unknown_flag_does_not_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        PARSER.parse_args(["info", "run.zarr", "--worst"])
    assert "there is no flag --worst" in capsys.readouterr().err


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a command and of its sub-commands."""
    # A sub-command's flags are added when its page is first shown.
    parser.format_help()
    inner = [
        sub
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for sub in action.choices.values()
    ]
    return set(parser._option_string_actions).union(*map(flags_of, inner))


def test_every_command_and_flag_in_the_text_exists() -> None:
    text = " ".join(map(prose, PAGES.values()))
    script = (ROOT / "tools" / "make_shards.py").read_text(encoding="utf-8")
    known = {flag for parser in COMMANDS.parsers.values() for flag in flags_of(parser)}
    known |= set(re.findall(r'"(--[\w-]+)"', script))
    used = {flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code)}
    assert len(used) > 20
    assert used <= known
    for command, rest in re.findall(r"`headspan (\w+)([^`]*)`", text):
        flags = re.findall(r"(?<!\S)--[\w-]+", rest)
        assert set(flags) <= flags_of(COMMANDS.parsers[command]), command


def test_the_values_that_the_text_gives_to_flags_exist() -> None:
    text = prose(PAGES["engine/README.md"])
    emitted = [value for values in re.findall(r"`--emit ([\w,]+)`", text) for value in values.split(",")]
    assert set(emitted) == set(EMISSIONS)
    table = dict(re.findall(r"\| `--(precision|decode) (.*?) \|", text))
    assert set(re.findall(r"\w+", table["precision"])) == set(PRECISIONS)
    assert set(re.findall(r"\w+", table["decode"])) == set(DECODERS)


def test_the_readme_lists_every_command() -> None:
    table = PAGES["README.md"].partition("\n## Commands\n")[2].partition("\n## ")[0]
    listed = [
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(listed) == sorted(COMMANDS.parsers)


EVERY_PAGE = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "node_modules", "demo"} & set(path.parts))


@pytest.mark.parametrize("path", EVERY_PAGE, ids=[str(path.relative_to(ROOT)) for path in EVERY_PAGE])
def test_every_script_module_and_target_that_a_page_runs_exists(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    for script in re.findall(r"\bpython ([\w/]+\.py)\b", page):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"\bpython -m ([\w.]+\w)", page):
        assert find_spec(module), module
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make (\w+)", page, re.MULTILINE)) <= set(targets)


class Example(ast.NodeVisitor):
    """Follows the types through an example; an attribute or an argument that does not exist is an error."""

    def __init__(self, **names: Any) -> None:
        self.names = names
        self.attributes = self.calls = 0

    def visit_Assign(self, node: ast.Assign) -> None:
        found = self.type_of(node.value)
        for target in node.targets:
            assert isinstance(target, ast.Name)
            self.names[target.id] = found

    def visit_Expr(self, node: ast.Expr) -> None:
        self.type_of(node.value)

    def type_of(self, node: ast.AST) -> Any:
        """The module, function or class that an expression names or gives; None if it is not headspan's."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(self.type_of(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self._call(node)
        for child in ast.iter_child_nodes(node):
            self.type_of(child)
        return None

    def _attribute(self, owner: Any, name: str) -> Any:
        if owner is None:
            return None
        self.attributes += 1
        return getattr(owner, name)

    def _call(self, node: ast.Call) -> Any:
        function = self.type_of(node.func)
        positional = [self.type_of(each) for each in node.args]
        keywords = {each.arg: self.type_of(each.value) for each in node.keywords if each.arg}
        if function is None:
            return None
        self.calls += 1
        # A function that a class defines is called on an instance.
        of_instance = isinstance(node.func, ast.Attribute) and inspect.isclass(self.type_of(node.func.value))
        inspect.signature(function).bind(*[None] * of_instance, *positional, **keywords)
        try:
            given = get_type_hints(function).get("return")
        except NameError:
            # The type is imported for type checkers only.
            return None
        return given if getattr(given, "__module__", "").startswith("headspan.") else None


def follow(source: str) -> Example:
    example = Example(hs=hs)
    example.visit(ast.parse(source))
    return example


@pytest.mark.parametrize("name", PAGES)
def test_the_python_of_the_pages_uses_names_and_arguments_that_exist(name: str) -> None:
    sources = blocks(PAGES[name], "python")
    assert sources
    followed = [follow(source) for source in sources]
    assert sum(example.attributes for example in followed) > 10
    assert sum(example.calls for example in followed) > 8


@pytest.mark.parametrize(
    ("source", "error", "complaint"),
    [
        ("import headspan as hs\nhs.nearest(1)", AttributeError, "no attribute 'nearest'"),
        ("store = hs.open('run.zarr')\nstore.carried(8, 3)", AttributeError, "no attribute 'carried'"),
        ("spans = hs.textspan(hs.open('a'))\nspans.text(22, 13)", AttributeError, "no attribute 'text'"),
        ("hs.concepts.concept_consistency(store).group_sizes", AttributeError, "no attribute 'group_sizes'"),
        ("hs.open('run.zarr', keep_failed=True)", TypeError, "unexpected keyword argument 'keep_failed'"),
        ("store = hs.open('run.zarr')\nstore.head(22)", TypeError, "missing a required argument: 'head'"),
    ],
)
def test_an_example_with_a_wrong_name_or_argument_is_found(source: str, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        follow(source)
