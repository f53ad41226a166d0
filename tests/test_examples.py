"""The notebooks of `examples/` run from the first cell to the last without a warning, and show what they show."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

import headspan as hs
from tools.notebooks import EXAMPLES, missing_packages, notebook_of, run, scripts

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = scripts()
# Bytes of a notebook with its outputs; reviewers load them, and every clone has them.
LARGEST = 400_000


def read(script: Path) -> nbformat.NotebookNode:
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of what each cell shows: printed words, values, pictures."""
    return [
        [kind for output in cell.get("outputs", []) for kind in sorted(output.get("data", {output.output_type: None}))]
        for cell in notebook.cells
    ]


def test_every_script_has_a_notebook_and_no_notebook_lacks_a_script() -> None:
    assert len(SCRIPTS) >= 5
    assert sorted(EXAMPLES.glob("*.ipynb")) == [script.with_suffix(".ipynb") for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_has_the_cells_of_its_script(script: Path) -> None:
    committed, made = read(script), notebook_of(script)
    assert [cell.source for cell in committed.cells] == [cell.source for cell in made.cells], (
        f"{script.name} has changed; run python -m tools.notebooks {script.stem}"
    )
    nbformat.validate(committed)
    assert script.with_suffix(".ipynb").stat().st_size < LARGEST
    assert all(output.output_type != "error" for cell in committed.cells for output in cell.get("outputs", []))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_runs_and_shows_what_the_committed_one_shows(script: Path, tmp_path: Path) -> None:
    if missing := missing_packages(script):
        pytest.skip(f"needs {', '.join(missing)}, which the tests do not install")
    done = run(notebook_of(script), tmp_path)
    assert [cell.execution_count for cell in done.cells if cell.cell_type == "code"] == list(
        range(1, 1 + sum(cell.cell_type == "code" for cell in done.cells))
    )
    assert kinds(done) == kinds(read(script))
    # Notebooks write into a folder of their own.
    assert [path.name for path in tmp_path.iterdir()] == [script.stem.replace("_", "-")]
    assert hs.open(tmp_path / script.stem.replace("_", "-") / "run.zarr").images >= 300


def test_a_cell_that_warns_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "warns.py"
    script.write_text("# %%\nimport warnings\nwarnings.warn('mind the gap', UserWarning, stacklevel=1)\n")
    with pytest.raises(Exception, match="mind the gap"):
        run(notebook_of(script), tmp_path)


def test_the_pages_link_to_every_notebook() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({script.stem}.ipynb)" in page for script in SCRIPTS)
    for name in ("README.md", "engine/README.md"):
        assert "examples/README.md)" in (ROOT / name).read_text(encoding="utf-8"), name
