"""What the tests of the explorer's page share: stores of scenes, a server in a process of its own, and a browser.

A test module imports `scenes`, `address`, `browser` and `page`. The page's fixture fails a test in which the browser
reported an error, such as a violation of the content security policy; requests that a test expects to be refused are
allowed with `allow_refusals`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.config import PrecomputeSettings
from headspan.demo import analyse_scenes
from headspan.describe.descriptions.saved import save_descriptions
from headspan.describe.rewards.target import Target
from headspan.events import ignore
from headspan.features.saved import save_scores
from headspan.features.uses.saved import keep_use
from headspan.world import write_world_shards
from tests.engine.hand_made_descriptions import hand_made_descriptions
from tests.engine.hand_made_features import hand_made_scores
from tests.engine.hand_made_uses import hand_made_bias, hand_made_edit

# Milliseconds. Busy machines take their time.
WAIT = 60_000
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
# Each waits for what it expects, and fails after as long as other waits.
expect = sync_api.expect
expect.set_options(timeout=WAIT)
STATIC = Path(hs.__file__).parent / "web" / "static"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Enough scenes for one head to carry textures.
IMAGES = 240
FEATURES = 67
_REFUSED = "Failed to load resource"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of scenes, and two stores of them.

    run.zarr has patches, texts, labels, features and descriptions; bare.zarr has none of these. All are copies, which
    the module's tests may change.
    """
    return Path(shutil.copytree(_made_once(tmp_path_factory), tmp_path_factory.mktemp("copied") / "scenes"))


def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stores, which the first module of all test processes that needs it makes."""
    folder = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have folders of their own in a common one.
    common = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    made, unfinished = common / "made-scenes", common / "unfinished-scenes"
    with (common / "made-scenes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            # What a process left that was killed.
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            _make(unfinished)
            unfinished.rename(made)
    return made


def _make(folder: Path) -> None:
    shards = str(write_world_shards(folder / "shards", IMAGES, 2, images_per_shard=120, split="held_out"))
    settings = {"shards": (shards,), "model": "reference", "layers": "all", "decode": "exact"}
    analyse_scenes(PrecomputeSettings(out=str(folder / "run.zarr"), emit=("heads", "patches", "mlps"), **settings))
    hs.precompute(out=folder / "bare.zarr", pretrained="random:0", emit=("heads",), **{**settings, "shards": [shards]})
    store = hs.open(folder / "run.zarr")
    directions = np.random.default_rng(0).standard_normal((FEATURES, store.joint))
    names = tuple((f"text {feature}", f"<b>{feature}</b>") for feature in range(FEATURES))
    cosines = np.tile(np.array([0.5, 0.25], np.float32), (FEATURES, 1))
    scores = save_scores(store, hand_made_scores(directions, store.images, names=names, name_cosines=cosines))
    for name, use in {"probe": hand_made_bias(), "swap": hand_made_edit(store)}.items():
        keep_use(store, use, scores, name, False, ignore)
    rows = store.rows[:6].reshape(2, 3)
    save_descriptions(store, hand_made_descriptions(class_rows=rows))
    changed = {"run": "of-head", "target": Target(((4, 3),)), "quality": {"reward": 7.25}}
    save_descriptions(store, hand_made_descriptions(False, **changed))


@pytest.fixture(scope="module")
def address(scenes: Path) -> Iterator[str]:
    """Where a server of both stores answers, which runs as long as the module's tests."""
    if not (STATIC / "index.html").exists():
        pytest.skip("the page is not built; run python -m tools.build_page")
    # The stores name the place where the shards were made.
    shards = ["--shards", str(scenes / "shards" / "*.tar")]
    command = [sys.executable, "-m", "headspan", "explore", "run.zarr", "bare.zarr", "--port", "0", *shards]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=scenes, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            assert "ready at http" in line, line
            yield line.split("ready at ")[1].split()[0].rstrip("/")
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Page:
    """A page of the explorer, which remembers what the browser complained about."""

    def __init__(self, context: Any, address: str) -> None:
        self.address = address
        self.tab = context.new_page()
        self.tab.set_default_timeout(WAIT)
        self.complaints: list[str] = []
        self._refusals_allowed = False
        self.tab.on("console", self._listen)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, place: str = "") -> Any:
        """Go to a place of the page, such as `run/head/L4.H3`; return the tab."""
        self.tab.goto(f"{self.address}/#/{place}")
        return self.tab

    def settled(self) -> Any:
        """Wait until the page asks for nothing; return the tab."""
        self.tab.wait_for_load_state("networkidle")
        return self.tab

    def wait_until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true.

        Playwright's own `wait_for_function` evaluates it inside of the page when it is not true at once, which the
        page's security policy forbids.
        """
        ends = time.monotonic() + WAIT / 1000
        while not self.tab.evaluate(condition):
            assert time.monotonic() < ends, f"never true: {condition}"
            self.tab.wait_for_timeout(20)

    def place(self) -> str:
        """Where the page is: its address after `#/`."""
        return str(self.tab.evaluate("location.hash.slice(2)"))

    def allow_refusals(self) -> None:
        """Let the server refuse requests of this test."""
        self._refusals_allowed = True

    def wide(self) -> int:
        """By how many pixels the page is wider than the window."""
        root = "document.documentElement"
        return int(self.tab.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))

    def _listen(self, message: Any) -> None:
        if message.type == "error" and not (self._refusals_allowed and message.text.startswith(_REFUSED)):
            self.complaints.append(f"{message.text} ({message.location.get('url')})")


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    """A page in a browser profile of its own; the test fails if the browser complains."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    found = Page(context, address)
    yield found
    context.close()
    assert found.complaints == [], f"the browser complains: {found.complaints}"


def answer(address: str, path: str) -> Any:
    """What the server's HTTP API answers, asked without a browser."""
    with urllib.request.urlopen(f"{address}/api/{path}") as response:
        content: bytes = response.read()
    return json.loads(content) if response.headers.get_content_type() == "application/json" else content
