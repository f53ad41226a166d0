"""Tests of models that pool by attention, and of models with norms after their heads, from shards to analyses."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

import headspan as hs
from headspan.cli.main import main
from headspan.errors import ModelError, SettingsError, StoreError
from headspan.explore.maps.segmentation import text_maps
from headspan.model.convert import to_tower
from headspan.model.load import load_model
from headspan.run.verify import SUM_TOLERANCES, verify
from headspan.spans.algorithm import textspan_dense
from tests import tolerances
from tests.conftest import TOY, ToyRun, encoded_image, relative_files, write_tar
from tests.engine.test_every_model import facts_of, randomise_all, timm_sizes, weights_of
from tests.oracle import Decomposition
from tests.oracle_towers import decompose_tower
from tests.tolerances import relative_error

TEXT = TOY["text_cfg"]
IMAGES = 5
# "map" is SigLIP; by that name open_clip would choose a tokenizer that needs transformers. "eva" pools by its class
# token and has norms after its heads. Except in SigLIP, the pooling's heads differ from the blocks' in number or size.
TOYS: dict[str, dict[str, Any]] = {
    "map": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"},
    "pe": {"timm_model_name": "vit_pe_core_base_patch16_224", "timm_pool": "map", "timm_proj": None},
    "eva": {"timm_model_name": "eva02_enormous_patch14_clip_224", "timm_pool": "token", "timm_proj": None},
    "coca": {
        "patch_size": 16,
        "width": 24,
        "layers": 2,
        "head_width": 8,
        "attentional_pool": True,
        "attn_pooler_queries": 3,
        "attn_pooler_heads": 2,
    },
}


# Two rows of three patches; open_clip can only interpolate the positions of its own towers from squares.
SIZES = {"map": (32, 48), "pe": (32, 48), "eva": (28, 42), "coca": (32, 32)}


@pytest.fixture(scope="module", params=TOYS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Settings of a finished store of one toy, all layers and emissions, with its randomised weights."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    size = SIZES[kind]
    config = folder / f"headspan-toy-{kind}.json"
    vision = {**TOYS[kind], "image_size": size}
    config.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}))
    members = [(f"{row:02d}.jpg", encoded_image(row)) for row in range(IMAGES)]
    emit = ["heads", "patches", "mlps", *([] if kind == "eva" else ["through_pool"])]
    settings = {
        "shards": str(write_tar(folder / "0.tar", members)),
        "model": str(config),
        "pretrained": str(folder / "toy.safetensors"),
        "layers": "all",
        "emit": emit,
        "device": "cpu",
        # Compared with open_clip's own transform.
        "decode": "exact",
    }
    with timm_sizes(depth=2, embed_dim=24, num_heads=3, img_size=size):
        clip = load_model(str(config), "random:0").clip
        randomise_all(clip.visual, 11)
        save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, folder / "toy.safetensors")
        hs.precompute(out=folder / "toy.zarr", **settings)
        yield {**settings, "out": folder / "toy.zarr", "kind": kind}


@pytest.fixture(scope="module")
def exact(run: dict[str, Any]) -> list[Decomposition]:
    """The oracle's decomposition of every image, with open_clip's transform."""
    visual = load_model(run["model"], run["pretrained"]).clip.visual
    transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    found = []
    for row in range(IMAGES):
        path = run["out"].with_name(f"{row}.jpg")
        path.write_bytes(encoded_image(row))
        with Image.open(path) as image:
            found.append(decompose_tower(weights_of(visual), facts_of(visual), transform(image).numpy()))
    return found


def test_the_store_holds_the_oracles_numbers_and_verify_finds_no_problem(
    run: dict[str, Any], exact: list[Decomposition]
) -> None:
    store = hs.open(run["out"])
    verdict = verify(store)
    assert verdict.problems == ()
    assert verdict.largest_error is not None
    assert 0 < verdict.largest_error < SUM_TOLERANCES["fp32"]
    direct = [0, 1] if run["kind"] == "eva" else [2]
    assert store.layers == tuple(direct)
    assert store.attributes["sum"]["direct_layers"] == direct
    assert relative_error(store.embedding, [image.embedding for image in exact]) < tolerances.ORACLE_FLOAT32
    for convention in ("uniform", "per_term"):
        wanted = [image.contributions(convention, normalised=True) for image in exact]  # type: ignore[arg-type]
        total = store.mlps(convention).sum(axis=1)
        if convention == "per_term":
            total = total + store.biases().sum(axis=1)
        assert store.mlps(convention).shape == (IMAGES, store.terms, 24)
        for kept, head in itertools.product(range(len(direct)), range(store.heads_per_layer)):
            found = store.head(direct[kept], head, convention)
            assert relative_error(found, [w.heads[kept, head] for w in wanted]) < tolerances.FLOAT16_STORE
            total = total + found
        assert relative_error(total, store.embedding / store.norm[:, 2:]) < SUM_TOLERANCES["fp32"]
        patches_found = store.patches(3, direct[-1], convention)
        patches_wanted = wanted[3].patches[-1].swapaxes(0, 1)
        assert relative_error(patches_found, patches_wanted) < tolerances.FLOAT16_STORE


def test_magnitudes_are_those_of_the_oracles_contributions_and_covariance_shares_sum_to_1(
    run: dict[str, Any], exact: list[Decomposition]
) -> None:
    store = hs.open(run["out"])
    found = store.magnitudes(covariance=True)
    parts = [image.contributions("uniform", normalised=True) for image in exact]
    heads, unit = np.stack([part.heads for part in parts]), np.stack([part.total() for part in parts])
    centred = unit - unit.mean(axis=0)
    variance = (centred**2).sum(axis=1).mean()
    variances = ((heads - heads.mean(axis=0)) ** 2).sum(axis=-1).mean(axis=0)
    covariances = (heads * centred[:, None, None]).sum(axis=-1).mean(axis=0)
    assert relative_error(found.variance_share, variances / variance) < tolerances.SQUARES_FLOAT32
    assert relative_error(found.squared_length_share, (heads**2).sum(axis=-1).mean(axis=0)) < tolerances.SQUARES_FLOAT32
    assert relative_error(found.covariance_share, covariances / variance) < tolerances.FLOAT16_STORE
    assert found.covariance_share is not None
    assert found.term_covariance_share is not None
    assert found.term_covariance_share.shape == (store.terms,)
    assert abs(found.covariance_share.sum() + found.term_covariance_share.sum() - 1) < tolerances.FLOAT16_STORE


@pytest.mark.parametrize("mlps", [False, True])
def test_mean_ablation_moves_embeddings_by_the_oracles_contributions(
    mlps: bool, run: dict[str, Any], exact: list[Decomposition]
) -> None:
    store = hs.open(run["out"])
    parts = [image.contributions("uniform", normalised=True) for image in exact]
    moved = np.stack([part.heads[-1, 1] for part in parts])
    if mlps:
        moved = moved + [part.mlps.sum(axis=0) for part in parts]
    wanted = np.stack([part.total() for part in parts]) - (moved - moved.mean(axis=0))
    # All layers whose heads write to the embedding are stored, so there are no earlier ones.
    for earlier in (False, True):
        found = hs.prune.mean_ablated(store, [(store.layers[-1], 1)], mlps=mlps, earlier=earlier)
        assert relative_error(found, wanted) < tolerances.FLOAT16_STORE
    classes = hs.prune.Classes(("a", "b", "c"), np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32))
    found_heads = hs.prune.single_heads(store, classes, np.arange(IMAGES) % 3)
    left = hs.prune.mean_ablated(store, [(store.layers[-1], 1)]).astype(np.float64) @ classes.vectors.T
    assert found_heads.right(store.layers[-1], 1).tolist() == (left.argmax(axis=1) == np.arange(IMAGES) % 3).tolist()


def test_earlier_layers_act_through_the_pooling_and_add_nothing_to_the_sum(
    run: dict[str, Any], exact: list[Decomposition]
) -> None:
    store = hs.open(run["out"])
    if run["kind"] == "eva":
        assert store.through_pool_layers == ()
        with pytest.raises(SettingsError, match=r"holds no through_pool; precompute with --emit heads,through_pool"):
            store.through_pool(0, 0)
        return
    assert store.through_pool_layers == (0, 1)
    for layer, head in itertools.product((0, 1), range(3)):
        wanted = np.stack([image.through_pool[layer, head] for image in exact if image.through_pool is not None])
        assert relative_error(store.through_pool(layer, head, normalised=False), wanted) < tolerances.FLOAT16_STORE
        unit = wanted / np.linalg.norm(store.embedding, axis=1, keepdims=True)
        assert relative_error(store.through_pool(layer, head), unit) < tolerances.FLOAT16_STORE
    with pytest.raises(
        SettingsError, match=r"the heads of layer 1 write to the embedding only through layer 2, the attention"
    ):
        store.head(1, 0)
    with pytest.raises(
        SettingsError, match=r"head 3 of layer 1 is not in through_pool; stored are layers 0-1 with heads 0 to 2"
    ):
        store.through_pool(1, 3)
    with pytest.raises(SettingsError, match=r"head 0 of layer 2 is not in through_pool"):
        store.through_pool(2, 0)


def test_info_lists_the_terms_whose_sum_is_the_embedding(
    run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(run["out"])]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    found = {name.strip(): value.strip() for name, value in lines.items()}
    sums = {
        "map": "heads of layer 2, the pooling + MLP of layer 2, the pooling + biases",
        "pe": "heads of layer 2, the pooling + MLP of layer 2, the pooling + biases",
        "coca": "heads of layer 2, the pooling + biases",
        "eva": "heads of layers 0-1 + initial state + MLPs + biases",
    }
    assert found["sum"] == sums[run["kind"]]
    assert found["layers"] == ("0-1 of 2" if run["kind"] == "eva" else "2 of 3; 0-1 through the pooling")


def test_maps_contain_only_patches(run: dict[str, Any], exact: list[Decomposition]) -> None:
    store = hs.open(run["out"])
    prefix = 0 if run["kind"] == "map" else 1
    columns = 2 if run["kind"] == "coca" else 3
    assert (store.tokens, store.prefix_tokens) == (2 * columns + prefix, prefix)
    text = np.eye(24, dtype=np.float32)[:2]
    layer = store.layers[-1]
    maps = text_maps(store, 1, text, heads=[(layer, 1)])
    wanted = exact[1].contributions("uniform", normalised=True).patches[-1, 1, prefix:, :2].T.reshape(2, 2, columns)
    assert relative_error(maps, wanted) < tolerances.FLOAT16_STORE


def test_an_image_file_has_the_numbers_of_the_stores_image(run: dict[str, Any], tmp_path: Path) -> None:
    store = hs.open(run["out"])
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded_image(1))
    found = hs.explore.query_image(store, path, with_patches=True)
    stored = hs.explore.query_image(store, 1, with_patches=True)
    for name in ("norm", "embedding", "heads", "patches"):
        assert relative_error(getattr(found, name), getattr(stored, name)) < tolerances.FLOAT16_STORE, name


def test_textspan_describes_the_poolings_heads_by_the_models_own_texts(run: dict[str, Any]) -> None:
    store = hs.open(run["out"])
    texts = [f"a {colour} {thing}" for colour in ("red", "blue", "odd") for thing in ("cat", "tree", "boat")]
    spans = hs.textspan(store, texts=texts, texts_per_head=2, save=True)
    assert spans.layers == store.layers
    layer = store.layers[-1]
    vectors = hs.text_vectors(store, hs.read_pool(texts))
    dense = textspan_dense(store.head(layer, 1), vectors, texts_per_head=2, rank=80)
    assert spans.texts(layer, 1) == [texts[index] for index in dense.indices]


def test_another_image_size_is_stored_and_texts_are_encoded_with_it(
    run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if run["kind"] != "coca":
        pytest.skip("timm's toys have their size from the test")
    settings = {**run, "out": tmp_path / "large.zarr", "image_size": 64}
    settings.pop("kind")
    hs.precompute(**settings)
    store = hs.open(tmp_path / "large.zarr")
    assert (store.tokens, store.attributes["preprocess"]["size"]) == (17, [64, 64])
    assert verify(store).problems == ()
    # The checksum covers the interpolated positions, so the text tower is loaded with the same image size.
    assert hs.text_vectors(store, hs.read_pool(["a cat"])).shape == (1, 24)
    with pytest.raises(StoreError, match=r"was made with preprocessing size 64, 64, but this run asks for size 48, 48"):
        hs.precompute(**{**settings, "image_size": 48})
    command = ["precompute", run["shards"], "--out", str(tmp_path / "small.zarr"), "--model", run["model"]]
    assert main([*command, "--pretrained", run["pretrained"], "--image-size", "8"]) == 2
    assert "--image-size 8: a patch of " in capsys.readouterr().err


def test_spectra_and_pursuit_describe_the_heads_of_every_kind_of_pooling(run: dict[str, Any]) -> None:
    store = hs.open(run["out"])
    texts = ["a cat", "red", "two dogs", "night"]
    found = hs.explore.spectra(store, pool=texts, count=2)
    pursued = hs.explore.head_pursuit(store, texts, 2, draws=0)
    assert found.heads == tuple(pursued.heads())
    for place, head in enumerate(found.heads):
        centred = store.head(*head).astype(np.float64)
        centred -= centred.mean(axis=0)
        variance = (centred**2).sum()
        wanted = ((centred @ found.directions[place].T) ** 2).sum(axis=0) / variance
        np.testing.assert_allclose(found.share[place], wanted, atol=tolerances.FLOAT16_STORE)
        # What the head's own numbers write lies along its directions.
        size = found.directions.shape[1]
        own = store.head_directions(*head)[:size].astype(np.float64)
        left = own - own @ found.directions[place].T @ found.directions[place]
        assert np.linalg.norm(left) < tolerances.FLOAT32_SUM * np.linalg.norm(own)
        span = np.linalg.qr(hs.text_vectors(store, pursued.texts(*head)).T.astype(np.float64))[0]
        share = ((centred @ span) ** 2).sum() / variance
        assert pursued.explained_by(*head) == pytest.approx(share, abs=tolerances.FLOAT16_STORE)


def test_the_command_that_info_prints_resumes_the_store_and_gives_the_same_bytes(
    run: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = run["out"]
    assert main(["info", str(store)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("command"))
    words = shlex.split(line.removeprefix("command"))
    assert words[:2] == ["headspan", "precompute"]
    monkeypatch.chdir(store.parent)
    assert main(words[1:]) == 0
    assert f"already stored, earlier or by another process: {IMAGES} images" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(words[1:]) == 0
    arrays = {*hs.open(store).contents.specs, "moments", "model"}
    first, second = (
        {name: data for name, data in relative_files(path).items() if "/c/" in name and name.split("/")[0] in arrays}
        for path in (store, tmp_path / store.name)
    )
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_damaged_unit_is_computed_again(run: dict[str, Any], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run["out"], tmp_path / "copy.zarr"))
    specs = hs.open(copy).contents.specs
    for spec in specs.values():
        file = copy / spec.file(0)
        file.write_bytes(file.read_bytes()[:-1])
    done = hs.repair(copy)
    assert (done.units, done.verdict.problems) == ((0,), ())
    before, after = relative_files(run["out"]), relative_files(copy)
    assert [spec.name for spec in specs.values() if before[spec.file(0)] != after[spec.file(0)]] == []


def test_only_layers_before_the_pooling_are_refused_and_omitted_layers_are_reported(
    run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {**run, "out": tmp_path / "run.zarr"}
    kind = common.pop("kind")
    if kind == "eva":
        with pytest.raises(SettingsError, match=r"^--emit through_pool: .* does not pool by attention"):
            hs.precompute(**{**common, "emit": "heads,through_pool"})
        return
    with pytest.raises(SettingsError, match=r"--layers 0-1: .* layer 2, the pooling, .* as in --layers 0-1,2"):
        hs.precompute(**{**common, "layers": "0-1"})
    with pytest.raises(
        SettingsError,
        match=r"through_pool needs a layer before the pooling, but --layers 2 has none; name some of 0 to 1, or",
    ):
        hs.precompute(**{**common, "layers": "2"})
    hs.precompute(on_progress=print, **{**common, "emit": "heads", "layers": "last2"})
    assert "layers before 2, the pooling, are not stored without --emit heads,through_pool" in capsys.readouterr().out
    store = hs.open(tmp_path / "run.zarr")
    assert (store.layers, store.through_pool_layers, store.all_layers) == ((2,), (), 3)
    # CoCa's pooling has no MLP, so its heads and biases are the whole sum.
    assert (verify(store).largest_error is None) == (kind != "coca")
    assert verify(store).problems == ()


def test_positions_are_interpolated_as_in_open_clip(toy_run: ToyRun) -> None:
    found = load_model(str(toy_run.config), str(toy_run.weights), image_size=48)
    plain = load_model(str(toy_run.config), str(toy_run.weights))
    assert found.preprocess.size == (48, 48)
    grid = plain.clip.visual.positional_embedding[1:].T.reshape(1, -1, 4, 4)
    resized = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True, align_corners=False)
    positions = to_tower(found.clip.visual, "toy").pos_embed
    torch.testing.assert_close(positions[1:], resized[0].flatten(1).T)
    torch.testing.assert_close(positions[0], plain.clip.visual.positional_embedding[0])
    with pytest.raises(
        SettingsError, match=r"--image-size 7: a patch of .* has 8 pixels on a side; give a multiple of that"
    ):
        load_model(str(toy_run.config), str(toy_run.weights), image_size=7)


def test_a_tokenizer_whose_package_is_missing_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "headspan-toy-siglip.json"
    path.write_text(json.dumps(TOY))
    # Python then refuses to import the module, even if it is installed.
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = load_model(str(path), "random:0")
    with pytest.raises(
        ModelError, match=r"siglip\.json: open_clip's tokenizer .* \(.*transformers.*\); install it with"
    ):
        model.tokenizer()


def test_a_text_tower_whose_package_is_missing_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.model.convert.find_spec", lambda name: None)
    with pytest.raises(
        ModelError,
        match=r"^roberta-ViT-B-32: its text tower is Hugging Face's roberta-base, .* pip install transformers",
    ):
        load_model("roberta-ViT-B-32", "random:0")
