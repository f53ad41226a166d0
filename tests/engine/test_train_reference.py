"""Training the reference: it learns, it goes on where it stopped, and open_clip loads what it exports."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from headspan.model.load import load_model
from headspan.world import FACTORS, scene, value_of
from tools.train_reference import CONFIG, Batches, Recipe, build, train

TOY = Recipe(steps=4, batch_size=32, warmup=1, grouped_from=3, evaluate_every=2, evaluation_scenes=64)


def test_training_in_two_goes_gives_the_weights_of_one(tmp_path: Path) -> None:
    device = torch.device("cpu")
    whole = train(tmp_path / "whole", TOY, device, workers=0)
    assert set(whole) == set(FACTORS)

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        # Ends as if killed after the third step, one beyond the checkpoint.
        patch.setattr(
            Batches,
            "__getitem__",
            lambda self, number, plain=Batches.__getitem__: stop() if number == 3 else plain(self, number),
        )
        with pytest.raises(StopError):
            train(tmp_path / "halves", TOY, device, workers=0)
    train(tmp_path / "halves", TOY, device, workers=0)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (tmp_path / "halves" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    # Tokens that never occurred are zero; headspan and open_clip load the file.
    assert (one["token_embedding.weight"].abs().sum(dim=1) == 0).float().mean() > 0.9
    loaded = load_model(str(CONFIG), str(tmp_path / "whole" / "weights.safetensors"))
    assert loaded.clip.encode_image(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_a_batch_is_the_same_whenever_it_is_drawn() -> None:
    _, tokenizer = build()
    first, again = Batches(TOY, tokenizer)[2], Batches(TOY, tokenizer)[2]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], Batches(TOY, tokenizer)[1][0])


def test_grouped_batches_hold_every_scene_of_their_pool_once_and_like_ones_together() -> None:
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
    # Two scenes taken at random agree once in twelve.
    assert alike > 0.6 * 64 * 28


def test_every_factor_has_scenes_that_are_asked_about_it() -> None:
    scenes = [scene(0, "held_out", index) for index in range(200)]
    for factor in FACTORS:
        values = {value_of(each, factor) for each in scenes} - {None}
        assert len(values) > 1, factor
    assert open_clip.get_model_config(CONFIG.stem) is not None
