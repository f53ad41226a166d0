"""Compiled code is tested with the supported Tritons; other versions skip those tests, and fail none."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kernels import tritons, without_emulated, worlds


@pytest.mark.parametrize("version", ["3.6.0", "3.7.0", "3.7.1", "3.8.0", "3.9.0", "3.9.0+cu130", "3.8.0.dev20260101"])
def test_compiled_code_is_tested_with_every_supported_triton(version: str) -> None:
    assert tritons.why_untried(version) == ""


@pytest.mark.parametrize("version", ["3.9.1", "3.10.0", "3.10.0+git1a2b3c", "4.0.0rc1", "3.5.1", "2.1.0"])
def test_the_reason_for_skipping_another_triton_is_one_line(version: str) -> None:
    reason = tritons.why_untried(version)
    assert reason.startswith(f"Triton {version}: ")
    assert "3.6.0 to 3.9.0" in reason
    assert "\n" not in reason


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Triton newer than the supported ones, on a machine without a GPU."""
    triton = pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")
    monkeypatch.setattr(triton, "__version__", "99.0.0")
    monkeypatch.setattr(tritons, "ON_GPU", False)
    monkeypatch.setattr(tritons, "INTERPRETED", False)


@pytest.mark.parametrize("name", ["test_compiled.py", "test_emulator.py"])
def test_tests_of_compiled_code_are_skipped_with_an_unknown_triton(unknown: None, name: str) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^Triton 99\.0\.0: ") as skipped:
        runpy.run_path(str(Path(__file__).with_name(name)))
    assert skipped.value.allow_module_level


def test_an_unknown_triton_skips_the_emulator_and_not_the_interpreter(
    unknown: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for architecture in (80, 90):
        with pytest.raises(pytest.skip.Exception, match=r"^Triton 99\.0\.0: "):
            worlds.enter(monkeypatch, architecture)
    monkeypatch.setattr(tritons, "INTERPRETED", True)
    worlds.enter(monkeypatch, 90)


@pytest.mark.parametrize(("installed", "kept"), [("99.0.0", [True, False]), (tritons.NEWEST, [True])])
def test_what_the_emulator_runs_is_not_interpreted_too_unless_this_triton_is_unknown(
    unknown: None, monkeypatch: pytest.MonkeyPatch, installed: str, kept: list[bool]
) -> None:
    monkeypatch.setattr(without_emulated, "version", lambda package: installed)
    items: list[Any] = [
        SimpleNamespace(only=only, get_closest_marker=lambda name, only=only: name if only else None)
        for only in (True, False)
    ]
    left_out: list[Any] = []
    config: Any = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items)))
    without_emulated.pytest_collection_modifyitems(config, items)
    assert [item.only for item in items] == kept
    assert len(items) + len(left_out) == 2


def test_the_reason_is_printed_once_after_the_tests(
    unknown: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    path = Path(__file__).with_name("conftest.py")
    conftest: Any = request.config.pluginmanager.get_plugin(str(path))
    said: list[str] = []
    reporter = SimpleNamespace(write_line=said.append)
    conftest.pytest_terminal_summary(reporter)
    assert said == [tritons.why_untried("99.0.0")]
    monkeypatch.setattr(tritons, "INTERPRETED", True)
    conftest.pytest_terminal_summary(reporter)
    assert len(said) == 1
