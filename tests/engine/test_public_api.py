"""What `import headspan` offers: few names, typed and documented, a function for every command, and nothing heavy."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import headspan as hs
from headspan.cli.main import build_parser, main
from headspan.errors import SettingsError
from headspan.run.verify import verify
from headspan.store.info import info
from tests.conftest import BROKEN_ROWS, ToyRun

# What Python code calls where a user types the command.
TWINS: dict[str, tuple[str, ...]] = {
    "export": ("export", "explore.export_atlas"),
    "precompute": ("precompute",),
    "frames": ("video.write_frames",),
    "models": ("models",),
    "info": ("info",),
    "verify": ("verify",),
    "repair": ("repair",),
    "runs": ("runs", "remove_runs"),
    "textspan": ("textspan",),
    "label": ("concepts.label_heads", "concepts.label_by_model"),
    "ccs": ("concepts.concept_consistency", "concepts.judge_heads"),
    "compare": ("concepts.compare",),
    "report": ("write_report",),
    # A page is for people; Python has the functions that it calls.
    "explore": (),
    "nearest": (
        "explore.nearest_to_image",
        "explore.nearest_to_text",
        "explore.property_neighbours",
        "explore.neighbour_strips",
    ),
    "segment": ("explore.segment",),
    "contrast": ("explore.contrast",),
    "pool": ("concepts.write_pool",),
    "votes": ("concepts.read_votes",),
    "agreement": ("concepts.rater_agreement",),
    "heads": ("explore.head_pursuit", "explore.text_shares"),
    "spectra": ("explore.spectra",),
    "prune": ("prune.study", "prune.read_study"),
    "concepts": ("prune.concept_effects", "prune.concepts_of"),
    "reconstruct": ("prune.reconstruction",),
    "spurious": ("prune.spurious_study", "prune.spurious_heads"),
    "features": (
        "features.train",
        "features.score",
        "features.name_features",
        "features.feature_table",
        "features.probe_bias",
        "features.attack",
        "features.edit_study",
    ),
    "describe": (
        "describe.train",
        "describe.train_frontier",
        "describe.write",
        "describe.quality_table",
        "describe.inspect",
        "describe.write_verdict_sheet",
        "describe.read_verdict_sheet",
        "describe.compare_inspections",
    ),
    "demo": ("demo.run",),
}
GROUPS = ("concepts", "demo", "describe", "explore", "features", "llm", "prune", "spans", "tasks", "video", "world")


def test_every_public_name_can_be_used_and_is_listed() -> None:
    found = {name: getattr(hs, name) for name in hs.__all__}
    assert {name for name, each in found.items() if isinstance(each, ModuleType)} == set(GROUPS)
    assert all(callable(each) for name, each in found.items() if name not in GROUPS)
    assert dir(hs) == sorted(hs.__all__)
    assert hs.open is found["open"] is hs.store.reader.open_store
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        hs.nope  # noqa: B018


def test_the_package_has_few_names_beside_its_groups() -> None:
    assert len(set(hs.__all__) - set(GROUPS)) <= 27


def test_importing_headspan_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import headspan; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert "headspan" in imported
    assert imported - set(sys.stdlib_module_names) == {"headspan"}


def test_precompute_takes_every_setting_by_its_name_with_its_default() -> None:
    parameters = dict(inspect.signature(hs.precompute).parameters)
    # Neither changes what is stored.
    assert parameters.pop("on_progress").default is None
    assert parameters.pop("executor").default is None
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    assert [name for name, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY] == ["shards", "out"]
    settings = {field.name: field for field in fields(hs.PrecomputeSettings)}
    assert list(parameters) == list(settings)
    for name in list(parameters)[2:]:
        assert parameters[name].default == settings[name].default, name


def test_a_setting_that_does_not_exist_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        hs.precompute("a.tar", "s.zarr", epochs=3)  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="unknown setting epochs; precompute knows allow_pipe, batch_size"):
        hs.PrecomputeSettings.from_dict({"shards": "a.tar", "out": "s.zarr", "epochs": 3})


@pytest.mark.parametrize("name", ["precompute", "verify", "repair"])
def test_docstrings_describe_every_argument_in_one_line(name: str) -> None:
    function = getattr(hs, name)
    text = inspect.getdoc(function) or ""
    described = re.search(r"^Args:\n(.*?)\n\nReturns:\n.*\n\nRaises:\n    HeadspanError: ", text, re.S | re.M)
    assert described
    lines = described[1].splitlines()
    assert [line.strip().partition(":")[0] for line in lines] == list(inspect.signature(function).parameters)
    assert all(re.fullmatch(r"    \w+: \S.*\.", line) for line in lines)


def test_every_public_function_and_type_has_a_docstring() -> None:
    for name in hs.__all__:
        assert inspect.getdoc(getattr(hs, name)), name


def test_every_command_has_a_function_in_python() -> None:
    _, commands = build_parser()
    assert TWINS.keys() == commands.parsers.keys()
    for names in TWINS.values():
        for name in names:
            assert callable(attrgetter(name)(hs)), name
            group, _, function = name.rpartition(".")
            assert function in getattr(attrgetter(group)(hs) if group else hs, "__all__", (function,)), name


def test_verify_checks_every_row_whatever_the_store_was_opened_with(toy_run: ToyRun) -> None:
    wanted = verify(hs.open(toy_run.path, include_failed=True))
    assert wanted.images == 70 - len(BROKEN_ROWS)
    for store in (toy_run.path, str(toy_run.path), hs.open(toy_run.path)):
        assert hs.verify(store) == wanted


def test_repair_takes_a_store_or_its_path(toy_copy: Path) -> None:
    wanted = hs.verify(toy_copy)
    for store in (toy_copy, str(toy_copy), hs.open(toy_copy)):
        assert hs.repair(store) == hs.Repaired((), (), wanted)


def test_info_gives_the_facts_that_the_command_prints(toy_run: ToyRun, capsys: pytest.CaptureFixture[str]) -> None:
    found = hs.info(toy_run.path)
    assert main(["info", str(toy_run.path)]) == 0
    assert f"{found!r}\n" == capsys.readouterr().out
    assert found.facts["images"] == "67 of 70 planned, 3 bad"
    assert info(hs.open(toy_run.path)) == found
    with pytest.raises(FrozenInstanceError):
        found.facts = {}  # type: ignore[misc]


def test_info_in_a_notebook_is_a_table_with_all_text_of_the_store_escaped() -> None:
    page = hs.StoreInfo({"store": "<b>&\x1b", "images": "2"})._repr_html_()
    assert page.count("<tr>") == 2
    assert "&lt;b&gt;&amp;\\x1b</td>" in page


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(hs.__file__).parent / "py.typed").is_file()


SCRIPT = """
import headspan as hs


def precompute(shards: list[str]) -> hs.Summary:
    return hs.precompute(shards, "run.zarr", model="ViT-L-14", layers="all", emit=("heads", "mlps"), precision="bf16")


def analyse(path: str) -> float:
    store: hs.Store = hs.open(path)
    pool: hs.Pool = hs.read_pool("general")
    spans = hs.textspan(store, pool, texts_per_head=20)
    reveal_type(hs.verify(path).images)
    reveal_type(hs.repair(path).units)
    reveal_type(hs.info(path).facts)
    reveal_type(hs.models())
    reveal_type(hs.write_report(store, "report.html"))
    reveal_type(hs.demo.run("demo").report)
    hs.text_vectors(store, ["a dog"])
    return float(spans.explained[0, 0, -1])


hs.precompute("a.tar", "run.zarr", precision="fp8")
"""


# What `mypy --strict` turns on for a module.
STRICT = (
    "disallow_any_generics",
    "disallow_subclassing_any",
    "disallow_untyped_calls",
    "disallow_untyped_defs",
    "disallow_incomplete_defs",
    "check_untyped_defs",
    "disallow_untyped_decorators",
    "warn_return_any",
    "strict_equality",
    "extra_checks",
)


@pytest.mark.slow
def test_a_users_script_is_checked_strictly(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # With the settings of headspan's own check, so that what that check has cached is used.
    project = Path(__file__).parents[2]
    strict = "".join(f"{name} = true\n" for name in STRICT)
    config = tmp_path / "pyproject.toml"
    config.write_text(
        (project / "pyproject.toml").read_text() + f'[[tool.mypy.overrides]]\nmodule = "script"\n{strict}'
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), "--no-error-summary", str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=project,
    )
    lines = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    # Older versions of mypy write `builtins.int`.
    revealed = [line.split('"')[1].replace("builtins.", "") for line in lines if line.startswith("note: Revealed")]
    assert revealed == [
        "int",
        "tuple[int, ...]",
        "typing.Mapping[str, str]",
        "dict[str, str | None]",
        "pathlib.Path",
        "pathlib.Path",
    ], done.stdout + done.stderr
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 1, done.stdout
    assert 'Argument "precision" to "precompute" has incompatible type' in errors[0]


GLOSSARY = (Path(__file__).parents[2] / "engine" / "GLOSSARY.md").read_text(encoding="utf-8")


def test_every_name_in_the_glossary_exists() -> None:
    owners: dict[str, Any] = {"hs": hs, "store": hs.Store, "spans": hs.spans.HeadSpans}
    names = re.findall(r"`(hs|store|spans)\.([a-z_]\w*(?:\.\w+)?|[A-Z]\w*)", GLOSSARY, re.I)
    assert len(names) > 30
    for owner, name in names:
        # `store.layers.index(layer)`: a property, of whose values the class knows nothing.
        found = name.partition(".")[0] if owner == "store" else name
        assert attrgetter(found)(owners[owner]), f"{owner}.{name}"
    for name in re.findall(r"`\.(\w+)`", GLOSSARY):
        assert hasattr(hs.concepts.ConceptConsistency, name), name


def test_every_array_in_the_glossary_is_in_a_store(toy_run: ToyRun) -> None:
    paths = re.findall(r"`((?:model|moments|records)/\w+(?:\.\w+)?)`", GLOSSARY)
    assert len(paths) >= 10
    for path in paths:
        assert (toy_run.path / path).exists(), path


def arguments_of(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_repair_takes_what_the_command_takes() -> None:
    _, commands = build_parser()
    flags = {action.dest for action in commands.parsers["repair"]._actions} - {"help"}
    assert flags <= arguments_of(hs.repair)
    flags = {action.dest for action in commands.parsers["precompute"]._actions} - {"help"}
    of_ray = {"ray", *(f"ray_{field.name}" for field in fields(hs.Ray) if field.name != "address")}
    assert of_ray <= flags
    assert flags - of_ray <= arguments_of(hs.precompute)


@pytest.mark.parametrize("group", [hs, hs.features], ids=["headspan", "features"])
def test_no_name_that_is_imported_late_is_hidden_by_a_module_of_the_same_name(group: ModuleType) -> None:
    """Python sets a module as an attribute of its package when anybody imports it."""
    modules = {path.stem for path in Path(str(group.__file__)).parent.iterdir()}
    assert modules.isdisjoint(group._MODULES)
