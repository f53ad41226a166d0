"""Text towers and tokenizers of Hugging Face, for which open_clip imports transformers only when a model needs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from headspan.model import without_transformers
from headspan.model.load import load_model
from headspan.model.text import encode_texts
from tests.conftest import TOY

transformers = pytest.importorskip("transformers")

WORDS = ("<s>", "<pad>", "</s>", "<unk>", "a", "red", "dog", "blue", "cat", "on", "grass")
PADDING = WORDS.index("<pad>")
SIZE = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": PADDING,
    "type_vocab_size": 1,
}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a toy whose text tower is an XLM-RoBERTa with a tokenizer of whole words, both in local folders."""
    folder = tmp_path_factory.mktemp("roberta")
    (folder / "config.json").write_text(json.dumps({"model_type": "xlm-roberta", **SIZE}))
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {word: WORDS.index(word) for word in WORDS}, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_pooler_type": "mean_pooler"}
    path = folder / "headspan-roberta.json"
    path.write_text(json.dumps({**TOY, "text_cfg": {**text, "hf_proj_type": "linear"}}))
    return path


def test_texts_go_through_a_text_tower_of_hugging_face(roberta: Path) -> None:
    texts = ["a red dog", "a blue cat on grass", "a purple dog"]
    model = load_model(str(roberta), "random:0")
    found = encode_texts(model, texts)

    tower = model.clip.text
    assert isinstance(tower.transformer, transformers.XLMRobertaModel)
    alone = transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**SIZE), add_pooling_layer=False).eval()
    alone.load_state_dict(tower.transformer.state_dict())
    for vector, text in zip(found, texts, strict=True):
        # Without padding, so that the mean is that of all words.
        ids = [WORDS.index(word) if word in WORDS else WORDS.index("<unk>") for word in text.split()]
        with torch.inference_mode():
            words = alone(torch.tensor([ids])).last_hidden_state[0]
        wanted = (words.mean(0) @ tower.proj.weight.T).numpy()
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_open_clips_stand_ins_behave_like_the_classes_of_transformers() -> None:
    stand_in: Any = open_clip.hf_model.BaseModelOutput
    if stand_in is transformers.modeling_outputs.BaseModelOutput:
        pytest.skip("transformers was imported before open_clip")
    assert isinstance(transformers.modeling_outputs.BaseModelOutput(), stand_in)
    assert not isinstance(transformers.PretrainedConfig(), stand_in)
    assert isinstance(stand_in(), transformers.modeling_outputs.BaseModelOutput)
    assert open_clip.hf_model.AutoModel.from_config == transformers.AutoModel.from_config


# A package of that name, and a module that takes from it what open_clip takes.
PACKAGE = """
from pathlib import Path
print("imported")
number = 3
class Model:
    @classmethod
    def loaded(cls):
        return cls()
"""
USER = """
import transformers
from transformers import Model
from transformers.outputs import Output
"""
STANDING_IN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("guard", sys.argv[1])
guard = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guard)
finders = list(sys.meta_path)
with guard.without_transformers():
    import user
    %s
assert sys.meta_path == finders
print("ready")
assert user.transformers is not None
assert type(user.Model.loaded()).__module__ == "transformers"
import transformers, transformers.outputs
assert transformers.number == user.transformers.number == 3
assert isinstance(user.Output(), transformers.outputs.Output) and isinstance(transformers.Model(), user.Model)
assert not isinstance(transformers.Model(), user.Output)
assert type(transformers).__name__ == "module"
"""


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        ("assert not isinstance(3, user.Model)", ["ready", "imported"]),
        ("assert user.transformers.number == 3", ["imported", "ready"]),
        ("from transformers import number", ["imported", "ready"]),
        ("user.Model.loaded()", ["imported", "ready"]),
    ],
    ids=["nothing used", "a number", "a number imported", "a class"],
)
def test_transformers_is_imported_once_something_of_it_is_used(meanwhile: str, said: list[str], tmp_path: Path) -> None:
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "outputs.py").write_text("class Output:\n    pass\n")
    (tmp_path / "user.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-c", STANDING_IN % meanwhile, str(without_transformers.__file__)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == said
