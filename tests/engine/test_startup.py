"""What commands import, how models are built without unused random numbers, and how large stores are opened."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

import headspan as hs
from benchmarks.random_store import sparse_store
from headspan.errors import HeadspanError, ModelError, SourceError
from headspan.events import Progress
from headspan.model.checksums import TowerChecksums
from headspan.model.convert import unsupported_reason
from headspan.model.load import LoadedModel, load_model
from headspan.run import precompute as page
from headspan.store.contents import Contents
from headspan.store.mapped import MappedRows
from headspan.store.schema import Dimensions
from tests.conftest import ToyRun
from tests.engine.test_shard_writer import random_values, spec_of, write_all

# A small tower of timm with rotary positions, whose constructor computes buffers.
TIMM = "PE-Core-T-16-384"
LOADED = """
import json, sys
from headspan.__main__ import main
sys.argv = ["headspan", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(arguments: list[str]) -> set[str]:
    """The modules that a process has imported after one command."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(arguments)], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_main_page_and_the_version_need_only_the_standard_library(arguments: list[str]) -> None:
    tops = {name.partition(".")[0] for name in modules_after(arguments)} - sys.stdlib_module_names
    # What the interpreter itself, or an installer's hook, imports at its start.
    nothing = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    always = {name.partition(".")[0] for name in json.loads(nothing.stdout)}
    assert tops - always - {"__main__"} == {"headspan"}


def test_info_imports_neither_a_model_nor_an_analysis(toy_run: ToyRun) -> None:
    modules = modules_after(["info", str(toy_run.path)])
    assert "headspan.store.info" in modules
    unneeded = {"torch", "open_clip", "tqdm", "xarray", "pandas", "PIL", "pyarrow.dataset", "importlib.metadata"}
    unneeded |= {
        f"headspan.{name}" for name in ("model", "decode", "run", "spans", "concepts", "llm", "world", "report")
    }
    # zarr imports importlib.metadata.
    assert modules & unneeded <= {"importlib.metadata"}


WITHOUT_COMPILER = """
import json, sys
import headspan as hs
shards, out, settings = json.loads(sys.argv[1])
hs.precompute(shards, out, **settings)
assert hs.open(out).images, "nothing was computed"
unneeded = ("sympy", "transformers")
found = [name for name in sys.modules if name.partition(".")[0] in unneeded or name.startswith("torch._dynamo")]
assert not found, found[:3]

import torch, torchvision
from timm.layers.typing import disable_compiler
from torchvision.ops import roi_align

assert torch.compiler.disable.__module__ == "torch.compiler"

def where(x):
    seen.append(torch.compiler.is_compiling())
    return x + 1

seen = []
apart = disable_compiler(where)
assert apart(1) == 2

# From here on the compiler is there.
@torch.compile(backend="eager")
def compiled(x):
    return 2 * apart(x)

assert compiled(torch.ones(2)).tolist() == [4.0, 4.0]
assert seen == [False, False]
assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
known = torchvision.ops.roi_align.__globals__["is_compile_supported"]
assert known("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
torch.testing.assert_close(roi_align(torch.ones(1, 1, 8, 8), boxes, (2, 2)), torch.ones(1, 1, 2, 2))
"""


def test_a_run_imports_neither_transformers_nor_torchs_compiler_and_leaves_it_usable(
    toy_run: ToyRun, tmp_path: Path
) -> None:
    settings = toy_run.settings(device="cpu")
    shards = settings.pop("shards")
    given = json.dumps([shards, str(tmp_path / "run.zarr"), settings])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_COMPILER, given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


IMPORTED_MEANWHILE = """
import sys
from headspan.model import without_compiler as guard
import torch
with guard._without_compiler(torch.compiler):
    assert type(sys.modules["torch._dynamo.utils"]).__name__ == "_StandIn"
    %s
assert found is sys.modules["torch._dynamo.utils"].counters
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert type(torch._dynamo.utils).__name__ == "module"
"""


@pytest.mark.parametrize(
    "how",
    [
        "from torch._dynamo.utils import counters as found",
        pytest.param("import torch._dynamo.config; found = torch._dynamo.utils.counters", marks=pytest.mark.full_size),
    ],
)
def test_a_library_that_needs_more_of_the_compiler_gets_the_real_one(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED_MEANWHILE % how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def state_sha256(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of tensors by name, as float32, tensor by tensor."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + np.ascontiguousarray(state[name].float().numpy()).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", ["ViT-B-32", TIMM])
def test_weights_of_a_seed_are_those_that_open_clip_draws(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        theirs = open_clip.create_model(name).state_dict()
    others = {key: tensor for key, tensor in theirs.items() if not key.startswith("visual.")}
    for key in ("logit_scale", "logit_bias"):
        others.pop(key, None)
    image = {key.removeprefix("visual."): tensor for key, tensor in theirs.items() if key.startswith("visual.")}
    model = load_model(name, "random:7")
    assert (model.weights_sha256, model.text_sha256) == (state_sha256(image), state_sha256(others))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("name", ["toy", TIMM])
def test_a_model_from_a_file_equals_the_one_that_was_saved(
    name: str, suffix: str, toy_config: Path, tmp_path: Path
) -> None:
    name = str(toy_config) if name == "toy" else name
    drawn = load_model(name, "random:3").clip
    state = {key: tensor.contiguous().clone() for key, tensor in drawn.state_dict().items()}
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(state, file)
    else:
        save_file(state, file)
    before = torch.get_rng_state()
    loaded = load_model(name, str(file)).clip
    assert torch.equal(torch.get_rng_state(), before)
    wanted = {**dict(drawn.named_parameters()), **dict(drawn.named_buffers())}
    found = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key


def test_a_file_without_one_of_the_weights_is_refused(toy_config: Path, tmp_path: Path) -> None:
    state = load_model(str(toy_config), "random:0").clip.state_dict()
    del state["visual.class_embedding"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ModelError, match=r"do not fit .*visual\.class_embedding"):
        load_model(str(toy_config), str(tmp_path / "part.pt"))


def test_checksums_are_those_of_the_towers_and_are_computed_once(toy_model: LoadedModel) -> None:
    checksums = TowerChecksums.begin(toy_model.clip)
    assert checksums.image == toy_model.weights_sha256 == state_sha256(toy_model.clip.visual.state_dict())
    assert checksums.image is checksums.image


def test_open_clips_own_towers_are_judged_by_one_block(toy_config: Path) -> None:
    config = json.loads(toy_config.read_text())
    # 10,000 blocks of this width would take minutes and 80 TB.
    config["vision_cfg"].update(width=12_288, layers=10_000, head_width=64)
    assert unsupported_reason(config) is None


def loaded_when(event: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run call `event` before it loads its model."""
    load = page.load_model

    def later(*arguments: Any, **named: Any) -> LoadedModel:
        event()
        return load(*arguments, **named)

    monkeypatch.setattr(page, "load_model", later)


def planning_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "headspan-plan"]


def test_the_plan_is_read_while_the_model_is_loaded(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, threading.Thread]] = []
    at_load: list[int] = []

    def wait_for_the_plan() -> None:
        for thread in planning_threads():
            thread.join(30)
        folder, *_ = tmp_path.glob(".run.zarr.planning-*")
        at_load.append(len(list(folder.rglob("*.parquet"))))

    def note(event: Progress) -> None:
        events.append((event.stage, threading.current_thread()))

    loaded_when(wait_for_the_plan, monkeypatch)
    hs.precompute(out=tmp_path / "run.zarr", on_progress=note, **toy_run.settings())
    # Samples and notes were written before the model was loaded.
    assert at_load == [2]
    # The listener is called by the caller's thread only.
    assert {thread for _, thread in events} == {threading.current_thread()}
    stages = [stage for stage, _ in events if stage in ("plan", "planned")]
    assert stages == ["plan"] * len(toy_run.shards) + ["planned"]


@pytest.mark.parametrize("broken", ["model", "shards", "both"])
def test_an_error_of_model_or_plan_is_raised_and_leaves_nothing(
    broken: str, toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy_run.settings()
    if broken != "model":
        settings["shards"] = [str(tmp_path / "none.tar")]
        (tmp_path / "none.tar").write_bytes(b"no tar")
    if broken != "shards":

        def fail() -> None:
            raise ModelError("no weights")

        loaded_when(fail, monkeypatch)
    # Shards on disk are looked at before the model is loaded.
    expected: type[HeadspanError] = ModelError if broken == "model" else SourceError
    with pytest.raises(expected):
        hs.precompute(out=tmp_path / "out" / "run.zarr", **settings)
    assert not list((tmp_path / "out").iterdir())
    assert not planning_threads()


def test_an_interruption_while_the_model_is_loaded_ends_the_plan(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    loaded_when(interrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        hs.precompute(out=tmp_path / "out" / "run.zarr", **toy_run.settings())
    assert not list((tmp_path / "out").iterdir())
    assert not planning_threads()


UNITS, UNIT_IMAGES, BAD_EVERY = 300, 64, 7


@pytest.fixture(scope="module")
def many_units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many small units, whose last one is not full."""
    size = Dimensions(
        UNITS * UNIT_IMAGES - 5,
        UNIT_IMAGES,
        layers=(1,),
        all_layers=2,
        direct_layers=2,
        heads=2,
        head_dim=4,
        tokens=5,
        prefix_tokens=1,
        joint=3,
        terms=3,
    )
    path = tmp_path_factory.mktemp("many") / "run.zarr"
    sparse_store(path, size, np.random.default_rng(0), BAD_EVERY)
    return path


def test_a_store_is_opened_without_reading_arrays_by_zarr(many_units: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Contents, name: str, *arguments: Any, **named: Any) -> np.ndarray:
        raise AssertionError(f"{name} is read chunk by chunk")

    monkeypatch.setattr(Contents, "values", refuse)
    store = hs.open(many_units)
    rows = np.arange(UNITS * UNIT_IMAGES - 5)
    np.testing.assert_array_equal(store.rows, rows[rows % BAD_EVERY != 0])
    assert len(store.bad_images()) == store.planned_images - store.images
    # Arrays with one number for each image, or a few, are read in the same way.
    assert np.isnan(store.norm).all()
    assert np.isnan(store.head_coordinates(1, 1)).all()


def test_a_store_with_more_shards_than_open_files_can_be_read(many_units: Path, toy_run: ToyRun) -> None:
    code = """
import sys, headspan as hs, numpy as np
store = hs.open(sys.argv[1])
store.norm, store.embedding
assert np.isnan(store.head_coordinates(1, 0)).all()
print(store.images)
"""
    limit = 128

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    assert 2 * limit < UNITS
    done = subprocess.run(
        [sys.executable, "-c", code, str(many_units)], capture_output=True, text=True, check=False, preexec_fn=few_files
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == hs.open(many_units).images


@pytest.mark.parametrize("index", [(), (2,), (1, 3)])
def test_a_shard_that_is_read_at_once_equals_its_rows_one_by_one(index: tuple[int, ...], tmp_path: Path) -> None:
    # Chunks of four rows, undivided along the other axes; the last shard and its last chunk are not full.
    spec = spec_of((13, 3, 4), (8, 3, 4), (4, 3, 4), "float16")
    values = random_values(spec.shape, spec.dtype)
    write_all(tmp_path, spec, values)
    place: tuple[slice | int, ...] = (slice(None), *index)
    for dtype in (None, np.float32):
        found = MappedRows(tmp_path, spec).read(index, dtype)
        wanted = values[place].astype(found.dtype)
        np.testing.assert_array_equal(found, wanted)
