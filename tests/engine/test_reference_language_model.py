"""The language model that ships with headspan, and the tool that trains it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headspan.describe.asked.questions import QUESTIONS, prompt
from headspan.describe.policy.identity import language_model_sha256
from headspan.describe.policy.load import load_language_model
from headspan.describe.policy.policy import Policy, open_policy
from headspan.describe.policy.reference import REFERENCE, REFERENCE_FOLDER
from headspan.world.parts import parts_of
from headspan.world.sentences import read_sentence, sentences
from tools.language_answers import class_names
from tools.train_language_model import Recipe, build_tokenizer, evaluate, train

TOY = Recipe(
    steps=4, batch_size=3, warmup=2, width=12, inner_width=16, layers=1, heads=2, evaluate_every=2, evaluated=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def policy() -> Policy:
    return open_policy(REFERENCE)


def test_the_model_is_small_and_knows_every_word_of_questions_classes_and_sentences(policy: Policy) -> None:
    weights = REFERENCE_FOLDER / "model.safetensors"
    assert weights.stat().st_size < 10e6
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}
    assert 2e6 < sum(parameter.numel() for parameter in policy.model.parameters()) < 5e6
    texts = [prompt(question, name) for question in QUESTIONS for name in class_names()]
    texts += [each.text for each in sentences(1)]
    ids = policy.tokenizer(texts)["input_ids"]
    assert policy.tokenizer.unk_token_id not in {number for row in ids for number in row}
    assert policy.tokenizer.batch_decode(ids) == texts
    assert max(map(len, ids)) + 32 <= policy.model.config.max_position_embeddings


def test_sampled_answers_are_sentences_of_the_grammar_and_end_by_themselves(policy: Policy) -> None:
    prompts = [prompt(question, name) for question in QUESTIONS for name in ("star", "circle", "red", "sketch")]
    written = policy.write(prompts, seed=3)
    # The card says 95 %, and that 85 % name the class; 100 samples have standard deviations of 0.022 and 0.036.
    assert sum(read_sentence(each.text) is not None for each in written) >= 86
    names = ("star", "circle", "red", "sketch") * len(QUESTIONS)
    named = [name in {part.value for part in parts_of(each.text)} for name, each in zip(names, written, strict=True)]
    assert sum(named) >= 70
    assert all(each.ended for each in written)
    assert len({each.text for each in written}) > 70


def test_the_card_and_the_log_tell_what_the_shipped_model_measures(policy: Policy) -> None:
    last = json.loads((REFERENCE_FOLDER / "log.jsonl").read_text().splitlines()[-1])
    found = evaluate(policy.model, policy.tokenizer, Recipe())
    # Weights were rounded to bfloat16 after the log was written.
    assert found["perplexity"] == pytest.approx(last["perplexity"], rel=0.01)
    assert found["grammatical"] == pytest.approx(last["grammatical"], abs=0.05)
    card = (REFERENCE_FOLDER / "README.md").read_text()
    assert f"| perplexity | {last['perplexity']:.2f} |" in card
    assert f"| grammatical | {100 * last['grammatical']:.1f} % |" in card


def test_the_name_reference_stands_for_the_included_folder() -> None:
    assert language_model_sha256(REFERENCE) == language_model_sha256(REFERENCE_FOLDER)


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, TOY)
    with pytest.MonkeyPatch.context() as patch:
        # The first evaluation is saved; the next one is never reached.
        patch.setattr("tools.train_language_model.save_checkpoint", _saved_once(parts))
        with pytest.raises(KeyboardInterrupt):
            train(parts, TOY)
    assert not (parts / "model").exists()
    train(parts, TOY)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    steps = [json.loads(line)["step"] for line in (parts / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    model, tokenizer = load_language_model(whole / "model")
    assert model.config.hidden_size == TOY.width
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


def _saved_once(folder: Path):  # type: ignore[no-untyped-def]
    """A function that saves a checkpoint and then stops the training."""
    from tools.training_run import save_checkpoint

    def save(*args: object) -> None:
        save_checkpoint(*args)  # type: ignore[arg-type]
        assert (folder / "checkpoint.pt").is_file()
        raise KeyboardInterrupt

    return save
