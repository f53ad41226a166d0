"""The same weights give the same embeddings however they are named, and assumed settings are reported.

A stand-in for the hub's cache holds a toy's weights under a tag that the test adds to open_clip's table.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from open_clip import pretrained as open_clip_tags
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file

import headspan as hs
from headspan.cli.main import main
from headspan.decode.exact import preprocess_image
from headspan.errors import ModelError
from headspan.events import Progress
from headspan.model import hub
from headspan.model.convert import to_tower, two_pass_models
from headspan.model.load import LoadedModel, load_model, load_stored_model
from headspan.model.tower import Tower, normalise
from headspan.run.image_encoder import forget_models
from tests import tolerances
from tests.conftest import TOY, encoded_image, image_members, randomise, write_tar
from tests.tolerances import relative_error

REPOSITORY = "headspan-tests/Toy"
TAG = "trained_s1b"
HALF, ONE = [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]
# A small vocabulary keeps the weights small.
SMALL: dict[str, Any] = {**TOY, "text_cfg": {**TOY["text_cfg"], "vocab_size": 64}}
# Each differs from open_clip's defaults as a family of its tags does.
FAMILIES: dict[str, dict[str, Any]] = {
    "QuickGELU": {"quick_gelu": True},
    "SigLIP": {"mean": HALF, "std": HALF, "resize_mode": "squash"},
    "MobileCLIP": {"mean": [0.0, 0.0, 0.0], "std": ONE, "interpolation": "bilinear"},
    "longest": {"interpolation": "bilinear", "resize_mode": "longest", "fill_color": 7, "quick_gelu": True},
    "mean and std of a half": {"mean": HALF, "std": HALF},
}


@dataclass(frozen=True, slots=True)
class Trained:
    """A toy whose weights have a tag, a repository in the hub cache, and a checksum in a url."""

    name: str
    config: Path
    snapshot: Path
    plain_pt: Path
    family: dict[str, Any]

    @property
    def weights(self) -> Path:
        return self.snapshot / hub.WEIGHTS[0]


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("small") / "headspan-small.json"
    config.write_text(json.dumps(SMALL))
    clip = load_model(str(config), "random:1").clip
    randomise(clip.visual, 1)
    path = config.with_name("small.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, path)
    return path


def whole_config(family: dict[str, Any], model: dict[str, Any] = SMALL) -> str:
    preprocess = {name: value for name, value in family.items() if name != "quick_gelu"}
    quick_gelu = {"quick_gelu": True} if family.get("quick_gelu") else {}
    return json.dumps({"model_cfg": {**model, **quick_gelu}, "preprocess_cfg": preprocess})


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def fill_cache(cache: Path, repository: str, config: str, weights: Path) -> Path:
    """Put a config and weights into the cache. As in the hub, the weights are a link to a file named by checksum."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "1234567"
    for each in (snapshot, folder / "refs", folder / "blobs"):
        each.mkdir(parents=True)
    (folder / "refs" / "main").write_text("1234567")
    (snapshot / hub.CONFIG).write_text(config)
    blob = folder / "blobs" / hub.checksum(weights)
    shutil.copy(weights, blob)
    (snapshot / hub.WEIGHTS[0]).symlink_to(blob)
    return snapshot


def trained(
    family: dict[str, Any], cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Trained:
    config = tmp_path / "headspan-trained.json"
    config.write_text(json.dumps(SMALL))
    snapshot = fill_cache(cache, REPOSITORY, whole_config(family), weights)
    plain = tmp_path / "plain.pt"
    torch.save(load_file(weights), plain)
    settings = {
        "hf_hub": f"{REPOSITORY}/",
        "url": f"https://github.com/mlfoundations/open_clip/releases/download/toy-{hub.checksum(plain)[:8]}.pt",
        **{"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, **family},
    }
    others = {"another": {"hf_hub": "headspan-tests/Another/", "mean": ONE}}
    monkeypatch.setitem(open_clip_tags._PRETRAINED, "headspan-trained", {**others, TAG: settings})
    return Trained(str(config), config, snapshot, plain, family)


def embedding_bytes(model: LoadedModel) -> bytes:
    tower = to_tower(model.clip.visual, model.name)
    pixels = torch.from_numpy(preprocess_image(encoded_image(3, 50, 90, "PNG"), model.preprocess))[None]
    row = tower.forward(
        normalise(pixels, model.preprocess.mean, model.preprocess.std, torch.float32), range(tower.layers)
    )
    return row.state.numpy().tobytes()


def elsewhere(source: Path, folder: Path, config: str | None = None) -> Path:
    folder.mkdir()
    if config is not None:
        (folder / hub.CONFIG).write_text(config)
    return Path(shutil.copy(source, folder / source.name))


def resaved(toy: Trained, folder: Path, config: str | None) -> Path:
    """The same tensors in a file with other bytes."""
    folder.mkdir()
    if config is not None:
        (folder / hub.CONFIG).write_text(config)
    path = folder / "open_clip_model.safetensors"
    save_file(load_file(toy.weights), path, {"saved": "again"})
    return path


def unlinked(toy: Trained, tmp_path: Path) -> str:
    """The same file, recognised only by the checksum in a tag's url."""
    shutil.rmtree(toy.snapshot.parents[1])
    return str(elsewhere(toy.plain_pt, tmp_path / "downloads"))


Way = Callable[[Trained, Path], dict[str, Any]]
WAYS: dict[str, Way] = {
    "tag with a file": lambda toy, tmp: {
        "pretrained": TAG,
        "weights": str(resaved(toy, tmp / "bare", None)),
    },
    "tag with a folder": lambda toy, tmp: {
        "pretrained": TAG,
        "weights": str(resaved(toy, tmp / "bare", None).parent),
    },
    "repository as weights": lambda toy, tmp: {"pretrained": f"hf-hub:{REPOSITORY}"},
    "repository as weights, its file elsewhere": lambda toy, tmp: {
        "pretrained": f"hf-hub:{REPOSITORY}",
        "weights": str(elsewhere(toy.weights, tmp / "moved", whole_config(toy.family))),
    },
    "repository as model": lambda toy, tmp: {"name": f"hf-hub:{REPOSITORY}", "pretrained": None},
    "local folder": lambda toy, tmp: {"name": f"local-dir:{toy.snapshot}", "pretrained": None},
    "file in the hub's cache": lambda toy, tmp: {"pretrained": str(toy.weights)},
    "file with the bytes of the hub's": lambda toy, tmp: {"pretrained": str(elsewhere(toy.weights, tmp / "moved"))},
    "file with a known checksum": lambda toy, tmp: {"pretrained": unlinked(toy, tmp)},
    "file beside a config": lambda toy, tmp: {"pretrained": str(resaved(toy, tmp / "saved", whole_config(toy.family)))},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_to_name_the_same_weights_gives_the_same_bytes(
    family: str, hub_cache: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A note about a slow fetch must not appear, however slow the machine is.
    monkeypatch.setattr(hub, "_QUIET_SECONDS", 600.0)
    wanted: LoadedModel | None = None
    for number, (way, named) in enumerate(WAYS.items()):
        folder, cache = tmp_path / str(number), hub_cache / str(number)
        folder.mkdir()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        toy = trained(FAMILIES[family], cache, small_weights, folder, monkeypatch)
        by_tag = wanted = wanted or load_model(toy.name, TAG)
        events: list[Progress] = []
        found = load_model(**{"name": toy.name, **named(toy, folder)}, on_progress=events.append)
        assert found.preprocess == by_tag.preprocess, way
        assert found.activation == by_tag.activation == ("quick_gelu" if toy.family.get("quick_gelu") else "gelu"), way
        assert (found.weights_sha256, found.text_sha256) == (by_tag.weights_sha256, by_tag.text_sha256), way
        assert embedding_bytes(found) == embedding_bytes(by_tag), way
        assert found.assumed is None, way
        assert not events, way


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tag_has_the_preprocessing_and_activation_of_open_clip(
    family: str, hub_cache: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = trained(FAMILIES[family], hub_cache, small_weights, tmp_path, monkeypatch)
    model = load_model(toy.name, TAG)
    # The settings must differ from open_clip's defaults for this test to mean anything.
    clip = open_clip.create_model("headspan-trained", TAG, force_quick_gelu=bool(toy.family.get("quick_gelu"))).eval()
    transform = image_transform_v2(PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False)
    path = tmp_path / "image.png"
    path.write_bytes(encoded_image(3, 50, 90, "PNG"))
    with torch.inference_mode(), Image.open(path) as image:
        wanted = clip.encode_image(transform(image)[None]).numpy()
    tower = to_tower(model.clip.visual, "toy")
    state = np.frombuffer(embedding_bytes(model), np.float32)[None]
    row = torch.nn.functional.layer_norm(torch.from_numpy(state.copy()), state.shape[1:], *tower.ln_post[:2])
    assert relative_error((row @ tower.projection).numpy(), wanted) < tolerances.FLOAT32_SUM


def test_unknown_settings_are_assumed_with_one_sentence_and_recorded(
    hub_cache: Path,
    small_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    toy = trained(FAMILIES["SigLIP"], hub_cache, small_weights, tmp_path, monkeypatch)
    file = resaved(toy, tmp_path / "bare", None)
    shard = write_tar(tmp_path / "a.tar", image_members(range(2)))
    out = tmp_path / "s.zarr"
    command = ["precompute", str(shard), "--model", toy.name, "--layers", "all", "--device", "cpu", "--out", str(out)]
    assert main([*command, "--pretrained", str(file)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "assumed" in line]
    assert len(said) == 1
    assert said[0].startswith(f"{file}: nothing states the preprocessing and activation of these weights")
    assert "mean [0.4815, 0.4578, 0.4082]" in said[0]
    assert "bicubic, shortest, GELU" in said[0]
    assert f"--pretrained TAG --weights {file} (tags: another, {TAG})" in said[0]
    assert hs.open(out).attributes["made_with"]["weights"]["assumed"] == said[0]
    # With the tag it is another store, for which nothing is assumed.
    assert main([*command[:-2], "--out", str(tmp_path / "t.zarr"), "--pretrained", TAG, "--weights", str(file)]) == 0
    assert "assumed" not in capsys.readouterr().err
    told = hs.open(tmp_path / "t.zarr").attributes
    assert told["preprocess"]["resize_mode"] == "squash"
    assert told["made_with"]["weights"]["assumed"] is None
    assert told["pretrained"] == TAG


def test_random_weights_and_the_reference_model_assume_nothing(toy_config: Path) -> None:
    assert load_model(str(toy_config), "random:0").assumed is None
    assert load_model("reference", None).assumed is None


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("vision_cfg", {"layers": 4}, r"vision_cfg\.layers is 4, .* has 3"),
        # Positions would be interpolated silently.
        ("vision_cfg", {"image_size": 48}, r"vision_cfg\.image_size is 48, .* has 32"),
        # The parameters have the same shapes but would give other numbers.
        ("vision_cfg", {"head_width": 8}, r"vision_cfg\.head_width is 8, .* has 16"),
        ("vision_cfg", {"act_kwargs": {"approximate": "tanh"}}, r"vision_cfg\.act_kwargs is .*tanh.* has None"),
        ("text_cfg", {"heads": 4}, r"text_cfg\.heads is 4, .* has 2"),
    ],
)
def test_a_config_next_to_the_weights_that_describes_another_model_is_refused(
    part: str, change: dict[str, Any], text: str, toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    model = {**TOY, part: {**TOY[part], **change}}
    file = elsewhere(toy_weights, tmp_path / "saved", whole_config({}, model))
    with pytest.raises(ModelError, match=rf"open_clip_config\.json: describes another model than .*{text}\); name the"):
        load_model(str(toy_config), str(file))


def test_a_config_with_explicit_defaults_describes_the_same_model(
    toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    model = {
        **TOY,
        "vision_cfg": {**TOY["vision_cfg"], "image_size": [32, 32], "mlp_ratio": 4.0, "ls_init_value": None},
        "text_cfg": {**TOY["text_cfg"], "vocab_size": 49408, "hf_tokenizer_name": ""},
    }
    file = elsewhere(toy_weights, tmp_path / "saved", whole_config(FAMILIES["SigLIP"], model))
    assert load_model(str(toy_config), str(file)).preprocess.resize_mode == "squash"


def flip_last_byte(store: Path) -> tuple[Path, bytes]:
    """Damage a file of the heads. Returns its path and its former contents."""
    path = next(path for path in sorted((store / "heads" / "c").rglob("*")) if path.is_file())
    held = path.read_bytes()
    path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    return path, held


def test_a_resumed_store_keeps_the_settings_that_it_was_made_with(
    hub_cache: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = trained(FAMILIES["longest"], hub_cache, small_weights, tmp_path, monkeypatch)
    file = resaved(toy, tmp_path / "bare", None)
    shard = str(write_tar(tmp_path / "a.tar", image_members(range(2))))
    run: dict[str, Any] = {"model": toy.name, "pretrained": str(file), "device": "cpu", "layers": "all"}
    hs.precompute(shard, tmp_path / "s.zarr", **run)
    # The config is added next to the weights later, as if an earlier headspan had not read it.
    (file.parent / hub.CONFIG).write_text(whole_config(toy.family))
    events: list[Progress] = []
    hs.precompute(shard, tmp_path / "s.zarr", on_progress=events.append, **run)
    notes = [event.note for event in events if event.stage == "note"]
    (kept,) = [note for note in notes if "the store keeps the settings that it was made with" in note]
    assert "QuickGELU" in kept
    damaged, before = flip_last_byte(tmp_path / "s.zarr")
    repaired = hs.repair(tmp_path / "s.zarr")
    assert not repaired.verdict.problems
    assert damaged.read_bytes() == before
    hs.precompute(shard, tmp_path / "new.zarr", **run)
    assert hs.open(tmp_path / "new.zarr").attributes["preprocess"]["resize_mode"] == "longest"


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in state.items()},
        lambda state: {"model": state, "optimizer": {"lr": 1.0}},
        lambda state: {"model": "ViT", "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"epoch": 3, "model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {name: tensor.half().float() for name, tensor in state.items()},
    ],
)
def test_checkpoints_of_training_scripts_load_the_same_tensors(
    wrapped: Callable[[dict[str, Any]], dict[str, Any]], toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    state = {name: tensor.half().float() for name, tensor in load_file(toy_weights).items()}
    torch.save(state, tmp_path / "plain.pt")
    torch.save(wrapped(state), tmp_path / "wrapped.pt")
    plain, found = (load_model(str(toy_config), str(tmp_path / f"{name}.pt")) for name in ("plain", "wrapped"))
    assert (found.weights_sha256, found.text_sha256) == (plain.weights_sha256, plain.text_sha256)


def test_a_real_checkpoint_of_torch_compile_loads(toy_config: Path, toy_weights: Path, tmp_path: Path) -> None:
    plain = load_model(str(toy_config), str(toy_weights))
    torch.save(torch.compile(plain.clip).state_dict(), tmp_path / "compiled.pt")
    assert any("_orig_mod." in name for name in torch.load(tmp_path / "compiled.pt"))
    found = load_model(str(toy_config), str(tmp_path / "compiled.pt"))
    assert (found.weights_sha256, found.text_sha256) == (plain.weights_sha256, plain.text_sha256)


def test_the_recorded_text_checksum_and_activation_are_those_in_use(
    toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    plain = load_model(str(toy_config), str(toy_weights))
    tensors = load_file(toy_weights)
    for name, same in (("text_projection", False), ("logit_scale", True), ("visual.class_embedding", True)):
        save_file({**tensors, name: tensors[name] + 1}, tmp_path / "changed.safetensors")
        assert (
            load_model(str(toy_config), str(tmp_path / "changed.safetensors")).text_sha256 == plain.text_sha256
        ) is same
    assert plain.activation == "gelu"
    tanh = tmp_path / "headspan-toy-tanh.json"
    tanh.write_text(json.dumps({**TOY, "vision_cfg": {**TOY["vision_cfg"], "act_kwargs": {"approximate": "tanh"}}}))
    assert load_model(str(tanh), "random:0").activation == "gelu_tanh"


def test_a_stored_model_is_found_from_another_folder_and_after_it_moved(
    toy_config: Path, toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, other = tmp_path / "work", tmp_path / "other"
    for folder in (work / "w", work / "saved", other):
        folder.mkdir(parents=True)
    shutil.copy(toy_weights, work / "w" / "toy.safetensors")
    (work / "w" / "headspan-moved.json").write_text(json.dumps(TOY))
    shutil.copy(toy_weights, work / "saved" / hub.WEIGHTS[0])
    (work / "saved" / hub.CONFIG).write_text(whole_config(FAMILIES["QuickGELU"], TOY))
    write_tar(work / "a.tar", image_members(range(2)))
    monkeypatch.chdir(work)
    runs: dict[str, dict[str, Any]] = {
        "file": {"model": "w/headspan-moved.json", "pretrained": "w/toy.safetensors"},
        "folder": {"model": "local-dir:saved"},
    }
    for name, run in runs.items():
        hs.precompute("a.tar", f"{name}.zarr", device="cpu", layers="all", **run)
    monkeypatch.chdir(other)
    stores = {name: hs.open(work / f"{name}.zarr") for name in runs}
    for name, store in stores.items():
        assert store.attributes["model"] == runs[name]["model"]
        assert hs.text_vectors(store, ["a", "b"]).shape == (2, 24)
    # The shard was relative to the run's folder too.
    assert hs.verify(stores["file"], sources=True).unreached == 0
    third = tmp_path / "third"
    third.mkdir()
    (work / "w").rename(third / "w")
    (work / "saved").rename(third / "saved")
    (work / "a.tar").rename(third / "b.tar")
    # As in a new process, where the models are not loaded.
    forget_models()
    for store in stores.values():
        with pytest.raises(ModelError, match=r"(--weights PATH|could not be read)"):
            hs.text_vectors(store, ["c", "d"])
    places = {"file": third / "w" / "toy.safetensors", "folder": third / "saved"}
    for name, store in stores.items():
        assert hs.textspan(store, ["c", "d", "e"], 1, weights=places[name], save=True).indices.shape[2] == 1
    assert hs.verify(stores["file"], sources=True).unreached == 1
    moved = hs.verify(stores["file"], sources=True, shards=[str(third / "b.tar")])
    assert moved.unreached == 0
    assert not moved.problems
    flip_last_byte(stores["file"].path)
    repaired = hs.repair(stores["file"].path, [str(third / "b.tar")], weights=places["file"])
    assert repaired.units == (0,)
    assert not [problem for problem in repaired.verdict.problems if problem.of_store]
    # The weights are enough if the folder's config is recorded; those of another model are not.
    lone = elsewhere(third / "saved" / hub.WEIGHTS[0], tmp_path / "lone")
    assert hs.text_vectors(stores["folder"], ["f"], weights=lone).shape == (1, 24)
    tensors = load_file(toy_weights)
    for name, tower in (("visual.proj", "image"), ("text_projection", "text")):
        save_file({**tensors, name: tensors[name] + 1}, tmp_path / "other.safetensors")
        attributes = {
            **stores["file"].attributes,
            "text_sha256": load_model(str(toy_config), str(toy_weights)).text_sha256,
        }
        with pytest.raises(
            ModelError,
            match=rf"other\.safetensors: the {tower} tower is .* was made with \w+; give the weights that the",
        ):
            load_stored_model(attributes, stores["file"].path, tmp_path / "other.safetensors")


def test_a_repository_that_a_store_names_is_fetched_only_if_the_user_names_it(
    toy_weights: Path, toy_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def fetched(repository: str, name: str, local_files_only: bool = False) -> str:
        asked.append((repository, local_files_only))
        raise OSError("no such file in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    attributes = {**hs.open(toy_copy).attributes, "made_with": {}}
    foreign = [
        {**attributes, "model": "hf-hub:evil/model", "pretrained": None},
        {**attributes, "pretrained": "hf-hub:evil/weights"},
        {**attributes, "model": "ViT-B-32", "pretrained": "hf-hub:evil/weights"},
    ]
    for each in foreign:
        with pytest.raises(ModelError, match=r"evil/\w+; .*|not in the local cache .* --weights hf-hub:evil/"):
            load_stored_model(each, toy_copy)
    assert asked
    assert all(local for _, local in asked)
    asked.clear()
    with pytest.raises(ModelError, match=r"could not be read"):
        load_stored_model(foreign[0], toy_copy, "hf-hub:evil/model")
    assert asked == [("evil/model", False)]


def test_a_stores_model_and_tokenizer_are_built_without_network(
    toy_copy: Path, toy_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            # All requests of Hugging Face's text towers and tokenizers go through this client.
            seen.append(huggingface_hub.constants.HF_HUB_OFFLINE)
            return function(*arguments, **settings)

        return call

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("create_model", "get_tokenizer"):
        monkeypatch.setattr(open_clip, name, watched(getattr(open_clip, name)))
    load_stored_model(hs.open(toy_copy).attributes, toy_copy).tokenizer()
    assert seen == [True, True]
    load_model(str(toy_config), "random:0").tokenizer()
    assert seen == [True, True, False, False]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_repository_whose_config_and_tag_disagree_gets_a_note(
    hub_cache: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = trained(FAMILIES["QuickGELU"], hub_cache, small_weights, tmp_path, monkeypatch)
    (toy.snapshot / hub.CONFIG).write_text(whole_config(FAMILIES["SigLIP"]))
    events: list[Progress] = []
    model = load_model(f"hf-hub:{REPOSITORY}", None, on_progress=events.append)
    assert (model.activation, model.preprocess.resize_mode) == ("gelu", "squash")
    assert "squash, GELU, but open_clip's tag of the same weights" in events[0].note
    assert events[0].note.endswith(f"give --model headspan-trained --pretrained {TAG} to use the tag's")
    # As weights of the model with the tag, they have the tag's settings.
    assert load_model(toy.name, f"hf-hub:{REPOSITORY}").activation == "quick_gelu"


def poisoned(place: str) -> dict[str, Any]:
    asks = {"trust_remote_code": True}
    text = {**TOY["text_cfg"], "tokenizer_kwargs": asks}
    if place == "model_cfg":
        return {**TOY, "text_cfg": text}
    if place == "nested":
        return {**TOY, "text_cfg": {**TOY["text_cfg"], "hf_model_config": [{"deep": asks}]}}
    return {**TOY, "vision_cfg": {**TOY["vision_cfg"], **asks}}


@pytest.mark.parametrize("place", ["model_cfg", "nested", "vision"])
def test_a_config_that_asks_for_remote_code_is_refused_before_anything_is_loaded(
    place: str,
    hub_cache: Path,
    toy_config: Path,
    toy_weights: Path,
    toy_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("a model was built"))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_, **__: pytest.fail("a tokenizer was built"))
    whole = json.dumps({"model_cfg": poisoned(place)})
    fill_cache(hub_cache, "evil/model", whole, toy_weights)
    beside = elsewhere(toy_weights, tmp_path / "saved", whole)
    (tmp_path / "headspan-evil.json").write_text(json.dumps(poisoned(place)))
    attributes = {**hs.open(toy_copy).attributes, "model_config": poisoned(place)}
    loads: list[Callable[[], Any]] = [
        lambda: load_model("hf-hub:evil/model", None),
        lambda: load_model(f"local-dir:{beside.parent}", None),
        lambda: load_model(str(tmp_path / "headspan-evil.json"), "random:0"),
        lambda: load_model(str(toy_config), str(beside)),
        lambda: load_stored_model(attributes, toy_copy),
        lambda: load_stored_model({**attributes, "model": "hf-hub:evil/model", "pretrained": None}, toy_copy),
    ]
    for load in loads:
        with pytest.raises(ModelError, match=r": its config asks for trust_remote_code, which would run code"):
            load()


def test_a_slow_fetch_is_announced_and_a_failed_one_is_one_sentence(
    small_weights: Path, tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = trained({}, hub_cache, small_weights, tmp_path, monkeypatch)
    monkeypatch.setattr(hub, "_QUIET_SECONDS", 0.05)
    reason = "We could not connect to the hub, " + "and that took long, " * 20 + "so it was given up"
    heard: list[str] = []

    def slow(*_: Any, **__: Any) -> str:
        # Wait until the listener has received the note.
        while not heard:
            pass
        raise OSError(reason)

    monkeypatch.setattr(open_clip_tags, "hf_hub_download", slow)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", slow)
    for pretrained, source in (
        (TAG, f"https://huggingface.co/{REPOSITORY}"),
        ("hf-hub:some/weights", "https://huggingface.co/some/weights"),
    ):
        heard.clear()
        with pytest.raises(ModelError) as refusal:
            load_model(toy.name, pretrained, on_progress=lambda event: heard.append(event.note))
        assert heard[0].startswith("fetching the weights")
        assert heard[0].endswith(source)
        assert reason in str(refusal.value)
        assert "fetch them on a connected machine" in str(refusal.value)


def test_a_quick_fetch_is_not_announced() -> None:
    events: list[Progress] = []
    with hub.announced(events.append, "fetching"):
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        assert timers
    for timer in timers:
        timer.join(60)
    assert not events


def test_a_long_list_of_parameters_is_shortened_between_names(
    toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    tensors = {name: tensor for name, tensor in load_file(toy_weights).items() if ".mlp." not in name}
    save_file(tensors, tmp_path / "few.safetensors")
    with pytest.raises(
        ModelError, match=r"\(Missing key\(s\) in state_dict: [\w.]+, [\w.]+, [\w.]+ and 17 more\)"
    ) as said:
        load_model(str(toy_config), str(tmp_path / "few.safetensors"))
    assert "..." not in str(said.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("openai/clip-vit-base-patch32", "--model ViT-B-32 --pretrained openai"),
        ("openai/clip-vit-large-patch14-336", "--model ViT-L-14-336 --pretrained openai"),
        ("google/siglip-base-patch16-224", "--model ViT-B-16-SigLIP --pretrained webli"),
        ("google/siglip2-so400m-patch14-384", "--model ViT-SO400M-14-SigLIP2-378 --pretrained webli"),
        ("google/siglip-base-patch16-256-multilingual", "--model ViT-B-16-SigLIP-i18n-256 --pretrained webli"),
        ("facebook/metaclip-l14-fullcc2.5b", "--model ViT-L-14 --pretrained metaclip_fullcc"),
        ("facebook/PE-Core-L14-336", "--model PE-Core-L-14-336 --pretrained meta"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "--model ViT-B-32 --pretrained laion2b_s34b_b79k"),
        ("somebody/their-own-model", "write hf-hub:somebody/their-own-model"),
    ],
)
def test_names_of_hugging_face_are_answered_with_those_of_open_clip(name: str, meant: str) -> None:
    with pytest.raises(ModelError, match=rf"^{name}: .*{meant}"):
        load_model(name, None)


def test_names_of_hugging_face_with_a_prefix_or_as_weights_are_answered_too(hub_cache: Path) -> None:
    for name, pretrained in (
        ("hf-hub:openai/clip-vit-base-patch32", None),
        ("ViT-B-32", "openai/clip-vit-base-patch32"),
    ):
        with pytest.raises(ModelError, match=r"format of the package transformers, .* --pretrained openai"):
            load_model(name, pretrained)


def test_weights_without_a_tag_are_accepted_and_with_a_seed_refused(
    toy_config: Path, toy_weights: Path, toy_model: LoadedModel, tmp_path: Path
) -> None:
    assert load_model(str(toy_config), None, weights=str(toy_weights)).weights_sha256 == toy_model.weights_sha256
    with pytest.raises(ModelError, match=r"--weights .*: --pretrained random:0 has no file of weights"):
        load_model(str(toy_config), "random:0", weights=str(toy_weights))
    with pytest.raises(ModelError, match=r"--weights .*nowhere: no such file or folder; give the"):
        load_model(str(toy_config), None, weights=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=rf"--weights {tmp_path}: this folder holds no weights"):
        load_model(str(toy_config), None, weights=str(tmp_path))


def test_models_that_normalise_rows_before_their_mean_are_reported_to_run_twice(
    toy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["ViT-B-32", "ViT-B-16-SigLIP", "RN50", "vit_medium_patch16_gap_256"]
    monkeypatch.setattr(open_clip, "list_models", lambda: names)
    assert two_pass_models() == {"vit_medium_patch16_gap_256"}
    monkeypatch.undo()
    shard = str(write_tar(tmp_path / "a.tar", image_members(range(2))))
    for pooling, twice in (({"pool_type": "avg"}, True), ({"pool_type": "avg", "final_ln_after_pool": True}, False)):
        config = tmp_path / f"headspan-toy-twice-{twice}.json"
        config.write_text(json.dumps({**TOY, "vision_cfg": {**TOY["vision_cfg"], **pooling}}))
        events: list[Progress] = []
        passes: list[int] = []
        embed = Tower.embed
        monkeypatch.setattr(
            Tower, "embed", lambda self, pixels, embed=embed, passes=passes: (passes.append(1), embed(self, pixels))[1]
        )
        run: dict[str, Any] = {"model": str(config), "pretrained": "random:0", "layers": "all", "device": "cpu"}
        hs.precompute(shard, tmp_path / f"{twice}.zarr", on_progress=events.append, **run)
        monkeypatch.undo()
        assert len(passes) == 1 + twice
        assert any("each image takes two passes" in event.note for event in events) is twice


def test_the_command_that_info_prints_names_the_weights(
    toy_config: Path, toy_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = str(write_tar(tmp_path / "a.tar", image_members(range(2))))
    run = ["precompute", shard, "--model", str(toy_config), "--layers", "all", "--out", str(tmp_path / "s.zarr")]
    assert main([*run, "--weights", str(toy_weights)]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "s.zarr")]) == 0
    named = f"--pretrained {toy_weights} --weights {toy_weights}"
    assert named in capsys.readouterr().out
    assert main([*run, *named.split()]) == 0
    # The weights of the store may have moved.
    moved = shutil.copy(toy_weights, tmp_path / "moved.safetensors")
    attributes = {**hs.open(tmp_path / "s.zarr").attributes, "pretrained": "gone.pt"}
    assert load_model(str(toy_config), "gone.pt", weights=str(moved), resumed=attributes).pretrained == "gone.pt"


@pytest.mark.parametrize("pretrained", ["laion2b_s34b_b79k", "nosuch.safetensors", "local-dir:nosuch", ""])
def test_a_missing_tag_or_file_is_refused_whatever_weights_are_given(
    pretrained: str, toy_config: Path, toy_weights: Path
) -> None:
    refused = rf"--pretrained {pretrained} is neither a tag of this model nor a file"
    for weights in (str(toy_weights), str(toy_weights.parent), "hf-hub:some/weights"):
        with pytest.raises(ModelError, match=refused):
            load_model(str(toy_config), pretrained, weights=weights)


def test_two_different_files_of_weights_are_a_contradiction(
    toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    other = elsewhere(toy_weights, tmp_path / "other")
    for weights in (str(other), str(other.parent), "hf-hub:some/weights"):
        with pytest.raises(ModelError, match=rf"--weights {weights} name two different files of weights; leave one"):
            load_model(str(toy_config), str(toy_weights), weights=weights)
    # The same file by two names, or its folder, is not a contradiction.
    (tmp_path / "link.safetensors").symlink_to(other)
    for weights in (other, other.parent):
        assert load_model(str(toy_config), str(tmp_path / "link.safetensors"), weights=str(weights)).paths["weights"]


def test_a_folder_with_several_files_of_weights_is_refused_with_their_names(
    toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    folder = elsewhere(toy_weights, tmp_path / "run", whole_config({}, TOY)).parent
    # macOS adds this for a file that it copies.
    (folder / "._toy.safetensors").write_bytes(b"\0\5\26\7")
    lone = load_model(f"local-dir:{folder}", None)
    assert lone.paths == {"model": str(folder), "weights": str(folder / "toy.safetensors")}
    for name in ("epoch_1.pt", "optimizer.safetensors"):
        (folder / name).write_bytes(b"")
    several = (
        rf"{folder}: holds several files of weights \(epoch_1\.pt, optimizer\.safetensors, toy\.safetensors\); select"
    )
    for load in (
        lambda: load_model(f"local-dir:{folder}", None),
        lambda: load_model(str(toy_config), None, weights=str(folder)),
    ):
        with pytest.raises(ModelError, match=several):
            load()
    named = load_model(f"local-dir:{folder}", None, weights=str(folder / "toy.safetensors"))
    assert named.paths == lone.paths
    # A name that open_clip prefers decides.
    shutil.copy(toy_weights, folder / hub.WEIGHTS[0])
    assert load_model(f"local-dir:{folder}", None).paths["weights"] == str(folder / hub.WEIGHTS[0])


NUMBERS = "a list of three finite numbers"


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("whole", {"model_cfg": None}, "model_cfg is null, not a JSON object"),
        ("whole", {"model_cfg": [1]}, r"model_cfg is \[1\], not a JSON object"),
        ("whole", {"model_cfg": "ViT-B-32"}, 'model_cfg is "ViT-B-32", not a JSON object'),
        ("whole", {"preprocess_cfg": [1]}, r"preprocess_cfg is \[1\], not a JSON object"),
        ("whole", {"preprocess_cfg": "x"}, 'preprocess_cfg is "x", not a JSON object'),
        ("model_cfg", {"vision_cfg": [1]}, r"model_cfg\.vision_cfg is \[1\], not a JSON object"),
        ("model_cfg", {"text_cfg": None}, r"model_cfg\.text_cfg is null, not a JSON object"),
        ("model_cfg", {"quick_gelu": "false"}, r'model_cfg\.quick_gelu is "false", not true or false'),
        (
            "vision_cfg",
            {"image_size": [{"a": 1}]},
            r"model_cfg\.vision_cfg\.image_size is .*, not a whole number, or a list of",
        ),
        ("vision_cfg", {"image_size": 0}, r"model_cfg\.vision_cfg\.image_size is 0, not a whole number"),
        ("preprocess_cfg", {"mean": 0.5}, rf"preprocess_cfg\.mean is 0\.5, not {NUMBERS}"),
        ("preprocess_cfg", {"mean": "abc"}, rf'preprocess_cfg\.mean is "abc", not {NUMBERS}'),
        ("preprocess_cfg", {"mean": [[0.5], [0.5], [0.5]]}, rf"preprocess_cfg\.mean is .*, not {NUMBERS}"),
        ("preprocess_cfg", {"mean": [0.5]}, rf"preprocess_cfg\.mean is \[0\.5\], not {NUMBERS}"),
        ("preprocess_cfg", {"std": [0.5] * 4}, rf"preprocess_cfg\.std is .*, not {NUMBERS}"),
        ("preprocess_cfg", {"mean": [float("nan")] * 3}, rf"preprocess_cfg\.mean is \[NaN, .*, not {NUMBERS}"),
        ("preprocess_cfg", {"mean": [10**400, 0, 0]}, rf"preprocess_cfg\.mean is .*, not {NUMBERS}"),
        ("preprocess_cfg", {"mean": [True] * 3}, rf"preprocess_cfg\.mean is .*, not {NUMBERS}"),
        (
            "preprocess_cfg",
            {"std": [0, 0, 0]},
            r"preprocess_cfg\.std is \[0, 0, 0\], not a list of three numbers above 0",
        ),
        ("preprocess_cfg", {"std": [-1, 1, 1]}, r"preprocess_cfg\.std is .*, not a list of three numbers above 0"),
        ("preprocess_cfg", {"fill_color": "x"}, r'preprocess_cfg\.fill_color is "x", not a whole number from 0 to 255'),
        ("preprocess_cfg", {"fill_color": 256}, r"preprocess_cfg\.fill_color is 256, not a whole number from 0 to 255"),
        (
            "preprocess_cfg",
            {"interpolation": ["bicubic"]},
            r"preprocess_cfg\.interpolation is .*, not one of bicubic, ",
        ),
        ("preprocess_cfg", {"resize_mode": "x"}, r'preprocess_cfg\.resize_mode is "x", not one of shortest, '),
    ],
)
def test_a_config_with_a_field_of_the_wrong_type_is_refused_by_file_and_field(
    part: str, change: dict[str, Any], text: str, toy_config: Path, tmp_path: Path
) -> None:
    vision = {**TOY["vision_cfg"], **(change if part == "vision_cfg" else {})}
    model = {**TOY, "vision_cfg": vision, **(change if part == "model_cfg" else {})}
    preprocess = {"mean": HALF, "std": HALF, **(change if part == "preprocess_cfg" else {})}
    whole = {"model_cfg": model, "preprocess_cfg": preprocess, **(change if part == "whole" else {})}
    (tmp_path / hub.CONFIG).write_text(json.dumps(whole))
    # The config is refused before its weights are read.
    (tmp_path / "w.pt").write_bytes(b"PK")
    for load in (
        lambda: load_model(str(toy_config), str(tmp_path / "w.pt")),
        lambda: load_model(f"local-dir:{tmp_path}", None),
    ):
        with pytest.raises(ModelError, match=rf"^{tmp_path / hub.CONFIG}: {text}.*; correct the file$"):
            load()


def test_a_link_to_weights_has_the_config_next_to_its_target(
    hub_cache: Path, toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    snapshot = fill_cache(hub_cache, REPOSITORY, whole_config(FAMILIES["SigLIP"], TOY), toy_weights)
    (tmp_path / "one.safetensors").symlink_to(snapshot / hub.WEIGHTS[0])
    (tmp_path / "two.safetensors").symlink_to("one.safetensors")
    (tmp_path / "folder").symlink_to(snapshot)
    for link in (tmp_path / "one.safetensors", tmp_path / "two.safetensors", tmp_path / "folder" / hub.WEIGHTS[0]):
        assert hub.repository_of(link) == REPOSITORY
        found = load_model(str(toy_config), str(link))
        assert (found.preprocess.resize_mode, found.assumed) == ("squash", None)
    # A config next to the link comes first. The link alone identifies a repository without a config.
    beside = elsewhere(toy_weights, tmp_path / "beside", whole_config(FAMILIES["longest"] | {"quick_gelu": False}, TOY))
    beside.unlink()
    beside.symlink_to(tmp_path / "two.safetensors")
    assert load_model(str(toy_config), str(beside)).preprocess.resize_mode == "longest"
    (tmp_path / "circle").symlink_to("circle")
    assert hub.repository_of(tmp_path / "circle") is None


@pytest.mark.parametrize("kind", ["hf-hub", "local-dir"])
def test_a_run_resumes_with_its_weights_though_the_models_config_is_gone(
    kind: str, hub_cache: Path, toy_weights: Path, tmp_path: Path
) -> None:
    snapshot = fill_cache(hub_cache, REPOSITORY, whole_config(FAMILIES["SigLIP"], TOY), toy_weights)
    name = f"hf-hub:{REPOSITORY}" if kind == "hf-hub" else f"local-dir:{snapshot}"
    shard = str(write_tar(tmp_path / "a.tar", image_members(range(2))))
    run: dict[str, Any] = {"model": name, "device": "cpu", "layers": "all"}
    hs.precompute(shard, tmp_path / "s.zarr", **run)
    shutil.rmtree(snapshot.parents[1])
    lone = elsewhere(toy_weights, tmp_path / "lone")
    assert hs.precompute(shard, tmp_path / "s.zarr", weights=str(lone), **run).skipped == 2
    attributes = hs.open(tmp_path / "s.zarr").attributes
    model = load_model(name, None, weights=str(lone), resumed=attributes)
    assert (model.preprocess.resize_mode, model.paths) == ("squash", {"weights": str(lone)})
    # The store of another model does not help, and neither does a new store.
    for other in ({**attributes, "model": "hf-hub:some/other"}, None):
        with pytest.raises(ModelError, match=r"its config could not be read"):
            load_model(name, None, weights=str(lone), resumed=other)
