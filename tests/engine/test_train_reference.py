"""Training the reference model: resuming, batches, losses, and loading of the exported weights."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from headspan.decompose.fold import fold
from headspan.decompose.formula import head_coordinates, head_directions
from headspan.model.convert import to_tower
from headspan.model.load import load_model
from headspan.world import FACTORS, scene, value_of
from tools.train_reference import train
from tools.training_batches import Batches
from tools.training_model import CONFIG, Encoder, build, spread
from tools.training_recipe import Recipe

TOY = Recipe(steps=4, batch_size=32, warmup=1, grouped_from=3, spread_from=3, evaluate_every=2, evaluation_scenes=64)


def test_training_that_is_resumed_gives_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    recipe = replace(TOY, batch_size=8, evaluation_scenes=16)
    # The same model, but narrow: CPUs without bf16 take seconds for a step of the whole one.
    config = json.loads(CONFIG.read_text())
    config["vision_cfg"] |= {"width": 32, "layers": 2, "head_width": 16}
    config["text_cfg"] |= {"width": 16, "layers": 1}
    narrow = tmp_path / "headspan-narrow.json"
    narrow.write_text(json.dumps({**config, "embed_dim": 24}))
    monkeypatch.setattr("tools.training_model.CONFIG", narrow)
    # Most of a step is the iterations of Muon's orthogonalisation; one is enough here.
    monkeypatch.setattr(torch.optim, "Muon", partial(torch.optim.Muon, ns_steps=1))
    whole = train(tmp_path / "whole", recipe, device, workers=0)
    assert set(whole) == set(FACTORS)

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        # Stops as if killed after the third step, one after the checkpoint.
        patch.setattr(
            Batches,
            "__getitem__",
            lambda self, number, plain=Batches.__getitem__: stop() if number == 3 else plain(self, number),
        )
        with pytest.raises(StopError):
            train(tmp_path / "halves", recipe, device, workers=0)
    train(tmp_path / "halves", recipe, device, workers=0)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (tmp_path / "halves" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    # Embeddings of tokens that never occurred are zero. headspan and open_clip load the file.
    assert (one["token_embedding.weight"].abs().sum(dim=1) == 0).float().mean() > 0.9
    loaded = load_model(str(narrow), str(tmp_path / "whole" / "weights.safetensors"))
    assert loaded.clip.encode_image(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_a_batch_is_the_same_whenever_it_is_drawn() -> None:
    _, tokenizer = build()
    first, again = Batches(TOY, tokenizer)[2], Batches(TOY, tokenizer)[2]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], Batches(TOY, tokenizer)[1][0])


def test_grouped_batches_contain_every_scene_once_and_similar_scenes_together() -> None:
    _, tokenizer = build()
    batches = Batches(TOY, tokenizer)
    pool = [batches._grouped(number) for number in range(64, 128)]
    assert sorted(each.index for batch in pool for each in batch) == list(range(64 * 32, 128 * 32))
    alike = sum(
        batch[at].things[0].colour == batch[at + 1].things[0].colour
        for batch in pool
        for at in range(31)
        if at % TOY.group_size != TOY.group_size - 1
    )
    # Two random scenes have the same colour once in twelve.
    assert alike > 0.6 * 64 * 28


def test_every_factor_has_scenes_with_several_values() -> None:
    scenes = [scene(0, "held_out", index) for index in range(200)]
    for factor in FACTORS:
        values = {value_of(each, factor) for each in scenes} - {None}
        assert len(values) > 1, factor
    assert open_clip.get_model_config(CONFIG.stem) is not None


def test_contributions_during_training_equal_those_of_the_decomposition() -> None:
    model, tokenizer = build()
    model.load_state_dict(load_file(CONFIG.with_name("weights.safetensors")))
    pixels = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        found = Encoder(model)(pixels, tokenizer(["a red ring", "two stars"]), True)
        assert torch.allclose(found["image_features"], model.encode_image(pixels, normalize=True), atol=1e-6)
        tower = to_tower(model.visual, "reference")
        layers = range(tower.layers)
        emitted = tower.forward(pixels, layers)
    folded = fold(tower, tuple(layers))
    # The convention `per_term` does not use the mean.
    norm = np.stack([np.zeros(3), emitted.std.numpy(), np.ones(3)], axis=-1)
    wanted = [
        head_coordinates(emitted.heads[:, layer, head].numpy(), norm, normalised=False)
        @ head_directions(folded, layer, layer, head, "per_term")
        for layer in layers
        for head in range(tower.heads)
    ]
    assert np.abs(found["heads"].numpy().transpose(1, 0, 2) - np.stack(wanted)).max() < 1e-5


def test_spread_is_1_for_a_single_contributing_head_and_the_root_of_their_number_for_equal_heads() -> None:
    along = torch.eye(5)
    # Only the first two axes distinguish the texts. One head contributes along them, or all four equally.
    alone, alike = torch.zeros(7, 4, 5), torch.zeros(7, 4, 5)
    alone[:, 0, :2] = torch.randn(7, 2)
    alike[:, :, :2] = alone[:, :1, :2]
    assert spread(alone, along[:2]).item() == pytest.approx(1, abs=1e-3)
    assert spread(alike * 9, along[:2]).item() == pytest.approx(2, abs=1e-3)
