"""Make the notebooks of `examples/` from the scripts beside them, and run them.

A script is the source: cells begin with `# %%`, as jupytext and editors read them. `python -m tools.notebooks` writes
every notebook with its outputs, or those that are named, as in `python -m tools.notebooks probing`. A notebook whose
packages are not installed keeps the outputs it has.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# A notebook takes some ten seconds; a busy machine may be several times slower.
TIMEOUT_SECONDS = 300
# Run before the first cell: every warning is an error, except those of the kernel; and pictures are small.
_FIRST = """
import warnings
import matplotlib
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")
matplotlib.rcParams["figure.dpi"] = 80
"""
# Bytes of a picture in base64 beyond which it is stored as JPEG.
_LARGE = 60_000
_OPTIONAL = ("fiftyone",)


def scripts() -> list[Path]:
    """The sources of all notebooks."""
    return sorted(EXAMPLES.glob("*.py"))


def missing_packages(script: Path) -> list[str]:
    """Packages that the script imports, that headspan's tests do not need, and that are not installed."""
    imported = set(re.findall(r"^(?:import|from) (\w+)", script.read_text(encoding="utf-8"), re.MULTILINE))
    return [name for name in _OPTIONAL if name in imported and find_spec(name) is None]


def notebook_of(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs. The same script always gives the same notebook."""
    notebook = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that a kernel in `folder` gives.

    Raises nbclient's CellExecutionError if a cell raises an exception or warns.
    """
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_FIRST, id="first"))
    resources: dict[str, Any] = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        # Whether lines that are printed together come in one message or two depends on the time.
        coalesce_streams=True,
        # The kernel warns that it uses unencrypted sockets, which only this machine can reach.
        extra_arguments=["--log-level=ERROR"],
    )
    client.execute()
    del notebook.cells[0]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # The number of the cell, as if the first had not been there.
            cell.execution_count -= 1
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count -= 1
                if "image/png" in output.get("data", {}):
                    output.data |= _smaller(output.data.pop("image/png"))
    return notebook


def _smaller(encoded: str) -> dict[str, str]:
    """A PNG in base64, by its type: with at most 256 colours, or if that is large, as JPEG."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        pixels = image.convert("RGB")
    found = {}
    for kind, picture, options in (
        ("png", pixels.quantize(256, dither=Image.Dither.NONE), {"optimize": True}),
        ("jpeg", pixels, {"quality": 85, "subsampling": 0, "optimize": True}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        found[f"image/{kind}"] = base64.b64encode(buffer.getvalue()).decode()
    kind = "image/jpeg" if len(found["image/png"]) > _LARGE else "image/png"
    return {kind: found[kind]}


def main(names: list[str]) -> None:
    """Write the notebooks of these names, or all."""
    for script in scripts():
        if names and script.stem not in names:
            continue
        path, notebook = script.with_suffix(".ipynb"), notebook_of(script)
        if not missing_packages(script):
            with tempfile.TemporaryDirectory() as folder:
                notebook = run(notebook, Path(folder))
        elif path.exists():
            earlier = {cell.source: cell for cell in nbformat.read(path, as_version=4).cells}
            for cell in notebook.cells:
                if cell.cell_type == "code" and cell.source in earlier:
                    cell.outputs = earlier[cell.source].outputs
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
