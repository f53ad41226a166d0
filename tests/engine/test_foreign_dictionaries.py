"""Dictionaries of other libraries: their files are read, and codes are those that the libraries themselves computed.

`tests/data/autoencoders` was written by SAELens 6.54.0, and the folders `prisma_*` by ViT-Prisma 2.0.0 (commit
aa5ff6ad7c2d; of the configuration, keys without paths are kept): random weights, three unit vectors, their codes, and
what is decoded from these.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headspan.errors import HeadspanError, SettingsError, StoreError
from headspan.features import Space, open_dictionary

FOLDER = Path(__file__).parents[1] / "data" / "autoencoders"
NAMES = sorted(path.name for path in FOLDER.iterdir())


def test_the_files_are_of_ten_dictionaries() -> None:
    assert len(NAMES) == 10


@pytest.mark.parametrize("name", NAMES)
def test_codes_and_decoded_vectors_are_those_of_the_library(name: str) -> None:
    found = open_dictionary(FOLDER / name)
    expected = load_file(FOLDER / name / "expected.safetensors")
    codes = torch.from_numpy(found.encode(expected["vectors"].numpy()))
    assert (codes > 0).any()
    torch.testing.assert_close(codes, expected["codes"], atol=1e-6, rtol=1e-5)
    decoded = found.learner.decode(codes)
    if found.settings["normalises"] == "layer_norm":
        # The library adds the vector's own mean and spread, which codes do not have: the same vector but for these.
        mean, spread = (getattr(expected["vectors"], each)(dim=1, keepdim=True) for each in ("mean", "std"))
        decoded = decoded * (found.space.width - 1) ** 0.5 * spread + mean
    torch.testing.assert_close(decoded, expected["decoded"], atol=1e-5, rtol=1e-5)
    assert (found.features, found.space.width) == (codes.shape[1], 6)
    torch.testing.assert_close(found.learner.directions().norm(dim=1), torch.ones(found.features))
    assert found.space == Space("embedding", 6)


def test_a_file_of_prisma_is_read_with_the_configuration_beside_it() -> None:
    whole, file = open_dictionary(FOLDER / "prisma_topk"), open_dictionary(FOLDER / "prisma_topk" / "weights.pt")
    assert whole.sha256 == file.sha256
    assert (file.settings["library"], file.settings["architecture"], file.settings["k"]) == ("Prisma", "topk", 3)
    with pytest.raises(SettingsError, match="not trained further"):
        file.learner.loss(torch.ones(1, 6), None)


def test_the_space_of_a_foreign_dictionary_may_be_named() -> None:
    space = Space("heads", 6, heads=((3, 1), (3, 2)))
    assert open_dictionary(FOLDER / "topk", space=space).space == space
    with pytest.raises(SettingsError, match="its vectors have 6 numbers, but the space is the embedding, 7 numbers"):
        open_dictionary(FOLDER / "topk", space=Space("embedding", 7))


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    def copy(name: str, **changed: object) -> Path:
        target = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(FOLDER / name, target)
        config = next(each for each in (target / "cfg.json", target / "config.json") if each.is_file())
        config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
        return target

    def refused(folder: Path, sentence: str) -> None:
        with pytest.raises(HeadspanError, match=sentence):
            open_dictionary(folder)

    refused(copy("topk", architecture="temporal"), r"its architecture is 'temporal', but headspan reads standard, topk")
    refused(copy("topk", k=11), "k is 11, but the dictionary has 10 features")
    refused(copy("topk", normalize_activations="covariance_whitening"), "normalize_activations is 'covariance_whiten")
    refused(copy("prisma_relu", activation_fn_str="tanh-relu"), "its activation is 'tanh-relu', but headspan reads")
    refused(copy("prisma_relu", is_transcoder=True), "is of a transcoder")
    gated = copy("gated", architecture="jumprelu")
    refused(gated, "has no b_enc, which a jumprelu autoencoder needs; fetch the folder again")
    cut = copy("topk")
    weights = load_file(cut / "sae_weights.safetensors")
    save_file({**weights, "W_enc": torch.zeros(5, 10)}, cut / "sae_weights.safetensors")
    refused(cut, r"W_enc is \[5, 10\], but must be \[6, 10\]")
    (cut / "sae_weights.safetensors").write_bytes(b"no tensors")
    refused(cut, r"sae_weights\.safetensors: cannot be read")
    pickled = copy("prisma_relu")
    torch.save({"cfg": Path("x"), "state_dict": {}}, pickled / "weights.pt")
    refused(pickled, "holds more than weights, and headspan unpickles nothing; save its state_dict alone as weights.pt")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StoreError, match="holds no dictionary of features; give the folder that `headspan features tr"):
        open_dictionary(empty)
