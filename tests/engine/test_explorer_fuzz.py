"""Every address of the explorer's HTTP API with random and with extreme parameters, from its own description.

Whatever is asked, the answer has a documented status and form; errors are one sentence. Every address is also asked
with values that make sense, and must answer some of those questions.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import headspan as hs
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.describe.descriptions.saved import save_descriptions
from headspan.features.saved import save_scores
from headspan.texts.pool import Pool
from headspan.web.app import ROUTERS, application
from headspan.web.state.explorer import Explorer
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
from tests.conftest import ToyRun, encoded_image
from tests.engine.hand_made_descriptions import hand_made_descriptions
from tests.engine.hand_made_features import hand_made_scores
from tests.engine.model_in_process import InProcess

# Threads of earlier questions may draw random numbers while hypothesis draws the next one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

# Examples for each address: half of them are what its description allows, half of them are not.
FEW_EXAMPLES, EXAMPLES = 18, 60
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
UPLOAD = encoded_image(3)
UPLOADED = Uploads().add(UPLOAD)
IMAGES = ["0", "12", "66", UPLOADED]
# What makes sense for parameters of these names.
SENSIBLE: dict[str, list[Any]] = {
    "store": ["toy", "twin"],
    "head": ["L0.H0", "L2.H1"],
    "of": ["embedding", "L1.H2"],
    "id": IMAGES,
    "image": IMAGES,
    "text": ["a red car", "caption 3"],
    "against": ["a dog"],
    "through": ["embedding", "all", "L0.H0,L2.H1", "label:colors"],
    "through_a": ["embedding", "L0.H0"],
    "through_b": ["embedding", "L0.H0"],
    "without": ["L0.H0", "L0.H0,L1.H1"],
    "by": ["word:caption", "text:a dog", "column:key"],
    "words": ["caption"],
    "keys": ["00000,00001"],
    "plane": ["embedding"],
    "polygon": ["-9,-9,9,-9,9,9,-9,9"],
    "feature": ["0", "8"],
    "class": ["cross-modal", "ball"],
    "verdict": ["visual"],
    "question": [0, 2],
    "low": [0, 0.5],
    "prefix": ["a"],
    "key": ["00012"],
    "a": ["toy"],
    "b": ["twin"],
}
# What nearly makes sense, is long, or is a trap.
EXTREME: dict[str, list[Any]] = {
    "store": ["toy.zarr", "toy "],
    "head": ["L2.H99", "L-1.H0", "H", "L٣.H٢", "L999999999999999999999.H0"],
    "of": ["L9.H9", "all"],
    "id": ["5", "upload-0", "-1", "1e3", "9" * 30, "٣", "../12"],
    "text": ["", " ", "word " * 500, "'); DROP TABLE samples; --", "\x00", "🎈" * 300, "a\nb"],
    "against": ["x" * 3000, ""],
    "through": ["label:", "label:x", "random:colors:0", "random:x:-1", ",", "L0.*", "L9.H0"],
    "without": ["L0.H0,L0.H0", "L2.H99", "", "all"],
    "by": ["class", "word:caption,1", "word:", "column:", "column:'", 'column:"', "text:" + "x" * 3000],
    "column": ["key", "label", "x", '"', "metadata"],
    "value": ["1", "'", "%", "\x00"],
    "words": ["'", "%", "*", "a" * 3000],
    "classes": ["0", "0,1", "x", "9" * 30],
    "keys": ["'", "00000," * 5000],
    "plane": ["x"],
    "polygon": ["0,0", "nan,0,1,0,1,1", "inf,0,1,0,1,1", "1e999,0,1,0,0,1", "a", "0.5," * 4001],
    "feature": ["-1", "9", "1e3", "9" * 30, "٣", "x"],
    "low": [-1, 2, "nan", "inf", "x"],
    "high": [0, "-0", "1e-320", "nan"],
    "question": [3, -1, "x", 9**30],
    "sort": ["x", "-mds"],
    "run": ["x", "../..", "", "hand"],
    "prefix": ["%", "\x00", "x" * 3000],
    "key": ["00005", "x", "'"],
    "a": ["x"],
    "b": ["toy"],
}
EXTREME["image"] = EXTREME["id"]


@pytest.fixture(scope="module")
def operations(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the description of the API says of each address."""
    folder = tmp_path_factory.mktemp("fuzzed")
    toy = Path(shutil.copytree(toy_run.path, folder / "toy.zarr"))
    store = hs.open(toy)
    texts = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("car", "dog", "hat")]
    hs.textspan(store, Pool("colours", tuple(texts), ("colors",) * len(texts)), 5, save=True)
    concept_consistency(store, label_heads(store, save=True).run, save=True)
    directions = np.random.default_rng(0).standard_normal((9, store.joint))
    save_scores(store, hand_made_scores(directions, store.images))
    save_descriptions(store, hand_made_descriptions())
    twin = Path(shutil.copytree(toy, folder / "twin.zarr"))
    uploads = Uploads()
    assert uploads.add(UPLOAD) == UPLOADED
    app = application(Explorer(OpenStores([toy, twin]), InProcess(), uploads))
    found: dict[str, list[Any]] = {}
    for each in schemathesis.openapi.from_asgi("/api/openapi.json", app).get_all_operations():
        found.setdefault(each.ok().path, []).append(each.ok())
    return found


def addresses() -> list[str]:
    return sorted({route.path for router in ROUTERS for route in router.routes})


@pytest.mark.parametrize("examples", [FEW_EXAMPLES, pytest.param(EXAMPLES, marks=pytest.mark.full_size)])
@pytest.mark.parametrize("address", addresses())
def test_an_address_answers_whatever_is_asked_in_a_documented_form(
    operations: dict[str, list[Any]], address: str, examples: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for operation in operations[address]:
        statuses = _statuses(operation, examples)
        assert 200 in statuses, f"no question to {address} was answered: {statuses}"
    assert "Traceback" not in capfd.readouterr().err


def _statuses(operation: Any, examples: int) -> dict[int, str]:
    """Ask one operation; returns the statuses of its answers, with the last answer of each."""
    statuses: dict[int, str] = {}
    names = {parameter.name for parameter in operation.query}

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)),
        seed=st.integers(0, 1 << 30),
    )
    def ask(case: Any, seed: int) -> None:
        draw = random.Random(seed)
        # Of a third of the questions everything makes sense, of a third nearly everything; the others are random.
        kind = draw.randrange(3)
        # Some questions have few of the optional parameters: filters together may leave no image.
        kept = draw.random() ** 2
        if kind < 2:
            case.query = {}
            for name in [*case.path_parameters, *sorted(names)]:
                extreme = kind == 1 and draw.random() < 0.3 and name in EXTREME
                values = (EXTREME if extreme else SENSIBLE).get(name)
                place = case.path_parameters if name in case.path_parameters else case.query
                if values and (name not in names or name in _required(operation) or draw.random() < kept):
                    place[name] = draw.choice(values)
            if case.body is not None and operation.method == "post":
                case.body = UPLOAD if kind == 0 else UPLOAD[: draw.randrange(len(UPLOAD))]
        answer = case.call()
        statuses[answer.status_code] = repr(answer.content[:300])
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            failure = json.loads(answer.content)
            assert set(failure) == {"error", "kind"}
            assert failure["error"]
            assert "\n" not in failure["error"]

    ask()
    return statuses


def _required(operation: Any) -> set[str]:
    return {parameter.name for parameter in operation.query if parameter.is_required}
