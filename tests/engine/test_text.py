"""Text vectors equal open_clip's, whatever the length of the texts and of their batch."""

import open_clip
import pytest
import torch

from headspan.events import NOTE, Progress
from headspan.model.load import LoadedModel
from headspan.model.text import _lengths, encode_texts
from tests.tolerances import FLOAT32_SUM, relative_error

TEXTS = ["a dog", "x", *(f"a photo of {count} red objects on a long blue table" for count in range(9)), "why not " * 40]


def test_a_shorter_context_changes_no_vector(toy_model: LoadedModel) -> None:
    tokens = toy_model.tokenizer()(TEXTS)
    # The last text fills the whole context; the second has three tokens.
    assert tokens[-1].argmax() == tokens.shape[1] - 1
    with torch.inference_mode():
        wanted = toy_model.clip.encode_text(tokens, normalize=True).numpy()
    for batch_size in (1, 3, 100):
        assert relative_error(encode_texts(toy_model, TEXTS, batch_size), wanted) < FLOAT32_SUM
    with torch.inference_mode():
        assert (toy_model.clip.encode_text(tokens, normalize=True).numpy() == wanted).all()


def test_only_the_tokens_of_the_texts_are_computed(toy_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = toy_model.clip.encode_text
    monkeypatch.setattr(
        toy_model.clip,
        "encode_text",
        lambda tokens, normalize: (seen.append(tokens.shape[1]), inner(tokens, normalize))[1],
    )
    encode_texts(toy_model, ["a dog", "a cat", "x"], batch_size=2)
    assert seen == [4, 4]


def test_progress_counts_texts_and_a_note_names_one_that_may_be_cut(toy_model: LoadedModel) -> None:
    events: list[Progress] = []
    cut: list[str] = []
    encode_texts(toy_model, TEXTS, 5, events.append, cut.extend)
    note, *counts = events
    assert [(event.done, event.total) for event in counts] == [(5, 12), (10, 12), (12, 12)]
    assert note.stage == NOTE
    assert note.note == (
        f"1 of 12 texts filled the model's context of 16 tokens, so the end may have been cut: {TEXTS[-1][:60]}…"
    )
    assert cut == TEXTS[-1:]
    encode_texts(toy_model, TEXTS[:3], 5, events.append, pytest.fail)
    assert events[-1] == Progress("texts", 3, 3)


def test_a_tower_that_does_not_pool_at_the_end_token_keeps_its_whole_context() -> None:
    clip = open_clip.create_model("ViT-S-32-alt")
    tokens = open_clip.get_tokenizer("ViT-S-32-alt")(["a dog"])
    assert _lengths(clip, tokens) is not None
    clip.text_pool_type = "last"
    assert _lengths(clip, tokens) is None
