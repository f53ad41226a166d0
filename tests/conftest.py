"""What the tests share: shapes checked at every call, a toy model, random images in shards, a finished store, scenes.

The toy's parameters are all off their trivial values, and three of its seventy images are broken.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from jaxtyping import install_import_hook
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.checking import check_quickly

# Every shape that a signature states is checked at every call. Of `headspan.shards`, some modules are left out: methods
# of `sources` return `Self`, which beartype accepts in decorated classes only.
_CHECKED = (
    *(
        "config",
        "decode",
        "decompose",
        "events",
        "io",
        "llm",
        "loading",
        "model",
        "shards.plan",
        "shards.samples",
        "store",
        "run",
    ),
    *("originals", "texts", "spans", "prune", "concepts", "explore", "report", "plots", "video", "tasks"),
    *("world.checks", "world.ground_truth", "world.scores"),
)
check_quickly()
install_import_hook([*(f"headspan.{name}" for name in _CHECKED), "headspan_kernels"], "beartype.beartype")

import headspan as hs  # noqa: E402
from headspan.decompose.contributions import contributions  # noqa: E402
from headspan.explore.query.image_cache import images_folder  # noqa: E402
from headspan.model.convert import to_tower  # noqa: E402
from headspan.model.load import LoadedModel, load_model  # noqa: E402
from headspan.run.image_encoder import forget_models  # noqa: E402
from headspan.texts.user_cache import cache_file  # noqa: E402
from headspan.texts.vectors import forget_vectors  # noqa: E402
from headspan.world import Scene, scene  # noqa: E402
from tests.kept_vocabularies import keep_vocabularies  # noqa: E402
from tests.run_folder import use_run_folder  # noqa: E402
from tests.unsynced import do_not_sync  # noqa: E402
from tests.warm_python import real_starts, warm_processes  # noqa: E402, F401

# No test, nor a process that it starts, reads or writes the user's cache of headspan. What other libraries have cached
# stays where it is.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("HF_HOME", str(_CACHE / "huggingface"))
os.environ.setdefault("TORCH_HOME", str(_CACHE / "torch"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cache-", dir=use_run_folder())

do_not_sync()
keep_vocabularies()

# Two heads of 16 over 4 × 4 patches and the class token; the joint dimension is below the stream's width.
TOY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16},
    "text_cfg": {"width": 32, "layers": 2, "heads": 2, "context_length": 16},
}
# Rows of the toy shards' broken images: in the middle, side by side, and the last of all.
BROKEN_ROWS = (5, 33, 69)

# Files whose tests take longest. They begin first, so that no process works alone on one of them at the end.
_LONGEST = (
    *("test_kills", "test_benchmarks", "test_examples", "test_demo", "test_kept_runs", "test_model_shapes"),
    *("test_devices", "test_train_reference", "test_report_poison", "test_explorer_fuzz"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files with the longest tests begin first; `--no-loadscope-reorder` keeps this order."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collections, which would look through millions of objects."""
    gc.collect()
    gc.freeze()


def randomise(module: nn.Module, seed: int) -> None:
    """Randomise every parameter: no norm or LayerScale is one, no bias is zero, and attention is not uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre, spread = _distribution(name, parameter)
            parameter.normal_(centre, spread, generator=generator)


def _distribution(name: str, parameter: torch.Tensor) -> tuple[float, float]:
    if name.endswith("gamma"):
        return 0.6, 0.2
    if name.endswith("bias"):
        return 0.0, 0.1
    if ".ln_" in f".{name}":
        return 1.0, 0.2
    if name.endswith("positional_embedding"):
        return 0.0, 0.3
    if name.endswith("class_embedding"):
        return 0.0, 1.0
    if name.endswith("proj"):
        return 0.0, parameter.shape[0] ** -0.5
    return 0.0, parameter[0].numel() ** -0.5


def encoded_image(seed: int, height: int = 40, width: int = 37, kind: str = "JPEG") -> bytes:
    """A random image, coarse enough that JPEG keeps most of it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Write a tar of `members` (name, data) in that order; all times are zero."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def image_members(rows: Sequence[int], broken: Sequence[int] = ()) -> list[tuple[str, bytes]]:
    """An image and its caption for each row; every third image is a PNG, and those of `broken` are truncated."""
    members: list[tuple[str, bytes]] = []
    for row in rows:
        extension, kind = ("png", "PNG") if row % 3 == 0 else ("jpg", "JPEG")
        data = encoded_image(row, 33 + row % 9, 35 + row % 7, kind)
        members.append((f"{row:05d}.{extension}", data[:40] if row in broken else data))
        members.append((f"{row:05d}.txt", f"caption {row}".encode()))
    return members


def relative_files(root: Path) -> dict[str, bytes]:
    """Every file below `root`, by its path there."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@dataclass(frozen=True, slots=True)
class ToyRun:
    """What the toy store was made from."""

    config: Path
    weights: Path
    shards: tuple[Path, ...]
    path: Path

    def settings(self, **changed: Any) -> dict[str, Any]:
        """The keyword arguments of `headspan.precompute` that made the store, except `out`."""
        return {
            "shards": [str(shard) for shard in self.shards],
            "model": str(self.config),
            "pretrained": str(self.weights),
            "layers": "all",
            "emit": ("heads", "patches", "mlps"),
            "device": "cpu",
            # Compared with open_clip's own transform.
            "decode": "exact",
            "batch_size": 7,
            "workers": 2,
            "unit_images": 32,
            **changed,
        }


def zarr_array(root: Path, name: str) -> zarr.Array[Any]:
    """One array of a store, as zarr-python alone opens it."""
    array = zarr.open_group(root, mode="r")[name]
    assert isinstance(array, zarr.Array)
    return array


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let child processes receive SIGINT: a shell lets background jobs ignore it, and their children inherit this."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True)
def _no_caches_of_other_tests() -> None:
    """Empty the caches of text vectors, images and models, so that every test computes its own."""
    forget_vectors()
    forget_models()
    shutil.rmtree(images_folder(), ignore_errors=True)
    cache_file().unlink(missing_ok=True)


@pytest.fixture(scope="session")
def toy_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's open_clip config; its stem is the name under which open_clip knows it."""
    path = tmp_path_factory.mktemp("toy") / "headspan-toy.json"
    path.write_text(json.dumps(TOY))
    return path


@pytest.fixture(scope="session")
def toy_weights(toy_config: Path) -> Path:
    """The toy's weights: its image tower randomised, its text tower as open_clip initialises it."""
    clip = load_model(str(toy_config), "random:0").clip
    randomise(clip.visual, 0)
    path = toy_config.with_name("toy.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def toy_model(toy_config: Path, toy_weights: Path) -> LoadedModel:
    """The toy, loaded."""
    return load_model(str(toy_config), str(toy_weights))


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Seventy images in three tars of 31, 1 and 38, so that units and tars begin at different rows."""
    folder = tmp_path_factory.mktemp("shards")
    spans = (range(31), range(31, 32), range(32, 70))
    return tuple(
        write_tar(folder / f"{number:03d}.tar", image_members(rows, BROKEN_ROWS)) for number, rows in enumerate(spans)
    )


@pytest.fixture(scope="session")
def toy_run(
    toy_config: Path, toy_weights: Path, toy_shards: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory
) -> ToyRun:
    """The toy store on disk, finished; tests that write into a store take `toy_copy`."""
    run = ToyRun(toy_config, toy_weights, toy_shards, tmp_path_factory.mktemp("store") / "toy.zarr")
    hs.precompute(out=run.path, **run.settings())
    return run


@pytest.fixture(scope="session")
def toy_store(toy_run: ToyRun) -> hs.Store:
    """The toy store, to be read only."""
    return hs.open(toy_run.path)


@pytest.fixture(scope="session")
def captioned_store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """A small store of the reference model whose images have captions, to be read only."""
    from tests.engine.captioned_stores import CAPTIONS, make_store

    return make_store(tmp_path_factory.mktemp("captioned"), CAPTIONS)


@pytest.fixture(scope="session")
def toy_exact(toy_shards: tuple[Path, ...], toy_model: LoadedModel) -> dict[str, np.ndarray]:
    """The good images' numbers in float32, read by tarfile, PIL and open_clip's own transform."""
    # Not above: headspan imports open_clip first, without what it does not need.
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**toy_model.clip.visual.preprocess_cfg), is_train=False)
    pixels = []
    for shard in toy_shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                if extension != "txt" and int(key) not in BROKEN_ROWS:
                    with Image.open(tar.extractfile(member)) as image:  # type: ignore[arg-type]
                        pixels.append(transform(image))
    tower = to_tower(toy_model.clip.visual, "toy")
    row = tower.forward(torch.stack(pixels), range(len(tower.blocks)), with_patches=True, with_terms=True)
    assert row.patches is not None
    return {**contributions(row, tower).arrays, "heads": row.heads.numpy(), "patches": row.patches.numpy()}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny arrays in torch: threads would only wait for one another.

    For whole modules, as a mark: what a fixture of a module computes with two threads has other last bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy_copy(toy_run: ToyRun, tmp_path: Path) -> Path:
    """A copy of the toy store, to be written into or damaged."""
    return Path(shutil.copytree(toy_run.path, tmp_path / "copy.zarr"))


@pytest.fixture(scope="session")
def train() -> list[Scene]:
    """Scenes of the image world, of the split `train`."""
    return [scene(7, "train", index) for index in range(3000)]


@pytest.fixture(scope="session")
def held_out() -> list[Scene]:
    """Scenes of the split `held_out`, whose main object has a combination that training leaves out."""
    return [scene(7, "held_out", index) for index in range(1000)]
