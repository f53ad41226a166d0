"""Load models and weights by every kind of name, and report those that are not available."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headspan.cli.main import main
from headspan.errors import ModelError
from headspan.events import Progress
from headspan.model.convert import to_tower
from headspan.model.load import LoadedModel, load_model
from headspan.model.text import encode_texts
from tests import tolerances
from tests.conftest import TOY, image_members, write_tar
from tests.tolerances import relative_error


class Trap:
    """An object that is not a tensor; unpickling it would run its class."""

    opened = 0

    def __setstate__(self, state: object) -> None:
        type(self).opened += 1


def embedding_of(model: LoadedModel) -> np.ndarray:
    tower = to_tower(model.clip.visual, model.name)
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32))
    return tower.forward(pixels, (0,)).state.numpy()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RN50", r"its image tower is a ResNet"),
        ("convnext_base", r"its image tower is timm's convnext_base, a ConvNeXt"),
        (
            "swin_base_patch4_window7_224",
            r"its image tower is timm's swin_base_patch4_window7_224, a Swin Transformer, .*",
        ),
        ("MobileCLIP-S1", r"its image tower is timm's fastvit_mci1, a FastViT, mostly convolutions"),
        ("ViTamin-S", r"its image tower is timm's vitamin_small_224, a ViTamin, a hybrid .*"),
    ],
)
def test_a_model_that_cannot_be_decomposed_is_refused_before_its_weights(name: str, kind: str) -> None:
    supported = r"headspan decomposes Vision Transformers, open_clip's own and timm's"
    # The tag does not exist. It is never looked up.
    with pytest.raises(ModelError, match=rf"^{name}: {kind}; {supported}"):
        load_model(name, "no-such-tag")


def test_an_unknown_model_is_refused_with_similar_names() -> None:
    with pytest.raises(ModelError, match=r"^ViT-B-33: open_clip has no such model; similar are .*ViT-B-32"):
        load_model("ViT-B-33", "openai")
    with pytest.raises(ModelError, match=r"^qqqqqqq: open_clip has no such model; `headspan models` lists"):
        load_model("qqqqqqq", "openai")


def test_a_misspelt_name_is_answered_with_the_right_one() -> None:
    for name, meant in (("refernce", "reference"), ("ViT-B32", "ViT-B-32"), ("vit-l-14", "ViT-L-14")):
        with pytest.raises(ModelError, match=rf"^{name}: open_clip has no such model; similar (is|are) .*{meant}"):
            load_model(name, "openai")


def test_the_reference_model_accepts_other_image_sizes_though_its_weights_have_16_bits() -> None:
    model = load_model("reference", None, 96)
    assert model.clip.visual.positional_embedding.shape == (1 + 12 * 12, 192)
    assert model.clip.visual.positional_embedding.dtype == torch.float32
    # With twice as many patches per side, every second position is nearly what it was before.
    assert model.clip(torch.zeros(1, 3, 96, 96))[0].isfinite().all()


def test_an_unknown_tag_is_refused_with_the_existing_tags() -> None:
    with pytest.raises(
        ModelError,
        match=r"^ViT-B-32: --pretrained laion9b is neither a tag of this model nor a file; give a tag "
        r"\(openai, .*laion2b_s34b_b79k.*\), hf-hub:NAME, a \.pt or \.safetensors file, or random:SEED",
    ):
        load_model("ViT-B-32", "laion9b")


def test_weights_must_be_named(toy_config: Path) -> None:
    with pytest.raises(ModelError, match=r"^ViT-B-32: no weights named; give a tag \(openai, .* with --pretrained"):
        load_model("ViT-B-32", None)
    with pytest.raises(ModelError, match=r"headspan-toy\.json: no weights named; give hf-hub:NAME, a \.pt or"):
        load_model(str(toy_config), None)


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5", "²"])
def test_a_seed_that_is_not_a_whole_number_is_refused(seed: str, toy_config: Path) -> None:
    with pytest.raises(ModelError, match=rf"--pretrained random:{seed}: the seed must be a whole number, as in"):
        load_model(str(toy_config), f"random:{seed}")


def test_random_weights_depend_only_on_the_seed_and_leave_torchs_generator_alone(toy_config: Path) -> None:
    torch.manual_seed(5)
    wanted_next = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (load_model(str(toy_config), f"random:{seed}") for seed in (3, 3, 4))
    assert torch.rand(1) == wanted_next
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    for name, tensor in first.clip.state_dict().items():
        assert torch.equal(tensor, again.clip.state_dict()[name]), name


def test_random_weights_leave_the_generators_of_gpus_alone(toy_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(1)
    assert seeded == [1]
    load_model(str(toy_config), "random:3")
    assert seeded == [1]


def test_safetensors_and_plain_pt_files_give_the_same_tower(
    toy_config: Path, toy_weights: Path, toy_model: LoadedModel, tmp_path: Path
) -> None:
    tensors = load_file(toy_weights)
    torch.save(tensors, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "training.pt")
    for file in ("plain.pt", "training.pt"):
        model = load_model(str(toy_config), str(tmp_path / file))
        assert model.weights_sha256 == toy_model.weights_sha256
        assert (embedding_of(model) == embedding_of(toy_model)).all()
    assert not any(parameter.requires_grad for parameter in toy_model.clip.parameters())
    assert not toy_model.clip.training


def test_the_checksum_covers_only_the_image_tower(toy_config: Path, toy_weights: Path, tmp_path: Path) -> None:
    tensors = load_file(toy_weights)
    wanted = load_model(str(toy_config), str(toy_weights)).weights_sha256
    for name, same in (("text_projection", True), ("visual.class_embedding", False)):
        changed = {**tensors, name: tensors[name] + 1}
        save_file(changed, tmp_path / "changed.safetensors")
        assert (load_model(str(toy_config), str(tmp_path / "changed.safetensors")).weights_sha256 == wanted) is same


def test_weights_of_another_model_are_refused_with_the_mismatch(
    toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    tensors = load_file(toy_weights)
    misfits = {
        "shape": {**tensors, "visual.proj": torch.zeros(48, 25)},
        "missing": {name: tensor for name, tensor in tensors.items() if name != "visual.ln_post.weight"},
        "extra": {**tensors, "visual.extra": torch.zeros(1)},
        "depth": {name.replace("resblocks.2", "resblocks.7"): tensor for name, tensor in tensors.items()},
    }
    for kind, misfit in misfits.items():
        file = tmp_path / f"{kind}.safetensors"
        save_file(misfit, file)
        with pytest.raises(
            ModelError, match=rf"{kind}\.safetensors: its weights do not fit .*headspan-toy\.json \(.*; name the model"
        ) as refusal:
            load_model(str(toy_config), str(file))
        assert "visual." in str(refusal.value)


def test_pickled_objects_are_refused_and_never_run(toy_config: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    torch.save(Trap(), tmp_path / "bare.pt")
    for file in ("trap.pt", "bare.pt"):
        with pytest.raises(
            ModelError, match=rf"{file}: holds no plain weights \(.*\); headspan never unpickles objects, so save"
        ):
            load_model(str(toy_config), str(tmp_path / file))
    assert Trap.opened == 0


@pytest.mark.parametrize(
    "content",
    ["empty.pt", "empty.safetensors", "text.pt", "text.safetensors", "list.pt", "numbers.pt", "nothing.pt", "cut.pt"],
)
def test_a_file_without_weights_is_refused_by_name(
    content: str, toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / content
    kind = file.stem
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("<!DOCTYPE html><title>404</title>")
    elif kind == "cut":
        torch.save(load_file(toy_weights), file)
        file.write_bytes(file.read_bytes()[:100_000])
    else:
        torch.save({"list": [torch.ones(1)], "numbers": {"a": 1}, "nothing": {}}[kind], file)
    with pytest.raises(ModelError, match=rf"{kind}\.(pt|safetensors)"):
        load_model(str(toy_config), str(file))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"\(the file is empty\)"),
        (b"hello", r"\(it is not a PyTorch checkpoint; it begins with b'hello'\)"),
        (b"<!DOCTYPE html><title>404</title>", r"it begins with b'<!DOCTYPE html>"),
        (argparse.Namespace(lr=1), r"\(it holds objects of type argparse\.Namespace, not only tensors\)"),
        (b"\x80\x02junk", r"weights\.pt: "),
    ],
)
def test_torchs_advice_to_unpickle_a_file_is_never_repeated(
    content: bytes | argparse.Namespace, text: str, toy_config: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save({"model": {"w": torch.ones(1)}, "args": content}, file)
    with pytest.raises(ModelError, match=text) as refusal:
        load_model(str(toy_config), str(file))
    for advice in ("weights_only", "Re-running", "trust", "(101)"):
        assert advice not in str(refusal.value)


def test_a_path_in_the_wrong_place_is_answered_with_the_right_flag(
    toy_config: Path, toy_weights: Path, tmp_path: Path
) -> None:
    folder = local_folder(tmp_path, TOY)
    for name, pretrained, text in (
        (str(folder), None, f"^{folder}: is a folder; give it as --model local-dir:{folder}$"),
        (str(tmp_path), None, rf"^{tmp_path}: is a folder without open_clip_config\.json; give the name of the model"),
        (str(toy_weights), None, r"toy\.safetensors: is a file, not a model's name; give .* with --pretrained"),
        (f"{folder}/open_clip_config.json", "random:0", f"so give --model local-dir:{folder}; for other weights save"),
        (str(toy_config), str(folder), f"--pretrained {folder} is a folder; .* or the folder as --weights {folder}"),
        ("", None, "^--model is empty; give a model's name"),
    ):
        with pytest.raises(ModelError, match=text):
            load_model(name, pretrained)


def test_a_path_with_a_user_who_does_not_exist_is_refused_in_one_sentence(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = "~nobody-of-that-name/x"
    out = ["--out", "s.zarr"]
    shard = str(write_tar(tmp_path / "a.tar", image_members(range(1))))
    model = ["precompute", shard, "--layers", "all", "--model", str(toy_config)]
    for command in (
        [*model, "--pretrained", place, *out],
        [*model, "--weights", place, *out],
        [*model, "--pretrained", "random:0", "--out", place],
        ["precompute", shard, "--model", f"local-dir:{place}", *out],
        ["precompute", shard, "--model", f"{place}.json", *out],
        ["precompute", place, "--model", "reference", *out],
        ["info", place],
        ["verify", place],
        ["repair", place],
        ["demo", "--out", place],
    ):
        assert main(command) == 2, command
        said = capsys.readouterr().err.strip()
        assert said.endswith(": no such user; write the full path"), command
        assert len(said.splitlines()) == 1, command
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def local_folder(tmp_path: Path, config: dict[str, Any]) -> Path:
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


def test_a_local_folder_has_its_own_weights(toy_weights: Path, toy_model: LoadedModel, tmp_path: Path) -> None:
    folder = local_folder(tmp_path, TOY)
    (folder / "open_clip_model.safetensors").write_bytes(toy_weights.read_bytes())
    model = load_model(f"local-dir:{folder}", None)
    assert model.weights_sha256 == toy_model.weights_sha256
    assert model.config == TOY
    with pytest.raises(ModelError, match=r"local-dir:.* brings its own weights; leave --pretrained openai out"):
        load_model(f"local-dir:{folder}", "openai")


def test_a_local_folder_without_weights_is_refused_instead_of_given_random_ones(tmp_path: Path) -> None:
    folder = local_folder(tmp_path, TOY)
    with pytest.raises(ModelError, match=r"local-dir:.*weights"):
        load_model(f"local-dir:{folder}", None)


def test_a_local_folder_that_is_missing_or_has_no_config_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match=rf"^local-dir:{folder}: its config could not be read"):
            load_model(f"local-dir:{folder}", None)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"odd\.json: no such model config; give the path of an open_clip config, or a model name"),
        (b"", r"odd\.json: is not JSON \("),
        (b"{", r"odd\.json: is not JSON \("),
        (b"\xff\xfe", r"odd\.json: is not JSON \("),
        (b"{}", r"odd\.json: an open_clip config needs embed_dim, vision_cfg and text_cfg"),
        (b'{"embed_dim": 3, "vision_cfg": {}}', r"odd\.json: an open_clip config needs"),
        (b"[]", r"odd\.json: an open_clip config needs"),
        (b"7", r"odd\.json: "),
        (b"[[1]]", r"odd\.json: "),
        (b'{"embed_dim": 3, "vision_cfg": [], "text_cfg": {}}', r"odd\.json: "),
    ],
)
def test_a_file_that_is_not_a_config_is_refused_by_name(content: bytes | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=text):
        load_model(str(path), "random:0")


def test_a_config_with_a_setting_unknown_to_open_clip_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "headspan-toy-colour.json"
    path.write_text(json.dumps({**TOY, "vision_cfg": {**TOY["vision_cfg"], "colour": 3}}))
    with pytest.raises(ModelError, match=r"headspan-toy-colour\.json: .*colour"):
        load_model(str(path), "random:0")


@pytest.mark.parametrize(
    ("part", "field"), [("vision_cfg", "patch_size"), ("vision_cfg", "head_width"), ("text_cfg", "layers")]
)
def test_a_config_with_a_zero_that_open_clip_divides_by_is_refused(part: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "headspan-toy-zero.json"
    path.write_text(json.dumps({**TOY, part: {**TOY[part], field: 0}}))
    with pytest.raises(
        ModelError, match=r"headspan-toy-zero\.json: open_clip cannot build a model with this config \("
    ):
        load_model(str(path), "random:0")


def test_a_refused_config_can_be_corrected_and_given_again(tmp_path: Path) -> None:
    path = tmp_path / "headspan-toy-mended.json"
    path.write_text(json.dumps({**TOY, "vision_cfg": {**TOY["vision_cfg"], "qk_norm": True}}))
    with pytest.raises(
        ModelError, match=r"its blocks are CustomResidualAttentionBlock, with additional norms or scales"
    ):
        load_model(str(path), "random:0")
    path.write_text(json.dumps(TOY))
    assert load_model(str(path), "random:0").config == TOY


def test_a_config_named_like_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.json"
    path.write_text(json.dumps(TOY))
    with pytest.raises(
        ModelError, match=r"ViT-B-32\.json: open_clip has another model named ViT-B-32; rename the file"
    ):
        load_model(str(path), "random:0")


def test_a_model_states_how_its_images_are_prepared(toy_model: LoadedModel, tmp_path: Path) -> None:
    assert toy_model.preprocess.size == (32, 32)
    assert toy_model.preprocess.resize_mode == "shortest"
    assert toy_model.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    wide = tmp_path / "headspan-toy-wide.json"
    wide.write_text(json.dumps({**TOY, "vision_cfg": {**TOY["vision_cfg"], "image_size": [16, 48]}}))
    assert load_model(str(wide), "random:0").preprocess.size == (16, 48)


def test_text_vectors_have_unit_length_and_do_not_depend_on_the_batch(toy_model: LoadedModel) -> None:
    texts = [f"a photo of {n} dogs" for n in range(7)]
    events: list[Progress] = []
    vectors = encode_texts(toy_model, texts, batch_size=3, on_progress=events.append)
    assert vectors.shape == (7, 24)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert relative_error(encode_texts(toy_model, texts), vectors) < tolerances.FLOAT32_SUM
    with torch.inference_mode():
        tokens = toy_model.tokenizer()(texts)
        wanted = toy_model.clip.encode_text(tokens).numpy()
    assert relative_error(vectors, wanted / np.linalg.norm(wanted, axis=1, keepdims=True)) < tolerances.FLOAT32_SUM
    assert [(event.done, event.total) for event in events] == [(3, 7), (6, 7), (7, 7)]
